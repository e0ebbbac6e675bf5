"""Tables for people. Machines use --json."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from rich.console import Console
from rich.table import Table

from libs.events.envelope import Envelope
from libs.report import FailoverStory
from libs.scenario.model import Scenario
from libs.scenario.outcome import Outcome
from services.alerting.texts import tell

COLOURS = {
    "healthy": "green",
    "running": "green",
    "suspect": "yellow",
    "agent_down": "yellow",
    "waiting": "yellow",
    "planned": "yellow",
    "unknown": "yellow",
    "failed": "red",
    "fenced": "magenta",
}
SEVERITY = {"info": "", "warning": "yellow", "critical": "bold red"}
PIPE_COLUMNS = 200
console = Console()


def coloured(state: str) -> str:
    colour = COLOURS.get(state)
    return f"[{colour}]{state}[/]" if colour else state


def rows(title: str, columns: Sequence[str], data: Sequence[dict[str, Any]]) -> None:
    """One line a row; the column `state` in its colour."""
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    for column in columns:
        numeric = any(isinstance(row.get(column), int) for row in data)
        table.add_column(column, justify="right" if numeric else "left", no_wrap=column == "host")
    for row in data:
        table.add_row(*(_cell(column, row.get(column)) for column in columns))
    # in a pipe a row is a line, however long: what reads it may look for any word of it
    out = console if console.is_terminal else Console(width=max(console.width, PIPE_COLUMNS))
    out.print(table)


def _cell(column: str, value: Any) -> str:
    if column == "state":
        return coloured(str(value))
    if isinstance(value, list):
        return ", ".join(str(part).rsplit("/", 1)[-1] for part in value)
    return "" if value is None else str(value)


def ready_plan(plan: dict[str, Any] | None) -> str:
    """Of the plan that is kept ready for a host's loss: for how many VMs, and who has no place in it."""
    if plan is None:
        return "-"
    left = f", none for {', '.join(plan['left'])}" if plan["left"] else ""
    return f"{plan['vms']} VMs{left}"


def closed(host: dict[str, Any]) -> str:
    """Why a host takes no new VMs; "" where it does."""
    whys = [why for why in ("maintenance", "quarantined") if host[why]]
    whys = [f"{why}, drained" if why == "maintenance" and host.get("emptied") else why for why in whys]
    return ", ".join([*whys, *([host["drain"]] if host["drain"] else [])])


def paths(host: dict[str, Any], now: datetime) -> str:
    """Its fence devices, each with what the last look at it brought and how long ago it was last proven."""
    told = []
    for path in host["fence_paths"]:
        ago = _ago(path["proven_at"], now)
        state = path["state"] if path["state"] != "broken" else f"BROKEN ({path['detail']})"
        told.append(f"{path['device']} {state}{', proven ' if path['state'] != 'proven' else ' '}{ago}")
    unread = [str(agent).rsplit("/", 1)[-1] for agent in host["fencing"]] if not told else []
    return "; ".join([*told, *(f"{agent} not read yet" for agent in unread)])


def age_s(at: str | None, now: datetime) -> float | None:
    """Seconds since a time that was written down; None where there is none."""
    return None if at is None else max(0.0, (now - datetime.fromisoformat(at)).total_seconds())


def _ago(at: str | None, now: datetime) -> str:
    seconds = age_s(at, now)
    if seconds is None:
        return "never"
    return f"{seconds:.0f} s ago" if seconds < 120 else f"{seconds / 60:.0f} min ago"


def told(value: Any) -> str:
    """One value of a status, in a line."""
    if value is None or isinstance(value, list):
        return ", ".join(str(one) for one in value or ()) or "none"
    if isinstance(value, dict):
        return "; ".join(f"{name} {told(one)}" for name, one in value.items())
    return str(value)


def event_line(envelope: Envelope, zero: datetime | None = None) -> str:
    """One fact as one line: when, what, said in a sentence."""
    severity, text = tell(envelope.data)
    at = envelope.time
    when = at.strftime("%H:%M:%S.%f")[:-3] if zero is None else f"{(at - zero).total_seconds():8.2f} s"
    colour = SEVERITY[severity.value]
    return f"{when}  [bold]{envelope.data.kind:<20}[/] " + (f"[{colour}]{text}[/]" if colour else text)


def _since(start: datetime | None, end: datetime | None) -> str:
    return "-" if start is None or end is None else f"{(end - start).total_seconds():.2f} s"


def failover(story: FailoverStory) -> None:
    """The report of one failover."""
    zero = story.suspected or story.confirmed
    head = Table(title=f"failover {story.incident}", title_justify="left", box=None, padding=(0, 2, 0, 0))
    for column in ("suspected", "confirmed", "fenced", "planned", "first start", "all running"):
        head.add_column(column, justify="right")
    times = (story.confirmed, story.fenced, story.planned, story.first_start, story.all_running)
    head.add_row(zero.strftime("%H:%M:%S.%f")[:-3] if zero else "-", *(_since(zero, time) for time in times))
    console.print(head)
    data = [
        {
            "vm": vm.name,
            "from": vm.origin,
            "to": vm.to,
            "state": vm.state,
            "running after": _since(zero, vm.seen_running),
            "detail": vm.reason,
        }
        for vm in sorted(story.vms.values(), key=lambda vm: vm.name)
    ]
    if data:
        rows("", ("vm", "from", "to", "state", "running after", "detail"), data)


def machines(scenario: Scenario, outcome: Outcome) -> None:
    """Where each VM of a scenario was and is."""
    before = {vm.name: vm for vm in scenario.vms}
    data = [
        {
            "vm": name,
            "priority": before[name].priority.value,
            "from": before[name].host,
            "to": vm.host or "-",
            "state": vm.state,
            "starts": vm.starts,
            "downtime": f"{vm.downtime_s:.2f} s" if vm.downtime_s else "-",
        }
        for name, vm in outcome.vms.items()
    ]
    console.print()
    rows("VMs", ("vm", "priority", "from", "to", "state", "starts", "downtime"), data)
