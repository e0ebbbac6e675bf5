"""Runs a scenario on the lab's real hosts and tells what happened."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from infra.lab.lab import Lab, LabHost, LabStore, LabVm
from infra.lab.observations import Observations
from infra.lab.plane import Plane, policy_metadata
from infra.lab.procs import wait_for
from infra.lab.steps import Stage, with_ends
from infra.lab.story import last_up, vm_outcome
from libs.config.yamlfile import BadInputError
from libs.core.ports import UnavailableError
from libs.events.envelope import Envelope
from libs.readmodel import Reader, reader
from libs.report import FailoverStory, failovers
from libs.scenario.model import Scenario, ScenarioHost, ScenarioVm
from libs.scenario.outcome import (
    FailoverOutcome,
    Outcome,
    TimelineEntry,
    Violation,
    VmOutcome,
    failover_outcomes,
    host_outcomes,
    seconds,
    timeline,
    unmet,
)
from libs.virt.definition import OVERHEAD_MIB

READY_S, GUEST_S = 90.0, 90.0
LOOK_S = 0.1
SETTLE_S = 1.5
FAILURES = ("power_off", "crash", "hang", "reboot")
Heard = Callable[[Envelope], None]
Say = Callable[[str], None]


class RunFailedError(Exception):
    """The lab or the plane did not come so far that the scenario could begin."""


@dataclass(slots=True)
class LabRun:
    """One scenario in one lab. `heard` is told each fact as it comes, `say` what is being done."""

    scenario: Scenario
    root: Path
    say: Say = lambda _: None
    heard: Heard = lambda _: None
    agents: bool = True
    keep: bool = False
    bus_nodes: int = 1
    """1 or 3: see Plane."""
    bare: bool = False
    """Guests that nothing is asked of have no operating system: they are up in 0.2 s of CPU instead of 3."""
    stopping: bool = False
    lab: Lab = field(init=False)
    plane: Plane = field(init=False)
    zero: datetime = field(init=False)
    members: tuple[ScenarioHost, ...] = ()
    """All hosts, those included that a step adds."""
    envelopes: list[Envelope] = field(default_factory=list)
    performed: list[TimelineEntry] = field(default_factory=list)
    occurred: dict[str, float] = field(default_factory=dict)

    async def run(self) -> Outcome:
        """Build, play, observe, take down; also after an error or Ctrl-C. Raises RunFailedError."""
        async with self.standing():
            await self.play()
            await asyncio.to_thread(self.lab.stop_observer)
            return await asyncio.to_thread(self.outcome)

    @contextlib.asynccontextmanager
    async def standing(self) -> AsyncIterator[None]:
        """Built, known to the plane, its facts followed; taken down in the end. Raises RunFailedError."""
        building = asyncio.create_task(asyncio.to_thread(self.build))
        try:
            await asyncio.shield(building)
            async with self.playing():
                yield
        finally:
            await self.abandon(building)

    async def abandon(self, building: asyncio.Task[None]) -> None:
        """Let the build end, which runs in a thread and cannot be cancelled, then take everything down."""
        self.stopping = True
        if not building.done():
            self.say("taking the lab down")
            await asyncio.wait([building])
        if not building.cancelled():
            building.exception()  # told already, or of no interest now
        await asyncio.to_thread(self.take_down)

    def build(self) -> None:
        """Hosts up, agents and plane started, VMs running, guests up."""
        added = [ScenarioHost.model_validate(s.host) for s in self.scenario.steps if s.do == "add_host"]
        self.members = (*self.scenario.hosts, *added)
        claims = [LabHost(host.name, host.memory_mib, host.cpus) for host in self.members]
        self.say("preparing the guest; the first time, trying for up to 8 s whether KVM boots it")
        # KVM only where a guest really boots under it: /dev/kvm alone says nothing
        refusing = any(step.do == "fail_start" for step in self.scenario.steps)
        datastores = [LabStore(one.name, one.hosts) for one in self.scenario.datastores]
        self.lab = Lab.create(claims, self.root, kvm=None, hooks=refusing, datastores=datastores)
        self.plane = Plane(self.lab, self.scenario.hosts, self.scenario.settings, self.agents, self.bus_nodes)
        self.plane.write()
        self.lab.up(progress=self.say)
        for host in added:  # a lab's hosts are made with it; one that is added later is off until then
            self.lab.power_off(host.name)
        self.say("starting the management plane")
        self.plane.start()
        for vm in self.scenario.vms:
            self._go_on()
            self.say(f"starting VM {vm.name} on {vm.host}")
            self.lab.define_vm(lab_vm(vm, bare=self.bare), vm.host, autostart=vm.autostart)
        for vm in self.scenario.vms:
            wait_for(partial(self._is_up, vm.name), GUEST_S, f"guest of {vm.name}", LOOK_S)

    def _go_on(self) -> None:
        if self.stopping:
            raise RunFailedError("stopped while it was being built")

    def _is_up(self, name: str) -> bool:
        self._go_on()
        return self.lab.guest_up_count(name) > 0

    def take_down(self) -> None:
        """Nothing is left afterwards; also where the build never came far."""
        if hasattr(self, "plane"):
            self.plane.stop()
            if self.bus_nodes > 1:
                self.plane.bus.stop()
        if hasattr(self, "lab"):
            self.lab.down(keep_logs=self.keep)

    @contextlib.asynccontextmanager
    async def playing(self) -> AsyncIterator[None]:
        """Wait until everything is known to the plane, then follow its facts."""
        self.say("waiting until all hosts and VMs are known")
        await self.ready()
        following = asyncio.create_task(self._follow())
        try:
            yield
        finally:
            following.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await following

    async def ready(self) -> None:
        """Wait until every host is healthy, every VM under a lease, every role held. Raises RunFailedError."""
        until = asyncio.get_running_loop().time() + READY_S
        lacking = "the bus does not answer"
        while asyncio.get_running_loop().time() < until:
            if not self.plane.alive():
                raise RunFailedError(f"the management plane ended: {self.plane.tail()}")
            try:
                async with reader(self.plane.settings()) as look:
                    lacking = await self._lacking(look)
                    while lacking and asyncio.get_running_loop().time() < until:
                        await asyncio.sleep(LOOK_S)
                        lacking = await self._lacking(look)
                if not lacking:
                    return
            except (UnavailableError, BadInputError) as error:  # its address is not written yet
                lacking = str(error)
            await asyncio.sleep(LOOK_S)
        raise RunFailedError(
            f"not ready after {READY_S:.0f} s: {lacking}; {self.plane.tail()}{self._agents_say()}"
        )

    def _agents_say(self) -> str:
        """The end of what each agent wrote, for a message."""
        logs = [(host.name, self.lab.host(host.name).agent_log) for host in self.scenario.hosts]
        return "".join(f"\nagent of {name}: {log.read_text()[-600:]}" for name, log in logs if log.exists())

    async def _lacking(self, look: Reader) -> str:
        hosts = [row["host"] for row in await look.hosts() if row["state"] != "healthy"]
        if hosts:
            return f"not healthy: {', '.join(hosts)}"
        known = {row["vm"] for row in await look.vms() if row["token"]}
        missing = sorted({vm.name for vm in self.scenario.vms} - known)
        if missing:
            return f"without a run lease: {', '.join(missing)}"
        roles = {"detector", "fencer", "placement", "executor", "alerting"} - set(await look.leaders())
        return f"vacant: {', '.join(sorted(roles))}" if roles else ""

    async def _follow(self) -> None:
        after = 0
        while True:
            try:
                async with reader(self.plane.settings()) as look:
                    async for sequence, envelope in look.events(follow=True, after=after):
                        after = sequence
                        self.envelopes.append(envelope)
                        self.heard(envelope)
            except UnavailableError:
                await asyncio.sleep(LOOK_S)

    # -- playing

    async def play(self) -> None:
        """Do the steps at their times, then wait until all is as expected, or the time is over."""
        stage = Stage(self.lab, self.plane, self.scenario.vms)
        self.zero = datetime.now(UTC)
        for step, told in with_ends(self.scenario.steps):
            await asyncio.sleep(max(0.0, step.at_s - self._now_s()))
            at_s = round(self._now_s(), 3)
            self.say(f"{step.do} {step.subject}")
            if told:
                self.performed.append(TimelineEntry(at_s=at_s, event=f"step.{step.do}", subject=step.subject))
            if step.do in FAILURES:
                self.occurred[str(step.host)] = at_s
            await asyncio.to_thread(stage.perform, step)
        settled_since: float | None = None
        while self._now_s() < self.scenario.duration_s:
            await asyncio.sleep(LOOK_S)
            if not await asyncio.to_thread(self._settled):
                settled_since = None
            elif settled_since is None:
                settled_since = self._now_s()
            elif self._now_s() - settled_since > SETTLE_S:
                return

    def _now_s(self) -> float:
        return (datetime.now(UTC) - self.zero).total_seconds()

    def _settled(self) -> bool:
        """All expectations met and nothing under way. What must never be needs the whole time."""
        if any(one.never is not None for one in self.scenario.expect) or not self.scenario.expect:
            return False
        open_ = [story for story in self.stories() if story.completed is None]
        if open_:
            return False
        now = self.outcome()
        booting = [one.host for one in now.failovers if one.all_running_s and not one.guests_up_s]
        return not booting and not now.violations

    # -- telling

    def stories(self) -> list[FailoverStory]:
        """Failovers since the scenario began."""
        return [s for s in failovers(self.envelopes) if s.confirmed and s.confirmed >= self.zero]

    def outcome(self) -> Outcome:
        """The document. Ends on what the observer and the stream say at this moment."""
        observed, end = self.lab.observations(), datetime.now(UTC)
        waiting = {vm.name for s in self.stories() for vm in s.vms.values() if vm.state == "waiting"}
        vms: dict[str, VmOutcome] = {}
        since: dict[str, float] = {}
        for vm in self.scenario.vms:
            uuid = self.lab.vm_uuid(vm.name)
            vms[vm.name], up = vm_outcome(uuid, vm.name, observed, self.zero, end, vm.name in waiting)
            up_s = seconds(self.zero, up)
            if up_s is not None:
                since[vm.name] = up_s
        names = {self.lab.vm_uuid(vm.name): vm.name for vm in self.scenario.vms}
        told = [one for one in timeline(self.envelopes, self.zero, names) if one.at_s >= 0]
        hosts = host_outcomes(told, [host.name for host in self.members])
        double_s = observed.summary.double_s if observed.summary else 0.0
        violations = []
        if double_s > 0 or (observed.summary and observed.summary.sightings):
            violations.append(Violation(rule="1", at_s=self._now_s(), detail=f"ran twice for {double_s} s"))
        end_s = round(self._now_s(), 3)
        violations += unmet(self.scenario.expect, vms, hosts, told, since, end_s)
        if not self.scenario.expect:
            violations += _not_running(vms, end_s)
        return Outcome(
            scenario=self.scenario.name,
            world="lab",
            passed=not violations,
            double_running_s=double_s,
            violations=tuple(violations),
            vms=vms,
            hosts=hosts,
            failovers=tuple(self._failovers(observed)),
            timeline=tuple(sorted([*self.performed, *told], key=lambda entry: entry.at_s)),
            observer=_rates(observed),
        )

    def _failovers(self, observed: Observations) -> list[FailoverOutcome]:
        found = []
        stories = [s for s in self.stories() if s.fenced or not s.incident.startswith("vm-")]
        for story, one in zip(stories, failover_outcomes(stories, self.zero), strict=True):
            names = [vm.name for vm in story.vms.values()]
            up = last_up(observed.guests, names, story.confirmed) if names and story.confirmed else None
            update = {"occurred_s": self.occurred.get(story.host), "guests_up_s": seconds(self.zero, up)}
            found.append(one.model_copy(update=update))
        return found


def lab_vm(vm: ScenarioVm, *, bare: bool = False) -> LabVm:
    """What a VM occupies, as the scenario says it, includes its hypervisor's overhead. One that panics keeps its QEMU, as
    the simulator's do: to restart it takes an eviction, while libvirt itself turns the other sort into a crash."""
    return LabVm(
        vm.name,
        vm.memory_mib - OVERHEAD_MIB,
        vm.vcpus,
        metadata=policy_metadata(vm),
        datastore=vm.datastore or "",
        guest_agent=vm.agent,
        on_crash="preserve",
        bare=bare and not vm.agent,
    )


def _not_running(vms: dict[str, VmOutcome], end_s: float) -> list[Violation]:
    """Without expectations, every VM must run in the end."""
    return [
        Violation(rule="expect", at_s=end_s, detail=f"VM {name} is {vm.state}")
        for name, vm in vms.items()
        if vm.state != "running"
    ]


def _rates(observed: Observations) -> dict[str, float]:
    if observed.summary is None:
        return {}
    lowest = [rate["lowest_hz"] for rate in observed.summary.hosts.values() if rate.get("lowest_hz")]
    samples = [rate["samples"] for rate in observed.summary.hosts.values()]
    return {"lowest_hz": min(lowest, default=0.0), "samples": float(sum(samples))}
