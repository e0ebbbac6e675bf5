"""Asking for more capacity, and where the answers come in."""

from __future__ import annotations

from pydantic import Field, PositiveFloat

from libs.config.entries import Secret, Section
from libs.config.webhooks import Endpoint, key_of


class Callbacks(Section):
    """Alerting's own HTTP endpoint, for answers that are signed as webhooks are."""

    listen: str = Field(pattern=r"^[^\s:]+:\d{1,5}$", description="host:port, such as 0.0.0.0:7420")
    url: Endpoint = Field(description="its base as others reach it; told in each request")
    secrets: tuple[Secret, ...] = Field(min_length=1, max_length=4, description="keys that sign answers")

    def keys(self, where: str) -> tuple[str, ...]:
        """Raises BadInputError naming field and reason."""
        return tuple(key_of(secret, f"{where}.secrets.{n}") for n, secret in enumerate(self.secrets))


class ScaleOut(Section):
    """With it, a pool without room asks for a host by events: `scaleout.requested` and so on."""

    deadline_s: PositiveFloat = Field(600.0, description="without a sign of a host, until people are told")
    overcommitted_s: float | None = Field(
        300.0,
        ge=0,
        description="so long without a plan for the failures to tolerate, until a host is asked for; null: never",
    )
    callbacks: Callbacks | None = None
