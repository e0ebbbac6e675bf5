"""The guest that the lab's VMs boot: a distribution kernel and an initramfs of our own, kept in a cache.

The kernel is downloaded and unpacked, never installed: no root is needed and the machine is left as it was.
"""

import fcntl
import hashlib
import os
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from infra.lab import agentguest, bareguest, initramfs, netguest, vmlinux
from infra.lab.needs import program, static_busybox

UP_LINE = "REKINDLE-GUEST-UP"
"""What a guest prints on its serial console, once a boot, when it is up."""
AGENT_LINE = "REKINDLE-GUEST-AGENT"
"""Printed by a guest that has an agent on its second serial line, just before it starts it."""
AGENT_SUFFIX = ".agent"
"""How the file of that line ends, beside the console's."""

COMMAND_LINE = (
    # `quiet loglevel=0`: the console carries the up line and nothing else. The rest shortens a TCG boot by 0.5 s.
    "console=ttyS0 quiet loglevel=0 panic=-1 tsc=reliable no_timer_check cryptomgr.notests mitigations=off "
    "random.trust_cpu=on nokaslr lsm=none noreplace-smp ipv6.disable=1 hpet=disable audit=0"
)

# Small kernels first. Debian's name, then Ubuntu's.
METAPACKAGES = ("linux-image-cloud-amd64", "linux-image-kvm", "linux-image-virtual", "linux-image-generic")


class GuestError(RuntimeError):
    """No guest can be made on this machine; the message says what was tried."""


@dataclass(frozen=True)
class Guest:
    """What a VM boots directly."""

    kernel: Path
    initrd: Path | None


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the cache alone: two labs may start at once on a cold machine."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _run(arguments: list[str], cwd: Path, timeout_s: float) -> str:
    """Output of a command; raises GuestError with its own words when it fails."""
    environment = {**os.environ, "LC_ALL": "C"}
    try:
        done = subprocess.run(
            arguments,
            cwd=cwd,
            env=environment,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise GuestError(f"{' '.join(arguments)}: no end after {timeout_s:g} s") from error
    if done.returncode != 0:
        raise GuestError(f"{' '.join(arguments)}: {done.stderr.strip()[-400:]}")
    return done.stdout


def _depends(package: str, pattern: str, cwd: Path) -> list[str]:
    text = _run([program("apt-cache"), "depends", package], cwd, 60)
    return re.findall(rf"^\s*Depends: ({pattern})$", text, re.MULTILINE)


def _kernel_packages(cwd: Path, metapackages: tuple[str, ...] = METAPACKAGES) -> list[str]:
    """Names of the packages with a kernel and its modules. Raises GuestError when apt knows none."""
    refused = []
    for meta in metapackages:
        try:
            images = _depends(meta, r"linux-image-\d\S+", cwd)
        except GuestError as error:
            refused.append(str(error))
            continue
        if images:
            # Ubuntu has the modules in a package of their own.
            return [images[0], *_depends(images[0], r"linux-modules-\d\S+", cwd)]
        refused.append(f"{meta}: names no kernel package")
    raise GuestError("apt knows no kernel package (has `apt-get update` run?): " + "; ".join(refused))


def _download(packages: list[str], work: Path) -> Path:
    """Unpack packages below `work` and return the directory in which their files lie."""
    # As root apt would hand the download to its own user, who may not write here, and complain.
    sandbox = ["-o", "APT::Sandbox::User=root"] if os.getuid() == 0 else []
    _run([program("apt-get"), *sandbox, "download", *packages], work, 300)
    tree = work / "tree"
    for archive in sorted(work.glob("*.deb")):
        _run([program("dpkg-deb"), "-x", str(archive), str(tree)], work, 120)
    return tree


def kernel_tree(work: Path, metapackages: tuple[str, ...]) -> Path:
    """A directory below `work` with the first of these kernels and its modules, unpacked. Raises GuestError."""
    return _download(_kernel_packages(work, metapackages), work)


def kernel_in(tree: Path) -> tuple[Path, Path]:
    """(kernel image, modules directory) below `tree`; the newest kernel that has both and is readable."""
    for kernel in sorted((tree / "boot").glob("vmlinuz-*"), reverse=True):
        version = kernel.name.removeprefix("vmlinuz-")
        for library in ("lib", "usr/lib"):
            modules = tree / library / "modules" / version
            if modules.is_dir() and os.access(kernel, os.R_OK):
                return kernel, modules
    raise GuestError(f"no readable kernel with its modules below {tree}")


def _agent_programs(work: Path) -> dict[str, Path]:
    """The guest agent and what it needs, by their places in the guest: downloaded, or this machine's own."""
    installed = Path("/usr/sbin/qemu-ga")
    try:
        binary = _download([agentguest.PACKAGE], work) / "usr/sbin/qemu-ga"
    except GuestError:
        if not installed.exists():
            raise
        binary = installed
    try:
        loader, *others = agentguest.libraries(binary)
    except FileNotFoundError as error:
        raise GuestError(str(error)) from error
    return {
        "bin/qemu-ga": binary,
        f"lib64/{loader.name}": loader,
        **{f"lib/{lib.name}": lib for lib in others},
    }


@dataclass(frozen=True)
class Flavour:
    """What a guest has in it beside its kernel and a busybox."""

    agent: bool = False
    net: bool = False

    @property
    def recipe(self) -> tuple[str, tuple[str, ...]]:
        """Its script, and its modules."""
        # its server counts from when it is up: nothing that takes time comes after
        start = (agentguest.START if self.agent else "") + (netguest.START if self.net else "")
        net, agent = (netguest.MODULES if self.net else ()), (agentguest.MODULES if self.agent else ())
        script = initramfs.init(start, agentguest.EACH_SECOND if self.agent else "")
        return script, (*initramfs.MODULES, *net, *agent)

    @property
    def folder(self) -> str:
        """Where the cache has it: by what it is made of."""
        recipe = repr((initramfs.INIT, initramfs.MODULES, 2))
        if self.net:
            recipe = repr((recipe, self.recipe, 1))
        elif self.agent:
            recipe = repr((recipe, agentguest.INIT, agentguest.MODULES, 1))
        kind = "-net" * self.net + "-agent" * self.agent
        return f"guest{kind}-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"


def _pack(busybox: Path, modules: Path, flavour: Flavour, work: Path) -> bytes:
    """The initramfs of one flavour."""
    script, wanted = flavour.recipe
    return initramfs.pack(busybox, modules, script, wanted, _agent_programs(work) if flavour.agent else None)


def _build(target: Path, flavour: Flavour) -> None:
    """Make kernel and initramfs in the new directory `target`. Raises GuestError saying all that was tried."""
    busybox = static_busybox()
    if busybox is None:
        raise GuestError("no static busybox; install the package busybox-static")
    refused = []
    for source in ("download", "/boot"):
        with tempfile.TemporaryDirectory(dir=target.parent, prefix="kernel-") as work:
            try:
                place = Path(work)
                here = Path("/") if source != "download" else _download(_kernel_packages(place), place)
                kernel, modules = kernel_in(here)
                archive = _pack(busybox, modules, flavour, place)
            except (GuestError, initramfs.ModuleError) as error:
                refused.append(f"{source}: {error}")
                continue
            packed = kernel.read_bytes()
            (target / "kernel").write_bytes(vmlinux.uncompressed(packed) or packed)
            (target / "initrd").write_bytes(archive)
            return
    raise GuestError("no kernel for the lab's guests. " + " | ".join(refused))


def ensure_guest(cache_dir: Path, *, agent: bool = False, net: bool = False) -> Guest:
    """The guest's kernel and initramfs, made on the first call and cached by content after that; with `agent` the
    flavour that has QEMU's guest agent in it, with `net` one that has a network card.

    Needs the machine's ordinary package sources once. Raises GuestError, or MissingProgramError without apt.
    """
    if platform.machine() != "x86_64":
        raise GuestError(f"the lab's guests are x86_64, this machine is {platform.machine()}")
    flavour = Flavour(agent, net)
    final = cache_dir / flavour.folder
    guest = Guest(final / "kernel", final / "initrd")
    if final.is_dir():
        return guest
    with _locked(cache_dir):
        if final.is_dir():
            return guest
        fresh = Path(tempfile.mkdtemp(dir=cache_dir, prefix="guest-new-"))
        try:
            _build(fresh, flavour)
            fresh.chmod(0o755)
            fresh.rename(final)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
    return guest


def ensure_bare_guest(cache_dir: Path) -> Guest:
    """The flavour without an operating system, made on the first call. Needs nothing of the machine."""
    program = bareguest.kernel()
    path = cache_dir / f"guest-bare-{hashlib.sha256(program).hexdigest()[:12]}"
    if not path.exists():
        with _locked(cache_dir):
            fresh = path.with_suffix(".new")
            fresh.write_bytes(program)
            fresh.rename(path)
    return Guest(path, None)
