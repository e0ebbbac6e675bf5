"""What the gate before libvirt held back at this boot is libvirt's again, once the agent has come through its own."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

import structlog

from libs.core.ports import Hypervisor, StartRefusedError, UnavailableError
from libs.model import HeldVm, Protection, RunLease
from services.heartbeat.orders import GaveBack

log = structlog.get_logger()


class HeldBack(Protocol):
    """Port: what is held back on this host. Every method raises UnavailableError."""

    async def held(self) -> list[HeldVm]: ...

    async def start(self, vm: HeldVm) -> None:
        """As libvirt would have at boot, its saved image resumed. No error where it runs. Raises StartRefusedError."""

    async def give_back(self, vm: HeldVm) -> None:
        """libvirt has its autostart flag again, and nothing is held back any more. No error where there is no such VM."""


class Passed(Protocol):
    """Port: what this host itself remembers of the gate."""

    async def boot(self) -> str:
        """The latest boot whose gate was passed with nothing left to stop; "" where that is not known. Raises nothing."""

    async def remember(self, boot: str) -> None:
        """Where it cannot be kept the store alone knows it. Raises nothing."""


async def any_held(port: HeldBack | None) -> bool:
    """Whether something is to be given back. What cannot be read keeps no host at its gate: it is tried after it."""
    try:
        return port is not None and bool(await port.held())
    except UnavailableError:
        return True


async def give_back(
    key: str,
    port: HeldBack,
    hypervisor: Hypervisor,
    lease_of: Callable[[str], Awaitable[RunLease | None]],
    latest: Callable[[], bool],
) -> GaveBack:
    """All of it, again from the beginning where it was broken off. A VM without a lease is nobody's but libvirt's: it
    was held back since the store did not answer then, or might have been an old copy. What is protected waits until
    it is known to be the latest (`latest`). Raises UnavailableError, also where one waits."""
    held = await port.held()
    waits = []
    for vm in held:
        report = await hypervisor.report(vm.uuid)
        if report is not None and not report.state.active and await lease_of(vm.uuid) is None:
            if report.policy.protection is not Protection.NONE and not latest():
                waits.append(vm.name)
                continue
            try:
                await port.start(vm)
            except StartRefusedError as error:
                log.warning("not started, as libvirt could not have", vm=vm.name, reason=str(error))
        await port.give_back(vm)
    if waits:
        raise UnavailableError(
            f"{', '.join(waits)}: no lease is known, and nobody leads who knows the store to be the latest"
        )
    return GaveBack(key=key, vms=tuple(vm.uuid for vm in held))
