"""From what was seen to what is told: the diagnosis, and the document `rekindle.doctor.v1`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from libs.config.settings import Settings
from libs.doctor.codes import CODES, ORDER, About, Severity
from libs.doctor.hosts import of_hosts
from libs.doctor.made import Finding, version
from libs.doctor.pool import of_pool
from libs.doctor.seen import Domain, HostSeen, Seen
from libs.doctor.suits import Pool
from libs.doctor.trust import of_trust
from libs.doctor.vms import of_vm, protected
from libs.model import Protection


class Part(BaseModel):
    model_config = ConfigDict(frozen=True)


class HostTold(Part):
    """`memory_mib` is what libvirt reports, None where it did not answer; versions are "9.0.0"."""

    host: str
    reachable: bool
    libvirt: str | None
    hypervisor: str | None
    memory_mib: int | None
    cpus: int | None
    vms_protected: int


class VmTold(Part):
    """One protected VM that runs. `restartable` is None where its host did not answer, and only the bus tells of it;
    `reasons` are the codes of all errors that are in its way, its host's included."""

    vm: str
    uuid: str
    host: str
    protection: Protection
    restartable: bool | None
    reasons: tuple[str, ...] = ()


class FindingTold(Part):
    """One reason. `host` is where it was seen, "" for the pool; `seen` what was seen, `do` what to do."""

    code: str
    severity: Severity
    about: About
    subject: str
    host: str
    seen: str
    means: str
    do: str


class Summary(Part):
    hosts: int
    hosts_unreachable: int
    vms_protected: int
    vms_restartable: int
    vms_not_restartable: int
    vms_not_seen: int
    errors: int
    warnings: int
    infos: int


class Diagnosis(Part):
    """`rekindle.doctor.v1`. `passed`: there is no error. Findings worst first."""

    format: Literal["rekindle.doctor.v1"] = Field("rekindle.doctor.v1", alias="schema")
    pool: str
    passed: bool
    summary: Summary
    hosts: tuple[HostTold, ...]
    vms: tuple[VmTold, ...]
    findings: tuple[FindingTold, ...]


def diagnose(settings: Settings, seen: Seen) -> Diagnosis:
    """Everything that follows from what was seen."""
    pool = Pool(settings, seen)
    found = [*of_pool(pool), *of_hosts(settings, seen), *of_trust(settings, seen)]
    running = [(vm, host) for host in seen.hosts for vm in host.domains if protected(vm) and not vm.moving]
    for vm, host in running:
        found += of_vm(pool, vm, host)
    findings = _told(found)
    hosts = {one.host for one in found if one.error and one.about is About.HOST}
    vms = (*(_vm(vm, host, found, hosts) for vm, host in running if vm.state.active), *_unseen(seen))
    return Diagnosis(
        schema="rekindle.doctor.v1",
        pool=settings.pool,
        passed=not any(one.error for one in found),
        summary=_summary(seen, vms, findings),
        hosts=tuple(_host(host) for host in seen.hosts),
        vms=tuple(sorted(vms, key=lambda vm: (vm.vm, vm.host))),
        findings=findings,
    )


def _told(found: Iterable[Finding]) -> tuple[FindingTold, ...]:
    ordered = sorted(set(found), key=lambda one: (ORDER[one.code], one.subject, one.host, one.seen))
    return tuple(
        FindingTold(
            code=one.code,
            severity=CODES[one.code].severity,
            about=one.about,
            subject=one.subject,
            host=one.host,
            seen=one.seen,
            means=CODES[one.code].means,
            do=CODES[one.code].do,
        )
        for one in ordered
    )


def _vm(vm: Domain, host: HostSeen, found: list[Finding], bad_hosts: set[str]) -> VmTold:
    own = {one.code for one in found if one.error and one.uuid == vm.uuid and one.host == host.name}
    if host.name in bad_hosts:
        own |= {one.code for one in found if one.error and one.about is About.HOST and one.host == host.name}
    return VmTold(
        vm=vm.name,
        uuid=vm.uuid,
        host=host.name,
        protection=vm.policy.protection,
        restartable=not own,
        reasons=tuple(sorted(own)),
    )


def _unseen(seen: Seen) -> tuple[VmTold, ...]:
    """Of hosts that did not answer what the bus last heard, unless another host shows it by now."""
    shown = {vm.uuid for host in seen.hosts for vm in host.domains if vm.state.active}
    return tuple(
        VmTold(
            vm=vm.name, uuid=vm.uuid, host=host.name, protection=vm.policy.protection, restartable=None,
            reasons=("host-unreachable",),
        )
        for host in seen.hosts
        if host.error and host.name in seen.bus.hosts
        for vm in seen.bus.hosts[host.name].vms
        if vm.state.active and vm.policy.protection is not Protection.NONE and vm.uuid not in shown
    )  # fmt: skip


def _host(host: HostSeen) -> HostTold:
    known = not host.error
    return HostTold(
        host=host.name,
        reachable=known,
        libvirt=version(host.libvirt),
        hypervisor=version(host.hypervisor),
        memory_mib=host.memory_mib if known else None,
        cpus=host.cpus if known else None,
        vms_protected=sum(1 for vm in host.domains if protected(vm) and not vm.moving and vm.state.active),
    )


def _summary(seen: Seen, vms: tuple[VmTold, ...], findings: tuple[FindingTold, ...]) -> Summary:
    def of(severity: Severity) -> int:
        return sum(1 for one in findings if one.severity is severity)

    return Summary(
        hosts=len(seen.hosts),
        hosts_unreachable=sum(1 for host in seen.hosts if host.error),
        vms_protected=len(vms),
        vms_restartable=sum(1 for vm in vms if vm.restartable),
        vms_not_restartable=sum(1 for vm in vms if vm.restartable is False),
        vms_not_seen=sum(1 for vm in vms if vm.restartable is None),
        errors=of(Severity.ERROR),
        warnings=of(Severity.WARNING),
        infos=of(Severity.INFO),
    )
