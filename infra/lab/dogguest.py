"""A guest whose only work is a watchdog of its kernel: what the agent does with one (`libs/watchdogs.py`, the very file),
done by the distribution's Python on a kernel that may be reset.

The small kernels have softdog. `card` takes the distribution's ordinary kernel and QEMU's Intel 6300ESB instead, a watchdog
that resets the machine whatever its kernel does.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from infra.lab import agentguest, guest, initramfs
from infra.lab.needs import program, static_busybox

TIMEOUT_S = 4
LINE = "DOG "
"""How its words begin on the serial console: what, and when by the guest's clock."""
CARD = ("-device", "i6300esb", "-action", "watchdog=reset")
ORDINARY = ("linux-image-amd64",)

COMMAND_LINE = (
    "console=ttyS0 quiet loglevel=0 panic=-1 mitigations=off nolapic_timer clocksource=hpet rdinit=/init"
)
"""On a busy machine a guest measures its processor's own clocks wrongly as it boots; these have a known rate."""

_PORTS = '''"""Of libs.core.ports what a watchdog needs: the rest would bring libraries that no guest has."""
from typing import Protocol
class WatchdogError(Exception): ...
class Watchdog(Protocol): ...
'''
_DOG = f"""
import sys, time
sys.path.insert(0, "/app")
from pathlib import Path
from libs.watchdogs import watchdog_at

console = open("/dev/ttyS0", "w")

def say(what):
    console.write(f"{LINE}{{what}} {{time.monotonic():.2f}}\\n")
    console.flush()

def done(work):
    try:
        work.send(None)
    except StopIteration as end:
        return end.value

def fed(seconds):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        dog.feed()
        time.sleep({TIMEOUT_S} / 10)

dog = watchdog_at(Path("/dev/watchdog"))
say(f"armed:{{type(dog).__name__}}:{{done(dog.arm({TIMEOUT_S}))}}")
fed(2 * {TIMEOUT_S})
done(dog.disarm())
say("disarmed")
time.sleep(2 * {TIMEOUT_S})
done(dog.arm({TIMEOUT_S}))
fed(1)
dog.feed()
say("last")
"""
_INIT = """#!/bin/busybox sh
b=/bin/busybox
$b mount -t devtmpfs dev /dev
$b mount -t proc proc /proc
$b mount -t sysfs sys /sys
while read -r module; do $b insmod /lib/$module; done < /lib/order
PYTHONHOME=/ PYTHONPATH=/py /bin/python3 -S /app/dog.py > /dev/ttyS0 2>&1
# its user is dead, and nobody feeds it
while :; do read -r up rest < /proc/uptime; echo "DOG alive $up" > /dev/ttyS0; $b usleep 200000; done
"""
_LISTING = """
import json, sys
sys.path.insert(0, sys.argv[1])
import libs.watchdogs
print(json.dumps([m.__file__ for m in sys.modules.values() if getattr(m, "__file__", None)]))
"""


@dataclass(frozen=True)
class DogGuest:
    kernel: Path
    initrd: Path
    extra: tuple[str, ...]
    """Of QEMU's arguments."""


@contextmanager
def dog_guest(*, card: bool = False) -> Iterator[DogGuest]:
    """Made anew, in a directory that is removed afterwards. Raises guest.GuestError, or MissingProgramError."""
    busybox = static_busybox()
    if busybox is None:
        raise guest.GuestError("no static busybox; install the package busybox-static")
    with tempfile.TemporaryDirectory(prefix="rkl-dog-") as work:
        place = Path(work)
        tree = guest.kernel_tree(place, ORDINARY if card else guest.METAPACKAGES)
        kernel, modules = guest.kernel_in(tree)
        wanted = ("i6300esb",) if card else ("softdog",)
        archive = initramfs.pack(busybox, modules, _INIT, wanted, _programs(place))
        (place / "initrd").write_bytes(archive)
        yield DogGuest(kernel, place / "initrd", CARD if card else ())


def command(made: DogGuest) -> list[str]:
    """QEMU, which ends where the guest is reset."""
    return [
        *(program("qemu-system-x86_64"), "-nodefaults", "-nographic", "-no-reboot", "-m", "192", "-M", "q35"),
        *("-icount", "shift=4,sleep=off"),  # its time is what it has done: a busy machine makes no timer late
        *("-cpu", "max", "-kernel", str(made.kernel), "-initrd", str(made.initrd), "-serial", "stdio"),
        *("-append", COMMAND_LINE, *made.extra),
    ]


def _programs(work: Path) -> dict[str, Path]:
    """Python, what it imports for a watchdog, and our own file, by their places in the guest."""
    app = work / "app"
    (app / "libs/core").mkdir(parents=True)
    for name in ("libs/__init__.py", "libs/core/__init__.py"):
        (app / name).touch()
    (app / "libs/core/ports.py").write_text(_PORTS)
    (app / "dog.py").write_text(_DOG)
    own = Path(__file__).parents[2] / "libs/watchdogs.py"
    (app / "libs/watchdogs.py").write_bytes(own.read_bytes())
    python = Path(sys.base_prefix) / "bin" / f"python3.{sys.version_info.minor}"
    listed = subprocess.run(
        [str(python), "-I", "-S", "-c", _LISTING, str(app)], capture_output=True, text=True, check=True
    )
    files = [Path(one) for one in json.loads(listed.stdout)]
    stdlib = Path(json.__file__).parents[1]
    found = {"bin/python3": python}
    for file in files:
        if file.is_relative_to(stdlib):
            found[f"py/{file.relative_to(stdlib).as_posix().removeprefix('lib-dynload/')}"] = file
    found |= {f"app/{file.relative_to(app).as_posix()}": file for file in app.rglob("*.py")}
    loaded = [python, *(file for file in files if file.suffix == ".so")]
    for binary in loaded:
        loader, *others = agentguest.libraries(binary)
        found[f"lib64/{loader.name}"] = loader
        found |= {f"lib/{one.name}": one for one in others}
    return found
