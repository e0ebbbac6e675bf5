"""Runs a scenario on the lab's real hosts and tells what happened."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from infra.lab.lab import Lab, LabHost, LabStore
from infra.lab.labvms import findable, lab_vm
from infra.lab.leaks import leaks
from infra.lab.observations import Observations
from infra.lab.plane import Plane, outlets_of
from infra.lab.procs import wait_for
from infra.lab.steps import Stage, with_ends
from infra.lab.story import last_up, untold_starts, vm_outcome
from libs.config.yamlfile import BadInputError
from libs.core.ports import UnavailableError
from libs.events.envelope import Envelope
from libs.lean import let_in
from libs.poolview import STANDBY
from libs.readmodel import Reader, reader
from libs.report import FailoverStory, failovers
from libs.scenario.model import Scenario
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
from libs.scenario.pool import ScenarioHost, ScenarioVm

if TYPE_CHECKING:
    from infra.lab.workflow import WorkflowServer

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
    plane_type: type[Plane] = Plane
    stopping: bool = False
    lab: Lab = field(init=False)
    plane: Plane = field(init=False)
    zero: datetime = field(init=False)
    workflow: WorkflowServer | None = None
    """What the pool's scale-out requests go to, where the scenario has it."""
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
        async with contextlib.AsyncExitStack() as beside:
            if self.scenario.workflow is not None:
                let_in("aiohttp")
                from infra.lab.workflow import WorkflowServer

                server = WorkflowServer(self.scenario.workflow, self._bring, self._asked)
                self.workflow = await beside.enter_async_context(server)
            building = asyncio.create_task(asyncio.to_thread(self.build))
            try:
                await asyncio.shield(building)
                async with self.playing():
                    yield
            finally:
                await self.abandon(building)

    async def _bring(self, host: str) -> None:
        """The workflow has a host: its power goes on."""
        await asyncio.to_thread(self.lab.power_on, host)

    def _asked(self, event: str, request: str) -> None:
        """The workflow heard this of a request."""
        entry = TimelineEntry(at_s=round(self._now_s(), 3), event=f"workflow.{event}", subject=request)
        self.performed.append(entry)

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
        claims = [self._claim(host) for host in self.members]
        self.say("preparing the guest; the first time, trying for up to 8 s whether KVM boots it")
        # KVM only where a guest really boots under it: /dev/kvm alone says nothing
        refusing = any(step.do == "fail_start" for step in self.scenario.steps)
        datastores = [LabStore(one.name, one.hosts) for one in self.scenario.datastores]
        self.lab = Lab.create(
            claims,
            self.root,
            kvm=None,
            hooks=refusing,
            datastores=datastores,
            lock_manager=self.scenario.lock_manager or "",
        )
        settings = self.scenario.settings
        if self.workflow is not None:
            settings = self.workflow.laid_over(settings)
        self.plane = self.plane_type(self.lab, self.scenario.hosts, settings, self.agents, self.bus_nodes)
        self.plane.write()
        self.lab.up(progress=self.say)
        for host in (*added, *(one for one in self.scenario.hosts if one.standby)):
            self.lab.power_off(host.name)  # a lab's hosts are made with it; these are off at first
        self.say("starting the management plane")
        self.plane.start()
        for vm in self.scenario.vms:
            self._go_on()
            self.say(f"starting VM {vm.name} on {vm.host}")
            self.lab.define_vm(lab_vm(vm, self._address(vm), bare=self.bare), vm.host, autostart=vm.autostart)
        for vm in self.scenario.vms:
            wait_for(partial(self._is_up, vm.name), GUEST_S, f"guest of {vm.name}", LOOK_S)

    def _address(self, vm: ScenarioVm) -> str:
        """Of its guest, with its prefix; "" of one that nobody probes."""
        return self.lab.guest_address(self.scenario.vms.index(vm)) if vm.ready else ""

    def _claim(self, host: ScenarioHost) -> LabHost:
        """One of which the file does not say it has all networks that the file names."""
        networks = self.scenario.networks if host.networks is None else host.networks
        return LabHost(host.name, host.memory_mib, host.cpus, networks, outlets_of(host))

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
                    lacking = await self.lacking(look)
                    while lacking and asyncio.get_running_loop().time() < until:
                        await asyncio.sleep(LOOK_S)
                        lacking = await self.lacking(look)
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

    async def lacking(self, look: Reader) -> str:
        """What is missing until all hosts are healthy, all VMs under a lease and all roles held; "" where nothing is."""
        hosts = [row["host"] for row in await look.hosts() if row["state"] not in ("healthy", STANDBY)]
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
        stage = Stage(
            self.lab, self.plane, tuple(findable(vm, self._address(vm)) for vm in self.scenario.vms)
        )
        self.zero = datetime.now(UTC)
        since = self.zero
        for step, told in with_ends(self.scenario.steps):
            await asyncio.sleep(max(0.0, step.at_s - self._now_s()))
            while step.once is not None and not self._told(step.once, since):  # noqa: ASYNC110  read where others write it
                await asyncio.sleep(LOOK_S)
            since = datetime.now(UTC)
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

    def _told(self, event: str, since: datetime) -> bool:
        """It was, or the time for it is over."""
        said = any(one.data.kind == event and one.time >= since for one in self.envelopes)
        return said or self._now_s() >= self.scenario.duration_s

    def _now_s(self) -> float:
        return (datetime.now(UTC) - self.zero).total_seconds()

    def _settled(self) -> bool:
        """All expectations met and nothing under way. What must never be needs the whole time."""
        if any(one.never is not None for one in self.scenario.expect) or not self.scenario.expect:
            return False
        open_ = [story for story in self.stories() if story.completed is None]
        if open_:
            return False
        now = self.outcome(secrets=False)
        untold = untold_starts(self.envelopes)
        if any(vm.state == "running" and self.lab.vm_uuid(name) in untold for name, vm in now.vms.items()):
            return False  # who waited is started after its failover was completed, and the observer sees it first
        booting = [one.host for one in now.failovers if one.all_running_s and not one.guests_up_s]
        return not booting and not now.violations

    # -- telling

    def stories(self) -> list[FailoverStory]:
        """Failovers since the scenario began."""
        return [s for s in failovers(self.envelopes) if s.confirmed and s.confirmed >= self.zero]

    def outcome(self, *, secrets: bool = True) -> Outcome:
        """The document. Ends on what the observer and the stream say at this moment. `secrets`: whether one of the bus's
        stands in any log, event or command line is looked up as well, which reads them all."""
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
        failures = self.workflow.errors if self.workflow is not None else []
        violations += [Violation(rule="workflow", at_s=end_s, detail=said) for said in failures]
        violations += unmet(self.scenario.expect, vms, hosts, told, since, end_s)
        if not self.scenario.expect:
            violations += _not_running(vms, end_s)
        for line in self.plane.refused()[:3]:
            violations.append(Violation(rule="rights", at_s=end_s, detail=line[:300]))
        if secrets:
            told_text = [envelope.model_dump_json() for envelope in self.envelopes]
            for leak in leaks(self.plane.data / "nats", self.lab.root, told_text):
                violations.append(Violation(rule="secrets", at_s=end_s, detail=leak))
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
