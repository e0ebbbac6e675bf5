"""Hosts that are off until the pool needs them."""

from __future__ import annotations

from pydantic import Field, PositiveFloat

from libs.config.entries import Section


class Standby(Section):
    """With it, hosts with `standby: true` and fence devices are switched on when the pool is short, and off again."""

    overcommitted_s: float = Field(
        300.0,
        ge=0,
        description="so long without a plan for the failures to tolerate, until one is switched on",
    )
    boot_s: PositiveFloat = Field(
        600.0, description="for its agent to join; then people are told and the next one is tried"
    )
    idle_s: float = Field(
        0.0,
        ge=0,
        description="an idle one is switched off again after the pool has had enough for so long; 0: never",
    )
