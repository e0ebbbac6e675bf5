"""What asks a host's agent before its libvirt takes a VM in by a migration: the twin of infra/systemd/arrivals.py and its hook."""

from __future__ import annotations

import itertools
from collections.abc import Callable

from libs.model import VmReport, VmState
from libs.sim.hosts import SimHost, VmSpec
from libs.sim.loop import Process, SimLoop

HOOK_S = 5.0
"""For so long the hook waits."""
SOCKET_S = 0.002
NOBODY = "the agent of this host does not answer"
Knocked = Callable[[str, VmReport], None]


class Doors:
    """Of all hosts. One without an agent, or on which none was ever installed, has none and takes in whatever comes."""

    def __init__(self, loop: SimLoop) -> None:
        self._loop = loop
        self._agents: dict[str, tuple[Process, Knocked]] = {}
        self._waiting: dict[str, Callable[[str], None]] = {}
        self._numbers = itertools.count(1)
        self.refused: list[tuple[float, str, str, str]] = []
        """When, VM, host, why."""

    def serve(self, host: str, process: Process, knocked: Knocked) -> None:
        """This life of the host's agent is asked from now on."""
        self._agents[host] = (process, knocked)

    def ask(self, host: SimHost, spec: VmSpec, token: int, done: Callable[[str], None]) -> None:
        """`done` is told why the VM may not come in, "" where it may; at once, or in HOOK_S at the latest."""
        if host.agentless or host.name not in self._agents:
            done("")
            return
        ask = f"{host.name}/{next(self._numbers)}"

        def ended(why: str) -> None:
            if self._waiting.pop(ask, None) is not None:
                if why:
                    self.refused.append((self._loop.time(), spec.name, host.name, why))
                done(why)

        self._waiting[ask] = ended
        process, knocked = self._agents[host.name]
        if not process.alive:
            self._loop.world_later(SOCKET_S, ended, NOBODY)
            return
        self._loop.call_later(SOCKET_S, knocked, ask, _arriving(spec, token), context=process.context)
        self._loop.world_later(HOOK_S, ended, NOBODY)

    def answer(self, ask: str, refused: str) -> None:
        """The agent's word. Late, it is of no use."""
        if ask in self._waiting:
            self._loop.world_later(SOCKET_S, self._waiting[ask], refused)


class SimDoor:
    """See services.heartbeat.act.Door, of one life of an agent."""

    def __init__(self, doors: Doors, process: Process, host: str) -> None:
        self._doors, self._process, self._host = doors, process, host

    def serve(self, knocked: Knocked) -> None:
        self._doors.serve(self._host, self._process, knocked)

    def answer(self, ask: str, refused: str) -> None:
        self._process.enter()
        self._doors.answer(ask, refused)

    def asks(self) -> bool | None:
        return True


def _arriving(spec: VmSpec, token: int) -> VmReport:
    return VmReport(
        uuid=spec.uuid,
        name=spec.name,
        state=VmState.PAUSED,
        token=token,
        memory_mib=spec.memory_mib,
        vcpus=spec.vcpus,
        policy=spec.policy,
    )
