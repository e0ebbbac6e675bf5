"""Who may take a run lease, and what people's own doings make of it."""

from __future__ import annotations

from itertools import pairwise

import pytest

from libs.events.failovers import PlannedStart
from libs.leases import Grant, adopted, may_run, moving, put_down_by_us, rule, taken, turned
from libs.model import (
    FenceProof,
    Incarnation,
    LeaseState,
    ProofMethod,
    Protection,
    RunLease,
    StopReason,
    VmPolicy,
    VmReport,
    VmState,
)
from tests.unit.made import boot, lease, proof, vm

pytestmark = pytest.mark.fast
L = LeaseState
H1, H2, H3 = boot("h1"), boot("h2"), boot("h3")
OFF = VmState.STOPPED


def start(
    to: Incarnation = H2,
    *,
    key: str = "i/a/1",
    origin: Incarnation = H1,
    proofs: tuple[FenceProof, ...] = (),
    run: int = 0,
) -> PlannedStart:
    return PlannedStart(
        key=key, vm="a", name="A", origin=origin, to=to, wave=0, priority_rank=2, memory_mib=100, vcpus=1,
        proofs=proofs, run=run,
    )  # fmt: skip


FENCED = (proof(H1),)
PLAIN, FREE = VmPolicy(), VmPolicy(protection=Protection.NONE)


@pytest.mark.parametrize(
    ("found", "order", "grant"),
    [
        (None, start(), Grant.TAKE),
        # a living holder keeps it
        (lease("a", H1), start(), Grant.REFUSE),
        (lease("a", H1, L.STARTING), start(), Grant.REFUSE),
        (lease("a", H3), start(proofs=FENCED), Grant.REFUSE),
        # a proof is of one boot
        (lease("a", H1), start(proofs=FENCED), Grant.TAKE),
        (lease("a", H1, L.STARTING), start(proofs=FENCED), Grant.TAKE),
        (lease("a", boot("h1", 2)), start(proofs=FENCED), Grant.REFUSE),
        (lease("a", H1), start(proofs=(proof(boot("h1", 2)),)), Grant.REFUSE),
        # stopped on purpose stays stopped, whoever is fenced
        (lease("a", H1, L.STOPPED), start(proofs=FENCED), Grant.REFUSE),
        (lease("a", H1, L.STOPPED), start(run=3), Grant.REFUSE),
        # the holder was asked to start it and does not run it
        (lease("a", H3, L.FAILED), start(), Grant.TAKE),
        # it was stopped for others: nobody but its host knows whether a person has started it since
        (put_down_by_us(lease("a", H1), 3), start(run=3), Grant.ASK_HOLDER),
        (put_down_by_us(lease("a", H1), 3), start(run=3, proofs=FENCED), Grant.TAKE),
        # a restart after a crash: the living holder itself must say that it is stopped
        (lease("a", H1), start(run=3), Grant.ASK_HOLDER),
        (lease("a", H3), start(run=3), Grant.REFUSE),
        (lease("a", boot("h1", 2)), start(run=3), Grant.REFUSE),
        # the same order again
        (lease("a", H2, L.STARTING, start_key="i/a/1"), start(), Grant.OURS),
        (lease("a", H2, L.RUNNING, start_key="i/a/1"), start(), Grant.DONE),
        (lease("a", H2, L.STOPPED, start_key="i/a/1"), start(), Grant.DONE),
        (lease("a", H2, L.FAILED, start_key="i/a/1"), start(), Grant.REFUSE),
        (lease("a", H2, L.STARTING, start_key="i/a/1"), start(H3, key="i/a/2"), Grant.REFUSE),
        (lease("a", H2, L.FAILED, start_key="i/a/1"), start(H3, key="i/a/2"), Grant.TAKE),
        (
            lease("a", H2, L.STARTING, start_key="i/a/1"),
            start(H3, key="i/a/2", proofs=(proof(H1), proof(H2))),
            Grant.TAKE,
        ),
    ],
)
def test_who_may_have_the_lease(found: RunLease | None, order: PlannedStart, grant: Grant) -> None:
    ruling = rule(found, order)
    assert ruling.grant is grant
    assert ruling.reason or grant in (Grant.OURS, Grant.DONE)


X1, X2, X3 = (Incarnation(host="h1", boot=f"{number}-agentless") for number in (1, 2, 3))
BEGUN = Incarnation(host="h1", boot="4-agentless-begun")


def named(of: Incarnation, later: Incarnation) -> FenceProof:
    """Another name was heard."""
    return FenceProof(of=of, method=ProofMethod.NEW_BOOT, detail="", successor=later.boot)


@pytest.mark.parametrize(
    ("to", "proofs", "grant"),
    [
        (H2, (named(X1, X2),), Grant.REFUSE),
        (X2, (named(X1, X2),), Grant.TAKE),  # one host runs it once at most
        (H2, (named(X1, BEGUN),), Grant.TAKE),
        (H2, (named(X1, boot("h1")),), Grant.REFUSE),  # it was given an agent, perhaps without a boot
        (H2, (named(X1, X2), named(X2, X3)), Grant.REFUSE),
        (H2, (named(X1, X2), named(X2, BEGUN)), Grant.TAKE),
        (H2, (named(X1, X2), proof(X2)), Grant.TAKE),
        (H2, (named(X1, X2), named(X2, X1)), Grant.REFUSE),
        (H2, (proof(X1),), Grant.TAKE),
        (H2, (named(X1, X2), proof(X1)), Grant.TAKE),
    ],
)
def test_a_new_name_alone_does_not_end_a_start_that_is_under_way(
    to: Incarnation, proofs: tuple[FenceProof, ...], grant: Grant
) -> None:
    order = start(to, origin=H3, proofs=proofs)
    assert rule(lease("a", X1, L.STARTING), order).grant is grant
    assert rule(lease("a", X1), order).grant is Grant.TAKE, "of what runs there the host itself is asked"


def test_a_proof_by_a_boot_id_ends_whatever_was_under_way() -> None:
    proofs = (named(H1, boot("h1", 2)),)
    assert rule(lease("a", H1, L.STARTING), start(proofs=proofs)).grant is Grant.TAKE


@pytest.mark.parametrize("state", [L.RUNNING, L.STARTING, L.FAILED])
def test_what_a_host_runs_is_its_own_by_whatever_name_it_had(state: LeaseState) -> None:
    found = lease("a", X1, state)
    assert adopted(found, X2, vm("a"), None, False) is None
    mine = adopted(found, X2, vm("a"), None, False, (X3.boot, X1.boot))
    assert mine is not None
    assert (mine.holder, mine.state, mine.token) == (X2, L.RUNNING, found.token + 1)
    elsewhere = found.model_copy(update={"holder": Incarnation(host="h2", boot=X1.boot)})
    assert adopted(elsewhere, X2, vm("a"), None, False, (X1.boot,)) is None, "of another host"


def test_a_token_grows_with_every_holder_and_the_sequence_with_every_writing() -> None:
    writings = [taken(None, start())]
    writings.append(turned(writings[-1], L.RUNNING))
    writings.append(taken(writings[-1], start(H3, key="i/a/2")))
    writings.append(turned(writings[-1], L.FAILED))
    writings.append(taken(writings[-1], start(H2, key="i/a/3")))
    assert [w.token for w in writings] == [1, 1, 2, 2, 3]
    assert [w.seq for w in writings] == [1, 2, 3, 4, 5]
    assert all(later.seq == before.seq + 1 for before, later in pairwise(writings))
    assert writings[-1].holder == H2
    assert (writings[-1].state, writings[-1].start_key) == (L.STARTING, "i/a/3")


BIG = vm("a", memory_mib=500, policy=VmPolicy(priority="highest"))
NOT_THERE: tuple[VmReport | None, bool] = (None, True)
OURS = lease("a", H1, token=4, start_key="i/a/1")
UNHEARD: tuple[VmReport | None, bool] = (None, False)


@pytest.mark.parametrize(
    ("found", "at", "report", "holder", "expected"),
    [
        # found running, and nobody holds it
        (None, H1, vm("a"), UNHEARD, (H1, L.RUNNING, 1)),
        (None, H1, vm("a", VmState.PAUSED), UNHEARD, (H1, L.RUNNING, 1)),
        (None, H1, vm("a", OFF), UNHEARD, None),
        # the holder runs it: nothing to say
        (lease("a", H1), H1, vm("a"), (vm("a"), True), None),
        (lease("a", H1, L.STARTING), H1, vm("a"), (vm("a"), True), None),
        # a person started it again after it had been stopped, or it came up after all
        (lease("a", H1, L.STOPPED), H1, vm("a"), (vm("a"), True), (H1, L.RUNNING, 2)),
        (lease("a", H1, L.FAILED), H1, vm("a"), (vm("a"), True), (H1, L.RUNNING, 1)),
        # of the run that we have ended there it was read before; another is a person's
        (put_down_by_us(lease("a", H1), 3), H1, vm("a", run=3), (vm("a", run=3), True), None),
        (put_down_by_us(lease("a", H1), 3), H1, vm("a", run=4), (vm("a", run=4), True), (H1, L.RUNNING, 2)),
        # a person changed its size or policy
        (lease("a", H1), H1, BIG, (BIG, True), (H1, L.RUNNING, 1)),
        (lease("a", H1, L.STARTING), H1, BIG, (BIG, True), None),
        # migrated: the old host itself no longer runs it
        (lease("a", H1), H2, vm("a"), NOT_THERE, (H2, L.RUNNING, 2)),
        (lease("a", H1), H2, vm("a"), (vm("a", OFF, stop_reason=StopReason.MIGRATED), True), (H2, L.RUNNING, 2)),
        # it is still coming from a holder that is over: it ends with that one unless it has begun by now
        (lease("a", H1), H2, vm("a", VmState.PAUSED, migrated=True), NOT_THERE, None),
        (lease("a", H1), H2, vm("a", migrated=True), NOT_THERE, (H2, L.RUNNING, 2)),
        # or it ended before it was handed over, or was refused there; or was handed over
        (lease("a", H1), H2, vm("a", VmState.PAUSED, migrated=True), (vm("a", OFF, stop_reason=StopReason.CRASHED), True), None),
        (lease("a", H1), H2, vm("a", VmState.PAUSED, migrated=True), (vm("a", OFF, stop_reason=StopReason.MIGRATED), True), (H2, L.RUNNING, 2)),
        # from outside the pool
        (lease("a", H1, L.MIGRATED_OUT), H2, vm("a", VmState.PAUSED, migrated=True), NOT_THERE, (H2, L.RUNNING, 2)),
        # the holder has said nothing, or still runs it: nothing may be concluded
        (lease("a", H1), H2, vm("a"), UNHEARD, None),
        (lease("a", H1), H2, vm("a"), (vm("a"), True), None),
        (lease("a", H1), H2, vm("a"), (vm("a", VmState.PAUSED), True), None),
        (lease("a", H1, L.STARTING), H2, vm("a"), NOT_THERE, None),
        (lease("a", H1, L.STOPPED), H2, vm("a"), NOT_THERE, (H2, L.RUNNING, 2)),
        (lease("a", H1, L.FAILED), H2, vm("a"), NOT_THERE, (H2, L.RUNNING, 2)),
        # stopped on purpose, by its holder's own word
        (lease("a", H1), H1, vm("a", OFF, stop_reason=StopReason.ON_PURPOSE), NOT_THERE, (H1, L.STOPPED, 1)),
        (lease("a", H1), H1, vm("a", OFF, stop_reason=StopReason.SAVED), NOT_THERE, (H1, L.STOPPED, 1)),
        # of a run that our start was yet to follow: heard late, it is not about this one
        (OURS, H1, vm("a", OFF, stop_reason=StopReason.ON_PURPOSE), NOT_THERE, None),
        (OURS, H1, vm("a", OFF, stop_reason=StopReason.ON_PURPOSE, token=3), NOT_THERE, None),
        (OURS, H1, vm("a", OFF, stop_reason=StopReason.ON_PURPOSE, token=4), NOT_THERE, (H1, L.STOPPED, 4)),
        # stopped for any other reason: it is still wanted
        (lease("a", H1), H1, vm("a", OFF, stop_reason=StopReason.CRASHED), NOT_THERE, None),
        (lease("a", H1), H1, vm("a", OFF, stop_reason=StopReason.UNKNOWN), NOT_THERE, None),
        (lease("a", H1), H1, vm("a", OFF, stop_reason=StopReason.MIGRATED), NOT_THERE, None),
        (lease("a", H1), H1, vm("a", VmState.UNKNOWN), NOT_THERE, None),
        # somebody else's word about a VM that is not theirs
        (lease("a", H1), H2, vm("a", OFF, stop_reason=StopReason.ON_PURPOSE), NOT_THERE, None),
        (lease("a", H1), boot("h1", 2), vm("a", OFF, stop_reason=StopReason.ON_PURPOSE), UNHEARD, None),
        (lease("a", H1, L.STARTING), H1, vm("a", OFF, stop_reason=StopReason.ON_PURPOSE), NOT_THERE, None),
    ],
)  # fmt: skip
def test_what_is_found_is_put_into_the_lease(
    found: RunLease | None,
    at: Incarnation,
    report: VmReport,
    holder: tuple[VmReport | None, bool],
    expected: tuple[Incarnation, LeaseState, int] | None,
) -> None:
    change = adopted(found, at, report, *holder)
    if expected is None:
        assert change is None
        return
    assert change is not None
    assert (change.holder, change.state, change.token) == expected
    assert change.seq == (0 if found is None else found.seq) + 1
    if change.state is L.RUNNING and report is BIG:
        assert (change.memory_mib, change.policy) == (BIG.memory_mib, BIG.policy)


def test_only_the_holder_may_run_it_and_anybody_may_where_there_is_none() -> None:
    assert may_run(None, H1, PLAIN, boots_known=True)
    assert may_run(lease("a", H1), H1, PLAIN, boots_known=True)
    assert not may_run(lease("a", H2), H1, PLAIN, boots_known=True)
    assert not may_run(lease("a", boot("h1", 2)), H1, PLAIN, boots_known=True)


def test_where_boots_are_only_guessed_a_lease_of_the_same_host_does_not_speak_against_a_vm() -> None:
    assert may_run(lease("a", boot("h1", 2)), H1, PLAIN, boots_known=False)
    assert not may_run(lease("a", H2), H1, PLAIN, boots_known=False)


def test_what_nobody_restarts_runs_on_its_own_host_boot_after_boot() -> None:
    """Held back, it stayed down until a person came, as it would not without us."""
    before = lease("a", boot("h1", 2), policy=FREE)
    assert may_run(before, H1, FREE, boots_known=True)
    assert not may_run(before, H1, PLAIN, boots_known=True), "it was protected since"
    assert not may_run(lease("a", boot("h1", 2)), H1, FREE, boots_known=True), "its restart may be under way"
    assert not may_run(lease("a", H2, policy=FREE), H1, FREE, boots_known=True)
    assert not may_run(moving(before, H2), H1, FREE, boots_known=True)


def test_what_its_holder_cannot_tell_has_not_left_it() -> None:
    held = lease("a", H1, L.RUNNING)
    stopped, unknown = vm("a", VmState.STOPPED), vm("a", VmState.UNKNOWN)
    assert adopted(held, H2, vm("a"), unknown, holder_known=True) is None, "its QEMU may be about to begin"
    found = adopted(held, H2, vm("a"), stopped, holder_known=True)
    assert found is not None
    assert found.holder == H2
