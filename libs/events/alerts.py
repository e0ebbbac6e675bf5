"""An operator's words on alerts."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from libs.events.base import PoolFact


class AlertWord(PoolFact):
    """`order` names the word among all."""

    order: str = Field(min_length=1)
    by: str = Field(min_length=1, description="user and machine of the person")

    @property
    def key(self) -> str:
        return f"{self.kind}/{self.order}"


class AlertAcknowledged(AlertWord):
    """Somebody minds this alert: it is repeated no more. When it clears and is raised again it is a new one."""

    kind: Literal["alert.acknowledged"] = "alert.acknowledged"
    alert: str = Field(description="key of the alert, as `rekindle alerts` shows it")


class AlertSilenced(AlertWord):
    """Nobody is told of alerts whose key matches, for so long. They are raised and cleared all the same."""

    kind: Literal["alert.silenced"] = "alert.silenced"
    pattern: str = Field(min_length=1, description="of keys; * stands for any part")
    for_s: float = Field(gt=0)


class AlertUnsilenced(AlertWord):
    """A silence is over before its time. Its number is the order of the word that began it."""

    kind: Literal["alert.unsilenced"] = "alert.unsilenced"
    silence: str
