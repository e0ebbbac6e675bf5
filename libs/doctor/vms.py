"""What is wrong with a protected VM: whether another host could start it, and what it would be without there."""

from __future__ import annotations

from collections.abc import Iterator

from libs.definitions import key_of
from libs.doctor.made import Finding, of_domain
from libs.doctor.seen import Cpu, Domain, HostSeen, Seen
from libs.doctor.suits import Has, Need, Pool, Verdict
from libs.model import Protection


def protected(vm: Domain) -> bool:
    """True where something is promised to it."""
    return vm.policy.protection is not Protection.NONE


def of_vm(pool: Pool, vm: Domain, home: HostSeen) -> Iterator[Finding]:
    """Findings about one protected VM where it is. Of one that does not run: only what happens to it by itself when its
    host boots, or by hand, since it is not to be restarted."""
    if vm.autostart:
        yield of_domain("autostart", vm, home.name, f"autostart is on, on {home.name}")
    if vm.managed_save:
        yield of_domain("managed-save", vm, home.name, f"a managed-save image lies on {home.name}")
    if vm.bad_policy:
        yield of_domain("policy-unreadable", vm, home.name, vm.bad_policy)
    if not vm.state.active:
        return
    if not vm.persistent:
        yield of_domain("transient", vm, home.name, f"transient on {home.name}")
    yield from _twice(pool.seen, vm, home)
    bus = pool.seen.bus
    if not bus.error and not bus.definitions & {vm.uuid, key_of(vm.uuid, home.name)}:
        yield of_domain("definition-missing", vm, home.name, "the bus has no definition of it")
    yield from _bound(vm, home)
    yield from _unlocked(pool.seen, vm, home)
    targets = pool.others(home)
    yield from _elsewhere(pool, vm, home, targets)
    yield from _left_behind(pool, vm, home, targets)
    yield from _processor(vm, home, targets)


def _twice(seen: Seen, vm: Domain, home: HostSeen) -> Iterator[Finding]:
    also = [
        host.name
        for host in seen.hosts
        if host.name != home.name
        and any(one.uuid == vm.uuid and one.state.active and not one.moving for one in host.domains)
    ]
    if also and not vm.moving:
        yield of_domain(
            "runs-twice", vm, home.name, f"UUID {vm.uuid} runs on {home.name} and {', '.join(also)}"
        )


def _bound(vm: Domain, home: HostSeen) -> Iterator[Finding]:
    """What ties it to its host, whatever others have."""
    for device in vm.wants.host_devices:
        yield of_domain("host-device", vm, home.name, device)
    for socket in vm.wants.vhost_user:
        yield of_domain("vhost-user", vm, home.name, socket)


def _unlocked(seen: Seen, vm: Domain, home: HostSeen) -> Iterator[Finding]:
    locks = seen.locks(home)
    if locks is None or not locks.manager:
        return  # told of its host, or of the pool
    if vm.wants.shareable:
        yield of_domain("disk-unlocked", vm, home.name, f"shareable: {', '.join(vm.wants.shareable)}")
    if not locks.automatic and not vm.wants.leased:
        said = f"{locks.manager} of {home.name} locks only leases that a definition names, and it names none"
        yield of_domain("disk-unlocked", vm, home.name, said)


def _elsewhere(pool: Pool, vm: Domain, home: HostSeen, targets: list[HostSeen]) -> Iterator[Finding]:
    """Need by need over all hosts it could go to; then whether any one of them has everything."""
    if not targets:
        said = [f"{host.name}: {_shut(pool.seen, host)}" for host in pool.seen.hosts if host is not home]
        yield of_domain("no-other-host", vm, home.name, "; ".join(said) or f"{home.name} is the only host")
        return
    nowhere = False
    for need, verdicts in pool.matrix(vm, home):
        kinds = {verdict.has for verdict in verdicts.values()}
        if kinds == {Has.NO}:
            nowhere = True
            yield of_domain(need.lacking, vm, home.name, _said(need, verdicts, Has.NO))
        elif Has.YES not in kinds:
            yield of_domain(need.unproven, vm, home.name, _said(need, verdicts, Has.UNKNOWN))
    wrong = pool.lacks(vm, home)
    told = "; ".join(f"{name}: {', '.join(whys)}" for name, whys in wrong.items() if whys)
    if not nowhere and all(wrong.values()):
        yield of_domain("no-host-suits", vm, home.name, told)
    elif not nowhere and any(wrong.values()):
        yield of_domain("some-hosts-only", vm, home.name, told)


def _said(need: Need, verdicts: dict[str, Verdict], having: Has) -> str:
    """The need, and why for each host; said once where it is the same for all."""
    whys = {name: verdict.why for name, verdict in verdicts.items() if verdict.has is having}
    if len(set(whys.values())) == 1:
        (why,) = set(whys.values())
        return f"{need.what}: {', '.join(whys)}: {why}" if why else f"{need.what}: {', '.join(whys)}"
    return f"{need.what}: " + "; ".join(f"{name}: {why}" if why else name for name, why in whys.items())


def _shut(seen: Seen, host: HostSeen) -> str:
    return "does not answer" if host.error else seen.bus.hosts[host.name].closed


def _left_behind(pool: Pool, vm: Domain, home: HostSeen, targets: list[HostSeen]) -> Iterator[Finding]:
    """What it starts without, where no other host has the file."""
    for code, path in (("nvram-local", vm.wants.nvram), ("tpm-local", vm.wants.tpm)):
        if path and not any(pool.shared(path, home, host).has is Has.YES for host in targets):
            yield of_domain(code, vm, home.name, path)


def _processor(vm: Domain, home: HostSeen, targets: list[HostSeen]) -> Iterator[Finding]:
    if not vm.wants.host_cpu or home.cpu is None:
        return
    unlike = [f"{host.name} has {_cpu(host.cpu)}" for host in targets if host.cpu and host.cpu != home.cpu]
    if unlike:
        said = f"{vm.wants.host_cpu}: {home.name} has {_cpu(home.cpu)}, {', '.join(unlike)}"
        yield of_domain("cpu-differs", vm, home.name, said)


def _cpu(cpu: Cpu) -> str:
    return f"{cpu.vendor} {cpu.model} ({len(cpu.features)} more features)".strip()
