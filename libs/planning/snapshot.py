"""`rekindle.snapshot.v1`: a pool at one moment, as every planning command reads it."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from libs.model import Priority, Protection

READY = r"^(running|agent|tcp://[^\s/]+:\d{1,5}|https?://\S+)$"
WAIT_S = 300.0


class Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SnapshotHostState(StrEnum):
    ONLINE = "online"
    MAINTENANCE = "maintenance"
    FAILED = "failed"
    OFFLINE = "offline"


class PoolPolicy(Part):
    failures_to_tolerate: int = Field(1, ge=0)
    cpu_overcommit: PositiveFloat = Field(4.0, allow_inf_nan=False)
    memory_overcommit: PositiveFloat = Field(1.0, allow_inf_nan=False)
    migrations: bool = Field(True, description="healthy VMs may be moved to make room")
    preemption: bool = Field(False, description="VMs that matter less may be stopped to make room")


class SnapshotHost(Part):
    """`storage`, `networks` and `cpu_models` of None mean "no constraint"."""

    name: str = Field(min_length=1)
    state: SnapshotHostState = SnapshotHostState.ONLINE
    memory_mib: PositiveInt
    memory_reserved_mib: int = Field(0, ge=0)
    cpus: PositiveInt
    labels: dict[str, str] = Field(default_factory=dict)
    storage: tuple[str, ...] | None = None
    networks: tuple[str, ...] | None = None
    devices: dict[str, NonNegativeInt] = Field(default_factory=dict)
    cpu_models: tuple[str, ...] | None = Field(None, description="the CPU models that its guests may have")


class Dependency(Part):
    """Another VM that must be ready first, or have been waited for long enough. A plain name stands for one that
    must be running."""

    vm: str = Field(min_length=1)
    ready: str = Field(
        "running",
        pattern=READY,
        description="running; agent: its guest agent answers; tcp://HOST:PORT or http://...: that answers",
    )
    wait_s: PositiveFloat = Field(WAIT_S, allow_inf_nan=False, description="the longest wait")

    @model_serializer(mode="wrap")
    def _short(self, handler: SerializerFunctionWrapHandler) -> Any:
        return self.vm if (self.ready, self.wait_s) == ("running", WAIT_S) else handler(self)


def _named(value: Any) -> Any:
    return {"vm": value} if isinstance(value, str) else value


class SnapshotVm(Part):
    """`memory_mib` is what it occupies on a host, hypervisor overhead included."""

    name: str = Field(min_length=1)
    host: str | None = None
    state: Literal["running", "stopped"] = "running"
    memory_mib: PositiveInt
    vcpus: PositiveInt
    protection: Protection = Protection.RESTART
    priority: Priority = Priority.MEDIUM
    order: int = Field(0, ge=0)
    start_delay_s: float = Field(0.0, ge=0, allow_inf_nan=False)
    storage: tuple[str, ...] | None = None
    networks: tuple[str, ...] | None = None
    devices: dict[str, NonNegativeInt] = Field(default_factory=dict)
    cpu_model: str | None = None
    requires_labels: dict[str, str] = Field(default_factory=dict)
    prefers_labels: dict[str, str] = Field(default_factory=dict)
    after: tuple[Annotated[Dependency, BeforeValidator(_named)], ...] = ()


class GroupRule(StrEnum):
    AFFINITY = "affinity"
    ANTI_AFFINITY = "anti_affinity"


class SnapshotGroup(Part):
    """VMs that belong together, or apart, over hosts or over the values of a label. A host without the label is
    a place by itself."""

    name: str = Field(min_length=1)
    rule: GroupRule
    strict: bool = True
    scope: str = Field("host", min_length=1, description="host, or a label's name")
    vms: tuple[str, ...]


class Snapshot(Part):
    format: Literal["rekindle.snapshot.v1"] = Field("rekindle.snapshot.v1", alias="schema")
    pool: str = "pool"
    policy: PoolPolicy = PoolPolicy()
    hosts: tuple[SnapshotHost, ...]
    vms: tuple[SnapshotVm, ...] = ()
    groups: tuple[SnapshotGroup, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        from libs.planning.consistency import refusal  # which reads this model

        wrong = refusal(self)
        if wrong:
            raise ValueError(wrong)
        return self
