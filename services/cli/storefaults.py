"""Deliberate faults about datastores that are lost on one host, or fail for all. See mutations.py."""

from __future__ import annotations

from typing import Any

from libs.core.decider import Step
from services.detector import datastores
from services.placement import stores

Patch = tuple[Any, str, Any]


def peers_not_asked() -> list[Patch]:
    """A host's own word is enough: what fails for all is lost on each."""
    return [(datastores._Words, "majority", lambda self, *said: True)]


def loss_unnoticed() -> list[Patch]:
    return [(datastores, "look", lambda state, hosts, settings, now: Step(state))]


def reach_ignored() -> list[Patch]:
    """Who has lost a datastore, and whether anybody has it, is nothing to a plan."""
    return [(stores, "with_reach", lambda state, shot, has, wanted: shot)]
