"""A run told: one line a decision for the log, and the outcome document."""

from __future__ import annotations

from collections.abc import Iterable

from libs.events.base import Fact, HostFact, VmFact
from libs.events.datastores import DatastoreFailed, DatastoreLost, DatastoreRecovered
from libs.events.drains import HostDrainPlanned, HostDrainStuck
from libs.events.envelope import Envelope, wrap
from libs.events.failovers import CapacityExhausted, FailoverCompleted, FailoverPlanned
from libs.events.guests import HostDraining, HostGrey, VmEvictFailed, VmUnhealthy
from libs.events.hosts import (
    FencePathBroken,
    FencePathMended,
    HostFailed,
    HostFenced,
    HostFenceFailed,
    HostFenceTested,
    HostQuarantined,
    HostSuspected,
    HostUndecided,
    StormHeld,
)
from libs.events.state import StateReconciled
from libs.events.vms import (
    VmFailed,
    VmMoved,
    VmMoveFailed,
    VmOrderUncertain,
    VmPreempted,
    VmPreemptFailed,
    VmRestartFailed,
    VmStartUncertain,
    VmStillHeld,
    VmWaitedInVain,
)
from libs.events.words import StormReleaseOrdered
from libs.model import Failure
from libs.report import failovers
from libs.scenario.model import Scenario
from libs.scenario.outcome import (
    FailoverOutcome,
    HostOutcome,
    Outcome,
    TimelineEntry,
    Violation,
    VmOutcome,
    failover_outcomes,
    host_outcomes,
    timeline,
    unmet,
)
from libs.sim.broker import Stored
from libs.sim.loop import wall_at
from libs.sim.world import World, vm_uuid


def gist(fact: Fact, names: dict[str, str]) -> str:
    """What one fact says, in a few words; VMs by name."""
    subject = ""
    if isinstance(fact, VmFact):
        subject = f"{fact.name} on {fact.at.host}"
    elif isinstance(fact, HostFact):
        subject = str(fact.at)
    match fact:
        case FailoverPlanned():
            starts = [f"{start.name} to {start.to.host}" for start in fact.starts]
            waits = [f"{one.name} waits ({one.reason.split(':')[0]})" for one in fact.waiting]
            moves = [f"{one.name} moves from {one.origin.host} to {one.to.host}" for one in fact.moves]
            stops = [f"{one.name} stops on {one.at.host}" for one in fact.stops]
            return f"{_short(fact.incident, names)}: {', '.join([*moves, *stops, *starts, *waits])}"
        case FailoverCompleted():
            done = ", ".join(fact.restarted) or "none"
            left = f"; waiting: {', '.join(fact.waiting)}" if fact.waiting else ""
            return f"{_short(fact.incident, names)}: {done} restarted{left}"
        case CapacityExhausted():
            return (
                f"{_short(fact.incident, names)}: no room for {', '.join(one.name for one in fact.waiting)}"
            )
        case HostFenceFailed() | HostFenced() | FencePathBroken() | FencePathMended() | HostFenceTested():
            return _of_fencing(fact, subject)
        case HostFailed():
            ran = sorted(names.get(vm.uuid, vm.uuid) for vm in fact.vms)
            return f"{subject}: {fact.rule}; ran {', '.join(ran) or 'nothing'}"
        case HostSuspected() | HostUndecided():
            return f"{subject}: silent for {fact.silent_s:.1f} s"
        case StormHeld():
            return f"{', '.join(fact.suspects)} at once, {fact.limit} believable"
        case DatastoreLost():
            on_it = ", ".join(sorted(vm.name for vm in fact.vms)) or "nothing"
            return f"{fact.datastore} on {fact.at}: {fact.well} of {fact.asked} are well; on it {on_it}"
        case DatastoreFailed():
            return f"{fact.datastore} on {', '.join(fact.hosts)} of {fact.asked}"
        case DatastoreRecovered():
            return f"{fact.datastore}{f' on {fact.host}' if fact.host else ''}: {fact.rule}"
        case StateReconciled():
            down, unheard = ", ".join(fact.down) or "none", ", ".join(fact.unheard) or "none"
            return f"{fact.adopted} adopted; down: {down}; unheard: {unheard}"
        case HostQuarantined():
            return f"{fact.host}: failed {', '.join(f'{ago:.1f}' for ago in fact.failed_ago_s)} s ago"
        case StormReleaseOrdered():
            return ", ".join(fact.suspects)
        case VmWaitedInVain():
            return f"{subject}: for {', '.join(fact.awaited)}"
        case VmMoved():
            return f"{fact.name} from {fact.origin.host} to {fact.at.host}"
        case VmPreempted():
            return f"{subject}: for {', '.join(fact.makes_room_for)}"
        case VmMoveFailed() | VmPreemptFailed():
            return f"{subject}: {fact.reason}"
        case (
            VmRestartFailed()
            | VmStartUncertain()
            | VmOrderUncertain()
            | VmStillHeld()
            | VmEvictFailed()
            | HostDraining()
        ):
            return f"{subject}: {fact.reason}"
        case VmFailed() | VmUnhealthy() if fact.why is not Failure.CRASHED:
            return f"{subject}: {fact.why.value}"
        case HostDrainPlanned():
            return f"{subject}: {', '.join(f'{one.name} to {one.to.host}' for one in fact.moves)}"
        case HostDrainStuck():
            return f"{subject}: {', '.join(f'{one.name} stays ({one.reason})' for one in fact.stays)}"
        case HostGrey():
            return f"{subject}: {', '.join(fact.guests)}"
        case _:
            return subject or _short(fact.about, names)


def _of_fencing(
    fact: HostFenceFailed | HostFenced | FencePathBroken | FencePathMended | HostFenceTested, subject: str
) -> str:
    match fact:
        case HostFenceFailed():
            return f"{subject}: {'; '.join(fact.missing)}"
        case HostFenced():
            return f"{subject}: {fact.proof.method.value}"
        case FencePathBroken():
            return f"{fact.host}: {fact.device} (level {fact.level}): {fact.reason}"
        case FencePathMended():
            return f"{fact.host}: {fact.device} (level {fact.level})"
        case HostFenceTested():
            levels = ", ".join(
                f"level {one.level} {'proven' if one.proven else 'not'}" for one in fact.levels
            )
            return (
                f"{fact.host}: {fact.refused or levels or 'nothing'}{'' if fact.passed else '; not passed'}"
            )


def _short(incident: str, names: dict[str, str]) -> str:
    """Incidents of one VM carry the beginning of its id; in a log its name says more."""
    for uuid, name in names.items():
        incident = incident.replace(uuid, name).replace(f"vm-{uuid[:8]}", f"vm-{name}")
    return incident


def line(at_s: float, what: str, said: str) -> str:
    return f"{at_s:9.3f}  {what:<20} {said}".rstrip()


def envelopes(stored: Iterable[Stored]) -> list[Envelope]:
    """The facts as an onlooker of the stream reads them."""
    return [wrap(one.fact, pool="sim", service=one.service, wall=wall_at(one.at)) for one in stored]


def outcome(
    world: World, scenario: Scenario, zero: float, performed: list[TimelineEntry], broken: list[Violation]
) -> Outcome:
    """The document, from the stream and from what the hosts really did."""
    end, start = world.loop.time(), wall_at(zero)
    told = envelopes(world.broker.facts)
    stories = [s for s in failovers(told) if s.confirmed and s.confirmed >= start]
    waiting = {vm.name for s in stories for vm in s.vms.values() if vm.state == "waiting"}
    vms, since = {}, {}
    for vm in scenario.vms:
        vms[vm.name], up = _vm(world, vm.name, zero, end, vm.name in waiting)
        if up is not None:
            since[vm.name] = round(up - zero, 3)
    names = {vm_uuid(vm.name): vm.name for vm in scenario.vms}
    entries = [one for one in timeline(told, start, names) if one.at_s >= 0]
    hosts: dict[str, HostOutcome] = host_outcomes(entries, [host.name for host in world.members])
    end_s = round(end - zero, 3)
    violations = [*broken, *unmet(scenario.expect, vms, hosts, entries, since, end_s)]
    occurred = {
        entry.subject: entry.at_s
        for entry in reversed(performed)
        if entry.event in ("step.power_off", "step.crash", "step.hang", "step.reboot")
    }
    found: list[FailoverOutcome] = []
    for story, one in zip(
        [s for s in stories if s.fenced is not None or not s.incident.startswith("vm-")],
        failover_outcomes(stories, start),
        strict=True,
    ):
        ups = [up for vm in story.vms if (up := _up(world, vm)) is not None]
        update = {
            "occurred_s": occurred.get(one.host),
            "guests_up_s": round(max(ups) - zero, 3) if ups and len(ups) == len(story.vms) else None,
        }
        found.append(one.model_copy(update=update))
    return Outcome(
        scenario=scenario.name,
        world="simulator",
        passed=not violations,
        double_running_s=round(double_running(world), 3),
        violations=tuple(violations),
        vms=vms,
        hosts=hosts,
        failovers=tuple(found),
        timeline=tuple(sorted([*performed, *entries], key=lambda entry: entry.at_s)),
    )


def _vm(world: World, name: str, zero: float, end: float, waiting: bool) -> tuple[VmOutcome, float | None]:
    """What became of a VM, and since when its guest is up now."""
    spells = world.machines.spells.get(vm_uuid(name), [])
    down_s, up_since = 0.0, None
    for index, spell in enumerate(spells):
        if spell.guest_up is not None:  # a guest whose disks hang is no better than one that is down
            ended = end if spell.ended is None else spell.ended
            down_s += world.machines.store_of(spell.vm).stalled_s(spell.at.host, spell.guest_up, ended)
        if spell.ended is None:
            up_since = spell.guest_up
        elif spell.ended >= zero:
            after = [one.guest_up for one in spells[index + 1 :] if one.guest_up is not None]
            down_s += (after[0] if after else end) - spell.ended
    current = next((spell for spell in reversed(spells) if spell.ended is None), None)
    state = "running" if current else ("waiting" if waiting else "stopped")
    host = current.at.host if current else None
    found = VmOutcome(
        state=state,
        host=host,
        starts=len(spells),
        downtime_s=round(down_s, 3),
        began_s=tuple(round(spell.began - zero, 3) for spell in spells if spell.began >= zero),
    )
    return found, up_since


def _up(world: World, vm: str) -> float | None:
    """Since when the guest of the VM's present run is up."""
    return next((one.guest_up for one in world.machines.spells.get(vm, []) if one.ended is None), None)


def double_running(world: World) -> float:
    """Seconds in which a VM had two processes, summed over VMs."""
    total, end = 0.0, world.loop.time()
    for spells in world.machines.spells.values():
        for index, one in enumerate(spells):
            for other in spells[index + 1 :]:
                began = max(one.began, other.began)
                ended = min(one.ended if one.ended is not None else end, other.ended or end)
                total += max(0.0, ended - began)
    return total
