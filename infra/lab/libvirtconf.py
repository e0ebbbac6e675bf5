"""Configuration files of a host's libvirtd, for a system daemon (root) and a session daemon (plain user)."""

import uuid

from infra.lab.paths import HostPaths
from infra.lab.spec import BRIDGE, LabSpec

_MIGRATION_PORTS = 20
"""Ports a host gets for incoming migrations, so that hosts that share one network never meet on one."""


def _text(settings: dict[str, object]) -> str:
    def value(raw: object) -> str:
        if isinstance(raw, list):
            return "[ " + ", ".join(f'"{each}"' for each in raw) + " ]"
        return str(raw) if isinstance(raw, int) else f'"{raw}"'

    return "".join(f"{name} = {value(raw)}\n" for name, raw in settings.items())


def _libvirtd(spec: LabSpec, host: HostPaths) -> dict[str, object]:
    settings: dict[str, object] = {
        "host_uuid": spec.host_uuid(host.host),
        "log_outputs": f"3:file:{host.libvirtd_log}",
        # Many clients at once (services, observer, tests) must not queue for a slot while a host is being judged.
        "max_clients": 200,
        "max_workers": 40,
        "max_client_requests": 20,
    }
    if spec.privileged:
        settings |= {"auth_unix_ro": "none", "auth_unix_rw": "none", "unix_sock_rw_perms": "0700"}
    return settings


def _qemu(spec: LabSpec, host: HostPaths) -> dict[str, object]:
    index = [each.name for each in spec.hosts].index(host.host)
    first = 49152 + index * _MIGRATION_PORTS
    settings: dict[str, object] = {
        # No virtlogd: it would be one more daemon a host, and it would outlive a power cut.
        "stdio_handler": "file",
        "migration_port_min": first,
        "migration_port_max": first + _MIGRATION_PORTS - 1,
        "keepalive_interval": 5,
        "keepalive_count": 5,
    }
    if spec.lock_manager:
        settings["lock_manager"] = spec.lock_manager
    if spec.privileged:
        settings |= {
            "user": "root",
            "group": "root",
            "dynamic_ownership": 0,
            "remember_owner": 0,
            "security_driver": "none",
            "namespaces": [],
            "cgroup_controllers": [],
        }
    return settings


SANLOCK_IO_S = 3
"""What sanlock grants one read or write of a lease, 10 s where nobody says otherwise: it joins in twice this and a
second, and holds a host dead after eight times this and a minute. One second was too short beside others who write."""


def _write_locks(spec: LabSpec, host: HostPaths) -> None:
    """A lock a disk, each a file of its own on the shared storage: what virtlockd locks on the disk itself would be seen
    by QEMU's own lock, too, and it could not be told which of them refused."""
    spec.paths.lockspace.mkdir(exist_ok=True)
    leases: dict[str, object] = {"auto_disk_leases": 1}
    if spec.lock_manager == "sanlock":
        number = 1 + [each.name for each in spec.hosts].index(host.host)
        leases |= {
            "disk_lease_dir": str(spec.paths.lockspace),
            "host_id": number,
            "io_timeout": SANLOCK_IO_S,
        }
        (host.etc / "qemu-sanlock.conf").write_text(_text(leases))
        return
    leases["file_lockspace_dir"] = str(spec.paths.lockspace)
    (host.etc / "qemu-lockd.conf").write_text(_text(leases))
    log = host.dir / "log" / "virtlockd.log"
    (host.etc / "virtlockd.conf").write_text(_text({"log_outputs": f"3:file:{log}"}))


_HOOK = """#!/bin/sh
# refuses the next starts of a VM, as often as the file named for it says
[ "$2" = prepare ] && read -r left < {refused}/"$1" && [ "$left" -gt 0 ] || exit 0
echo $((left - 1)) > {refused}/"$1"
echo "the lab refuses this start" >&2
exit 1
"""


def write_hook(host: HostPaths) -> None:
    """Have libvirtd, from its next start on, refuse the starts that `Lab.fail_start` names."""
    hook = host.etc / "hooks" / "qemu"
    hook.parent.mkdir(parents=True, exist_ok=True)
    hook.write_text(_HOOK.format(refused=host.refused))
    hook.chmod(0o755)


_NETWORK = """<network>
  <name>{name}</name>
  <uuid>{uuid}</uuid>
  <forward mode='bridge'/>
  <bridge name='{bridge}'/>
</network>
"""


def _write_networks(spec: LabSpec, host: HostPaths) -> None:
    """As `virsh net-define` and `net-autostart` would leave them."""
    folder = host.etc / "qemu" / "networks"
    (folder / "autostart").mkdir(parents=True, exist_ok=True)
    for name in spec.networks(host.host):
        made = uuid.uuid5(uuid.UUID(spec.host_uuid(host.host)), name)
        (folder / f"{name}.xml").write_text(_NETWORK.format(name=name, uuid=made, bridge=BRIDGE))
        link = folder / "autostart" / f"{name}.xml"
        if not link.is_symlink():
            link.symlink_to(f"/etc/libvirt/qemu/networks/{name}.xml")


def write(spec: LabSpec, host: HostPaths) -> None:
    """Make the host's directories and write libvirtd.conf and qemu.conf."""
    for folder in (host.etc, host.run, host.lib, host.cache, host.dir / "log"):
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o755 if spec.privileged else 0o700)
    (host.etc / "libvirtd.conf").write_text(_text(_libvirtd(spec, host)))
    (host.etc / "qemu.conf").write_text(_text(_qemu(spec, host)))
    if spec.lock_manager:
        _write_locks(spec, host)
    if spec.hooks:
        write_hook(host)
    if spec.networks(host.host):
        _write_networks(spec, host)
