"""`rekindle doctor` on hosts of libvirt's test driver: what is read of them, and what a person is told."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import libvirt
import pytest

from libs.doctor.seen import Answers, HostSeen, MachineAnswer, StoragePool
from libs.model import Protection, VmPolicy, VmState
from libs.virt import look
from libs.virt.definition import POLICY_NS
from libs.wants import Disk, Kind, Machine
from tests.integration.test_cli import Plane, rekindle, standing
from tests.integration.test_libvirt import NODE, A, B, domain

NETWORK = "<network><name>{name}</name><bridge name='br-{name}'/></network>"
INTERFACE = "<interface type='ethernet' name='eth7'><start mode='onboot'/></interface>"
POOL = """<pool type='dir'><name>images</name><target><path>/images</path></target>
  <volume type='file'><name>there.iso</name><capacity>1</capacity><target><path>/images/there.iso</path></target></volume></pool>"""
DISK = "<disk type='file' device='{device}'><source file='{file}'/><target dev='{target}'/></disk>"
NONE = f"<r:policy xmlns:r='{POLICY_NS}' protection='none'/>"
OURS = "http://libvirt.org/schemas/domain/test/1.0"


def with_devices(xml: str, devices: str, extra: str = "") -> str:
    return xml.replace("</domain>", f"{extra}<devices>{devices}</devices></domain>")


def looked(tmp_path: Path, inside: str) -> HostSeen:
    path = tmp_path / "node.xml"
    path.write_text(NODE.format(domains=inside))
    connection = libvirt.open(f"test://{path}")
    try:
        return look.look("h1", connection, VmPolicy())
    finally:
        connection.close()


# -- what is read of a host


def test_a_look_tells_what_a_host_has(tmp_path: Path) -> None:
    seen = looked(tmp_path, NETWORK.format(name="lan") + INTERFACE + POOL)
    assert (seen.name, seen.error, seen.kind) == ("h1", "", "TEST")
    assert (seen.memory_mib, seen.cpus, seen.libvirt) == (8000, 8, libvirt.getVersion())
    assert seen.networks == frozenset({"lan"})
    assert seen.links == frozenset({"eth7", "br-lan"})
    assert seen.pools == (StoragePool("images", "dir", "/images", ""),)
    assert (seen.cpu, seen.uuid) == (None, None), "this driver does not tell, and nothing is made up"
    assert [what for what, _ in seen.unasked] == ["secrets"]


def test_a_look_tells_what_lies_on_a_host(tmp_path: Path) -> None:
    extra = f"<t:transient xmlns:t='{OURS}'>1</t:transient>"
    saved = (
        f"<t:runstate xmlns:t='{OURS}'>5</t:runstate><t:hasmanagedsave xmlns:t='{OURS}'>1</t:hasmanagedsave>"
    )
    disk = DISK.format(device="disk", file="/nfs/a.raw", target="vda")
    bad = f"<r:policy xmlns:r='{POLICY_NS}' priority='soonest'/>"
    first = with_devices(domain("a", A, bad), disk, extra)
    second = domain("b", B, NONE).replace("</domain>", f"{saved}</domain>")
    a, b = sorted(looked(tmp_path, first + second).domains, key=lambda one: one.name)
    assert (a.uuid, a.state, a.persistent, a.managed_save) == (A, VmState.RUNNING, False, False)
    assert (a.policy, a.bad_policy[:9]) == (VmPolicy(), "priority:")
    assert a.wants.disks == (Disk(Kind.PATH, "/nfs/a.raw"),)
    assert (a.memory_mib, a.vcpus) == (256 + 48 + 8, 2)
    assert (b.state, b.managed_save, b.persistent) == (VmState.STOPPED, True, True)
    assert b.policy.protection is Protection.NONE


def test_autostart_is_seen_as_it_is(tmp_path: Path) -> None:
    connection = libvirt.open("test:///default")
    try:
        vm = connection.lookupByName("test")
        for on in (True, False):
            vm.setAutostart(on)
            assert [one.autostart for one in look.look("h1", connection, VmPolicy()).domains] == [on]
    finally:
        connection.close()


def test_a_host_answers_for_others_what_it_can_and_does_not_guess_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "node.xml"
    path.write_text(NODE.format(domains=POOL))
    connection = libvirt.open(f"test://{path}")
    machine = Machine("/usr/bin/q", "x86_64", "pc", "kvm")
    asked = frozenset({"/images/there.iso", "/images/gone.iso", "/elsewhere/a.raw"})
    try:
        found = look.answer(
            connection, look.Questions(asked, frozenset({machine}), frozenset({(machine, "<cpu/>")}))
        )
    finally:
        connection.close()
    assert found.files == {"/images/there.iso": True, "/images/gone.iso": False, "/elsewhere/a.raw": None}
    assert found.machines[machine].can is None
    assert found.cpus[machine, "<cpu/>"][0] is None


class Driver:
    """A connection of which each call answers, or raises, as it is told."""

    def __init__(self, alive: bool = True, **answers: Any) -> None:
        self._alive, self._answers = alive, answers

    def isAlive(self) -> bool:
        return self._alive

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*_: Any) -> Any:
            answer = self._answers.get(name, libvirt.VIR_ERR_NO_SUPPORT)
            if isinstance(answer, libvirt.libvirtError):
                raise answer
            return answer

        return call


def failing(code: int, text: str = "no") -> libvirt.libvirtError:
    error = libvirt.libvirtError(text)
    error.args = (text,)  # of its own accord it says what libvirt told this thread last
    error.err = (code, 10, text, 2, "", None, None, 0, 0)
    return error


MACHINE = Machine("/usr/bin/q", "x86_64", "pc", "kvm")
CAN = "<domainCapabilities><os><loader><value>/f.fd</value></loader></os></domainCapabilities>"


@pytest.mark.parametrize(
    ("said", "found"),
    [
        (CAN, MachineAnswer(True, "", frozenset({"/f.fd"}))),
        (failing(libvirt.VIR_ERR_INVALID_ARG, "no machine pc"), MachineAnswer(False, "no machine pc")),
        (failing(libvirt.VIR_ERR_NO_SUPPORT), MachineAnswer(None, "no")),
        (failing(libvirt.VIR_ERR_ACCESS_DENIED), MachineAnswer(None, "no")),
    ],
)
def test_a_machine_is_missing_only_where_its_host_says_so(said: Any, found: MachineAnswer) -> None:
    questions = look.Questions(frozenset(), frozenset({MACHINE}), frozenset())
    assert look.answer(Driver(getDomainCapabilities=said), questions) == Answers(machines={MACHINE: found})


@pytest.mark.parametrize(
    ("said", "can"),
    [
        (libvirt.VIR_CPU_COMPARE_SUPERSET, True),
        (libvirt.VIR_CPU_COMPARE_IDENTICAL, True),
        (libvirt.VIR_CPU_COMPARE_INCOMPATIBLE, False),
        (libvirt.VIR_CPU_COMPARE_ERROR, None),
        (failing(libvirt.VIR_ERR_CPU_INCOMPATIBLE), False),
        (failing(libvirt.VIR_ERR_NO_SUPPORT), None),
        (failing(libvirt.VIR_ERR_INTERNAL_ERROR), None),
    ],
)
def test_a_cpu_is_missing_only_where_its_host_says_so(said: Any, can: bool | None) -> None:
    questions = look.Questions(frozenset(), frozenset(), frozenset({(MACHINE, "<cpu/>")}))
    assert look.answer(Driver(compareHypervisorCPU=said), questions).cpus[MACHINE, "<cpu/>"][0] is can


def test_a_connection_that_breaks_is_no_answer() -> None:
    questions = look.Questions(frozenset(), frozenset({MACHINE}), frozenset())
    broken = Driver(alive=False, getDomainCapabilities=failing(libvirt.VIR_ERR_INTERNAL_ERROR))
    with pytest.raises(libvirt.libvirtError):
        look.answer(broken, questions)
    with pytest.raises(libvirt.libvirtError):
        look.look("h1", Driver(alive=False, getInfo=failing(libvirt.VIR_ERR_INTERNAL_ERROR)), VmPolicy())


CAPABILITIES = """<capabilities><host><uuid>m-1</uuid><cpu><arch>x86_64</arch><vendor>AMD</vendor><model>EPYC</model>
  <feature name='svm'/></cpu></host></capabilities>"""


def test_what_a_driver_cannot_tell_is_unknown_and_said_so() -> None:
    no = failing(libvirt.VIR_ERR_NO_SUPPORT, "not supported")
    driver = Driver(
        getInfo=["x86_64", 100, 2], listAllDomains=[], getType="QEMU", getLibVersion=9_000_000,
        getCapabilities=CAPABILITIES, getVersion=no, listAllNetworks=no, listAllStoragePools=no,
        listAllInterfaces=no, listAllDevices=no, listAllSecrets=no,
    )  # fmt: skip
    seen = look.look("h1", driver, VmPolicy())
    assert (seen.networks, seen.links, seen.pools, seen.hypervisor, seen.secrets) == (None,) * 5
    assert {what for what, _ in seen.unasked} == {
        "networks", "storage pools", "bridges", "secrets", "version of the hypervisor",
    }  # fmt: skip
    assert {why for _, why in seen.unasked} == {"not supported"}
    assert seen.uuid == "m-1"
    assert seen.cpu is not None
    assert (seen.cpu.vendor, seen.cpu.model, seen.cpu.features) == ("AMD", "EPYC", frozenset({"svm"}))


# -- the command


WORKS = "#!/bin/sh\ncat >/dev/null\necho 'Status: ON'\n"


@pytest.fixture
def agent(tmp_path: Path) -> Path:
    path = tmp_path / "fence_works"
    path.write_text(WORKS)
    path.chmod(0o755)
    return path


NewPool = Callable[..., Path]


@pytest.fixture
def pool(tmp_path: Path, agent: Path) -> NewPool:
    """A pool file of two hosts, of which the domains are given, and what else is to stand in it."""

    def write(*nodes: str, more: str = "", h2: str = "") -> Path:
        lines = ["pool: p", f"data_dir: {tmp_path / 'data'}", "hosts:"]
        for number, inside in enumerate(nodes, 1):
            node = tmp_path / f"h{number}.xml"
            node.write_text(NODE.format(domains=inside))
            uri = h2 if number == 2 and h2 else f"test://{node}"
            fencing = f"[{{agent: {agent}, options: {{plug: {number}}}}}]"
            lines.append(f"  - {{name: h{number}, uri: '{uri}', fencing: {fencing}}}")
        path = tmp_path / "pool.yaml"
        path.write_text("\n".join([*lines, more]) + "\n")
        return path

    return write


def doctor(path: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return rekindle("doctor", "--config", str(path), *more)


def complaints(done: subprocess.CompletedProcess[str]) -> list[str]:
    """What was said on standard error, but for the names of those who are slow: so are all on a busy machine."""
    return [line for line in done.stderr.splitlines() if not line.startswith("waiting for ")]


STORE = "datastores: [{name: nfs, path: /nfs}]"
SHARED = DISK.format(device="disk", file="/nfs/a.raw", target="vda")
LOCAL = DISK.format(device="disk", file="/var/b.raw", target="vda")
EMPTY = "<disk type='file' device='cdrom'><target dev='sda'/></disk>"


def test_a_pool_whose_vms_could_all_be_restarted_passes(pool: NewPool) -> None:
    path = pool(with_devices(domain("a", A), SHARED + EMPTY), "", more=STORE)
    done = doctor(path)
    assert done.returncode == 0, done.stdout
    assert done.stdout.splitlines()[-1].startswith(
        "1 protected VM that runs: 1 could be restarted today, 0 not"
    )
    assert done.stdout.startswith("warning ")
    assert "plane-not-reached" in done.stdout, "nothing is restarted while no plane runs: that is said"
    assert complaints(done) == []


def test_a_vm_on_a_local_disk_is_named_with_the_reason_and_what_to_do(pool: NewPool) -> None:
    vms = with_devices(domain("a", A), SHARED) + with_devices(domain("b", B), LOCAL)
    path = pool(vms, "", more=STORE)
    done = doctor(path)
    assert done.returncode == 1
    flat = " ".join(done.stdout.split())
    assert flat.startswith(
        "error disk-local: no other host has one of its disks b on h1: /var/b.raw: h2: it lies on no"
    )
    assert "do: move the disk to a shared datastore" in flat
    assert "2 protected VMs that run: 1 could be restarted today, 1 not" in flat

    as_json = doctor(path, "--json")
    assert (as_json.returncode, complaints(as_json)) == (1, [])
    told = json.loads(as_json.stdout)
    assert (told["schema"], told["pool"], told["passed"]) == ("rekindle.doctor.v1", "p", False)
    assert [(vm["vm"], vm["restartable"], vm["reasons"]) for vm in told["vms"]] == [
        ("a", True, []),
        ("b", False, ["disk-local"]),
    ]
    first = told["findings"][0]
    assert (first["code"], first["severity"], first["subject"], first["host"]) == (
        "disk-local",
        "error",
        "b",
        "h1",
    )
    assert {host["host"]: host["reachable"] for host in told["hosts"]} == {"h1": True, "h2": True}
    assert told["summary"]["vms_not_restartable"] == 1


def test_a_host_that_does_not_answer_hurts_no_other(pool: NewPool) -> None:
    vm = with_devices(domain("a", A), SHARED)
    told = json.loads(
        doctor(pool(vm, "", "", more=STORE, h2="qemu+tcp://127.0.0.1:1/system"), "--json").stdout
    )
    errors = [one for one in told["findings"] if one["severity"] == "error"]
    assert [(one["code"], one["subject"]) for one in errors] == [("host-unreachable", "h2")]
    assert "Connection refused" in errors[0]["seen"]
    assert [(vm["vm"], vm["restartable"]) for vm in told["vms"]] == [("a", True)], "h3 would take it"
    assert not told["passed"]


def test_one_vm_that_runs_on_two_hosts_and_a_device_that_cannot_be_asked(pool: NewPool, agent: Path) -> None:
    vm = with_devices(domain("a", A), SHARED)
    path = pool(vm, vm, more=STORE)
    path.write_text(path.read_text().replace(f"agent: {agent}, options: {{plug: 2}}", "agent: fence_nothing"))
    told = json.loads(doctor(path, "--json").stdout)
    errors = {
        (one["code"], one["subject"], one["host"]) for one in told["findings"] if one["severity"] == "error"
    }
    assert errors == {("runs-twice", "a", "h1"), ("runs-twice", "a", "h2"), ("fence-unusable", "h2", "h2")}
    assert {vm["host"]: vm["reasons"] for vm in told["vms"]} == {
        "h1": ["runs-twice"], "h2": ["fence-unusable", "runs-twice"]
    }  # fmt: skip


def test_bad_input_is_said_and_nothing_is_asked(pool: NewPool) -> None:
    path = pool("", "", more="datastore: []")
    for more in ((), ("--json",)):
        done = doctor(path, *more)
        assert (done.returncode, done.stdout) == (2, "")
        assert "datastore: unknown field (did you mean datastores?)" in done.stderr
    missing = rekindle("doctor", "--config", "/no/such/pool.yaml")
    assert (missing.returncode, missing.stdout) == (2, "")


def test_somebody_who_waits_is_told_for_whom_and_the_device_is_given_its_time(
    pool: NewPool, agent: Path
) -> None:
    agent.write_text("#!/bin/sh\ncat >/dev/null\nsleep 4\necho 'Status: ON'\n")
    done = doctor(pool(with_devices(domain("a", A), SHARED), "", more=STORE), "--json")
    assert complaints(done) == []
    assert any(line.endswith("fence devices of h1, fence devices of h2") for line in done.stderr.splitlines())
    assert json.loads(done.stdout)["passed"], "slow is not broken"


# -- beside a plane


@pytest.fixture
def plane(tmp_path: Path, pool: NewPool) -> Iterator[Plane]:
    config = pool(with_devices(domain("a", A), SHARED), "", more=STORE)
    yield from standing(config, tmp_path / "data")


def test_beside_a_plane_the_bus_tells_what_it_knows(plane: Plane) -> None:
    plane.wait(lambda: set(plane.states().values()) == {"healthy"}, "both hosts are healthy")

    def codes() -> set[str]:
        return {one["code"] for one in plane.ask("doctor")["findings"]}

    wanted = {"plane-not-reached", "role-vacant", "definition-missing", "agent-not-heard", "host-not-healthy"}
    plane.wait(lambda: not wanted & codes(), "every role is held, and the VM's definition is on the bus")
    enter = ("maintenance", "enter", "h2", "--config", str(plane.config))
    refused = rekindle(*enter)
    assert (refused.returncode, "no usable host is left" in refused.stderr) == (1, True)
    assert rekindle(*enter, "--override", "a test of the doctor").returncode == 0
    told = plane.ask("doctor")
    seen = {one["code"]: one["seen"] for one in told["findings"]}
    assert (seen["host-closed"], seen["no-other-host"]) == ("maintenance", "h2: maintenance")
    assert [vm["reasons"] for vm in told["vms"]] == [["no-other-host"]]
