"""An operator's words as facts: what a person told the pool, who, and about which boot. `libs/operator.py` says
them after it has checked that they mean something; who hears them checks once more, for words come late, too.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from libs.events.base import HostFact, NumberedFact, PoolFact, VerdictFact
from libs.model import Incarnation


class HostConfirmedFailed(VerdictFact):
    """An operator vouches that the incarnation of an open verdict is down: a fence proof (DESIGN §4 rule 2)."""

    kind: Literal["host.confirmed_failed"] = "host.confirmed_failed"
    by: str = Field(min_length=1, description="user and machine of the person")
    said_at: str = Field(description="wall time, ISO 8601; for people, nothing is decided by it")


class MaintenanceFact(NumberedFact):
    """About a host over all its boots: it may well be rebooted meanwhile."""

    by: str = Field(min_length=1, description="user and machine of the person")


class HostMaintenanceEntered(MaintenanceFact):
    """The host takes no new VMs, and those that run there are moved away where it is drained. It is watched as before, and
    its failure is handled as any other."""

    kind: Literal["host.maintenance_entered"] = "host.maintenance_entered"
    override: str = Field(
        "",
        description="why it was said though the pool tolerates too little from then on; empty: it does not",
    )
    drain: bool = Field(False, description="what runs there moves to other hosts while it runs")


class HostMaintenanceExited(MaintenanceFact):
    """The host takes VMs again."""

    kind: Literal["host.maintenance_exited"] = "host.maintenance_exited"


class HostRemoved(HostFact):
    """The host is out of the pool for good. Its next boot, or the next life of its agent, joins as a new one."""

    kind: Literal["host.removed"] = "host.removed"
    agent: str = Field("", description="the life of its agent that is not listened to any more")
    by: str = Field(min_length=1, description="user and machine of the person")
    override: str = Field(
        "",
        description="why it was said though the pool tolerates too little from then on; empty: it does not",
    )

    @property
    def key(self) -> str:
        return f"{super().key}/{self.agent}"


class HostReadmitOrdered(NumberedFact):
    """An operator lets a host out of its quarantine, which has this number: the detector says that it is so."""

    kind: Literal["host.readmit_ordered"] = "host.readmit_ordered"
    by: str = Field(min_length=1, description="user and machine of the person")


class HostFenceTestOrdered(NumberedFact):
    """An operator wants this boot of a host really fenced, through each of its levels, to see that they work. The host is
    in maintenance; what runs there dies with it where `forced`, and there is no test otherwise."""

    kind: Literal["host.fence_test_ordered"] = "host.fence_test_ordered"
    at: Incarnation
    forced: bool = False
    switch_on: bool = True
    by: str = Field(min_length=1, description="user and machine of the person")
    said_at: str = Field(description="wall time, ISO 8601: an order that is minutes old is not obeyed")


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
