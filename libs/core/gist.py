"""What a log line says of an input."""

from __future__ import annotations

from typing import Any

from libs.core.decider import Input
from libs.events.base import Fact


def name(event: Input) -> str:
    return event.kind if isinstance(event, Fact) else type(event).__name__


def gist(fact: Fact) -> dict[str, Any]:
    """What a log line says of a fact: everything small in it."""
    body = fact.model_dump(mode="json", exclude={"kind", "vms", "report"}, exclude_defaults=True)
    return {"what": fact.kind, **body}
