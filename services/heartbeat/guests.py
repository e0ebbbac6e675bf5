"""How the guests of one host are, pure: what their agents answered, what their watchdogs did, what libvirt shows.

A guest is silent only by its own measure: its agent has answered in this very run, its channel is still connected,
and it has not answered for long, nor to several questions that it was really asked. What was not asked, since too
many others hung or this process stood still, is no silence.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from rpds import HashTrieMap

from libs.config.settings import Guests as GuestSettings
from libs.core.decider import Act
from libs.core.evolve import replace
from libs.model import Health, StopReason, VmReport, VmState
from services.heartbeat.orders import Fired, Pinged, PingGuests

MISSED_MIN = 3
"""Questions in a row that were asked and not answered."""
ROUND_S = 25.0
PING_DEADLINE_S = 30.0


@dataclass(frozen=True, slots=True)
class Guest:
    """One run of one VM."""

    run: int
    answered_at: float | None = None
    """When its agent last answered; None: not in this run, or not since its channel was last connected."""
    missed: int = 0
    fired: bool = False
    """Its watchdog fired, without an effect that heals, and its agent has not answered since."""
    ended: bool = False
    """Its watchdog is ending it: that is no person's will."""


@dataclass(frozen=True, slots=True)
class GuestsState:
    known: HashTrieMap[str, Guest] = field(default_factory=HashTrieMap)
    asking: bool = False
    ask_at: float = 0.0
    able: bool = False
    """There is somebody to ask."""
    rounds: int = 0


def read(state: GuestsState, reports: tuple[VmReport, ...]) -> GuestsState:
    """What is known of runs that are over, or of channels that were closed, is forgotten."""
    known: HashTrieMap[str, Guest] = HashTrieMap()
    for report in reports:
        before = state.known.get(report.uuid)
        if before is None or before.run != report.run:
            before = Guest(report.run)
        if report.state is VmState.STOPPED:
            if before.ended:
                known = known.insert(report.uuid, before)
            continue
        if report.state is VmState.UNKNOWN:
            pass  # a reading of which nobody can make sense says nothing of its channel either
        elif not report.agent or report.state is VmState.PAUSED:
            # what stands still cannot answer; one that rebooted must answer once more before it is judged
            before = replace(before, missed=0, answered_at=before.answered_at if report.agent else None)
        known = known.insert(report.uuid, before)
    able = any(one.agent and one.state is VmState.RUNNING for one in reports)
    return replace(state, known=known, able=able)


def remembered(state: GuestsState, reports: Iterable[VmReport], now: float) -> GuestsState:
    """What an earlier life of this agent knew of runs that still go on."""
    known = state.known
    for report in reports:
        if not report.state.active:
            continue
        # also in doubt: what was asked and did not answer twice is neither well nor silent yet
        told = report.answered or report.health in (Health.OK, Health.SILENT)
        answered_at = now if told else None
        fired = report.health is Health.WATCHDOG and report.state is VmState.RUNNING
        if answered_at is not None or fired:
            known = known.insert(report.uuid, Guest(report.run, answered_at=answered_at, fired=fired))
    return replace(state, known=known)


def asked(
    state: GuestsState, reports: Iterable[VmReport], settings: GuestSettings, now: float
) -> tuple[GuestsState, list[Act]]:
    """Ask all that can be asked, one round at a time; first those that answered the last time."""
    state = replace(state, ask_at=now + settings.ping_every_s)
    able = [one for one in reports if one.agent and one.state is VmState.RUNNING]
    if state.asking or not able:
        return state, []
    able.sort(key=lambda one: (state.known.get(one.uuid, Guest(0)).missed, one.uuid))
    request = PingGuests(
        key=f"ping/{state.rounds}",
        deadline_s=PING_DEADLINE_S,
        vms=tuple((one.uuid, one.run) for one in able),
        within_s=ROUND_S,
    )
    return replace(state, asking=True, rounds=state.rounds + 1), [Act(None, request)]


def pinged(state: GuestsState, outcome: Pinged, now: float) -> GuestsState:
    """Note who answered, and who did not although it was asked."""
    known = state.known
    for vm, run in outcome.answered:
        guest = known.get(vm)
        if guest is not None and guest.run == run:
            known = known.insert(vm, replace(guest, answered_at=now, missed=0, fired=False))
    for vm, run in outcome.silent:
        guest = known.get(vm)
        if guest is not None and guest.run == run and guest.answered_at is not None:
            known = known.insert(vm, replace(guest, missed=guest.missed + 1))
    return replace(state, known=known, asking=False)


def fired(state: GuestsState, event: Fired) -> GuestsState:
    """A guest's watchdog fired. What resets it heals it; what pauses it is seen in its state."""
    guest = state.known.get(event.vm)
    if event.run <= 0 or (guest is not None and guest.run > event.run):
        return state  # of a run that is over
    if guest is None or guest.run != event.run:
        guest = Guest(event.run)
    if event.action in ("none", "debug", "shutdown"):
        guest = replace(guest, fired=True)
    if event.action in ("poweroff", "shutdown"):
        guest = replace(guest, ended=True)
    return replace(state, known=state.known.insert(event.vm, guest))


def judged(
    state: GuestsState, reports: Iterable[VmReport], settings: GuestSettings, now: float
) -> tuple[VmReport, ...]:
    """The reports as libvirt gives them, with the health of each guest. Those that fall silent together are told
    together, so that it shows where it is the host: a silent one waits for others that are about to be."""
    reports = tuple(reports)
    waits = any(
        _age_s(state, one, now) > settings.silent_after_s / 2 and not _silent(state, one, settings, now)
        for one in reports
    )
    return tuple(_judged(state, one, settings, now, waits=waits) for one in reports)


def changed(state: GuestsState, told: Iterable[VmReport], settings: GuestSettings, now: float) -> bool:
    """True where what was told of the guests' health is not what is known by now."""
    told = tuple(told)
    running = VmState.RUNNING  # of these libvirt itself says nothing
    unjudged = {"health": Health.UNKNOWN, "answered": False}
    bare = [one.model_copy(update=unjudged) if one.state is running else one for one in told]
    return judged(state, bare, settings, now) != told


def _age_s(state: GuestsState, report: VmReport, now: float) -> float:
    """For how long a guest that is asked has not answered; 0 where that says nothing."""
    guest = state.known.get(report.uuid)
    able = report.agent and report.state is VmState.RUNNING
    if guest is None or guest.answered_at is None or not able or guest.run != report.run or not guest.missed:
        return 0.0
    return now - guest.answered_at


def _silent(state: GuestsState, report: VmReport, settings: GuestSettings, now: float) -> bool:
    guest = state.known.get(report.uuid)
    long = _age_s(state, report, now) >= settings.silent_after_s
    return long and guest is not None and guest.missed >= MISSED_MIN


def _judged(
    state: GuestsState, report: VmReport, settings: GuestSettings, now: float, *, waits: bool
) -> VmReport:
    guest = state.known.get(report.uuid)
    if guest is None or guest.run != report.run or report.health.bad:
        return report
    if report.state is VmState.STOPPED:
        ended = guest.ended and report.stop_reason is StopReason.ON_PURPOSE
        return report.model_copy(update={"stop_reason": StopReason.CRASHED}) if ended else report
    if not report.state.active:
        return report
    if guest.fired:
        return report.model_copy(update={"health": Health.WATCHDOG})
    if guest.answered_at is None:
        return report
    report = report.model_copy(update={"answered": True})
    if report.state is VmState.PAUSED:
        return report
    long = _age_s(state, report, now) >= 2 * settings.silent_after_s
    if _silent(state, report, settings, now) and (long or not waits):
        return report.model_copy(update={"health": Health.SILENT})
    return report if guest.missed > 1 else report.model_copy(update={"health": Health.OK})
