"""A pool without room asks for more: what is asked for, what is answered, and how it ends."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from libs.events.base import PoolFact
from libs.model import Value


class Needs(Value):
    """What is missing, as far as the plans tell."""

    vms: tuple[str, ...] = Field(description="names of those that wait for room")
    memory_mib: int = Field(description="of all of them")
    vcpus: int = Field(description="of all of them")
    host_memory_mib: int = Field(
        description="usable memory of the smallest host that any of it would run on: the largest VM"
    )
    host_vcpus: int
    storage: tuple[str, ...] = Field((), description="datastores that such a host must reach")
    networks: tuple[str, ...] = Field((), description="networks that it must have, as far as is known")
    devices: dict[str, int] = Field({}, description="devices that are missing, as far as is known")
    labels: tuple[str, ...] = Field((), description="labels that one VM or other requires, as in its policy")


class ScaleOutFact(PoolFact):
    """About one request. It lasts from the first VM without room until none is."""

    request: str = Field(description="names the request: the idempotency key of what is done about it")

    @property
    def key(self) -> str:
        return f"{self.kind}/{self.request}"


class AskingFact(ScaleOutFact):
    revision: int = Field(ge=1)
    needs: Needs
    why: tuple[Literal["exhausted", "overcommitted"], ...] = Field(
        (), description="VMs wait for room; or the pool could not take the failures that it is to tolerate"
    )
    deadline_s: float = Field(description="people are told where nothing has come of it by then")
    callback: str = Field("", description="URL for answers; empty where none is configured")

    @property
    def key(self) -> str:
        return f"{self.kind}/{self.request}/{self.revision}"


class ScaleOutRequested(AskingFact):
    """VMs wait for room: bring a host. Said once a shortage."""

    kind: Literal["scaleout.requested"] = "scaleout.requested"


class ScaleOutUpdated(AskingFact):
    """What is missing has changed; the request is the same."""

    kind: Literal["scaleout.updated"] = "scaleout.updated"


class ScaleOutAnswered(ScaleOutFact):
    """What a workflow says of a request."""

    kind: Literal["scaleout.answered"] = "scaleout.answered"
    answer: str = Field(min_length=1, description="names this answer")
    status: Literal["accepted", "refused", "progress"]
    detail: str = Field("", max_length=500)
    host: str = Field("", max_length=63, description="the host that is to come, where it is known")

    @property
    def key(self) -> str:
        return f"{self.kind}/{self.request}/{self.answer}"


class ScaleOutEscalated(ScaleOutFact):
    """Nothing comes of a request: people must do something."""

    kind: Literal["scaleout.escalated"] = "scaleout.escalated"
    revision: int
    reason: str

    @property
    def key(self) -> str:
        return f"{self.kind}/{self.request}/{self.revision}"


class ScaleOutClosed(ScaleOutFact):
    """No VM waits for room any more: `met` where a host has joined since, else `cancelled`. What is still under way for
    it may be stopped."""

    kind: Literal["scaleout.closed"] = "scaleout.closed"
    outcome: Literal["met", "cancelled"]
    hosts: tuple[str, ...] = Field((), description="that joined while it was open")


class CallbackRefused(PoolFact):
    """Somebody sent an answer that is not signed by a key of ours, is too old, or was sent before. Told once a minute."""

    kind: Literal["callback.refused"] = "callback.refused"
    peer: str
    reason: str
    minute: int = Field(description="of the wall clock, so that a flood is one event a minute")

    @property
    def key(self) -> str:
        return f"{self.kind}/{self.minute}"
