"""Operators' words, policies and the datastore in the simulated world, where the whole chain is production code."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from libs.core.ports import UnavailableError
from libs.model import FenceProof, Incarnation, ProofMethod
from libs.power.devices import FenceDevices
from libs.promises import SlotBeat
from libs.scenario.model import STEPS, Scenario
from libs.sim.loop import Process, SimLoop
from libs.sim.run import Result, run
from libs.sim.steps import POSSIBLE
from libs.sim.storage import Datastore, SimSlots
from services.cli.simplane import PLANE
from services.cli.simulate import load

GOLDEN = Path(__file__).parents[1] / "golden"


def play(name: str, seed: int) -> Result:
    return run(load(GOLDEN / f"{name}.yaml"), seed, PLANE, stop_at_first=False)


@pytest.mark.fast
def test_every_step_of_the_list_can_be_played() -> None:
    assert POSSIBLE == STEPS


@pytest.mark.fast
def test_a_proof_by_an_operators_word_that_nobody_said_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    async def lies(self: FenceDevices, at: Incarnation, off_seen: object) -> FenceProof:
        return FenceProof(of=at, method=ProofMethod.OPERATOR, detail="somebody")

    monkeypatch.setattr(FenceDevices, "fence", lies)
    found = play("power_lost", 0)
    assert [one.rule for one in found.violations] == ["2"]
    assert "by an operator's word that nobody said" in found.violations[0].detail


@pytest.mark.fast
def test_a_word_that_is_a_lie_shows_as_a_vm_that_runs_twice() -> None:
    """A hung host goes on writing: nothing but the operator could have known."""
    body = {
        "schema": "rekindle.scenario.v1",
        "name": "a lie",
        "hosts": [{"name": "h1"}, {"name": "h2"}, {"name": "h3"}],
        "vms": [{"name": "db", "host": "h1"}],
        "steps": [
            {"at_s": 1, "do": "break_fencing", "host": "h1", "method": "power", "how": "dead"},
            {"at_s": 1, "do": "hang", "host": "h1"},
            {"at_s": 40, "do": "confirm_failed", "host": "h1"},
        ],
    }
    found = run(Scenario.model_validate(body), 0, PLANE, stop_at_first=False)
    assert {one.rule for one in found.violations} == {"1"}


@pytest.mark.parametrize(
    "name",
    [
        "confirmed_failed",
        "host_removed",
        "maintenance",
        "maintained_host_fails",
        "protected_then_moved",
        "storage_stalled",
        "storage_stalled_everywhere",
        "unprotected",
    ],
)
@pytest.mark.parametrize("seed", range(1, 6))
def test_it_comes_out_the_same_whatever_the_luck(name: str, seed: int) -> None:
    found = play(name, seed)
    assert found.outcome.passed, found.outcome.violations


@pytest.mark.fast
def test_what_hangs_in_the_datastore_goes_on_in_its_order_when_it_is_back() -> None:
    loop = SimLoop()
    store, done = Datastore(loop), []
    store.when_back("h1", lambda: done.append("well"))
    store.stall("h1")
    store.when_back("h1", lambda: done.append("first"))
    store.when_back("h1", lambda: done.append("second"))
    store.when_back("h2", lambda: done.append("elsewhere"))
    assert done == ["well", "elsewhere"]
    loop.call_later(7.0, loop.stop)
    loop.run_forever()
    store.restore("h1")
    assert done == ["well", "elsewhere", "first", "second"]
    assert not store.stalled("h1")
    assert store.stalled_s("h1", 2.0, 5.0) == 3.0
    assert store.stalled_s("h1", 2.0, 50.0) == 5.0
    assert store.stalled_s("h2", 0.0, 50.0) == 0.0
    loop.close()


@pytest.mark.fast
def test_a_write_of_a_slot_that_hangs_is_taken_as_soon_as_the_datastore_is_back_or_given_up() -> None:
    loop = SimLoop()
    store, process, taken = Datastore(loop), Process(loop, "heartbeat", "h1"), []
    slots = SimSlots(store, "nfs", process, loop, timeout_s=0.8)

    async def writes() -> None:
        for seq in (1, 2):
            with contextlib.suppress(UnavailableError):
                await slots.beat(SlotBeat(host="h1", boot="b1", seq=seq))
                taken.append((seq, round(loop.time(), 1)))

    store.stall("h1")
    process.spawn(writes())
    loop.call_later(1.0, store.restore, "h1")
    loop.call_later(5.0, loop.stop)
    loop.run_forever()
    assert taken == [(2, 1.0)]
    assert store.beats["h1"].seq == 2
    loop.close()
