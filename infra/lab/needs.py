"""What the lab needs of the machine, by looking for the programs themselves. Standard library only: the
bootstrap runs this before anything is installed."""

import os
import shutil
from pathlib import Path

_SEARCH = os.pathsep.join(
    [os.environ.get("PATH", ""), "/usr/sbin", "/sbin", "/usr/local/sbin", "/usr/bin", "/bin"]
)

_PROGRAMS = {
    "libvirtd": "libvirt-daemon",
    "qemu-system-x86_64": "qemu-system-x86",
    "ip": "iproute2",
    "tc": "iproute2",
    "nsenter": "util-linux",
    "dpkg-deb": "dpkg",
    "apt-get": "apt",
    "apt-cache": "apt",
}

_STORE_PROGRAMS = {"bindfs": "bindfs"}
_LOCK_PROGRAMS = {"virtlockd": "libvirt-daemon (of newer Debian libvirt-daemon-lock)", "sanlock": "sanlock"}
_LOCK_DAEMONS = {"lockd": "virtlockd", "sanlock": "sanlock"}
"""By what qemu.conf calls a lock manager."""

_QEMU_DRIVER = "libvirt/connection-driver/libvirt_driver_qemu.so"
_LOCK_DRIVERS = "libvirt/lock-driver"


class MissingProgramError(RuntimeError):
    """A program that the lab needs is not on this machine; the message names the package."""


def program(name: str) -> str:
    """Absolute path of a program, also from directories that a plain user's PATH lacks (/usr/sbin).

    Raises MissingProgramError naming the package that has it.
    """
    found = shutil.which(name, path=_SEARCH)
    if found is None:
        package = {**_PROGRAMS, **_STORE_PROGRAMS, **_LOCK_PROGRAMS}.get(name, name)
        raise MissingProgramError(f"{name} not found; install the package {package}")
    return found


def lock_daemon(manager: str) -> str:
    """Absolute path of the daemon of a lock manager, where libvirt's own part of it is here, too.

    Raises MissingProgramError naming the package of what is not; KeyError for a lock manager that the lab does not know.
    """
    daemon = program(_LOCK_DAEMONS[manager])
    own = os.environ.get("LIBVIRT_LOCK_MANAGER_PLUGIN_DIR")  # as libvirtd looks for it
    folders = [Path(own)] if own else [folder / _LOCK_DRIVERS for folder in _library_folders()]
    if not any((folder / f"{manager}.so").exists() for folder in folders):
        raise MissingProgramError(f"libvirt's {manager}.so not found; install the package libvirt-{manager}")
    return daemon


def static_busybox() -> Path | None:
    """A busybox that runs without libraries (the guest has none), or None."""
    found = shutil.which("busybox", path=_SEARCH)
    if found is None:
        return None
    # An ELF file that asks for no interpreter is static; both Debian's `busybox` and `busybox-static` use this path.
    with open(found, "rb") as file:
        head = file.read(4096)
    return None if b"/ld-linux" in head or b"/ld-musl" in head else Path(found)


def _library_folders() -> list[Path]:
    return [Path("/usr/lib64"), Path("/usr/lib"), *Path("/usr/lib").glob("*-linux-gnu")]


def _has_qemu_driver() -> bool:
    return any((folder / _QEMU_DRIVER).exists() for folder in _library_folders())


def missing_store_packages() -> list[str]:
    """Names of the packages that datastores need besides; a lab without datastores does without."""
    return sorted(
        {package for name, package in _STORE_PROGRAMS.items() if shutil.which(name, path=_SEARCH) is None}
    )


def missing_packages() -> list[str]:
    """Debian and Ubuntu package names of what this machine still lacks for a lab; empty when it lacks nothing."""
    missing = {package for name, package in _PROGRAMS.items() if shutil.which(name, path=_SEARCH) is None}
    if not _has_qemu_driver():
        missing.add("libvirt-daemon-driver-qemu")
    if static_busybox() is None:
        missing.add("busybox-static")
    return sorted(missing)
