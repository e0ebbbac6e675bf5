"""A host's own view of the machine (root only): process, mount, host name and network namespaces by plain calls.

Nothing here is visible outside: when the host's first process dies, the kernel takes all of it away.
"""

import contextlib
import ctypes
import os
import threading
from pathlib import Path

from infra.lab.spec import LabSpec

_LIBC = ctypes.CDLL(None, use_errno=True)

CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
_MS_RDONLY = 1
_MS_REMOUNT = 0x20
_MS_BIND = 0x1000
_MS_REC = 0x4000
_MS_PRIVATE = 1 << 18
_MNT_DETACH = 2
_PR_SET_NAME = 15
_PR_SET_CHILD_SUBREAPER = 36

# A host must not find the machine's own daemons: over D-Bus libvirt would put the guests under the machine's systemd.
_HIDDEN_IN_RUN = ("dbus", "systemd", "libvirt")


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def become_subreaper() -> None:
    """Have orphaned descendants become children of this process. Raises OSError."""
    _check(_LIBC.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), "prctl(PR_SET_CHILD_SUBREAPER)")


def name_process(name: str) -> None:
    """Be shown under this name, of 15 bytes at most, by who asks the kernel. Raises OSError."""
    _check(_LIBC.prctl(_PR_SET_NAME, name.encode(), 0, 0, 0), "prctl(PR_SET_NAME)")


def unshare(flags: int) -> None:
    """Leave the named namespaces (the process one: for children from now on). Raises OSError."""
    _check(_LIBC.unshare(flags), "unshare")


def _mount(source: str | None, target: Path, kind: str | None, flags: int = 0) -> None:
    encoded = source.encode() if source else None
    result = _LIBC.mount(
        encoded, os.fsencode(target), kind.encode() if kind else None, ctypes.c_ulong(flags), None
    )
    _check(result, f"mount {source} on {target}")


def _bind(source: Path, target: Path) -> None:
    _mount(str(source), target, None, _MS_BIND | _MS_REC)


def _detach(target: Path) -> None:
    _check(_LIBC.umount2(os.fsencode(target), _MNT_DETACH), f"umount {target}")


def _graft(folder: Path, child: str, aside: Path, hidden: tuple[str, ...] = ()) -> None:
    """Give `folder` a sub-directory `child` that the machine does not have, without making one on the machine.

    A fresh tmpfs is put over `folder` and everything that was there, except `hidden`, bound back into it.
    """
    aside.mkdir(exist_ok=True)
    _bind(folder, aside)
    _mount("tmpfs", folder, "tmpfs")
    for entry in os.scandir(aside):
        if entry.name in (*hidden, child):
            continue
        place = folder / entry.name
        if entry.is_symlink():
            place.symlink_to(os.readlink(entry.path))
        elif entry.is_dir():
            place.mkdir()
            _bind(Path(entry.path), place)
        elif entry.is_file():
            place.touch()
            _bind(Path(entry.path), place)
    (folder / child).mkdir()
    _detach(aside)


def _mounted(target: Path) -> bool:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return any(line.split()[4] == str(target) for line in lines)


def _hide_kvm(stand_in: Path) -> None:
    """Put a file that cannot be written in the place of /dev/kvm.

    A TCG lab has no use for it, and where libvirt sees it, it compares the processor that it happens to run on with
    its cache and every other start spends 0.6 s on probing QEMU anew.
    """
    device = Path("/dev/kvm")
    if device.exists():
        _bind(stand_in, device)
        _mount(None, device, None, _MS_BIND | _MS_REMOUNT | _MS_RDONLY)


def furnish(spec: LabSpec, host_name: str) -> None:
    """As first process of the new namespaces: put the host's own directories where libvirtd looks. Raises OSError."""
    host = spec.host(host_name)
    aside = host.dir / "aside"
    _mount(None, Path("/"), None, _MS_REC | _MS_PRIVATE)
    _mount("proc", Path("/proc"), "proc")
    _graft(Path("/run"), "libvirt", aside, _HIDDEN_IN_RUN)
    places = {"/etc": host.etc, "/var/lib": host.lib, "/var/cache": host.cache, "/var/log": host.dir / "log"}
    for parent, own in places.items():
        target = Path(parent) / "libvirt"
        if not target.is_dir():
            _graft(Path(parent), "libvirt", aside)
        _bind(own, target)
    _bind(host.run, Path("/run/libvirt"))
    if _mounted(Path("/sys/fs/cgroup")):
        # Without cgroups in sight libvirt makes none, and leaves none behind.
        _detach(Path("/sys/fs/cgroup"))
    if spec.network is not None:
        _bind(host.line, spec.paths.line)
        _mount("sysfs", Path("/sys"), "sysfs")
    if spec.domain_type != "kvm":
        _hide_kvm(spec.paths.etc / "no-kvm")
    _bind(host.boot_id, Path("/proc/sys/kernel/random/boot_id"))
    # libvirt asks the resolver for the host's own name; unanswered, that would stall it for seconds.
    for name in ("hosts", "passwd", "group"):
        target = Path("/etc") / name
        if target.exists():  # a minimal system has no /etc/hosts, and making one would touch the machine
            _bind(spec.paths.etc / name, target)
    encoded = host_name.encode()
    _check(_LIBC.sethostname(encoded, len(encoded)), "sethostname")


def abandon_connections(pid: int) -> None:
    """Have the kernel forget within a second what the processes in the network namespace of `pid` will leave unsaid.

    By default it repeats a FIN that nobody hears for 100 s, and keeps the namespace for as long: where the process is
    gone, or the machine lets nobody set this, it does so.
    """

    def enter_and_set() -> None:
        with contextlib.suppress(OSError):
            descriptor = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
            try:
                _check(_LIBC.setns(descriptor, CLONE_NEWNET), "setns")
            finally:
                os.close(descriptor)
            Path("/proc/sys/net/ipv4/tcp_orphan_retries").write_text("1")

    # A namespace is entered by one thread, and this one ends in there.
    inside = threading.Thread(target=enter_and_set)
    inside.start()
    inside.join()


def namespaces_of(spec: LabSpec) -> int:
    """Which namespaces a host of this lab gets."""
    network = CLONE_NEWNET if spec.network is not None else 0
    return CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWUTS | network
