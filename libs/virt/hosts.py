"""Warm connections to all hosts, each proven to lead to the boot that is meant.

libvirt cannot tell which boot of a host it speaks for. A heartbeat can: one that was received after the
connection was opened names the boot, and had the host rebooted since, the connection would be broken. Where none
is heard any more, time can: a host whose kernel has run for longer than it is since it was known to be in a boot
is in that boot still.
"""

from __future__ import annotations

import asyncio
import heapq
import math
from collections.abc import Iterable

import structlog

from libs.config.entries import HostEntry
from libs.core.ports import Bus, Clock, UnavailableError
from libs.events.signals import Heartbeat, Signal
from libs.model import Answer, Incarnation, VmPolicy
from libs.virt.host import LibvirtHost
from libs.virt.remote import address_of

WARM_S = 1.0
AT_ONCE = 16
"""So many connections are asked at one round in any case."""
UNANSWERED_MOST = 256
"""So many questions wait for an answer at one moment. Each has a thread of its own: of 10,000 hosts 2,600 waited on a busy
machine, and their threads took the processor from what was heard."""
LOOK_S = 0.02
RUN_SHARE, RUN_MORE_S = 0.95, 5.0
"""A kernel counts its ticks, which may be a little too many; and what names the boot may have been on its way."""
LIVES_S = 1.0
"""Two heartbeats."""
log = structlog.get_logger()


class LibvirtHosts:
    """Hypervisors over libvirt. `run` keeps the connections warm; `at` works without it, more slowly."""

    def __init__(self, hosts: Iterable[HostEntry], defaults: VmPolicy, bus: Bus, clock: Clock) -> None:
        self._bus, self._clock = bus, clock
        self._hosts = {
            host.name: LibvirtHost(
                host.name,
                host.uri,
                defaults,
                clock.monotonic,
                migrate_uri=host.migrate_uri,
                migrate_unsafe=host.migrate_unsafe,
            )
            for host in hosts
        }
        self._boots: dict[str, tuple[str, float]] = {}
        self._former: dict[str, str] = {}
        """By host the boot that spoke in its name before the one that does now."""
        self._again_at: dict[str, float] = {}
        """By host when a boot spoke again after another had."""

    async def listen(self) -> None:
        """Hear which boot each host is in."""
        await self._bus.listen(["heartbeat.*"], self.heard)

    def heard(self, signal: Signal) -> None:
        """For whoever hears the heartbeats already: to take each of them twice from the bus costs as much again."""
        if isinstance(signal, Heartbeat):
            now, (host, boot) = self._clock.monotonic(), (signal.at.host, signal.at.boot)
            before = self._boots.get(host, (boot, now))[0]
            if before != boot:
                if self._former.get(host) == boot:
                    self._again_at[host] = now
                self._former[host] = before
            self._boots[host] = (boot, now)

    def lives(self, incarnation: Incarnation) -> bool:
        """This boot and another speak in turns in the name of one host, and did a moment ago. One that was only heard a
        moment ago may have been reset since: some hosts are back within a second."""
        boot, _ = self._boots.get(incarnation.host, ("", 0.0))
        again_at = self._again_at.get(incarnation.host, -LIVES_S)
        here = incarnation.boot in (boot, self._former.get(incarnation.host))
        return here and self._clock.monotonic() - again_at < LIVES_S

    async def run(self, every_s: float = WARM_S) -> None:
        """Open what is closed, for ever, for hosts that are heard. One that answered is asked again after `every_s`,
        or when another boot of it is heard; no more are asked at one round than twice what that takes, so that thousands of
        them are spread over `every_s`: a thread for each at one moment held the loop up for seconds (1,000 hosts: 4.8 s)."""
        answered: dict[str, tuple[str, float]] = {}
        turns: dict[str, float] = {}
        asked: dict[str, asyncio.Task[None]] = {}

        def ended(task: asyncio.Task[None]) -> None:
            del asked[task.get_name()]
            over.append(task)

        over: list[asyncio.Task[None]] = []
        try:
            while True:  # one walk for all of them: a task for each would be thousands of timers a second
                now, due_now = self._clock.monotonic(), list[tuple[float, str, str]]()
                for name, (boot, heard_at) in self._boots.items():
                    # timers are late by a little: what is due with this round is not left to the next
                    before, at = answered.get(name, ("", 0.0))
                    due = before != boot or now - at >= every_s - WARM_S / 2
                    if due and now - heard_at < 2 * WARM_S and name in self._hosts and name not in asked:
                        due_now.append((turns.get(name, -math.inf), name, boot))
                # whose turn was longest ago comes first: those that do not answer hold up no others
                most = max(AT_ONCE, math.ceil(2 * len(self._boots) * WARM_S / every_s))
                for _, name, boot in heapq.nsmallest(min(most, UNANSWERED_MOST - len(asked)), due_now):
                    turns[name] = now
                    task = asyncio.create_task(self._warm(name, boot, answered), name=name)
                    asked[name] = task
                    task.add_done_callback(ended)
                await asyncio.sleep(WARM_S)
                while over:
                    over.pop().result()  # an unforeseen error is the service's crash
        finally:
            for task in list(asked.values()):
                task.cancel()

    async def _warm(self, name: str, boot: str, answered: dict[str, tuple[str, float]]) -> None:
        now = self._clock.monotonic()
        try:
            await self._hosts[name].ping(4 * WARM_S)
            answered[name] = (boot, now)
        except UnavailableError as error:
            answered.pop(name, None)
            log.info("libvirt does not answer", host=name, reason=str(error))

    async def at(self, incarnation: Incarnation, timeout_s: float) -> LibvirtHost:
        """See ports.Hypervisors.at."""
        return await self.still(incarnation, None, timeout_s)

    async def still(self, incarnation: Incarnation, known_s: float | None, timeout_s: float) -> LibvirtHost:
        """See ports.WatchedHypervisors.still."""
        known_at = None if known_s is None else self._clock.monotonic() - known_s
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
            if known_at is not None and boot in ("", incarnation.boot):
                if await self._has_run_since(host, known_at):
                    return host
                known_at = None  # it will not have run for longer in a moment
            if self._clock.monotonic() > until:
                said = f"boot {boot[:8]} is heard" if boot and at > host.opened_at else "it is not heard"
                raise UnavailableError(f"{incarnation}: cannot prove that this boot answers: {said}")
            await asyncio.sleep(LOOK_S)

    async def _has_run_since(self, host: LibvirtHost, known_at: float) -> bool:
        """True where its kernel has run since then. Of a libvirt on our own machine that says nothing: the kernel is ours."""
        if address_of(host.uri) is None:
            return False
        up_s = await host.up_s()
        return RUN_SHARE * up_s - RUN_MORE_S > self._clock.monotonic() - known_at

    async def probe(self, host: str, timeout_s: float) -> tuple[Answer, str]:
        """See ports.Hypervisors.probe."""
        found = self._hosts.get(host)
        if found is None:
            return Answer.UNKNOWN, f"no host is called {host}"
        return await found.probe(timeout_s)
