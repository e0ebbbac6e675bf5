"""Packs the guest's initramfs: busybox, a few kernel modules and one script, as an uncompressed newc archive.

Written here rather than by cpio(1): it needs no root for the device node, no package, and is the same byte for byte.
Uncompressed because unpacking costs a TCG guest more (0.3 s) than reading two megabytes.
"""

import gzip
import lzma
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path

MODULES = ("virtio_pci", "virtio_blk", "button", "evdev")
"""Disk, ACPI power button, and the event device on which the button is read."""

_INIT = r"""#!/bin/busybox sh
b=/bin/busybox
$b mount -t devtmpfs dev /dev
$b mount -t proc proc /proc
$b mount -t sysfs sys /sys
while read -r module; do $b insmod /lib/$module; done < /lib/order
# The ACPI power button is one event on its input device: wait for it without polling, then switch off.
for event in /sys/class/input/event*; do
  read -r name < $event/device/name
  [ "$name" = "Power Button" ] && { $b head -c 24 /dev/input/${event##*/} > /dev/null; exec $b poweroff -f; } &
done
disk=/dev/vda
[ -b $disk ] && count=$($b head -c 40 $disk | $b sed -n 's/^REKINDLE-COUNTER \([0-9]*\).*/\1/p')
@START@echo REKINDLE-GUEST-UP > /dev/ttyS0
# Only builtins from here on: a fork costs a TCG guest milliseconds, and ten guests must idle at nearly nothing.
# Closing the block device flushes it, so each count reaches the disk without a sync.
$b mkfifo /never
exec 3<> /never
while :; do
  count=$((count + 1))
  [ -b $disk ] && printf '%-511s\n' "REKINDLE-COUNTER $count" > $disk
@EACH_SECOND@  read -r -t 1 nothing <&3
done
"""


def init(start: str = "", each_second: str = "") -> str:
    """The guest's script, with lines to run once before the guest is up, and each second after that."""
    return _INIT.replace("@START@", start).replace("@EACH_SECOND@", each_second)


INIT = init()


class ModuleError(RuntimeError):
    """A kernel module that the guest needs is not there or cannot be unpacked."""


def _unpacked(path: Path) -> bytes:
    """Contents of a module file, decompressed here because the guest's busybox may not know the format."""
    if path.suffix == ".xz":
        return lzma.decompress(path.read_bytes())
    if path.suffix == ".gz":
        return gzip.decompress(path.read_bytes())
    if path.suffix == ".zst":
        zstd = shutil.which("zstd")
        if zstd is None:
            raise ModuleError(f"{path} is packed with zstd; install the package zstd")
        return subprocess.run([zstd, "-dc", str(path)], check=True, capture_output=True).stdout
    return path.read_bytes()


def _depends(module: bytes) -> list[str]:
    """Names of the modules that a module asks for, from its .modinfo section."""
    match = re.search(rb"\0depends=([^\0]*)\0", module)
    return [name.decode() for name in match[1].split(b",") if name] if match else []


def load_order(modules_dir: Path, wanted: Iterable[str] = MODULES) -> list[tuple[str, bytes]]:
    """(file name, contents) of the modules to load, each after what it depends on; built-in ones are left out.

    `modules_dir` is lib/modules/VERSION of the kernel. Raises ModuleError when one is missing.
    """
    files = {path.name.split(".ko")[0].replace("-", "_"): path for path in modules_dir.rglob("*.ko*")}
    builtin_list = modules_dir / "modules.builtin"
    builtin_text = builtin_list.read_text() if builtin_list.exists() else ""
    builtin = {Path(line).stem.replace("-", "_") for line in builtin_text.split()}
    order: dict[str, bytes] = {}

    def add(name: str) -> None:
        if name in order or name in builtin:
            return
        if name not in files:
            raise ModuleError(f"kernel module {name} is neither built in nor below {modules_dir}")
        contents = _unpacked(files[name])
        for needed in _depends(contents):
            add(needed.replace("-", "_"))
        order[name] = contents

    for name in wanted:
        add(name)
    return [(f"{name}.ko", contents) for name, contents in order.items()]


def _entry(inode: int, name: str, mode: int, data: bytes = b"", device: tuple[int, int] = (0, 0)) -> bytes:
    """One newc record: header of 8-digit hexadecimal fields, name and data, each padded to four bytes."""
    raw = name.encode() + b"\0"
    fields = (inode, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(raw), 0)
    record = b"070701" + b"".join(b"%08X" % field for field in fields) + raw
    record += b"\0" * (-len(record) % 4)
    return record + data + b"\0" * (-len(data) % 4)


def pack(
    busybox: Path,
    modules_dir: Path,
    script: str = INIT,
    wanted: Iterable[str] = MODULES,
    programs: Mapping[str, Path] | None = None,
) -> bytes:
    """The whole archive; `programs` are further executables and libraries, by their place in the guest.

    Raises ModuleError when the kernel lacks a needed module.
    """
    modules = load_order(modules_dir, wanted)
    order = "".join(f"{name}\n" for name, _ in modules).encode()
    inside = {parent.as_posix() for place in programs or {} for parent in Path(place).parents}
    folders = sorted({"bin", "dev", "lib", "proc", "sys", *inside} - {"."})
    entries: list[tuple[str, int, bytes, tuple[int, int]]] = [
        (folder, 0o040755, b"", (0, 0)) for folder in folders
    ]
    entries.append(("dev/console", 0o020600, b"", (5, 1)))
    entries.append(("bin/busybox", 0o100755, busybox.read_bytes(), (0, 0)))
    entries.append(("init", 0o100755, script.encode(), (0, 0)))
    entries.append(("lib/order", 0o100644, order, (0, 0)))
    entries += [(f"lib/{name}", 0o100644, contents, (0, 0)) for name, contents in modules]
    entries += [(place, 0o100755, path.read_bytes(), (0, 0)) for place, path in (programs or {}).items()]
    archive = b"".join(
        _entry(inode, name, mode, data, device) for inode, (name, mode, data, device) in enumerate(entries, 1)
    )
    return archive + _entry(0, "TRAILER!!!", 0)
