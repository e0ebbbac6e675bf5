"""Placement: from a fence proof, or a VM's crash, to a plan; from a failed start to the next; for ever."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from rpds import HashTrieMap

from libs.config.settings import Guests, Restart
from libs.core.decider import Effect, Input, Publish, Records, Step, TableRead
from libs.core.evolve import replace
from libs.crashes import crashes
from libs.events.datastores import DatastoreFailed, DatastoreLost, DatastoreRecovered
from libs.events.failovers import FailoverCompleted
from libs.events.guests import HostGrey
from libs.events.hosts import (
    HostAgentDown,
    HostFailed,
    HostFenced,
    HostIsolated,
    HostJoined,
    HostObeyed,
    HostQuarantined,
    HostReadmitted,
    HostRecovered,
    HostRefuted,
    HostSuspected,
)
from libs.events.signals import Heartbeat, InventorySeen, LeaseWritten
from libs.events.vms import Stage, VmFailed, VmRestarted, VmRestartFailed, VmStopFailed
from libs.events.words import HostMaintenanceEntered, HostMaintenanceExited, HostRemoved
from libs.model import Incarnation, Inventory, Protection, RunLease
from libs.planning.plan import Plan, plan
from libs.planning.snapshot import PoolPolicy
from services.placement import failing, incidents, ordered, pool, standing, stores
from services.placement.keeping import keep, settle
from services.placement.state import Beat, Incident, Item, Phase, PlacementRecord, PlacementState

DEBOUNCE_S = 0.2
State = PlacementState


@dataclass(frozen=True, slots=True)
class Placement:
    """Decider of placement."""

    settings: Restart
    policy: PoolPolicy = field(default_factory=PoolPolicy)
    labels: dict[str, dict[str, str]] = field(default_factory=dict)
    guests: Guests = field(default_factory=Guests)
    datastores: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Those that each host has by the pool file."""
    lost_s: float = 15.0
    """For how long a datastore must take no writes to be lost."""

    @property
    def record_type(self) -> type[PlacementRecord]:
        return PlacementRecord

    def initial(self, now: float) -> State:
        return State(
            records=HashTrieMap(),
            heard=HashTrieMap(),
            beats=HashTrieMap(),
            down=HashTrieMap(),
            cleared=HashTrieMap(),
            leases=HashTrieMap(),
            retry_at=HashTrieMap(),
        )

    def resume(self, state: State, records: Records, now: float) -> Step[State]:
        # retry times are forgotten with the process: what waits is tried once more at once
        return Step(replace(state, records=records, retry_at=HashTrieMap(), plan_at=now + DEBOUNCE_S))

    def records(self, state: State) -> Records:
        return state.records

    def wake_at(self, state: State) -> float | None:
        return state.plan_at

    def step(self, state: State, event: Input | None, now: float) -> Step[State]:
        match event:
            case None:
                return self._plan(replace(state, plan_at=None), now)
            case Heartbeat(at=at, agent=agent):
                return Step(self._beat(state, at, agent, now))
            case InventorySeen(inventory=inventory):
                return Step(self._inventory(state, inventory, now))
            case TableRead(table="inventory", rows=rows):
                for row in rows:
                    if isinstance(row, Inventory):
                        state = self._stored(state, row, now)
                return Step(state)
            case LeaseWritten(lease=lease):
                return Step(self._leased(state, lease, now))
            case TableRead(table="leases", rows=rows):
                return self._rescan(state, [row for row in rows if isinstance(row, RunLease)], now)
            case HostSuspected() | HostAgentDown() | HostFailed() | HostIsolated():
                return Step(pool.doubted(state, event))
            case HostRefuted() | HostRecovered() | HostJoined():
                return Step(self._due(pool.cleared(state, event), now))
            case HostMaintenanceEntered() | HostMaintenanceExited():
                return Step(self._due(pool.maintained(state, event), now))
            case HostQuarantined() | HostReadmitted():
                return Step(self._due(pool.quarantined(state, event), now))
            case HostRemoved():
                return Step(pool.removed(state, event))
            case DatastoreLost():
                return self._lost(state, event, now)
            case DatastoreFailed() | DatastoreRecovered():
                return Step(self._due(stores.told(state, event), now))
            case HostFenced():
                return self._fenced(state, event, now)
            case HostObeyed():
                return self._obeyed(state, event, now)
            case VmStopFailed(vm=vm, at=at):
                return Step(pool.held(state, vm, at))
            case VmFailed():
                return self._crashed(state, event, now)
            case HostGrey():
                return self._grey(state, event, now)
            case VmRestarted():
                return self._restarted(state, event)
            case VmRestartFailed():
                return self._restart_failed(state, event, now)
            case _:
                return Step(state)

    # -- what is heard

    def _beat(self, state: State, at: Incarnation, agent: str, now: float) -> State:
        if state.words_on(at.host).removes(agent):
            return state
        before = state.beats.get(at.host)
        state = replace(state, beats=state.beats.insert(at.host, Beat(at, now)))
        came = before is None or before.of != at or now - before.at > pool.FRESH_S
        return self._due(state, now) if came else state

    def _inventory(self, state: State, inventory: Inventory, now: float) -> State:
        host = inventory.at.host
        if state.words_on(host).removes(inventory.agent):
            return state
        before = state.heard.get(host)
        if inventory.outdated(before):
            return state
        state = replace(state, heard=state.heard.insert(host, inventory))
        for vm in inventory.condemned:
            state = pool.held(state, vm, inventory.at)
        state = pool.released(state, inventory.at, inventory.condemned)
        said = (inventory.at, inventory.vms, inventory.condemned, inventory.look > 0)
        news = before is None or (before.at, before.vms, before.condemned, before.look > 0) != said
        return self._due(state, now) if news else state

    def _stored(self, state: State, row: Inventory, now: float) -> State:
        """A stored inventory helps where none was heard, or only that of a boot that beats no more."""
        known, beat = state.heard.get(row.at.host), state.beats.get(row.at.host)
        outdated = known is not None and beat is not None and known.at != beat.of and row.at == beat.of
        return self._inventory(state, row, now) if known is None or outdated else state

    def _leased(self, state: State, lease: RunLease, now: float) -> State:
        """A lease that is given up, or has gone elsewhere, leaves room."""
        known = state.leases.get(lease.vm)
        if known is not None and known.seq >= lease.seq:
            return state
        state = replace(state, leases=state.leases.insert(lease.vm, lease))
        left = known is not None and (known.holder, known.wanted) != (lease.holder, lease.wanted)
        return self._due(state, now) if left else state

    def _due(self, state: State, now: float) -> State:
        """Something changed that may make room: plan what waits, soon and once."""
        waits = any(item.phase is Phase.WAITING for inc in state.incidents() for item in inc.items)
        soon = now + DEBOUNCE_S
        if waits and (state.plan_at is None or state.plan_at > soon):
            return replace(state, plan_at=soon)
        return state

    def _rescan(self, state: State, leases: list[RunLease], now: float) -> Step[State]:
        """The net under the facts: a lease whose holder is fenced and that no incident deals with."""
        for lease in leases:
            state = self._leased(state, lease, now)
        open_ = state.open_vms()
        effects: list[Effect] = []
        for lease in sorted(state.leases.values(), key=lambda one: one.vm):
            proof = state.proof_of(lease.holder)
            if proof is None or not lease.wanted or lease.vm in open_:
                continue
            item = incidents.item_of(pool.size_of(state, lease), lease.holder)
            incident = Incident(id=f"left-{lease.vm}-{lease.token}", cause="a lease held by a fenced host")
            if self._to_be_started(state, item, now):
                step = self._open(state, incident, [item.model_copy(update={"proofs": (proof,)})], now)
                state = step.state
                effects += step.effects
        state, stranded = stores.left(state, self.lost_s, now)
        obeyed = [one for one in ordered.left(state) if self._to_be_started(state, one[1], now)]
        for incident, item in (*stranded, *obeyed):
            step = self._open(state, incident, [item], now)
            state = step.state
            effects += step.effects
        step = self._missed_crashes(state, now)
        well = failing.reopened(step.state)
        state = self._due(well.state, now) if well.effects else well.state
        return Step(state, (*effects, *step.effects, *well.effects))

    # -- what happened

    def _fenced(self, state: State, fact: HostFenced, now: float) -> Step[State]:
        at = fact.at
        if state.proof_of(at) is not None:
            return Step(state)  # told again
        state = pool.released(state, at)
        late = state.epoch_of(at.host) > fact.epoch
        if not late:
            record = PlacementRecord(proof=fact.proof, epoch=fact.epoch)
            state = replace(state, records=state.records.insert(f"fenced.{at.host}", record))
        for incident in state.incidents():
            state = keep(state, incidents.reclaimed(incident, fact.proof, state.open_vms()))
        items = [
            item.model_copy(update={"proofs": (fact.proof,)})
            for item in self._orphans(state, fact)
            if self._to_be_started(state, item, now)
        ]
        # its incident is there and it was not marked as fenced: we died between both. What it holds is planned
        begun = f"incident.{fact.incident}" in state.records
        if begun or (late and not items):
            return self._plan(state, now)
        return self._open(state, Incident(id=fact.incident, cause=fact.key), items, now)

    def _obeyed(self, state: State, fact: HostObeyed, now: float) -> Step[State]:
        """An isolated host has stopped these VMs: they start elsewhere, and it runs on with all others."""
        key = f"obeyed.{fact.at.host}"
        record = state.records.get(key)
        told = record.told if isinstance(record, PlacementRecord) else ()
        if fact.incident in told:
            return Step(state)
        kept = PlacementRecord(told=(*told, fact.incident)[-failing.TOLD_KEPT :])
        state = replace(state, records=state.records.insert(key, kept))
        for incident in state.incidents():
            state = keep(state, incidents.released(incident, fact.proof))
        if f"incident.{fact.incident}" in state.records:
            return self._plan(state, now)  # we died between both records
        # what was heard of the host before it was cut off shows these runs; once it is back, others would be news
        runs = {report.uuid: max(1, report.run) for report in fact.vms}
        items = [
            item.model_copy(update={"proofs": (fact.proof,), "avoid": (fact.at.host,), "run": runs[item.vm]})
            for item in self._orphans(state, fact)
            if fact.proof.covers(item.vm) and item.vm in runs
        ]
        items = [item for item in items if self._to_be_started(state, item, now)]
        return self._open(state, Incident(id=fact.incident, cause=fact.key), items, now)

    def _lost(self, state: State, fact: DatastoreLost, now: float) -> Step[State]:
        """A host cannot write there any more, and others can: its VMs on it move."""
        state = stores.told(state, fact)
        opened = stores.opened(state, fact)
        if opened is None:
            return self._plan(state, now)  # of other incidents, what was to restart there in place
        return self._open(state, *opened, now)

    def _to_be_started(self, state: State, item: Item, now: float) -> bool:
        """False for what is not protected, and for what runs already by a person's hand."""
        return item.policy.protection is not Protection.NONE and pool.runs_at(state, item, now) is None

    def _orphans(self, state: State, fact: HostFenced | HostObeyed) -> Iterable[Item]:
        """By lease, and by what the host itself last reported where no lease says otherwise."""
        open_ = state.open_vms()
        orphans: dict[str, Item] = {}
        for lease in state.leases.values():
            if lease.holder == fact.at and lease.wanted and lease.vm not in open_:
                orphans[lease.vm] = incidents.item_of(pool.size_of(state, lease), fact.at)
        for report in fact.vms:
            known = state.leases.get(report.uuid)
            otherwise = known is not None and (known.holder != fact.at or not known.wanted)
            if report.uuid not in open_ and report.uuid not in orphans and not otherwise:
                orphans[report.uuid] = incidents.item_of(report, fact.at)
        return [orphans[vm] for vm in sorted(orphans)]

    def _crashed(self, state: State, fact: VmFailed, now: float) -> Step[State]:
        dealt = failing.dealt_with(state, fact, self.settings, now)
        if dealt.incident is not None:
            return self._open(dealt.state, dealt.incident, list(dealt.items), now)
        return self._plan(dealt.state, now) if dealt.begun else Step(dealt.state, dealt.effects)

    def _grey(self, state: State, fact: HostGrey, now: float) -> Step[State]:
        drained = failing.greyed(state, fact, self.guests)
        if drained.state is state:
            return drained
        step = self._plan(drained.state, now)
        return Step(step.state, (*drained.effects, *step.effects))

    def _missed_crashes(self, state: State, now: float) -> Step[State]:
        """The net under `vm.failed`: told while the VM's last restart was not yet known to have succeeded, it
        was of no use then, and nobody tells it again."""
        effects: list[Effect] = []
        for _, inventory in sorted(state.heard.items()):
            for fact in crashes(inventory, None):
                if fact.vm in state.leases:
                    step = self._crashed(state, fact, now)
                    state = step.state
                    effects += step.effects
        return Step(state, tuple(effects))

    def _restarted(self, state: State, fact: VmRestarted) -> Step[State]:
        incident, item = state.find(fact.incident, fact.vm)
        if incident is None or item is None or item.phase is not Phase.PLANNED:
            return Step(state)
        if incidents.start_key(incident, item) != fact.start_key:
            return Step(state)  # about an attempt that was given up since
        item = item.model_copy(update={"phase": Phase.RUNNING, "to": fact.at, "reason": ""})
        return settle(state, incidents.replaced(incident, item), [])

    def _restart_failed(self, state: State, fact: VmRestartFailed, now: float) -> Step[State]:
        incident, item = state.find(fact.incident, fact.vm)
        if incident is None or item is None or item.phase is not Phase.PLANNED:
            return Step(state)
        if incidents.start_key(incident, item) != fact.start_key:
            return Step(state)  # about an attempt that was given up since
        if fact.stage is not Stage.START:
            return failing.not_evicted(state, incident, item, fact, self._backoff_s(item), now)
        avoid = (*item.avoid, fact.at.host)[-32:]
        wait_s = DEBOUNCE_S / 4  # another host may do at once; only going round again has to wait
        if not set(pool.taking(state, now)) - set(avoid):
            avoid = ()
            wait_s = self._backoff_s(item)
        update = {"phase": Phase.WAITING, "in_place": False, "avoid": avoid, "reason": fact.reason[:300]}
        state = keep(state, incidents.replaced(incident, item.model_copy(update=update)))
        due = now + wait_s
        plan_at = due if state.plan_at is None else min(due, state.plan_at)
        return Step(replace(state, retry_at=state.retry_at.insert(item.vm, due), plan_at=plan_at))

    # -- planning

    def _open(self, state: State, incident: Incident, items: list[Item], now: float) -> Step[State]:
        if not items:
            done = FailoverCompleted(
                incident=incident.id, revision=0, cause=incident.cause, rule="nothing to restart"
            )
            step = self._plan(state, now)  # of other incidents, what was taken back
            return Step(step.state, (Publish(f"incident.{incident.id}", done), *step.effects))
        state = keep(state, incident.model_copy(update={"items": tuple(items)}))
        return self._plan(state, now)

    def _plan(self, state: State, now: float) -> Step[State]:
        """One plan over all that waits, of all incidents; one revision for each that changes by it."""
        ended = standing.looked_at(state, self.guests, now)
        state = ended.state
        due = [
            item
            for incident in state.incidents()
            for item in incident.items
            if item.phase is Phase.WAITING and state.retry_at.get(item.vm, now) <= now
            if state.held_at(item.vm) is None and not standing.on_grey(state, item, self.guests)
            if not standing.unread(state, item)
            if not (item.in_place and stores.failed(state, item))
        ]
        hosts = set(pool.usable(state, now))
        # a VM that is to restart in place waits while its host is in doubt: either that passes or a proof comes
        present = {state.heard[host].at for host in hosts}
        in_place = {item.vm for item in due if item.in_place and item.origin in present}
        wanted = [item for item in due if not item.in_place]
        found = Plan((), ())
        if wanted:
            shot = pool.snapshot(state, self.policy, self.labels, wanted, now)
            shot = stores.with_reach(state, shot, self.datastores, wanted)
            found = plan(shot, frozenset({pool.NOWHERE}), {item.vm: frozenset(item.avoid) for item in wanted})
        targets = {host: state.heard[host].at for host in hosts}
        effects: list[Effect] = list(ended.effects)
        for incident in state.incidents():
            changed, facts = incidents.revised(incident, found, targets, in_place)
            if facts:
                step = settle(state, changed, facts)
                state = step.state
                effects += step.effects
        state = self._forgive(state, {one.vm for one in found.unplaced}, now)
        placed = in_place | {start.vm for start in found.starts}
        later = {vm: at for vm, at in state.retry_at.items() if vm not in placed}
        ahead = [at for at in later.values() if at > now]
        state = replace(state, retry_at=HashTrieMap(later), plan_at=min(ahead, default=None))
        return Step(state, tuple(effects))

    def _backoff_s(self, item: Item) -> float:
        doubled = self.settings.retry_first_s * 2.0 ** max(0, min(item.attempt - 1, 16))
        return min(doubled, self.settings.retry_max_s)

    def _forgive(self, state: State, unplaced: set[str], now: float) -> State:
        """Where the hosts that are left have no room, one on which a start failed may do after a while."""
        for incident in state.incidents():
            for item in incident.items:
                if item.vm in unplaced and item.avoid and item.phase is Phase.WAITING:
                    incident = incidents.replaced(incident, item.model_copy(update={"avoid": ()}))
                    due = now + self._backoff_s(item)
                    state = replace(keep(state, incident), retry_at=state.retry_at.insert(item.vm, due))
        return state
