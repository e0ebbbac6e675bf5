"""Puts a lab up and takes it away: directories, power devices, libvirt's capabilities, observer."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import libvirt

from infra.lab import libvirtconf, network, procs, stores
from infra.lab.accel import probe_accel
from infra.lab.guest import ensure_guest
from infra.lab.line import make_secret
from infra.lab.needs import lock_daemon, program
from infra.lab.observations import Summary, read_observations
from infra.lab.paths import MARKER, HostPaths, LabPaths
from infra.lab.powerclient import ask
from infra.lab.spec import LabError, LabHost, LabSpec, LabStore
from infra.lab.weather import has_netem

Progress = Callable[[str], None]

LOCKD, SANLOCK = "lockd", "sanlock"
"""What qemu.conf calls virtlockd and sanlock."""
_REPOSITORY = Path(__file__).resolve().parents[2]


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Replace a JSON file at once: a reader sees the old or the new one."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(document) + "\n")
    temporary.replace(path)


def _lab_env(root: Path) -> dict[str, str]:
    """Environment of the lab's own processes: marked, and able to import this package from anywhere."""
    path = os.pathsep.join(filter(None, [str(_REPOSITORY), os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, MARKER: str(root), "PYTHONPATH": path, "LIBVIRT_AUTOSTART": "0"}


# -- up -------------------------------------------------------------------------------------------------------


def _direct_io(folder: Path) -> bool:
    """Whether files in `folder` can be opened with O_DIRECT (a tmpfs often cannot)."""
    with tempfile.NamedTemporaryFile(dir=folder) as probe:
        try:
            os.close(os.open(probe.name, os.O_RDWR | os.O_DIRECT))
        except OSError:
            return False
    return True


def _write_etc(etc: Path, addresses: dict[str, str]) -> None:
    """Files for the hosts' /etc: each other's names, and the accounts that libvirt insists on.

    libvirtd looks its packaged account up before it reads that it shall use another; only the package
    libvirt-daemon-system, which would start daemons on the machine, makes it.
    """
    etc.mkdir(exist_ok=True)
    (etc / "no-kvm").touch()
    names = "".join(f"{address} {host}\n" for host, address in addresses.items())
    (etc / "hosts").write_text("127.0.0.1 localhost\n" + names)
    account = "libvirt-qemu:x:64055:64055::/nonexistent:/usr/sbin/nologin\n"
    for name, line in (("passwd", account), ("group", "libvirt-qemu:x:64055:\n")):
        text = Path("/etc", name).read_text()
        (etc / name).write_text(text if "\nlibvirt-qemu:" in text else text.rstrip("\n") + "\n" + line)


def _make_lockspace(folder: Path) -> None:
    """What the first libvirtd would make. Where two begin at once, the second may find it half made: it does not try again,
    and refuses every start (`No space left on device`)."""
    folder.mkdir()
    place = folder / "__LIBVIRT__DISKS__"
    with open(place, "wb") as file:
        file.truncate(1 << 20)
    argv = [lock_daemon(SANLOCK), "direct", "init", "-s", f"{place.name}:0:{place}:0"]
    done = subprocess.run(
        [*argv, "-o", str(libvirtconf.SANLOCK_IO_S)], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise LabError(f"sanlock: {done.stderr.strip()[-400:]}")


def lay_out(
    root: Path,
    hosts: list[LabHost],
    cache_dir: Path,
    with_network: bool | None,
    datastores: tuple[LabStore, ...] = (),
    lock_manager: str = "",
) -> LabSpec:
    """Make the directories of a new lab; what an ended one left (logs) goes. Raises LabError when `root` is in use."""
    lacking = stores.why_not() if datastores else None
    if lacking is not None:
        raise LabError(f"datastores {lacking}")
    if lock_manager:
        if lock_manager not in (LOCKD, SANLOCK):
            raise LabError(f"lock manager {lock_manager!r}: the lab knows {LOCKD} and {SANLOCK}")
        lock_daemon(lock_manager)
    if LabPaths(root).spec.exists():
        if procs.of_lab(root):
            raise LabError(f"a lab is up at {root}; take it down first")
        shutil.rmtree(root)
    if root.exists() and any(root.iterdir()):
        raise LabError(f"{root} is not empty and not a lab")
    privileged = os.getuid() == 0
    if with_network and not privileged:
        raise LabError("a network for each host needs root")
    if with_network is None:
        with_network = privileged and network.works()
    for host in hosts:
        if host.networks and not with_network:
            raise LabError(f"networks of {host.name}: they need root, and a network for each host")
    paths = LabPaths(root)
    places = [place for one in datastores for place in (paths.store(one.name), paths.backing(one.name))]
    for folder in (root, paths.shared, paths.consoles, paths.line, *places):
        folder.mkdir(parents=True, exist_ok=True)
    make_secret(paths.line_secret)
    if lock_manager == SANLOCK:
        _make_lockspace(paths.lockspace)
    plan = network.plan(root, hosts) if with_network else None
    spec = LabSpec(
        root,
        privileged,
        tuple(hosts),
        cache_dir.absolute(),
        plan,
        datastores=datastores,
        lock_manager=lock_manager,
    )
    if privileged:
        addresses = plan.addresses if plan else {host.name: "127.0.1.1" for host in hosts}
        _write_etc(paths.etc, addresses)
    for host in hosts:
        spec.host(host.name).line.mkdir(parents=True, exist_ok=True)
    return spec


def settle(spec: LabSpec, kvm: bool | None) -> LabSpec:
    """Fix what this machine decides: how guests are run, and how their disks are opened."""
    cache = "none" if _direct_io(spec.paths.shared) else "writethrough"
    if kvm is None:
        kvm = probe_accel(ensure_guest(spec.cache_dir), spec.cache_dir) == "kvm"
    return replace(spec, domain_type="kvm" if kvm else "qemu", disk_cache=cache)


def _start_power_devices(spec: LabSpec) -> None:
    """Start each host's power device; all listen when this returns. Raises LabError."""
    argv = [sys.executable, "-m", "infra.lab.powerd", str(spec.root), *(host.name for host in spec.hosts)]
    done = subprocess.run(argv, env=_lab_env(spec.root), cwd="/", capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise LabError(f"power devices: {done.stderr.strip()[-400:]}")


def _known_capabilities(spec: LabSpec) -> Path:
    flavour = "system" if spec.privileged else "session"
    return spec.cache_dir / f"capabilities-{flavour}-{spec.domain_type}"


def _copy_capabilities(source: Path, target: Path) -> None:
    """Hand libvirt's findings about QEMU on; libvirt itself throws them away when they are out of date."""
    target.mkdir(parents=True, exist_ok=True)
    for file in source.glob("*.xml"):
        fresh = target / f".{file.name}.{os.getpid()}.{threading.get_ident()}"
        shutil.copy2(file, fresh)
        fresh.replace(target / file.name)


def _warm(spec: LabSpec, host: HostPaths) -> None:
    """Have libvirtd find out what QEMU can do (seconds on a cold machine), before anyone measures a VM start."""
    connection = libvirt.open(host.uri)
    try:
        emulator = program("qemu-system-x86_64")
        connection.getDomainCapabilities(emulator, "x86_64", "q35", spec.domain_type, 0)
    finally:
        connection.close()
    _copy_capabilities(host.capabilities, _known_capabilities(spec))


def raise_hosts(spec: LabSpec, progress: Progress, power_on: Callable[[str], None]) -> None:
    """Guest, network, then all hosts side by side; on a machine without cached capabilities one host goes first."""
    progress("guest")
    ensure_guest(spec.cache_dir)
    if spec.network is not None:
        network.up(spec.network, spec.root)
    hosts = [spec.host(host.name) for host in spec.hosts]
    _start_power_devices(spec)

    def start(host: HostPaths) -> None:
        libvirtconf.write(spec, host)
        if _known_capabilities(spec).is_dir():
            _copy_capabilities(_known_capabilities(spec), host.capabilities)
        power_on(host.host)
        _warm(spec, host)
        progress(f"host {host.host} is up")

    first = 0 if _known_capabilities(spec).is_dir() else 1
    for host in hosts[:first]:
        progress("first lab on this machine: libvirt looks at QEMU")
        start(host)
    with ThreadPoolExecutor(max_workers=len(hosts)) as pool:
        # Every start has ended when this block is left, also after an error: a later `down` meets no newcomer.
        futures = [pool.submit(start, host) for host in hosts[first:]]
    for future in futures:
        future.result()


def prepare_weather(spec: LabSpec) -> None:
    """Where the kernel has no netem, start the process that relays frames, unless it runs. Raises LabError."""
    if spec.network is None:
        raise LabError("weather needs a network for each host, so root and a kernel that has bridges")
    if has_netem():
        return
    with open(spec.root / "wire.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if procs.read_pid_file(spec.paths.wire_pid) is None:
            argv = [sys.executable, "-m", "infra.lab.wire", str(spec.root)]
            done = subprocess.run(
                argv, env=_lab_env(spec.root), cwd="/", capture_output=True, text=True, check=False
            )
            if done.returncode != 0:
                raise LabError(f"wires: {done.stderr.strip()[-400:]}")


# -- observer -------------------------------------------------------------------------------------------------


def start_observer(spec: LabSpec) -> None:
    """Start the observer in the background, unless it runs. Raises LabError."""
    paths = spec.paths
    if procs.read_pid_file(paths.observer_pid) is not None:
        return
    argv = [
        sys.executable,
        "-m",
        "infra.lab.observer",
        "--root",
        str(spec.root),
        "--out",
        str(paths.observations),
    ]
    argv += ["--pid-file", str(paths.observer_pid), "--log", str(paths.observer_log)]
    for host in spec.hosts:
        argv += ["--host", f"{host.name}={spec.host(host.name).uri}"]
    done = subprocess.run(argv, env=_lab_env(spec.root), cwd="/", capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise LabError(f"observer: {done.stderr.strip()[-400:]}")


def stop_observer(spec: LabSpec) -> Summary:
    """End the observer; its last words. Raises LabError when it does not run or left no summary."""
    observer = procs.read_pid_file(spec.paths.observer_pid)
    if observer is None:
        raise LabError(f"no observer runs in {spec.root}; see {spec.paths.observer_log}")
    procs.send(observer, signal.SIGTERM)
    procs.wait_for(lambda: not procs.alive(observer), 10.0, "end of the observer", 0.01)
    summary = read_observations(spec.paths.observations).summary
    if summary is None or not summary.final:
        raise LabError(f"the observer left no summary; see {spec.paths.observer_log}")
    return summary


# -- down -----------------------------------------------------------------------------------------------------


def _stop_host(spec: LabSpec, host: HostPaths) -> None:
    """Power off and end the power device; by force when the device does not answer."""
    try:
        ask(host.control_socket, {"do": "exit"}, timeout_s=20)
    except (LabError, TimeoutError):
        device = procs.read_pid_file(host.power_pid)
        if device is not None:
            procs.kill(device)
    first = procs.read_pid_file(host.init_pid)
    if first is not None:
        if spec.privileged:
            procs.kill(first)
        else:
            procs.kill_tree(first)


_LOGS = {
    "lab.json",
    "observations.jsonl",
    "observer.log",
    "wire.log",
    "console",
    "agent.log",
    "logs",
    "up.log",
    "operator.log",
    "pool.yaml",
    "libvirtd.log",
    "power.log",
    "log",
}


def _remove(spec: LabSpec, keep_logs: bool) -> None:
    """Remove the lab's directory, or all of it but the logs."""
    if not keep_logs:
        shutil.rmtree(spec.root)
        return
    hosts = [spec.host(host.name).dir for host in spec.hosts]
    for folder in [spec.root, *hosts]:
        for entry in folder.iterdir() if folder.exists() else ():
            if entry.name in _LOGS or entry in hosts:
                continue
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()


def take_down(spec: LabSpec, keep_logs: bool) -> None:
    """End every process of the lab and remove what it made; works after any way in which its creator ended.

    Raises TimeoutError or LabError when something cannot be removed.
    """
    if not spec.paths.spec.exists():
        return
    observer = procs.read_pid_file(spec.paths.observer_pid)
    if observer is not None:
        procs.send(observer, signal.SIGTERM)
    for host in spec.hosts:
        _stop_host(spec, spec.host(host.name))
    if observer is not None:
        procs.wait_for(lambda: not procs.alive(observer), 10.0, "end of the observer", 0.01)
    # What was started but not yet recorded when its creator died, and what an agent left.
    procs.sweep(spec.root)
    if spec.network is not None:
        network.down(spec.network, spec.root)
    _remove(spec, keep_logs)
    # what its creator was about to start as it died bore no mark yet
    procs.sweep(spec.root)
