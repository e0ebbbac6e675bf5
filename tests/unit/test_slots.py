"""Heartbeat slots: what lies in a block, what an agent writes and obeys, what a stalled datastore costs."""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from libs.config.settings import Settings
from libs.core.ports import UnavailableError
from libs.promises import SlotBeat, SlotOrder
from libs.storage.slots import BLOCK, SLOT, Place, SlotFiles, decode, encode, slots_of
from services.heartbeat import slots
from services.heartbeat.orders import Obey, Obeyed, WriteSlot, WroteSlot
from tests.unit.made import boot, requests

pytestmark = pytest.mark.fast
H1 = boot("h1")
BEAT = SlotBeat(host="h1", boot="b1", seq=7, obeyed=2, stopped=("a",))
ORDER = SlotOrder(boot="b1", number=3, vms=("a", "b"))


def files(tmp_path: Path, *hosts: str, timeout_s: float = 2.0) -> SlotFiles:
    places = {host: Place(tmp_path / ".rekindle" / f"{host}.slot") for host in hosts}
    return SlotFiles("nfs", places, timeout_s)


# -- blocks


def test_a_block_is_read_as_it_was_written() -> None:
    assert len(encode(BEAT)) == BLOCK
    assert decode(encode(BEAT), SlotBeat) == BEAT


@pytest.mark.parametrize("spoilt", [0, 9, 15, 20, 40])
def test_a_torn_block_says_nothing(spoilt: int) -> None:
    block = bytearray(encode(BEAT))
    block[spoilt] ^= 0xFF
    assert decode(bytes(block), SlotBeat) is None


@pytest.mark.parametrize("block", [b"", b"\0" * BLOCK, os.urandom(BLOCK), encode(ORDER)])
def test_what_is_no_beat_is_none(block: bytes) -> None:
    assert decode(block, SlotBeat) is None


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        encode(SlotOrder(boot="b", number=1, vms=tuple(f"{i:036d}" for i in range(200))))


# -- files and devices


async def test_two_hosts_see_each_other_and_an_order_reaches_its_host(tmp_path: Path) -> None:
    mine, theirs = files(tmp_path, "h1", "h2"), files(tmp_path, "h1", "h2")
    assert await theirs.read("h1") is None, "it never wrote"
    assert await mine.beat(BEAT) is None
    assert await theirs.read("h1") == BEAT
    await theirs.order("h1", ORDER)
    assert await mine.beat(BEAT.model_copy(update={"seq": 8})) == ORDER
    read = await theirs.read("h1")
    assert read is not None
    assert read.seq == 8, "an order does not touch the beat beside it"


async def test_a_host_without_a_slot_there_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="h9 has no slot"):
        await files(tmp_path, "h1").read("h9")


async def test_a_directory_that_is_away_is_unavailable_and_not_silence(tmp_path: Path) -> None:
    gone = SlotFiles("nfs", {"h1": Place(tmp_path / "no" / "where" / "h1.slot")}, 2.0)
    with pytest.raises(UnavailableError, match="No such file"):
        await gone.beat(BEAT)


async def test_a_device_that_holds_something_else_is_never_overwritten(tmp_path: Path) -> None:
    device = tmp_path / "device"
    device.write_bytes(b"\0" * SLOT + b"somebody's data".ljust(SLOT, b"x"))
    places = {"h1": Place(device, 0, made=False), "h2": Place(device, SLOT, made=False)}
    store = SlotFiles("lun", places, 2.0)
    assert await store.beat(BEAT) is None
    with pytest.raises(UnavailableError, match="not ours"):
        await store.beat(BEAT.model_copy(update={"host": "h2"}))
    assert device.read_bytes()[SLOT:].startswith(b"somebody's data")
    assert await store.read("h1") == BEAT


async def test_a_datastore_that_stalls_costs_its_deadline_and_two_threads_and_comes_back(
    tmp_path: Path,
) -> None:
    """A fifo with no reader stalls whoever opens it, as a hung mount does."""
    path = tmp_path / ".rekindle" / "h1.slot"
    path.parent.mkdir()
    os.mkfifo(path)
    store = SlotFiles("stalled", {"h1": Place(path)}, 0.05)
    for _ in range(6):
        with pytest.raises(UnavailableError, match="no answer in"):
            await store.read("h1")
    hung = [thread for thread in threading.enumerate() if thread.name.startswith("slot-stalled")]
    assert len(hung) <= 2
    path.rename(tmp_path / "fifo")
    release = os.open(tmp_path / "fifo", os.O_RDWR | os.O_NONBLOCK)  # both ends: who waits goes on

    async def answers() -> bool:
        try:
            return await store.read("h1") is None
        except UnavailableError:
            return False

    async with asyncio.timeout(10.0):
        while not await answers():
            await asyncio.sleep(0.01)
    os.close(release)


def pool(**more: Any) -> dict[str, Any]:
    hosts = [{"name": name, "uri": "qemu:///system", "slot": n} for n, name in enumerate(("h1", "h2", "h3"))]
    return {"hosts": hosts, **more}


def test_each_host_has_its_place_on_each_datastore_that_it_reaches(tmp_path: Path) -> None:
    stores = [
        {"name": "nfs", "path": str(tmp_path)},
        {"name": "lun", "path": "/dev/mapper/rekindle", "block": True, "hosts": ["h2", "h3"]},
    ]
    settings = Settings.model_validate(pool(datastores=stores))
    assert set(slots_of(settings, "h1")) == {"nfs"}
    assert set(slots_of(settings, "h2")) == set(slots_of(settings)) == {"nfs", "lun"}


# -- what an agent writes


def write(state: slots.SlotState, now: float) -> tuple[slots.SlotState, list[WriteSlot]]:
    state, acts = slots.write(state, H1, 0.5, 3.0, now)
    return state, requests(acts)


def wrote(
    state: slots.SlotState, request: WriteSlot, now: float, **more: Any
) -> tuple[slots.SlotState, list[Any]]:
    outcome = WroteSlot(key=request.key, datastore=request.datastore, **more)
    state, acts = slots.wrote(state, outcome, H1, now)
    return state, requests(acts)


def begun(now: float = 10.0) -> slots.SlotState:
    """One datastore, whose first write was taken."""
    state, (request,) = write(slots.initial(("nfs",), now), now)
    return wrote(state, request, now)[0]


def test_each_datastore_is_written_at_its_interval_and_numbers_grow() -> None:
    state = slots.initial(("nfs", "san"), 10.0)
    state, requests_ = write(state, 10.0)
    assert [(r.datastore, r.beat.seq, r.first) for r in requests_] == [("nfs", 1, True), ("san", 2, True)]
    assert write(state, 10.4)[1] == []
    for request in requests_:
        state, _ = wrote(state, request, 10.1)
    assert slots.due(state) == 10.5
    state, requests_ = write(state, 10.5)
    assert [(r.datastore, r.beat.seq, r.first) for r in requests_] == [("nfs", 3, False), ("san", 4, False)]


def test_a_datastore_that_does_not_take_a_write_is_not_given_another_and_holds_up_no_other() -> None:
    state = slots.initial(("nfs", "san"), 10.0)
    state, (nfs, san) = write(state, 10.0)
    state, _ = wrote(state, san, 10.0)
    for step in range(1, 8):
        state, more = write(state, 10.0 + step / 2)
        assert [r.datastore for r in more] == ["san"]
        state, _ = wrote(state, more[0], 10.0 + step / 2)
    assert slots.ages(state, 13.5) == {"nfs": 3.5, "san": 0.0}
    assert slots.untried(state) == ("nfs",), "nobody knows for how long it took none before that"
    state = slots.failed(state, nfs.key)
    state, more = write(state, 14.0)
    assert [r.datastore for r in more] == ["nfs", "san"]


def test_a_datastore_that_refuses_from_the_beginning_keeps_no_order_from_being_obeyed() -> None:
    state = slots.initial(("nfs", "san"), 10.0)
    state, (nfs, san) = write(state, 10.0)
    order = SlotOrder(boot=H1.boot, number=4, vms=("a",))
    state, orders = wrote(state, san, 10.0, order=order)
    assert len(orders) == 1, "of nfs nothing has come yet: it is not waited for"
    state = slots.failed(slots.initial(("nfs", "san"), 10.0), nfs.key)
    state, (again, san) = write(state, 10.5)
    state = slots.failed(state, again.key)
    _, orders = wrote(state, san, 10.6, order=order)
    assert [type(one) for one in orders] == [Obey]


def test_an_order_to_this_boot_is_obeyed_once_and_said_in_the_next_write() -> None:
    state, (request,) = write(begun(), 10.5)
    state, (obey,) = wrote(state, request, 10.5, order=SlotOrder(boot=H1.boot, number=4, vms=("a",)))
    assert isinstance(obey, Obey)
    state, (request,) = write(state, 11.0)
    state, again = wrote(state, request, 11.0, order=SlotOrder(boot=H1.boot, number=4, vms=("a",)))
    assert again == [], "it is being obeyed"
    state = slots.obeyed(state, Obeyed(key="o", number=4, stopped=("a",)), 5, 11.1)
    state, (request,) = write(state, 11.1)
    assert (request.beat.obeyed, request.beat.stopped) == (4, ("a",))
    state, again = wrote(state, request, 11.2, order=SlotOrder(boot=H1.boot, number=4, vms=("a",)))
    assert again == []
    assert state.ordered == {"a"}


@pytest.mark.parametrize(("name", "number"), [("h1boot9", 5), ("h1boot1", 0)])
def test_an_order_to_another_boot_or_an_old_one_is_not_obeyed(name: str, number: int) -> None:
    state, (request,) = write(begun(), 10.5)
    order = SlotOrder(boot=name, number=max(1, number), vms=("a",))
    state = slots.obeyed(state, Obeyed(key="o", number=1, stopped=()), 1, 10.5) if number == 0 else state
    assert wrote(state, request, 10.6, order=order)[1] == []


def test_an_order_that_left_a_vm_running_is_not_said_to_be_obeyed_and_is_taken_up_again() -> None:
    state, (request,) = write(begun(), 10.5)
    order = SlotOrder(boot=H1.boot, number=4, vms=("a", "b"))
    state, _ = wrote(state, request, 10.5, order=order)
    state = slots.obeyed(state, Obeyed(key="o", number=4, stopped=("a",), left=("b",)), 3, 10.9)
    state, (request,) = write(state, 11.0)
    assert request.beat.obeyed == 0
    assert len(wrote(state, request, 11.0, order=order)[1]) == 1


def test_an_agent_that_restarts_does_not_obey_again_what_its_former_life_has() -> None:
    """The VM may have been started there since, by whoever may."""
    state, (request,) = write(slots.initial(("nfs",), 10.0), 10.0)
    former = SlotBeat(host="h1", boot=H1.boot, seq=90, obeyed=4, stopped=("a",))
    order = SlotOrder(boot=H1.boot, number=4, vms=("a",))
    state, orders = wrote(state, request, 10.0, former=former, order=order)
    assert orders == []
    state, (request,) = write(state, 10.5)
    assert (request.beat.seq, request.beat.obeyed) == (91, 4)


def test_another_boots_slot_teaches_nothing_but_the_number_to_go_on_from() -> None:
    state, (request,) = write(slots.initial(("nfs",), 10.0), 10.0)
    former = SlotBeat(host="h1", boot="other", seq=90, obeyed=4, stopped=("a",))
    state, _ = wrote(state, request, 10.0, former=former)
    assert (state.obeyed, state.ordered, state.seq) == (0, frozenset(), 90)


def test_a_reading_that_began_before_the_stop_does_not_make_it_anybodys_will() -> None:
    state, (request,) = write(begun(), 10.5)
    state, _ = wrote(state, request, 10.5, order=SlotOrder(boot=H1.boot, number=4, vms=("a",)))
    assert state.ordered == {"a"}, "the first is shown as stopped while others are being stopped"
    state = slots.obeyed(state, Obeyed(key="o", number=4, stopped=("a",)), 7, 10.9)
    assert slots.run_again(state, {"a"}, 6).ordered == {"a"}
    assert slots.run_again(state, {"a"}, 7).ordered == frozenset()
