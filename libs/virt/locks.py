"""Who refused a start because somebody holds a disk: virtlockd, sanlock, or QEMU's own lock of its image.

Neither names the holder. libvirt's codes are told from its own errors; what sanlock and QEMU say is read from their
words, of which libvirt translates none. What was seen, with libvirt 9.0: virtlockd and sanlock 3.8 refuse when QEMU
stands there already, its processors not yet begun; QEMU refuses while it opens the disk, and so before they are asked.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import libvirt

from libs.model import DiskLocks

SANLOCK = re.compile(r"error -24[3-7]\b|(held|owned|acquired) by (another|other) host", re.IGNORECASE)
"""SANLK_ACQUIRE_IDLIVE, _OWNED, _OTHER, _SHRETRY and _OWNED_RETRY of sanlock's sanlock_rv.h, as numbers or in the words of
its own sanlock_strerror, which libvirt takes where sanlock has it (since 3.8): "acquired" are two that start at once. libvirt gives
any other failure of a lease (no lockspace, an I/O time-out) the same code and domain."""
QEMU = (
    'Failed to get "write" lock',
    'Failed to get shared "write" lock',
    "Is another process using the image",
)
LOCKD, SANLOCK_SPACE = "lockd", "/var/lib/libvirt/sanlock"
"""What qemu.conf calls virtlockd, and where sanlock's automatic leases lie unless its file says otherwise."""
SETTING = re.compile(r"""^\s*(\w+)\s*=\s*(?:"([^"]*)"|(\d+))\s*(?:#.*)?$""")


def refused_by(error: Any) -> str:
    """Which lock of its disks refused a start, for people; "" where it was refused for another reason. `error` is a
    libvirt.libvirtError."""
    code, domain, said = error.get_error_code(), error.get_error_domain(), str(error)
    if code == libvirt.VIR_ERR_RESOURCE_BUSY and domain == libvirt.VIR_FROM_LOCKSPACE:
        return "virtlockd"
    if domain == libvirt.VIR_FROM_LOCKING and SANLOCK.search(said):
        return "sanlock"
    return "QEMU's lock of the image" if any(words in said for words in QEMU) else ""


def configured(qemu_conf: Path) -> DiskLocks | None:
    """What a host's qemu.conf, and the file of its lock manager beside it, say guards the disks. libvirtd reads them when
    it starts. None where they cannot be read: unknown. Blocking."""
    try:
        manager = str(_settings(qemu_conf).get("lock_manager", ""))
        if manager in ("", "nop"):
            return DiskLocks()
        beside = qemu_conf.with_name(f"qemu-{manager}.conf")
        found = _settings(beside) if beside.exists() else {}
    except (OSError, UnicodeDecodeError):
        return None
    # libvirt's own defaults: virtlockd takes a lease for each disk, sanlock only those that a definition names
    automatic = bool(found.get("auto_disk_leases", manager == LOCKD))
    if manager == LOCKD:
        space = found.get("file_lockspace_dir", "")
    else:
        space = found.get("disk_lease_dir", SANLOCK_SPACE) if automatic else ""
    return DiskLocks(manager=manager, automatic=automatic, space=str(space))


def _settings(path: Path) -> dict[str, str | int]:
    found: dict[str, str | int] = {}
    for line in path.read_text().splitlines():
        match = SETTING.match(line)
        if match is not None:
            found[match[1]] = match[2] if match[3] is None else int(match[3])
    return found
