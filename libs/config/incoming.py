"""What other systems may tell: where it comes in, who may, and what it means."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from libs.config.entries import Secret, Section
from libs.config.webhooks import key_of
from libs.config.yamlfile import BadInputError

TOKEN_LEAST = 16


class IncomingRule(Section):
    """One row: what must be so, all of it, and what is done then. Patterns have * and ?."""

    source: str = Field(
        "*", min_length=1, description="who tells: a user of the bus, `events`, or `alertmanager`"
    )
    name: str = Field("*", min_length=1, description="of the event; of an alert its alertname")
    severities: tuple[str, ...] = Field((), description="such as critical; any where none is named")
    labels: dict[str, str] = Field({}, description="patterns of an alert's labels")
    do: Literal["note", "drain", "mark_suspect"]


class Incoming(Section):
    """With it, other systems may tell facts. What no rule names is noted."""

    listen: str | None = Field(
        None,
        pattern=r"^[^\s:]+:\d{1,5}$",
        description="host:port of the HTTP endpoint; none where it is not given",
    )
    secrets: tuple[Secret, ...] = Field(
        (), max_length=4, description="keys that sign what is posted to /v1/events"
    )
    tokens: tuple[Secret, ...] = Field(
        (), max_length=4, description="bearer tokens with which an Alertmanager posts to /v1/alertmanager"
    )
    host_labels: tuple[str, ...] = Field(
        ("host", "instance", "node", "nodename"), description="labels of an alert that may name a host"
    )
    rules: tuple[IncomingRule, ...] = Field((), description="the first that matches holds")

    @model_validator(mode="after")
    def _somebody_may(self) -> Incoming:
        if self.listen is not None and not self.secrets and not self.tokens:
            raise ValueError("listen is given, and neither secrets nor tokens: nobody could be believed")
        if self.listen is None and (self.secrets or self.tokens):
            raise ValueError("secrets or tokens are given, and no listen: nothing could come in")
        return self

    def keys(self, where: str) -> tuple[str, ...]:
        """Keys that sign events. Raises BadInputError naming field and reason."""
        return tuple(key_of(secret, f"{where}.secrets.{n}") for n, secret in enumerate(self.secrets))

    def bearers(self, where: str) -> tuple[str, ...]:
        """Tokens. Raises BadInputError naming field and reason, never the content."""
        found = []
        for number, secret in enumerate(self.tokens):
            try:
                text = secret.read()
            except BadInputError as error:
                raise BadInputError(f"{where}.tokens.{number}: {error}") from error
            if len(text) < TOKEN_LEAST or not text.isascii() or " " in text:
                raise BadInputError(
                    f"{where}.tokens.{number}: is no token: {TOKEN_LEAST} characters at least, no spaces"
                )
            found.append(text)
        return tuple(found)
