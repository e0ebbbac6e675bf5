"""State and debt change together; a lost answer is no lost race."""

from __future__ import annotations

import asyncio
import json

import pytest

from libs.core.decider import Act, Publish, Records
from libs.core.ledger import CorruptRecordError, DeposedError, Ledger
from libs.core.ports import UnavailableError
from services.fencer.state import REQUESTS, Fence, FenceRecord, Phase
from tests.unit.made import boot, fenced
from tests.unit.world import Process, World

pytestmark = pytest.mark.fast


def ledger(world: World) -> Ledger:
    return Ledger("fencer", Process(world), FenceRecord, REQUESTS)


def record(host: str, phase: Phase = Phase.FENCING) -> FenceRecord:
    return FenceRecord(at=boot(host), incident=f"{host}-1", epoch=1, phase=phase)


def act(host: str) -> Act:
    return Act(host, Fence(key=f"fence/{host}", deadline_s=1.0, at=boot(host), incident=f"{host}-1"))


def records(*hosts: str) -> Records:
    return Records({host: record(host) for host in hosts})


async def test_what_was_committed_is_read_back_with_its_debts_in_order() -> None:
    world = World()
    book = ledger(world)
    told = Publish("h1", fenced(boot("h1")))
    await book.commit(records("h1", "h2"), [act("h1"), told, act("h2")])
    other = ledger(world)
    await other.load()
    assert other.records == book.records
    assert other.owed() == [act("h1"), told, act("h2")]
    await other.settle([("h1", "fence/h1"), ("h2", "fence/h2")])
    third = ledger(world)
    await third.load()
    assert third.owed() == [told]


async def test_only_what_changed_is_written() -> None:
    world = World()
    book = ledger(world)
    await book.commit(records("h1", "h2"), [])
    writes = world.writes
    await book.commit(book.records.insert("h2", record("h2", Phase.FENCED)), [])
    assert world.writes == writes + 1


@pytest.mark.parametrize("dies_at", range(1, 12))
async def test_what_marks_an_input_as_dealt_with_is_never_there_without_what_was_made_of_it(
    dies_at: int,
) -> None:
    """Killed between both, the input comes again: with the mark alone it would be taken for a repeat."""
    world = World(dies_at=dies_at)
    process = Process(world)
    book = Ledger("fencer", process, FenceRecord, REQUESTS, marks=("h1",))
    writing = asyncio.ensure_future(book.commit(records("h1", "h2"), [act("h2")]))
    dying = asyncio.ensure_future(process.died.wait())
    await asyncio.wait([writing, dying], return_when=asyncio.FIRST_COMPLETED)
    assert "fencer.h1" not in world.rows or "fencer.h2" in world.rows
    for task in (writing, dying):
        task.cancel()
    await asyncio.gather(writing, dying, return_exceptions=True)


async def test_a_record_without_debts_that_is_gone_is_removed_and_one_with_debts_stays() -> None:
    world = World()
    book = ledger(world)
    await book.commit(records("h1", "h2"), [act("h2")])
    await book.commit(Records(), [])
    assert list(world.rows) == ["fencer.h2"]
    assert json.loads(world.rows["fencer.h2"][0])["record"] is None
    await book.settle([("h2", "fence/h2")])
    assert world.rows == {}
    await book.commit(records("h1"), [])
    assert list(world.rows) == ["fencer.h1"]


async def test_an_outcome_is_struck_out_in_the_same_write_as_what_follows_from_it() -> None:
    world = World()
    book = ledger(world)
    await book.commit(records("h1"), [act("h1")])
    told = Publish("h1", fenced(boot("h1")))
    await book.commit(records("h1"), [told], settles=("h1", "fence/h1"))
    assert book.owed() == [told]


@pytest.mark.parametrize("lost", [1, 2, 3])
async def test_a_write_whose_answer_was_lost_is_found_on_the_second_try(lost: int) -> None:
    world = World(answer_lost_at=lost)
    book = ledger(world)
    steps = [(records("h1"), [act("h1")]), (records("h1", "h2"), []), (records("h2"), [])]
    for wanted, effects in steps:
        for _ in range(2):
            try:
                await book.commit(wanted, effects)
                break
            except UnavailableError:
                continue
        else:
            raise AssertionError("a lost answer was taken for a lost race")
    assert book.records.keys() == {"h2"} or list(book.records) == ["h2"]


async def test_another_writer_is_noticed() -> None:
    world = World()
    old, new = ledger(world), ledger(world)
    await old.commit(records("h1"), [act("h1")])
    await new.load()
    await new.commit(Records({"h1": record("h1", Phase.WAITING)}), [])
    with pytest.raises(DeposedError):
        await old.commit(Records({"h1": record("h1", Phase.FENCED)}), [])
    with pytest.raises(DeposedError):
        await old.settle([("h1", "fence/h1")])
    with pytest.raises(DeposedError):
        await old.commit(Records(), [])


@pytest.mark.parametrize(
    "row",
    [
        b"not json",
        b'{"format": 2, "record": null}',
        b'{"format": 1, "record": {"at": 1}}',
        b'{"record": null, "owed": [{"what": "act", "request": {"kind": "launch"}}]}',
    ],
)
async def test_a_record_that_cannot_be_read_is_named(row: bytes) -> None:
    world = World()
    world.rows["fencer.h1"] = (row, 1)
    with pytest.raises(CorruptRecordError, match=r"fencer\.h1"):
        await ledger(world).load()


async def test_fields_of_another_version_stay_when_this_one_writes_the_record_and_go_with_it() -> None:
    world = World()
    book = ledger(world)
    await book.commit(records("h1", "h2"), [])
    for host in ("h1", "h2"):
        document = json.loads(world.rows[f"fencer.{host}"][0])
        document["record"]["added"] = {"by": "the next version"}
        await Process(world).put(f"fencer.{host}", json.dumps(document).encode(), None)
    book = ledger(world)
    await book.load()
    changed = book.records.insert("h1", record("h1", Phase.WAITING)).discard("h2")
    await book.commit(changed, [])
    stored = json.loads(world.rows["fencer.h1"][0])["record"]
    assert stored["phase"] == "waiting"
    assert stored["added"] == {"by": "the next version"}
    await book.commit(changed.insert("h2", record("h2")), [])
    assert "added" not in json.loads(world.rows["fencer.h2"][0])["record"], "this is another record"


async def test_the_records_of_others_are_not_ours() -> None:
    world = World()
    world.rows["fencers.h1"] = (b"not json", 1)
    world.rows["detector.h1"] = (b"not json", 1)
    book = ledger(world)
    await book.load()
    assert len(book.records) == 0
