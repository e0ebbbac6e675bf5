"""The world's own truth over time: since when each host has been well, and who was shut down on purpose."""

from __future__ import annotations

from libs.sim.hosts import Os, SimHost
from libs.sim.network import BUS
from libs.sim.world import WATCHES, World

LOOK_S = 0.25
READERS = 2
"""Who asks about slots asks a few peers: one that reads might not be among them."""


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
        """Since when a host has run, its agent, too, and nothing lay between it and the bus: it could speak and come
        through its gate. As well, but that its agent may be held up at its gate."""
        self.writing_since: dict[str, float] = {}
        """Since when a host's agent has run and reached the datastore, whatever became of every network."""
        self.reading_since: dict[str, float] = {}
        """The same of one that the bus reaches without loss or delay: it can be asked what it reads in slots."""
        self.rough_at = -1.0
        """When messages were last lost or delayed, or somebody was attached to a server that its peers had lost, or
        nothing could be written."""
        self._look()

    def _look(self) -> None:
        world, now = self._world, self._world.loop.time()
        cut_off = any(client.minority_since is not None for client in world.broker.clients)
        calm = world.network.calm
        # what was decided while the bus took no writes is written, and looked at, only after that
        if cut_off or world.network.loss or world.network.delay_s or world.broker.disturbed:
            self.rough_at = now
        quiet = calm and not world.broker.disturbed and not cut_off
        for host in world.machines.hosts.values():
            well, up = self._well(host), self._up(host)
            _since(self.well_since, host.name, now, quiet and well)
            _since(self.sound_since, host.name, now, calm and not cut_off and well)
            _since(self.answering_since, host.name, now, calm and up)
            could_speak = up and self._alive(host) and self._linked(host)
            _since(self.up_since, host.name, now, quiet and could_speak)
            stores = world.machines.datastores.values()
            reached = any(not one.stalled(host.name) for one in stores)
            writes = host.os is Os.UP and self._spoken(host) and reached
            _since(self.writing_since, host.name, now, writes)
            clear = not world.network.delay_s and not world.network.loss and not world.broker.disturbed
            told = writes and clear and self._linked(host)
            _since(self.reading_since, host.name, now, told and not cut_off)
        world.loop.world_later(LOOK_S, self._look)

    def _well(self, host: SimHost) -> bool:
        return self._up(host) and self._spoken(host) and self._linked(host)

    def _up(self, host: SimHost) -> bool:
        return host.os is Os.UP and not host.libvirt_hangs

    def _spoken(self, host: SimHost) -> bool:
        """Its agent runs and has passed the gate of this boot."""
        # of one without an agent nothing is heard but what its libvirt answers
        told = not (host.agentless and self._world.virt.trouble.lost_answer)
        return told and self._alive(host) and host.announced == host.at.boot

    def _linked(self, host: SimHost) -> bool:
        network = self._world.network
        if host.agentless:
            return network.both_ways(host.name, WATCHES) and network.both_ways(WATCHES, BUS)
        return network.both_ways(host.name, BUS)

    def _alive(self, host: SimHost) -> bool:
        """Its agent runs."""
        process = self._world.slots[f"heartbeat@{host.name}"].process
        return process is not None and not process.stopped

    def sound_for(self, host: str) -> float:
        """Seconds; 0 where it is not."""
        return self._for(self.sound_since, host, self._well(self._world.machines.hosts[host]))

    def up_for(self, host: str) -> float:
        """Seconds; 0 where it is not."""
        return self._for(self.up_since, host, self._up(self._world.machines.hosts[host]))

    def slot_told_for(self, host: str) -> float:
        """For how many seconds the host's writes to its slot could have been told by a peer; 0 where not."""
        now, wrote = self._world.loop.time(), self.writing_since.get(host)
        readers = [since for name, since in self.reading_since.items() if name != host]
        if wrote is None or len(readers) < READERS:
            return 0.0
        return now - max(wrote, sorted(readers)[READERS - 1])

    def well_for(self, host: str) -> float:
        """Seconds; 0 where it is not."""
        return self._for(self.well_since, host, self._well(self._world.machines.hosts[host]))

    def answering_for(self, host: str) -> float:
        """Seconds; 0 where it does not answer."""
        return self._for(self.answering_since, host, self._up(self._world.machines.hosts[host]))

    def _for(self, since: dict[str, float], host: str, holds: bool) -> float:
        """0 also where it has ended since our last look."""
        now = self._world.loop.time()
        return now - since.get(host, now) if holds else 0.0


def _since(since: dict[str, float], host: str, now: float, holds: bool) -> None:
    """Note since when something holds of a host without a break."""
    if holds:
        since.setdefault(host, now)
    else:
        since.pop(host, None)
