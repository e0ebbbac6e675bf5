"""Facts about what the pool could take, told before anything fails, once a transition."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from libs.events.base import PoolFact
from libs.events.scaleout import Needs


class NumberedPoolFact(PoolFact):
    """Numbered, so that what is told again is known to be old."""

    number: int = Field(ge=1)

    @property
    def key(self) -> str:
        return f"{self.kind}/{self.number}"


class CapacityOvercommitted(NumberedPoolFact):
    """There is no plan any more for the loss of as many hosts as the pool is to tolerate. VMs are named as people do."""

    kind: Literal["capacity.overcommitted"] = "capacity.overcommitted"
    target: int
    tolerates: int
    verified: int
    upper_bound: int
    worst_case: tuple[str, ...] = Field((), description="hosts whose loss leaves VMs down")
    unplaced: tuple[str, ...] = Field((), description="these VMs")
    fit_nowhere: tuple[str, ...] = Field((), description="VMs that would find no room even as the only ones")
    worst_case_in_words: str = ""
    needs: Needs | None = Field(None, description="what the VMs take that would stay down in that case")
    started: tuple[str, ...] = Field(
        (),
        description="VMs that came to run since the pool could still take it, and were not started by Rekindle",
    )


class CapacityRestored(NumberedPoolFact):
    """There is one again. `number` is that of the overcommitment that is over."""

    kind: Literal["capacity.restored"] = "capacity.restored"
    target: int
    tolerates: int


class PolicyContradicted(NumberedPoolFact):
    """The policies of VMs contradict each other: the weakest rule is not obeyed, and everything else is."""

    kind: Literal["policy.contradicted"] = "policy.contradicted"
    dropped: str = Field(description="the rule, by name")
    reason: str
