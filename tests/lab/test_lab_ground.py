"""The lab itself, on real libvirtd and QEMU: assertions are made on libvirt's own lists, /proc and the file system."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import libvirt
import pytest

from infra.lab import procs
from infra.lab.guest import ensure_guest
from infra.lab.hostinit import FORKED_AGENT
from infra.lab.lab import FENCE_AGENT, Lab, LabError, LabHost, LabVm
from infra.lab.needs import missing_packages
from infra.lab.paths import default_cache
from tests.lab.roots import plain_user

pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(bool(missing_packages()), reason=f"lacks {missing_packages()}"),
]

REPOSITORY = Path(__file__).parents[2]
AGENT = ["/bin/sh", "-c", "echo agent-started $REKINDLE_HOST; hostname; sleep 1000 & wait"]


@pytest.fixture
def short_root() -> Iterator[Path]:
    """A directory with a short path (socket paths), gone afterwards with all that runs in it."""
    with tempfile.TemporaryDirectory(prefix="rkt-", dir="/tmp") as folder:
        root = Path(folder) / "l"
        yield root
        if (root / "lab.json").exists():
            Lab.open(root).down()


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """One lab of two hosts for the tests that leave it usable: each uses VMs of its own and powers hosts on again."""
    with tempfile.TemporaryDirectory(prefix="rkt-", dir="/tmp") as folder:
        hosts = [LabHost("h1", 4096, 4), LabHost("h2", 4096, 4)]
        lab = Lab.create(hosts, Path(folder) / "l", agent_argv={"h1": AGENT})
        lab.up()
        try:
            yield lab
        finally:
            lab.down()


def qemus_of(root: Path) -> list[int]:
    return [pid for pid in procs.every_pid() if procs.is_qemu_of(procs.cmdline(pid), root)]


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = 20.0) -> None:
    procs.wait_for(condition, timeout_s, what)


def assert_nothing_left(lab: Lab) -> None:
    assert procs.of_lab(lab.root) == []
    assert str(lab.root) not in Path("/proc/self/mountinfo").read_text()
    assert not lab.root.exists()
    if lab.spec.network is not None:
        assert not Path("/sys/class/net", lab.spec.network.bridge).exists()
        assert not any(name.startswith(lab.spec.network.bridge) for name in os.listdir("/sys/class/net"))


def test_a_vm_starts_and_its_guest_comes_up(lab: Lab) -> None:
    lab.define_vm(LabVm("up1"), "h1")
    assert lab.placement()["up1"] == ["h1"]
    lab.wait_guest_up("up1")
    lines = lab.console_log("up1").read_text().split()
    assert lines == ["REKINDLE-GUEST-UP"], "the console carries the up line and nothing else"
    wait_until(lambda: lab.disk_count("up1") >= 2, "two counts on the disk")
    wait_until(lambda: len(lab.guest_up_times("up1")) == 1, "the observer to see the guest come up")
    lab.crash_vm("up1")
    wait_until(lambda: "up1" not in lab.placement(), "libvirt to see its end")


def test_the_agent_runs_on_its_host_and_can_be_killed_alone(lab: Lab) -> None:
    log = lab.host("h1").agent_log
    wait_until(lambda: "agent-started h1" in log.read_text(), "agent's first word")
    wait_until(
        lambda: any(procs.name(pid) == "sleep" for pid in lab.pids("h1")), "its child, which comes after"
    )
    before = len(lab.pids("h1"))
    lab.kill_agent("h1")
    assert len(lab.pids("h1")) == before - 2, "the agent and its own child, nothing else"
    assert lab.domains("h1") == [], "libvirtd still answers"
    lab.start_agent("h1")
    wait_until(lambda: log.read_text().count("agent-started h1") == 2, "agent's second start")
    agent = next(pid for pid in lab.pids("h1") if "agent-started" in " ".join(procs.cmdline(pid)))
    os.kill(agent, signal.SIGKILL)
    wait_until(lambda: log.read_text().count("agent-started h1") == 3, "its start by the service manager")
    if lab.spec.privileged:
        assert "h1" in log.read_text().split(), "the host has a name of its own"


def test_an_agent_that_begins_with_the_lab_is_a_fork_and_any_later_one_a_program(short_root: Path) -> None:
    lab = Lab.create([LabHost("h1")], short_root)
    lab.set_agent("h1", [sys.executable, "-m", "tests.lab.standin", "word"], preload="tests.lab.roots")
    lab.up(observe=False)
    log = lab.host("h1").agent_log
    wait_until(lambda: len(log.read_text().splitlines()) == 1, "the agent's first word")
    (pid,) = [pid for pid in lab.pids("h1") if procs.name(pid) == FORKED_AGENT]
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: len(log.read_text().splitlines()) == 2, "its start by the service manager")
    lab.power_off("h1")
    lab.power_on("h1")
    wait_until(lambda: len(log.read_text().splitlines()) == 3, "the agent of the second boot")
    assert log.read_text().splitlines() == [
        "agent of -m infra.lab.powerd with ['word'] in /",
        "agent of -m tests.lab.standin with ['word'] in /",
        "agent of -m tests.lab.standin with ['word'] in /",
    ]
    lab.down()
    assert_nothing_left(lab)


def test_power_off_ends_everything_at_once_and_power_on_is_a_new_boot(lab: Lab) -> None:
    lab.define_vm(LabVm("cut", bare=True), "h1")
    boot = lab.boot_id("h1")
    pids = lab.pids("h1")
    assert any(pid in pids for pid in qemus_of(lab.root))
    assert lab.fence("h1", "status") == (0, "Status: ON\n")

    started = time.monotonic()
    lab.power_off("h1")
    took = time.monotonic() - started

    assert [pid for pid in pids if procs.find(pid)] == []
    assert qemus_of(lab.root) == []
    assert took < 2, f"power off took {took:.2f} s"
    assert lab.fence("h1", "status") == (2, "Status: OFF\n")
    assert lab.power_state("h1") == "off"
    assert lab.power_state("h2") == "on"
    with pytest.raises(libvirt.libvirtError), lab.connect("h1"):
        pass

    lab.power_on("h1")
    assert lab.boot_id("h1") != boot
    assert lab.domains("h1") == [], "a VM without autostart stays down"
    with lab.connect("h1") as connection:
        assert connection.lookupByName("cut").isActive() == 0, "its definition is still there, as on a disk"
    lab.define_vm(LabVm("cut", bare=True), "h1")
    assert lab.placement()["cut"] == ["h1"]
    lab.crash_vm("cut")


def test_fence_agent_switches_and_speaks_the_protocol(lab: Lab) -> None:
    assert lab.fence("h2", "off") == (0, "Success: Powered OFF\n")
    assert lab.fence("h2", "off") == (0, "Success: Already OFF\n")
    assert lab.fence("h2", "monitor")[0] == 0
    assert lab.fence("h2", "on") == (0, "Success: Powered ON\n")
    assert lab.fence("h2", "list")[0] == 0
    status, output = lab.fence("h2", "fly")
    assert status == 1
    assert "fly" in output

    def run(text: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [FENCE_AGENT, *arguments], input=text, capture_output=True, text=True, check=False
        )

    socket = lab.power_socket("h2")
    assert (
        run(f"# a comment\n\naction=on\naction=status\nsocket=/none\nsocket={socket}\nx=y\n").returncode == 0
    )
    assert run("action=status\n").returncode == 1, "socket is required"
    assert run("action=status\nsocket=/nowhere\n").returncode == 1, "no device is an error, not an OFF"
    metadata = run("", "-o", "metadata")
    assert metadata.returncode == 0
    assert '<parameter name="socket"' in metadata.stdout
    boot = lab.boot_id("h2")
    assert run(f"socket={socket}\n").returncode == 0
    assert lab.boot_id("h2") != boot, "without an action it reboots, like the real ones"


@pytest.mark.parametrize("how", ["dead", "hang", "refuse"])
def test_a_broken_bmc_proves_nothing_while_the_lab_still_knows(lab: Lab, how: str) -> None:
    lab.fault("h2", how)
    try:
        text = f"action=status\nshell_timeout=0.3\nsocket={lab.power_socket('h2')}\n"
        done = subprocess.run([FENCE_AGENT], input=text, capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert "Status" not in done.stdout
        assert lab.power_state("h2") == "on"
    finally:
        lab.fault("h2", "none")
    assert lab.fence("h2", "status")[0] == 0


def test_a_lying_bmc_says_off_and_does_nothing(lab: Lab) -> None:
    lab.fault("h2", "lie")
    try:
        assert lab.fence("h2", "off")[0] == 0
        assert lab.fence("h2", "status") == (2, "Status: OFF\n")
        assert lab.power_state("h2") == "on"
        assert lab.domains("h2") == []
    finally:
        lab.fault("h2", "none")


def test_a_crashed_host_reads_on_and_needs_a_power_cycle(lab: Lab) -> None:
    for how in ("kill", "stop"):
        boot = lab.boot_id("h2")
        lab.crash_host("h2", how)
        assert lab.fence("h2", "status") == (0, "Status: ON\n")
        lab.power_off("h2")
        assert lab.pids("h2") == []
        lab.power_on("h2")
        assert lab.boot_id("h2") != boot
        assert lab.domains("h2") == []


def test_shutdown_and_crash_are_told_apart_by_libvirt(lab: Lab) -> None:
    lab.define_vm(LabVm("calm"), "h1")
    lab.define_vm(LabVm("wild", bare=True), "h2")
    lab.wait_guest_up("calm")
    started = time.monotonic()
    lab.shutdown_guest("calm")
    assert time.monotonic() - started < 10
    state = (libvirt.VIR_DOMAIN_SHUTOFF, libvirt.VIR_DOMAIN_SHUTOFF_SHUTDOWN)
    assert lab.vm_state("h1", "calm") == state

    lab.crash_vm("wild")
    crashed = (libvirt.VIR_DOMAIN_SHUTOFF, libvirt.VIR_DOMAIN_SHUTOFF_CRASHED)
    wait_until(lambda: lab.vm_state("h2", "wild") == crashed, "libvirt to see the crash")


def test_the_bus_address_is_reached_from_a_host(lab: Lab) -> None:
    """A server of the machine's root network on `bus_address` is what the hosts' agents connect to."""
    with socket.socket() as server:
        server.bind((lab.bus_address, 0))
        server.listen()
        server.settimeout(20)
        port = server.getsockname()[1]
        dial = f"import socket; socket.create_connection(({lab.bus_address!r}, {port})).sendall(b'hello')"
        lab.set_agent("h2", [sys.executable, "-c", dial])
        lab.start_agent("h2")
        connection, _ = server.accept()
        with connection:
            connection.settimeout(20)
            assert connection.recv(5) == b"hello"


def test_the_observer_sees_each_change_and_no_double_run(short_root: Path) -> None:
    lab = Lab.create([LabHost("h1"), LabHost("h2")], short_root)
    lab.up()
    lab.define_vm(LabVm("one", bare=True), "h1")
    lab.wait_guest_up("one")
    lab.power_off("h1")
    lab.define_vm(LabVm("one", bare=True), "h2")
    lab.wait_guest_up("one", 2)
    summary = lab.stop_observer()

    changes = [(change.name, change.host, change.active) for change in lab.observations().vms]
    # The loss of h1 and the start on h2 lie closer together than two samples.
    assert changes[0] == ("one", "h1", True)
    assert sorted(changes[1:]) == [("one", "h1", False), ("one", "h2", True)]
    assert len(lab.guest_up_times("one")) == 2
    assert summary.double_s == 0
    assert summary.sightings == 0
    assert summary.processes["mean_hz"] >= 10
    for host in ("h1", "h2"):
        assert summary.hosts[host]["mean_hz"] >= 10
    lab.down()
    assert_nothing_left(lab)


def test_the_observer_can_see_a_double_run(short_root: Path) -> None:
    lab = Lab.create([LabHost("h1"), LabHost("h2")], short_root)
    lab.up()
    lab.define_vm(LabVm("twin"), "h1")
    lab.define_vm(LabVm("twin"), "h2")
    assert lab.placement() == {"twin": ["h1", "h2"]}, "no lock of QEMU's hides it"
    lab.wait_guest_up("twin", 2)
    summary = lab.stop_observer()
    vm = summary.vms[Lab.vm_uuid("twin")]
    assert vm["domains_s"] > 1
    assert vm["processes_s"] > 1
    assert summary.double_s > 1
    lab.down()
    assert_nothing_left(lab)


def test_a_frozen_host_slows_nobody_down_and_its_vm_still_counts(short_root: Path) -> None:
    lab = Lab.create([LabHost("h1"), LabHost("h2")], short_root)
    lab.up()
    lab.define_vm(LabVm("ice"), "h1")
    lab.crash_host("h1", "stop")
    wait_until(
        lambda: any(not seen.reachable for seen in lab.observations().hosts), "the observer to lose h1"
    )
    lab.define_vm(LabVm("ice"), "h2")
    lab.wait_guest_up("ice")
    summary = lab.stop_observer()
    assert [each for each in lab.observations().vms if not each.active] == [], "silence is not stopped"
    assert summary.vms[Lab.vm_uuid("ice")]["processes_s"] > 1
    assert summary.hosts["h2"]["mean_hz"] >= 10
    lab.down()
    assert_nothing_left(lab)


CREATOR = """
import sys
from pathlib import Path
from infra.lab.lab import Lab, LabHost, LabVm
lab = Lab.create([LabHost("h1"), LabHost("h2")], Path(sys.argv[1]), agent_argv={"h1": ["/bin/sleep", "1000"]})
lab.up(lambda text: print(text, flush=True))
lab.define_vm(LabVm("orphan", bare=True), "h1")
print("vm started", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("at", ["guest", "host h1 is up", "vm started"])
def test_down_cleans_up_after_a_creator_that_was_killed(short_root: Path, at: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", CREATOR, str(short_root)],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as creator:
        assert creator.stdout is not None
        assert any(line.strip() == at for line in creator.stdout)
        creator.kill()
    lab = Lab.open(short_root)
    lab.down()
    assert_nothing_left(lab)
    lab.down()


def test_ctrl_c_while_going_up_leaves_nothing(short_root: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", CREATOR, str(short_root)],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as creator:
        assert creator.stdout is not None
        assert creator.stdout.readline().strip() == "guest"
        creator.send_signal(signal.SIGINT)
        creator.wait(30)
    assert procs.of_lab(short_root) == []
    assert not short_root.exists()


def test_a_lab_that_is_up_is_not_built_over(lab: Lab) -> None:
    with pytest.raises(LabError, match="up at"):
        Lab.create([LabHost("h1")], lab.root)


@pytest.mark.parametrize("name", ["", "h 1", "shared", "../x", "x" * 17])
def test_a_bad_host_name_is_refused_by_name(short_root: Path, name: str) -> None:
    with pytest.raises(LabError, match="host name"):
        Lab.create([LabHost(name)], short_root)
    assert not short_root.exists()


def test_a_long_root_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="at most 40"):
        Lab.create([LabHost("h1")], tmp_path / ("x" * 40))


def test_the_guest_is_cached() -> None:
    ensure_guest(default_cache())
    started = time.monotonic()
    guest = ensure_guest(default_cache())
    assert time.monotonic() - started < 0.1
    assert guest.kernel.stat().st_size > 1_000_000


def test_a_plain_user_has_the_same_lab() -> None:
    with tempfile.TemporaryDirectory(prefix="rkh-", dir="/tmp") as home:
        become, environment = plain_user(Path(home))
        tests = ["starts_and or agent_runs or power_off or crashed_host or told_apart or double or killed"]
        argv = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k", *tests]
        done = subprocess.run(
            [*become, *argv], env=environment, cwd=REPOSITORY, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


def test_lab_json_says_what_the_hosts_claim_to_have(lab: Lab) -> None:
    document = json.loads((lab.root / "lab.json").read_text())
    assert document["schema"] == "rekindle.lab.v1"
    assert document["hosts"][0] == {"name": "h1", "memory_mib": 4096, "cpus": 4}
    assert Lab.open(lab.root).spec == lab.spec
