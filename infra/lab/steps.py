"""What the steps of a scenario do to the lab's real parts."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from infra.lab import network, stores, weather
from infra.lab.cuts import BUS
from infra.lab.lab import Lab, LabError
from infra.lab.plane import Plane, policy_element
from infra.lab.refusals import refusals
from infra.lab.stepnotes import BREAKS, NOTES, WHY_NOT
from infra.lab.weather import FAIR, LONGEST_S, Weather
from libs.config.yamlfile import BadInputError, line_of, read
from libs.model import Protection
from libs.scenario.files import load_scenario
from libs.scenario.model import STEPS as MODEL_STEPS
from libs.scenario.model import STORAGE_STEPS, Scenario, StepEntry
from libs.scenario.pool import ScenarioHost, ScenarioVm
from libs.virt.definition import POLICY_NS

MANAGEMENT = "management"
INSIDE = ("guest_panic", "guest_silent", "guest_watchdog")
"""Steps that need a guest of the flavour that has an agent."""


def load(path: Path) -> Scenario:
    """A scenario that can be played here. Raises BadInputError with file, line, field and reason."""
    scenario = load_scenario(path, None, problem)
    wrong = next(refusals(scenario), None)
    if wrong is not None:
        where, reason = wrong
        line = line_of(read(path)[1], where)
        said = (f"line {line}: " if line else "") + ".".join(str(part) for part in where)
        raise BadInputError(f"{path}: {said}: {reason}")
    return scenario


def problem(scenario: Scenario, step: StepEntry) -> tuple[str, str] | None:
    """What makes a step impossible here: field and reason; None where nothing does."""
    if step.do not in POSSIBLE:
        why = WHY_NOT.get(step.do, "the lab has no part that could show it yet")
        return "do", f"{step.do} is not possible here: {why}"
    if step.do in ("kill_service", "pause_service", "resume_service"):
        if step.service == "heartbeat":
            return "service", f"{step.do} is for services of the plane; for agents there is kill_agent"
        if step.service == "plane":
            return "service", "the whole plane can be lost in the simulator only"
        if step.replica > 0:
            return "replica", "the lab runs one replica of each service, 0"
    if step.do in ("kill_service", "kill_agent") and step.count is not None:
        return "count", f"{step.do} at the so-manieth call is possible in the simulator only"
    if step.do == "reboot" and step.how == "fast":
        return "how", "a fast reboot is possible in the simulator only"
    if step.do in ("kill_bus", "start_bus") and step.node > 0:
        return "node", "the lab's bus has one node, 0"
    if step.do in ("break_fencing", "mend_fencing") and step.method == "watchdog":
        return "method", "a watchdog can be broken in the simulator only"
    if step.do == "break_fencing" and step.how not in BREAKS:
        return "how", f"a device can be broken by {', '.join(BREAKS)}"
    if step.do == "fail_start" and os.getuid() != 0:
        return "do", "fail_start needs root: only then have the lab's hosts a libvirt hook of their own"
    if step.do == "partition":
        return _partition_problem(scenario, step)
    if step.do in ("loss", "delay"):
        return _weather_problem(scenario, step)
    if step.do == "stall_storage" and step.how not in (None, "killable"):
        return "how", "what hangs on a stalled datastore of the lab can be killed: killable"
    if step.do in STORAGE_STEPS and not scenario.datastores:
        return "do", f"{step.do} needs datastores, and the file names none"
    if step.do in INSIDE and not any(vm.name == step.vm and vm.agent for vm in scenario.vms):
        return "vm", f"{step.do} is done inside the guest: the VM needs agent: true"
    return None


def _weather_problem(scenario: Scenario, step: StepEntry) -> tuple[str, str] | None:
    if step.how not in (None, "network"):
        return "how", f"{step.do} is of the network in the lab, {step.how} in the simulator only"
    needed = "percent" if step.do == "loss" else "seconds"
    given = getattr(step, needed)
    if given is None:
        return needed, f"{step.do} needs {needed}"
    if step.do == "delay" and not 0 <= given <= LONGEST_S:
        return needed, f"a delay in the lab is from 0 to {LONGEST_S:g} s"
    if step.host is not None and step.host not in _hosts(scenario):
        return "host", f"there is no host {step.host}"
    lacking = weather.why_not()
    return ("do", f"{step.do} {lacking}") if lacking is not None else None


def _hosts(scenario: Scenario) -> set[str]:
    """Names of all hosts, those included that a step adds."""
    added = {str(step.host["name"]) for step in scenario.steps if step.do == "add_host"}
    return added | {host.name for host in scenario.hosts}


def _partition_problem(scenario: Scenario, step: StepEntry) -> tuple[str, str] | None:
    groups = [set(group) for group in step.groups or ()]
    machines = {BUS, MANAGEMENT, *(host.name for host in scenario.hosts)}
    unknown = sorted(set().union(*groups) - machines)
    if unknown:
        return "groups", f"there is no machine {unknown[0]}"
    if step.how not in (None, "one_way"):
        return "how", "a partition is whole, or one_way"
    if any(MANAGEMENT in group and BUS not in group for group in groups):
        return "groups", "bus and management are one machine in the lab: name the bus beside management"
    if os.getuid() != 0 or not network.works():
        return "do", "partition needs root, and a machine on which bridges can be made"
    return None


@dataclass(slots=True)
class Stage:
    """Performs steps; all calls return when the thing is done."""

    lab: Lab
    plane: Plane
    vms: tuple[ScenarioVm, ...] = ()
    cuts: set[tuple[str, str]] = field(default_factory=set)
    weather: dict[str, Weather] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)
    """Where each VM was that a person has destroyed."""

    def perform(self, step: StepEntry) -> None:
        """Raises LabError, TimeoutError, OSError or libvirt.libvirtError where the lab cannot."""
        STEPS[step.do](self, step)

    # -- hosts

    def power_off(self, step: StepEntry) -> None:
        self.lab.power_off(step.host)

    def power_on(self, step: StepEntry) -> None:
        self.lab.power_on(step.host)

    def reboot(self, step: StepEntry) -> None:
        self.lab.reboot(step.host)

    def crash(self, step: StepEntry) -> None:
        self.lab.crash_host(step.host, "kill")

    def hang(self, step: StepEntry) -> None:
        self.lab.crash_host(step.host, "hang")

    def kill_agent(self, step: StepEntry) -> None:
        self.lab.kill_agent(step.host)

    def start_agent(self, step: StepEntry) -> None:
        self.lab.start_agent(step.host)

    def hang_libvirt(self, step: StepEntry) -> None:
        self.lab.hang_libvirt(step.host)

    def resume_libvirt(self, step: StepEntry) -> None:
        self.lab.resume_libvirt(step.host)

    def break_fencing(self, step: StepEntry) -> None:
        self._fault(step, str(step.how))

    def mend_fencing(self, step: StepEntry) -> None:
        self._fault(step, "none")

    def _fault(self, step: StepEntry, how: str) -> None:
        """Of one device where the step names one, else of all: there is no other method here."""
        names = {name for name, _ in self.lab.spec.outlets(step.host)}
        self.lab.fault(step.host, how, step.method if step.method in names else None)

    def add_host(self, step: StepEntry) -> None:
        self.plane.add_host(ScenarioHost.model_validate(step.host))

    # -- an operator's word; a "no" is an answer, not an error

    def confirm_failed(self, step: StepEntry) -> None:
        self.plane.say("confirm-failed", step.host, "--yes-i-checked", step.host)

    def fence_test(self, step: StepEntry) -> None:
        how = [f"--{step.how}"] if step.how else []
        self.plane.say_meanwhile("fence-test", step.host, "--yes-i-checked", step.host, *how)

    def enter_maintenance(self, step: StepEntry) -> None:
        how = [f"--{step.how}"] if step.how else []
        self.plane.say("maintenance", "enter", step.host, *how)

    def exit_maintenance(self, step: StepEntry) -> None:
        self.plane.say("maintenance", "exit", step.host)

    def remove_host(self, step: StepEntry) -> None:
        self.plane.say("remove-host", step.host)

    def readmit(self, step: StepEntry) -> None:
        self.plane.say("readmit", step.host)

    def release_storm(self, step: StepEntry) -> None:
        self.plane.release_storm()

    # -- VMs

    def crash_vm(self, step: StepEntry) -> None:
        self.lab.crash_vm(str(step.vm))

    def shutdown_guest(self, step: StepEntry) -> None:
        self.lab.shutdown_guest(str(step.vm))

    def destroy_vm(self, step: StepEntry) -> None:
        self.left[str(step.vm)] = self.lab.destroy_vm(str(step.vm))

    def start_vm(self, step: StepEntry) -> None:
        """A person who has looked: nothing where it runs. Where no host is named, on the one where it was destroyed."""
        host = str(step.host) if step.host is not None else self.left.get(str(step.vm))
        if host is None:
            raise LabError(f"VM {step.vm}: no step has destroyed it, and none says where it is to start")
        self.lab.start_vm(str(step.vm), host)

    def save_vm(self, step: StepEntry) -> None:
        self.lab.save_vm(str(step.vm))

    def hang_guest(self, step: StepEntry) -> None:
        self.lab.hang_guest(str(step.vm))

    def guest_silent(self, step: StepEntry) -> None:
        self.lab.hang_guest_agent(str(step.vm))

    def guest_panic(self, step: StepEntry) -> None:
        self.lab.panic_guest(str(step.vm))

    def guest_watchdog(self, step: StepEntry) -> None:
        self.lab.starve_watchdog(str(step.vm))
        self.lab.hang_guest_agent(str(step.vm))

    def fail_start(self, step: StepEntry) -> None:
        for host in [str(step.host)] if step.host is not None else self.lab.hosts:
            self.lab.fail_start(str(step.vm), host, step.count or 1)

    def protect(self, step: StepEntry) -> None:
        self._set_protection(step, Protection.RESTART)

    def unprotect(self, step: StepEntry) -> None:
        self._set_protection(step, Protection.NONE)

    def _set_protection(self, step: StepEntry, protection: Protection) -> None:
        """In the domain's own metadata, beside the priority that it has by the scenario."""
        found = next((vm for vm in self.vms if vm.name == step.vm), ScenarioVm(name=str(step.vm), host=""))
        text = policy_element(found.model_copy(update={"protection": protection}))
        self.lab.set_metadata(found.name, POLICY_NS, "rekindle", text)

    # -- datastores

    def stall_storage(self, step: StepEntry) -> None:
        self._each_store(step, self.lab.stall_storage)

    def restore_storage(self, step: StepEntry) -> None:
        self._each_store(step, self.lab.restore_storage)

    def _each_store(self, step: StepEntry, change: Callable[[str, str], None]) -> None:
        """What a step names of hosts and datastores, as far as one has the other."""
        for host in [str(step.host)] if step.host is not None else self.lab.hosts:
            for name in stores.of_host(self.lab.spec, host):
                if step.datastore in (None, name):
                    change(host, name)

    # -- the network and the bus

    def partition(self, step: StepEntry) -> None:
        groups = [{BUS if name == MANAGEMENT else name for name in group} for group in step.groups or ()]
        for index, group in enumerate(groups):
            for other, others in enumerate(groups):
                if index != other and (step.how != "one_way" or index == 0):
                    self.cuts |= {(one, another) for one in group for another in others}
        self.lab.cut(self.cuts)

    def loss(self, step: StepEntry) -> None:
        self._change_weather(step, loss_percent=step.percent or 0.0)

    def delay(self, step: StepEntry) -> None:
        self._change_weather(step, delay_s=step.seconds or 0.0)

    def _change_weather(self, step: StepEntry, **change: float) -> None:
        """Loss and delay of a link stand beside each other; a step says one of them."""
        for host in [str(step.host)] if step.host is not None else self.lab.hosts:
            wanted = replace(self.weather.get(host, FAIR), **change)
            self.lab.weather(host, **asdict(wanted))
            self.weather[host] = wanted

    def heal(self, step: StepEntry) -> None:
        self.cuts.clear()
        self.lab.cut(self.cuts)
        for host in list(self.weather):
            self.lab.weather(host)
            del self.weather[host]

    def kill_bus(self, step: StepEntry) -> None:
        self.plane.kill_bus()

    def start_bus(self, step: StepEntry) -> None:
        """Its supervisor has started it already."""

    # -- services

    def kill_service(self, step: StepEntry) -> None:
        self.plane.kill_service(str(step.service))

    def pause_service(self, step: StepEntry) -> None:
        self.plane.pause_service(str(step.service))

    def resume_service(self, step: StepEntry) -> None:
        self.plane.resume_service(str(step.service))


STEPS: dict[str, Callable[[Stage, StepEntry], None]] = {
    "add_host": Stage.add_host,
    "confirm_failed": Stage.confirm_failed,
    "fence_test": Stage.fence_test,
    "readmit": Stage.readmit,
    "release_storm": Stage.release_storm,
    "enter_maintenance": Stage.enter_maintenance,
    "exit_maintenance": Stage.exit_maintenance,
    "remove_host": Stage.remove_host,
    "power_off": Stage.power_off,
    "power_on": Stage.power_on,
    "reboot": Stage.reboot,
    "crash": Stage.crash,
    "hang": Stage.hang,
    "kill_agent": Stage.kill_agent,
    "start_agent": Stage.start_agent,
    "hang_libvirt": Stage.hang_libvirt,
    "resume_libvirt": Stage.resume_libvirt,
    "break_fencing": Stage.break_fencing,
    "mend_fencing": Stage.mend_fencing,
    "crash_vm": Stage.crash_vm,
    "protect": Stage.protect,
    "unprotect": Stage.unprotect,
    "shutdown_guest": Stage.shutdown_guest,
    "destroy_vm": Stage.destroy_vm,
    "start_vm": Stage.start_vm,
    "save_vm": Stage.save_vm,
    "hang_guest": Stage.hang_guest,
    "guest_silent": Stage.guest_silent,
    "guest_watchdog": Stage.guest_watchdog,
    "guest_panic": Stage.guest_panic,
    "fail_start": Stage.fail_start,
    "stall_storage": Stage.stall_storage,
    "restore_storage": Stage.restore_storage,
    "partition": Stage.partition,
    "loss": Stage.loss,
    "delay": Stage.delay,
    "heal": Stage.heal,
    "kill_bus": Stage.kill_bus,
    "start_bus": Stage.start_bus,
    "kill_service": Stage.kill_service,
    "pause_service": Stage.pause_service,
    "resume_service": Stage.resume_service,
}
POSSIBLE = frozenset(STEPS)


def with_ends(steps: tuple[StepEntry, ...]) -> list[tuple[StepEntry, bool]]:
    """The steps in the order of their times, and what follows from them by itself (told by False): a service that
    is paused for some seconds goes on after them."""
    found = [(step, True) for step in steps]
    for step in steps:
        if step.do == "pause_service" and step.seconds is not None:
            update = {"at_s": step.at_s + step.seconds, "do": "resume_service", "seconds": None, "once": None}
            found.append((step.model_copy(update=update), False))
    return sorted(found, key=lambda one: one[0].at_s)


def table(simulated: Collection[str]) -> str:
    """Which step each world can do, for the README."""
    rows = ["| step | simulator | lab | |", "|---|---|---|---|"]
    for step in sorted(MODEL_STEPS):
        in_simulator, here = step in simulated, step in POSSIBLE
        note = NOTES.get(step, "") if here else WHY_NOT.get(step, "")
        rows.append(f"| `{step}` | {'yes' if in_simulator else '-'} | {'yes' if here else '-'} | {note} |")
    return "\n".join(rows)
