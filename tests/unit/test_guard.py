"""An old copy of the state: how it is known, and what is made of leases and records before anything goes on (S06)."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from libs.core.clock import SystemClock
from libs.core.ledger import Ledger
from libs.core.ports import Row, UnavailableError
from libs.events.signals import MarkTold
from libs.model import LeaseState, Mark, VmState
from libs.restored import guard as guards
from libs.restored import mark as marks
from libs.restored.guard import Guard
from libs.restored.mark import MarkRecord, Restoring
from libs.restored.memory import MarkMemory
from libs.restored.reconcile import FLOOR, missing, reconciled, unowed
from services.executor.orders import REQUESTS, StartRecord, TakenUp
from tests.unit.made import boot, inventory, lease, vm
from tests.unit.world import Process, World
from tests.waiting import eventually

pytestmark = pytest.mark.fast
H1, H2, H3 = boot("h1"), boot("h2"), boot("h3")
L = LeaseState


def at(number: int, generation: int = 0) -> Mark:
    return Mark(generation=generation, number=number)


class Play:
    """A guard over a store in memory, and what lies there."""

    def __init__(self) -> None:
        self.world = World()
        self.bus = Process(self.world)
        self.guard = Guard(self.bus, self.bus, SystemClock())
        self.turns: list[bool] = []
        self.guard.on_change(lambda: self.turns.append(self.guard.ok))

    def lies(self, record: MarkRecord) -> None:
        self.world.revision += 1
        self.world.rows[marks.KEY] = (record.model_dump_json().encode(), self.world.revision)

    def tells(self, mark: Mark) -> None:
        self.guard._heard(MarkTold(mark=mark))


async def test_the_mark_of_an_agent_that_is_ahead_of_the_store_keeps_everybody_from_acting() -> None:
    play = Play()
    play.lies(MarkRecord(mark=at(5), at=SystemClock().wall().isoformat()))
    running = asyncio.create_task(play.guard.run())
    try:
        await asyncio.sleep(0)
        play.tells(at(3))  # who knows less says nothing
        assert not play.guard.ok
        play.tells(at(5))
        await eventually(lambda: play.guard.ok, "nobody knows of a later one")
        play.tells(at(9))
        await eventually(lambda: not play.guard.ok, "the store is behind")
        play.lies(MarkRecord(mark=at(1, generation=1)))
        await eventually(lambda: play.guard.ok, "it was brought in line", within_s=5)
    finally:
        running.cancel()
    assert play.turns == [True, False, True]


async def test_while_it_is_being_brought_in_line_nobody_acts_whatever_the_marks_say() -> None:
    play = Play()
    restoring = Restoring(told=at(9), since="", missing=("h3",))
    play.lies(MarkRecord(mark=at(9), at=SystemClock().wall().isoformat(), restoring=restoring))
    running = asyncio.create_task(play.guard.run())
    await asyncio.sleep(guards.NOBODY_S + 0.3)
    running.cancel()
    assert play.turns == []


async def test_a_store_in_which_nothing_was_ever_led_waits_for_nobody() -> None:
    play = Play()
    running = asyncio.create_task(play.guard.run())
    await eventually(lambda: play.guard.ok, "nothing is owed there", within_s=0.4)
    running.cancel()


async def test_an_answer_that_waits_behind_thousands_of_heartbeats_counts_when_it_comes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    play, reads, at_once = Play(), list[int](), 0
    get = play.bus.get

    async def slow(key: str) -> Row | None:
        nonlocal at_once
        at_once += 1
        reads.append(at_once)
        try:
            await asyncio.sleep(2.4 * guards.READ_S)
            return await get(key)
        finally:
            at_once -= 1

    monkeypatch.setattr(play.bus, "get", slow)
    running = asyncio.create_task(play.guard.run())
    await eventually(lambda: play.guard.ok, "it is known")
    running.cancel()
    assert max(reads) <= guards.READS
    await eventually(lambda: at_once == 0, "none is left behind")


async def test_what_was_lost_on_its_way_is_asked_for_again_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    play, asked = Play(), 0
    get = play.bus.get

    async def loses_the_first(key: str) -> Row | None:
        nonlocal asked
        asked += 1
        if asked == 1:
            await asyncio.sleep(3600)
        return await get(key)

    monkeypatch.setattr(play.bus, "get", loses_the_first)
    running = asyncio.create_task(play.guard.run())
    await eventually(lambda: play.guard.ok, "it is known", within_s=2 * guards.READ_S + 0.2)
    running.cancel()


async def test_a_new_connection_is_a_new_question() -> None:
    play = Play()
    running = asyncio.create_task(play.guard.run())
    await eventually(lambda: play.guard.ok, "it is known")
    play.guard._connection(True)
    assert not play.guard.ok
    await eventually(lambda: play.guard.ok, "it is known again")
    running.cancel()


async def test_a_mark_that_cannot_be_read_is_no_mark() -> None:
    play = Play()
    play.world.rows[marks.KEY] = (b'{"mark": "x"}', 1)
    with pytest.raises(UnavailableError, match="cannot be read"):
        await marks.read(play.bus)


async def test_an_agent_remembers_the_highest_mark_over_its_hosts_reboot(tmp_path: Path) -> None:
    renewed: list[str] = []
    file = tmp_path / "marks" / "h1.json"
    memory = MarkMemory(Process(World()), lambda: renewed.append("again"), file)
    await memory.listen()
    for mark in (at(20), at(7), at(40), at(45)):
        memory._heard(MarkTold(mark=mark))
    assert memory.mark == at(45)
    after = MarkMemory(Process(World()), lambda: renewed.append("again"), file)
    await after.listen()
    assert after.mark == at(40), "as it was a minute ago at most"
    assert renewed == []
    after._heard(MarkTold(mark=at(1, generation=1)))
    assert renewed == ["again"], "what it had stored is to be stored once more"
    file.write_text('{"number": ')
    torn = MarkMemory(Process(World()), lambda: None, file)
    await torn.listen()
    assert torn.mark == Mark()


# -- leases and records


def test_leases_follow_what_runs_with_tokens_above_all_that_was_told_or_forgotten() -> None:
    old = {"a": lease("a", H1, token=3), "b": lease("b", H1, token=2), "c": lease("c", H2, L.STOPPED)}
    told = {
        "h1": inventory(H1, vm("b", token=9)),
        "h2": inventory(H2, vm("a", token=3), vm("new", token=4)),
        "h3": inventory(H3),
    }
    found = reconciled(old, told, 1)
    by = {one.vm: one for one in found.writes}
    assert {name: (one.holder, one.state) for name, one in by.items()} == {
        "a": (H2, L.RUNNING),
        "b": (H1, L.RUNNING),
        "c": (H2, L.STOPPED),
        "new": (H2, L.RUNNING),
    }
    assert all(one.token >= FLOOR and one.seq >= FLOOR for one in found.writes)
    assert found.down == ()
    assert reconciled(by, told, 1).writes == (), "it is done once"


def test_what_runs_nowhere_is_put_down_and_named() -> None:
    old = {"a": lease("a", H1), "b": lease("b", H3, L.STARTING), "c": lease("c", H3, L.FAILED)}
    told = {"h1": inventory(H1, vm("a", VmState.STOPPED)), "h2": inventory(H2)}
    found = reconciled(old, told, 1)
    assert [one.state for one in found.writes] == [L.STOPPED] * 3
    assert found.down == ("A", "B", "C")


def test_of_two_copies_the_holders_keeps_the_lease_and_what_cannot_be_told_runs() -> None:
    told = {"h1": inventory(H1, vm("a")), "h2": inventory(H2, vm("a", token=5))}
    assert reconciled({"a": lease("a", H1)}, told, 1).writes[0].holder == H1
    assert reconciled({"a": lease("a", H3)}, told, 1).writes[0].holder == H2, "else the later one"
    arriving = {"h1": inventory(H1, vm("a")), "h2": inventory(H2, vm("a", VmState.PAUSED, migrated=True))}
    assert reconciled({"a": lease("a", H2)}, arriving, 1).writes[0].holder == H1
    unknown = {"h2": inventory(H2, vm("a", VmState.UNKNOWN))}
    assert reconciled({"a": lease("a", H2)}, unknown, 1).writes[0].state is L.RUNNING


def document(record: object) -> bytes:
    return json.dumps({"format": 1, "record": record, "owed": [{"what": "act", "request": {}}]}).encode()


@pytest.mark.parametrize(
    "key",
    ["fencer.h1-1", "executor.a", "placement.incident.h1-1", "placement.held.a"],
)
def test_fences_plans_and_starts_of_an_old_day_are_gone(key: str) -> None:
    assert unowed(key, document({"start": {}, "incident": {}})) is None


def test_what_is_true_still_stays_and_owes_nothing() -> None:
    kept = unowed("placement.host.h1", document({"words": {"maintenance": True}}))
    assert json.loads(kept or b"")["record"] == {"words": {"maintenance": True}}
    assert json.loads(kept or b"")["owed"] == []
    doubted = json.loads(unowed("detector.h1", document({"state": "failed", "epoch": 3, "number": 4})) or b"")
    assert doubted["record"]["state"] == "unknown"
    assert doubted["record"]["epoch"] > 1000 < doubted["record"]["number"]
    assert unowed("alerting.x", b"whatever it is") == b"whatever it is"


async def test_what_is_left_can_be_read_by_the_service_that_wrote_it() -> None:
    world = World()
    store = Process(world)
    taken = TakenUp(plans={"h1-1": 2})
    world.rows["executor.a"] = (unowed("executor.a", document(taken.model_dump(mode="json"))) or b"", 1)
    ledger = Ledger("executor", store, StartRecord | TakenUp, REQUESTS)
    await ledger.load()
    assert ledger.records["a"] == taken
    assert ledger.owed() == []


def test_who_is_waited_for() -> None:
    assert missing(("h1", "h2", "h3"), {"h1": None}, ("h3",)) == ("h2",)
