"""An operator's words as facts: what a person told the pool, who, and about which boot. `libs/operator.py` says
them after it has checked that they mean something; who hears them checks once more, for words come late, too.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from libs.events.base import HostFact, NumberedFact, PoolFact, VerdictFact


class HostConfirmedFailed(VerdictFact):
    """An operator vouches that the incarnation of an open verdict is down: a fence proof (DESIGN §4 rule 2)."""

    kind: Literal["host.confirmed_failed"] = "host.confirmed_failed"
    by: str = Field(min_length=1, description="user and machine of the person")
    said_at: str = Field(description="wall time, ISO 8601; for people, nothing is decided by it")


class MaintenanceFact(NumberedFact):
    """About a host over all its boots: it may well be rebooted meanwhile."""

    by: str = Field(min_length=1, description="user and machine of the person")


class HostMaintenanceEntered(MaintenanceFact):
    """The host takes no new VMs. It is watched as before, and its failure is handled as any other."""

    kind: Literal["host.maintenance_entered"] = "host.maintenance_entered"


class HostMaintenanceExited(MaintenanceFact):
    """The host takes VMs again."""

    kind: Literal["host.maintenance_exited"] = "host.maintenance_exited"


class HostRemoved(HostFact):
    """The host is out of the pool for good. Its next boot, or the next life of its agent, joins as a new one."""

    kind: Literal["host.removed"] = "host.removed"
    agent: str = Field("", description="the life of its agent that is not listened to any more")
    by: str = Field(min_length=1, description="user and machine of the person")

    @property
    def key(self) -> str:
        return f"{super().key}/{self.agent}"


class HostReadmitOrdered(NumberedFact):
    """An operator lets a host out of its quarantine, which has this number: the detector says that it is so."""

    kind: Literal["host.readmit_ordered"] = "host.readmit_ordered"
    by: str = Field(min_length=1, description="user and machine of the person")


class StormReleaseOrdered(PoolFact):
    """An operator looked after the suspects of a storm and lets them be held failed without a proof. Of these
    hosts, in this storm: whoever falls silent after the look is held as before."""

    kind: Literal["storm.release_ordered"] = "storm.release_ordered"
    number: int = Field(description="of the storm, as it was told last")
    order: int = Field(ge=1, description="grows with every order, so that one told late or again is known")
    suspects: tuple[str, ...] = Field(min_length=1, description="hosts that the operator was shown")
    by: str = Field(min_length=1, description="user and machine of the person")

    @property
    def key(self) -> str:
        return f"{self.kind}/{self.number}/{self.order}"
