"""One run: a NATS server, a detector as a process of its own, so many agents, and what all of that took."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample as MetricSample

from infra.load.wire import SimAgent
from libs.core.clock import SystemClock
from libs.core.ports import UnavailableError
from libs.jetstream.bus import NatsBus, open_bus
from libs.jetstream.schema import Names, ensure
from libs.jetstream.server import EmbeddedServer, free_port
from libs.jetstream.store import JetStreamStore

POOL = "load"
INVENTORY_EVERY_S = 5.0
SAMPLE_S = 1.0
CONNECT_AT_ONCE = 200
JOIN_S, QUIET_S = 1800.0, 10.0
PROFILED = """\
import cProfile, sys, time
from services.cli.__main__ import main
to, profile = sys.argv.pop(1), cProfile.Profile(time.process_time)
try:
    profile.runcall(main)
finally:
    profile.dump_stats(to)
"""
"""By processor time: how long others had the processor is not in it."""
METRICS_S, AGAIN_S, STOP_S = 120.0, 0.5, 60.0
TICKS = os.sysconf("SC_CLK_TCK")
PAGE_MIB = os.sysconf("SC_PAGE_SIZE") / 2**20


@dataclass(frozen=True, slots=True)
class Spent:
    """What one process has had so far: processor seconds, seconds in which it could have gone on and was given no processor,
    and its resident memory."""

    ran_s: float
    waited_s: float
    mib: float


@dataclass(frozen=True, slots=True)
class Sample:
    """At one moment: seconds since the run began, heartbeats that the detector has taken, the worst lag of its loop of
    late, and processor seconds so far."""

    at_s: float
    detector: Spent
    server: Spent
    heard: float
    lag_s: float
    machine_s: float
    """Of all processors and whoever used them."""


@dataclass(slots=True)
class Result:
    """`rekindle.load.v1`."""

    agents: int
    every_s: float
    seconds: float
    vms_a_host: int
    joined_s: float = 0.0
    """Until the detector had joined all hosts."""
    settled_s: float = 0.0
    """Until all of that was told, and nothing more."""
    sent: int = 0
    heard: int = 0
    detector_us: float = 0.0
    """Microseconds of its own processor time for each heartbeat that it took, with all else that it did meanwhile: by the
    kernel's count of this process alone, whoever else used the machine."""
    detector_cores: float = 0.0
    """What it needs at this rate: `detector_us` for each heartbeat that is due."""
    detector_had_cores: float = 0.0
    """Processor seconds that it was given, a second of wall clock. Less than it needs where it was starved."""
    detector_waited: float = 0.0
    """Share of the time in which it could have gone on and was given no processor."""
    others_cores: float = 0.0
    """Processor seconds a second that went to who has no part in this: neither detector, server nor agents."""
    detector_mib: float = 0.0
    """In the end."""
    growth_mib_per_million: float = 0.0
    """Slope of its memory over the second half of the run, for each million of heartbeats."""
    server_cores: float = 0.0
    server_mib: float = 0.0
    generator_cores: float = 0.0
    lag_worst_s: float = 0.0
    facts: dict[str, int] = field(default_factory=dict)
    """What the detector told while it was measured: nothing, where it keeps up."""
    lost: int = 0
    """Connections of agents that the server ended."""
    proof_s: float = 0.0
    """In the end one agent falls silent: until it was suspected."""
    samples: list[Sample] = field(default_factory=list)


def spent(pid: int) -> Spent:
    """Of a process; the wait is its main thread's. Raises OSError."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    resident = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    waited_ns = int(Path(f"/proc/{pid}/schedstat").read_text().split()[1])
    return Spent((int(fields[11]) + int(fields[12])) / TICKS, waited_ns / 1e9, resident * PAGE_MIB)


def machine() -> float:
    """Processor seconds that anybody has had since the machine began."""
    words = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    user, nice, system, _idle, _io, irq, soft, _steal = (int(word) for word in words)
    return (user + nice + system + irq + soft) / TICKS


def metrics(port: int) -> list[MetricSample]:
    """All that /metrics says. Raises OSError."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    return [sample for family in text_string_to_metric_families(text) for sample in family.samples]


def facts(samples: Iterable[MetricSample]) -> Counter[str]:
    """Facts that were told, by kind."""
    told = [one for one in samples if one.name == "rekindle_facts_total"]
    return Counter({one.labels["kind"]: int(one.value) for one in told})


def reckon(result: Result) -> None:
    """What follows from the samples: needs two at least, and a heartbeat in between."""
    first, last = result.samples[0], result.samples[-1]
    passed_s, ran_s = last.at_s - first.at_s, last.detector.ran_s - first.detector.ran_s
    us = 1e6 * ran_s / (last.heard - first.heard)
    result.detector_us = round(us, 1)
    result.detector_cores = round(us * result.agents / result.every_s / 1e6, 3)
    result.detector_had_cores = round(ran_s / passed_s, 3)
    result.detector_waited = round((last.detector.waited_s - first.detector.waited_s) / passed_s, 3)
    server = (last.server.ran_s - first.server.ran_s) / passed_s
    result.server_cores = round(server, 3)
    everybody = (last.machine_s - first.machine_s) / passed_s
    ours = ran_s / passed_s + server + result.generator_cores
    result.others_cores = round(max(0.0, everybody - ours), 3)
    result.detector_mib, result.server_mib = round(last.detector.mib, 1), round(last.server.mib, 1)
    half = result.samples[len(result.samples) // 2 :]
    if len(half) > 2:
        slope, _ = statistics.linear_regression(
            [one.heard / 1e6 for one in half], [one.detector.mib for one in half]
        )
        result.growth_mib_per_million = round(slope, 3)


async def _stored(store: JetStreamStore, agent: SimAgent) -> None:
    """As an agent does it: again until it is known to be stored."""
    row = agent.inventory.model_dump_json().encode()
    while True:
        try:
            await store.put(agent.host, row, None)
            return
        except UnavailableError:
            await asyncio.sleep(0.2)


@dataclass(slots=True)
class Load:
    """One run below a directory of its own. `say` is told how far it is."""

    directory: Path
    agents: int
    seconds: float
    every_s: float = 1.0
    vms: int = 4
    profile: bool = False
    say: Callable[[str], None] = lambda _: None
    port: int = field(default_factory=free_port)
    _all: list[SimAgent] = field(default_factory=list)
    _beating: asyncio.Task[None] | None = None
    _connecting: set[asyncio.Task[None]] = field(default_factory=set)
    _doors: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(CONNECT_AT_ONCE))
    _silent: str = ""
    _process: subprocess.Popen[bytes] | None = None

    async def play(self) -> Result:
        """Raises TimeoutError where not all hosts join."""
        result = Result(self.agents, self.every_s, self.seconds, self.vms)
        server = EmbeddedServer(self.directory / "nats")
        await server.start()
        assert server.process is not None
        try:
            self._all = [SimAgent(f"h{number}", POOL, self.vms, server.url) for number in range(self.agents)]
            # before they connect: as long as that takes with 10,000 they would leave the server's pings unanswered
            self._config()
            async with self._onlooker(server.url) as onlooker:
                await self._connect(onlooker)
                self._beating = asyncio.create_task(self._beat())
                with self._detector() as detector:
                    await self._measure(result, detector.pid, server.process.pid)
        finally:
            if self._beating is not None:
                self._beating.cancel()
            for connecting in self._connecting:
                connecting.cancel()
            for agent in self._all:
                agent.close()
            await server.stop()
        return result

    @contextlib.asynccontextmanager
    async def _onlooker(self, url: str) -> AsyncIterator[NatsBus]:
        async def closed() -> None:
            return None

        bus = await open_bus([url], POOL, "load", SystemClock(), "load", closed=closed)
        await ensure(bus.client.jetstream(timeout=5), POOL)
        try:
            yield bus
        finally:
            with contextlib.suppress(OSError):
                await bus.client.close()

    # -- the agents

    async def _connect(self, onlooker: NatsBus) -> None:
        store = JetStreamStore(onlooker.client, Names(POOL), "inventory")
        for first in range(0, self.agents, CONNECT_AT_ONCE):
            some = self._all[first : first + CONNECT_AT_ONCE]
            for agent in some:
                await agent.connect()
            await asyncio.gather(*(_stored(store, agent) for agent in some))
        self.say(f"{self.agents} agents are connected, their inventories stored")

    async def _beat(self) -> None:
        """Each once in `every_s`, evenly spread, however late this process is."""
        loop = asyncio.get_running_loop()
        began, turn, every = loop.time(), 0, max(1, round(INVENTORY_EVERY_S / self.every_s))
        while True:
            due = int((loop.time() - began) / self.every_s * self.agents)
            while turn < due:
                agent = self._all[turn % self.agents]
                if agent.lost:  # this process was held up, and answered no ping of the server: as a real one it comes back
                    self._back(agent)
                if agent.host != self._silent:
                    agent.beat(inventory=(turn // self.agents + turn) % every == 0)
                turn += 1
            await asyncio.sleep(0.01)

    def _back(self, agent: SimAgent) -> None:
        agent.lost = False
        task = asyncio.create_task(self._again(agent))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    async def _again(self, agent: SimAgent) -> None:
        async with self._doors:
            try:
                await agent.connect()
            except OSError:
                agent.lost = True  # and tried again at its next turn

    # -- the detector

    def _config(self) -> None:
        """What the detector is told of the pool."""
        pool = {
            "pool": POOL,
            "detection": {
                # as in the profile careful, by the heartbeat's interval
                "suspect_after_s": 4 * self.every_s,
                "confirm_witnessed_s": 6 * self.every_s,
                "confirm_silence_s": 16 * self.every_s,
                "confirm_hung_s": 60 * self.every_s,
                "deaf_period_s": 4 * self.every_s,
            },
            "data_dir": str(self.directory),
            "hosts": [{"name": one.host, "uri": "test:///default", "agent": True} for one in self._all],
            "datastores": [{"name": "shared", "path": str(self.directory)}],
            "heartbeats": {"interval_s": self.every_s},
            "health": {"ports": {"detector": self.port}},
        }
        config = self.directory / "pool.yaml"
        config.write_text(json.dumps(pool))  # which YAML reads

    @contextlib.contextmanager
    def _detector(self) -> Iterator[subprocess.Popen[bytes]]:
        config = self.directory / "pool.yaml"
        words = ["-m", "services.cli", "service", "detector", "--config", str(config)]
        if self.profile:
            words = ["-c", PROFILED, str(self.directory / "profile"), *words[2:]]
        with (self.directory / "detector.log").open("ab") as log:
            process = self._process = subprocess.Popen([sys.executable, *words], stdout=log, stderr=log)
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:  # it has nothing to lose, and what was measured is measured
                process.kill()
                process.wait()

    async def _measure(self, result: Result, detector: int, server: int) -> None:
        began = time.monotonic()
        await self._until(lambda told: told["host.joined"] >= self.agents, JOIN_S)
        result.joined_s = round(time.monotonic() - began, 1)
        self.say(f"all have joined after {result.joined_s:.1f} s")
        told = await self._quiet()
        result.settled_s = round(time.monotonic() - began, 1)
        self.say(f"nothing more is told after {result.settled_s:.1f} s")
        before_sent = sum(agent.seq for agent in self._all)
        before_lost = sum(agent.losses for agent in self._all)
        zero, mine = time.monotonic(), time.process_time()
        while not result.samples or result.samples[-1].at_s < self.seconds:
            await asyncio.sleep(SAMPLE_S)
            result.samples.append(await self._sample(zero, detector, server))
        first, last = result.samples[0], result.samples[-1]
        passed_s = last.at_s - first.at_s
        result.sent = sum(agent.seq for agent in self._all) - before_sent
        result.heard = round((last.heard - first.heard) * last.at_s / passed_s)
        result.generator_cores = round((time.process_time() - mine) / last.at_s, 3)
        reckon(result)
        result.lag_worst_s = round(max(one.lag_s for one in result.samples), 3)
        result.facts = dict(await self._told() - told)
        result.lost = sum(agent.losses for agent in self._all) - before_lost
        await self._proof(result)

    async def _quiet(self) -> Counter[str]:
        """What was told, once that has been all for a while: joins are told again where the start broke their telling off."""
        until, told, since = time.monotonic() + JOIN_S, await self._told(), time.monotonic()
        while time.monotonic() - since < QUIET_S + 3 * self.every_s:
            await asyncio.sleep(AGAIN_S)
            now = await self._told()
            if now != told:
                told, since = now, time.monotonic()
            if time.monotonic() > until:
                raise TimeoutError(f"there is always more that is told: {dict(told)}")
        return told

    async def _sample(self, zero: float, detector: int, server: int) -> Sample:
        told = {one.name: one.value for one in await self._metrics()}
        heard, lag_s = told["rekindle_heartbeats_total"], told["rekindle_loop_lag_seconds"]
        return Sample(time.monotonic() - zero, spent(detector), spent(server), heard, lag_s, machine())

    async def _proof(self, result: Result) -> None:
        """One agent falls silent: a detector that had seen nothing all the time would not see it."""
        before = (await self._told())["host.suspected"]
        self._silent, began = self._all[self.agents // 2].host, time.monotonic()
        await self._until(lambda told: told["host.suspected"] > before, 30.0 + 10 * self.every_s)
        result.proof_s = round(time.monotonic() - began, 1)

    async def _told(self) -> Counter[str]:
        """Facts that the detector has stored, by kind."""
        return facts(await self._metrics())

    async def _metrics(self) -> list[MetricSample]:
        """Asked again where it is too busy to answer in the two seconds that it gives a request, or has just begun. Raises
        OSError where it never does, RuntimeError with the end of its log where it has ended."""
        until = time.monotonic() + METRICS_S
        log = self.directory / "detector.log"
        while True:
            try:
                return await asyncio.to_thread(metrics, self.port)
            except OSError:
                if self._process is not None and self._process.poll() is not None:
                    raise RuntimeError(f"the detector has ended: {log.read_text()[-1500:]}") from None
                if time.monotonic() > until:
                    raise
            await asyncio.sleep(AGAIN_S)

    async def _until(self, there: Callable[[Counter[str]], bool], within_s: float) -> None:
        until, told = time.monotonic() + within_s, Counter[str]()
        while not there(told):
            if self._beating is not None and self._beating.done():
                self._beating.result()
            if time.monotonic() > until:
                raise TimeoutError(f"not after {within_s:g} s; told so far: {dict(told)}")
            await asyncio.sleep(AGAIN_S)
            told = await self._told()
