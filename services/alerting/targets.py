"""The endpoints of a pool file with what lies in files for them: keys, and authorities to trust."""

from __future__ import annotations

from libs.config.settings import Settings
from services.alerting.posting import Target


def targets(settings: Settings) -> dict[str, Target]:
    """By name. Raises BadInputError naming field and reason, before anything is posted."""
    return {
        webhook.name: Target.of(webhook, f"alerts.webhooks.{index}")
        for index, webhook in enumerate(settings.alerts.webhooks)
    }
