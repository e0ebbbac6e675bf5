"""Messages that are handed over as they are read are the same, in the same order, as nats-py would have told them; and an
inventory that is said again is read once."""

from __future__ import annotations

import asyncio
import gc
import random
from typing import Any

import pytest
from nats.errors import ProtocolError
from nats.protocol.parser import Parser

from libs.events.signals import Heartbeat, InventorySeen
from libs.jetstream.parsing import QuickParser
from libs.jetstream.reading import Reader
from libs.model import Inventory
from tests.unit.made import beat, boot

pytestmark = pytest.mark.fast
LISTENED = 7


class Client:
    """Notes what a parser tells a client."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []
        self.errors: list[Exception] = []
        self.parser: Parser | None = None
        self.resets_at = ""

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: Any) -> None:
        self.told.append((sid, subject.decode(), reply.decode(), data, headers))

    async def _process_ping(self) -> None:
        self.told.append(("ping",))

    async def _process_pong(self) -> None:
        self.told.append(("pong",))

    async def _process_err(self, error: str) -> None:
        self.told.append(("err", error))
        await asyncio.sleep(0)
        if self.parser is not None and error == self.resets_at:
            self.parser.reset()

    async def _process_info(self, info: Any) -> None:
        self.told.append(("info", info))

    async def _error_cb(self, error: Exception) -> None:
        self.errors.append(error)


def quick(client: Client, alive: Any) -> QuickParser:
    parser = QuickParser(client)
    parser.listen(
        LISTENED,
        lambda subject, reply, data, headers: client.told.append(
            (LISTENED, subject, reply, data, headers or None)
        ),
        alive,
    )
    return parser


def operation(chance: random.Random) -> bytes:
    sid = chance.choice([LISTENED, LISTENED, LISTENED, 1, 77])
    size = chance.choice([0, 1, 9, 300, 3000])
    payload = bytes(chance.choice(b"MSG \r\n+OKPING0") for _ in range(size))
    reply = chance.choice(["", "", "inbox.1 "])
    headed = f"HMSG a.b {sid} {reply}{12} {12 + size}\r\n".encode() + b"NATS/1.0\r\n\r\n" + payload + b"\r\n"
    return chance.choice(
        [
            f"MSG rekindle.p.heartbeat.h1 {sid} {reply}{size}\r\n".encode() + payload + b"\r\n",
            f"MSG rekindle.p.heartbeat.h1 {sid} {reply}{size}\r\n".encode() + payload + b"\r\n",
            headed,
            b"PING\r\n",
            b"PONG\r\n",
            b"+OK\r\n",
            b"-ERR 'slow consumer'\r\n",
            b'INFO {"server_id": "x y", "n": 1}\r\n',
        ]
    )


async def fed(parser: Parser, stream: bytes, chance: random.Random) -> None:
    at = 0
    while at < len(stream):
        size = chance.choice([1, 2, 3, 50, 1000, 32_768])
        await parser.parse(stream[at : at + size])
        at += size


@pytest.fixture
async def alive() -> Any:
    task = asyncio.create_task(asyncio.Event().wait())
    yield task
    task.cancel()


@pytest.mark.parametrize("seed", range(20))
async def test_however_a_stream_is_cut_the_same_is_told_as_by_nats_py(seed: int, alive: Any) -> None:
    chance = random.Random(seed)
    stream = b"".join(operation(chance) for _ in range(60))
    one, other = Client(), Client()
    await fed(Parser(one), stream, chance)
    await fed(quick(other, alive), stream, chance)
    assert one.told
    assert other.told == one.told


@pytest.mark.parametrize(
    "line", [b"HELLO\r\n", b"MSG\r\n", b"MSG a b c\r\n", b"MSG a 7 -1\r\n", b"MSG a 7 1e3\r\n", b"\r\n"]
)
async def test_what_is_no_word_of_the_protocol_is_refused_as_by_nats_py(line: bytes, alive: Any) -> None:
    for parser in (Parser(Client()), quick(Client(), alive)):
        with pytest.raises(ProtocolError):
            await parser.parse(line)


async def test_nothing_of_a_connection_that_is_over_is_told_on_the_next(alive: Any) -> None:
    client = Client()
    parser = quick(client, alive)
    await parser.parse(b"PONG\r\nMSG a 7 10\r\nhalf")
    parser.reset()
    await parser.parse(b"MSG b 7 2\r\nok\r\n")
    assert client.told == [("pong",), (LISTENED, "b", "", b"ok", None)]


async def test_nothing_is_kept_of_what_followed_the_error_that_ended_a_connection(alive: Any) -> None:
    client = Client()
    parser = client.parser = quick(client, alive)
    client.resets_at = "'stale connection'"
    await parser.parse(b"-ERR 'Stale Connection'\r\nMSG a 7 2\r\nno\r\nMSG a 7 10\r\nhalf")
    await parser.parse(b"MSG b 7 2\r\nok\r\n")
    assert client.told == [("err", "'stale connection'"), (LISTENED, "b", "", b"ok", None)]


async def test_who_is_forgotten_or_whose_task_is_over_is_left_to_nats_py(alive: Any) -> None:
    client = Client()
    parser = quick(client, alive)
    parser.forget(LISTENED)
    await parser.parse(b"MSG a 7 2\r\nno\r\n")
    over = asyncio.create_task(asyncio.sleep(0))
    await over
    parser.listen(LISTENED, lambda *_: pytest.fail("it is over"), over)
    await parser.parse(b"MSG a 7 2\r\nno\r\n")
    assert [one[0] for one in client.told] == [LISTENED, LISTENED]


async def test_an_error_of_who_is_called_is_told_and_stops_nothing(alive: Any) -> None:
    client, parser = Client(), QuickParser(Client())
    parser = QuickParser(client)
    heard: list[bytes] = []

    def refuses(subject: str, reply: str, data: bytes, headers: bytes) -> None:
        heard.append(data)
        if data == b"no":
            raise KeyError("no")

    parser.listen(LISTENED, refuses, alive)
    await parser.parse(b"MSG a 7 2\r\nno\r\nMSG a 7 2\r\nok\r\n")
    assert heard == [b"no", b"ok"]
    assert [repr(error) for error in client.errors] == ["KeyError('no')"]


# -- signals


def inventory(rev: int = 1, host: str = "h1") -> bytes:
    said = Inventory(at=boot(host), agent="life", rev=rev, memory_mib=1024, cpus=4)
    return InventorySeen(inventory=said).model_dump_json().encode()


def test_an_inventory_that_is_said_again_is_the_one_that_is_kept() -> None:
    reader = Reader("rekindle.p.")
    first = reader.fitting("rekindle.p.inventory.h1", inventory())
    assert isinstance(first, InventorySeen)
    again = reader.fitting("rekindle.p.inventory.h1", inventory())
    assert isinstance(again, InventorySeen)
    assert again == first
    assert again.inventory is first.inventory
    later = reader.fitting("rekindle.p.inventory.h1", inventory(rev=2))
    assert isinstance(later, InventorySeen)
    assert later.inventory.rev == 2
    back = reader.fitting("rekindle.p.inventory.h1", inventory())
    assert isinstance(back, InventorySeen)
    assert back.inventory.rev == 1


def test_an_inventory_that_nobody_keeps_is_not_kept_for_that() -> None:
    reader = Reader("rekindle.p.")
    first = reader.fitting("rekindle.p.inventory.h1", inventory())
    (_, kept) = reader._said["inventory.h1"]
    assert kept() is not None
    del first
    gc.collect()
    assert kept() is None
    assert reader.fitting("rekindle.p.inventory.h1", inventory()) is not None


def test_what_is_not_its_topics_own_or_cannot_be_read_is_nothing_however_often_it_is_said() -> None:
    reader = Reader("rekindle.p.")
    for _ in range(2):
        assert reader.fitting("rekindle.p.inventory.h2", inventory()) is None
        assert reader.fitting("rekindle.p.inventory.h1", b"{}") is None
        assert reader.fitting("rekindle.p.heartbeat.h2", beat("h1").model_dump_json().encode()) is None
        said = reader.fitting("rekindle.p.heartbeat.h1", beat("h1").model_dump_json().encode())
        assert isinstance(said, Heartbeat)
