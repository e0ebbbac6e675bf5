"""Guests with QEMU's guest agent, a watchdog and a panic device: what libvirt really says of them."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import libvirt
import libvirt_qemu
import pytest

from infra.lab import procs
from infra.lab.lab import Lab, LabError, LabHost, LabVm
from tests.lab.roots import Roots

pytestmark = pytest.mark.lab

# A process of its own: libvirt has one event loop a process, and other tests may have theirs.
LISTEN = """
import libvirt, sys
libvirt.virEventRegisterDefaultImpl()
connection = libvirt.open(sys.argv[1])
connection.domainEventRegisterAny(None, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE,
    lambda c, vm, event, detail, o: print("lifecycle", vm.name(), event, detail, flush=True), None)
connection.domainEventRegisterAny(None, libvirt.VIR_DOMAIN_EVENT_ID_WATCHDOG,
    lambda c, vm, action, o: print("watchdog", vm.name(), action, flush=True), None)
print("listening", flush=True)
while True:
    libvirt.virEventRunDefaultImpl()
"""


class Events:
    """What libvirt said, in lines."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def wait(self, line: str, timeout_s: float = 30.0) -> None:
        procs.wait_for(lambda: line in self.lines(), timeout_s, f"libvirt's event {line!r}")

    def lines(self) -> list[str]:
        return self._path.read_text().splitlines()


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """One host with two guests that have an agent, and one that has none."""
    roots = Roots()
    lab = Lab.create([LabHost("h1")], roots.new())
    lab.up(observe=False)
    try:
        yield lab
    finally:
        lab.down()
        roots.remove()
    assert procs.of_lab(lab.root) == []


@pytest.fixture(scope="module")
def events(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Events]:
    path = tmp_path_factory.mktemp("events") / "lines"
    with path.open("w") as output:
        listener = subprocess.Popen([sys.executable, "-c", LISTEN, lab.uri("h1")], stdout=output)
    heard = Events(path)
    heard.wait("listening")
    vms = (LabVm("a", guest_agent=True), LabVm("b", guest_agent=True, on_crash="preserve"), LabVm("plain"))
    for vm in vms:
        lab.define_vm(vm, "h1")
    for vm in vms:
        lab.wait_guest_up(vm.name, timeout_s=90)
    yield heard
    listener.kill()
    listener.wait(20)


def _ping(lab: Lab, vm: str) -> float:
    """Seconds until the agent answered."""
    with lab.connect("h1") as connection:
        domain = connection.lookupByName(vm)
        began = time.monotonic()
        assert libvirt_qemu.qemuAgentCommand(domain, '{"execute":"guest-ping"}', 2, 0) == '{"return":{}}'
        return time.monotonic() - began


def test_an_agent_answers_as_soon_as_its_guest_is_up(lab: Lab, events: Events) -> None:
    _ping(lab, "a")
    assert min(_ping(lab, "a") for _ in range(5)) < 0.5
    assert lab.agent_answers("b")
    assert lab.console_log("a").read_text().split() == ["REKINDLE-GUEST-UP"]
    with pytest.raises(LabError, match="plain has no guest agent"):
        lab.hang_guest_agent("plain")
    with pytest.raises(LabError, match="plain has no guest agent"):
        lab.panic_guest("plain")


def test_an_agent_hangs_and_a_watchdog_bites_while_the_guest_lives(lab: Lab, events: Events) -> None:
    count = lab.disk_count("a")
    procs.wait_for(
        lambda: lab.disk_count("a") > count + 1, 20, "the guest to count, and to feed its watchdog"
    )
    lab.starve_watchdog("a")
    assert "watchdog a 0" not in events.lines(), "it bites some seconds later"
    lab.hang_guest_agent("a")
    with pytest.raises(libvirt.libvirtError) as refused:
        _ping(lab, "a")
    assert refused.value.get_error_code() == libvirt.VIR_ERR_AGENT_UNRESPONSIVE
    assert lab.agent_answers("b")
    events.wait("watchdog a 0")
    assert "watchdog b 0" not in events.lines(), "this one is fed"
    assert lab.vm_state("h1", "a")[0] == libvirt.VIR_DOMAIN_RUNNING, "libvirt was only to tell it"
    count = lab.disk_count("a")
    procs.wait_for(lambda: lab.disk_count("a") > count, 20, "the guest to count on")


def test_a_panic_is_told_and_the_vm_is_destroyed(lab: Lab, events: Events) -> None:
    lab.panic_guest("a")  # its agent hangs
    events.wait(f"lifecycle a {libvirt.VIR_DOMAIN_EVENT_CRASHED} {libvirt.VIR_DOMAIN_EVENT_CRASHED_PANICKED}")
    events.wait(f"lifecycle a {libvirt.VIR_DOMAIN_EVENT_STOPPED} {libvirt.VIR_DOMAIN_EVENT_STOPPED_CRASHED}")
    assert lab.vm_state("h1", "a") == (libvirt.VIR_DOMAIN_SHUTOFF, libvirt.VIR_DOMAIN_SHUTOFF_CRASHED)
    assert "a" not in lab.placement()


def test_a_panic_is_told_and_the_vm_is_preserved(lab: Lab, events: Events) -> None:
    lab.panic_guest("b")
    events.wait(f"lifecycle b {libvirt.VIR_DOMAIN_EVENT_CRASHED} {libvirt.VIR_DOMAIN_EVENT_CRASHED_PANICKED}")
    panicked = (libvirt.VIR_DOMAIN_CRASHED, libvirt.VIR_DOMAIN_CRASHED_PANICKED)
    procs.wait_for(lambda: lab.vm_state("h1", "b") == panicked, 20, "libvirt to say so of the VM")
    assert lab.placement()["b"] == ["h1"], "its QEMU is there, and libvirt lists it as active"
    assert "watchdog b 0" not in events.lines()
    lab.destroy_vm("b")


def test_a_plain_guest_has_nothing_of_it(lab: Lab, events: Events) -> None:
    xml = lab.xml(LabVm("plain"))
    assert not any(word in xml for word in ("guest_agent", "panic model", "watchdog", "unknown_nmi_panic"))
    assert lab.guest.initrd is not None
    assert lab.guest.initrd.stat().st_size < 3_000_000
