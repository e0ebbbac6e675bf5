"""S17: a host that comes back under another name, and two machines that say they are one. Nothing is stopped, started or
deleted on such a word; the name is closed, and people are told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from libs.config.entries import HostEntry
from libs.core.clock import SystemClock
from libs.events.failovers import PlannedStart
from libs.events.hosts import HostIdentityDoubted
from libs.events.signals import Heartbeat
from libs.events.words import HostReadmitOrdered
from libs.hardware import hardware, other_machine
from libs.leases import may_run
from libs.model import Incarnation, PowerState, ProofMethod, VmPolicy, VmState
from libs.virt.hosts import LibvirtHosts
from services.detector import twins
from services.executor.orders import Result
from services.heartbeat.orders import GatePassed, PassGate
from tests.unit.made import boot, fenced, lease, proof, stored, vm
from tests.unit.test_agent import Libvirt, hands
from tests.unit.test_executor import Lab
from tests.unit.watch import Watch

pytestmark = pytest.mark.fast
H1, H2 = boot("h1"), boot("h2")
RENAMED = Incarnation(host="h2", boot=H1.boot)
CLONE = boot("h1", 2)


def watch() -> Watch:
    found = Watch("h1", "h2", "h3")
    for host in ("h1", "h3"):
        found.hear(found.beat_of(boot(host)))
    return found


def test_s17_a_boot_under_another_name_does_not_join_and_closes_the_host_that_it_is() -> None:
    one = watch()
    assert one.hear(one.beat_of(RENAMED)) == ["host.identity_doubted", "host.quarantined"]
    fact = next(fact for fact in one.told if isinstance(fact, HostIdentityDoubted))
    assert (fact.at, fact.known) == (RENAMED, H1)
    assert one.hear(one.beat_of(RENAMED)) == [], "it is told once"
    told = one.after(60.0)
    assert one.state.record("h2").at is None
    assert not {"host.joined", "host.failed", "host.readmitted"} & set(told)


def test_s17_a_name_that_is_free_again_is_taken() -> None:
    """The old name was rebooted into by another machine, or removed: this boot is nobody else's any more."""
    one = watch()
    one.after(2.0)
    one.hear(one.beat_of(CLONE))
    assert one.hear(one.beat_of(RENAMED)) == ["host.joined"]


@pytest.mark.long
def test_s17_two_boots_that_both_live_under_one_name_are_told_and_closed() -> None:
    one = watch()
    told = one.hear(one.beat_of(CLONE))
    for _ in range(30):
        one.now += 0.25
        told += one.hear(one.beat_of(H1)) + one.hear(one.beat_of(CLONE))
    assert told.count("host.identity_doubted") == 1
    assert told.count("host.quarantined") == 1
    number = one.state.record("h1").quarantine
    one.after(7200.0)
    assert one.state.record("h1").quarantine == number, "only an operator opens it"
    one.hear(HostReadmitOrdered(host="h1", number=number, by="op"))
    assert not one.state.record("h1").quarantine
    assert one.state.record("h1").twins == ()


def test_an_echo_of_the_boot_before_is_no_twin() -> None:
    one = watch()
    one.hear(one.beat_of(CLONE))
    told = []
    for late in range(8):  # up to four seconds
        one.now += 0.5
        told += one.hear(one.beat_of(H1)) + one.hear(one.beat_of(CLONE))
        assert late * 0.5 < twins.TWIN_S
    told += one.after(30.0)
    assert "host.identity_doubted" not in told


async def test_s17_an_agent_under_a_new_name_stops_nothing_of_its_own_boot() -> None:
    assert may_run(lease("a", H1), RENAMED, VmPolicy(), boots_known=True)
    libvirt = Libvirt(vm("a"))
    mine, world = hands(libvirt)
    world.revision += 1
    world.rows["a"] = (
        lease("a", Incarnation(host="h9", boot=mine.at.boot)).model_dump_json().encode(),
        1,
    )
    passed = await mine.perform(PassGate(key="gate/0", deadline_s=5.0, at=mine.at))
    assert isinstance(passed, GatePassed)
    assert passed.stopped == ()
    assert libvirt.destroyed == []
    other = boot("h9", 2)
    world.rows["a"] = (lease("a", other).model_dump_json().encode(), 2)
    await mine.perform(PassGate(key="gate/1", deadline_s=5.0, at=mine.at))
    assert libvirt.destroyed == ["a"], "the lease of another boot speaks against it"


def order() -> PlannedStart:
    return PlannedStart(
        key="i/a/1", vm="a", name="A", origin=H1, to=H2, wave=0, priority_rank=2, memory_mib=100, vcpus=1,
        proofs=(proof(H1, ProofMethod.NEW_BOOT).model_copy(update={"successor": CLONE.boot}),),
    )  # fmt: skip


@pytest.mark.parametrize("heard", [True, False])
async def test_s17_nothing_starts_on_the_word_of_a_clone_while_the_boot_before_it_is_heard(
    heard: bool,
) -> None:
    lab = Lab(H1, H2, held=lease("a", H1))
    lab.hosts[H1].vms["a"] = VmState.RUNNING
    object.__setattr__(lab.hands, "lives", lambda at: heard and at == H1)
    done = await lab.start(order())
    assert done.result is (Result.NOT_STARTED if heard else Result.STARTED)
    assert bool(lab.hosts[H2].starts) is not heard
    assert lab.hosts[H1].vms["a"] is VmState.RUNNING, "and nothing was stopped"


def test_a_host_that_is_back_within_a_second_is_no_twin_of_itself() -> None:
    clock = SystemClock()
    nobody: Any = None
    hosts = LibvirtHosts([HostEntry(name="h1", uri="test:///default")], VmPolicy(), nobody, clock)

    def beat(at: Incarnation) -> None:
        hosts.heard(Heartbeat(at=at, agent="life", seq=1))

    before, after = boot("h1"), boot("h1", 2)
    for at in (before, before, after, after):
        beat(at)
    assert not hosts.lives(before), "it was heard a moment ago, and not since"
    beat(before)
    assert hosts.lives(before)
    assert hosts.lives(after)


# -- a copy of its disk in another machine, while the host itself is silent

FIRST, SECOND = "aaaaaa bbbbbb", "cccccc dddddd"


class Marked(Watch):
    """Its hosts' heartbeats show on which machine they run."""

    def __init__(self) -> None:
        super().__init__("h1", "h2", "h3", "h4", "h5")
        self.machines = {str(boot(host)): f"{host}aaaa {host}bbbb" for host in self.decider.hosts}
        self.machines |= {str(H1): FIRST, str(CLONE): SECOND}

    def beat_of(self, at: Incarnation) -> Heartbeat:
        return Heartbeat(at=at, agent="life", seq=1, hardware=self.machines[str(at)])

    def joined(self) -> Marked:
        for host in self.decider.hosts:
            self.hear(self.beat_of(boot(host)))
        return self

    def clone_speaks(self, seconds: float) -> list[str]:
        """It does, and the host that it was copied from does not."""
        told: list[str] = []
        self.silent.add("h1")
        until = self.now + seconds
        while self.now < until:
            told += self.hear(self.beat_of(CLONE))
            told += self.after(0.5)
        return told


def test_s17_a_copy_of_a_silent_host_in_another_machine_is_no_reboot_of_it() -> None:
    one = Marked().joined()
    one.after(2.0)
    told = one.clone_speaks(1.0)
    assert told == ["host.identity_doubted", "host.quarantined"]
    fact = next(fact for fact in one.told if isinstance(fact, HostIdentityDoubted))
    assert (fact.at, fact.known, fact.rule) == (CLONE, H1, "one name on two machines")
    told = one.clone_speaks(10.0)
    assert told == ["host.suspected"], (
        "the silent one is asked after as any other, and nothing is proven by the other"
    )
    assert one.state.record("h1").at == H1


def test_s17_the_copy_is_taken_once_the_first_machine_is_over_and_an_operator_said_so() -> None:
    one = Marked().joined()
    one.after(2.0)
    one.clone_speaks(4.0)
    number = one.state.record("h1").quarantine
    one.hear(HostReadmitOrdered(host="h1", number=number, by="op"))
    told = one.clone_speaks(1.0)
    assert told == ["host.identity_doubted", "host.quarantined"], (
        "it is not over: the word alone moves nothing"
    )
    told = one.answer("h1", "power", power=PowerState.OFF)
    assert told == ["host.failed"]
    record = one.state.record("h1")
    one.hear(fenced(H1, epoch=record.epoch))
    assert "host.joined" not in one.clone_speaks(3.0), (
        "proven, and nobody has said which of both is h1 from now on"
    )
    one.hear(HostReadmitOrdered(host="h1", number=one.state.record("h1").quarantine, by="op"))
    assert one.clone_speaks(1.0) == ["host.joined"]
    assert one.state.record("h1").at == CLONE


@pytest.mark.parametrize(
    ("machine", "same"),
    [
        (FIRST, True),
        ("bbbbbb eeeeee", True),  # a new board, and one of its cards
        ("", True),  # not known: as ever
        (SECOND, False),
    ],
)
def test_a_reboot_of_the_same_machine_is_one_though_a_part_was_replaced(machine: str, same: bool) -> None:
    one = Marked().joined()
    one.machines[str(CLONE)] = machine
    told = one.clone_speaks(0.5)
    assert ("host.joined" in told) is same
    assert ("host.identity_doubted" in told) is not same


def test_s17_a_standby_that_heard_only_the_copy_takes_it_for_no_reboot_either() -> None:
    before = Marked().joined()
    before.after(2.0)
    standby = Marked()
    standby.now = before.now
    standby.state = standby.decider.initial(standby.now)
    standby.silent.add("h1")
    standby.hear(standby.beat_of(CLONE))
    standby.resume(stored(before.state.records))
    for host in ("h2", "h3", "h4", "h5"):
        standby.hear(standby.beat_of(boot(host)))
    told = standby.clone_speaks(2.0)
    assert "host.identity_doubted" in told
    assert not {"host.failed", "host.joined"} & set(told)


def test_what_tells_machines_apart_is_read_from_cards_that_are_there(tmp_path: Path) -> None:
    def card(name: str, address: str, *, device: bool = True, how: str = "0") -> None:
        place = tmp_path / "net" / name
        place.mkdir(parents=True)
        (place / "address").write_text(address + "\n")
        (place / "addr_assign_type").write_text(how + "\n")
        if device:
            (place / "device").mkdir()

    assert hardware(tmp_path) == ""
    card("eth0", "52:54:00:00:00:01")
    card("br0", "52:54:00:00:00:02", device=False)
    card("vf0", "52:54:00:00:00:03", how="1")
    first = hardware(tmp_path)
    assert len(first.split()) == 1
    (tmp_path / "dmi/id").mkdir(parents=True)
    (tmp_path / "dmi/id/product_uuid").write_text("4C4C4544-0000\n")
    both = hardware(tmp_path)
    assert len(both.split()) == 2
    assert not other_machine(first, both)
    (tmp_path / "net/eth0/address").write_text("52:54:00:00:00:09\n")
    assert other_machine(first, hardware(tmp_path))
    assert not other_machine(both, hardware(tmp_path)), "its board is the same"
