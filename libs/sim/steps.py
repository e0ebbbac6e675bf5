"""What the steps of a scenario do to the simulated world."""

from __future__ import annotations

from collections.abc import Callable

from libs.model import Health, Protection, StopReason
from libs.scenario.model import Scenario, ScenarioHost, StepEntry
from libs.sim.loop import Process
from libs.sim.machines import SimHost
from libs.sim.network import BUS
from libs.sim.power import HOWS, Outlet
from libs.sim.storage import Datastore
from libs.sim.world import Slot, World, vm_uuid

MANAGEMENT = "management"
EVICTED_S = 2.5
"""A client that stands still for so long is dropped by its server (two pings unanswered)."""
WEATHER = ("network", "bus", "libvirt", "readings", "garbage", "guests")
PLANE_AWAY_S = 2.0


def problem(scenario: Scenario, step: StepEntry) -> tuple[str, str] | None:
    """What makes a step impossible here: field and reason; None where nothing does."""
    hosts = {host.name for host in scenario.hosts}
    replicas = scenario.management.replicas
    if step.do in ("kill_service", "pause_service", "resume_service"):
        if step.service == "heartbeat":
            return "service", f"{step.do} is for services of the plane; for agents there is kill_agent"
        if step.service == "plane" and step.do != "kill_service":
            return "service", f"{step.do} is for one service; the whole plane can only be killed"
        if step.replica >= replicas:
            return "replica", f"there are {replicas} replicas, counted from 0"
    if step.do in ("kill_bus", "start_bus") and step.node > 2:
        return "node", "the simulated bus has nodes 0, 1 and 2"
    if step.do == "stall_storage" and step.how not in (None, "killable"):
        return "how", "what hangs on a stalled datastore dies when that is back, or is killable"
    if step.do == "break_fencing" and step.how not in HOWS:
        return "how", f"a device can be broken by {', '.join(HOWS)}"
    if step.do in ("delay", "loss") and step.how not in (None, *WEATHER):
        return "how", f"{step.do} is of {', '.join(WEATHER)}"
    if step.do in ("loss", "delay") and step.host is not None and (step.do, step.how) != ("delay", "libvirt"):
        return "host", f"{step.do} of {step.how or 'network'} is of all hosts in the simulator"
    if step.do in ("loss", "delay") and step.percent is None and step.seconds is None:
        return "percent", f"{step.do} needs percent or seconds"
    if step.do == "partition":
        machines = {*hosts, BUS, MANAGEMENT, *(f"m{n}" for n in range(replicas))}
        for group in step.groups or ():
            for name in group:
                if name not in machines:
                    return "groups", f"there is no machine {name}"
        if step.how not in (None, "one_way", "minority"):
            return "how", "a partition is whole, or one_way, or of a minority"
        if step.how == "minority" and not all(
            n in machines - hosts - {BUS} for n in (step.groups or ((),))[0]
        ):
            return "groups", "a minority is of management machines: m0, m1, ..."
    return None


class Stage:
    """Performs steps. `POSSIBLE` is what this world can do with today's services."""

    def __init__(self, world: World) -> None:
        self._world = world

    def perform(self, step: StepEntry) -> None:
        STEPS[step.do](self, step)

    # -- whom a step means

    def _host(self, step: StepEntry) -> SimHost:
        return self._world.machines.hosts[str(step.host)]

    def _slot(self, step: StepEntry) -> Slot:
        return self._world.slots[f"{step.service}/{step.replica}"]

    def _where(self, step: StepEntry) -> list[SimHost]:
        return self._world.machines.running(vm_uuid(str(step.vm)))

    def _outlets(self, step: StepEntry) -> list[Outlet]:
        """The host's fence devices of the step's method, or all where it names none."""
        return [one for one in self._world.outlets[str(step.host)] if step.method in (None, one.method)]

    # -- hosts

    def power_off(self, step: StepEntry) -> None:
        self._world.machines.power_off(self._host(step))

    def power_on(self, step: StepEntry) -> None:
        self._world.machines.power_on(self._host(step))

    def reboot(self, step: StepEntry) -> None:
        self._world.machines.reboot(self._host(step), fast=step.how == "fast")

    def crash(self, step: StepEntry) -> None:
        self._world.machines.crash(self._host(step))

    def hang(self, step: StepEntry) -> None:
        self._world.machines.hang(self._host(step))

    def kill_agent(self, step: StepEntry) -> None:
        """For good; or, with `count`, at its so-manieth call to the world from now, and it is started again."""
        slot = self._world.slots[f"heartbeat@{step.host}"]
        if step.count is None:
            self._host(step).agent = False
            self._world.kill(slot, restart=False)
        elif slot.process is not None:
            slot.process.strike = step.count

    def start_agent(self, step: StepEntry) -> None:
        self._host(step).agent = True
        slot = self._world.slots[f"heartbeat@{step.host}"]
        if slot.process is None:
            self._world.launch(slot)

    def step_clock(self, step: StepEntry) -> None:
        steps = self._world.wall_steps
        steps[str(step.host)] = steps.get(str(step.host), 0.0) + (step.seconds or 3600.0)

    def break_fencing(self, step: StepEntry) -> None:
        for outlet in self._outlets(step):
            outlet.how = str(step.how)

    def mend_fencing(self, step: StepEntry) -> None:
        for outlet in self._outlets(step):
            outlet.how = ""

    def add_host(self, step: StepEntry) -> None:
        self._world.add_host(ScenarioHost.model_validate(step.host))

    # -- what all hosts share

    def _named(self, step: StepEntry) -> list[str]:
        """The step's host, or all where it names none."""
        return [str(step.host)] if step.host is not None else list(self._world.machines.hosts)

    def _stores(self, step: StepEntry) -> list[Datastore]:
        """The step's datastore, or all where it names none."""
        stores = self._world.machines.datastores
        return [stores[step.datastore]] if step.datastore is not None else list(stores.values())

    def stall_storage(self, step: StepEntry) -> None:
        for name in self._named(step):
            for store in self._stores(step):
                store.stall(name, killable=step.how == "killable")

    def restore_storage(self, step: StepEntry) -> None:
        for name in self._named(step):
            for store in self._stores(step):
                store.restore(name)

    # -- what an operator says

    def confirm_failed(self, step: StepEntry) -> None:
        self._world.operator.confirm_failed(str(step.host))

    def enter_maintenance(self, step: StepEntry) -> None:
        self._world.operator.enter_maintenance(str(step.host))

    def exit_maintenance(self, step: StepEntry) -> None:
        self._world.operator.exit_maintenance(str(step.host))

    def remove_host(self, step: StepEntry) -> None:
        self._world.operator.remove(str(step.host))

    def readmit(self, step: StepEntry) -> None:
        self._world.operator.readmit(str(step.host))

    def release_storm(self, step: StepEntry) -> None:
        self._world.operator.release_storm()

    # -- VMs

    def protect(self, step: StepEntry) -> None:
        self._set_protection(step, Protection.RESTART)

    def unprotect(self, step: StepEntry) -> None:
        self._set_protection(step, Protection.NONE)

    def _set_protection(self, step: StepEntry, protection: Protection) -> None:
        """`virsh metadata` where the VM runs; where it runs nowhere, on each host that knows it."""
        machines, uuid = self._world.machines, vm_uuid(str(step.vm))
        for host in self._where(step) or list(machines.hosts.values()):
            if uuid in host.domains:
                policy = host.domains[uuid].spec.policy.model_copy(update={"protection": protection})
                machines.set_policy(host, uuid, policy)

    def crash_vm(self, step: StepEntry) -> None:
        for host in self._where(step):
            self._world.machines.end(host, vm_uuid(str(step.vm)), StopReason.CRASHED)

    def shutdown_guest(self, step: StepEntry) -> None:
        for host in self._where(step):
            self._world.shut_down(host, vm_uuid(str(step.vm)))

    def destroy_vm(self, step: StepEntry) -> None:
        for host in self._where(step):
            self._world.shut_down(host, vm_uuid(str(step.vm)), destroyed=True)

    def guest_silent(self, step: StepEntry) -> None:
        self._fail_guest(step, Health.SILENT)

    def guest_panic(self, step: StepEntry) -> None:
        self._fail_guest(step, Health.PANICKED)

    def guest_io_error(self, step: StepEntry) -> None:
        self._fail_guest(step, Health.IO_ERROR)

    def _fail_guest(self, step: StepEntry, health: Health) -> None:
        for host in self._where(step):
            self._world.machines.fail_guest(host, vm_uuid(str(step.vm)), health)

    def save_vm(self, step: StepEntry) -> None:
        for host in self._where(step):
            self._world.shut_down(host, vm_uuid(str(step.vm)), saved=True)

    def hang_guest(self, step: StepEntry) -> None:
        for host in self._where(step):
            self._world.machines.pause_guest(host, vm_uuid(str(step.vm)))

    def fail_start(self, step: StepEntry) -> None:
        hosts = self._world.machines.hosts
        for name in self._named(step):
            hosts[name].fails[vm_uuid(str(step.vm))] = step.count or 1

    def fail_stop(self, step: StepEntry) -> None:
        hosts = self._world.machines.hosts
        for name in [str(step.host)] if step.host is not None else list(hosts):
            hosts[name].stop_fails[vm_uuid(str(step.vm))] = step.count or 1

    # -- the network and the bus

    def partition(self, step: StepEntry) -> None:
        world = self._world
        management = sorted({slot.node for slot in world.slots.values() if slot.name != "heartbeat"})
        groups = [list(group) for group in step.groups or ()]
        if step.how == "minority":
            for client in world.broker.clients:
                if client.process.node in groups[0]:
                    client.isolate(True)
            return
        named = {name for group in groups for name in group}
        for group in groups:
            if MANAGEMENT in group:
                group.extend(node for node in management if node not in named)
            elif BUS in group and MANAGEMENT not in named:
                # the plane stands beside the bus where a step does not say otherwise
                group.extend(node for node in management if node not in named)
        world.network.cut(groups, one_way=step.how == "one_way")
        world.broker.reconsider()

    def heal(self, step: StepEntry) -> None:
        world = self._world
        world.network.heal()
        world.broker.ambiguous = 0.0
        trouble = world.virt.trouble
        trouble.slow_start = trouble.lost_answer = trouble.refused_start = 0.0
        trouble.lost_reading = trouble.garbage = trouble.busy = 0.0
        for host in world.machines.hosts.values():
            host.libvirt_hangs = False
            host.stop_fails.clear()
        for client in world.broker.clients:
            client.isolate(False)
        world.broker.reconsider()

    def loss(self, step: StepEntry) -> None:
        share = (step.percent or 0.0) / 100
        if step.how == "bus":
            self._world.broker.ambiguous = share
        elif step.how == "libvirt":
            self._world.virt.trouble.lost_answer = share
            self._world.virt.trouble.refused_start = share
        elif step.how == "readings":
            self._world.virt.trouble.lost_reading = share
        elif step.how == "garbage":
            self._world.virt.trouble.garbage = share
        else:
            self._world.network.loss = share

    def delay(self, step: StepEntry) -> None:
        if step.how == "libvirt":
            if step.host is not None:
                self._host(step).libvirt_hangs = True
            self._world.virt.trouble.slow_start = (step.percent or 0.0) / 100
        elif step.how == "bus":
            self._world.broker.lose_leader()
        elif step.how == "guests":
            self._world.virt.trouble.busy = (step.percent or 0.0) / 100
        else:
            self._world.network.delay_s = step.seconds or 0.0

    def kill_bus(self, step: StepEntry) -> None:
        if self._world.broker.up[step.node]:
            self._world.broker.kill_node(step.node)

    def start_bus(self, step: StepEntry) -> None:
        if not self._world.broker.up[step.node]:
            self._world.broker.start_node(step.node)

    # -- services

    def kill_service(self, step: StepEntry) -> None:
        """At once, or with `count` at its so-manieth call to the world from now. The whole plane ends at once
        and is away for `seconds`."""
        if step.service == "plane":
            self._world.lose_plane(step.seconds or PLANE_AWAY_S)
            return
        slot = self._slot(step)
        if step.count is not None and slot.process is not None:
            slot.process.strike = step.count
        else:
            self._world.kill(slot)

    def pause_service(self, step: StepEntry) -> None:
        slot, world = self._slot(step), self._world
        process = slot.process
        if process is None:
            return
        process.stop()
        world.loop.world_later(EVICTED_S, self._evict, process)
        if step.seconds is not None:
            world.loop.world_later(step.seconds, lambda: process.resume() if process.alive else None)

    def _evict(self, process: Process) -> None:
        for client in self._world.broker.clients:
            if client.process is process and process.stopped:
                client.evict()

    def resume_service(self, step: StepEntry) -> None:
        process = self._slot(step).process
        if process is not None:
            process.resume()


STEPS: dict[str, Callable[[Stage, StepEntry], None]] = {
    "power_off": Stage.power_off,
    "power_on": Stage.power_on,
    "reboot": Stage.reboot,
    "crash": Stage.crash,
    "hang": Stage.hang,
    "kill_agent": Stage.kill_agent,
    "start_agent": Stage.start_agent,
    "step_clock": Stage.step_clock,
    "break_fencing": Stage.break_fencing,
    "mend_fencing": Stage.mend_fencing,
    "add_host": Stage.add_host,
    "remove_host": Stage.remove_host,
    "enter_maintenance": Stage.enter_maintenance,
    "exit_maintenance": Stage.exit_maintenance,
    "confirm_failed": Stage.confirm_failed,
    "readmit": Stage.readmit,
    "release_storm": Stage.release_storm,
    "stall_storage": Stage.stall_storage,
    "restore_storage": Stage.restore_storage,
    "protect": Stage.protect,
    "unprotect": Stage.unprotect,
    "crash_vm": Stage.crash_vm,
    "shutdown_guest": Stage.shutdown_guest,
    "destroy_vm": Stage.destroy_vm,
    "guest_silent": Stage.guest_silent,
    "guest_panic": Stage.guest_panic,
    "guest_io_error": Stage.guest_io_error,
    "save_vm": Stage.save_vm,
    "hang_guest": Stage.hang_guest,
    "fail_start": Stage.fail_start,
    "fail_stop": Stage.fail_stop,
    "partition": Stage.partition,
    "heal": Stage.heal,
    "loss": Stage.loss,
    "delay": Stage.delay,
    "kill_bus": Stage.kill_bus,
    "start_bus": Stage.start_bus,
    "kill_service": Stage.kill_service,
    "pause_service": Stage.pause_service,
    "resume_service": Stage.resume_service,
}
POSSIBLE = frozenset(STEPS)
