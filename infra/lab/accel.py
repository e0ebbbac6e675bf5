"""KVM or TCG: found out by booting, because a device node says nothing about whether a guest would run."""

import os
import subprocess
import tempfile
import threading
from pathlib import Path

from infra.lab.guest import COMMAND_LINE, UP_LINE, Guest
from infra.lab.needs import program

_DEADLINE_S = 8.0


def _boots(guest: Guest, accel: str) -> bool:
    """Whether a guest prints its up line within the deadline. Needs no disk."""
    argv = [program("qemu-system-x86_64"), "-machine", f"q35,accel={accel}", "-m", "96", "-nodefaults"]
    argv += ["-no-user-config", "-display", "none", "-serial", "stdio", "-kernel", str(guest.kernel)]
    argv += ["-initrd", str(guest.initrd), "-append", COMMAND_LINE]
    quiet = subprocess.DEVNULL
    with subprocess.Popen(argv, stdin=quiet, stdout=subprocess.PIPE, stderr=quiet) as qemu:
        watchdog = threading.Timer(_DEADLINE_S, qemu.kill)
        watchdog.start()
        try:
            assert qemu.stdout is not None
            return any(UP_LINE.encode() in line for line in qemu.stdout)
        finally:
            watchdog.cancel()
            qemu.kill()


def probe_accel(guest: Guest, cache_dir: Path) -> str:
    """`kvm` when a guest really boots under it within 8 s, else `tcg`; remembered per kernel and QEMU version."""
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "tcg"
    version = subprocess.run(
        [program("qemu-system-x86_64"), "--version"], check=True, capture_output=True, text=True
    ).stdout.split("\n")[0]
    key = f"{os.uname().release} {version}"
    answer = cache_dir / "accel"
    if answer.exists():
        known, _, value = answer.read_text().strip().rpartition("\t")
        if known == key:
            return value
    found = "kvm" if _boots(guest, "kvm") else "tcg"
    with tempfile.NamedTemporaryFile("w", dir=cache_dir, delete=False) as fresh:
        fresh.write(f"{key}\t{found}\n")
    os.replace(fresh.name, answer)
    return found
