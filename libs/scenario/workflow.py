"""What brings capacity in a scenario: a workflow that hears the pool's scale-out requests."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat

from libs.config.entries import Name


class Workflow(BaseModel):
    """It switches one host on for each request. In the lab a server that speaks HTTP, in the simulator one that hears the
    facts; what it takes to provide the host is a time."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    brings: Name = Field(description="a host of the pool that is off at first: one with standby: true")
    after_s: PositiveFloat = Field(1.0, description="from the request until that host's power is on")
