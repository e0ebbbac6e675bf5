"""The libvirt adapter on libvirt's own test driver: what it reports, and what it never invents."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import threading
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import libvirt
import libvirt_qemu
import pytest

from libs.config.entries import HostEntry
from libs.core.clock import SystemClock
from libs.core.ports import StartRefusedError, UnavailableError
from libs.jetstream.server import free_port
from libs.model import (
    Answer,
    Health,
    Incarnation,
    Inventory,
    Priority,
    Protection,
    StopReason,
    VmPolicy,
    VmReport,
    VmState,
)
from libs.virt import guests
from libs.virt.definition import POLICY_NS, policy_of
from libs.virt.host import LibvirtHost
from libs.virt.hosts import LibvirtHosts
from services.heartbeat.agentless import Watched
from tests.unit.made import beat, vm
from tests.unit.world import Process, World
from tests.waiting import eventually

A, B = "6695eb01-f6a4-8304-79aa-97f2502e193f", "6695eb01-f6a4-8304-79aa-97f2502e1940"
DOMAIN = """<domain type='test'><name>{name}</name><uuid>{uuid}</uuid>
  {metadata}<memory unit='MiB'>256</memory><vcpu>2</vcpu><os><type>hvm</type></os></domain>"""
NODE = """<node><cpu><mhz>6000</mhz><model>i986</model><active>8</active><nodes>1</nodes><sockets>2</sockets>
  <cores>4</cores><threads>1</threads></cpu><memory>8192000</memory>{domains}</node>"""


def domain(name: str, uuid: str, metadata: str = "") -> str:
    inside = f"<metadata>{metadata}</metadata>" if metadata else ""
    return DOMAIN.format(name=name, uuid=uuid, metadata=inside)


NewHost = Callable[..., LibvirtHost]
HANGS_S = 2.0
"""Until a call that hangs is given up: whoever waited for it would be later than that."""


async def _quickest_s(host: LibvirtHost) -> float:
    """The best of three: a busy machine may be late once, and who waits for a call that hangs is late each time."""
    took = []
    for _ in range(3):
        began = time.monotonic()
        assert len(await host.reports()) == 1
        took.append(time.monotonic() - began)
    return min(took)


@pytest.fixture
def new_host(tmp_path: Path) -> NewHost:
    """A host of its own: its domains run at first."""

    def make(*domains: str, name: str = "h1") -> LibvirtHost:
        path = tmp_path / f"{name}.xml"
        path.write_text(NODE.format(domains="".join(domains)))
        return LibvirtHost(name, f"test://{path}", VmPolicy(order=3), SystemClock().monotonic)

    return make


async def state(host: LibvirtHost, uuid: str = A) -> tuple[VmState, StopReason]:
    report = await host.report(uuid)
    assert report is not None
    return report.state, report.stop_reason


async def do(host: LibvirtHost, what: str, uuid: str = A) -> None:
    """As a person would, with virsh."""
    await host.call(what, lambda connection: getattr(connection.lookupByUUIDString(uuid), what)())


class Partly:
    """A connection whose list leaves out what it may not show, as libvirt's access control has it: without a word."""

    def __init__(self, connection: libvirt.virConnect) -> None:
        self._connection, self.hidden = connection, False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def listAllDomains(self, flags: int) -> list[libvirt.virDomain]:
        return [] if self.hidden else self._connection.listAllDomains(flags)


async def test_s14_an_empty_list_is_no_news_of_vms_that_are_there_and_is_of_those_that_are_not(
    new_host: NewHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Partly] = []

    def opens(uri: str) -> Partly:
        opened.append(Partly(libvirt_open(uri)))
        return opened[-1]

    libvirt_open = libvirt.open
    monkeypatch.setattr(libvirt, "open", opens)
    host = new_host(domain("a", A), domain("b", B))
    assert [report.uuid for report in await host.reports()] == [A, B]
    (connection,) = opened
    connection.hidden = True
    with pytest.raises(UnavailableError, match=f"VM {A} is not in it, and is there all the same"):
        await host.reports()
    connection.hidden = False
    assert [report.uuid for report in await host.reports()] == [A, B], "nothing was concluded from it"
    for uuid in (A, B):
        vm = connection.lookupByUUIDString(uuid)
        vm.destroy()
        vm.undefine()
    assert await host.reports() == []


async def test_a_host_tells_its_vms_with_size_policy_and_run(new_host: NewHost) -> None:
    policy = f'<r:policy xmlns:r="{POLICY_NS}" priority="highest"/>'
    host = new_host(domain("a", A, policy), domain("b", B))
    a, b = await host.reports()
    assert (a.name, a.uuid, a.state, a.stop_reason) == ("a", A, VmState.RUNNING, StopReason.NONE)
    assert (a.memory_mib, a.vcpus, a.token) == (256 + 48 + 8, 2, 0)
    assert a.policy == VmPolicy(priority=Priority.HIGHEST, order=3)
    assert b.policy == VmPolicy(order=3)
    assert a.run > 0
    assert a.run != b.run
    assert await host.node() == (8000, 8)


async def test_a_host_tells_on_which_of_its_datastores_a_vm_lies(tmp_path: Path) -> None:
    disk = f"<devices><disk type='file'><source file='{tmp_path}/nfs/a.raw'/><target dev='vda'/></disk></devices>"
    path = tmp_path / "h1.xml"
    with_disk = domain("a", A).replace("</domain>", f"{disk}</domain>")
    path.write_text(NODE.format(domains=with_disk + domain("b", B)))
    places = {"nfs": tmp_path / "nfs", "san": tmp_path / "san"}
    host = LibvirtHost("h1", f"test://{path}", VmPolicy(), SystemClock().monotonic, places=places)
    assert [report.datastores for report in await host.reports()] == [("nfs",), ()]
    await do(host, "destroy")
    assert [report.datastores for report in await host.reports()] == [("nfs",), ()], (
        "also of one that is down"
    )


async def test_a_policy_that_cannot_be_read_leaves_the_vm_under_the_pools_defaults(new_host: NewHost) -> None:
    host = new_host(domain("a", A, f'<r:policy xmlns:r="{POLICY_NS}" priority="soonest"/>'))
    assert [report.policy for report in await host.reports()] == [VmPolicy(order=3)]


@pytest.mark.parametrize(
    "flags",
    [libvirt.VIR_DOMAIN_AFFECT_LIVE, libvirt.VIR_DOMAIN_AFFECT_LIVE | libvirt.VIR_DOMAIN_AFFECT_CONFIG],
    ids=["as it runs", "also as it would start"],
)
async def test_a_policy_set_with_virsh_is_reported_and_copied(new_host: NewHost, flags: int) -> None:
    host = new_host(domain("a", A))
    assert (await host.reports())[0].policy.protection is Protection.RESTART
    (before,) = await host.definitions()
    policy = '<policy protection="none"/>'

    def set_policy(connection: libvirt.virConnect) -> None:
        kind = libvirt.VIR_DOMAIN_METADATA_ELEMENT
        connection.lookupByUUIDString(A).setMetadata(kind, policy, "rekindle", POLICY_NS, flags)

    await host.call("set the policy", set_policy)
    assert (await host.reports())[0].policy.protection is Protection.NONE
    (copy,) = await host.definitions()
    assert policy_of(ET.fromstring(copy.xml), VmPolicy()).protection is Protection.NONE
    assert copy.sha256 != before.sha256, "it is copied anew"


WATCHING = """
import asyncio, libvirt
from libs.model import VmPolicy
from libs.virt.definition import POLICY_NS
from libs.virt.events import register, watch
from libs.virt.host import LibvirtHost

async def main():
    register(asyncio.get_running_loop())
    host, stirred = LibvirtHost("h1", "test:///default", VmPolicy(), lambda: 0.0), asyncio.Event()
    watch(host, stirred.set)
    await host.reports()
    await asyncio.wait_for(stirred.wait(), 5)
    await asyncio.sleep(0.2)
    stirred.clear()
    element = libvirt.VIR_DOMAIN_METADATA_ELEMENT
    text = '<policy protection="none"/>'
    await host.call("set", lambda c: c.lookupByName("test").setMetadata(element, text, "rekindle", POLICY_NS, 0))
    await asyncio.wait_for(stirred.wait(), 5)
    print("stirred")

asyncio.run(main())
"""


def test_libvirt_tells_the_agent_of_a_policy_that_a_person_set() -> None:
    """In a process of its own: libvirt has one event loop a process, for ever."""
    repository = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", WATCHING],
        cwd=repository,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.stdout == "stirred\n", done.stderr


async def test_why_a_vm_stopped(new_host: NewHost) -> None:
    host = new_host(domain("a", A))
    run = (await host.reports())[0].run
    await do(host, "suspend")
    assert await state(host) == (VmState.PAUSED, StopReason.NONE)
    await do(host, "resume")
    assert await state(host) == (VmState.RUNNING, StopReason.NONE)
    await do(host, "shutdown")
    assert await state(host) == (VmState.STOPPED, StopReason.ON_PURPOSE)
    report = await host.report(A)
    assert report is not None
    assert report.run == run, "the run that ended"
    await do(host, "create")
    await do(host, "destroy")
    assert await state(host) == (VmState.STOPPED, StopReason.ON_PURPOSE)
    assert await host.report("00000000-0000-0000-0000-000000000001") is None


async def test_a_start_defines_the_copy_with_its_token_and_the_copy_keeps_none(new_host: NewHost) -> None:
    origin, target = new_host(domain("a", A)), new_host(name="h2")
    assert await target.reports() == []
    (definition,) = await origin.definitions()
    await target.start(definition, 7)
    (report,) = await target.reports()
    assert (report.uuid, report.state, report.token) == (A, VmState.RUNNING, 7)
    (copy,) = await target.definitions()
    assert copy == definition
    with pytest.raises(StartRefusedError):
        await target.start(definition, 8)  # it runs already
    await target.destroy(A)
    assert (await state(target))[0] is VmState.STOPPED
    await target.destroy(A)
    await target.destroy("00000000-0000-0000-0000-000000000001")
    await target.start(definition, 9)
    report_again = await target.report(A)
    assert report_again is not None
    assert (report_again.token, report_again.state) == (9, VmState.RUNNING)


async def test_a_start_under_way_gives_its_token_to_no_run_that_has_ended(
    new_host: NewHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """libvirt defines and starts in two calls. Whoever reads between them, as its own event bids the agent to, would tell
    the crash of the run before once more, as one under the new token."""
    host = new_host(domain("a", A))
    (kept,) = await host.definitions()
    await host.destroy(A)
    await host.start(kept, 7)
    await host.destroy(A)
    (between,) = await host.reports()
    assert between.token == 7
    seen: list[VmReport | None] = []
    create = libvirt.virDomain.create

    def slow(self: libvirt.virDomain) -> int:
        seen.append(host._report(self))
        return int(create(self))

    monkeypatch.setattr(libvirt.virDomain, "create", slow)
    await host.start(kept, 8)
    (before,) = seen
    assert before is not None
    assert (before.run, before.token, before.state) == (between.run, 7, VmState.STOPPED)
    running = await host.report(A)
    assert running is not None
    assert running.token == 8
    await host.destroy(A)
    ended = await host.report(A)
    assert ended is not None
    assert ended.token == 8, "that run has ended"


async def test_a_start_that_another_one_holds_up_is_uncertain_and_no_refusal(
    new_host: NewHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """libvirt does one thing at a time with a VM. Who waits in vain for an earlier start knows nothing of that one,
    which may be about to succeed."""
    host = new_host(domain("a", A))
    (kept,) = await host.definitions()
    await host.destroy(A)

    def held(self: libvirt.virDomain) -> int:
        error = libvirt.libvirtError("")
        code, said = libvirt.VIR_ERR_OPERATION_TIMEOUT, "cannot acquire state change lock"
        error.err = (code, libvirt.VIR_FROM_QEMU, said, libvirt.VIR_ERR_ERROR, "", "", "", -1, -1)
        raise error

    monkeypatch.setattr(libvirt.virDomain, "create", held)
    with pytest.raises(UnavailableError):
        await host.start(kept, 8)


async def test_a_start_whose_caller_has_left_while_libvirt_hung_is_not_gone_on_with(
    new_host: NewHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = new_host(domain("a", A))
    (kept,) = await host.definitions()
    await host.destroy(A)
    monkeypatch.setattr("libs.virt.host.START_S", 0.2)
    define, hangs, defined = libvirt.virConnect.defineXML, threading.Event(), threading.Event()

    def slow(self: libvirt.virConnect, xml: str) -> libvirt.virDomain:
        hangs.wait()
        found = define(self, xml)
        defined.set()
        return found

    created: list[str] = []
    monkeypatch.setattr(libvirt.virConnect, "defineXML", slow)
    monkeypatch.setattr(libvirt.virDomain, "create", lambda self: created.append(self.name()))
    with pytest.raises(UnavailableError):
        await host.start(kept, 8)
    hangs.set()
    assert await asyncio.to_thread(defined.wait, 10)
    left = host._left[0]
    await eventually(lambda: not left.hung(), "the thread that was left behind ends")
    assert created == []


async def test_a_definition_that_libvirt_refuses_is_a_refusal(new_host: NewHost) -> None:
    host = new_host(domain("a", A))
    (definition,) = await host.definitions()
    bad = definition.model_copy(update={"xml": "<domain type='test'><name>x</name></domain>"})
    with pytest.raises(StartRefusedError):
        await host.start(bad, 1)


# -- no answer is never an empty answer


@pytest.mark.parametrize(
    "uri",
    ["test:///no/such/file", "qemu+tcp://127.0.0.1:1/system", "qemu+unix:///session?socket=/no/such/socket"],
)
async def test_a_host_that_cannot_be_reached_says_nothing_of_its_vms(uri: str) -> None:
    host = LibvirtHost("h1", uri, VmPolicy(), SystemClock().monotonic)
    for ask in (host.reports, host.definitions, host.node):
        with pytest.raises(UnavailableError, match="h1"):
            await ask()
    with pytest.raises(UnavailableError):
        await host.report(A)
    with pytest.raises(UnavailableError):
        await host.destroy(A)


async def test_a_connection_that_was_closed_is_opened_anew(new_host: NewHost) -> None:
    host = new_host(domain("a", A))
    await host.reports()
    opened_at = host.opened_at
    host._connection.close()
    assert [report.uuid for report in await host.reports()] == [A]
    assert host.opened_at > opened_at


async def test_a_connection_that_breaks_in_the_middle_of_a_reading_is_no_empty_reading(
    new_host: NewHost,
) -> None:
    host = new_host(domain("a", A), domain("b", B))
    for ask in (host.reports, host.definitions):
        await host.reports()
        connection = host._connection
        listed = connection.listAllDomains

        def broken(
            flags: int, connection: libvirt.virConnect = connection, listed: object = listed
        ) -> object:
            assert callable(listed)
            found = listed(flags)
            connection.close()
            for one in found:
                one._o = None  # as a handle is once its connection is gone
            return found

        connection.listAllDomains = broken
        with pytest.raises(UnavailableError):
            await ask()


async def test_a_call_that_hangs_ends_at_its_deadline_and_hurts_neither_others_nor_the_next(
    new_host: NewHost,
) -> None:
    sick, well = new_host(domain("a", A)), new_host(domain("b", B), name="h2")
    hang = threading.Event()
    try:
        calls = [asyncio.create_task(sick.call("hang", lambda _: hang.wait(), HANGS_S)) for _ in range(20)]
        assert await _quickest_s(well) < 0.4
        assert not any(call.done() for call in calls), "all the while they hung"
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert {type(result) for result in results} == {UnavailableError}
        assert await _quickest_s(sick) < 0.4
    finally:
        hang.set()


async def test_what_a_probe_concludes(new_host: NewHost) -> None:
    clock = SystemClock().monotonic

    async def probe(uri: str, timeout_s: float = 2.0) -> Answer:
        return (await LibvirtHost("x", uri, VmPolicy(), clock).probe(timeout_s))[0]

    assert (await new_host(domain("a", A)).probe(1.0))[0] is Answer.UP
    # a kernel answered: the machine lives
    assert await probe(f"qemu+tcp://127.0.0.1:{free_port()}/system") is Answer.REFUSED
    # a socket file that is not there, or outlived its daemon, says nothing about a machine being well
    assert await probe("qemu+unix:///system?socket=/no/such/socket") is Answer.SILENT
    # a mistake in the file is no evidence at all
    assert await probe("test:///no/such/file") is Answer.UNKNOWN

    with socket.socket() as listening:  # its kernel takes the connection, nobody speaks
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        port = listening.getsockname()[1]
        assert await probe(f"qemu+tcp://127.0.0.1:{port}/system", 0.3) is Answer.HANGS


async def test_a_connection_is_proven_to_lead_to_a_boot_by_a_heartbeat_heard_after_it_was_opened(
    tmp_path: Path,
) -> None:
    path = tmp_path / "h1.xml"
    path.write_text(NODE.format(domains=domain("a", A)))
    bus = Process(World())
    hosts = LibvirtHosts([HostEntry(name="h1", uri=f"test://{path}")], VmPolicy(), bus, SystemClock())
    await hosts.listen()
    bus.heard(beat("h1"))
    with pytest.raises(UnavailableError, match="not heard"):
        await hosts.at(beat("h1").at, 1.0)
    bus.heard(beat("h1"))
    assert await (await hosts.at(beat("h1").at, 10.0)).reports()
    with pytest.raises(UnavailableError, match="boot h1boot1 is heard"):
        await hosts.at(beat("h1", 2).at, 1.0)
    with pytest.raises(UnavailableError, match="no host is called h9"):
        await hosts.at(Incarnation(host="h9", boot="b"), 0.1)


async def test_a_connection_that_is_kept_for_looks_still_leads_to_its_boot_long_after_the_last_heartbeat(
    tmp_path: Path,
) -> None:
    path = tmp_path / "h1.xml"
    path.write_text(NODE.format(domains=domain("a", A)))
    entries, bus = [HostEntry(name="h1", uri=f"test://{path}")], Process(World())
    asking = LibvirtHosts(entries, VmPolicy(), bus, SystemClock())
    watching = LibvirtHosts(entries, VmPolicy(), bus, SystemClock())
    await watching.listen()
    keeping = asyncio.create_task(watching.run(every_s=60.0))
    try:
        async with asyncio.timeout(10):
            while True:  # it beats until the connection was opened before a heartbeat, and then no more
                bus.heard(beat("h1"))
                try:
                    found = await watching.at(beat("h1").at, 0.05)
                    break
                except UnavailableError:
                    continue
        opened_at = found.opened_at
        # a question over the other connection that is not answered in time gives that one up, not this one
        for _ in range(2):
            await asking.probe("h1", 1e-9)
        assert [one.uuid for one in await (await watching.at(beat("h1").at, 1.0)).reports()] == [A]
        assert found.opened_at == opened_at
    finally:
        keeping.cancel()


# -- agentless


def watched(host: LibvirtHost, stored: bytes | None) -> Watched:
    world = World()
    if stored is not None:
        world.rows["h1"] = (stored, 1)
    return Watched(host, Process(world))


def inventory(*vms: VmReport) -> Inventory:
    at = Incarnation(host="h1", boot="before")
    return Inventory(at=at, agent="x", rev=1, memory_mib=1, cpus=1, vms=vms)


async def test_a_run_that_goes_on_shows_that_the_host_did_not_boot(new_host: NewHost) -> None:
    host = new_host(domain("a", A), domain("b", B))
    a, b = await host.reports()
    stored = inventory(a, b.model_copy(update={"run": 99}))
    assert await watched(host, stored.model_dump_json().encode()).until_up() == stored.at


@pytest.mark.parametrize("case", ["nothing stored", "another run", "stopped before", "unreadable"])
async def test_where_nothing_shows_it_the_boot_has_a_new_name(new_host: NewHost, case: str) -> None:
    host = new_host(domain("a", A))
    (a,) = await host.reports()
    stored = {
        "nothing stored": None,
        "another run": inventory(a.model_copy(update={"run": a.run + 1})).model_dump_json().encode(),
        "stopped before": inventory(vm(A, VmState.STOPPED, run=a.run)).model_dump_json().encode(),
        "unreadable": b"{}",
    }[case]
    one = watched(host, stored)
    names = {str(await one.until_up()) for _ in range(2)}
    assert len(names) == 2, "even in short every boot has a name of its own"
    assert "h1/before" not in names


async def test_it_waits_while_libvirt_does_not_answer_and_stops_after_two_misses(
    new_host: NewHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.heartbeat.agentless.LOOK_S", 0.02)
    host = new_host(domain("a", A))
    there = Path(host.uri.removeprefix("test://"))
    text = there.read_text()
    there.unlink()
    one = watched(host, None)
    waiting = asyncio.create_task(one.until_up())
    await asyncio.sleep(0.1)
    assert not waiting.done()
    there.write_text(text)
    await asyncio.wait_for(waiting, 2.0)
    lost = asyncio.create_task(one.until_lost(0.02))
    await asyncio.sleep(0.2)
    assert not lost.done()
    there.unlink()
    host._connection.close()
    await eventually(lost.done, "the loss is noticed")


# -- guests


async def test_a_vm_without_a_guest_agent_cannot_be_asked_and_a_paused_one_is_not_ill(
    new_host: NewHost,
) -> None:
    host = new_host(domain("a", A))
    with pytest.raises(UnavailableError):
        await host.ping_guest(A, 1.0)
    await do(host, "suspend")
    report = await host.report(A)
    assert report is not None
    assert (report.state, report.health, report.agent) == (VmState.PAUSED, Health.UNKNOWN, False)
    await do(host, "destroy")
    report = await host.report(A)
    assert report is not None
    assert (report.state, report.destroyed) == (VmState.STOPPED, True)


class Made:
    """A domain as libvirt shows it."""

    def __init__(self, state: int, reason: int, run: int, channel: str = "") -> None:
        self._state, self._run = (state, reason), run
        self._xml = domain("a", A).replace("</domain>", f"<devices>{channel}</devices></domain>")

    def state(self) -> tuple[int, int]:
        return self._state

    def XMLDesc(self, _: int) -> str:
        return self._xml

    def ID(self) -> int:
        return self._run

    def UUIDString(self) -> str:
        return A

    def name(self) -> str:
        return "a"


CHANNEL = "<channel type='unix'><target type='virtio' name='{name}' state='{state}'/></channel>"


@pytest.mark.parametrize(
    ("state", "reason", "run", "seen", "health"),
    [
        (libvirt.VIR_DOMAIN_CRASHED, libvirt.VIR_DOMAIN_CRASHED_PANICKED, 3, VmState.PAUSED, Health.PANICKED),
        (
            libvirt.VIR_DOMAIN_CRASHED,
            libvirt.VIR_DOMAIN_CRASHED_PANICKED,
            -1,
            VmState.STOPPED,
            Health.UNKNOWN,
        ),
        (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_IOERROR, 3, VmState.PAUSED, Health.IO_ERROR),
        (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_WATCHDOG, 3, VmState.PAUSED, Health.WATCHDOG),
        (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_USER, 3, VmState.PAUSED, Health.UNKNOWN),
        (libvirt.VIR_DOMAIN_RUNNING, libvirt.VIR_DOMAIN_PAUSED_IOERROR, 3, VmState.RUNNING, Health.UNKNOWN),
        (99, 0, 3, VmState.UNKNOWN, Health.UNKNOWN),
    ],
)
def test_a_domain_that_has_a_process_is_never_stopped_and_says_what_is_wrong_with_its_guest(
    state: int, reason: int, run: int, seen: VmState, health: Health
) -> None:
    host = LibvirtHost("h1", "test:///default", VmPolicy(), SystemClock().monotonic)
    report = host._report(Made(state, reason, run))
    assert report is not None
    assert (report.state, report.health) == (seen, health)


@pytest.mark.parametrize(
    ("name", "state", "agent"),
    [
        ("org.qemu.guest_agent.0", "connected", True),
        ("org.qemu.guest_agent.0", "disconnected", False),
        ("com.redhat.spice.0", "connected", False),
    ],
)
def test_an_agent_is_there_where_its_channel_is_connected(name: str, state: str, agent: bool) -> None:
    host = LibvirtHost("h1", "test:///default", VmPolicy(), SystemClock().monotonic)
    report = host._report(Made(libvirt.VIR_DOMAIN_RUNNING, 1, 3, CHANNEL.format(name=name, state=state)))
    assert report is not None
    assert report.agent is agent


class Asked:
    """A connection on which one guest is asked."""

    def lookupByUUIDString(self, uuid: str) -> str:
        return uuid


@pytest.mark.parametrize(
    ("code", "text", "answer"),
    [
        (None, "", True),
        (libvirt.VIR_ERR_AGENT_UNRESPONSIVE, "Guest agent is not responding: timed out", False),
        (
            libvirt.VIR_ERR_AGENT_UNRESPONSIVE,
            "Guest agent is not responding: QEMU guest agent is not connected",
            None,
        ),
        (libvirt.VIR_ERR_OPERATION_INVALID, "domain is not running", None),
        (libvirt.VIR_ERR_INTERNAL_ERROR, "connection reset", None),
    ],
)
def test_only_an_agent_that_was_asked_can_be_silent(
    monkeypatch: pytest.MonkeyPatch, code: int | None, text: str, answer: bool | None
) -> None:
    def command(*_: object) -> str:
        if code is None:
            return '{"return":{}}'
        error = libvirt.libvirtError(text)
        error.args = (text,)  # of its own accord it says what libvirt told this thread last
        error.err = (code, 10, text, 1, "", None, None, 0, 0)
        raise error

    monkeypatch.setattr(libvirt_qemu, "qemuAgentCommand", command)
    if answer is None:
        with pytest.raises(libvirt.libvirtError):
            guests.answers(Asked(), A, 1.0)
    else:
        assert guests.answers(Asked(), A, 1.0) is answer


async def test_a_guest_that_hangs_does_not_hold_up_the_reading_of_states(
    new_host: NewHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    host, hangs = new_host(domain("a", A)), threading.Event()
    monkeypatch.setattr(libvirt_qemu, "qemuAgentCommand", lambda *_: hangs.wait(20))
    asking = [asyncio.create_task(host.ping_guest(A, 1.0)) for _ in range(30)]
    await asyncio.sleep(0.2)
    began = time.monotonic()
    for _ in range(10):
        assert len(await host.reports()) == 1
    assert time.monotonic() - began < 2.0
    hangs.set()
    await asyncio.gather(*asking)
