"""`rekindle doctor`: looks at the pool from here, hosts side by side, and says what stands in the way. Reads only."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from services.cli.app import AUTHORITY, ConfigOption, JsonOption, settings_of

if TYPE_CHECKING:  # libvirt and the rest are read only once this command is meant
    from libs.config.entries import HostEntry
    from libs.config.settings import Settings
    from libs.doctor.seen import Bus, ClockSeen, Fencing, HostSeen, Seen
    from libs.readmodel import Reader
    from libs.virt.host import LibvirtHost

LOOK_S, ASK_S, BUS_S, SLOW_S, CLOCK_S = 30.0, 30.0, 10.0, 2.0, 2.0
"""Deadlines: a whole look at a host, its answers on behalf of others, the bus; how often those who wait are told; and the
deadline of the question for a host's clock."""


def doctor(
    config: ConfigOption = None,
    as_json: JsonOption = False,
    authority: Annotated[
        Path, typer.Option("--pki", help="directory of `rekindle pki`, if there is one")
    ] = AUTHORITY,
) -> None:
    """What stands between this pool and safe failover, and what to do. Changes nothing. Exit 1 if a VM could not be restarted."""
    from libs.doctor.findings import diagnose
    from services.cli.diagnosis import show

    settings = settings_of(config)
    told = diagnose(settings, asyncio.run(look_at(settings, authority)))
    if as_json:
        sys.stdout.write(told.model_dump_json(by_alias=True, indent=2) + "\n")
    else:
        show(told)
    if not told.passed:
        raise typer.Exit(1)


async def look_at(settings: Settings, authority: Path = AUTHORITY) -> Seen:
    """Hosts, fence devices and the bus, all at once; then each host once more, about what the VMs of others need."""
    from libs.core.clock import SystemClock
    from libs.doctor.seen import Seen
    from libs.virt.host import LibvirtHost
    from libs.virt.remote import is_local
    from services.cli.trustlook import look_at_trust

    clock = SystemClock().monotonic
    libvirts = {
        host.name: LibvirtHost(
            *(host.name, host.uri, settings.vm_defaults, clock),
            threads=1,
            qemu_conf=host.qemu_conf if is_local(host.uri) else None,
        )
        for host in settings.hosts
    }
    looks = {
        f"libvirt of {name}": asyncio.ensure_future(_look(libvirt, settings))
        for name, libvirt in libvirts.items()
    }
    turns = asyncio.Semaphore(settings.fencing.parallel_max)  # in all, however many hosts there are
    powers = {
        f"fence devices of {host.name}": asyncio.ensure_future(_power(host, settings, turns))
        for host in settings.hosts
    }
    bus = asyncio.ensure_future(_bus(settings))
    trust = asyncio.ensure_future(look_at_trust(settings, authority))
    waits: dict[str, asyncio.Future[Any]] = {**looks, **powers, "the bus": bus, "certificates": trust}
    telling = asyncio.ensure_future(_tell_slow(waits))
    try:
        first = list(await asyncio.gather(*looks.values()))
        asks = {
            f"answers of {host.name}": asyncio.ensure_future(_ask(libvirts[host.name], host, first, settings))
            for host in first
        }
        waits.update(asks)
        hosts = await asyncio.gather(*asks.values())
        read = await asyncio.gather(*powers.values())
        fencing = {host.name: one for host, one in zip(settings.hosts, read, strict=True)}
        return Seen(tuple(hosts), fencing, await bus, *await trust)
    finally:
        telling.cancel()


async def _tell_slow(waits: dict[str, asyncio.Future[Any]]) -> None:
    """On standard error for whom we wait, each time that it is for others."""
    told: list[str] = []
    while True:
        await asyncio.sleep(SLOW_S)
        slow = [what for what, task in waits.items() if not task.done()]
        if slow and slow != told:
            sys.stderr.write(f"waiting for {', '.join(slow)}\n")
            sys.stderr.flush()
            told = slow


async def _look(libvirt: LibvirtHost, settings: Settings) -> HostSeen:
    from libs.core.ports import UnavailableError
    from libs.doctor.seen import HostSeen
    from libs.virt.look import look

    defaults = settings.vm_defaults
    try:
        seen = await libvirt.call("look", lambda found: look(libvirt.name, found, defaults), LOOK_S)
        return replace(seen, locks=await libvirt.disk_locks())
    except UnavailableError as error:
        return HostSeen(libvirt.name, error=f"{libvirt.uri}: {error}")


async def _ask(
    libvirt: LibvirtHost, host: HostSeen, others: Iterable[HostSeen], settings: Settings
) -> HostSeen:
    """The host, with its answers on behalf of protected VMs that run on others."""
    from libs.core.ports import UnavailableError
    from libs.doctor.vms import protected
    from libs.virt.look import Questions, answer

    if host.error:
        return host
    wants = [
        vm.wants
        for other in others
        if other.name != host.name
        for vm in other.domains
        if protected(vm) and vm.state.active
    ]
    questions = Questions(
        files=frozenset(path for one in wants for path in one.paths()),
        machines=frozenset(one.machine for one in wants),
        cpus=frozenset((one.machine, one.cpu) for one in wants if one.cpu),
    )
    try:
        answers = await libvirt.call("answers", lambda found: answer(found, questions), ASK_S)
    except UnavailableError as error:
        return replace(host, unasked=(*host.unasked, ("what the VMs of others need", str(error))))
    return replace(host, answers=answers)


async def _power(host: HostEntry, settings: Settings, turns: asyncio.Semaphore) -> Fencing:
    """One reading of each device, a host after the other where there are many: a wait would count into its deadline."""
    from libs.config.yamlfile import BadInputError
    from libs.doctor.seen import Device, Fencing
    from libs.power.devices import agent_devices

    try:
        devices = agent_devices([host], settings.fencing)[host.name]
    except BadInputError as error:
        return Fencing(bad=str(error))
    async with turns:
        readings = await asyncio.gather(*(device.status(device.timeout_s) for device in devices))
    return Fencing(
        tuple(
            Device(device.name, device.level, state, said)
            for device, (state, said) in zip(devices, readings, strict=True)
        )
    )


async def _clocks(reader: Reader, settings: Settings) -> dict[str, ClockSeen]:
    """Each agent is asked what time it is there; whoever does not say is left out."""
    from libs.core.clock import SystemClock
    from libs.core.ports import UnavailableError
    from libs.doctor.seen import ClockSeen
    from libs.events.signals import Question, Reply

    def here() -> float:
        return SystemClock().wall().timestamp()

    async def ask(host: str) -> ClockSeen | None:
        sent = here()
        try:
            reply = await reader.bus.ask(f"ask.{host}", Question(about="", clock=True), CLOCK_S)
        except UnavailableError:
            return None
        heard = here()
        told = reply.wall_s if isinstance(reply, Reply) else None
        return None if told is None else ClockSeen.read(sent, told, heard)

    names = [host.name for host in settings.hosts if host.agent]
    found = zip(names, await asyncio.gather(*map(ask, names)), strict=True)
    return {name: clock for name, clock in found if clock is not None}


async def _bus(settings: Settings) -> Bus:
    """What only the plane knows. It need not run."""
    from libs import readmodel
    from libs.config.yamlfile import BadInputError
    from libs.core.ports import UnavailableError
    from libs.doctor.seen import Bus, HostOnBus
    from libs.jetstream.connection import BusRefusedError
    from libs.jetstream.schema import WrongStreamError
    from services.cli.app import SERVICES
    from services.cli.tables import closed

    try:
        async with asyncio.timeout(BUS_S), readmodel.reader(settings) as reader:
            hosts, inventories, held = (
                await reader.hosts(),
                await reader.inventories(),
                await reader.leaders(),
            )
            copies = await reader.store("definitions").scan("")
            clocks = await _clocks(reader, settings)
    except (BadInputError, UnavailableError, BusRefusedError, WrongStreamError) as error:
        return Bus(error=str(error))
    except TimeoutError:
        return Bus(error=f"no answer in {BUS_S:g} s")
    known = {}
    for row in hosts:
        inventory = inventories.get(row["host"])
        known[row["host"]] = HostOnBus(
            row["state"],
            closed(row),
            () if inventory is None else inventory.vms,
            None if inventory is None else inventory.locks,
            clocks.get(row["host"]),
            row["watchdog_s"],
            None if inventory is None else inventory.asks,
        )
    vacant = tuple(role for role in SERVICES if role != "heartbeat" and role not in held)
    return Bus(hosts=known, definitions=frozenset(row.key for row in copies), vacant=vacant)
