"""Datastores that stall (root only): each host sees a datastore through a FUSE server of its own, and that can stand still.

A datastore is a directory, `<root>/backing/<name>`, that every host of it has at `<root>/store/<name>` in its own mount
namespace, passed through by bindfs. A stopped server answers nothing: all I/O of that host on that datastore hangs, as
on a hung NFS server, and no other is touched. Standard library only.
"""

import functools
import os
import signal
import subprocess
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from infra.lab import procs
from infra.lab.needs import missing_store_packages, program
from infra.lab.paths import LabPaths
from infra.lab.spec import LabError, LabSpec

FUSE = "/dev/fuse"


def why_not() -> str | None:
    """What this machine lacks for datastores, None when nothing."""
    if os.getuid() != 0:
        return "need root"
    missing = missing_store_packages()
    if missing:
        return f"need the package {' '.join(missing)}"
    try:
        os.close(os.open(FUSE, os.O_RDWR))
    except OSError as error:
        return f"need FUSE, and {FUSE}: {error.strerror}"
    return None


@functools.cache
def _uncached() -> list[str]:
    """What has bindfs keep nothing in the kernel's caches, so that each host sees at once what another wrote.

    With libfuse 2 (up to 1.14) that, and writes of more than 4 KiB, are options of the library's.
    """
    known = subprocess.run([program("bindfs"), "--help"], capture_output=True, text=True, check=False)
    if "--direct-io" in known.stdout:
        return ["--direct-io"]
    return ["-o", "direct_io,big_writes"]


def of_host(spec: LabSpec, host: str) -> list[str]:
    """The datastores that a host has."""
    return [store.name for store in spec.datastores if store.hosts is None or host in store.hosts]


def check(spec: LabSpec, host: str, name: str) -> None:
    """Raises LabError when the host does not have this datastore."""
    if name not in of_host(spec, host):
        raise LabError(f"host {host} has no datastore {name!r}")


def mount(spec: LabSpec, host: str) -> None:
    """In the host's namespaces: start a server for each of its datastores; all are mounted when this returns.

    Raises OSError.
    """
    for name in of_host(spec, host):
        argv = [program("bindfs"), "--multithreaded", *_uncached()]
        argv += ["-o", "attr_timeout=0,entry_timeout=0,negative_timeout=0"]
        argv += [str(spec.paths.backing(name)), str(spec.paths.store(name))]
        done = subprocess.run(argv, cwd="/", capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise OSError(f"datastore {name}: {done.stderr.strip()[-400:]}")


def find_disk(paths: LabPaths, vm: str, stores: Iterable[str]) -> Path:
    """Where the disk of a VM lies for who looks from outside: in a datastore, else in the shared directory."""
    for name in stores:
        disk = paths.backing(name) / f"{vm}.raw"
        if disk.exists():
            return disk
    return paths.disk(vm)


class Stalls:
    """Which datastores stand still for one host, now and in its further boots."""

    def __init__(self, spec: LabSpec, host: str) -> None:
        self._spec, self._host = spec, host
        self.names: set[str] = set()

    def _servers(self, names: Iterable[str], processes: Iterable[procs.Proc]) -> list[procs.Proc]:
        places = {str(self._spec.paths.store(name)) for name in names}
        found = []
        for proc in processes:
            arguments = procs.cmdline(proc.pid)
            if arguments and os.path.basename(arguments[0]) == "bindfs" and arguments[-1] in places:
                found.append(proc)
        return found

    def stopped(self, processes: Iterable[procs.Proc]) -> list[procs.Proc]:
        """Of the host's processes those that are to stand still."""
        return self._servers(self.names, processes) if self.names else []

    def hold(self, processes: Iterable[procs.Proc]) -> None:
        """Stop the servers of what is stalled, at a boot or at once: they answer nobody any more when this returns.

        Raises TimeoutError."""
        servers = self.stopped(processes)
        for proc in servers:
            procs.send(proc, signal.SIGSTOP)
        for proc in servers:
            procs.wait_for(partial(procs.standing_still, proc), 10.0, f"stop of server {proc.pid}", 0.002)

    def change(self, name: str, stalled: bool, processes: Iterable[procs.Proc]) -> None:
        """Stall or restore one datastore. Raises LabError when the host does not have it."""
        check(self._spec, self._host, name)
        if stalled:
            self.names.add(name)
            self.hold(processes)
            return
        self.names.discard(name)
        for proc in self._servers([name], processes):
            procs.send(proc, signal.SIGCONT)
