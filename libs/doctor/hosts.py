"""What is wrong with hosts: whether they answer, whether they can be fenced, whether their agents are heard."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from libs.config.entries import FenceDevice, HostEntry
from libs.config.settings import Settings
from libs.doctor.made import Finding, of_host, version
from libs.doctor.seen import Device, Fencing, HostSeen, Seen
from libs.model import PowerState

OLDEST_LIBVIRT = 9_000_000
"""What the tests and the lab run on."""
CLOCK_S = 1.0
"""Clocks that differ by more are told of."""
CONTROLLERS = (
    "fence_ipmilan", "fence_ipmilanplus", "fence_idrac", "fence_drac", "fence_drac5", "fence_ilo", "fence_ilo2",
    "fence_ilo3", "fence_ilo4", "fence_ilo5", "fence_ilo6", "fence_ilo_ssh", "fence_ilo3_ssh", "fence_ilo4_ssh",
    "fence_ilo5_ssh", "fence_ilo_mp", "fence_imm", "fence_redfish", "fence_rsa", "fence_rsb",
)  # fmt: skip
"""Agents of the fence-agents package that speak to a controller on the host's own board."""
UNWELL = ("suspect", "isolated", "failed", "fenced", "unknown")


def of_hosts(settings: Settings, seen: Seen) -> Iterator[Finding]:
    """Findings about all hosts of the pool file."""
    yield from _cloned(seen.hosts)
    yield from _same_device(settings)
    for entry in settings.hosts:
        host = seen.host(entry.name)
        if host.error:
            yield of_host("host-unreachable", host.name, host.error)
        elif host.libvirt is not None and host.libvirt < OLDEST_LIBVIRT:
            said = f"libvirt {version(host.libvirt)}; tested with {version(OLDEST_LIBVIRT)} and newer"
            yield of_host("libvirt-old", host.name, said)
        locks = seen.locks(host)
        if locks is not None and not locks.manager:
            yield of_host("lock-manager-none", host.name, f"no lock_manager in {entry.qemu_conf}")
        yield from _clock(host, seen)
        for what, why in host.unasked:
            yield of_host("not-asked", host.name, f"{what}: {why}")
        yield from _fencing(entry, host, seen.fencing.get(entry.name, Fencing()))
        yield from _plane(entry, seen)


def _clock(host: HostSeen, seen: Seen) -> Iterator[Finding]:
    clock = seen.clock(host)
    if clock is None or abs(clock.ahead_s) - clock.within_s <= CLOCK_S:
        return
    way = "ahead of" if clock.ahead_s > 0 else "behind"
    said = (
        f"{abs(clock.ahead_s):.1f} s {way} this machine's clock, to within {max(clock.within_s, 0.1):.1f} s"
    )
    yield of_host("clock-off", host.name, said)


def _cloned(hosts: tuple[HostSeen, ...]) -> Iterator[Finding]:
    by_uuid: dict[str, list[str]] = defaultdict(list)
    for host in hosts:
        if host.uuid:
            by_uuid[host.uuid].append(host.name)
    for uuid, names in by_uuid.items():
        for name in names if len(names) > 1 else ():
            others = ", ".join(other for other in names if other != name)
            yield of_host("host-cloned", name, f"host UUID {uuid}, as {others}")


def _same_device(settings: Settings) -> Iterator[Finding]:
    owners: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for host in settings.hosts:
        for key in {_identity(device) for device in host.fencing if device.options}:
            owners[key].append(host.name)
    for (agent, *_), names in owners.items():
        for name in names if len(names) > 1 else ():
            others = ", ".join(other for other in names if other != name)
            yield of_host("fence-same-device", name, f"{agent}, as {others}")


def _identity(device: FenceDevice) -> tuple[str, ...]:
    """What tells one device from another: all that its agent is told, of secrets where they lie."""
    told: dict[str, object] = {**device.options, **device.secrets}
    return (device.agent, *(f"{key}={value}" for key, value in sorted(told.items())))


def _fencing(entry: HostEntry, host: HostSeen, fencing: Fencing) -> Iterator[Finding]:
    if not entry.fencing:
        if entry.watchdog is None:
            yield of_host("fence-none", entry.name, "no device under fencing")
        else:
            said = f"{entry.watchdog.device}, {entry.watchdog.timeout_s} s, and no device under fencing"
            yield of_host("fence-watchdog-only", entry.name, said)
        return
    if fencing.bad:
        yield of_host("fence-unusable", entry.name, fencing.bad)
        return
    levels: dict[int, list[Device]] = defaultdict(list)
    for device in fencing.devices:
        levels[device.level].append(device)
    broken = {
        level: [device for device in devices if device.state is PowerState.UNKNOWN]
        for level, devices in sorted(levels.items())
    }
    working = [level for level, devices in broken.items() if not devices]
    for level, devices in broken.items():
        if devices:
            said = f"level {level}: " + "; ".join(device.said or device.agent for device in devices)
            yield of_host("fence-level-broken" if working else "fence-unreadable", entry.name, said)
    for level in working:
        if not host.error and all(device.state is PowerState.OFF for device in levels[level]):
            names = ", ".join(device.agent for device in levels[level])
            said = f"level {level} ({names}) reads off while libvirt answers"
            yield of_host("fence-contradicts", entry.name, said)
    if entry.watchdog is not None:
        return  # which is another way, and does not depend on a controller
    agents = {device.agent for device in fencing.devices}
    if agents <= set(CONTROLLERS):
        yield of_host("fence-bmc-only", entry.name, ", ".join(sorted(agents)))
    if len(levels) == 1:
        yield of_host("fence-one-level", entry.name, f"level {min(levels)}: {', '.join(sorted(agents))}")


def _plane(entry: HostEntry, seen: Seen) -> Iterator[Finding]:
    if not entry.agent:
        yield of_host("agent-none", entry.name, "agent: false, watched over its libvirt URI")
    known = seen.bus.hosts.get(entry.name)
    if known is None:
        return
    if known.state == "agent_down" or (known.state == "unknown" and entry.agent):
        yield of_host("agent-not-heard", entry.name, f"the detector holds it {known.state}")
    elif known.state in UNWELL:
        yield of_host("host-not-healthy", entry.name, f"the detector holds it {known.state}")
    if known.asks is False:
        yield of_host("arrivals-unasked", entry.name, f"there is no {entry.arrivals_hook}")
    if entry.watchdog is not None and known.state == "healthy" and known.watchdog_s is None:
        said = f"{entry.watchdog.device} is in the pool file, and no time-out is promised"
        yield of_host("watchdog-unarmed", entry.name, said)
    if known.closed:
        yield of_host("host-closed", entry.name, known.closed)
