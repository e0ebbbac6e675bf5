"""Agents asked directly, past the bus: one line of JSON over TCP, on the network that the VMs use.

A kernel refuses where a host lives without its agent; a host whose processes hang takes the connection and says
nothing. Only a line that names the host is an answer: whatever else listens at that address says nothing of it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from pydantic import ValidationError

from libs.config.settings import HostEntry
from libs.model import Answer, Incarnation

MOST = 4096


class ProbeServer:
    """Says which boot of which host this is to whoever connects."""

    def __init__(self, at: Incarnation) -> None:
        self._line = at.model_dump_json().encode() + b"\n"
        self._server: asyncio.Server | None = None

    async def start(self, address: str) -> None:
        """Listen at host:port. Raises OSError."""
        host, port = split(address)
        self._server = await asyncio.start_server(self._answer, host, port)

    async def _answer(self, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            writer.write(self._line)
            await writer.drain()
            writer.close()

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
        try:
            async with asyncio.timeout(timeout_s):
                line = await _line(*split(entry.probe))
        except ConnectionRefusedError:
            return Answer.REFUSED, "its kernel refuses, no agent listens"
        except OSError as error:  # a time-out is one, too
            return Answer.SILENT, f"no answer: {error.strerror or 'time-out'}"
        return _read(host, line)


async def _line(host: str, port: int) -> bytes:
    reader, writer = await asyncio.open_connection(host, port, limit=MOST)
    try:
        return await reader.readline()
    except ValueError:
        return b""  # longer than any line of ours
    finally:
        writer.transport.abort()


def _read(host: str, line: bytes) -> tuple[Answer, str]:
    if not line:
        return Answer.SILENT, "the connection was taken and closed without a word"
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
