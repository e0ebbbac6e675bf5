"""`rekindle.snapshot.v1`: a pool at one moment, as every planning command reads it."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator

from libs.model import Priority, Protection


class Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SnapshotHostState(StrEnum):
    ONLINE = "online"
    MAINTENANCE = "maintenance"
    FAILED = "failed"
    OFFLINE = "offline"


class PoolPolicy(Part):
    failures_to_tolerate: int = Field(1, ge=0)
    cpu_overcommit: PositiveFloat = 4.0
    memory_overcommit: PositiveFloat = 1.0


class SnapshotHost(Part):
    """`storage` and `networks` of None mean "no constraint"."""

    name: str = Field(min_length=1)
    state: SnapshotHostState = SnapshotHostState.ONLINE
    memory_mib: PositiveInt
    memory_reserved_mib: int = Field(0, ge=0)
    cpus: PositiveInt
    labels: dict[str, str] = {}
    storage: tuple[str, ...] | None = None
    networks: tuple[str, ...] | None = None
    devices: dict[str, int] = {}


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
    storage: tuple[str, ...] | None = None
    networks: tuple[str, ...] | None = None
    devices: dict[str, int] = {}
    requires_labels: dict[str, str] = {}


class Snapshot(Part):
    format: Literal["rekindle.snapshot.v1"] = Field("rekindle.snapshot.v1", alias="schema")
    pool: str = "pool"
    policy: PoolPolicy = PoolPolicy()
    hosts: tuple[SnapshotHost, ...]
    vms: tuple[SnapshotVm, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        hosts = [host.name for host in self.hosts]
        vms = [vm.name for vm in self.vms]
        for kind, names in (("hosts", hosts), ("vms", vms)):
            if len(set(names)) < len(names):
                twice = sorted(name for name in set(names) if names.count(name) > 1)
                raise ValueError(f"{kind}: {twice[0]} is given twice")
        for vm in self.vms:
            if vm.host is not None and vm.host not in hosts:
                raise ValueError(f"vms.{vm.name}.host: there is no host {vm.host}")
        return self
