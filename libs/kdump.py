"""A crash kernel's word that its host panicked: what fence_kdump_send (fence-agents) sends while memory is dumped.

Eight bytes over UDP, magic and version, in the sender's byte order; the sender is known by its address. Anybody on the
network can send that: it starts questions, and whoever answers them refutes it.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable, Mapping
from typing import Any

from libs.config.settings import Settings
from libs.config.yamlfile import BadInputError
from libs.probe import split

MAGIC, VERSION = 0x1B302A40, 1
MESSAGES = {struct.pack(f"{order}II", MAGIC, VERSION) for order in "<>"}


class _Listener(asyncio.DatagramProtocol):
    def __init__(self, hosts: Mapping[str, str], panicked: Callable[[str], None]) -> None:
        self._hosts, self._panicked = hosts, panicked

    def datagram_received(self, data: bytes, addr: Any) -> None:
        host = self._hosts.get(addr[0])
        if host is not None and data[:8] in MESSAGES:
            self._panicked(host)


def addresses(settings: Settings) -> dict[str, str]:
    """Hosts by the address from which they speak."""
    known = ((entry.address or (entry.probe or "").rsplit(":", 1)[0], entry.name) for entry in settings.hosts)
    return {address: name for address, name in known if address}


async def listen(address: str, hosts: Mapping[str, str], panicked: Callable[[str], None]) -> None:
    """Call `panicked` with each host whose crash kernel speaks, for ever. Raises BadInputError."""
    host, port = split(address)
    try:
        transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
            lambda: _Listener(hosts, panicked), local_addr=(host, port)
        )
    except OSError as error:
        raise BadInputError(f"detection.kdump_listen: {address}: {error.strerror}") from error
    try:
        await asyncio.Event().wait()
    finally:
        transport.close()
