"""What a pool file lists: hosts with their fence devices, and datastores."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PositiveFloat, model_validator

from libs.config.fencing import refusal
from libs.config.yamlfile import BadInputError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")
URI = re.compile(r"(qemu|test|ch|xen)(\+(unix|ssh|tls|tcp|libssh2?))?://[^\s]*")


def _name(value: str) -> str:
    if not NAME.fullmatch(value):
        raise ValueError(
            f"{value!r} is no name: letters, digits, - and _ only, 63 at most (an address belongs in uri)"
        )
    return value


def _uri(value: str) -> str:
    if not URI.fullmatch(value):
        raise ValueError(f"{value!r} is no libvirt URI, such as qemu+ssh://root@host/system")
    return value


Name = Annotated[str, AfterValidator(_name)]
Uri = Annotated[str, AfterValidator(_uri)]


class Section(BaseModel):
    """A part of the tree: frozen, and an unknown field is a mistake."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Secret(Section):
    """Where a secret lies. Never the secret itself: pool files get copied and shown."""

    file: Path | None = None
    env: str | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.file is None) == (self.env is None):
            raise ValueError("give either file or env")
        return self

    def read(self) -> str:
        """The secret. Raises BadInputError naming the place, never the content."""
        if self.env is not None:
            if self.env not in os.environ:
                raise BadInputError(f"environment variable {self.env} is not set")
            return os.environ[self.env]
        assert self.file is not None
        try:
            return self.file.read_text().strip()
        except OSError as error:
            raise BadInputError(f"{self.file}: cannot be read: {error.strerror}") from error


class FenceDevice(Section):
    """One fence agent with its parameters, as the agent's own metadata names them."""

    agent: str = Field(min_length=1, description="name (fence_ipmilan) or absolute path of the agent")
    level: int = Field(
        1, ge=1, le=9, description="tried in this order; all devices of one level must succeed"
    )
    options: dict[str, str | int | bool] = {}
    secrets: dict[str, Secret] = {}
    timeout_s: PositiveFloat = Field(20.0, description="for one call of the agent; then it is killed whole")

    @model_validator(mode="after")
    def _fit_for_proof(self) -> Self:
        both = sorted(set(self.options) & set(self.secrets))
        if both:
            raise ValueError(f"{both[0]} is given both as option and as secret")
        wrong = refusal(self.agent, self.options, self.secrets)
        if wrong is not None:
            raise ValueError(wrong)
        return self


class HostEntry(Section):
    """One host of the pool."""

    name: Name
    uri: Uri = Field(description="its libvirt, as the management machine reaches it")
    agent: bool = Field(False, description="true where the host runs its own heartbeat agent")
    local_uri: Uri = Field("qemu:///system", description="its libvirt, as its own agent reaches it")
    boot_id_path: Path = Path("/proc/sys/kernel/random/boot_id")
    memory_mib: int | None = Field(None, gt=0, description="instead of what libvirt reports")
    memory_reserved_mib: int = Field(512, ge=0, description="kept for the host itself")
    cpus: int | None = Field(None, gt=0, description="instead of what libvirt reports")
    labels: dict[str, str] = {}
    address: str | None = Field(
        None, description="its IP address, from which its crash kernel speaks; without one that of `probe`"
    )
    probe: str | None = Field(
        None,
        pattern=r"^[^\s:]+:\d{1,5}$",
        description="host:port on which its agent answers its peers, on the network that the VMs use",
    )
    peer_uri: Uri | None = Field(
        None, description="its libvirt for the other hosts, on the network that the VMs use; without one, uri"
    )
    slot: int | None = Field(
        None, ge=0, le=4095, description="its place on datastores that are block devices"
    )
    fencing: tuple[FenceDevice, ...] = ()


class Datastore(Section):
    """A datastore that hosts share: each keeps a heartbeat slot there."""

    name: Name
    path: Path = Field(description="a directory, the same on all its hosts; or a block device, with block")
    block: bool = Field(False, description="path is a device of Rekindle's own, 8 KiB a host")
    hosts: tuple[Name, ...] | None = Field(None, description="which hosts have it; all where none is named")
    mount_point: Path | None = Field(
        None, description="what must be mounted for a directory to be it; by default what /etc/fstab says"
    )
