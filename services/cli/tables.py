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
    console.print(table)


def _cell(column: str, value: Any) -> str:
    if column == "state":
        return coloured(str(value))
    if isinstance(value, list):
        return ", ".join(str(part).rsplit("/", 1)[-1] for part in value)
    return "" if value is None else str(value)


def closed(host: dict[str, Any]) -> str:
    """Why a host takes no new VMs; "" where it does."""
    whys = [why for why in ("maintenance", "quarantined") if host[why]]
    return ", ".join([*whys, *([host["drain"]] if host["drain"] else [])])


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
