"""Warm connections to all hosts, each proven to lead to the boot that is meant.

libvirt cannot tell which boot of a host it speaks for. A heartbeat can: one that was received after the
connection was opened names the boot, and had the host rebooted since, the connection would be broken.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import structlog

from libs.config.entries import HostEntry
from libs.core.ports import Bus, Clock, UnavailableError
from libs.events.signals import Heartbeat, Signal
from libs.model import Answer, Incarnation, VmPolicy
from libs.virt.host import LibvirtHost

WARM_S = 1.0
LOOK_S = 0.02
log = structlog.get_logger()


class LibvirtHosts:
    """Hypervisors over libvirt. `run` keeps the connections warm; `at` works without it, more slowly."""

    def __init__(self, hosts: Iterable[HostEntry], defaults: VmPolicy, bus: Bus, clock: Clock) -> None:
        self._bus, self._clock = bus, clock
        self._hosts = {
            host.name: LibvirtHost(host.name, host.uri, defaults, clock.monotonic) for host in hosts
        }
        self._boots: dict[str, tuple[str, float]] = {}

    async def listen(self) -> None:
        """Hear which boot each host is in."""
        await self._bus.listen(["heartbeat.*"], self.heard)

    def heard(self, signal: Signal) -> None:
        """For whoever hears the heartbeats already: to take each of them twice from the bus costs as much again."""
        if isinstance(signal, Heartbeat):
            self._boots[signal.at.host] = (signal.at.boot, self._clock.monotonic())

    async def run(self, every_s: float = WARM_S) -> None:
        """Open what is closed, for ever, for hosts that are heard. One that answered is asked again after `every_s`,
        or when another boot of it is heard."""
        await asyncio.gather(*(self._warm(host, every_s) for host in self._hosts.values()))

    async def _warm(self, host: LibvirtHost, every_s: float) -> None:
        answered: tuple[str, float] = ("", 0.0)
        while True:
            boot, heard_at = self._boots.get(host.name, ("", 0.0))
            now = self._clock.monotonic()
            # timers are late by a little: what is due with this round is not left to the next
            due = answered[0] != boot or now - answered[1] >= every_s - WARM_S / 2
            if boot and due and now - heard_at < 2 * WARM_S:
                try:
                    await host.ping(4 * WARM_S)
                    answered = (boot, now)
                except UnavailableError as error:
                    answered = ("", 0.0)
                    log.info("libvirt does not answer", host=host.name, reason=str(error))
            await asyncio.sleep(WARM_S)

    async def at(self, incarnation: Incarnation, timeout_s: float) -> LibvirtHost:
        """See ports.Hypervisors.at."""
        host = self._hosts.get(incarnation.host)
        if host is None:
            raise UnavailableError(f"no host is called {incarnation.host}")
        until = self._clock.monotonic() + timeout_s
        # a round trip: a connection to a host without power looks alive for long
        try:
            await host.ping(timeout_s)
        except UnavailableError:  # a connection to the boot before breaks at its first use: open it anew
            left_s = until - self._clock.monotonic()
            if left_s <= 0:
                raise
            await host.ping(left_s)
        while True:
            boot, at = self._boots.get(incarnation.host, ("", 0.0))
            if at > host.opened_at and boot == incarnation.boot:
                return host
            if self._clock.monotonic() > until:
                said = f"boot {boot[:8]} is heard" if boot and at > host.opened_at else "it is not heard"
                raise UnavailableError(f"{incarnation}: cannot prove that this boot answers: {said}")
            await asyncio.sleep(LOOK_S)

    async def probe(self, host: str, timeout_s: float) -> tuple[Answer, str]:
        """See ports.Hypervisors.probe."""
        found = self._hosts.get(host)
        if found is None:
            return Answer.UNKNOWN, f"no host is called {host}"
        return await found.probe(timeout_s)
