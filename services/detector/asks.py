"""The detector's questions and their answers: requests to its hands, outcomes back."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from libs.core.decider import Outcome, Request
from libs.events.signals import SlotSeen
from libs.model import Answer, Incarnation, Inventory, PowerState, VmReport


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


class LookOverLibvirt(Request):
    """What VMs does this boot of a host have, by its libvirt? `agent` and `rev` name the last word of its agent;
    `known_s`: so long ago the host was known to be in this boot, None where nobody can say."""

    kind: Literal["look_over_libvirt"] = "look_over_libvirt"
    at: Incarnation
    agent: str
    rev: int
    known_s: float | None = None


class StoreLook(Request):
    """Keep for late readers what a look showed, unless the agent itself has stored something since."""

    kind: Literal["store_look"] = "store_look"
    inventory: Inventory


class Looked(Outcome):
    """All VMs of that boot, as its libvirt shows them."""

    at: Incarnation
    agent: str
    rev: int
    reports: tuple[VmReport, ...]


class Stored(Outcome):
    """It is stored, or the agent's own later word is."""


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


Ask = AskPower | AskLibvirt | AskPeer | LookOverLibvirt | StoreLook
REQUESTS: TypeAdapter[Ask] = TypeAdapter(Annotated[Ask, Field(discriminator="kind")])
