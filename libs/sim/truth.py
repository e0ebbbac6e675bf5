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
        self.sound_since: dict[str, float] = {}
        """Since when a host has run, its agent, too, and no link of the network has failed; whatever became of
        the bus and of the management plane."""
        self.up_since: dict[str, float] = {}
        """The same, and its agent may be held up at its gate."""
        self._look()

    def _look(self) -> None:
        world, now = self._world, self._world.loop.time()
        cut_off = any(client.minority_since is not None for client in world.broker.clients)
        calm = world.network.calm
        quiet = calm and not world.broker.disturbed and not cut_off
        for host in world.machines.hosts.values():
            well, up = self._well(host), host.os is Os.UP and not host.libvirt_hangs
            _since(self.well_since, host.name, now, quiet and well)
            _since(self.sound_since, host.name, now, calm and not cut_off and well)
            _since(self.answering_since, host.name, now, calm and up)
            _since(self.up_since, host.name, now, calm and up and self._alive(host))
        world.loop.world_later(LOOK_S, self._look)

    def _well(self, host: SimHost) -> bool:
        speaks = self._alive(host) and host.announced == host.at.boot
        linked = self._world.network.both_ways(host.name, BUS)
        return host.os is Os.UP and not host.libvirt_hangs and speaks and linked

    def _alive(self, host: SimHost) -> bool:
        """Its agent runs."""
        process = self._world.slots[f"heartbeat@{host.name}"].process
        return process is not None and not process.stopped

    def sound_for(self, host: str) -> float:
        """Seconds; 0 where it is not."""
        return self._world.loop.time() - self.sound_since.get(host, self._world.loop.time())

    def up_for(self, host: str) -> float:
        """Seconds; 0 where it is not."""
        return self._world.loop.time() - self.up_since.get(host, self._world.loop.time())

    def well_for(self, host: str) -> float:
        """Seconds; 0 where it is not."""
        since = self.well_since.get(host)
        return 0.0 if since is None else self._world.loop.time() - since

    def answering_for(self, host: str) -> float:
        """Seconds; 0 where it does not answer."""
        since = self.answering_since.get(host)
        return 0.0 if since is None else self._world.loop.time() - since


def _since(since: dict[str, float], host: str, now: float, holds: bool) -> None:
    """Note since when something holds of a host without a break."""
    if holds:
        since.setdefault(host, now)
    else:
        since.pop(host, None)
