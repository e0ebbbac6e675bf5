"""Deliberate faults in the production code, applied in the simulator only: is each of them caught?

A mutation replaces one function of one service or library while a block runs. The one that survives shows
that the simulated world is too kind, or that the rule it breaks is not checked.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

from libs import crashes as crashes_told
from libs import leases
from libs.core.decider import Publish, Step
from libs.core.ledger import Ledger
from libs.core.ports import UnavailableError
from libs.core.shell import Shell
from libs.jetstream.lease import JetStreamLease
from libs.leases import Grant, Ruling
from libs.model import FenceProof, LeaseState, PowerState, ProofMethod, StopReason
from libs.planning import plan as planning
from libs.power.devices import FenceDevices
from services.cli import faults, guestfaults, storefaults
from services.detector import guests as detector_guests
from services.detector import hearing, storms
from services.detector.decide import Detector
from services.detector.verdict import RULES, Rule
from services.executor import act as executor_act
from services.executor.decide import Executor
from services.fencer.act import Hands as FencerHands
from services.fencer.decide import Fencer
from services.fencer.state import Fenced
from services.heartbeat.act import Hands as AgentHands
from services.heartbeat.orders import GatePassed
from services.placement import decide as placement_decide
from services.placement import incidents
from services.placement import pool as placement_pool
from services.placement.decide import Placement
from services.placement.state import PlacementState

Patch = tuple[Any, str, Any]


@dataclass(frozen=True, slots=True)
class Mutation:
    name: str
    says: str
    patches: Callable[[], list[Patch]]
    crashes: bool = False
    """It shows by an error that the production code raises. Of any other an error is its own: it broke nothing."""

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """The mutated code runs inside this block."""
        with contextlib.ExitStack() as stack:
            for owner, attribute, instead in self.patches():
                stack.enter_context(mock.patch.object(owner, attribute, instead))
            yield


def _fence_skipped() -> list[Patch]:
    async def perform(self: FencerHands, request: Any) -> Fenced:
        proof = FenceProof(of=request.at, method=ProofMethod.POWER_OFF, detail="nobody looked")
        return Fenced(key=request.key, incident=request.incident, proof=proof)

    return [(FencerHands, "perform", perform)]


def _lease_not_checked() -> list[Patch]:
    def rule(lease: Any, start: Any) -> Ruling:
        return Ruling(Grant.TAKE, "nobody asked")

    return [(executor_act, "rule", rule)]


def _debts_forgotten() -> list[Patch]:
    return [(Ledger, "owed", lambda self: [])]


def _storm_guard_off() -> list[Patch]:
    return [(storms, "stormy", lambda state, hosts, judged=None: False)]


def _gate_off() -> list[Patch]:
    async def gate(self: AgentHands, request: Any) -> GatePassed:
        return GatePassed(key=request.key)

    return [(AgentHands, "_gate", gate)]


def _deaf_believed() -> list[Patch]:
    return [(hearing, "deaf", lambda state, until, period_s: state)]


def _ack_first() -> list[Patch]:
    take = Shell._take

    async def mutated(self: Shell[Any], item: Any) -> None:
        if item.delivery is not None and self._leading():
            with contextlib.suppress(UnavailableError):
                await item.delivery.ack()
            item = replace(item, delivery=None)
        await take(self, item)

    return [(Shell, "_take", mutated)]


def _one_reading() -> list[Patch]:
    async def level(self: FenceDevices, devices: Any, off_seen: Callable[[], None]) -> list[str]:
        found = [await device.status(device.timeout_s) for device in devices]
        for device, (state, _) in zip(devices, found, strict=True):
            if state is not PowerState.OFF:
                await device.off()
        off_seen()
        found = [await device.status(device.timeout_s) for device in devices]
        return [detail for state, detail in found if state is not PowerState.OFF]

    return [(FenceDevices, "_level", level)]


def _command_believed() -> list[Patch]:
    async def level(self: FenceDevices, devices: Any, off_seen: Callable[[], None]) -> list[str]:
        done = [await device.off() for device in devices]
        off_seen()
        return [detail for ok, detail in done if not ok]

    return [(FenceDevices, "_level", level)]


def _unknown_is_off() -> list[Patch]:
    level = FenceDevices._level

    async def mutated(self: FenceDevices, devices: Any, off_seen: Callable[[], None]) -> list[str]:
        wrong = await level(self, devices, off_seen)
        return [one for one in wrong if "no answer" not in one and "refused" not in one]

    return [(FenceDevices, "_level", mutated)]


def _unknown_is_stopped() -> list[Patch]:
    seen = executor_act.Hands._seen

    async def mutated(self: executor_act.Hands, target: Any, start: Any) -> Any:
        try:
            return await seen(self, target, start)
        except UnavailableError:
            return None

    return [(executor_act.Hands, "_seen", mutated)]


def _uncertain_is_failed() -> list[Patch]:
    def uncertain(self: Executor, state: Any, record: Any, reason: str, now: float) -> Any:
        from services.executor.orders import Attempted, Result

        outcome = Attempted(key="uncertain", start=record.start, result=Result.NOT_STARTED, reason=reason)
        return self._attempted(state, outcome, now)

    def rule(lease: Any, start: Any) -> Ruling:
        found = leases.rule(lease, start)
        starting = lease is not None and lease.state is LeaseState.STARTING
        return Ruling(Grant.TAKE) if found.grant is Grant.REFUSE and starting else found

    return [(Executor, "_uncertain", uncertain), (executor_act, "rule", rule)]


def _proof_of_any_boot() -> list[Patch]:
    """A proof is taken for the host, whichever boot it names."""

    def rule(lease: Any, start: Any) -> Ruling:
        found = leases.rule(lease, start)
        named = lease is not None and lease.holder.host in [proof.of.host for proof in start.proofs]
        return Ruling(Grant.TAKE) if found.grant is Grant.REFUSE and named else found

    def proof_of(self: PlacementState, at: Any) -> Any:
        record = self.records.get(f"fenced.{at.host}")
        return None if record is None else record.proof

    true_proof = PlacementState.proof_of

    def is_over(self: PlacementState, at: Any) -> bool:
        return true_proof(self, at) is not None  # which hosts take VMs is not what is wrong here

    return [
        (executor_act, "rule", rule),
        (PlacementState, "proof_of", proof_of),
        (PlacementState, "is_over", is_over),
    ]


def _token_stays() -> list[Patch]:
    taken = leases.taken

    def same(lease: Any, start: Any) -> Any:
        mine = taken(lease, start)
        return mine if lease is None else mine.model_copy(update={"token": lease.token})

    return [(executor_act, "taken", same)]


def _on_purpose_ignored() -> list[Patch]:
    """What was shut down on purpose is held to have crashed."""
    adopted = leases.adopted

    def never(lease: Any, at: Any, report: Any, holder_report: Any, holder_known: bool) -> Any:
        change = adopted(lease, at, report, holder_report, holder_known)
        return None if change is not None and change.state is LeaseState.STOPPED else change

    def crashes(inventory: Any, before: Any) -> Any:
        told = inventory.model_copy(
            update={
                "vms": tuple(
                    vm.model_copy(update={"stop_reason": StopReason.CRASHED})
                    if vm.stop_reason is StopReason.ON_PURPOSE
                    else vm
                    for vm in inventory.vms
                )
            }
        )
        return _CRASHES(told, before)

    return [
        (leases, "adopted", never),
        (detector_guests, "crashes", crashes),
        (placement_decide, "crashes", crashes),
    ]


def _promised_room_forgotten() -> list[Patch]:
    """What is leased or planned but not yet seen occupies nothing."""
    shot = placement_pool.snapshot

    def snapshot(state: Any, policy: Any, labels: Any, wanted: Any, now: float) -> Any:
        bare = replace(
            state,
            leases=type(state.leases)(),
            records=type(state.records)(
                {key: record for key, record in state.records.items() if record.incident is None}
            ),
            heard=type(state.heard)(
                {host: inventory.model_copy(update={"vms": ()}) for host, inventory in state.heard.items()}
            ),
        )
        return shot(bare, policy, labels, wanted, now)

    return [(placement_pool, "snapshot", snapshot)]


def _priority_inverted() -> list[Patch]:
    def rank(vm: Any) -> tuple[int, int, int]:
        return (1, -vm.priority.rank, vm.order)

    return [(planning, "_rank", rank)]


def _room_unnoticed() -> list[Patch]:
    return [(Placement, "_due", lambda self, state, now: state)]


def _waiting_dropped() -> list[Patch]:
    """A start that failed is not planned again."""
    return [(Placement, "_restart_failed", lambda self, state, fact, now: Step(state))]


def _fence_once() -> list[Patch]:
    """A fence attempt that failed is the last one."""

    def outcome(self: Fencer, state: Any, outcome: Any, now: float) -> Any:
        step = _FENCE_OUTCOME(self, state, outcome, now)
        return Step(replace(step.state, retry_at=type(step.state.retry_at)()), step.effects)

    return [(Fencer, "_outcome", outcome)]


def _silence_is_proof() -> list[Patch]:
    """Silence alone, for a moment, is a verdict, whatever the other channels say."""
    from services.detector import verdict

    hasty = Rule(
        "silence-only", RULES[-1].verdict, "silence", lambda e, s: e.silent_s > s.suspect_after_s, "hasty"
    )
    return [(verdict, "RULES", (hasty,))]


def _no_publish_retry() -> list[Patch]:
    """A fact that could not be stored at once is given up."""
    from libs.sim import bus

    async def publish(self: Shell[Any], effect: Publish, before: Any) -> None:
        with contextlib.suppress(UnavailableError):
            await self._w.bus.publish(effect.fact)
        self._done(effect.record, effect.key)

    return [(bus, "PUBLISH_BUDGET_S", 0.0), (Shell, "_publish", publish)]


def _blind_writes() -> list[Patch]:
    """Two replicas that both hold themselves to lead, and write whatever is there."""

    async def compare(self: Ledger, key: str, payload: bytes | None, expected: int) -> int:
        if payload is None:
            await self._store.delete(key, None)
            return 0
        return await self._store.put(key, payload, None)

    return [
        (Ledger, "_compare", compare),
        (JetStreamLease, "held", lambda self: True),
        (JetStreamLease, "token", property(lambda self: 1)),
    ]


def _new_boot_is_old() -> list[Patch]:
    """A host that comes back is held to be the one that it was: no proof, no failover."""

    def rebooted(self: Detector, state: Any, record: Any, at: Any) -> Any:
        healthy = record.model_copy(update={"at": at})
        return Step(replace(state, records=state.records.insert(record.host, healthy)))

    return [(Detector, "_rebooted", rebooted)]


def _uncertain_forgotten() -> list[Patch]:
    """A start whose outcome is unknown is never asked after."""

    def retry(self: Executor, state: Any, now: float) -> Any:
        return Step(replace(state, retry_at=type(state.retry_at)()))

    return [(Executor, "_retry", retry)]


def _reclaim_off() -> list[Patch]:
    """What was planned to a host that was fenced since is not planned again."""
    return [(incidents, "reclaimed", lambda incident, proof, open_: incident)]


_CRASHES = crashes_told.crashes
_FENCE_OUTCOME = Fencer._outcome

MUTATIONS: tuple[Mutation, ...] = (
    Mutation("fence skipped", "a proof is written and no device is asked", _fence_skipped),
    Mutation(
        "fence command believed", "the device's success is the proof; nothing is read", _command_believed
    ),
    Mutation("one reading of off", "the second, spaced reading is left out", _one_reading),
    Mutation("unknown power is off", "a device that does not answer reads off", _unknown_is_off),
    Mutation("fenced only once", "a failed attempt is not repeated", _fence_once),
    Mutation("lease not checked", "every start takes the lease", _lease_not_checked),
    Mutation("token stays", "a new holder keeps the former one's token", _token_stays),
    Mutation("proof of any boot", "a proof counts for the host, not for the incarnation", _proof_of_any_boot),
    Mutation(
        "unknown is stopped",
        "libvirt's silence after a start means that it does not run",
        _unknown_is_stopped,
    ),
    Mutation(
        "uncertain is failed",
        "a start under way on a silent target is planned elsewhere",
        _uncertain_is_failed,
    ),
    Mutation("uncertain forgotten", "a start of unknown outcome is never asked after", _uncertain_forgotten),
    Mutation("debts forgotten", "owed effects are not performed again after a crash", _debts_forgotten),
    Mutation("acknowledge before persist", "a fact is acknowledged before its step is written", _ack_first),
    Mutation("no retry of publications", "a fact that is not stored at once is given up", _no_publish_retry),
    Mutation("blind writes", "no compare-and-set, and every replica leads", _blind_writes),
    Mutation("storm guard off", "any number of suspects is believed", _storm_guard_off),
    Mutation(
        "release forgets its names",
        "an operator's release of a storm is one for all hosts",
        faults.release_forgets_its_names,
    ),
    Mutation("canary ignored", "who does not hear itself goes on suspecting", faults.canary_ignored),
    Mutation("quarantine ignored", "a quarantined host gets new VMs", faults.quarantine_ignored),
    Mutation("deaf observer believed", "evidence is kept over a pause or a lost connection", _deaf_believed),
    Mutation("silence is proof", "silence alone is a verdict", _silence_is_proof),
    Mutation("new boot is the old", "a reboot goes unnoticed", _new_boot_is_old),
    Mutation("boot gate off", "a returning host keeps what it started by itself", _gate_off),
    Mutation("purpose ignored", "what was shut down on purpose is restarted", _on_purpose_ignored),
    Mutation(
        "promised room forgotten", "what is leased or planned occupies nothing", _promised_room_forgotten
    ),
    Mutation("priority inverted", "the least important are placed first", _priority_inverted),
    Mutation("new room unnoticed", "what waits is not planned when room comes", _room_unnoticed),
    Mutation("failed start dropped", "a start that failed is not planned again", _waiting_dropped),
    Mutation("reclaim off", "what was planned to a host fenced since stays planned", _reclaim_off),
    Mutation("lie believed", "a fence device's word outweighs the host's own", faults.lie_believed),
    Mutation(
        "libvirt not asked", "a host whose agent alone is down may be proven off", faults.libvirt_not_asked
    ),
    Mutation("refutation untold", "a fenced host that speaks raises no alert", faults.refutation_untold),
    Mutation("no quiet minute", "a new plane suspects whom it never heard", faults.no_quiet_minute),
    Mutation(
        "bus lost, VMs stopped",
        "an agent that cannot reach the bus stops its VMs",
        faults.bus_lost_vms_stopped,
    ),
    Mutation(
        "gate waits for ever", "a stop that fails for good keeps its host out", faults.gate_waits_for_ever
    ),
    Mutation(
        "failed stop untold", "a VM that cannot be stopped is told to nobody", faults.failed_stop_untold
    ),
    Mutation(
        "condemned elsewhere", "what could not be stopped is started elsewhere", faults.condemned_elsewhere
    ),
    Mutation("gate tried once", "a stop that fails keeps its host out of the pool", faults.gate_tried_once),
    Mutation(
        "unknown at the gate",
        "what libvirt cannot tell of is held to be stopped",
        faults.gate_takes_unknown_for_stopped,
    ),
    Mutation("every beat kept", "the detector's memory grows with each heartbeat", faults.every_beat_kept),
    Mutation("evict skipped", "a VM whose QEMU lives is taken for stopped", guestfaults.evict_skipped),
    Mutation(
        "evict adopted as purpose", "our own stop is taken for a person's will", guestfaults.evict_adopted
    ),
    Mutation("agentless judged", "a guest that cannot be asked is silent", guestfaults.agentless_judged),
    Mutation("busy is silent", "one ping without an answer is silence", guestfaults.busy_is_silent),
    Mutation("grey unseen", "guests of a grey host are restarted there", guestfaults.grey_unseen),
    Mutation(
        "failed eviction dropped",
        "what could not be stopped once stays as it is",
        guestfaults.failed_eviction_dropped,
    ),
    Mutation("peers not asked", "a host's own word on its datastore is enough", storefaults.peers_not_asked),
    Mutation(
        "loss unnoticed", "a datastore that hangs on one host is told to nobody", storefaults.loss_unnoticed
    ),
    Mutation("reach ignored", "who reaches a datastore is nothing to a plan", storefaults.reach_ignored),
    Mutation(
        "one VM in two incidents",
        "a crash after a restart is both's",
        faults.one_vm_in_two_incidents,
        crashes=True,
    ),
)
