"""What is told from outside, read and given its meaning by the rules of the pool file. Pure."""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Iterator
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from libs.config.incoming import Incoming
from libs.events.outside import OutsideTold

ALERTS_MOST = 200


class Told(BaseModel):
    """The body of an event: what is posted to /v1/events, or published on the bus."""

    model_config = ConfigDict(extra="ignore")
    id: str = Field(min_length=1, max_length=200)
    name: str = Field(min_length=1, max_length=100)
    host: str = Field("", max_length=255)
    severity: str = Field("", max_length=40)
    state: Literal["firing", "resolved"] = "firing"
    text: str = Field("", max_length=500)
    labels: dict[str, str] = {}


class AmAlert(BaseModel):
    """One alert of a notification. Source: Alertmanager's documentation of `webhook_config`, version 4."""

    model_config = ConfigDict(extra="ignore")
    status: Literal["firing", "resolved"]
    labels: dict[str, str]
    annotations: dict[str, str] = {}
    startsAt: str = ""
    fingerprint: str = Field(min_length=1, max_length=64)


class AmNotification(BaseModel):
    """What an Alertmanager posts to a webhook."""

    model_config = ConfigDict(extra="ignore")
    version: Literal["4"]
    status: Literal["firing", "resolved"]
    alerts: tuple[AmAlert, ...] = Field(max_length=ALERTS_MOST)


def of_event(told: Told, source: str, incoming: Incoming, hosts: Collection[str]) -> OutsideTold:
    """The fact that an event is."""
    host = named(told.host, hosts)
    fields: dict[str, Any] = told.model_dump(exclude={"host", "labels"})
    labels = {"host": told.host, **told.labels}
    return OutsideTold(
        **fields, source=source, host=host, action=_action(incoming, source, told, labels, host)
    )


def of_alerts(
    notification: AmNotification, incoming: Incoming, hosts: Collection[str]
) -> Iterator[OutsideTold]:
    """The facts that the alerts of a notification are. Alertmanager repeats them: each is the same fact until it
    changes."""
    for alert in notification.alerts:
        host = next(
            (one for label in incoming.host_labels if (one := named(alert.labels.get(label, ""), hosts))), ""
        )
        said = alert.annotations.get("summary") or alert.annotations.get("description") or ""
        told = Told(
            id=f"{alert.fingerprint}/{alert.startsAt}/{alert.status}"[:200],
            name=(alert.labels.get("alertname") or "alert")[:100],
            severity=alert.labels.get("severity", "")[:40],
            state=alert.status,
            text=said[:500],
        )
        action = _action(incoming, "alertmanager", told, alert.labels, host)
        fields: dict[str, Any] = told.model_dump(exclude={"host", "labels"})
        yield OutsideTold(**fields, source="alertmanager", host=host, action=action)


def named(text: str, hosts: Collection[str]) -> str:
    """The host of the pool that a text names, by its name, with a port or a domain behind it; "" for none."""
    bare = text.rpartition(":")[0] if text.rpartition(":")[2].isdigit() else text
    return next((one for one in (bare, bare.partition(".")[0]) if one in hosts), "")


def _action(
    incoming: Incoming, source: str, told: Told, labels: dict[str, str], host: str
) -> Literal["note", "drain", "mark_suspect"]:
    """By the first rule that matches. What is over, or about no host of the pool, is noted: nothing is undone by it."""
    if not host or told.state == "resolved":
        return "note"
    for rule in incoming.rules:
        if (
            fnmatch.fnmatchcase(source, rule.source)
            and fnmatch.fnmatchcase(told.name, rule.name)
            and (not rule.severities or told.severity in rule.severities)
            and all(fnmatch.fnmatchcase(labels.get(name, ""), value) for name, value in rule.labels.items())
        ):
            return rule.do
    return "note"
