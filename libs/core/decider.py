"""What a decider is: pure steps from state and input to state and owed effects.

A decider never awaits, reads a clock, draws chance, logs or does I/O. Timers are a function of state
(`wake_at`), so there is nothing to cancel. The shell (libs/core/shell.py) is the only caller.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from pydantic import BaseModel, Field

from libs.core.records import Records as Records  # noqa: PLC0414  whoever decides finds it here
from libs.events.base import Fact
from libs.events.facts import AnyFact
from libs.events.signals import Signal
from libs.model import Value

S = TypeVar("S")


@dataclass(frozen=True, slots=True)
class Publish:
    """Owed: publish a fact. Its key makes the repeat harmless."""

    record: str
    fact: AnyFact

    @property
    def key(self) -> str:
        return self.fact.key


@dataclass(frozen=True, slots=True)
class Send:
    """Not owed: a signal over core NATS, best effort."""

    topic: str
    signal: Signal


@dataclass(frozen=True, slots=True)
class Note:
    """Not owed: one line in the log, where there is no fact yet that could say it."""

    text: str


class Request(Value):
    """Base of what an act is asked to do. Concrete requests carry a `kind`; equal keys mean the same act."""

    kind: str
    key: str = Field(min_length=1)
    deadline_s: float = Field(gt=0, description="the act is cancelled then and its outcome is Expired")


@dataclass(frozen=True, slots=True)
class Act:
    """Do something to the world; the outcome comes back as an input. Owed where it names a record."""

    record: str | None
    request: Request

    @property
    def key(self) -> str:
        return self.request.key


Effect = Publish | Send | Note | Act


class Outcome(Value):
    """Base of what an act brought. `key` is the request's."""

    key: str

    @property
    def ended(self) -> str:
        """One word of how it ended, for who counts."""
        return "done"


class Expired(Outcome):
    """The act did not end by its deadline, or the world refused in a way that the act did not foresee."""

    request: str = Field(description="kind of the request")
    reason: str

    @property
    def ended(self) -> str:
        return "expired"


@dataclass(frozen=True, slots=True)
class BusChanged:
    """The connection to the bus was lost or came back. Whoever was deaf must not call others silent."""

    connected: bool


@dataclass(frozen=True, slots=True)
class TableRead:
    """One full reading of a bucket: at start and every few seconds. May be stale; a hint, never a lock."""

    table: str
    rows: tuple[BaseModel, ...]


@dataclass(frozen=True, slots=True)
class Paused:
    """The shell's loop stood still for `for_s` (overload, SIGSTOP, suspend): what was not heard means nothing."""

    for_s: float


# facts by their base: a union of ninety kinds would be narrowed anew at each case of each decider
Input = Fact | Signal | Outcome | BusChanged | TableRead | Paused


@dataclass(frozen=True, slots=True)
class Step(Generic[S]):
    """The state after, and the effects it owes, in the order in which they are to begin."""

    state: S
    effects: tuple[Effect, ...] = ()


class Decider(Protocol[S]):
    """One service's decisions."""

    @property
    def record_type(self) -> Any:
        """The model of the records of this service, or a union of models."""

    def initial(self, now: float) -> S:
        """The state of a process that has heard nothing."""

    def resume(self, state: S, records: Records, now: float) -> Step[S]:
        """Leadership was gained (again): adopt the stored records and re-base all timers on `now`.

        Owed effects are performed again by the shell itself."""

    def records(self, state: S) -> Records:
        """The persistent part of the state; compared by identity after every step."""

    def step(self, state: S, event: Input | None, now: float) -> Step[S]:
        """`event` is None when the deadline of `wake_at` came. A follower gets signals only."""

    def wake_at(self, state: S) -> float | None:
        """The next deadline; strictly ahead after a deadline step."""
