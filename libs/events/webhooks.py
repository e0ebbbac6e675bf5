"""What becomes of the deliveries to other systems' endpoints, and an operator's word on them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from libs.events.base import Fact


class WebhookFact(Fact):
    """About one endpoint, at one place in the stream of events. An endpoint is not told what is about itself."""

    endpoint: str
    sequence: int = Field(description="of the event in the stream that was to be delivered")

    @property
    def about(self) -> str:
        return self.endpoint

    @property
    def key(self) -> str:
        return f"{self.kind}/{self.endpoint}/{self.sequence}"


class WebhookFailing(WebhookFact):
    """An endpoint has not taken an event for some minutes: it is tried for a day, and what follows waits behind it."""

    kind: Literal["webhook.failing"] = "webhook.failing"
    reason: str


class WebhookRecovered(WebhookFact):
    """The endpoint takes events again."""

    kind: Literal["webhook.recovered"] = "webhook.recovered"


class WebhookDisabled(WebhookFact):
    """The endpoint said that it is gone for good (410): it is told nothing until an operator says `webhooks retry`."""

    kind: Literal["webhook.disabled"] = "webhook.disabled"
    reason: str


class WebhookDeadLettered(WebhookFact):
    """One event was given up for one endpoint. An operator may have it sent again."""

    kind: Literal["webhook.dead_lettered"] = "webhook.dead_lettered"
    undelivered: str = Field(description="the id of the event")
    reason: str
    tries: int


class WebhookRetryOrdered(Fact):
    """An operator has an endpoint's dead letters sent again, and the endpoint enabled where it was disabled."""

    kind: Literal["webhook.retry_ordered"] = "webhook.retry_ordered"
    endpoint: str
    order: str = Field(min_length=1, description="names this order among all")
    events: tuple[str, ...] = Field(
        (), description="ids of events; all of its dead letters where none is named"
    )
    by: str = Field(min_length=1, description="user and machine of the person")

    @property
    def about(self) -> str:
        return self.endpoint

    @property
    def key(self) -> str:
        return f"{self.kind}/{self.endpoint}/{self.order}"
