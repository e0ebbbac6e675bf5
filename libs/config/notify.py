"""Where people are told of alerts: chat, mail, pagers and the rest; and Alertmanager."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field, PositiveFloat

from libs.config.entries import Name, Secret, Section
from libs.config.webhooks import Endpoint, shown_in, trust
from libs.config.yamlfile import BadInputError


class Channel(Section):
    """One place where people are told, as the apprise library addresses it. The address is a secret: it mostly holds
    a token."""

    name: Name
    url: Secret = Field(description="where its apprise URL lies, such as mailto://... or slack://...")
    severities: tuple[Literal["warning", "critical"], ...] = ("warning", "critical")

    def address(self, where: str) -> str:
        """Its apprise URL. Raises BadInputError naming field and reason."""
        try:
            return self.url.read()
        except BadInputError as error:
            raise BadInputError(f"{where}.url: {error}") from error


class Alertmanager(Section):
    """One Prometheus Alertmanager: told of all alerts, and again every minute while they last (API v2)."""

    name: Name
    url: Endpoint = Field(description="its base, such as https://alerts.example.com:9093")
    timeout_s: PositiveFloat = Field(5.0, le=60)
    ca_file: Path | None = Field(None, description="authorities to trust instead of the system's")


def refuse_unreadable(channels: Sequence[Channel], managers: Sequence[Alertmanager], path: Path) -> None:
    """Read what these need from other files. Raises BadInputError naming file, line, field and reason."""
    with shown_in(path):
        for index, channel in enumerate(channels):
            channel.address(f"alerts.channels.{index}")
        for index, manager in enumerate(managers):
            trust(manager.ca_file, f"alerts.alertmanagers.{index}")
