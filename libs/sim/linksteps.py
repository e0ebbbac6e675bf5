"""What the steps of a scenario do to the network and the bus."""

from __future__ import annotations

from libs.scenario.model import StepEntry
from libs.sim.actor import Actor
from libs.sim.network import BUS
from libs.sim.possible import MANAGEMENT, STORAGE

RESTORED_S = 3.0


class OnLinks(Actor):
    """Steps between machines, and what ends them all."""

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
        for group in groups:
            others = [name for other in groups if other is not group for name in other]
            if STORAGE in group:
                group.remove(STORAGE)
                self._cut_off_storage(others)
        world.network.cut(groups, one_way=step.how == "one_way")
        world.broker.reconsider()

    def _cut_off_storage(self, names: list[str]) -> None:
        """Until it is healed no host of these reaches a datastore; what needs one hangs, and cannot be killed."""
        for name in names:
            for store in self._world.machines.datastores.values():
                if name in self._world.machines.hosts and not store.stalled(name):
                    store.stall(name)
                    self._unstored.append((name, store))

    def heal(self, step: StepEntry) -> None:
        world = self._world
        for name, store in self._unstored:
            store.restore(name)
        self._unstored.clear()
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

    def restore_state(self, step: StepEntry) -> None:
        """The servers stop, their data are put back as they were so many seconds ago, and they start again."""
        broker, loop = self._world.broker, self._world.loop
        nodes = range(len(broker.up))
        for node in nodes:
            broker.kill_node(node)
        loop.world_later(RESTORED_S, broker.restore, loop.time() - (step.seconds or 0.0))
        for node in nodes:
            loop.world_later(RESTORED_S + 0.1, broker.start_node, node)

    def start_bus(self, step: StepEntry) -> None:
        if not self._world.broker.up[step.node]:
            self._world.broker.start_node(step.node)
