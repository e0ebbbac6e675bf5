"""libvirt's events on our asyncio loop: something changed on a host, so read it again.

Events are hints. They are lost while a connection is down, so every reconnect is followed by a full read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import libvirt
import libvirtaio

from libs.virt.host import LibvirtHost


def register(loop: asyncio.AbstractEventLoop) -> None:
    """Let libvirt use this loop. Before the first connection of the process, and once."""
    libvirtaio.virEventRegisterAsyncIOImpl(loop=loop)


def watch(host: LibvirtHost, stirred: Callable[[], None]) -> None:
    """Call `stirred` on the loop whenever a VM of this host changes, and after each new connection."""
    loop = asyncio.get_running_loop()

    def on_event(*_: Any) -> None:
        stirred()

    def opened(connection: Any) -> None:
        for event in (
            libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE,
            libvirt.VIR_DOMAIN_EVENT_ID_WATCHDOG,
            libvirt.VIR_DOMAIN_EVENT_ID_IO_ERROR,
            libvirt.VIR_DOMAIN_EVENT_ID_METADATA_CHANGE,
        ):
            connection.domainEventRegisterAny(None, event, on_event, None)
        connection.registerCloseCallback(lambda *_: loop.call_soon_threadsafe(stirred), None)
        loop.call_soon_threadsafe(stirred)

    host.on_open(opened)
