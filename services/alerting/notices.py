"""What the keeper of alerts is told, asks for and writes down."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from libs.core.decider import Outcome, Request
from libs.model import Value
from services.alerting.letters import Fetch
from services.alerting.texts import Severity


class Alert(Value):
    """One alert that stands. `key` is the same whenever it is raised again: what others deduplicate by."""

    kind: Literal["alert"] = "alert"
    key: str
    name: str
    severity: Severity
    text: str
    do: str
    since: str = Field(description="wall time of the event that raised it, ISO 8601; for people")
    event: str = Field(description="id of the event that raised it last")
    count: int = Field(1, description="how often it was raised since it stands")
    acknowledged_by: str = ""
    sequence: int = Field(0, description="of the event in the stream that was heard last of it")
    told: bool = Field(False, description="people were told; else nobody need hear that it is over")
    untold: Literal["", "firing", "resolved"] = Field("", description="what people are still to be told")
    over: bool = Field(False, description="it stands no more; kept until people are told so")


class Silence(Value):
    """Nobody is told of alerts whose key matches. What is left of it is written down once a minute."""

    kind: Literal["silence"] = "silence"
    order: str
    pattern: str
    left_s: float
    by: str


class Heard(Value):
    """How far the stream has been read, and all that came of it written down."""

    kind: Literal["heard"] = "heard"
    sequence: int


class Notice(Value):
    """One alert as people are told of it."""

    key: str
    state: Literal["firing", "resolved"]
    name: str
    severity: Severity
    text: str
    do: str
    since: str
    count: int = 1


class Message(Value):
    """What is on its way to one channel: one notice, or several as a digest; and what goes after it."""

    kind: Literal["message"] = "message"
    channel: str
    notices: tuple[Notice, ...]
    next: tuple[Notice, ...] = ()
    tries: int = 0
    waits: bool = Field(False, description="for its next try")


AlertRecord = Annotated[Alert | Silence | Heard | Message, Field(discriminator="kind")]


class Tell(Request):
    """Tell people, through one channel. Owed."""

    kind: Literal["tell"] = "tell"
    channel: str
    record: str
    notices: tuple[Notice, ...]


class Mirror(Request):
    """Show one Alertmanager what stands now, and what is over. Not owed: it is shown again every minute."""

    kind: Literal["mirror"] = "mirror"
    manager: str
    notices: tuple[Notice, ...]


class Said(Outcome):
    """What came of telling people."""

    record: str
    ok: bool
    reason: str = ""


class Mirrored(Outcome):
    manager: str
    ok: bool
    reason: str = ""


REQUESTS: TypeAdapter[Fetch | Tell | Mirror] = TypeAdapter(
    Annotated[Fetch | Tell | Mirror, Field(discriminator="kind")]
)
