"""S16: what libvirt would start by itself at boot is held back before libvirt runs, and given back afterwards."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from libs.core.decider import Expired
from libs.core.ports import StartRefusedError, UnavailableError
from libs.leases import held_back
from libs.model import HeldVm, LeaseState, Protection, RunLease, VmPolicy, VmReport, VmState
from libs.virt.autostart import Autostart
from libs.virt.definition import POLICY_NS
from services.cli import app, gate
from services.cli.app import main
from services.heartbeat.heldback import any_held, give_back
from services.heartbeat.orders import GatePassed, GaveBack
from tests.unit.made import boot, lease, vm
from tests.unit.test_agent import Desk

pytestmark = pytest.mark.fast
NOW, BEFORE, ELSEWHERE = boot("h1", 2), boot("h1", 1), boot("h2")
PROTECTED, FREE = VmPolicy(), VmPolicy(protection=Protection.NONE)
DOMAIN = "<domain type='kvm'><name>{name}</name><uuid>{uuid}</uuid>{metadata}</domain>"
SET = "<metadata><r:policy xmlns:r='{ns}' protection='{protection}'/></metadata>"


# -- the rule


@pytest.mark.parametrize(
    ("held", "policy", "answered", "waits"),
    [
        (None, PROTECTED, True, True),  # an old copy of the store may have lost it
        (None, FREE, True, False),  # nobody's but libvirt's
        (lease("a", NOW), PROTECTED, True, False),
        (lease("a", ELSEWHERE), PROTECTED, True, True),
        (lease("a", ELSEWHERE), FREE, True, True),
        (lease("a", BEFORE), PROTECTED, True, True),  # it may be planned anywhere by now
        (lease("a", BEFORE, state=LeaseState.STOPPED), PROTECTED, True, True),  # shut down on purpose: it stays down
        (lease("a", BEFORE, policy=FREE), FREE, True, False),  # nobody restarts it: libvirt does
        (lease("a", BEFORE, policy=FREE), PROTECTED, True, True),
        (lease("a", BEFORE), FREE, True, True),  # it was protected when it ran last: it may be planned anywhere
        (None, PROTECTED, False, True),
        (None, FREE, False, False),  # the management plane may be such a VM
    ],
)  # fmt: skip
def test_libvirt_starts_what_nobody_else_has_the_lease_of(
    held: RunLease | None, policy: VmPolicy, answered: bool, waits: bool
) -> None:
    assert bool(held_back(held, NOW, policy, answered=answered, led=True)) is waits


def test_where_nobody_ever_led_no_lease_is_an_answer() -> None:
    assert held_back(None, NOW, PROTECTED, answered=True, led=False) == ""
    assert held_back(lease("a", ELSEWHERE), NOW, PROTECTED, answered=True, led=False)


# -- the files


class Etc:
    """A host's /etc/libvirt/qemu and the list of libvirt-guests."""

    def __init__(self, root: Path) -> None:
        self.qemu, self.list = root / "qemu", root / "libvirt-guests"
        self.links, self.notes = self.qemu / "autostart", root / "data" / "held" / "h1"
        self.links.mkdir(parents=True)
        (root / "data").mkdir()
        self.files = Autostart(self.links, self.list, self.notes)

    def define(self, name: str, protection: str = "", *, link: bool = True) -> str:
        uuid = f"00000000-0000-0000-0000-{name:0>12}"
        metadata = SET.format(ns=POLICY_NS, protection=protection) if protection else ""
        path = self.qemu / f"{name}.xml"
        path.write_text(f"<!-- made by libvirt -->\n{DOMAIN.format(name=name, uuid=uuid, metadata=metadata)}")
        if link:
            (self.links / f"{name}.xml").symlink_to(path)
        return uuid

    def started(self) -> list[str]:
        """By libvirt, were it to begin now."""
        return sorted(one.stem for one in self.links.iterdir())

    def resumed(self) -> list[str]:
        """By libvirt-guests."""
        lines = self.list.read_text().splitlines() if self.list.exists() else []
        return [uuid for line in lines for uuid in line.split()[1:]]

    def hold_all(self) -> None:
        for one in self.files.wanted(PROTECTED):
            self.files.hold(one.vm)


@pytest.fixture
def etc(tmp_path: Path) -> Etc:
    return Etc(tmp_path)


def test_a_link_is_noted_and_taken_away_and_put_back(etc: Etc) -> None:
    etc.define("1")
    etc.define("2")
    one, two = etc.files.wanted(PROTECTED)
    etc.files.hold(one.vm)
    etc.files.hold(one.vm)
    assert etc.started() == ["2"]
    assert [vm.name for vm in etc.files.held()] == ["1"]
    assert etc.files.wanted(PROTECTED) == [one, two], "the next boot asks for it again"
    etc.files.let(one.vm)
    etc.files.let(two.vm)
    assert (etc.links / "1.xml").resolve() == etc.qemu / "1.xml"
    assert etc.started() == ["1", "2"]
    etc.files.forget(one.vm)
    assert etc.files.held() == []


@pytest.mark.skipif(os.getuid() != 0, reason="only root, as whom the gate runs, gives files away")
@pytest.mark.parametrize(
    "held_by", ["this gate", "a gate killed as it gave them away, or of an earlier version"]
)
def test_the_notes_of_a_gate_that_is_root_are_the_agents_to_take_away(etc: Etc, held_by: str) -> None:
    agent = 7400
    os.chown(etc.notes.parents[1], agent, agent)
    if held_by != "this gate":
        etc.notes.mkdir(parents=True)
    etc.define("1")
    etc.hold_all()
    owners = {place: (place.stat().st_uid, place.stat().st_gid) for place in (etc.notes, etc.notes.parent)}
    assert owners == dict.fromkeys(owners, (agent, agent))
    os.chown(etc.notes, 0, 0)
    etc.files.let(etc.files.held()[0])
    assert etc.notes.stat().st_uid == agent, "its note is left to the agent"


def test_the_policy_is_the_vms_own_over_the_pools(etc: Etc) -> None:
    etc.define("1")
    etc.define("2", "none")
    etc.define("3", "restart")
    etc.define("4", "no_such_word")
    wanted = {one.vm.name: one.policy.protection for one in etc.files.wanted(FREE)}
    assert wanted == {"1": "none", "2": "none", "3": "restart", "4": "none"}


def test_what_libvirt_guests_would_resume_is_taken_out_of_its_list(etc: Etc) -> None:
    a, b, c = etc.define("1", link=False), etc.define("2", link=False), etc.define("3")
    etc.list.write_text(f"default {a} {b}\nqemu:///system {c} {a}\n")
    wanted = {one.vm.name: one for one in etc.files.wanted(PROTECTED)}
    assert [(name, bool(one.vm.link), one.vm.resumed) for name, one in sorted(wanted.items())] == [
        ("1", False, True), ("2", False, True), ("3", True, True)
    ]  # fmt: skip
    etc.files.hold(wanted["1"].vm)
    assert etc.list.read_text() == f"default {b}\nqemu:///system {c}\n"
    etc.files.hold(wanted["3"].vm)
    assert etc.list.read_text() == f"default {b}\n"
    assert etc.started() == []
    assert sorted(vm.uuid for vm in etc.files.held()) == [a, c]
    for one in wanted.values():
        etc.files.forget(one.vm)
    assert etc.files.held() == []


def test_a_note_that_cannot_be_read_keeps_no_other_from_being_given_back(etc: Etc) -> None:
    etc.define("1")
    etc.hold_all()
    (etc.notes / "another.json").write_text("{")
    assert [vm.name for vm in etc.files.held()] == ["1"]


def test_nothing_is_made_where_nothing_starts_by_itself(tmp_path: Path) -> None:
    files = Autostart(
        tmp_path / "none" / "autostart", tmp_path / "none" / "libvirt-guests", tmp_path / "none" / "held"
    )
    assert (files.wanted(PROTECTED), files.held()) == ([], [])
    assert list(tmp_path.iterdir()) == []


class Killed(BaseException):
    """Nothing of ours goes on after this."""


CALLS = ((Path, "mkdir"), (Path, "replace"), (Path, "unlink"), (Path, "chmod"), (os, "chown"), (os, "fsync"))


@pytest.fixture
def kill_at(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """Before the nth change of the file system from now on."""
    left = [-1]
    for owner, name in CALLS:
        real = getattr(owner, name)

        def counted(*args: Any, real: Any = real, **more: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                raise Killed
            return real(*args, **more)

        monkeypatch.setattr(owner, name, counted)
    yield lambda nth: left.__setitem__(0, nth)
    left[0] = -1


def test_s16_killed_at_any_step_nothing_is_lost_and_the_next_gate_ends_it(
    tmp_path: Path, kill_at: Callable[[int], None]
) -> None:
    """All its steps in turn, until it comes through."""
    nth, killed = 0, True
    while killed:
        nth += 1
        etc = Etc(tmp_path / str(nth))
        both, linked = etc.define("1"), etc.define("2")
        etc.list.write_text(f"default {both}\n")
        kill_at(nth)
        try:
            etc.hold_all()
        except Killed:
            pass
        else:
            killed = False
        kill_at(-1)
        left = {*etc.started(), *(vm.name for vm in etc.files.held())}
        assert left == {"1", "2"}, nth
        assert both in {*etc.resumed(), *(vm.uuid for vm in etc.files.held())}, nth
        etc.hold_all()
        assert (etc.started(), etc.resumed()) == ([], []), nth
        assert [vm.uuid for vm in etc.files.held()] == [both, linked], nth
    assert nth > 12, "two links, a resume, and what makes them last"


# -- the command


@pytest.fixture
def pool(etc: Etc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A pool file whose bus does not answer."""
    monkeypatch.setattr(gate, "ASK_S", 0.3)
    monkeypatch.setattr(
        app, "configure", lambda logging: None
    )  # for a standard output that ends with its test
    (tmp_path / "boot_id").write_text("this-boot\n")
    path = tmp_path / "pool.yaml"
    path.write_text(
        f"""pool: p
data_dir: {tmp_path}/data
bus: {{url: "nats://127.0.0.1:1"}}
hosts:
  - {{name: h1, uri: "qemu:///system", agent: true, boot_id_path: {tmp_path}/boot_id,
      autostart: {etc.links}, resume_list: {etc.list}}}
  - {{name: h2, uri: "qemu:///system"}}
"""
    )
    return path


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr("sys.argv", ["rekindle", "gate", *words])
    return main()


def test_s16_without_a_bus_what_is_protected_waits_and_nothing_else(
    etc: Etc, pool: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    etc.define("1")
    etc.define("2", "none")
    assert run(monkeypatch, "--config", str(pool), "--host", "h1") == 0
    assert etc.started() == ["2"]
    said = capsys.readouterr().out
    assert "1 is held back: it is protected, and the store does not answer" in said
    assert "1 of 2 VMs are libvirt's to start" in said


@pytest.mark.parametrize(
    ("host", "said"),
    [("h9", "h9"), ("h2", "hosts.h2.agent: false; without an agent nobody would give back")],
)
def test_a_host_that_is_none_or_has_no_agent_is_refused(
    host: str, said: str, etc: Etc, pool: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    etc.define("1")
    assert run(monkeypatch, "--config", str(pool), "--host", host) == 2
    assert said in capsys.readouterr().err
    assert etc.started() == ["1"]


def test_one_that_cannot_be_held_is_named_and_keeps_no_other_from_being(
    etc: Etc, pool: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    etc.define("1")
    etc.define("2")
    hold = Autostart.hold

    def fails(files: Autostart, vm: HeldVm) -> None:
        if vm.name == "1":
            raise OSError(30, "Read-only file system", "/etc/libvirt/qemu/autostart/1.xml")
        hold(files, vm)

    monkeypatch.setattr(Autostart, "hold", fails)
    assert run(monkeypatch, "--config", str(pool), "--host", "h1") == 2
    assert etc.started() == ["1"]
    said = "hosts.h1: 1: /etc/libvirt/qemu/autostart/1.xml: Read-only file system"
    assert said in capsys.readouterr().err


# -- the agent gives it back


def test_the_agent_gives_back_only_where_something_is_held_and_tries_again() -> None:
    desk = Desk()
    desk.wait()
    assert "give_back" in desk.hear(GatePassed(key="gate/0", held=True))
    failed_at = desk.now
    desk.hear(Expired(key="give/0", request="give_back", reason="libvirt is away"))
    while "give_back" not in desk.wait():
        assert desk.now < failed_at + 10.0
    assert desk.now >= failed_at + 5.0
    desk.hear(GaveBack(key="give/1", vms=("a",)))
    until = desk.now + 100.0
    while desk.now < until:
        assert "give_back" not in desk.wait()


class Held:
    """What is held back on a host whose libvirt has these VMs."""

    def __init__(self, *reports: VmReport) -> None:
        self.reports = {one.uuid: one for one in reports}
        self.left = [HeldVm(uuid=one.uuid, name=one.name) for one in reports]
        self.started: list[str] = []
        self.away = self.refuses = False

    async def held(self) -> list[HeldVm]:
        if self.away:
            raise UnavailableError("it cannot be read")
        return list(self.left)

    async def start(self, vm: HeldVm) -> None:
        if self.refuses:
            raise StartRefusedError("no room")
        self.started.append(vm.uuid)

    async def give_back(self, vm: HeldVm) -> None:
        self.left.remove(vm)

    async def report(self, uuid: str) -> VmReport | None:
        return self.reports.get(uuid)


async def given(held: Held, leases: dict[str, RunLease], *, latest: bool = True) -> GaveBack:
    async def lease_of(uuid: str) -> RunLease | None:
        return leases.get(uuid)

    hypervisor: Any = held
    return await give_back("give/0", held, hypervisor, lease_of, lambda: latest)


async def test_s06_what_is_protected_waits_until_the_store_is_known_to_be_the_latest() -> None:
    off = VmState.STOPPED
    held = Held(vm("nobodys", off), vm("free", off, policy=FREE), vm("theirs", off))
    leases = {"theirs": lease("theirs", ELSEWHERE)}
    with pytest.raises(UnavailableError, match="NOBODYS"):
        await given(held, leases, latest=False)
    assert (held.started, [one.uuid for one in held.left]) == (["free"], ["nobodys"])
    await given(held, leases)
    assert held.started == ["free", "nobodys"]


async def test_what_nobody_has_a_lease_of_is_started_as_libvirt_would_have() -> None:
    off = VmState.STOPPED
    held = Held(vm("nobodys", off), vm("theirs", off), vm("former", off), vm("runs"))
    leases = {"theirs": lease("theirs", ELSEWHERE), "former": lease("former", BEFORE)}
    done = await given(held, leases)
    assert (held.started, held.left) == (["nobodys"], [])
    assert done.vms == ("nobodys", "theirs", "former", "runs")


async def test_a_start_that_is_refused_keeps_no_flag_back() -> None:
    held = Held(vm("nobodys", VmState.STOPPED))
    held.refuses = True
    await given(held, {})
    assert held.left == []


async def test_what_cannot_be_read_keeps_no_host_at_its_gate() -> None:
    held = Held()
    assert not await any_held(None)
    assert not await any_held(held)
    held.away = True
    assert await any_held(held)
