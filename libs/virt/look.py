"""One long look at a host over libvirt, for `rekindle doctor`: what it is, what it has, what lies on it.

Blocking, for a thread of that host (`LibvirtHost.call`), which sets the deadline. Reads only: no storage pool is
refreshed, so what a pool lists may be old. What the driver cannot tell is None and stands in `unasked`.
"""

from __future__ import annotations

import posixpath
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import libvirt

from libs.doctor.seen import Answers, Domain, HostSeen, MachineAnswer, StoragePool
from libs.model import VmPolicy, VmState
from libs.virt.definition import BadPolicyError, policy_of, size_of
from libs.virt.host import STATES
from libs.virt.offers import active_networks, host_of, links_of
from libs.wants import Machine, wants_of

T = TypeVar("T")
MOVING = (
    libvirt.VIR_DOMAIN_PAUSED_MIGRATION,
    libvirt.VIR_DOMAIN_PAUSED_POSTCOPY,
    libvirt.VIR_DOMAIN_PAUSED_STARTING_UP,
)
"""Reasons of a pause that belong to a migration, or to a start that may be one's other end."""
NO_STORE = frozenset({"logical", "disk"})
"""Storage pools whose target is a directory of device nodes, not of files."""


@dataclass(frozen=True, slots=True)
class Questions:
    """What is asked of a host on behalf of VMs of others."""

    files: frozenset[str]
    machines: frozenset[Machine]
    cpus: frozenset[tuple[Machine, str]]


def look(name: str, connection: Any, defaults: VmPolicy) -> HostSeen:
    """All that is read of one host. Raises libvirt.libvirtError where it does not answer at all."""
    unasked: list[tuple[str, str]] = []

    def ask(what: str, question: Callable[[], T]) -> T | None:
        try:
            return question()
        except libvirt.libvirtError as error:
            if not connection.isAlive():
                raise
            unasked.append((what, _reason(error)))
            return None

    info = connection.getInfo()
    domains = tuple(_domains(connection, defaults))
    capabilities = ask("capabilities", connection.getCapabilities)
    uuid, cpu = host_of(ET.fromstring(capabilities)) if capabilities else (None, None)
    networks = ask("networks", lambda: active_networks(connection))
    pools = ask("storage pools", lambda: _pools(connection))
    return HostSeen(
        name=name,
        uuid=uuid,
        kind=str(connection.getType()),
        libvirt=ask("version of libvirt", connection.getLibVersion),
        hypervisor=ask("version of the hypervisor", connection.getVersion),
        memory_mib=int(info[1]),
        cpus=int(info[2]),
        cpu=cpu,
        networks=None if networks is None else frozenset(one.name() for one in networks),
        links=links_of(connection, networks, ask),
        secrets=ask("secrets", lambda: _secrets(connection)),
        pools=pools,
        domains=domains,
        unasked=tuple(unasked),
    )


def answer(connection: Any, questions: Questions) -> Answers:
    """What a host says to them. Raises libvirt.libvirtError where the connection broke."""
    files = {path: _has_file(connection, path) for path in sorted(questions.files)}
    machines = {machine: _can_run(connection, machine) for machine in questions.machines}
    cpus = {key: _can_give(connection, *key) for key in questions.cpus}
    return Answers(files, machines, cpus)


def _reason(error: libvirt.libvirtError) -> str:
    return str(error.get_error_message() or error)


def _domains(connection: Any, defaults: VmPolicy) -> Iterable[Domain]:
    for domain in connection.listAllDomains(0):
        try:
            yield _domain(domain, defaults)
        except libvirt.libvirtError as error:
            if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
                raise
            continue  # vanished since it was listed


def _domain(domain: Any, defaults: VmPolicy) -> Domain:
    state, reason = domain.state()
    live = domain.XMLDesc(0)
    root = ET.fromstring(live)
    seen = STATES.get(state, VmState.UNKNOWN)
    if state == libvirt.VIR_DOMAIN_CRASHED and domain.ID() > 0:
        seen = VmState.PAUSED  # as the services read it: see host.py
    try:
        policy, bad = policy_of(root, defaults), ""
    except BadPolicyError as error:
        policy, bad = defaults, str(error)
    persistent = domain.isPersistent() == 1
    memory_mib, vcpus = size_of(root)
    return Domain(
        uuid=domain.UUIDString(),
        name=domain.name(),
        state=seen,
        memory_mib=memory_mib,
        vcpus=vcpus,
        wants=wants_of(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE), live if seen.active else ""),
        policy=policy,
        bad_policy=bad,
        persistent=persistent,
        autostart=persistent and domain.autostart() == 1,
        managed_save=persistent and domain.hasManagedSaveImage(0) == 1,
        moving=state == libvirt.VIR_DOMAIN_PAUSED and reason in MOVING,
    )


def _secrets(connection: Any) -> frozenset[str]:
    """By UUID and by what they are for: a definition may name either."""
    found = connection.listAllSecrets(0)
    return frozenset(name for one in found for name in (one.UUIDString(), one.usageID()) if name)


def _pools(connection: Any) -> tuple[StoragePool, ...]:
    return tuple(
        _pool(pool) for pool in connection.listAllStoragePools(libvirt.VIR_CONNECT_LIST_STORAGE_POOLS_ACTIVE)
    )


def _pool(pool: Any) -> StoragePool:
    root = ET.fromstring(pool.XMLDesc(0))
    source = root.find("source")
    parts: list[str] = []
    for part in () if source is None else source:
        if part.tag in ("host", "dir", "device", "name", "adapter", "initiator"):
            values = [(part.text or "").strip(), *(f"{key}={value}" for key, value in part.attrib.items())]
            parts.append(f"{part.tag} {' '.join(value for value in values if value)}")
    target = (root.findtext("target/path") or "").strip()
    return StoragePool(
        name=pool.name(),
        kind=root.get("type", ""),
        target=posixpath.normpath(target) if target else "",
        source="; ".join(sorted(parts)),
    )


def _has_file(connection: Any, path: str) -> bool | None:
    """Whether an active storage pool lists it. None where none of them is of its directory."""
    try:
        connection.storageVolLookupByPath(path)
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_NO_STORAGE_VOL:
            return None
    else:
        return True
    try:
        pools = _pools(connection)
    except libvirt.libvirtError:
        return None
    holding = any(pool.target == posixpath.dirname(path) and pool.kind not in NO_STORE for pool in pools)
    return False if holding else None


def _cannot_tell(error: libvirt.libvirtError) -> bool:
    """Who cannot tell, or not us, has not said no."""
    return error.get_error_code() in (
        libvirt.VIR_ERR_ACCESS_DENIED,
        libvirt.VIR_ERR_OPERATION_DENIED,
        libvirt.VIR_ERR_NO_SUPPORT,
        libvirt.VIR_ERR_ARGUMENT_UNSUPPORTED,
        libvirt.VIR_ERR_OPERATION_UNSUPPORTED,
    )


def _can_run(connection: Any, machine: Machine) -> MachineAnswer:
    parts = (machine.emulator, machine.arch, machine.machine, machine.virt)
    try:
        xml = connection.getDomainCapabilities(*(part or None for part in parts), 0)
    except libvirt.libvirtError as error:
        if not connection.isAlive():
            raise
        return MachineAnswer(None if _cannot_tell(error) else False, _reason(error))
    loader = ET.fromstring(xml).find("os/loader")
    offered = () if loader is None else loader.iterfind("value")
    return MachineAnswer(True, firmware=frozenset((one.text or "").strip() for one in offered))


def _can_give(connection: Any, machine: Machine, cpu: str) -> tuple[bool | None, str]:
    parts = (machine.emulator, machine.arch, machine.machine, machine.virt)
    try:
        found = connection.compareHypervisorCPU(*(part or None for part in parts), cpu, 0)
    except libvirt.libvirtError as error:
        if not connection.isAlive():
            raise
        if error.get_error_code() == libvirt.VIR_ERR_CPU_INCOMPATIBLE:
            return False, _reason(error)
        return None, _reason(error)
    if found == libvirt.VIR_CPU_COMPARE_ERROR:
        return None, "libvirt could not compare"
    return found != libvirt.VIR_CPU_COMPARE_INCOMPATIBLE, ""
