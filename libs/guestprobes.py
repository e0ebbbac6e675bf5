"""Guests asked over the network whether they are ready: a port that takes a connection, a page that is there.

Plain asyncio, as in libs/healthserver.py: one fixed request is written and one line read, and a start of the executor must
not wait for the import of an HTTP library. From wherever this process is: where that reaches no guest, none is ready.
"""

from __future__ import annotations

import asyncio
import contextlib

from libs.readiness import Target

REQUEST = (
    "GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: rekindle\r\nAccept: */*\r\nConnection: close\r\n\r\n"
)
WELL = range(200, 400)


class NetworkGuestProbes:
    """See ports.GuestProbes."""

    async def ask(self, target: Target, address: str, timeout_s: float) -> tuple[bool, str]:
        """A page is there where its answer begins with a status from 200 to 399; nobody follows where it leads."""
        try:
            async with asyncio.timeout(timeout_s):
                return await _asked(target, address)
        except TimeoutError:
            return False, f"no answer in {timeout_s:g} s"
        except (OSError, ValueError) as error:  # ValueError: a line without an end, an address that is none
            return False, str(error) or type(error).__name__


async def _asked(target: Target, address: str) -> tuple[bool, str]:
    reader, writer = await asyncio.open_connection(address, target.port)
    try:
        if not target.path:
            return True, "it takes connections"
        host = f"[{address}]" if ":" in address else address
        writer.write(REQUEST.format(path=target.path, host=f"{host}:{target.port}").encode())
        await writer.drain()
        line = (await reader.readline()).decode("latin-1").split()
        if len(line) < 2 or not line[0].startswith("HTTP/") or not line[1].isdecimal():
            return False, "no answer of HTTP"
        return int(line[1]) in WELL, f"status {line[1]}"
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
