"""Facts about guests that fail while their QEMU lives, and about hosts on which all of them do."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from libs.events.base import HostFact, VmFact
from libs.model import Failure


class HostGrey(HostFact):
    """A host that speaks and looks healthy, while all its guests whose health is known fail at once: it may be the
    host. None of them is restarted there."""

    kind: Literal["host.grey"] = "host.grey"
    guests: tuple[str, ...]
    mark: str = Field(description="of the runs that fail: told again with the same")

    @property
    def key(self) -> str:
        return f"{super().key}/{self.mark}"


class HostDraining(HostFact):
    """The host takes no new VMs, those of its guests that fail are restarted elsewhere, and all others move to other hosts
    while they run, until an operator says `maintenance exit` or its guests are well."""

    kind: Literal["host.draining"] = "host.draining"
    reason: str
    mark: str

    @property
    def key(self) -> str:
        return f"{super().key}/{self.mark}"


class HostDrainEnded(HostFact):
    """The guests of a host that was drained are well: it takes VMs again."""

    kind: Literal["host.drain_ended"] = "host.drain_ended"
    mark: str

    @property
    def key(self) -> str:
        return f"{super().key}/{self.mark}"


class VmUnhealthy(VmFact):
    """A guest failed, its QEMU lives, and by the VM's policy nothing is done but to say so."""

    kind: Literal["vm.unhealthy"] = "vm.unhealthy"
    run: int
    why: Failure

    @property
    def key(self) -> str:
        return f"{self.kind}/{self.vm}/{self.at.boot}/{self.run}-{self.why.value}"


class VmHealthRestored(VmFact):
    """A guest that had failed does its work again, before anything was done about it: nothing will be."""

    kind: Literal["vm.health_restored"] = "vm.health_restored"
    incident: str

    @property
    def key(self) -> str:
        return f"{self.kind}/{self.incident}"


class VmEvictFailed(VmFact):
    """A VM that is to run anew cannot be stopped at `at`, and is started nowhere meanwhile. Tried for ever, told once
    an incident."""

    kind: Literal["vm.evict_failed"] = "vm.evict_failed"
    incident: str
    reason: str

    @property
    def key(self) -> str:
        return f"{self.kind}/{self.incident}/{self.vm}"
