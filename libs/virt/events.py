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

MIGRATED = (libvirt.VIR_DOMAIN_EVENT_STOPPED, libvirt.VIR_DOMAIN_EVENT_STOPPED_MIGRATED)
ACTIONS = {
    libvirt.VIR_DOMAIN_EVENT_WATCHDOG_NONE: "none",
    libvirt.VIR_DOMAIN_EVENT_WATCHDOG_PAUSE: "pause",
    libvirt.VIR_DOMAIN_EVENT_WATCHDOG_RESET: "reset",
    libvirt.VIR_DOMAIN_EVENT_WATCHDOG_POWEROFF: "poweroff",
    libvirt.VIR_DOMAIN_EVENT_WATCHDOG_SHUTDOWN: "shutdown",
    libvirt.VIR_DOMAIN_EVENT_WATCHDOG_DEBUG: "debug",
    libvirt.VIR_DOMAIN_EVENT_WATCHDOG_INJECTNMI: "inject-nmi",
}
"""What QEMU does about a guest whose watchdog fired."""


def register(loop: asyncio.AbstractEventLoop) -> None:
    """Let libvirt use this loop. Before the first connection of the process, and once."""
    libvirtaio.virEventRegisterAsyncIOImpl(loop=loop)


def watch(
    host: LibvirtHost,
    stirred: Callable[[], None],
    fired: Callable[[str, int, str], None] | None = None,
    departed: Callable[[str], None] | None = None,
) -> None:
    """Call `stirred` on the loop whenever a VM of this host changes, and after each new connection; `fired` with
    uuid, run and action where a guest's watchdog fired, which shows in no state; `departed` with the uuid of a VM that was
    migrated away, which shows in none where its definition went along."""
    loop = asyncio.get_running_loop()

    def on_event(*_: Any) -> None:
        stirred()

    def on_lifecycle(_: Any, domain: Any, event: int, detail: int, __: Any) -> None:
        if departed is not None and (event, detail) == MIGRATED:
            departed(domain.UUIDString())
        stirred()

    def on_watchdog(_: Any, domain: Any, action: int, __: Any) -> None:
        if fired is not None:
            fired(domain.UUIDString(), domain.ID(), ACTIONS.get(action, "none"))
        stirred()

    def opened(connection: Any) -> None:
        for event in (
            libvirt.VIR_DOMAIN_EVENT_ID_AGENT_LIFECYCLE,
            libvirt.VIR_DOMAIN_EVENT_ID_IO_ERROR,
            libvirt.VIR_DOMAIN_EVENT_ID_METADATA_CHANGE,
        ):
            connection.domainEventRegisterAny(None, event, on_event, None)
        connection.domainEventRegisterAny(None, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, on_lifecycle, None)
        connection.domainEventRegisterAny(None, libvirt.VIR_DOMAIN_EVENT_ID_WATCHDOG, on_watchdog, None)
        connection.registerCloseCallback(lambda *_: loop.call_soon_threadsafe(stirred), None)
        loop.call_soon_threadsafe(stirred)

    host.on_open(opened)
