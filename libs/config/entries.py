"""What a pool file lists: hosts with their fence devices, and datastores."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Self
from urllib.parse import parse_qs, urlsplit

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
    name: Name | None = Field(None, description="what people call the device; by default its agent")
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


class WatchdogEntry(Section):
    """The host's own watchdog, by which it resets itself when nobody hears it."""

    device: Path = Field(
        Path("/dev/watchdog"), description="a watchdog device, or the socket of a simulated one"
    )
    timeout_s: int = Field(10, ge=5, le=600, description="whole seconds, as the kernel wants them")


class FenceLevel(Section):
    """How one level of a host's fence devices is tried, where it differs from the rest of the pool."""

    deadline_s: PositiveFloat | None = Field(None, description="as fencing.level_deadline_s, for this level")
    next_after_s: float | None = Field(
        None, ge=0, description="as fencing.next_level_after_s, for the level after this one"
    )


def unverified(uri: str) -> str:
    """Why a libvirt URI leads to who knows whom; "" where its peer is verified, or on this machine."""
    parts = urlsplit(uri)
    if parts.hostname in (None, "localhost", "127.0.0.1", "::1"):
        return ""
    transport = parts.scheme.partition("+")[2] or "tls"
    if transport == "tcp":
        return "qemu+tcp:// is in the clear and knows no peer"
    words = parse_qs(parts.query)
    if words.get("no_verify", ["0"])[-1] not in ("", "0"):
        return "no_verify takes any peer"
    if words.get("known_hosts_verify", [""])[-1] == "ignore":
        return "known_hosts_verify=ignore takes any peer"
    return ""


class HostEntry(Section):
    """One host of the pool."""

    name: Name
    uri: Uri = Field(description="its libvirt, as the management machine reaches it")
    agent: bool = Field(False, description="true where the host runs its own heartbeat agent")
    local_uri: Uri = Field("qemu:///system", description="its libvirt, as its own agent reaches it")
    insecure: bool = Field(
        False,
        description="its libvirt may be reached in the clear, or without knowing who answers; for a lab alone",
    )
    boot_id_path: Path = Path("/proc/sys/kernel/random/boot_id")
    qemu_conf: Path = Field(
        Path("/etc/libvirt/qemu.conf"), description="there: says which lock manager guards the disks"
    )
    autostart: Path = Field(
        Path("/etc/libvirt/qemu/autostart"),
        description="there: the links to the VMs that libvirt starts at boot",
    )
    resume_list: Path = Field(
        Path("/var/lib/libvirt/libvirt-guests"),
        description="there: the VMs that libvirt-guests resumes at boot",
    )
    arrivals: Path | None = Field(
        Path("/run/rekindle/arrivals.sock"),
        description="there: the socket at which its libvirt asks its agent before it takes a VM in; null: it does not",
    )
    arrivals_hook: Path = Field(
        Path("/etc/libvirt/hooks/qemu.d/rekindle-arrivals"),
        description="there: the hook by which libvirt asks",
    )
    standby: bool = Field(
        False, description="it may be switched off, and nobody misses it, until it has joined"
    )
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
    migrate_uri: str = Field(
        "",
        pattern=r"^((tcp|rdma)://[^\s/]+|tcp:[^\s/]+|unix:/\S+)?$",
        description="where it takes in live migrations, as tcp://10.0.0.1; empty: as its libvirt says itself",
    )
    migrate_unsafe: bool = Field(
        False,
        description="true where its libvirt takes a shared file system for a local one, and would refuse",
    )
    slot: int | None = Field(
        None, ge=0, le=4095, description="its place on datastores that are block devices"
    )
    fencing: tuple[FenceDevice, ...] = ()
    watchdog: WatchdogEntry | None = Field(
        None, description="fed by its agent; others presume it fenced only by what it promises itself"
    )
    levels: dict[int, FenceLevel] = Field({}, description="by level: deadline_s, next_after_s")

    def boot(self) -> str:
        """On the host itself: the id of the boot that goes on. Raises BadInputError."""
        try:
            return self.boot_id_path.read_text().strip()
        except OSError as error:
            where = f"hosts.{self.name}.boot_id_path: {self.boot_id_path}"
            raise BadInputError(f"{where}: {error.strerror}") from error

    @model_validator(mode="after")
    def _verified_peers(self) -> Self:
        for field, uri in (("uri", self.uri), ("peer_uri", self.peer_uri or "")):
            wrong = unverified(uri)
            if wrong and not self.insecure:
                raise ValueError(
                    f"{field}: {wrong}: whoever is on the network may command {self.name}, or play it; use qemu+ssh:// or "
                    "qemu+tls:// with verified peers (docs/DEPLOYING.md), or say insecure: true"
                )
        return self

    @model_validator(mode="after")
    def _fed_by_an_agent(self) -> Self:
        if self.watchdog is not None and not self.agent:
            raise ValueError(f"{self.name} has a watchdog and no agent that could feed it: set agent: true")
        return self

    @model_validator(mode="after")
    def _levels_fit(self) -> Self:
        for level in self.levels:
            if level not in {device.level for device in self.fencing}:
                raise ValueError(f"levels.{level}: no fence device of this host has level {level}")
        names = [device.name for device in self.fencing if device.name is not None]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"fencing: two fence devices of this host are called {name}")
        return self


class Datastore(Section):
    """A datastore that hosts share: each keeps a heartbeat slot there."""

    name: Name
    path: Path = Field(description="a directory, the same on all its hosts; or a block device, with block")
    block: bool = Field(False, description="path is a device of Rekindle's own, 8 KiB a host")
    hosts: tuple[Name, ...] | None = Field(None, description="which hosts have it; all where none is named")
    mount_point: Path | None = Field(
        None, description="what must be mounted for a directory to be it; by default what /etc/fstab says"
    )
