"""Placement: from a fence proof, or a VM's crash, to a plan; from a failed start to the next; for ever."""

from __future__ import annotations

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
from libs.events.vms import (
    Stage,
    VmFailed,
    VmMoved,
    VmMoveFailed,
    VmPreempted,
    VmPreemptFailed,
    VmRestarted,
    VmRestartFailed,
    VmStopFailed,
)
from libs.events.words import HostMaintenanceEntered, HostMaintenanceExited, HostRemoved
from libs.model import Inventory, RunLease
from libs.planning.plan import Plan, plan_from
from libs.planning.snapshot import PoolPolicy
from services.placement import (
    draining,
    failing,
    incidents,
    leaving,
    making,
    ordered,
    orphans,
    pool,
    proving,
    reach,
    ready,
    rules,
    standing,
    stores,
)
from services.placement.keeping import keep, settle
from services.placement.state import Beat, Incident, Item, Phase, PlacementRecord, PlacementState

DEBOUNCE_S = 0.2
UNWATCHED = PoolPolicy(failures_to_tolerate=0, migrations=False)
State = PlacementState


@dataclass(frozen=True, slots=True)
class Placement:
    """Decider of placement."""

    settings: Restart
    policy: PoolPolicy = UNWATCHED
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
            records=Records(),
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
            case Heartbeat():
                return Step(self._beat(state, event, now))
            case InventorySeen(inventory=inventory):
                shown = self._inventory(state, inventory, now)
                emptied = shown is not state and state.drain_of(inventory.at.host) is not None
                return self._drained(Step(shown), now) if emptied else Step(shown)
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
                return self._drained(Step(self._due(pool.maintained(state, event), now)), now)
            case HostQuarantined() | HostReadmitted():
                return Step(self._due(pool.quarantined(state, event), now))
            case HostRemoved(at=at):
                return Step(pool.removed(making.over(state, at), event))
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
            case VmMoved() | VmMoveFailed() | VmPreempted() | VmPreemptFailed():
                return self._room_made(state, event, now)
            case VmRestarted():
                return self._restarted(pool.leased_by(state, event), event)
            case VmRestartFailed():
                return self._restart_failed(state, event, now)
            case _:
                return Step(state)

    # -- what is heard

    def _beat(self, state: State, heard: Heartbeat, now: float) -> State:
        at = heard.at
        if state.words_on(at.host).removes(heard.agent):
            return state
        before = state.beats.get(at.host)
        beat = Beat(at, now, heard.agent, heard.inventory_rev)
        state = replace(state, beats=state.beats.insert(at.host, beat))
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
        records = state.records
        state = pool.released(state, inventory.at, inventory.condemned)
        # also by what was heard before: whoever leads anew reads from the store what was held when it followed
        freed = state.records is not records
        said = (inventory.at, inventory.vms, inventory.condemned, inventory.look > 0)
        news = before is None or (before.at, before.vms, before.condemned, before.look > 0) != said
        news = news or (before is not None and pool.outdated(state, before))
        return self._due(state, now) if news or freed else state

    def _stored(self, state: State, row: Inventory, now: float) -> State:
        """A stored inventory helps where none was heard, or only that of a boot that beats no more."""
        if not state.words_on(row.at.host).removes(row.agent):
            before, state = state.offers, reach.told(state, row)
            state = state if state.offers is before else self._due(state, now)
        known, beat = state.heard.get(row.at.host), state.beats.get(row.at.host)
        outdated = known is not None and beat is not None and known.at != beat.of and row.at == beat.of
        return self._inventory(state, row, now) if known is None or outdated else state

    def _leased(self, state: State, lease: RunLease, now: float) -> State:
        """A lease that is given up, or has gone elsewhere, leaves room."""
        known = state.leases.get(lease.vm)
        if known is not None and known.seq >= lease.seq:
            return state
        state = replace(state, leases=state.leases.insert(lease.vm, lease))
        was = None if known is None else (known.holder, known.wanted, known.arriving)
        left = known is not None and was != (lease.holder, lease.wanted, lease.arriving)
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
            if orphans.to_be_started(state, item, now):
                step = self._open(state, incident, [item.model_copy(update={"proofs": (proof,)})], now)
                state = step.state
                effects += step.effects
        state, stranded = stores.left(state, self.lost_s, now)
        obeyed = [one for one in ordered.left(state) if orphans.to_be_started(state, one[1], now)]
        for incident, item in (*stranded, *obeyed, *making.left(state)):
            step = self._open(state, incident, [item], now)
            state = step.state
            effects += step.effects
        step = self._missed_crashes(state, now)
        well = failing.reopened(step.state)
        state = self._due(well.state, now) if well.effects else well.state
        effects += [*step.effects, *well.effects]
        step = self._drained(Step(state, tuple(effects)), now)
        looked = proving.looked(step.state, self.policy, self.labels, self.datastores, now)
        return Step(looked.state, (*step.effects, *looked.effects))

    def _drained(self, step: Step[State], now: float) -> Step[State]:
        """And what moves next of hosts that are drained, after whatever happened."""
        means = leaving.Means(self.policy, self.labels, self.datastores, self.settings)
        more = draining.looked(step.state, means, now)
        return Step(more.state, (*step.effects, *more.effects))

    # -- what happened

    def _fenced(self, state: State, fact: HostFenced, now: float) -> Step[State]:
        at = fact.at
        if state.proof_of(at) is not None:
            return Step(state)  # told again
        state = pool.released(making.over(state, at), at)
        late = state.epoch_of(at.host) > fact.epoch
        state = pool.proven(state, fact)
        for incident in state.incidents():
            state = keep(state, incidents.reclaimed(incident, fact.proof, state.open_vms()))
        items = [
            item.model_copy(update={"proofs": (fact.proof,)})
            for item in orphans.orphans_of(state, fact)
            if orphans.to_be_started(state, item, now)
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
        meant = ordered.meant(state, fact)
        proof = fact.proof.model_copy(update={"vms": meant})
        for incident in state.incidents() if meant else ():
            state = keep(state, incidents.released(incident, proof))
        if f"incident.{fact.incident}" in state.records:
            return self._plan(state, now)  # we died between both records
        # what was heard of the host before it was cut off shows these runs; once it is back, others would be news
        runs = {report.uuid: max(1, report.run) for report in fact.vms}
        items = [
            item.model_copy(update={"proofs": (proof,), "avoid": (fact.at.host,), "run": runs[item.vm]})
            for item in orphans.orphans_of(state, fact)
            if item.vm in meant and item.vm in runs
        ]
        items = [item for item in items if orphans.to_be_started(state, item, now)]
        return self._open(state, Incident(id=fact.incident, cause=fact.key), items, now)

    def _lost(self, state: State, fact: DatastoreLost, now: float) -> Step[State]:
        """A host cannot write there any more, and others can: its VMs on it move."""
        state = stores.told(state, fact)
        opened = stores.opened(state, fact)
        if opened is None:
            return self._plan(state, now)  # of other incidents, what was to restart there in place
        return self._open(state, *opened, now)

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
        return self._drained(Step(step.state, (*drained.effects, *step.effects)), now)

    def _missed_crashes(self, state: State, now: float) -> Step[State]:
        """The net under `vm.failed`: told while the VM's last restart was not yet known to have succeeded, it
        was of no use then, and nobody tells it again. Or nobody has told it, since the detector was deaf: then its
        failover would have an end and no beginning. Told twice it is one fact, by its key."""
        effects: list[Effect] = []
        for _, inventory in sorted(state.heard.items()):
            for fact in crashes(inventory, None):
                if fact.vm not in state.leases:
                    continue
                step = self._crashed(state, fact, now)
                if step.state is not state:
                    opened = f"incident.{fact.incident}"
                    record = opened if opened in step.state.records else f"crashes.{fact.vm}"
                    effects.append(Publish(record, fact))
                state = step.state
                effects += step.effects
        return Step(state, tuple(effects))

    def _room_made(
        self, state: State, fact: VmMoved | VmMoveFailed | VmPreempted | VmPreemptFailed, now: float
    ) -> Step[State]:
        state, order = making.ended(pool.leased_by(state, fact) if isinstance(fact, VmMoved) else state, fact)
        if order is None:
            return Step(state)
        if isinstance(fact, VmPreempted):
            if (open_before := making.gave_its_room(state, order.vm)) is not None:
                return self._drained(self._plan(open_before, now), now)
            incident, item = making.stopped(order, fact.key)
            return self._open(state, incident, [item], now)
        if isinstance(fact, VmMoveFailed):
            state = draining.failed(state, order, fact, now)
        return self._drained(self._plan(state, now), now)

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
            return failing.not_startable(state, incident, item, fact, self._backoff_s(item), now)
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
        noted = tuple(reach.noted(state, item) for item in items)
        return self._plan(keep(state, incident.model_copy(update={"items": noted})), now)

    def _plan(self, state: State, now: float) -> Step[State]:
        """One plan over all that waits, of all incidents; one revision for each that changes by it."""
        ended = standing.looked_at(making.settled(state), self.guests, now)
        state = ended.state
        due = [
            item
            for incident in state.incidents()
            for item in incident.items
            if item.phase is Phase.WAITING and state.retry_at.get(item.vm, now) <= now
            if state.held_at(item.vm) is None and not standing.on_grey(state, item, self.guests)
            if not item.taken and pool.brought_to(state, item, now) is None
            if not standing.unread(state, item) and not standing.copied(state, item, now)
            if not (item.in_place and stores.failed(state, item)) and state.room_of(item.vm) is None
        ]
        hosts = set(pool.usable(state, now))
        # a VM that is to restart in place waits while its host is in doubt: either that passes or a proof comes
        present = {state.heard[host].at for host in hosts}
        in_place = {item.vm for item in due if item.in_place and item.origin in present}
        wanted = [item for item in due if not item.in_place]
        found, from_ready = Plan((), ()), False
        made = making.Made(found)
        if wanted:
            shot = pool.snapshot(state, self.policy, self.labels, wanted, now)
            shot, _ = rules.with_rules(state, stores.with_reach(state, shot, self.datastores, wanted), wanted)
            avoid = {item.vm: frozenset(item.avoid) for item in wanted}
            begun = ready.start_from(state, wanted)
            found, from_ready = plan_from(begun, shot, frozenset({pool.NOWHERE}), avoid)
            made = making.with_room(state, shot, wanted, found, avoid)
        found = made.plan
        targets = {host: state.heard[host].at for host in hosts}
        after = rules.awaited(state, in_place | {start.vm for start in found.starts})
        effects: list[Effect] = list(ended.effects)
        for incident in state.incidents():
            orders = made.orders.get(incident.id, ())
            changed, facts = incidents.revised(incident, found, targets, in_place, after, from_ready, orders)
            if facts:
                state, changed = making.noted(state, changed, orders)
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
