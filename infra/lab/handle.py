"""What every part of a lab's handle stands on: the lab's description, and the way to its power devices."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import libvirt

from infra.lab import stores
from infra.lab.paths import HostPaths
from infra.lab.powerclient import ask
from infra.lab.spec import LabError, LabSpec


class Handle:
    """The lab at `spec.root`; opened any number of times, in any process."""

    def __init__(self, spec: LabSpec) -> None:
        self.spec = spec
        self.paths = spec.paths
        self.root = spec.root

    @property
    def hosts(self) -> list[str]:
        return [host.name for host in self.spec.hosts]

    def host(self, name: str) -> HostPaths:
        """Paths of a host's files. Raises LabError for an unknown name."""
        return self.spec.host(name)

    def _control(self, host: str, what: str, timeout_s: float = 60.0, **fields: Any) -> dict[str, Any]:
        return ask(self.host(host).control_socket, {"do": what, **fields}, timeout_s)

    def uri(self, host: str) -> str:
        """libvirt URI, the same inside the host and outside."""
        return self.host(host).uri

    def power_state(self, host: str) -> str:
        """`on` or `off`, truly."""
        return str(self._control(host, "status")["power"])

    @contextmanager
    def connect(self, host: str) -> Iterator[Any]:
        """A libvirt connection (virConnect) to a host. Raises libvirt.libvirtError."""
        connection = libvirt.open(self.uri(host))
        try:
            yield connection
        finally:
            connection.close()

    def domains(self, host: str) -> list[str]:
        """Names of the VMs active on a host by its own list; none when its power is off. Raises libvirtError."""
        if self.power_state(host) == "off":
            return []
        with self.connect(host) as connection:
            active = connection.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE)
            return sorted(domain.name() for domain in active)

    def placement(self) -> dict[str, list[str]]:
        """Which hosts have each active VM, by the union of the hosts' own lists."""
        found: dict[str, list[str]] = {}
        for host in self.hosts:
            for name in self.domains(host):
                found.setdefault(name, []).append(host)
        return found

    def _only_host_of(self, name: str) -> str:
        where = self.placement().get(name, [])
        if len(where) != 1:
            raise LabError(f"VM {name} is active on {where or 'no host'}")
        return where[0]


class StorageHandle(Handle):
    """The lab's datastores."""

    def store_path(self, datastore: str) -> Path:
        """Where the hosts have a datastore. Raises LabError for an unknown name."""
        self._hosts_with(datastore)
        return self.paths.store(datastore)

    def backing(self, datastore: str) -> Path:
        """What lies in a datastore, from outside the hosts: never stalls. Raises LabError for an unknown name."""
        self._hosts_with(datastore)
        return self.paths.backing(datastore)

    def stall_storage(self, host: str | None, datastore: str) -> None:
        """All I/O of a host (None: of each that has it) on a datastore hangs from now on, over every boot.

        Raises LabError when the host does not have it.
        """
        for name in self._hosts_with(datastore) if host is None else [host]:
            self._control(name, "stall", datastore=datastore)

    def restore_storage(self, host: str | None, datastore: str) -> None:
        """I/O that hung goes on. Raises LabError as `stall_storage` does."""
        for name in self._hosts_with(datastore) if host is None else [host]:
            self._control(name, "restore", datastore=datastore)

    def _hosts_with(self, datastore: str) -> list[str]:
        found = [host for host in self.hosts if datastore in stores.of_host(self.spec, host)]
        if not found:
            raise LabError(f"the lab {self.root} has no datastore {datastore!r}")
        return found

    def disk_count(self, vm: str) -> int:
        """The counter that the guest writes to its disk each second; 0 before the first."""
        disk = stores.find_disk(self.paths, vm, (store.name for store in self.spec.datastores))
        with open(disk, "rb") as file:
            words = file.read(512).split()
        return int(words[1]) if len(words) > 1 and words[0] == b"REKINDLE-COUNTER" else 0
