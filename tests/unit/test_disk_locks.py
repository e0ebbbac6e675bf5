"""The disk's own lock: whose refusal a libvirt error is, and what a host's files say guards its disks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import libvirt
import pytest

from libs.model import DiskLocks
from libs.virt.locks import configured, refused_by

pytestmark = pytest.mark.fast
QEMU = (
    "internal error: process exited while connecting to monitor: qemu-system-x86_64: -device virtio-blk-pci: "
    'Failed to get "write" lock\nIs another process using the image [/nfs/a.raw]?'
)


class Refusal(Exception):
    """As a libvirt.libvirtError tells of itself."""

    def __init__(self, code: int, domain: int, said: str) -> None:
        super().__init__(said)
        self.code, self.domain = code, domain

    def get_error_code(self) -> int:
        return self.code

    def get_error_domain(self) -> int:
        return self.domain


@pytest.mark.parametrize(
    ("code", "domain", "said", "lock"),
    [
        # as the lab's libvirt 9.0 says it; another language, the same numbers
        (87, 51, "resource busy: Lockspace resource 'e1515f6b' is locked", "virtlockd"),
        (87, 51, "Ressource belegt", "virtlockd"),
        (1, 10, QEMU, "QEMU's lock of the image"),
        # as the lab's libvirt 9.0 says it, with sanlock 3.8.5
        (87, 42, "resource busy: Failed to acquire lock: Lease is held by another host", "sanlock"),
        (87, 42, "Ressource belegt: Failed to acquire lock: Lease is owned by another host", "sanlock"),
        (87, 42, "Failed to acquire lock: Lease was acquired by another host in other ballot", "sanlock"),
        (87, 42, "Failed to acquire lock: Lease was acquired by another host in local commit", "sanlock"),
        (87, 42, "Failed to acquire lock: Lease is held by another host for shared acquire", "sanlock"),
        (87, 42, "resource busy: Failed to acquire lock: IO timeout", ""),
        (87, 42, "resource busy: Failed to acquire lock: Lease lockspace is not found", ""),
        (1, 42, "internal error: Failed to acquire lock: error -243", "sanlock"),
        (1, 42, "internal error: Failed to acquire lock: error -246", "sanlock"),
        (1, 42, "Failed to acquire lock: Lease is held by another host", "sanlock"),
        (1, 42, "internal error: Failed to acquire lock: error -202", ""),
        (1, 10, "internal error: process exited while connecting to monitor: error -243", ""),
        (87, 10, "resource busy: PCI device 0000:01:00.0 is in use", ""),
        (55, 10, "Requested operation is not valid: domain is already running", ""),
        (9, 10, "operation failed: no space left on device", ""),
    ],
)
def test_the_refusal_of_a_lock_is_told_from_any_other(code: int, domain: int, said: str, lock: str) -> None:
    assert refused_by(Refusal(code, domain, said)) == lock


def test_the_numbers_are_those_of_libvirt() -> None:
    known: Any = libvirt
    assert (known.VIR_ERR_RESOURCE_BUSY, known.VIR_FROM_LOCKSPACE, known.VIR_FROM_LOCKING) == (87, 51, 42)


@pytest.mark.parametrize(
    ("qemu", "beside", "locks"),
    [
        ('#lock_manager = "lockd"\n', None, DiskLocks()),
        ('lock_manager = "nop"\n', None, DiskLocks()),
        ('user = "root"\nlock_manager = "lockd"  # ours\n', None, DiskLocks(manager="lockd", automatic=True)),
        (
            'lock_manager = "lockd"\n',
            'file_lockspace_dir = "/nfs/locks"\n',
            DiskLocks(manager="lockd", automatic=True, space="/nfs/locks"),
        ),
        ('lock_manager = "lockd"\n', "auto_disk_leases = 0\n", DiskLocks(manager="lockd")),
        ('lock_manager = "sanlock"\n', None, DiskLocks(manager="sanlock")),
        (
            'lock_manager = "sanlock"\n',
            "auto_disk_leases = 1\nhost_id = 1\n",
            DiskLocks(manager="sanlock", automatic=True, space="/var/lib/libvirt/sanlock"),
        ),
        (
            'lock_manager = "sanlock"\n',
            'auto_disk_leases = 1\ndisk_lease_dir = "/nfs/leases"\n',
            DiskLocks(manager="sanlock", automatic=True, space="/nfs/leases"),
        ),
    ],
)
def test_what_guards_the_disks_is_read_from_the_hosts_own_files(
    tmp_path: Path, qemu: str, beside: str | None, locks: DiskLocks
) -> None:
    (tmp_path / "qemu.conf").write_text(qemu)
    if beside is not None:
        (tmp_path / f"qemu-{locks.manager}.conf").write_text(beside)
    assert configured(tmp_path / "qemu.conf") == locks


def test_a_file_that_is_not_there_tells_nothing(tmp_path: Path) -> None:
    assert configured(tmp_path / "qemu.conf") is None, "unknown is never none"
