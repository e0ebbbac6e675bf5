"""What the steps of a scenario do to the simulated world."""

from __future__ import annotations

from collections.abc import Callable

from libs.scenario.model import StepEntry
from libs.scenario.pool import ScenarioHost
from libs.sim.linksteps import OnLinks
from libs.sim.loop import Process
from libs.sim.storage import Datastore
from libs.sim.vmsteps import OnVms

EVICTED_S = 2.5
"""A client that stands still for so long is dropped by its server (two pings unanswered)."""
PLANE_AWAY_S = 2.0


class Stage(OnVms, OnLinks):
    """Performs steps. `POSSIBLE` is what this world can do with today's services."""

    def perform(self, step: StepEntry) -> None:
        STEPS[step.do](self, step)

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

    def hang_libvirt(self, step: StepEntry) -> None:
        self._host(step).libvirt_hangs = True

    def resume_libvirt(self, step: StepEntry) -> None:
        self._host(step).libvirt_hangs = False

    def step_clock(self, step: StepEntry) -> None:
        """Of a host, or of the machine on which these replicas of the services run."""
        steps = self._world.wall_steps
        machine = f"m{step.replica}" if step.service is not None else str(step.host)
        steps[machine] = steps.get(machine, 0.0) + (step.seconds or 3600.0)

    def break_fencing(self, step: StepEntry) -> None:
        for outlet in self._outlets(step):
            outlet.how = str(step.how)
        self._break_watchdog(step, broken=True)

    def mend_fencing(self, step: StepEntry) -> None:
        for outlet in self._outlets(step):
            outlet.how = ""
        self._break_watchdog(step, broken=False)

    def _break_watchdog(self, step: StepEntry, *, broken: bool) -> None:
        device = self._world.watchdogs.of.get(str(step.host))
        if device is not None and step.method == "watchdog":
            device.broken = broken

    def add_host(self, step: StepEntry) -> None:
        self._world.add_host(ScenarioHost.model_validate(step.host))

    # -- what all hosts share

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

    def confirm_absent(self, step: StepEntry) -> None:
        self._world.operator.confirm_absent(str(step.host))

    def fence_test(self, step: StepEntry) -> None:
        self._world.operator.fence_test(str(step.host), forced=step.how == "force", drain=step.how == "drain")

    def enter_maintenance(self, step: StepEntry) -> None:
        self._world.operator.enter_maintenance(str(step.host), drain=step.how == "drain")

    def exit_maintenance(self, step: StepEntry) -> None:
        self._world.operator.exit_maintenance(str(step.host))

    def remove_host(self, step: StepEntry) -> None:
        self._world.operator.remove(str(step.host))

    def readmit(self, step: StepEntry) -> None:
        self._world.operator.readmit(str(step.host))

    def release_storm(self, step: StepEntry) -> None:
        self._world.operator.release_storm()

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
    "hang_libvirt": Stage.hang_libvirt,
    "resume_libvirt": Stage.resume_libvirt,
    "break_fencing": Stage.break_fencing,
    "mend_fencing": Stage.mend_fencing,
    "add_host": Stage.add_host,
    "remove_host": Stage.remove_host,
    "enter_maintenance": Stage.enter_maintenance,
    "exit_maintenance": Stage.exit_maintenance,
    "confirm_failed": Stage.confirm_failed,
    "fence_test": Stage.fence_test,
    "readmit": Stage.readmit,
    "release_storm": Stage.release_storm,
    "stall_storage": Stage.stall_storage,
    "restore_storage": Stage.restore_storage,
    "protect": Stage.protect,
    "unprotect": Stage.unprotect,
    "crash_vm": Stage.crash_vm,
    "shutdown_guest": Stage.shutdown_guest,
    "destroy_vm": Stage.destroy_vm,
    "start_vm": Stage.start_vm,
    "guest_silent": Stage.guest_silent,
    "guest_panic": Stage.guest_panic,
    "guest_io_error": Stage.guest_io_error,
    "guest_watchdog": Stage.guest_watchdog,
    "save_vm": Stage.save_vm,
    "start_copy": Stage.start_copy,
    "migrate_vm": Stage.migrate_vm,
    "hang_guest": Stage.hang_guest,
    "fail_start": Stage.fail_start,
    "fail_stop": Stage.fail_stop,
    "partition": Stage.partition,
    "heal": Stage.heal,
    "loss": Stage.loss,
    "delay": Stage.delay,
    "kill_bus": Stage.kill_bus,
    "start_bus": Stage.start_bus,
    "restore_state": Stage.restore_state,
    "confirm_absent": Stage.confirm_absent,
    "kill_service": Stage.kill_service,
    "pause_service": Stage.pause_service,
    "resume_service": Stage.resume_service,
}
POSSIBLE = frozenset(STEPS)
