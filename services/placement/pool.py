"""The pool as a snapshot: what is heard, leased and planned, put together for the planner."""

from __future__ import annotations

from collections.abc import Iterator

from libs.core.evolve import replace
from libs.crashes import crashes
from libs.events.hosts import (
    HostAgentDown,
    HostFailed,
    HostFenced,
    HostIsolated,
    HostJoined,
    HostQuarantined,
    HostReadmitted,
    HostRecovered,
    HostRefuted,
    HostSuspected,
)
from libs.events.vms import VmFailed, VmMoved, VmRestarted
from libs.events.words import HostMaintenanceEntered, HostMaintenanceExited, HostRemoved
from libs.leases import arrives, migrated, over
from libs.model import Incarnation, Inventory, LeaseState, Protection, RunLease, VmNeeds, VmReport
from libs.planning.snapshot import PoolPolicy, Snapshot, SnapshotHost, SnapshotHostState, SnapshotVm
from services.placement import reach
from services.placement.state import Doubt, HostWords, Item, Phase, PlacementRecord, PlacementState

NOWHERE = "-orphans-"
FINAL = ("host.failed", "host.isolated", "host.fenced")
PROOFS_KEPT = 4
FRESH_S = 2.5  # five heartbeats missed


def doubted(
    state: PlacementState, fact: HostSuspected | HostAgentDown | HostFailed | HostIsolated
) -> PlacementState:
    """A host is not to be used, unless what this says was over before we heard of it."""
    host = fact.at.host
    verdict = isinstance(fact, HostFailed | HostIsolated)
    number = fact.epoch if isinstance(fact, HostFailed | HostIsolated) else fact.number
    if number <= state.cleared.get(host, (0, 0))[verdict]:
        return state
    before = state.down.get(host)
    if before is not None and before.of == fact.at and before.kind in FINAL and not verdict:
        return state  # a suspicion that is told late does not soften a verdict
    return replace(state, down=state.down.insert(host, Doubt(fact.at, fact.kind, number)))


def cleared(state: PlacementState, fact: HostRefuted | HostRecovered | HostJoined) -> PlacementState:
    """What was held against a host is over, and stays so when it is told once more."""
    host = fact.at.host
    suspicion, verdict = state.cleared.get(host, (0, 0))
    if isinstance(fact, HostJoined) and fact.epoch >= verdict:
        state = _joined(_outlived(state, fact.at), fact)
    if isinstance(fact, HostRefuted):
        suspicion = max(suspicion, fact.number)
    else:
        verdict = max(verdict, fact.epoch)
    if isinstance(fact, HostRecovered):  # heard before its verdict, it finds the suspicion that led there
        suspicion = max(suspicion, fact.suspicion)
    state = replace(state, cleared=state.cleared.insert(host, (suspicion, verdict)))
    doubt = state.down.get(host)
    if doubt is None:
        return state
    if doubt.number <= (verdict if doubt.kind in FINAL else suspicion):
        state = replace(state, down=state.down.discard(host))
    return state


def maintained(state: PlacementState, fact: HostMaintenanceEntered | HostMaintenanceExited) -> PlacementState:
    """A host takes no new VMs, or takes them again; an older word than the latest is void."""
    words = state.words_on(fact.host)
    if fact.number <= words.number:
        return state
    entered = isinstance(fact, HostMaintenanceEntered)
    by = fact.by if entered else ""
    update: dict[str, object] = {"number": fact.number, "maintenance": entered, "maintained_by": by}
    update["emptied"] = isinstance(fact, HostMaintenanceEntered) and fact.drain
    if not entered:
        update["drain"] = ""
    return said(state, fact.host, words.model_copy(update=update))


def quarantined(state: PlacementState, fact: HostQuarantined | HostReadmitted) -> PlacementState:
    """A host that failed too often takes no new VMs, or takes them again; they may be heard in any order."""
    words = state.words_on(fact.host)
    if fact.number <= words.readmitted:
        return state
    if isinstance(fact, HostReadmitted):
        left = words.quarantined if words.quarantined > fact.number else 0
        return said(
            state, fact.host, words.model_copy(update={"readmitted": fact.number, "quarantined": left})
        )
    return said(
        state, fact.host, words.model_copy(update={"quarantined": max(fact.number, words.quarantined)})
    )


def removed(state: PlacementState, fact: HostRemoved) -> PlacementState:
    """Forget the host; what this life of its agent still says is not listened to."""
    host = fact.at.host
    words, beat = state.words_on(host), state.beats.get(host)
    if words.removes(fact.agent) or (beat is not None and beat.of != fact.at):
        return state  # told again, or late: another boot speaks
    state = replace(
        released(state, fact.at),
        heard=state.heard.discard(host),
        beats=state.beats.discard(host),
        down=state.down.discard(host),
        ready=state.ready.discard(host),
        offers=state.offers.discard(host),
    )
    return said(state, host, words.without(fact.agent))


def said(state: PlacementState, host: str, words: HostWords) -> PlacementState:
    return replace(state, records=state.records.insert(f"host.{host}", PlacementRecord(words=words)))


def held(state: PlacementState, vm: str, at: Incarnation) -> PlacementState:
    """A VM that may not run there could not be stopped. Not where that boot is over, or where it has said since
    that it is settled."""
    heard = state.heard.get(at.host)
    settled = heard is not None and heard.at == at and vm not in heard.condemned
    if settled or state.proof_of(at) is not None:
        return state
    return replace(state, records=state.records.insert(f"held.{vm}", PlacementRecord(held=at)))


def proven(state: PlacementState, fact: HostFenced) -> PlacementState:
    """Keep the proof. Those of earlier boots stay beside it: a lease that one of them held may have followed no VM to
    the next boot, which ran it by autostart and is over as well."""
    key = f"fenced.{fact.at.host}"
    known = state.records.get(key)
    before = known if isinstance(known, PlacementRecord) else PlacementRecord()
    former = before.former if before.proof is None else (*before.former, before.proof)
    if before.proof is not None and before.epoch > fact.epoch:  # told late
        record = before.model_copy(update={"former": (*before.former, fact.proof)[-PROOFS_KEPT:]})
    else:
        record = PlacementRecord(proof=fact.proof, epoch=fact.epoch, former=former[-PROOFS_KEPT:])
    return replace(state, records=state.records.insert(key, record))


def released(state: PlacementState, at: Incarnation, still: tuple[str, ...] = ()) -> PlacementState:
    """What was held for fear that it runs on this boot is held no longer, but for those `still` there."""
    records = state.records
    for key, record in state.records.items():
        if record.held == at and key.removeprefix("held.") not in still:
            records = records.discard(key)
    return state if records is state.records else replace(state, records=records)


def _outlived(state: PlacementState, at: Incarnation) -> PlacementState:
    """What was held for another boot of this host, which is over now that this one has joined: one that nobody
    heard join is never proven over by itself."""
    for record in list(state.records.values()):
        if record.held is not None and record.held.host == at.host and record.held != at:
            state = released(state, record.held)
    return state


def _joined(state: PlacementState, fact: HostJoined) -> PlacementState:
    """The boot that the detector watches. Of every other boot of this host nobody would ever say that it is over."""
    key, record = f"joined.{fact.at.host}", PlacementRecord(joined=fact.at, epoch=fact.epoch)
    known = state.records.get(key)
    if isinstance(known, PlacementRecord) and (known.epoch > fact.epoch or known == record):
        return state
    return replace(state, records=state.records.insert(key, record))


def _speaking(state: PlacementState, now: float) -> list[str]:
    """Hosts that beat, whose inventory of this boot we have, and that nobody doubts."""
    return sorted(
        host
        for host, inventory in state.heard.items()
        if ((doubt := state.down.get(host)) is None or doubt.of != inventory.at)
        and not state.words_on(host).removes(inventory.agent)
        and (beat := state.beats.get(host)) is not None
        and now - beat.at < FRESH_S
        and beat.of == inventory.at
        and not state.is_over(inventory.at)  # where it speaks on for long, a proof was false
    )


def watched(state: PlacementState, at: Incarnation, now: float) -> bool:
    """Its agent is down, and its VMs are watched over libvirt: it takes no starts, and can say what runs there."""
    heard, doubt, beat = state.heard.get(at.host), state.down.get(at.host), state.beats.get(at.host)
    if heard is None or heard.at != at or not heard.look or state.is_over(at):
        return False
    if doubt is not None and doubt.of == at:
        return doubt.kind == "host.agent_down"
    return beat is None or now - beat.at >= FRESH_S  # whoever began to listen late knows no doubt


def outdated(state: PlacementState, inventory: Inventory) -> bool:
    """Its host has said that it has changed since."""
    beat = state.beats.get(inventory.at.host)
    return beat is not None and beat.of == inventory.at and beat.outdates(inventory)


def usable(state: PlacementState, now: float) -> list[str]:
    """Of the hosts that speak those whose boot has joined: what is started there ends with a word, if it ends. And of
    which we know what runs there by now, not what ran there before they were cut off."""
    return [
        host
        for host in _speaking(state, now)
        if state.has_joined(state.heard[host].at) and not outdated(state, state.heard[host])
    ]


def taking(state: PlacementState, now: float) -> list[str]:
    """Usable hosts that take new VMs."""
    return [host for host in usable(state, now) if not state.words_on(host).closed]


def snapshot(
    state: PlacementState,
    policy: PoolPolicy,
    labels: dict[str, dict[str, str]],
    wanted: list[Item],
    now: float,
) -> Snapshot:
    """Usable hosts with all that occupies them, and the VMs to place on a host that does not exist.

    A VM occupies the host that its lease names, also before an inventory shows it there: capacity that was
    promised once is not promised again. What runs without a lease occupies the host that shows it."""
    where, wants = _occupied(state, {item.vm for item in wanted}, now), _needs(state, wanted)
    needed = reach.Needed([*(needs for _, _, needs in where.values()), *wants.values()])
    hosts = [
        SnapshotHost(
            name=name,
            memory_mib=inventory.memory_mib,
            memory_reserved_mib=inventory.memory_reserved_mib,
            cpus=inventory.cpus,
            labels=labels.get(name, {}),
            state=SnapshotHostState.MAINTENANCE if state.words_on(name).closed else SnapshotHostState.ONLINE,
            **needed.of_host(reach.offers_of(state, inventory.at)),
        )
        for name in usable(state, now)
        for inventory in [state.heard[name]]
    ]
    vms = [
        SnapshotVm(
            name=f"{vm}@{host}",
            host=host,
            memory_mib=memory,
            vcpus=vcpus,
            protection=Protection.NONE,
            **reach.of_vm(needs),
        )
        for (vm, host), (memory, vcpus, needs) in sorted(where.items(), key=lambda one: one[0])
    ]
    vms += [
        SnapshotVm(
            name=item.vm,
            host=NOWHERE,
            memory_mib=item.memory_mib,
            vcpus=item.vcpus,
            protection=item.policy.protection,
            priority=item.policy.priority,
            order=item.policy.order,
            **reach.of_vm(wants[item.vm]),
        )
        for item in wanted
    ]
    nowhere = SnapshotHost(name=NOWHERE, state=SnapshotHostState.FAILED, memory_mib=1, cpus=1)
    return Snapshot(schema="rekindle.snapshot.v1", policy=policy, hosts=(*hosts, nowhere), vms=tuple(vms))


def _needs(state: PlacementState, wanted: list[Item]) -> dict[str, VmNeeds | None]:
    return {item.vm: reach.needs_of(state, item) for item in wanted}


def _occupied(
    state: PlacementState, orphans: set[str], now: float
) -> dict[tuple[str, str], tuple[int, int, VmNeeds | None]]:
    """By VM and usable host what it takes there: MiB, vCPUs and what else it needs."""
    names = set(usable(state, now))
    where: dict[tuple[str, str], tuple[int, int, VmNeeds | None]] = {}
    for name in names:
        for report in state.heard[name].vms:
            if report.state.active:
                where[report.uuid, name] = (report.memory_mib, report.vcpus, report.needs)
    stopped = {item.vm for incident in state.incidents() for item in incident.items if item.preempted}
    for order in state.rooms():
        if order.to is not None and order.to.host in names:
            size = (order.report.memory_mib, order.report.vcpus, order.report.needs)
            where.setdefault((order.vm, order.to.host), size)
    orders = {item.vm: item.needs for incident in state.incidents() for item in incident.items}
    present = {state.heard[name].at for name in names}  # what an earlier boot held occupies nothing now
    for lease in state.leases.values():
        if lease.vm in stopped or lease.vm in orphans or (lease.vm, lease.holder.host) in where:
            continue
        if lease.wanted and lease.holder in present and not _left(state, lease):
            needs = reach.shown(state, lease.vm, lease.holder.host) or orders.get(lease.vm)
            where[lease.vm, lease.holder.host] = (lease.memory_mib, lease.vcpus, needs)
    for incident in state.incidents():
        for item in incident.items:
            if item.phase is Phase.PLANNED and item.to is not None and item.to in present:
                where.setdefault((item.vm, item.to.host), (item.memory_mib, item.vcpus, item.needs))
    return where


def leased_by(state: PlacementState, fact: VmRestarted | VmMoved) -> PlacementState:
    """The lease as this fact tells of it, which comes by another way: were it heard later, what the VM takes there would
    be promised to another meanwhile. Whatever is read of the lease itself replaces it."""
    known = state.leases.get(fact.vm)
    if known is None or known.token >= fact.token:
        return state
    update: dict[str, object] = {
        "holder": fact.at,
        "token": fact.token,
        "state": LeaseState.RUNNING,
        "run": 0,
    }
    update |= {"start_key": fact.start_key if isinstance(fact, VmRestarted) else "", "moving_to": None}
    return replace(state, leases=state.leases.insert(fact.vm, known.model_copy(update=update)))


def crash_shown(state: PlacementState, fact: VmFailed) -> PlacementState:
    """The crash as part of what the host showed last: the fact may overtake the inventory."""
    heard = state.heard.get(fact.at.host)
    report = None if heard is None else heard.vm(fact.vm)
    if heard is None or report is None or heard.at != fact.at or 0 < fact.run < report.run:
        return state
    if fact.run == report.run and fact.report.token < report.token:
        return state  # it was started again since, and nobody has seen that run
    vms = tuple(fact.report if one.uuid == fact.vm else one for one in heard.vms)
    return replace(state, heard=state.heard.insert(fact.at.host, heard.model_copy(update={"vms": vms})))


def _left(state: PlacementState, lease: RunLease) -> bool:
    """It ended where its lease is, by that host's own word, and nobody restarts it there: without protection,
    or given up. A crash that is yet to be dealt with keeps its room."""
    heard = state.heard.get(lease.holder.host)
    report = heard.vm(lease.vm) if heard is not None and heard.at == lease.holder else None
    if heard is None or report is None or not over(lease, report):
        return False
    crashed = next((fact for fact in crashes(heard, None) if fact.vm == lease.vm), None)
    record = state.records.get(f"crashes.{lease.vm}")
    told = record.told if isinstance(record, PlacementRecord) else ()
    dealt_with = crashed is None or crashed.incident in told
    return dealt_with and lease.vm not in state.open_vms()


def runs_at(state: PlacementState, item: Item, now: float) -> Incarnation | None:
    """The host whose own latest inventory shows the VM active, in another run than the one that ended. One that it only takes
    in by a migration does not run there."""
    for heard, report in _shown_active(state, item, now):
        if state.held_at(item.vm) != heard.at and not arrives(report):
            return heard.at
    return None


def _shown_active(state: PlacementState, item: Item, now: float) -> Iterator[tuple[Inventory, VmReport]]:
    """By name of those hosts that speak for themselves."""
    looked_at = [name for name, heard in state.heard.items() if watched(state, heard.at, now)]
    for name in sorted({*_speaking(state, now), *looked_at}):
        heard = state.heard[name]
        report = heard.vm(item.vm)
        ended = heard.at == item.origin and report is not None and report.run == item.run
        if report is not None and report.state.active and not ended:
            yield heard, report


def came_from(state: PlacementState, lease: RunLease, at: Incarnation) -> VmReport | None:
    """What the lease's living holder says of a VM that a person migrated away, which ran on `at` when that failed: the
    lease had not followed yet. The holder is asked itself before it is started anywhere."""
    heard = state.heard.get(lease.holder.host)
    if heard is None or heard.at != lease.holder or lease.holder == at or not lease.wanted:
        return None
    report = heard.vm(lease.vm)
    gone = report is not None and migrated(report) and over(lease, report)
    return report if gone and not state.is_over(lease.holder) else None


def brought_to(state: PlacementState, item: Item, now: float) -> Incarnation | None:
    """Where a person's migration may have brought it: as its lease says until that host says that it has not (ADR 11), or
    as a host shows it that takes it in. Where its source let go of it before it ended, it runs on there in a moment."""
    lease = state.leases.get(item.vm)
    arriving = () if lease is None else lease.arriving
    noted = next((one.at for one in arriving if not state.is_over(one.at)), None)
    return noted or next(
        (heard.at for heard, report in _shown_active(state, item, now) if arrives(report)), None
    )


def taken_away(state: PlacementState, lease: RunLease) -> bool:
    """The last word of its holder was that a person had migrated it away. Where, no lease says yet: whoever has it shows it,
    and where nobody does it may run outside the pool. Of a move of ours the lease says where: that host is asked."""
    if lease.moving_to is not None:
        return False
    heard = state.heard.get(lease.holder.host)
    report = heard.vm(lease.vm) if heard is not None and heard.at == lease.holder else None
    return report is not None and migrated(report) and over(lease, report)


def size_of(state: PlacementState, lease: RunLease) -> RunLease:
    """What a leased VM needs, with the policy that its host showed last."""
    heard = state.heard.get(lease.holder.host)
    report = heard.vm(lease.vm) if heard else None
    if report is None:
        return lease
    changes = {"memory_mib": report.memory_mib, "vcpus": report.vcpus, "policy": report.policy}
    return lease.model_copy(update=changes)
