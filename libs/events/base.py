"""What facts share: each names itself by a key, and whom it is about. The facts themselves are in facts.py."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from libs.model import Incarnation, Value


class Fact(Value):
    """What all facts share. `about` is the last token of the subject: [A-Za-z0-9_-] only."""

    VERSION: ClassVar[int] = 1
    kind: str
    cause: str = Field("", description="key of the fact or signal that led here")
    rule: str = Field("", description="the rule that decided")

    @property
    def key(self) -> str:
        """Deterministic: the same fact always has the same key."""
        raise NotImplementedError(f"{type(self).__name__} names no key")

    @property
    def about(self) -> str:
        """The host, VM or incident that this is about."""
        raise NotImplementedError(f"{type(self).__name__} names no subject")


class HostFact(Fact):
    """A fact about one incarnation of one host."""

    at: Incarnation

    @property
    def about(self) -> str:
        return self.at.host

    @property
    def key(self) -> str:
        return f"{self.kind}/{self.at.host}/{self.at.boot}"


class SuspicionFact(HostFact):
    """Numbered within one host: a host may be suspected many times."""

    number: int

    @property
    def key(self) -> str:
        return f"{super().key}/{self.number}"


class VerdictFact(HostFact):
    """A fact about one verdict on one host."""

    incident: str
    epoch: int

    @property
    def key(self) -> str:
        return f"{self.kind}/{self.incident}"


class NumberedFact(Fact):
    """About a host over all its boots, numbered within it, so that what comes late or again is known to be old."""

    host: str
    number: int = Field(ge=1)

    @property
    def about(self) -> str:
        return self.host

    @property
    def key(self) -> str:
        return f"{self.kind}/{self.host}/{self.number}"


class PoolFact(Fact):
    """A fact about the pool as a whole."""

    @property
    def about(self) -> str:
        return "pool"


class RevisedFact(Fact):
    """A fact about one revision of one incident."""

    incident: str
    revision: int

    @property
    def key(self) -> str:
        return f"{self.kind}/{self.incident}/{self.revision}"

    @property
    def about(self) -> str:
        return self.incident


class VmFact(Fact):
    """A fact about one VM at one host."""

    vm: str
    name: str
    at: Incarnation

    @property
    def about(self) -> str:
        return self.vm
