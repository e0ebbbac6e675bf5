"""From what the observer saw to figures: who was down for how long, who runs where, who ran twice."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from infra.lab.observations import GuestUp, Observations, VmChange
from libs.events.envelope import Envelope
from libs.events.failovers import FailoverPlanned
from libs.events.vms import VmRestarted, VmRestartFailed
from libs.scenario.outcome import VmOutcome


def _runs(changes: Iterable[VmChange]) -> list[tuple[str, datetime, datetime | None]]:
    """Spells of one VM on one host: first seen active, seen to have ended. The observer tells each change once,
    by whichever way of looking saw it first."""
    spells: list[tuple[str, datetime, datetime | None]] = []
    open_: dict[str, int] = {}
    for change in changes:
        at = open_.get(change.host)
        if change.active and at is None:
            open_[change.host] = len(spells)
            spells.append((change.host, change.at, None))
        elif not change.active and at is not None:
            spells[at] = (change.host, spells[at][1], change.at)
            del open_[change.host]
    return spells


def vm_outcome(
    uuid: str, name: str, observed: Observations, since: datetime, end: datetime, waiting: bool
) -> tuple[VmOutcome, datetime | None]:
    """What became of one VM since the scenario began, and since when its guest is up now."""
    spells = _runs(change for change in observed.vms if change.vm == uuid)
    ups = [up.at for up in observed.guests if up.name == name]
    down_s = 0.0
    for index, (_, _, ended) in enumerate(spells):
        if ended is None or ended < since:
            continue
        following = spells[index + 1][1] if index + 1 < len(spells) else None
        back = next((at for at in ups if following is not None and at >= following), None)
        down_s += ((back or end) - ended).total_seconds()
    # of two copies the one that began first may be the one that goes on
    current = next((spell for spell in reversed(spells) if spell[2] is None), None)
    up_since = None
    if current is not None:
        up_since = next((at for at in ups if at >= current[1]), None)
    state = "running" if current else ("waiting" if waiting else "stopped")
    host = current[0] if current else None
    outcome = VmOutcome(
        state=state,
        host=host,
        starts=len(spells),
        downtime_s=round(max(0.0, down_s), 3),
        began_s=tuple(round((began - since).total_seconds(), 3) for _, began, _ in spells if began >= since),
    )
    return outcome, up_since


def last_up(guests: Iterable[GuestUp], names: Iterable[str], after: datetime) -> datetime | None:
    """When the last of these guests came up for the first time after a moment; None where one did not."""
    latest: datetime | None = None
    seen = list(guests)
    for name in names:
        first = next((up.at for up in seen if up.name == name and up.at >= after), None)
        if first is None:
            return None
        latest = first if latest is None or first > latest else latest
    return latest


def untold_starts(envelopes: Iterable[Envelope]) -> set[str]:
    """VMs, by uuid, whose start was planned and of which nobody has said yet how it came out."""
    planned: set[str] = set()
    for envelope in envelopes:
        match envelope.data:
            case FailoverPlanned() as plan:
                planned.update(start.vm for start in plan.starts)
            case (VmRestarted() | VmRestartFailed()) as ended:
                planned.discard(ended.vm)
    return planned
