"""The world's own truth over time: since when each host has been well, and who was shut down on purpose."""

from __future__ import annotations

from libs.sim.machines import Os, SimHost
from libs.sim.network import BUS
from libs.sim.world import World

LOOK_S = 0.25


class Truth:
    """Looks at the world a few times a second."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.well_since: dict[str, float] = {}
        """Since when a host has run, its agent has spoken and nothing lay between it and the bus."""
        self.answering_since: dict[str, float] = {}
        """Since when a host's libvirt has answered whoever asks, with or without its agent."""
        self._look()

    def _look(self) -> None:
        world, now = self._world, self._world.loop.time()
        cut_off = any(client.minority_since is not None for client in world.broker.clients)
        quiet = world.network.calm and not world.broker.disturbed and not cut_off
        for host in world.machines.hosts.values():
            if quiet and self._well(host):
                self.well_since.setdefault(host.name, now)
            else:
                self.well_since.pop(host.name, None)
            if world.network.calm and host.os is Os.UP and not host.libvirt_hangs:
                self.answering_since.setdefault(host.name, now)
            else:
                self.answering_since.pop(host.name, None)
        world.loop.world_later(LOOK_S, self._look)

    def _well(self, host: SimHost) -> bool:
        process = self._world.slots[f"heartbeat@{host.name}"].process
        speaks = process is not None and not process.stopped and host.announced == host.at.boot
        linked = self._world.network.both_ways(host.name, BUS)
        return host.os is Os.UP and not host.libvirt_hangs and speaks and linked

    def well_for(self, host: str) -> float:
        """Seconds; 0 where it is not."""
        since = self.well_since.get(host)
        return 0.0 if since is None else self._world.loop.time() - since

    def answering_for(self, host: str) -> float:
        """Seconds; 0 where it does not answer."""
        since = self.answering_since.get(host)
        return 0.0 if since is None else self._world.loop.time() - since
