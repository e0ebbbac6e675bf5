"""Facts about the plane's own stored state."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from libs.events.base import PoolFact
from libs.model import Mark


class StateRestored(PoolFact):
    """What lies in the store is an old copy: nothing is started, fenced or judged until every host has told what it
    runs, or an operator has said not to wait for it."""

    kind: Literal["state.restored"] = "state.restored"
    found: Mark = Field(description="what lies in the store")
    told: Mark = Field(description="the highest that an agent has heard")
    since: str = Field(description="wall time, ISO 8601; for people")

    @property
    def key(self) -> str:
        return f"{self.kind}/{self.told.generation}/{self.told.number}/{self.since}"


class StateReconciled(PoolFact):
    """The leases are as the hosts told, and the plane goes on."""

    kind: Literal["state.reconciled"] = "state.reconciled"
    generation: int
    adopted: int = Field(description="VMs whose lease was written anew, by where they run")
    down: tuple[str, ...] = Field(
        description="names of VMs that should run by the old copy and run nowhere: they stay down until a person starts them"
    )
    unheard: tuple[str, ...] = Field((), description="hosts that told nothing, by an operator's word")

    @property
    def key(self) -> str:
        return f"{self.kind}/{self.generation}"
