"""Placement as tests have it: a desk at which facts are heard and plans are told."""

from __future__ import annotations

from typing import Any

from libs.config.settings import Restart
from libs.core.decider import Input, Records, Step
from libs.events.failovers import FailoverPlanned, PlannedStart
from libs.events.hosts import (
    HostJoined,
)
from libs.events.signals import LeaseWritten
from libs.events.vms import VmFailed, VmRestarted, VmRestartFailed
from libs.model import Incarnation, LeaseState, StopReason, VmReport
from services.placement.decide import Placement
from services.placement.state import PlacementState
from tests.unit.made import (
    beat,
    boot,
    crashed,
    facts,
    failed,
    fenced,
    kinds,
    lease,
    seen,
    vm,
)

H1, H2, H3 = boot("h1"), boot("h2"), boot("h3")
SETTINGS = Restart(retry_first_s=1.0, retry_max_s=60.0, crash_budget=3, crash_window_s=3600.0)


class Desk:
    """A placement driven by hand. Hosts beat whenever time passes, but for those that are `off`."""

    def __init__(self, hosts: int = 3, memory_mib: int = 1000) -> None:
        self.decider = Placement(SETTINGS)
        self.now = 100.0
        self.state: PlacementState = self.decider.initial(self.now)
        self.hosts = [f"h{number}" for number in range(1, hosts + 1)]
        self.off: set[str] = set()
        self.memory_mib = memory_mib
        self.vms: dict[str, list[VmReport]] = {host: [] for host in self.hosts}
        self.told: list[Any] = []
        self.take(self.decider.resume(self.state, Records(), self.now))
        for host in self.hosts:
            self.hear(HostJoined(at=boot(host)))
            self.show(host)
        self.after(0.5)

    def take(self, step: Step[PlacementState]) -> list[str]:
        self.state = step.state
        self.told += facts(step.effects)
        return kinds(step.effects)

    def hear(self, event: Input) -> list[str]:
        return self.take(self.decider.step(self.state, event, self.now))

    def show(self, host: str, *vms: VmReport) -> list[str]:
        """The host's inventory from now on."""
        self.vms[host] = list(vms)
        told = self.hear(beat(host))
        return told + self.hear(seen(boot(host), *vms, memory_mib=self.memory_mib))

    def leased(self, uuid: str, at: Incarnation, state: LeaseState = LeaseState.RUNNING, **more: Any) -> None:
        self.hear(LeaseWritten(lease=lease(uuid, at, state, **more)))

    def runs(self, host: str, *uuids: str, **more: Any) -> None:
        """These run there, under leases."""
        self.show(host, *self.vms[host], *(vm(uuid, **more) for uuid in uuids))
        for uuid in uuids:
            size = {name: more[name] for name in ("memory_mib", "policy") if name in more}
            self.leased(uuid, boot(host), **size)

    def after(self, seconds: float) -> list[str]:
        told: list[str] = []
        until = self.now + seconds
        while self.now < until:
            due = self.decider.wake_at(self.state)
            ticks = due is not None and due <= min(until, self.now + 1.0)
            self.now = max(self.now, due) if ticks and due is not None else min(until, self.now + 1.0)
            for host in self.hosts:
                if host not in self.off:
                    told += self.hear(beat(host))
            if ticks:
                told += self.take(self.decider.step(self.state, None, self.now))
        return told

    def dies(self, host: str, epoch: int = 1) -> list[str]:
        """Failed, fenced."""
        self.off.add(host)
        at = boot(host)
        told = self.hear(failed(at, *self.vms[host], epoch=epoch))
        self.now += 2.6  # its last heartbeat grows old
        for other in self.hosts:
            if other not in self.off:
                told += self.hear(beat(other))
        return told + self.hear(fenced(at, *self.vms[host], epoch=epoch))

    def plans(self) -> list[FailoverPlanned]:
        return [fact for fact in self.told if isinstance(fact, FailoverPlanned)]

    def last(self) -> PlannedStart:
        return self.plans()[-1].starts[-1]

    def where(self, fact: FailoverPlanned | None = None) -> dict[str, str]:
        fact = fact or self.plans()[-1]
        return {start.vm: start.to.host for start in fact.starts}

    def starts(self, start: PlannedStart | None = None) -> list[str]:
        """The executor says that it runs."""
        start = start or self.last()
        incident = start.key.split("/")[0]
        token = 1 if (held := self.state.leases.get(start.vm)) is None else held.token + 1
        self.leased(start.vm, start.to, token=token, start_key=start.key)
        return self.hear(
            VmRestarted(
                vm=start.vm, name=start.name, at=start.to, incident=incident, start_key=start.key, token=token
            )
        )

    def refuses(self, start: PlannedStart | None = None, reason: str = "refused") -> list[str]:
        """The executor says that it does not run."""
        start = start or self.last()
        incident = start.key.split("/")[0]
        return self.hear(
            VmRestartFailed(
                vm=start.vm, name=start.name, at=start.to, incident=incident, start_key=start.key,
                reason=reason,
            )
        )  # fmt: skip

    def crashes(self, uuid: str, at: Incarnation = H1, run: int = 1, **more: Any) -> list[str]:
        report = crashed(uuid, run=run, **more)
        self.show(at.host, *(one for one in self.vms[at.host] if one.uuid != uuid), report)
        return self.hear(self.crash(uuid, at, run, **more))

    @staticmethod
    def crash(uuid: str, at: Incarnation, run: int, **more: Any) -> VmFailed:
        report = crashed(uuid, run=run, **more)
        return VmFailed(vm=uuid, name=report.name, at=at, run=run, reason=StopReason.CRASHED, report=report)

    def open(self) -> list[str]:
        return [incident.id for incident in self.state.incidents()]
