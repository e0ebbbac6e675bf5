"""Datastores that stall, with real I/O of processes and guests on real hosts."""

from __future__ import annotations

import contextlib
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import libvirt
import pytest

from infra.lab import procs, stores
from infra.lab.lab import Lab, LabError, LabHost, LabStore, LabVm
from infra.lab.needs import program
from tests.lab.roots import Roots

pytestmark = pytest.mark.lab

IO = """
import mmap, os, sys
block = mmap.mmap(-1, 4096)
for line in sys.stdin:
    what, path, value = line.split()
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_DIRECT | os.O_SYNC, 0o600)
    if what == "write":
        block[:] = value.encode().ljust(4096)
        assert os.pwrite(file, block, 0) == 4096
    else:
        assert os.preadv(file, [block], 0) == 4096
    os.close(file)
    print(block[:].decode().strip(), flush=True)
"""


class Inside:
    """A Python process in a host that reads and writes blocks of 4096 bytes past every cache."""

    def __init__(self, lab: Lab, host: str) -> None:
        pid = lab.host(host).init_pid.read_text().split()[0]
        enter = [program("nsenter"), f"--mount=/proc/{pid}/ns/mnt", f"--pid=/proc/{pid}/ns/pid"]
        self._process = subprocess.Popen(
            [*enter, sys.executable, "-c", IO], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd="/"
        )

    def ask(self, what: str, path: Path, value: str = "-") -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{what} {path} {value}\n".encode())
        self._process.stdin.flush()

    def answer(self, within_s: float = 20.0) -> str | None:
        """What was read or written; None when that takes longer."""
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], within_s)
        return self._process.stdout.readline().decode().strip() if ready else None

    def write(self, path: Path, value: str) -> None:
        self.ask("write", path, value)
        assert self.answer() == value

    def read(self, path: Path) -> str | None:
        self.ask("read", path)
        return self.answer()

    def end(self) -> None:
        self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
        self._process.wait(20)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Two hosts with one datastore in common; the last test leaves it stalled, with a VM on it."""
    if stores.why_not() is not None:
        pytest.skip(f"datastores {stores.why_not()}")
    roots = Roots()
    datastores = ("one", LabStore("two", ("h1",)))
    lab = Lab.create([LabHost("h1"), LabHost("h2")], roots.new(), datastores=datastores)
    lab.up(observe=False)
    try:
        for vm, host in (("a", "h1"), ("b", "h2")):  # they boot during the first tests
            lab.define_vm(LabVm(vm, datastore="one"), host)
        yield lab
    finally:
        lab.down()
        roots.remove()
    assert procs.of_lab(lab.root) == []
    assert str(lab.root) not in Path("/proc/self/mountinfo").read_text()
    assert not lab.root.exists()


@pytest.fixture
def h1(lab: Lab) -> Iterator[Inside]:
    inside = Inside(lab, "h1")
    yield inside
    inside.end()


@pytest.fixture
def h2(lab: Lab) -> Iterator[Inside]:
    inside = Inside(lab, "h2")
    yield inside
    inside.end()


def test_hosts_see_each_others_writes_at_once(lab: Lab, h1: Inside, h2: Inside) -> None:
    block = lab.store_path("one") / "block"
    for number in range(100):
        writer, other = (h1, h2) if number % 2 else (h2, h1)
        writer.write(block, f"value-{number}")
        assert other.read(block) == f"value-{number}"
    assert (lab.backing("one") / "block").read_bytes().strip() == b"value-99"
    assert not block.exists(), "from outside it is seen at its backing only"
    with pytest.raises(LabError, match="h2 has no datastore 'two'"):
        lab.stall_storage("h2", "two")
    with pytest.raises(LabError, match="no datastore 'three'"):
        lab.stall_storage(None, "three")


def test_a_stall_is_of_one_host_and_one_datastore(lab: Lab, h1: Inside, h2: Inside) -> None:
    one, two = lab.store_path("one") / "a", lab.store_path("two") / "a"
    h1.write(one, "before")
    lab.stall_storage("h1", "one")
    h1.ask("write", one, "during")
    assert h1.answer(0.5) is None
    assert (lab.backing("one") / "a").read_bytes().strip() == b"before"
    assert h2.read(one) == "before"
    other = Inside(lab, "h1")
    other.write(two, "elsewhere")
    other.end()
    lab.restore_storage("h1", "one")
    assert h1.answer() == "during"
    assert h2.read(one) == "during"


def test_a_host_that_was_frozen_and_goes_on_still_has_its_stall(lab: Lab, h1: Inside) -> None:
    one = lab.store_path("one") / "frozen"
    lab.stall_storage(None, "one")
    lab.crash_host("h1", "stop")
    lab.thaw_host("h1")
    h1.ask("write", one, "x")
    assert h1.answer(0.3) is None
    lab.restore_storage(None, "one")
    assert h1.answer() == "x"


def test_an_agent_that_hangs_on_its_datastore_can_be_killed(lab: Lab) -> None:
    # what the file system has taken up when it is stopped ends with it only: so the agent waits meanwhile
    write, go = f"echo $((n = n + 1)) > {lab.store_path('one')}/beat", lab.root / "go"
    beat = f"{write}; echo beat; until [ -e {go} ]; do sleep 0.05; done; while true; do {write}; sleep 0.01; done"
    lab.set_agent("h2", ["/bin/sh", "-c", beat])
    lab.start_agent("h2")
    log = lab.host("h2").agent_log
    procs.wait_for(lambda: "beat" in log.read_text(), 20, "the agent's first beat")
    assert (lab.backing("one") / "beat").exists()
    lab.stall_storage("h2", "one")
    go.touch()
    _wait_for_hung_io(lab, "h2", qemu=False)
    lab.kill_agent("h2")
    lab.restore_storage("h2", "one")
    assert lab.domains("h2") == ["b"]


def test_a_vm_on_a_stalled_datastore_stands_still_and_ends_with_its_host(lab: Lab) -> None:
    assert f"file='{lab.store_path('one')}/a.raw'" in _xml(lab, "h1", "a")
    procs.wait_for(lambda: lab.disk_count("a") > 0, 30, "the guest's first count")
    lab.stall_storage("h1", "one")
    stalled = time.monotonic()
    count = lab.disk_count("a")
    while time.monotonic() - stalled < 2.5:  # a guest counts each second
        assert lab.disk_count("a") - count <= 1, "what was under way may have come through"
        time.sleep(0.1)
    assert lab.vm_state("h1", "a")[0] == libvirt.VIR_DOMAIN_RUNNING
    count = lab.disk_count("a")
    lab.restore_storage("h1", "one")
    procs.wait_for(lambda: lab.disk_count("a") > count + 1, 20, "the guest to count on")

    lab.stall_storage("h1", "one")
    count = lab.disk_count("a")
    _wait_for_hung_io(lab, "h1")
    pids = lab.pids("h1")
    began = time.monotonic()
    lab.power_off("h1")
    assert time.monotonic() - began < 5
    assert [pid for pid in pids if procs.find(pid)] == []
    lab.power_on("h1")
    inside = Inside(lab, "h1")
    inside.ask("read", lab.store_path("one") / "a.raw")
    assert inside.answer(0.5) is None, "the datastore hangs as before, the host is new"
    lab.restore_storage("h1", "one")
    assert (inside.answer() or "").startswith("REKINDLE-COUNTER")
    inside.end()


def test_a_lab_with_a_stalled_guest_is_taken_down(lab: Lab) -> None:
    """The rest of it is the fixture's."""
    procs.wait_for(lambda: lab.disk_count("b") > 0, 30, "the guest's first count")
    lab.stall_storage(None, "one")
    _wait_for_hung_io(lab, "h2")


def _xml(lab: Lab, host: str, vm: str) -> str:
    with lab.connect(host) as connection:
        return str(connection.lookupByName(vm).XMLDesc())


def _wait_for_hung_io(lab: Lab, host: str, *, qemu: bool = True) -> None:
    """Until a thread of the host's QEMU, or of anything but that, waits in the kernel for its datastore."""

    def waits() -> bool:
        for pid in lab.pids(host):
            if procs.is_qemu_of(procs.cmdline(pid), lab.root) is qemu:
                for task in Path(f"/proc/{pid}/task").iterdir():
                    if (
                        "fuse" in (task / "wchan").read_text()
                        or "request_wait" in (task / "wchan").read_text()
                    ):
                        return True
        return False

    procs.wait_for(waits, 20, f"I/O of {host} to hang")
