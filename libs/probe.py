"""Agents asked directly, past the bus: one line of JSON over TCP, on the network that the VMs use.

A kernel refuses where a host lives without its agent; where a host's processes hang it takes the connection, and
nobody says anything on it. Only a line that names the host is an answer: whatever else listens at that address says
nothing of it. What went wrong on our own side is no answer either, and no silence of the host's.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import Callable

from pydantic import ValidationError

from libs.config.entries import HostEntry
from libs.core.clock import SystemClock
from libs.core.ports import Clock
from libs.model import Answer, Incarnation

MOST = 4096
BACKLOG = 1024
"""Connections that the kernel takes while the agent hangs, and that nobody takes from it: three a round from peers, for
as long as a hung host is waited for. Once it is full the kernel falls silent, and a host that hangs looks dead."""


NOTED = b"noted\n"
GREETING_S = 2.0
GREETERS_MOST = 20_000

SILENT_ERRORS = (errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN, errno.ETIMEDOUT)
"""What the network says of a host that is not there. A route that is withdrawn with its host looks like one of ours that
is missing, so that one counts for the host's."""


class ProbeServer:
    """Says which boot of which host this is to whoever connects. Who says a line about itself is greeting: that is noted,
    and then said to be. See ports.Greetings."""

    def __init__(self, at: Incarnation, clock: Clock | None = None) -> None:
        self._line = at.model_dump_json().encode() + b"\n"
        self._clock = clock or SystemClock()
        self._server: asyncio.Server | None = None
        self._since: float | None = None
        self._greeted: dict[str, float] = {}

    def unheard_s(self, host: str) -> float | None:
        """See ports.Greetings."""
        if self._since is None:
            return None
        return self._clock.monotonic() - self._greeted.get(host, self._since)

    async def start(self, address: str) -> None:
        """Listen at host:port. Raises OSError."""
        host, port = split(address)
        self._server = await asyncio.start_server(self._answer, host, port, backlog=BACKLOG, limit=MOST)
        self._since = self._clock.monotonic()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            writer.write(self._line)
            await writer.drain()
            if await self._greeting(reader):
                writer.write(NOTED)
                await writer.drain()
            writer.close()

    async def _greeting(self, reader: asyncio.StreamReader) -> bool:
        """Whether somebody said who it is. Who only looks closes at once."""
        try:
            async with asyncio.timeout(GREETING_S):
                line = await reader.readline()
            who = Incarnation.model_validate_json(line)
        except (ValueError, OSError):  # a time-out is one, too
            return False
        if who.host not in self._greeted and len(self._greeted) >= GREETERS_MOST:
            return False
        self._greeted[who.host] = self._clock.monotonic()
        return True

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()


class DirectProbes:
    """Probes over TCP."""

    def __init__(self, hosts: Callable[[str], HostEntry | None]) -> None:
        self._hosts = hosts

    async def ask(self, host: str, timeout_s: float) -> tuple[Answer, str]:
        """See ports.Probes."""
        entry = self._hosts(host)
        if entry is None or entry.probe is None:
            return Answer.UNKNOWN, "no address for probes"
        until = asyncio.get_running_loop().time() + timeout_s
        try:
            async with asyncio.timeout_at(until):
                reader, writer = await asyncio.open_connection(*split(entry.probe), limit=MOST)
        except ConnectionRefusedError:
            return Answer.REFUSED, "its kernel refuses, no agent listens"
        except OSError as error:
            return unreached(error)
        try:
            async with asyncio.timeout_at(until):
                line = await reader.readline()
        except ValueError:
            return Answer.UNKNOWN, "something else listens there"  # longer than any line of ours
        except OSError as error:  # a time-out is one, too
            return Answer.HANGS, f"its kernel takes the connection, no agent answers: {_why(error)}"
        finally:
            writer.transport.abort()
        return _read(host, line)

    async def greet(self, host: str, me: Incarnation, timeout_s: float) -> bool:
        """See ports.Probes."""
        entry = self._hosts(host)
        if entry is None or entry.probe is None:
            return False
        try:
            async with asyncio.timeout(timeout_s):
                reader, writer = await asyncio.open_connection(*split(entry.probe), limit=MOST)
                try:
                    writer.write(me.model_dump_json().encode() + b"\n")
                    named = _read(host, await reader.readline())[0] is Answer.UP
                    return named and await reader.readline() == NOTED
                finally:
                    writer.transport.abort()
        except (OSError, ValueError):
            return False


async def kernel_answers(address: tuple[str, int], timeout_s: float) -> tuple[Answer, str]:
    """A connection to a port, and nothing said on it: `hangs` where it is taken, since who asks has waited in vain for
    the process behind it."""
    try:
        async with asyncio.timeout(timeout_s):
            _, writer = await asyncio.open_connection(*address)
    except ConnectionRefusedError:
        return Answer.REFUSED, "its kernel refuses"
    except OSError as error:
        return unreached(error)
    writer.transport.abort()
    return Answer.HANGS, "its kernel takes connections, nothing answers on them"


def unreached(error: OSError) -> tuple[Answer, str]:
    """What a connection that did not come about says of the host: silent where it, or the way to it, gave no answer;
    nothing where the fault is ours, as without a name server or without free file descriptors."""
    if isinstance(error, socket.gaierror):
        return Answer.UNKNOWN, f"its name cannot be resolved: {_why(error)}"
    if error.errno == errno.ECONNRESET:
        return Answer.HANGS, f"its kernel breaks the connection off: {_why(error)}"
    if isinstance(error, TimeoutError) or error.errno in SILENT_ERRORS:
        return Answer.SILENT, f"no answer: {_why(error)}"
    return Answer.UNKNOWN, f"it cannot be asked: {_why(error)}"


def _why(error: OSError) -> str:
    return error.strerror or str(error) or "time-out"


def _read(host: str, line: bytes) -> tuple[Answer, str]:
    if not line:
        return Answer.HANGS, "the connection was taken and closed without a word"
    try:
        at = Incarnation.model_validate_json(line)
    except ValidationError:
        return Answer.UNKNOWN, "something else listens there"
    if at.host != host:
        return Answer.UNKNOWN, f"{at.host} listens there"
    return Answer.UP, f"its agent answers, boot {at.boot[:8]}"


def split(address: str) -> tuple[str, int]:
    """host:port as two."""
    host, port = address.rsplit(":", 1)
    return host, int(port)
