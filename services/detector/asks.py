"""The detector's questions and their answers: requests to its hands, outcomes back."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from libs.core.decider import Outcome, Request
from libs.events.signals import SlotSeen
from libs.model import Answer, PowerState


class AskPower(Request):
    """What does the fence device say of the power?"""

    kind: Literal["ask_power"] = "ask_power"
    host: str
    number: int


class AskLibvirt(Request):
    """Does the host's libvirt answer the management side?"""

    kind: Literal["ask_libvirt"] = "ask_libvirt"
    host: str
    number: int


class AskPeer(Request):
    """Can this peer see the host?"""

    kind: Literal["ask_peer"] = "ask_peer"
    host: str
    number: int
    peer: str


class Answered(Outcome):
    """One channel's answer. A peer that did not answer has not voted: its answer is `unknown`."""

    host: str
    number: int
    channel: str
    answer: Answer = Answer.UNKNOWN
    power: PowerState = PowerState.UNKNOWN
    detail: str = ""
    slots: tuple[SlotSeen, ...] = ()
    """What a peer read in the host's slots."""


class Disconnected(Outcome):
    """The bus says that the connection of a host's agent ended: a hint to ask at once, never a verdict."""

    host: str


class Panicked(Outcome):
    """A host's crash kernel says that it dumps the memory of a panicked one."""

    host: str


REQUESTS: TypeAdapter[AskPower | AskLibvirt | AskPeer] = TypeAdapter(
    Annotated[AskPower | AskLibvirt | AskPeer, Field(discriminator="kind")]
)
