"""One host's libvirt as a Hypervisor: every call in that host's own threads, with a deadline.

A failed, late or empty answer is an UnavailableError, never "the VM is gone" (DESIGN §4 rule 3).
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import xml.etree.ElementTree as ET
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import libvirt
import structlog

from libs.core.ports import Hypervisor, MoveRefusedError, StartRefusedError, UnavailableError
from libs.model import (
    Answer,
    DiskLocks,
    Health,
    Offers,
    StopReason,
    VmDefinition,
    VmPolicy,
    VmReport,
    VmState,
)
from libs.threads import HostThreads
from libs.virt import moves, remote
from libs.virt.definition import (
    RUN_NS,
    BadPolicyError,
    begun,
    datastores_of,
    definition_of,
    policy_of,
    size_of,
    token_of,
    with_token,
)
from libs.virt.guests import SYNC_S, addresses_of, agent_connected, answers, health_of
from libs.virt.locks import configured, refused_by
from libs.virt.offers import READ_S, OfferBook, Reader

T = TypeVar("T")
CALL_S = 5.0
START_S = 30.0
HUNG_MOST = 16
NO_PLACES: Mapping[str, Path] = MappingProxyType({})
LOOK_S = 0.2
log = structlog.get_logger()

STATES = {
    libvirt.VIR_DOMAIN_RUNNING: VmState.RUNNING,
    libvirt.VIR_DOMAIN_BLOCKED: VmState.RUNNING,
    libvirt.VIR_DOMAIN_SHUTDOWN: VmState.RUNNING,  # on its way down, its process still there
    libvirt.VIR_DOMAIN_PAUSED: VmState.PAUSED,
    libvirt.VIR_DOMAIN_PMSUSPENDED: VmState.PAUSED,
    libvirt.VIR_DOMAIN_SHUTOFF: VmState.STOPPED,
    libvirt.VIR_DOMAIN_CRASHED: VmState.STOPPED,  # without a process; see _report
}
STOPS = {
    libvirt.VIR_DOMAIN_SHUTOFF_SHUTDOWN: StopReason.ON_PURPOSE,
    libvirt.VIR_DOMAIN_SHUTOFF_DESTROYED: StopReason.ON_PURPOSE,
    libvirt.VIR_DOMAIN_SHUTOFF_CRASHED: StopReason.CRASHED,
    libvirt.VIR_DOMAIN_SHUTOFF_MIGRATED: StopReason.MIGRATED,
    libvirt.VIR_DOMAIN_SHUTOFF_SAVED: StopReason.SAVED,
}
MIGRATED = (
    (libvirt.VIR_DOMAIN_RUNNING, libvirt.VIR_DOMAIN_RUNNING_MIGRATED),
    (libvirt.VIR_DOMAIN_RUNNING, libvirt.VIR_DOMAIN_RUNNING_POSTCOPY),
    (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_MIGRATION),
    (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_POSTCOPY),
)
"""States of a run that came, or comes, from another host; or is about to go to one, for as long as that takes."""
STARTING = (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_STARTING_UP)
"""QEMU stands there, its processors not yet begun: a lock of its disks may end it still, and then it never ran."""
# Something at the other end took the trouble to refuse us: the machine lives.
LIVING_ERRORS = (
    libvirt.VIR_ERR_AUTH_FAILED,
    libvirt.VIR_ERR_AUTH_CANCELLED,
    libvirt.VIR_ERR_AUTH_UNAVAILABLE,
    libvirt.VIR_ERR_ACCESS_DENIED,
    libvirt.VIR_ERR_GNUTLS_ERROR,
)

# Another call holds the VM: it may be an earlier start of ours, which can still succeed.
UNDER_WAY = (libvirt.VIR_ERR_OPERATION_TIMEOUT,)


def _quiet(_context: Any, _error: Any) -> None:
    """libvirt prints errors to standard error by itself; they are raised to us anyway."""


libvirt.registerErrorHandler(_quiet, None)


def _last_token(connection: Any, uuid: str) -> int:
    """Of the VM's last run here; 0 where there was none. Raises libvirt.libvirtError."""
    try:
        domain = connection.lookupByUUIDString(uuid)
        return token_of(ET.fromstring(domain.XMLDesc(0)), active=domain.isActive() == 1)
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            return 0
        raise


class LibvirtHost:
    """A connection that opens itself again. `opened_at` is when the present one was opened; `places` are the
    directories of the host's datastores, by name; `qemu_conf` the host's own file, where that can be read here; `migrate_uri`
    where it takes in migrations, "" where libvirt says itself; `migrate_unsafe` that its storage is shared, whatever libvirt says."""

    def __init__(
        self,
        name: str,
        uri: str,
        defaults: VmPolicy,
        clock: Callable[[], float],
        *,
        threads: int = 8,
        places: Mapping[str, Path] = NO_PLACES,
        qemu_conf: Path | None = None,
        migrate_uri: str = "",
        migrate_unsafe: bool = False,
    ) -> None:
        self.name, self.uri, self.migrate_uri = name, uri, migrate_uri
        self._unsafe = migrate_unsafe
        self._places, self._qemu_conf = places, qemu_conf
        self._defaults, self._clock = defaults, clock
        self._threads = HostThreads(f"libvirt-{name}", threads)
        self._size = threads
        self._left: list[HostThreads] = []
        self._connection: Any = None
        self._opening = threading.Lock()
        self._on_open: list[Callable[[Any], None]] = []
        self._runs: dict[str, int] = {}
        self._listed: frozenset[str] = frozenset()
        """VMs of the latest whole list."""
        self._bad_policy: dict[str, str] = {}
        self._guests: LibvirtHost | None = None
        reader = Reader()
        self._offers = OfferBook(lambda: self.call("what it offers", reader.read, READ_S), clock)
        self.opened_at = 0.0

    def on_open(self, opened: Callable[[Any], None]) -> None:
        """Called in a thread with each new connection, to register callbacks on it."""
        self._on_open.append(opened)

    # -- calling

    def _connect(self) -> Any:
        with self._opening:
            connection = self._connection
            with contextlib.suppress(libvirt.libvirtError):  # one that cannot tell is of no use either
                if connection is not None and connection.isAlive():
                    return connection
            self._connection = None
            connection = libvirt.open(self.uri)
            self.opened_at = self._clock()
            for opened in self._on_open:
                opened(connection)
            self._connection = connection
            return connection

    async def call(self, what: str, work: Callable[[Any], T], timeout_s: float = CALL_S) -> T:
        """Run `work(connection)` in a thread of this host. Raises UnavailableError."""
        try:
            return await self._usable_threads().call(lambda: work(self._connect()), timeout_s)
        except TimeoutError as error:
            self._abandon()
            raise UnavailableError(f"{self.name}: {what}: no answer in {timeout_s} s") from error
        except libvirt.libvirtError as error:
            raise UnavailableError(f"{self.name}: {what}: {error}") from error

    async def ping(self, timeout_s: float) -> None:
        """One round trip. Raises UnavailableError."""
        await self.call("ping", lambda connection: connection.getHostname(), timeout_s)

    def _usable_threads(self) -> HostThreads:
        """Raises TimeoutError while too many earlier calls still hang: a host that hangs for days must not
        cost a thread for each question."""
        self._left = [threads for threads in self._left if threads.hung()]
        if sum(threads.hung() for threads in self._left) >= HUNG_MOST:
            raise TimeoutError
        return self._threads

    def _abandon(self) -> None:
        """A call hangs, maybe for ever: leave its threads and its connection behind and begin anew."""
        self._connection = None
        self._threads.retire()
        self._left.append(self._threads)
        self._threads = HostThreads(f"libvirt-{self.name}", self._size)
        self._opening = threading.Lock()

    async def probe(self, timeout_s: float) -> tuple[Answer, str]:
        """One round trip. Refused only where the machine itself must have answered; hangs where its kernel alone did."""
        kernel = asyncio.ensure_future(remote.kernel_behind(self.uri, timeout_s))
        try:
            await self._usable_threads().call(lambda: self._connect().getHostname(), timeout_s)
        except TimeoutError:
            self._abandon()
            answer, said = await kernel
            return answer, f"no answer in {timeout_s} s: {said}"
        except libvirt.libvirtError as error:
            living = error.get_error_code() in LIVING_ERRORS
            return (Answer.REFUSED if living else remote.concluded(self.uri, str(error))), str(error)
        finally:
            kernel.cancel()
        return Answer.UP, "libvirt answers"

    # -- reading

    async def node(self) -> tuple[int, int]:
        """MiB of memory and number of CPUs that the host reports."""
        info = await self.call("node info", lambda connection: connection.getInfo())
        return int(info[1]), int(info[2])

    async def up_s(self) -> float:
        """For how long its kernel has run, at least: what its first processor has counted since it booted. What a
        hypervisor below it took away is not in it, nor a sleep, nor hours at which it was offline. Raises UnavailableError."""
        spent = await self.call("processor time", lambda connection: connection.getCPUStats(0))
        return sum(float(spent.get(name, 0)) for name in ("kernel", "user", "idle", "iowait")) / 1e9

    async def disk_locks(self) -> DiskLocks | None:
        """See services.heartbeat.act.LocalHypervisor."""
        file = self._qemu_conf
        return None if file is None else await self.call("qemu.conf", lambda _: configured(file))

    async def offers(self) -> Offers | None:
        """See services.heartbeat.act.LocalHypervisor."""
        return await self._offers.latest()

    async def reports(self) -> list[VmReport]:
        """All VMs. Raises UnavailableError."""

        def read(connection: Any) -> list[VmReport]:
            found = (self._report(domain) for domain in connection.listAllDomains(0))
            reports = sorted((report for report in found if report is not None), key=lambda r: r.uuid)
            listed = frozenset(report.uuid for report in reports)
            for uuid in sorted(self._listed - listed):
                self._check_gone(connection, uuid)
            self._listed = listed
            return reports

        return await self.call("list", read)

    def _check_gone(self, connection: Any, uuid: str) -> None:
        """libvirt leaves out of its list what it may not show us, without a word. Raises UnavailableError where it does
        not say of this VM itself that there is none."""
        try:
            connection.lookupByUUIDString(uuid)
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                return
            raise
        raise UnavailableError(f"{self.name}: list: VM {uuid} is not in it, and is there all the same")

    async def report(self, uuid: str) -> VmReport | None:
        """One VM; None where this host has no such domain. Raises UnavailableError."""

        def read(connection: Any) -> VmReport | None:
            try:
                return self._report(connection.lookupByUUIDString(uuid))
            except libvirt.libvirtError as error:
                if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                    return None
                raise

        return await self.call("report", read)

    def _report(self, domain: Any) -> VmReport | None:
        """None where the domain vanished while we read it."""
        try:
            state, reason = domain.state()
            root = ET.fromstring(domain.XMLDesc(0))
            run = domain.ID()
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                return None
            raise
        uuid, name = domain.UUIDString(), domain.name()
        if run > 0:
            self._runs[uuid] = run
        seen = STATES.get(state, VmState.UNKNOWN)
        if state == libvirt.VIR_DOMAIN_CRASHED and run > 0:
            seen = (
                VmState.PAUSED
            )  # it panicked, and on_crash=preserve keeps its QEMU, with all that it holds open
        if (state, reason) == STARTING:
            seen = VmState.UNKNOWN  # as active, a start that is refused would pass for one that came up
        stop = StopReason.NONE
        if seen is VmState.STOPPED:
            crashed = state == libvirt.VIR_DOMAIN_CRASHED
            stop = StopReason.CRASHED if crashed else STOPS.get(reason, StopReason.UNKNOWN)
        memory_mib, vcpus = size_of(root)
        return VmReport(
            uuid=uuid,
            name=name,
            state=seen,
            stop_reason=stop,
            health=health_of(state, reason) if seen.active else Health.UNKNOWN,
            agent=seen.active and agent_connected(root),
            destroyed=(state, reason) == (libvirt.VIR_DOMAIN_SHUTOFF, libvirt.VIR_DOMAIN_SHUTOFF_DESTROYED),
            run=self._runs.get(uuid, 0),
            migrated=(state, reason) in MIGRATED,
            token=token_of(root, active=run > 0),
            memory_mib=memory_mib,
            vcpus=vcpus,
            policy=self._policy(root, name),
            datastores=datastores_of(root, self._places),
        )

    def _policy(self, root: ET.Element, name: str) -> VmPolicy:
        try:
            policy = policy_of(root, self._defaults)
        except BadPolicyError as error:
            if self._bad_policy.get(name) != str(error):
                self._bad_policy[name] = str(error)
                log.error("policy unreadable, the pool's defaults hold", vm=name, reason=str(error))
            return self._defaults
        self._bad_policy.pop(name, None)
        return policy

    async def ping_guest(self, uuid: str, timeout_s: float) -> bool:
        """See services.heartbeat.act.LocalHypervisor. Over a connection of its own: libvirt takes few calls at a time
        from one client, and a guest that hangs must not hold up the reading of states."""
        return await self._aside().call(
            "guest ping", lambda connection: answers(connection, uuid, timeout_s), timeout_s + SYNC_S
        )

    def _aside(self) -> LibvirtHost:
        if self._guests is None:
            self._guests = LibvirtHost(self.name, self.uri, self._defaults, self._clock, threads=4)
        return self._guests

    async def addresses(self, uuid: str) -> tuple[str, ...]:
        """See ports.Hypervisor. Over the same connection as pings: a guest's agent may be asked."""
        return await self._aside().call(
            "addresses", lambda connection: addresses_of(connection, uuid), SYNC_S
        )

    def remember_runs(self, runs: dict[str, int]) -> None:
        """What an earlier life of this agent saw on the same boot: a crash seen late keeps its number."""
        self._runs = {**runs, **self._runs}

    async def definitions(self) -> list[VmDefinition]:
        """The definition of every VM, as it would start next. Raises UnavailableError."""
        flags = (
            libvirt.VIR_DOMAIN_XML_INACTIVE
            | libvirt.VIR_DOMAIN_XML_SECURE
            | libvirt.VIR_DOMAIN_XML_MIGRATABLE
        )

        def read(connection: Any) -> list[VmDefinition]:
            found = []
            for domain in connection.listAllDomains(0):
                try:
                    xml = domain.XMLDesc(flags)
                    live = domain.XMLDesc(0) if domain.isActive() else None
                except libvirt.libvirtError as error:
                    if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                        continue  # vanished since it was listed
                    raise
                found.append(definition_of(domain.UUIDString(), domain.name(), xml, live))
            return found

        return await self.call("definitions", read, 2 * CALL_S)

    # -- acting

    async def start(self, definition: VmDefinition, token: int) -> None:
        """See ports.Hypervisor.start."""
        until = self._clock() + START_S

        def start(connection: Any) -> tuple[str, str]:
            domain, refused, lock = None, "", ""
            try:
                xml = with_token(definition, token, _last_token(connection, definition.uuid))
                domain = connection.defineXML(xml)
                if domain.hasManagedSaveImage(0):
                    domain.managedSaveRemove(0)  # memory of an earlier run, over disks that went on since
                if self._clock() >= until:
                    return "too late", ""  # whoever asked has left, and may have it started elsewhere by now
                domain.create()
            except libvirt.libvirtError as error:
                if not connection.isAlive() or error.get_error_code() in UNDER_WAY:
                    raise
                refused, lock = str(error) or "refused without a reason", refused_by(error)
            if domain is not None:
                # its answer says that the start has ended, whatever becomes of this
                with contextlib.suppress(libvirt.libvirtError):
                    kind, flags = libvirt.VIR_DOMAIN_METADATA_ELEMENT, libvirt.VIR_DOMAIN_AFFECT_CONFIG
                    domain.setMetadata(kind, begun(token), "rekindle-run", RUN_NS, flags)
            return refused, lock

        refused, lock = await self.call("start", start, START_S)
        if refused:
            raise StartRefusedError(f"{self.name}: {refused}", lock)

    async def destroy(self, uuid: str) -> None:
        """See ports.Hypervisor.destroy."""

        def destroy(connection: Any) -> None:
            try:
                connection.lookupByUUIDString(uuid).destroy()
            except libvirt.libvirtError as error:
                gone = (libvirt.VIR_ERR_NO_DOMAIN, libvirt.VIR_ERR_OPERATION_INVALID)
                if error.get_error_code() not in gone:
                    raise

        await self.call("destroy", destroy, START_S)

    async def migrate(self, uuid: str, target: Hypervisor, timeout_s: float) -> None:
        """See ports.Hypervisor.migrate. Driven by us and by nobody else: libvirt gives it up when this connection or that
        to the target ends, and so when this process does."""
        assert isinstance(target, LibvirtHost)
        migrate = partial(
            moves.migrate, uuid=uuid, target=target._connect, uri=target.migrate_uri, unsafe=self._unsafe
        )
        abort = partial(moves.abort, uuid=uuid)
        try:
            refused = await self.call("migrate", migrate, timeout_s)
        except UnavailableError:
            with contextlib.suppress(UnavailableError):
                await self.call("abort of a migration", abort)
            raise
        if refused:
            raise MoveRefusedError(f"{self.name}: {refused}")

    async def shut_down(self, uuid: str, grace_s: float) -> None:
        """See services.heartbeat.act.LocalHypervisor: press its power button, and end it after `grace_s`."""

        def press(connection: Any) -> None:
            connection.lookupByUUIDString(uuid).shutdown()

        try:
            await self.call("shutdown", press)
            until = self._clock() + grace_s
            while self._clock() < until:
                report = await self.report(uuid)
                if report is None or report.state is VmState.STOPPED:
                    return
                await asyncio.sleep(LOOK_S)
        except UnavailableError as error:  # a guest that cannot be asked is ended all the same
            log.info("guest not asked to shut down", vm=uuid, reason=str(error))
        await self.destroy(uuid)
