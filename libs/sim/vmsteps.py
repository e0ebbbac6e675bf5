"""What the steps of a scenario do to VMs, their guests and what people do with them."""

from __future__ import annotations

from libs.model import Health, Protection, StopReason
from libs.scenario.model import StepEntry
from libs.sim.actor import Actor
from libs.sim.definitions import definition, lacking
from libs.sim.hosts import Os
from libs.sim.world import vm_uuid

MIGRATION_S = 2.0


class OnVms(Actor):
    """Steps that name a VM."""

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

    def start_vm(self, step: StepEntry) -> None:
        self._world.machines.start_by_hand(vm_uuid(str(step.vm)), step.host)

    def destroy_vm(self, step: StepEntry) -> None:
        for host in self._where(step):
            self._world.shut_down(host, vm_uuid(str(step.vm)), destroyed=True)

    def guest_silent(self, step: StepEntry) -> None:
        self._fail_guest(step, Health.SILENT)

    def guest_panic(self, step: StepEntry) -> None:
        self._fail_guest(step, Health.PANICKED)

    def guest_io_error(self, step: StepEntry) -> None:
        self._fail_guest(step, Health.IO_ERROR)

    def guest_watchdog(self, step: StepEntry) -> None:
        self._fail_guest(step, Health.WATCHDOG)

    def _fail_guest(self, step: StepEntry, health: Health) -> None:
        for host in self._where(step):
            self._world.machines.fail_guest(host, vm_uuid(str(step.vm)), health)

    def save_vm(self, step: StepEntry) -> None:
        for host in self._where(step):
            self._world.shut_down(host, vm_uuid(str(step.vm)), saved=True)

    def start_copy(self, step: StepEntry) -> None:
        """`virsh start` by a person, on a disk that nothing locks: it runs there, wherever else it runs."""
        host, uuid = self._host(step), vm_uuid(str(step.vm))
        known = host.domains.get(uuid)
        if lacking(host, definition(self._world.machines.specs[uuid])):
            return
        if host.os is Os.UP and not host.libvirt_hangs and (known is None or not known.state.active):
            self._world.stopped_on_purpose.pop(uuid, None)
            token = known.defined if known is not None else 0
            self._world.machines.begin(host, self._world.machines.specs[uuid], token, by_hand=True)

    def migrate_vm(self, step: StepEntry) -> None:
        uuid, seconds = vm_uuid(str(step.vm)), MIGRATION_S if step.seconds is None else step.seconds
        for host in self._where(step)[:1]:
            target = self._host(step)
            if host.os is Os.UP and not host.libvirt_hangs and target.os is Os.UP:
                asked = step.how != "override"
                self._world.virt.migrate(host, target, uuid, seconds, asked=asked)

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
