"""What a question over TCP concludes of a host: its agent, or its kernel alone, or nothing, or that it was never asked."""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import libvirt
import pytest

from libs.config.entries import HostEntry
from libs.model import Answer, Incarnation, VmPolicy
from libs.probe import BACKLOG, MOST, DirectProbes, ProbeServer
from libs.virt import remote
from libs.virt.host import LibvirtHost

pytestmark = pytest.mark.fast
AT = Incarnation(host="h1", boot="boot-of-h1")
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Any]


async def asked(address: str, timeout_s: float = 0.3) -> Answer:
    entry = HostEntry.model_validate({"name": "h1", "uri": "qemu:///system", "probe": address})
    answer, said = await DirectProbes(lambda _: entry).ask("h1", timeout_s)
    assert said
    return answer


def closed_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@contextmanager
def nobody_accepts() -> Iterator[int]:
    """A kernel takes connections for a process that does nothing."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield int(listening.getsockname()[1])


@asynccontextmanager
async def somebody(handler: Handler) -> AsyncIterator[str]:
    server = await asyncio.start_server(handler, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


# -- an agent, asked directly


async def test_an_agent_says_which_boot_it_is() -> None:
    server, port = ProbeServer(AT), closed_port()
    await server.start(f"127.0.0.1:{port}")
    assert await asked(f"127.0.0.1:{port}") is Answer.UP
    await server.stop()
    assert await asked(f"127.0.0.1:{port}") is Answer.REFUSED


async def test_a_connection_that_is_taken_and_never_answered_is_a_kernel_and_no_life() -> None:
    with nobody_accepts() as port:
        assert await asked(f"127.0.0.1:{port}") is Answer.HANGS


async def test_a_connection_that_is_taken_and_broken_off_without_a_word_is_the_same() -> None:
    async def closes(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async def resets(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        linger = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        writer.transport.abort()

    for handler in (closes, resets):
        async with somebody(handler) as address:
            assert await asked(address) is Answer.HANGS


@pytest.mark.parametrize(
    "line", [b"220 mail ready\n", b"x" * (2 * MOST) + b"\n", b'{"host":"h9","boot":"b"}\n']
)
async def test_whatever_else_listens_there_says_nothing_of_the_host(line: bytes) -> None:
    async def speaks(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(line)
        writer.close()

    async with somebody(speaks) as address:
        assert await asked(address) is Answer.UNKNOWN


@pytest.mark.parametrize(
    ("error", "answer"),
    [
        (OSError(errno.EHOSTUNREACH, "No route to host"), Answer.SILENT),
        (OSError(errno.ENETUNREACH, "Network is unreachable"), Answer.SILENT),
        (TimeoutError(), Answer.SILENT),
        (OSError(errno.ETIMEDOUT, "Connection timed out"), Answer.SILENT),
        (ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"), Answer.HANGS),
        (socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution"), Answer.UNKNOWN),
        (OSError(errno.EMFILE, "Too many open files"), Answer.UNKNOWN),
        (OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address"), Answer.UNKNOWN),
    ],
)
async def test_what_goes_wrong_on_our_own_side_is_no_silence_of_the_hosts(
    error: OSError, answer: Answer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(asyncio, "open_connection", fails)
    assert await asked("127.0.0.1:1") is answer


async def test_a_hung_agent_has_room_for_all_who_ask_while_it_is_waited_for() -> None:
    """The kernel keeps each connection for the agent to take. Were the queue full it would fall silent: a vote."""
    port, started, over = closed_port(), threading.Event(), threading.Event()

    async def serves() -> None:
        server = ProbeServer(AT)
        await server.start(f"127.0.0.1:{port}")
        started.set()
        over.wait(30)  # nothing of this process runs any more
        await server.stop()

    thread = threading.Thread(target=lambda: asyncio.run(serves()))
    thread.start()
    try:
        assert await asyncio.to_thread(started.wait, 10)
        answers = await asyncio.gather(*(asked(f"127.0.0.1:{port}", 2.0) for _ in range(200)))
        assert set(answers) == {Answer.HANGS}
        assert BACKLOG > 3 * 60 / 0.6, "three peers a round, for as long as any profile waits"
    finally:
        over.set()
        thread.join()


# -- libvirt over the network


@pytest.mark.parametrize(
    ("uri", "address"),
    [
        ("qemu+tcp://h1/system", ("h1", 16509)),
        ("qemu+tcp://10.0.0.1:1234/system", ("10.0.0.1", 1234)),
        ("qemu+tls://h1/system", ("h1", 16514)),
        ("qemu://h1/system", ("h1", 16514)),
        ("qemu+ssh://root@h1/system?keyfile=/k", ("h1", 22)),
        ("qemu+libssh2://root@[fe80::1]:2222/system", ("fe80::1", 2222)),
        ("qemu:///system", None),
        ("qemu+unix:///system?socket=/run/x", None),
        ("qemu+ext://h1/system?command=/bin/x", None),
        ("qemu+tcp://h1:port/system", None),
        ("test:///default", None),
    ],
)
def test_where_a_libvirt_uri_leads(uri: str, address: tuple[str, int] | None) -> None:
    assert remote.address_of(uri) == address


SSH = "Cannot recv data: {}: Connection reset by peer"


@pytest.mark.parametrize(
    ("said", "answer"),
    [
        (SSH.format("ssh: connect to host h1 port 22: No route to host"), Answer.SILENT),
        (SSH.format("ssh: connect to host h1 port 22: Connection timed out"), Answer.SILENT),
        (SSH.format("ssh: connect to host h1 port 22: Connection refused"), Answer.REFUSED),
        (SSH.format("Host key verification failed."), Answer.REFUSED),
        (SSH.format("root@h1: Permission denied (publickey,password)."), Answer.REFUSED),
        (
            SSH.format("ssh: Could not resolve hostname h1: Temporary failure in name resolution"),
            Answer.UNKNOWN,
        ),
        ("unable to resolve address 'h1' service '16509': Name or service not known", Answer.UNKNOWN),
        ("Cannot create socket: Too many open files", Answer.UNKNOWN),
        ("unable to connect to server at 'h1:16509': No route to host", Answer.SILENT),
        ("End of file while reading data: Input/output error", Answer.SILENT),
        ("something of which nobody has heard", Answer.UNKNOWN),
        (
            "End of file while reading data: nc: unix connect failed: No such file or directory",
            Answer.REFUSED,
        ),
        (
            SSH.format("Warning: Identity file k not accessible: No such file. ssh: Connection timed out"),
            Answer.SILENT,
        ),
    ],
)
def test_what_an_error_of_libvirt_says_of_the_machine(said: str, answer: Answer) -> None:
    assert remote.concluded("qemu+ssh://root@h1/system", said) is answer


NO_SUCH_FILE = "{}: No such file or directory"


@pytest.mark.parametrize(
    ("uri", "said", "answer"),
    [
        ("qemu:///system", "Failed to connect socket to '/run/libvirt/libvirt-sock'", Answer.SILENT),
        ("qemu+unix:///system?socket=/x/s", "Failed to connect socket to '/x/s'", Answer.SILENT),
        ("qemu+tls://h1/system", "Cannot read CA certificate '/etc/pki/CA/cacert.pem'", Answer.UNKNOWN),
        ("qemu+ssh://h1/system", "cannot connect to '/run/libvirt/libvirt-sock'", Answer.REFUSED),
    ],
)
def test_a_file_that_is_missing_is_a_socket_there_or_a_certificate_here(
    uri: str, said: str, answer: Answer
) -> None:
    assert remote.concluded(uri, NO_SUCH_FILE.format(said)) is answer


def hanging(uri: str, monkeypatch: pytest.MonkeyPatch) -> tuple[LibvirtHost, threading.Event]:
    """A host whose libvirt takes no call to its end until the event is set."""
    host, over = LibvirtHost("h1", uri, VmPolicy(), time.monotonic), threading.Event()

    def opens(_: str) -> Any:
        over.wait(30)
        raise libvirt.libvirtError("over")

    monkeypatch.setattr(libvirt, "open", opens)
    return host, over


@pytest.mark.long
async def test_a_libvirt_that_hangs_behind_a_kernel_that_answers_is_told_from_a_silent_host(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    few = 3
    monkeypatch.setattr("libs.virt.host.HUNG_MOST", few)
    with nobody_accepts() as port:
        host, over = hanging(f"qemu+tcp://127.0.0.1:{port}/system", monkeypatch)
        for _ in range(few + 3):  # also when too many calls hang for one more to be tried
            answer, said = await host.probe(0.4)
            assert (answer, said.startswith("no answer in 0.4 s: its kernel")) == (Answer.HANGS, True)
        over.set()
    away, over = hanging(f"qemu+tcp://127.0.0.1:{closed_port()}/system", monkeypatch)
    assert (await away.probe(2.0))[0] is Answer.REFUSED
    over.set()


async def test_behind_a_libvirt_that_works_no_kernel_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that is opened and dropped is a line in the log of whoever listens there."""
    taken: list[int] = []

    async def takes(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        taken.append(1)
        writer.close()

    async with somebody(takes) as address:
        host = LibvirtHost("h1", f"qemu+tcp://{address}/system", VmPolicy(), time.monotonic)

        class Connection:
            def getHostname(self) -> str:
                return "h1"

            def isAlive(self) -> bool:
                return True

        monkeypatch.setattr(libvirt, "open", lambda _: Connection())
        for _ in range(5):
            assert await host.probe(0.4) == (Answer.UP, "libvirt answers")
        await asyncio.sleep(0.3)
    assert taken == []


# -- greetings


async def test_a_greeting_is_noted_before_that_is_said_and_ages_by_the_listeners_clock() -> None:
    server, port = ProbeServer(AT), closed_port()
    assert server.unheard_s("h2") is None, "it does not listen yet"
    await server.start(f"127.0.0.1:{port}")
    entry = HostEntry.model_validate({"name": "h1", "uri": "qemu:///system", "probe": f"127.0.0.1:{port}"})
    probes = DirectProbes({"h1": entry}.get)
    await asyncio.sleep(0.05)
    before = server.unheard_s("h2")
    assert before is not None
    assert before >= 0.05, "nobody has greeted it since it began to listen"
    assert await probes.greet("h1", Incarnation(host="h2", boot="b"), 1.0)
    after = server.unheard_s("h2")
    assert after is not None
    assert after < before
    assert server.unheard_s("h3") is not None
    assert await asked(f"127.0.0.1:{port}") is Answer.UP, "who only looks is answered as ever"
    assert (server.unheard_s("h1") or 0) >= before, "and greets nobody"
    await server.stop()
    assert not await probes.greet("h1", Incarnation(host="h2", boot="b"), 1.0)


@pytest.mark.parametrize("said", [b"", b"not json\n", b"x" * (MOST + 1) + b"\n"])
async def test_what_is_no_greeting_is_noted_by_nobody(said: bytes) -> None:
    server, port = ProbeServer(AT), closed_port()
    await server.start(f"127.0.0.1:{port}")
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(said)
    writer.write_eof()
    assert (await reader.readline()).startswith(b"{"), "it says who it is"
    assert await reader.read() == b""
    writer.close()
    await server.stop()


async def test_another_host_at_the_address_vouches_for_nobody() -> None:
    server, port = ProbeServer(Incarnation(host="h9", boot="b")), closed_port()
    await server.start(f"127.0.0.1:{port}")
    entry = HostEntry.model_validate({"name": "h1", "uri": "qemu:///system", "probe": f"127.0.0.1:{port}"})
    assert not await DirectProbes({"h1": entry}.get).greet("h1", Incarnation(host="h2", boot="b"), 1.0)
    assert not await DirectProbes({"h1": entry}.get).greet("h7", Incarnation(host="h2", boot="b"), 1.0)
    await server.stop()
