"""What the gate before libvirt held back on this host, as the agent's port: it gives it back."""

from __future__ import annotations

import asyncio
from typing import Any

import libvirt
import structlog

from libs.core.ports import StartRefusedError, UnavailableError
from libs.model import HeldVm
from libs.virt.autostart import Autostart
from libs.virt.host import START_S, UNDER_WAY, LibvirtHost

log = structlog.get_logger()
GONE = (libvirt.VIR_ERR_NO_DOMAIN, libvirt.VIR_ERR_OPERATION_INVALID)
"""There is no such VM any more, or it is not persistent any more."""


class LibvirtHeld:
    """See services.heartbeat.heldback.HeldBack."""

    def __init__(self, host: LibvirtHost, files: Autostart) -> None:
        self._host, self._files = host, files

    async def held(self) -> list[HeldVm]:
        try:
            return await asyncio.to_thread(self._files.held)
        except OSError as error:
            raise UnavailableError(f"what was held back at boot cannot be read: {error}") from error

    async def start(self, vm: HeldVm) -> None:
        def start(connection: Any) -> str:
            try:
                domain = connection.lookupByUUIDString(vm.uuid)
                if not domain.isActive():
                    domain.create()
            except libvirt.libvirtError as error:
                if not connection.isAlive() or error.get_error_code() in UNDER_WAY:
                    raise
                return str(error) or "refused without a reason"
            return ""

        refused = await self._host.call("start what was held back", start, START_S)
        if refused:
            raise StartRefusedError(f"{self._host.name}: {refused}")
        log.info("VM runs that was held back at boot: nobody has its lease", vm=vm.name)

    async def give_back(self, vm: HeldVm) -> None:
        def flag(connection: Any) -> None:
            try:
                connection.lookupByUUIDString(vm.uuid).setAutostart(1)
            except libvirt.libvirtError as error:
                if error.get_error_code() not in GONE:
                    raise

        if vm.link:
            await self._host.call("autostart", flag)
        try:
            await asyncio.to_thread(self._files.forget, vm)
        except OSError as error:
            raise UnavailableError(f"{vm.name}, held back at boot, is not given back: {error}") from error
        log.info("autostart given back", vm=vm.name)
