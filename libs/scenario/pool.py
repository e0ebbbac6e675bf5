"""What a pool of a scenario file is made of: hosts with their fence devices, datastores, VMs."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator

from libs.config.entries import Name
from libs.model import (
    AFTER,
    GROUPS,
    LABELS,
    READY,
    GuestFailure,
    Isolation,
    Offers,
    Priority,
    Protection,
    VmPolicy,
)

ARCH = "x86_64"
"""Of a host of which the file says what it offers."""
_MADE, _HEX = r"[0-9a-f]{4}:[0-9a-f]{4}", "[0-9a-f]"
_PCI = rf"pci {_MADE} {_HEX}{{4}}:{_HEX}{{2}}:{_HEX}{{2}}\.[0-7]"
_MDEV = rf"mdev \S+ {_HEX}{{8}}(-{_HEX}{{4}}){{3}}-{_HEX}{{12}}"
_DEVICE = re.compile(rf"({_PCI}|{_MDEV}|usb {_MADE})")


class Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


def _device(name: str) -> str:
    if not _DEVICE.fullmatch(name):
        words = "`pci 10de:1eb8 0000:3b:00.0`, `mdev nvidia-63 UUID` or `usb 1050:0407`"
        raise ValueError(f"{name!r} is no device as inventories name them: {words}")
    return name


def _devices(found: dict[str, int]) -> dict[str, int]:
    for name, count in found.items():
        if count > 1 and not name.startswith("usb "):
            raise ValueError(f"{name} is one device, at one address, not {count}")
    return found


Devices = Annotated[dict[Annotated[str, AfterValidator(_device)], PositiveInt], AfterValidator(_devices)]
"""How many of each, by the names that inventories give them (libs/model.py:Offers)."""
CpuModel = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]


class FencingEntry(Part):
    """One fence device of a host. Several on one level are the feeds of its power supplies: all must be off."""

    method: Literal["power", "watchdog"]
    name: Name | None = Field(
        None, description="such as bmc or pdu: what break_fencing can name instead of a method"
    )
    level: int = Field(1, ge=1, le=9)
    timeout_s: PositiveFloat | None = Field(
        None,
        description="of a power device: for one call; of a watchdog, in whole seconds: until it resets its host",
    )
    coarse_s: PositiveFloat | None = Field(
        None, description="of a watchdog in the simulator: it takes multiples of that only, rounded up"
    )

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.method == "power" and self.coarse_s is not None:
            raise ValueError("coarse_s: means nothing for power")
        if self.method == "watchdog" and self.timeout_s is not None and self.timeout_s % 1:
            raise ValueError(f"timeout_s: {self.timeout_s:g} s; a watchdog takes whole seconds")
        if self.method == "watchdog" and self.timeout_s is not None and not 5 <= self.timeout_s <= 600:
            raise ValueError(f"timeout_s: {self.timeout_s:g} s; of a watchdog it is from 5 to 600 s")
        return self


class ScenarioHost(Part):
    name: Name
    memory_mib: PositiveInt = 4096
    cpus: PositiveInt = 4
    memory_reserved_mib: int = Field(0, ge=0)
    labels: dict[str, str] = {}
    agent: bool = Field(True, description="false: it is watched over its libvirt from the management machine")
    gate: bool = Field(
        True, description="false: nothing stands before its libvirt at boot (no rekindle-gate.service)"
    )
    standby: bool = Field(False, description="it is off at first, and may be")
    networks: tuple[Name, ...] | None = Field(
        None, description="that VMs can join there; where absent, all that the file names anywhere"
    )
    devices: Devices | None = Field(
        None,
        description="that can be passed through, named as inventories name them; where absent, nobody can tell. "
        "Of the simulator only",
    )
    cpu_models: tuple[CpuModel, ...] | None = Field(
        None, description="that its hypervisor can give; where absent, nobody can tell. Of the simulator only"
    )
    fencing: tuple[FencingEntry, ...] = (FencingEntry(method="power", level=1),)

    @model_validator(mode="after")
    def _one_watchdog(self) -> Self:
        if [entry.method for entry in self.fencing].count("watchdog") > 1:
            raise ValueError("fencing: a host has one watchdog")
        if self.watchdog is not None and not self.agent:
            raise ValueError("fencing: a watchdog is fed by the host's agent, and it has none")
        return self

    @property
    def offers(self) -> Offers | None:
        """As its inventory tells it; None where the file says nothing of it."""
        said = {"networks": self.networks, "devices": self.devices, "cpu_models": self.cpu_models}
        if all(one is None for one in said.values()):
            return None
        return Offers.model_validate({**said, "arch": ARCH})

    @property
    def watchdog(self) -> dict[str, Any] | None:
        """As in a pool file; None where it has none."""
        found = next((entry for entry in self.fencing if entry.method == "watchdog"), None)
        if found is None:
            return None
        return {} if found.timeout_s is None else {"timeout_s": int(found.timeout_s)}


class ScenarioDatastore(Part):
    name: Name
    hosts: tuple[str, ...] | None = Field(None, description="the hosts that have it; all where none is named")


class ScenarioVm(Part):
    name: Name
    host: str
    datastore: str | None = Field(
        None, description="where its disk lies; on storage that never stalls where absent"
    )
    memory_mib: int = Field(128, ge=1)
    vcpus: PositiveInt = 1
    protection: Protection = Protection.RESTART
    priority: Priority = Priority.MEDIUM
    order: int = Field(0, ge=0)
    isolation: Isolation = Isolation.LEAVE
    on_guest_failure: GuestFailure = GuestFailure.RESTART
    agent: bool = Field(False, description="its guest runs a guest agent")
    start_delay_s: float = Field(0.0, ge=0, le=3600)
    requires_labels: str = Field("", pattern=LABELS)
    prefers_labels: str = Field("", pattern=LABELS)
    affinity: str = Field("", pattern=GROUPS)
    anti_affinity: str = Field("", pattern=GROUPS)
    after: str = Field("", pattern=AFTER)
    ready: str = Field("", pattern=READY)
    """The same words as in a VM's own policy: `rack=r1`, `db:rack:soft`, `db1 agent 30`."""
    serves_after_s: float = Field(
        0.0,
        ge=0,
        description="from when its guest is up until it answers what `ready` probes; longer than the run: never",
    )
    networks: tuple[Name, ...] = Field((), description="that its interfaces join")
    devices: Devices = Field({}, description="that are passed through to it, as its host names them")
    cpu_model: CpuModel | None = Field(None, description="that its host must be able to give it")
    autostart: bool = Field(False, description="its host starts it at boot, as libvirt's autostart does")

    @model_validator(mode="after")
    def _serving(self) -> Self:
        if self.serves_after_s and not self.ready:
            raise ValueError("serves_after_s: nothing is probed, say with ready what is")
        return self

    @property
    def policy(self) -> VmPolicy:
        """As it stands in the VM's own metadata."""
        return VmPolicy(
            protection=self.protection,
            priority=self.priority,
            order=self.order,
            isolation=self.isolation,
            on_guest_failure=self.on_guest_failure,
            start_delay_s=self.start_delay_s,
            requires_labels=self.requires_labels,
            prefers_labels=self.prefers_labels,
            affinity=self.affinity,
            anti_affinity=self.anti_affinity,
            after=self.after,
            ready=self.ready,
        )
