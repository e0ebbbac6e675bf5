"""What the agent's hands are asked to do, and what they bring."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from libs.core.decider import Outcome, Request
from libs.model import Incarnation, Inventory, RunLease, Value, VmDefinition, VmReport


class PassGate(Request):
    """Stop what may not run here, before this boot is announced (DESIGN §4 rule 5)."""

    kind: Literal["pass_gate"] = "pass_gate"
    at: Incarnation


class ReadAll(Request):
    """Read every VM and every definition."""

    kind: Literal["read_all"] = "read_all"


class PutInventory(Request):
    """Store the inventory for late readers."""

    kind: Literal["put_inventory"] = "put_inventory"
    inventory: Inventory


class PutDefinition(Request):
    """Copy a definition to the bus. `active`: it runs here, so this is the one that counts."""

    kind: Literal["put_definition"] = "put_definition"
    definition: VmDefinition
    active: bool


class Stopped(Value):
    """A VM that the gate stopped, and the lease that spoke against it."""

    report: VmReport
    lease: RunLease


class GatePassed(Outcome):
    stopped: tuple[Stopped, ...] = ()


class AllRead(Outcome):
    memory_mib: int
    cpus: int
    reports: tuple[VmReport, ...]
    definitions: tuple[VmDefinition, ...]


class Put(Outcome):
    """Stored."""


class Stirred(Outcome):
    """libvirt said that something changed: read again."""


REQUESTS: TypeAdapter[PassGate | ReadAll | PutInventory | PutDefinition] = TypeAdapter(
    Annotated[PassGate | ReadAll | PutInventory | PutDefinition, Field(discriminator="kind")]
)
