"""What a lab consists of, as kept in `<root>/lab.json` for everyone who opens the lab later."""

import json
import re
import uuid
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

from infra.lab.paths import MAX_ROOT, HostPaths, LabPaths

SCHEMA = "rekindle.lab.v1"
_NAMESPACE = uuid.UUID("6b1f1c2e-9c58-5d0b-9b0e-5b7a8f7d3c11")
CABLE, BRIDGE = "eth0", "br0"
"""A host's own names for its cable, and for the bridge that its guests share with it."""
FIRST_GUEST = 128
"""Of the addresses of a lab's network those from here on are guests'."""
_TAKEN = ("shared", "console", "etc", "line", "store", "backing")
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,14}[a-z0-9])?")


class LabError(RuntimeError):
    """The lab cannot do what was asked; the message says why."""


@dataclass(frozen=True)
class LabHost:
    """One host. Memory and processors are a claim for others to read: libvirt reports the machine's own."""

    name: str
    memory_mib: int = 4096
    cpus: int = 4
    networks: tuple[str, ...] = ()
    """libvirt networks that it has, all of them on one bridge with its cable (root only): its guests are on the lab's
    switch."""
    outlets: tuple[tuple[str, int], ...] = ()
    """Power devices with a name and a level of their own, beside the nameless one. Those of one level are the feeds of
    the host's power supplies: it goes off with the last of them."""


@dataclass(frozen=True)
class LabStore:
    """A datastore, of these hosts or (None) of all."""

    name: str
    hosts: tuple[str, ...] | None = None


@dataclass(frozen=True)
class LabNetwork:
    """A switch of the lab's own in the machine's root network namespace, and an address a host."""

    bridge: str
    gateway: str
    prefix: int
    addresses: dict[str, str]

    def guest(self, number: int) -> str:
        """The address of a guest. Raises LabError where there are so many."""
        network = IPv4Network(f"{self.gateway}/{self.prefix}", strict=False)
        if not 0 <= number < network.num_addresses - FIRST_GUEST - 1:
            raise LabError(f"guest {number}: the lab's network has no address for it")
        return str(network[FIRST_GUEST + number])

    def port(self, host: str) -> str:
        """Name of the switch's end of a host's cable."""
        return f"{self.bridge}p{list(self.addresses).index(host)}"

    def wire(self, host: str) -> str:
        """Name of the device that stands in for a host's cable at the switch while it has weather."""
        return f"{self.bridge}w{list(self.addresses).index(host)}"

    def mac(self, address: str) -> str:
        """The hardware address behind an address of this network, the same in every boot as a machine's is: its
        neighbours would look for a new one for ten seconds."""
        last = (IPv4Address(address).packed[-1],)
        return ":".join(f"{byte:02x}" for byte in (0x02, *bytes.fromhex(self.bridge[-8:]), *last))


@dataclass(frozen=True)
class LabSpec:
    """Everything that does not change while a lab exists."""

    root: Path
    privileged: bool
    hosts: tuple[LabHost, ...]
    cache_dir: Path
    network: LabNetwork | None = None
    domain_type: str = "qemu"
    disk_cache: str = "writethrough"
    hooks: bool = False
    """Starts of VMs can be refused (root only); a hook costs every start some milliseconds."""
    datastores: tuple[LabStore, ...] = ()
    lock_manager: str = ""
    """`lockd` or `sanlock`: each host's libvirt has a virtlockd or a sanlock that guards the disks; "": none does."""
    created: str = ""
    env: dict[str, str] = field(default_factory=dict)

    @property
    def paths(self) -> LabPaths:
        return LabPaths(self.root)

    def host(self, name: str) -> HostPaths:
        """Paths of one host. Raises LabError for a name that the lab does not have."""
        if name not in (host.name for host in self.hosts):
            raise LabError(f"the lab {self.root} has no host {name!r}")
        return HostPaths(self.root, name, self.privileged)

    def networks(self, name: str) -> tuple[str, ...]:
        """libvirt networks of one host."""
        return next(host.networks for host in self.hosts if host.name == name)

    def device(self, name: str) -> str:
        """The network device of one host that has its address."""
        return BRIDGE if self.networks(name) else CABLE

    def outlets(self, name: str) -> tuple[tuple[str, int], ...]:
        """The named power devices of one host."""
        return next(host.outlets for host in self.hosts if host.name == name)

    def host_uuid(self, name: str) -> str:
        """What libvirt reports as the host's own uuid: libvirtd on one machine would otherwise all share one."""
        return str(uuid.uuid5(_NAMESPACE, f"{self.root}/{name}"))

    def save(self) -> None:
        document: dict[str, Any] = {"schema": SCHEMA, **asdict(self)}
        document["root"], document["cache_dir"] = str(self.root), str(self.cache_dir)
        for host in document["hosts"]:
            for name in ("outlets", "networks"):
                if not host[name]:
                    del host[name]
        temporary = self.paths.spec.with_suffix(".tmp")
        temporary.write_text(json.dumps(document, indent=1) + "\n")
        temporary.replace(self.paths.spec)


def check_hosts(hosts: list[LabHost]) -> None:
    """Raises LabError naming the first host that cannot be built."""
    if not hosts:
        raise LabError("a lab needs at least one host")
    seen = set()
    for host in hosts:
        if not _NAME.fullmatch(host.name) or host.name in _TAKEN:
            raise LabError(
                f"host name {host.name!r}: up to 16 of a-z, 0-9 and -; {', '.join(_TAKEN)} are taken"
            )
        if host.name in seen:
            raise LabError(f"host name {host.name!r}: given twice")
        for name in host.networks:
            if not _NAME.fullmatch(name):
                raise LabError(f"network {name!r} of {host.name}: up to 16 of a-z, 0-9 and -")
        for name, _ in host.outlets:
            if not _NAME.fullmatch(name):
                raise LabError(f"power device {name!r} of {host.name}: up to 16 of a-z, 0-9 and -")
        seen.add(host.name)


def check_stores(stores: Iterable[str | LabStore], hosts: list[LabHost]) -> tuple[LabStore, ...]:
    """Datastores as the lab keeps them. Raises LabError naming the first that cannot be."""
    found: list[LabStore] = []
    for store in stores:
        one = LabStore(store) if isinstance(store, str) else store
        if not _NAME.fullmatch(one.name):
            raise LabError(f"datastore name {one.name!r}: up to 16 of a-z, 0-9 and -")
        if one.name in (other.name for other in found):
            raise LabError(f"datastore name {one.name!r}: given twice")
        unknown = sorted(set(one.hosts or ()) - {host.name for host in hosts})
        if unknown:
            raise LabError(f"datastore {one.name!r}: there is no host {unknown[0]!r}")
        found.append(one)
    return tuple(found)


def check_root(root: Path) -> Path:
    """The lab's directory made absolute. Raises LabError when unix sockets below it would get too long a path."""
    absolute = root.absolute()
    if len(str(absolute)) > MAX_ROOT:
        raise LabError(f"root {absolute}: at most {MAX_ROOT} characters, since unix socket paths end at 108")
    return absolute


def _host(document: dict[str, Any]) -> LabHost:
    outlets = tuple((name, level) for name, level in document.pop("outlets", ()))
    networks = tuple(document.pop("networks", ()))
    return LabHost(**document, networks=networks, outlets=outlets)


def load(root: Path) -> LabSpec:
    """The lab at `root`. Raises LabError when there is none or another version made it."""
    path = LabPaths(check_root(root)).spec
    try:
        document = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise LabError(f"no lab at {root}") from error
    except ValueError as error:
        raise LabError(f"{path}: not JSON ({error})") from error
    if document.pop("schema", None) != SCHEMA:
        raise LabError(f"{path}: not a {SCHEMA} document")
    network = document.pop("network")
    stores = document.pop("datastores", [])
    return LabSpec(
        root=Path(document.pop("root")),
        hosts=tuple(_host(host) for host in document.pop("hosts")),
        cache_dir=Path(document.pop("cache_dir")),
        network=LabNetwork(**network) if network else None,
        datastores=tuple(LabStore(one["name"], one["hosts"] and tuple(one["hosts"])) for one in stores),
        **document,
    )
