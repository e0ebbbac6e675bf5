"""libvirt's twin: a connection to one boot of one host, with calls that are late, hang, fail or are lost."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from random import Random
from typing import TypeVar

from libs.core.ports import Hypervisor, MoveRefusedError, StartRefusedError, UnavailableError
from libs.model import (
    Answer,
    DiskLocks,
    Health,
    Incarnation,
    Offers,
    StopReason,
    VmDefinition,
    VmReport,
    VmState,
)
from libs.sim.arrivals import Doors
from libs.sim.definitions import address_of, defined, definition, lacking
from libs.sim.hosts import Domain, Os, SimHost
from libs.sim.loop import Process, SimLoop
from libs.sim.machines import Machines
from libs.sim.network import Network

T = TypeVar("T")
CALL_S, START_S = 5.0, 30.0
QEMU_START_S, SLOW_START_S = (0.05, 0.6), (START_S, START_S + 8.0)
LOCK_S, LOCK_LOOK_S = 30.0, 0.2
LOST, LOCKED = "connection closed", "Timed out during operation: cannot acquire state change lock"
HELD = "resource busy: Lockspace resource is locked"
OBEDIENT, SHUTDOWN_S = 0.8, (0.3, 4.0)
"""Share of guests that shut down when asked, and how long they take."""
KERNEL_ALONE = "its kernel takes connections, nothing answers on them"
BUSY_S, BUSY_APART_S = (0.5, 3.5), 8.0
RUN_SHARE, RUN_MORE_S = 0.95, 5.0
"""As in libs/virt/hosts.py."""
OLD_S, BOOTED_S, FASTER = 90_000.0, 20.0, 20.0
MIGRATION_S, MIGRATED_S = (0.3, 4.0), 0.05
"""How long a live migration takes, and until it is told."""


class Trouble:
    """How kind libvirt is at the moment: shares of calls. Set by the world."""

    def __init__(self) -> None:
        self.slow_start = 0.0
        """Starts that take longer than any caller waits, and succeed."""
        self.lost_answer = 0.0
        self.refused_start = 0.0
        self.lost_reading = 0.0
        """Answers about one VM that are lost: just after a start that is all that is asked."""
        self.busy = 0.0
        """Pings that find a guest at work, so that it answers none for a moment: shorter than any silence that counts."""
        self.garbage = 0.0
        """Readings of which nobody can make sense: every state in them is unknown."""


class Virt:
    """What all connections share."""

    def __init__(self, loop: SimLoop, network: Network, machines: Machines, chance: Random) -> None:
        self.loop, self.network, self.machines, self.chance = loop, network, machines, chance
        self.trouble = Trouble()
        self.on_start: list[Callable[[SimHost, str, int], None]] = []
        """A start call was issued: host, VM, token."""
        self.on_stop: list[Callable[[SimHost, str], None]] = []
        """A stop call was issued."""
        self.doors = Doors(loop)
        """Where hosts' libvirts ask before they take a VM in."""
        self.jobs: set[tuple[Incarnation, str]] = set()
        """VMs that a boot's libvirt is about to start: of one VM it does one thing at a time."""

    def migrate(
        self,
        source: SimHost,
        target: SimHost,
        uuid: str,
        seconds: float,
        began: Callable[[int], None] = lambda run: None,
        *,
        asked: bool = True,
    ) -> None:
        """Where the target's agent lets it in, if it is `asked`; `began` is told the run that it has there, 0 where it was refused."""
        from_, to, run = source.at, target.at, source.domains[uuid].run

        def let_in(refused: str) -> None:
            there, domain = self.machines.present(to), source.domains[uuid]
            same = source.is_boot(from_) and domain.run == run and domain.state.active
            if refused or there is None or not same:
                began(0)
                return
            began(there.domains[uuid].run if self.machines.migrate(source, there, uuid, seconds) else 0)

        domain = source.domains[uuid]
        if asked:
            self.doors.ask(target, domain.spec, domain.token, let_in)
        else:
            let_in("")

    def age_s(self, host: SimHost) -> float:
        """For how long its kernel has run. The hosts of a world's beginning have run for long. Boots take seconds here
        which take a minute elsewhere, so that kernels age faster, too."""
        return FASTER * (self.loop.time() - host.booted_at) + (OLD_S if host.boots == 1 else BOOTED_S)


class SimHypervisor:
    """Hypervisor of one boot of one host, for one process."""

    def __init__(self, virt: Virt, process: Process, at: Incarnation) -> None:
        self.name = at.host
        self._virt, self._process, self._at = virt, process, at
        self._runs: dict[str, int] = {}

    def _host(self, what: str) -> SimHost:
        host = self._virt.machines.present(self._at)
        if host is None or host.os is not Os.UP:
            raise UnavailableError(f"{self._at.host}: {what}: connection closed")
        return host

    def _links(self) -> tuple[bool, bool]:
        network, here, there = self._virt.network, self._process.node, self._at.host
        if here == there:
            return True, True
        return network.reaches(here, there), network.reaches(there, here)

    async def call(self, what: str, work: Callable[[SimHost], T], timeout_s: float = CALL_S) -> T:
        """Raises UnavailableError; `work` may have been done all the same."""
        self._process.enter()
        began = self._virt.loop.time()
        await self._virt.loop.nap(self._virt.network.latency())
        self._process.enter()
        forth, back = self._links()
        present = self._virt.machines.hosts[self._at.host]
        if not forth or (present.is_boot(self._at) and (present.libvirt_hangs or present.os is Os.HUNG)):
            await self._time_out(what, began, timeout_s)
        result = work(self._host(what))
        if not back or self._virt.chance.random() < self._virt.trouble.lost_answer:
            await self._time_out(what, began, timeout_s)
        return result

    async def _time_out(self, what: str, began: float, timeout_s: float) -> None:
        await asyncio.sleep(max(0.0, began + timeout_s - self._virt.loop.time()))
        self._process.enter()
        raise UnavailableError(f"{self._at.host}: {what}: no answer in {timeout_s} s")

    # -- reading

    async def node(self) -> tuple[int, int]:
        return await self.call("node info", lambda host: (host.memory_mib, host.cpus))

    async def disk_locks(self) -> DiskLocks | None:
        return self._virt.machines.disk_locks

    async def offers(self) -> Offers | None:
        host = self._virt.machines.present(self._at)
        return None if host is None else host.offers

    async def reports(self) -> list[VmReport]:
        return await self.call(
            "list", lambda host: [self._report(host, uuid) for uuid in sorted(host.domains)]
        )

    async def report(self, uuid: str) -> VmReport | None:
        found = await self.call(
            "report", lambda host: self._report(host, uuid) if uuid in host.domains else None
        )
        lost = self._virt.trouble.lost_reading
        if lost and self._virt.chance.random() < lost:
            raise UnavailableError(f"{self._at.host}: report: connection reset")
        return found

    def _report(self, host: SimHost, uuid: str) -> VmReport:
        domain = host.domains[uuid]
        trouble = self._virt.trouble
        nonsense = trouble.garbage > 0 and self._virt.chance.random() < trouble.garbage
        if domain.state.active and not nonsense:
            self._runs[uuid] = domain.run
        shows = domain.state is VmState.PAUSED and domain.health in (Health.PANICKED, Health.IO_ERROR)
        return VmReport(
            uuid=uuid,
            name=domain.spec.name,
            state=VmState.UNKNOWN if nonsense else domain.state,
            stop_reason=StopReason.NONE if domain.state.active else domain.stop_reason,
            health=domain.health if shows and not nonsense else Health.UNKNOWN,
            agent=domain.state.active and domain.up and domain.spec.agent and not nonsense,
            destroyed=domain.destroyed and not domain.state.active,
            migrated=domain.migrated and domain.state.active,
            run=self._runs.get(uuid, 0),
            token=domain.token if domain.state.active else domain.defined,
            memory_mib=domain.spec.memory_mib,
            vcpus=domain.spec.vcpus,
            policy=domain.spec.policy,
            datastores=self._virt.machines.datastores_of(host.name, domain.spec),
        )

    async def ping_guest(self, uuid: str, timeout_s: float) -> bool:
        """See services.heartbeat.act.LocalHypervisor."""

        def ask(host: SimHost) -> bool:
            domain = host.domains.get(uuid)
            if domain is None or domain.state is not VmState.RUNNING or not (domain.up and domain.spec.agent):
                raise UnavailableError(f"{host.name}: guest ping: QEMU guest agent is not connected")
            return domain.health is Health.OK and not self._busy(domain)

        began = self._virt.loop.time()
        if await self.call("guest ping", ask):
            return True
        await asyncio.sleep(max(0.0, began + timeout_s - self._virt.loop.time()))
        self._process.enter()
        return False

    async def addresses(self, uuid: str) -> tuple[str, ...]:
        """See ports.Hypervisor: known once the guest has booted."""

        def look(host: SimHost) -> tuple[str, ...]:
            domain = host.domains.get(uuid)
            known = domain is not None and domain.state.active and domain.up
            return (address_of(domain.spec),) if known and domain is not None else ()

        return await self.call("addresses", look)

    def _busy(self, domain: Domain) -> bool:
        now, share = self._virt.loop.time(), self._virt.trouble.busy
        if share and now > domain.busy_until + BUSY_APART_S and self._virt.chance.random() < share:
            domain.busy_until = now + self._virt.chance.uniform(*BUSY_S)
        return now < domain.busy_until

    def remember_runs(self, runs: dict[str, int]) -> None:
        """See services.heartbeat.act.LocalHypervisor."""
        self._runs = {**runs, **self._runs}

    async def definitions(self) -> list[VmDefinition]:
        def read(host: SimHost) -> list[VmDefinition]:
            return [definition(host.domains[uuid].spec) for uuid in sorted(host.domains)]

        return await self.call("definitions", read, 2 * CALL_S)

    # -- acting

    async def start(self, definition: VmDefinition, token: int) -> None:
        """The request, once it has arrived, runs on the host by itself: no death of ours recalls it."""
        virt, loop = self._virt, self._virt.loop
        began = loop.time()
        answer: asyncio.Future[str] = loop.create_future()

        def arrive(host: SimHost) -> None:
            for told in virt.on_start:
                told(host, definition.uuid, token)
            slow = virt.chance.random() < virt.trouble.slow_start
            wait_s = virt.chance.uniform(*(SLOW_START_S if slow else QEMU_START_S))
            self._lock(host.at, definition, token, answer, wait_s, loop.time() + LOCK_S)

        await self.call("start", arrive, START_S)
        refused = await self._answer("start", answer, began)
        if refused in (LOST, LOCKED):
            raise UnavailableError(f"{self._at.host}: start: {refused}")
        if refused:
            lock = self._virt.machines.lock_manager if refused == HELD else ""
            raise StartRefusedError(f"{self._at.host}: {refused}", lock)

    async def _answer(self, what: str, answer: asyncio.Future[str], began: float) -> str:
        """What a call that takes its time says in the end. Raises UnavailableError."""
        if not answer.done():
            try:
                async with asyncio.timeout(max(0.0, began + START_S - self._virt.loop.time())):
                    await answer
            except TimeoutError:
                raise UnavailableError(f"{self._at.host}: {what}: no answer in {START_S} s") from None
        self._process.enter()
        return answer.result()

    def _lock(
        self,
        at: Incarnation,
        copy: VmDefinition,
        token: int,
        answer: asyncio.Future[str],
        wait_s: float,
        until: float,
    ) -> None:
        """A start waits for the one before it, and gives up after a while: that says nothing of the other."""
        virt, job = self._virt, (at, copy.uuid)
        if job not in virt.jobs:
            virt.jobs.add(job)
            virt.loop.world_later(wait_s, self._started, at, copy, token, answer)
        elif virt.loop.time() < until:
            virt.loop.world_later(LOCK_LOOK_S, self._lock, at, copy, token, answer, wait_s, until)
        elif not answer.done():
            answer.set_result(LOCKED)

    def _started(self, at: Incarnation, copy: VmDefinition, token: int, answer: asyncio.Future[str]) -> None:
        """On the host, whoever asked: QEMU begins, or does not, or hangs as long as its disks do."""
        machines, trouble = self._virt.machines, self._virt.trouble
        datastore = machines.store_of(copy.uuid)
        if datastore.stalled(at.host):
            again = functools.partial(self._started, at, copy, token, answer)
            datastore.when_back(at.host, again)
            return
        host, uuid = machines.present(at), copy.uuid
        self._virt.jobs.discard((at, uuid))
        spec = defined(machines.specs[uuid], copy)
        if host is None or host.os not in (Os.UP, Os.HUNG):
            said = LOST
        elif machines.define(host, spec, token).state.active:
            said = "domain is already running"
        elif host.fails.get(uuid, 0) > 0 or self._virt.chance.random() < trouble.refused_start:
            host.fails[uuid] = host.fails.get(uuid, 1) - 1
            said = "internal error: process exited while connecting to monitor"
        elif missing := lacking(host, copy):
            said = f"unsupported configuration: this host has no {missing}"
        elif machines.locked_out(host, uuid):
            said = HELD
        else:
            machines.specs[uuid] = spec
            machines.begin(host, spec, token)
            said = ""
        if not answer.done():
            answer.set_result(said)

    async def destroy(self, uuid: str) -> None:
        """As virDomainDestroy, which fails where QEMU does not let itself be killed (D state)."""

        def stop(host: SimHost) -> bool:
            for told in self._virt.on_stop:
                told(host, uuid)
            if host.stop_fails.get(uuid, 0) > 0:
                host.stop_fails[uuid] -= 1
                host.stop_failed.add(uuid)
                return False
            host.stop_failed.discard(uuid)
            domain = host.domains.get(uuid)
            ends = functools.partial(self._killed, host.at, uuid, domain.run if domain else 0, killed)
            store = self._virt.machines.store_of(uuid)
            if store.holds(host.name):
                store.when_back(host.name, ends)
            else:
                ends()
            return True

        began, killed = self._virt.loop.time(), self._virt.loop.create_future()
        if not await self.call("destroy", stop, START_S):
            raise UnavailableError(f"{self._at.host}: destroy: Failed to terminate process: Device busy")
        await self._answer("destroy", killed, began)

    def _killed(self, at: Incarnation, uuid: str, run: int, killed: asyncio.Future[str]) -> None:
        """On the host: a process that hangs in its disks dies when they are back."""
        host = self._virt.machines.present(at)
        if host is not None and uuid in host.domains and host.domains[uuid].run == run:
            self._virt.machines.end(host, uuid, StopReason.ON_PURPOSE, destroyed=True)
        if not killed.done():
            killed.set_result("")

    async def migrate(self, uuid: str, target: Hypervisor, timeout_s: float) -> None:
        """See ports.Hypervisor.migrate. Once it is under way no death of ours recalls it, which is the worse world: a real
        one ends with who drives it."""
        assert isinstance(target, SimHypervisor)
        virt, to = self._virt, target._at
        seconds = virt.chance.uniform(*MIGRATION_S)

        arrived: asyncio.Future[int] = virt.loop.create_future()

        def begin(host: SimHost) -> None:
            there, domain = virt.machines.present(to), host.domains.get(uuid)
            refused = virt.chance.random() < virt.trouble.refused_start
            linked = virt.network.both_ways(host.name, to.host)
            if (
                domain is None
                or domain.state is not VmState.RUNNING
                or there is None
                or refused
                or not linked
            ):
                arrived.set_result(0)
                return

            def began(run: int) -> None:
                if not arrived.done():
                    arrived.set_result(run)

            virt.migrate(host, there, uuid, seconds, began)

        await self.call("migrate", begin)
        run = await arrived  # the hook ends in time
        self._process.enter()
        if not run:
            raise MoveRefusedError(f"{self._at.host}: migrate: operation failed")
        await asyncio.sleep(min(seconds + MIGRATED_S, timeout_s))
        self._process.enter()
        there = virt.machines.present(to)
        domain = None if there is None else there.domains.get(uuid)
        if domain is None or domain.run != run or domain.state is not VmState.RUNNING:
            raise MoveRefusedError(f"{self._at.host}: migrate: it was not through")

    async def shut_down(self, uuid: str, grace_s: float) -> None:
        """See services.heartbeat.act.LocalHypervisor: most guests shut down when they are asked."""
        host = self._host("shutdown")
        for told in self._virt.on_stop:
            told(host, uuid)
        domain = host.domains.get(uuid)
        if domain is not None and domain.state is VmState.RUNNING and self._virt.chance.random() < OBEDIENT:
            run = domain.run
            await asyncio.sleep(self._virt.chance.uniform(*SHUTDOWN_S))
            self._process.enter()
            if host.domains[uuid].run == run and self._virt.machines.present(self._at) is host:
                self._virt.machines.end(host, uuid, StopReason.ON_PURPOSE)
                return
        else:
            await asyncio.sleep(grace_s)
        await self.destroy(uuid)


class SimHypervisors:
    """Connections of one process to the hosts."""

    def __init__(self, virt: Virt, process: Process) -> None:
        self._virt, self._process = virt, process
        self._open: dict[Incarnation, SimHypervisor] = {}

    async def at(self, incarnation: Incarnation, timeout_s: float) -> SimHypervisor:
        """Proven to lead to this very boot, or UnavailableError."""
        if incarnation.host not in self._virt.machines.hosts:
            raise UnavailableError(f"no host is called {incarnation.host}")
        if self._virt.machines.hosts[incarnation.host].agentless and not self._named(incarnation):
            raise UnavailableError(f"{incarnation}: cannot prove that this boot answers")
        hypervisor = self._open.get(incarnation) or SimHypervisor(self._virt, self._process, incarnation)
        await hypervisor.call("ping", lambda host: None, timeout_s)
        self._open = {at: one for at, one in self._open.items() if at.host != incarnation.host}
        self._open[incarnation] = hypervisor
        return hypervisor

    async def still(self, incarnation: Incarnation, known_s: float | None, timeout_s: float) -> SimHypervisor:
        """See ports.WatchedHypervisors. A connection that is not open yet is proven by the age of the host's kernel alone."""
        known = incarnation in self._open
        hypervisor = await self.at(incarnation, timeout_s)
        if known:
            return hypervisor
        up_s = await hypervisor.call("processor time", self._virt.age_s, timeout_s)
        if known_s is None or RUN_SHARE * up_s - RUN_MORE_S <= known_s:
            del self._open[incarnation]
            raise UnavailableError(f"{incarnation}: cannot prove that this boot answers")
        return hypervisor

    def _named(self, incarnation: Incarnation) -> bool:
        """Heartbeats say so of the boot that answers."""
        return self._virt.machines.hosts[incarnation.host].at == incarnation

    async def probe(self, host: str, timeout_s: float) -> tuple[Answer, str]:
        """One round trip to whatever boot of the host answers."""
        found = self._virt.machines.hosts.get(host)
        if found is None:
            return Answer.UNKNOWN, f"no host is called {host}"
        began = self._virt.loop.time()
        self._process.enter()
        await self._virt.loop.nap(self._virt.network.latency())
        self._process.enter()
        network = self._virt.network
        linked = self._process.node == host or network.both_ways(self._process.node, host)
        heard = linked and found.os in (Os.UP, Os.HUNG) and not network.lost()
        if heard and found.os is Os.UP and not found.libvirt_hangs:
            return Answer.UP, "libvirt answers"
        await asyncio.sleep(max(0.0, began + timeout_s - self._virt.loop.time()))
        self._process.enter()
        if heard:
            return Answer.HANGS, f"no answer in {timeout_s} s: {KERNEL_ALONE}"
        return Answer.SILENT, f"no answer in {timeout_s} s"
