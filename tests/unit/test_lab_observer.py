"""What the lab's observer makes of a list that comes later than what processes showed: no end, and no start."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path

import libvirt
import pytest

from infra.lab.observer import Observer
from infra.lab.watching import Answer, Qemu, answered

pytestmark = pytest.mark.fast


def test_a_list_that_is_older_than_a_process_tells_of_no_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = io.StringIO()
    observer = Observer({"h1": "test:///default"}, tmp_path, tmp_path, out)

    def heard(domains: dict[str, str] | None) -> None:
        observer.take(Answer("h1", time.monotonic(), domains))

    def turn(*running: str) -> None:
        found = [Qemu(1, uuid, uuid.upper(), "h1") for uuid in running]
        monkeypatch.setattr(observer.scan, "look", lambda now: found)
        observer.look()

    turn()
    heard({})
    heard(None)
    turn("a")
    heard({})
    heard({"a": "A"})
    heard({})
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [(line["vm"], line["active"]) for line in lines if line["kind"] == "vm"] == [
        ("a", True),
        ("a", False),
    ]


def test_a_vm_that_ends_and_begins_between_two_lists_has_started_again(tmp_path: Path) -> None:
    out = io.StringIO()
    observer = Observer({"h1": "test:///default"}, tmp_path, tmp_path, out)
    for runs in ({"a": 4, "b": 5}, {"a": 4, "b": 5}, {"a": 6, "b": 5}, {"a": 6, "b": 5}):
        observer.take(Answer("h1", time.monotonic(), {"a": "A", "b": "B"}, runs))
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    seen = [(line["vm"], line["active"]) for line in lines if line["kind"] == "vm"]
    assert [active for vm, active in seen if vm == "a"] == [True, False, True]
    assert [active for vm, active in seen if vm == "b"] == [True]


class Look:
    """An observer of two hosts that is told what it sees."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.out, self.now = io.StringIO(), 100.0
        hosts = {"h1": "test:///default", "h2": "test:///default"}
        self.observer = Observer(hosts, path, path, self.out)
        self.qemus: list[Qemu] = []
        monkeypatch.setattr(self.observer.scan, "look", lambda now: self.qemus)
        monkeypatch.setattr("infra.lab.observer.time.monotonic", lambda: self.now)

    def sees(self, *qemus: Qemu, **lists: str) -> None:
        """These processes; and by host how its list has the VM: running, passing, starting, or not."""
        self.qemus = list(qemus)
        for _ in range(3):
            self.now += 0.05
            self.observer.look()
            for host in ("h1", "h2"):
                how = lists.get(host, "")
                domains, one = ({"a": "A"} if how else {}), frozenset({"a"})
                self.observer.take(
                    Answer(
                        host, self.now, domains, {}, one if how == "passing" else frozenset(),
                        one if how == "starting" else frozenset(),
                    )
                )  # fmt: skip

    def changes(self) -> list[tuple[str, bool]]:
        """What it wrote of the VM: host, and whether it began or ended there."""
        lines = [json.loads(line) for line in self.out.getvalue().splitlines()]
        return [(line["host"], line["active"]) for line in lines if line["kind"] == "vm"]

    def twice(self) -> float:
        listed, processes = self.observer.listed.doubled(), self.observer.processes.doubled()
        return max(listed.get("a", 0.0), processes.get("a", 0.0))


SOURCE, TARGET = Qemu(1, "a", "A", "h1"), Qemu(2, "a", "A", "h2", incoming=True)


def test_a_vm_that_is_moved_while_it_runs_is_on_one_host_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = Look(tmp_path, monkeypatch)
    look.sees(SOURCE, h1="running")
    look.sees(SOURCE, h1="running", h2="starting")
    look.sees(SOURCE, TARGET, h1="running", h2="starting")
    look.sees(SOURCE, TARGET, h1="running", h2="passing")
    look.sees(SOURCE, TARGET, h1="passing", h2="running")
    look.sees(TARGET, h2="running")
    assert look.twice() == 0.0
    assert look.changes() == [("h1", True), ("h1", False), ("h2", True)]


def test_a_vm_that_has_arrived_stays_while_its_host_does_not_answer_and_its_old_process_ends_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = Look(tmp_path, monkeypatch)
    look.sees(SOURCE, h1="running")
    look.sees(SOURCE, TARGET, h1="passing", h2="running")
    look.observer.take(Answer("h2", look.now, None))
    look.now += 0.05
    look.observer.look()
    look.sees(TARGET, h2="running")
    assert look.twice() == 0.0
    assert look.changes() == [("h1", True), ("h1", False), ("h2", True)]


def test_a_vm_that_has_left_does_not_come_back_while_its_old_host_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = Look(tmp_path, monkeypatch)
    look.sees(SOURCE, h1="running")
    look.sees(SOURCE, TARGET, h1="passing", h2="running")
    look.observer.take(Answer("h1", look.now, None))
    look.now += 0.05
    look.observer.look()
    look.sees(TARGET, h2="running")
    assert look.changes() == [("h1", True), ("h1", False), ("h2", True)]


def test_a_vm_that_was_to_leave_is_still_there_where_it_is_alone_and_its_host_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = Look(tmp_path, monkeypatch)
    look.sees(SOURCE, h1="running")
    look.sees(SOURCE, TARGET, h1="passing", h2="passing")
    look.observer.take(Answer("h1", look.now, None))
    look.sees(SOURCE)
    assert look.changes() == [("h1", True), ("h1", False), ("h1", True)]


def test_one_that_runs_on_both_hosts_after_a_migration_runs_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = Look(tmp_path, monkeypatch)
    look.sees(SOURCE, h1="running")
    look.sees(SOURCE, TARGET, h1="running", h2="running")
    assert look.twice() > 0.05
    other = Look(tmp_path, monkeypatch)
    other.sees(TARGET, h2="running")
    other.sees(SOURCE, TARGET, h1="running", h2="running")
    assert other.twice() > 0.05
    assert other.observer.processes.doubled()["a"] > 0.05, "it has arrived long ago"


def test_a_second_start_counts_from_its_process_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    look = Look(tmp_path, monkeypatch)
    look.sees(SOURCE, h1="running")
    look.sees(SOURCE, Qemu(3, "a", "A", "h2"), h1="running", h2="starting")
    assert look.twice() > 0.05


def test_of_an_answer_that_took_long_only_its_beginning_is_certain(tmp_path: Path) -> None:
    """The VM was moved away while its host was still reading others."""
    observer = Observer({"h1": "test:///default", "h2": "test:///default"}, tmp_path, tmp_path, io.StringIO())
    observer.take(Answer("h1", 1.0, {"a": "A"}, asked=0.99))
    observer.take(Answer("h2", 1.2, {"a": "A"}, asked=1.19))
    observer.take(Answer("h1", 1.4, {"a": "A"}, asked=1.05))
    observer.take(Answer("h2", 1.5, {"a": "A"}, asked=1.49))
    assert observer.listed.doubled() == {"a": 0.0}
    assert observer.listed.sightings == {}
    observer.take(Answer("h1", 1.6, {"a": "A"}, asked=1.55))
    assert observer.listed.doubled()["a"] == pytest.approx(0.29)
    assert observer.listed.sightings == {"a": 1}


@pytest.mark.parametrize(
    ("state", "there"),
    [
        (libvirt.VIR_DOMAIN_RUNNING, True),
        (libvirt.VIR_DOMAIN_PAUSED, True),
        (libvirt.VIR_DOMAIN_CRASHED, True),
        (libvirt.VIR_DOMAIN_SHUTOFF, False),
    ],
)
def test_a_domain_that_ended_while_its_host_was_asked_is_not_there(state: int, there: bool) -> None:
    """It was moved away while others were asked after: it is listed as it was active, and said to be shut off."""
    domain = Domain()
    answer = answered("h1", 1.0, 1.2, [(domain, {"state.state": state, "state.reason": 0})])
    assert (answer.domains == {"a": "A"}) is there


class Domain(libvirt.virDomain):  # type: ignore[misc]
    """Of no host: it only says which it is."""

    def __init__(self) -> None:
        self._o = None

    def UUIDString(self) -> str:
        return "a"

    def name(self) -> str:
        return "A"

    def ID(self) -> int:
        return 3

    def __del__(self) -> None:
        """There is nothing to let go."""
