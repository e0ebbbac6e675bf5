"""VMs start only where the networks, devices and CPU models are that they need; what is missing is told by name. Who does not
know what a host offers does not hold it against it."""

from __future__ import annotations

from typing import Any

import pytest

from libs.core.decider import TableRead
from libs.events.capacity import CapacityOvercommitted
from libs.events.failovers import CapacityExhausted
from libs.model import Inventory, LeaseState, Offers, Priority, VmNeeds
from libs.planning.agile import not_agile
from libs.planning.pool import Pool
from libs.planning.snapshot import PoolPolicy
from services.alerting.scaleout import _of_waiting
from services.placement.decide import Placement
from services.placement.proving import SETTLE_S
from tests.unit import placing, test_making_room, test_proving
from tests.unit.made import boot, inventory, policy, stored, vm

pytestmark = pytest.mark.fast
H2 = boot("h2")
BR0 = VmNeeds(networks=("br0",))
GPU = "pci 10de:1eb8 0000:3b:00.0"
HAS_GPU = VmNeeds(devices={GPU: 1})
OLD_CPU = VmNeeds(cpu_model="Haswell")
OWN_CPU = VmNeeds(host_cpu=True)
PLAIN: dict[str, Any] = {"networks": ("lan",), "devices": {}, "cpu_models": ("Nehalem",), "cpu": "X"}


def row(host: str, number: int = 1, **offers: Any) -> TableRead:
    """The stored inventory of a host, which alone says what it offers; what is not given it offers as PLAIN."""
    told = inventory(boot(host, number)).model_copy(update={"offers": Offers(**{**PLAIN, **offers})})
    return TableRead("inventory", (Inventory.model_validate_json(told.model_dump_json()),))


class Desk(placing.Desk):
    def offers(self, host: str, **offers: Any) -> list[str]:
        return self.hear(row(host, **offers)) + self.after(0.5)


@pytest.mark.parametrize(
    ("needs", "offered"),
    [
        (BR0, {"networks": ("br0", "lan")}),
        (HAS_GPU, {"devices": {GPU: 1}}),
        (OLD_CPU, {"cpu_models": ("Haswell", "Nehalem")}),
    ],
)
def test_a_vm_starts_where_what_it_needs_is_however_full_that_host_is(
    needs: VmNeeds, offered: dict[str, Any]
) -> None:
    for suits in ("h2", "h3"):
        desk = Desk()
        desk.runs("h1", "a", needs=needs)
        desk.runs(suits, "full", memory_mib=700)
        for host in ("h2", "h3"):
            desk.offers(host, **(offered if host == suits else {}))
        desk.dies("h1")
        assert desk.where() == {"a": suits}


def test_a_host_that_does_not_say_what_it_offers_is_tried() -> None:
    """An agent of an older version, and of the present one where libvirt does not tell."""
    for told in ({}, {"networks": None, "devices": None, "cpu_models": None}):
        desk = Desk()
        everything = VmNeeds(networks=("br0",), devices={GPU: 1}, cpu_model="Haswell")
        desk.runs("h1", "a", needs=everything)
        desk.offers("h2")
        if told:
            desk.offers("h3", **told)
        desk.dies("h1")
        assert desk.where() == {"a": "h3"}


def test_a_vm_of_which_nothing_is_known_may_start_anywhere() -> None:
    desk = Desk()
    desk.runs("h1", "a")
    for host in ("h2", "h3"):
        desk.offers(host)
    desk.dies("h1")
    assert set(desk.where()) == {"a"}


def test_what_an_earlier_boot_offered_is_not_held_against_or_for_this_one() -> None:
    desk = Desk(hosts=2)
    desk.runs("h1", "a", needs=BR0)
    desk.hear(row("h2", number=7))
    desk.dies("h1")
    assert desk.where() == {"a": "h2"}


def test_what_is_missing_is_told_to_whoever_brings_a_host() -> None:
    desk = Desk()
    desk.runs("h1", "a", needs=VmNeeds(networks=("br0", "br1"), devices={GPU: 1}))
    desk.runs("h1", "b", needs=BR0)
    for host in ("h2", "h3"):
        desk.offers(host, networks=("br1",))
    desk.dies("h1")
    [told] = [one for one in desk.told if isinstance(one, CapacityExhausted)]
    by_vm = {one.vm: one for one in told.waiting}
    assert by_vm["a"].reason == "no_host_suits: h2: no network br0; h3: no network br0"
    assert (by_vm["a"].networks, by_vm["a"].devices) == (("br0", "br1"), {GPU: 1})
    assert (by_vm["b"].networks, by_vm["b"].devices) == (("br0",), {})
    needed = _of_waiting(list(told.waiting))
    assert (needed.networks, needed.devices) == (("br0", "br1"), {GPU: 1})


def test_what_waits_starts_as_soon_as_a_host_has_what_it_needs() -> None:
    desk = Desk()
    desk.runs("h1", "a", needs=BR0)
    for host in ("h2", "h3"):
        desk.offers(host)
    desk.dies("h1")
    assert desk.where() == {}
    assert "failover.planned" in desk.offers("h3", networks=("br0", "lan"))
    assert desk.where() == {"a": "h3"}


def test_what_it_needs_is_remembered_when_its_host_shows_it_no_longer() -> None:
    """Also by whoever leads next: its host came back without it, and nobody else ever showed it."""
    desk = Desk()
    desk.runs("h1", "a", needs=BR0)
    for host in ("h2", "h3"):
        desk.offers(host)
    desk.dies("h1")
    records = stored(desk.decider.records(desk.state))
    later = Desk(hosts=0)
    later.hosts = ["h2", "h3"]
    later.take(later.decider.resume(later.state, records, later.now))
    for host, networks in (("h2", ("lan",)), ("h3", ("br0",))):
        later.vms[host] = []
        later.show(host)
        later.offers(host, networks=networks)
    later.after(1.0)
    assert later.where() == {"a": "h3"}


def test_a_device_is_one_vms_at_a_time() -> None:
    desk = Desk()
    desk.runs("h1", "a", needs=HAS_GPU)
    desk.runs("h2", "b", needs=HAS_GPU)
    desk.offers("h2", devices={GPU: 1})
    desk.offers("h3")
    desk.dies("h1")
    assert desk.where() == {}
    [told] = [one for one in desk.told if isinstance(one, CapacityExhausted)]
    assert told.waiting[0].reason.endswith(f"no 1 more {GPU}")


def test_a_device_that_was_promised_once_is_not_promised_again() -> None:
    desk = Desk()
    desk.runs("h1", "a", "b", needs=HAS_GPU)
    desk.offers("h2", devices={GPU: 1})
    desk.offers("h3")
    desk.dies("h1")
    assert desk.where() == {"a": "h2"}
    desk.leased("a", H2, LeaseState.STARTING, token=2)
    desk.runs("h3", "c", needs=BR0)
    desk.after(1.0)
    assert [plan for plan in desk.plans() if "b" in desk.where(plan)] == []
    desk.starts(desk.plans()[0].starts[0])
    desk.show("h2", vm("a", needs=HAS_GPU))
    desk.after(1.0)
    assert [plan for plan in desk.plans() if "b" in desk.where(plan)] == []


def test_a_pool_is_overcommitted_where_only_one_host_has_what_a_vm_needs() -> None:
    desk = test_proving.Desk()
    desk.host("h1", vm("a", needs=BR0), vm("b", needs=HAS_GPU))
    desk.host("h2")
    desk.hear(row("h1", networks=("br0",), devices={GPU: 1}), row("h2", networks=("br0",)))
    desk.looks()
    [told] = desk.looks(SETTLE_S)
    assert isinstance(told, CapacityOvercommitted)
    assert told.needs is not None
    assert (told.unplaced, told.needs.devices) == (("B",), {GPU: 1})
    assert GPU in told.worst_case_in_words
    assert desk.state.proved is not None
    tied = {one.vm: (one.reason, one.detail) for one in not_agile(Pool(desk.state.proved.snapshot))}
    assert tied == {"B": ("device", f"no 1 {GPU}")}
    desk.hear(row("h2", networks=("br0",), devices={GPU: 1}))
    desk.looks()
    assert [one.kind for one in desk.looks(SETTLE_S)] == ["capacity.restored"]


@pytest.mark.parametrize(
    ("needs", "offered", "reason"),
    [
        (BR0, {"networks": ("br0",)}, "network"),
        (HAS_GPU, {"devices": {GPU: 1}}, "device"),
        (OLD_CPU, {"cpu_models": ("Haswell",)}, "cpu_model"),
    ],
)
def test_what_ties_a_live_vm_to_its_host_has_its_code(
    needs: VmNeeds, offered: dict[str, Any], reason: str
) -> None:
    desk = test_proving.Desk()
    desk.host("h1", vm("a", needs=needs), vm("free"))
    desk.host("h2")
    desk.hear(row("h1", **offered), row("h2"))
    desk.looks()
    assert desk.state.proved is not None
    assert [(one.vm, one.reason) for one in not_agile(Pool(desk.state.proved.snapshot))] == [("A", reason)]


class Rooms(test_making_room.Desk):
    """`big` has no place on any host as they are, and has one on h2 once `web` has gone to h3, or to h4, which is smaller."""

    def __init__(self, needs: VmNeeds) -> None:
        super().__init__(hosts=4)
        self.runs("h1", "big", memory_mib=800, policy=policy(priority=Priority.HIGH))
        self.runs("h2", "web", memory_mib=400, needs=needs)
        self.runs("h3", "mail", memory_mib=450)
        self.runs("h4", "news", memory_mib=550)

    def web_goes(self) -> str | None:
        self.dies("h1")
        moves = [move for plan in self.plans() for move in plan.moves]
        assert {move.vm for move in moves} <= {"web"}
        return moves[0].to.host if moves else None


def test_a_vm_with_its_hosts_own_cpu_moves_only_to_the_same_cpu() -> None:
    for like in ("h3", "h4"):
        rooms = Rooms(OWN_CPU)
        for host in ("h2", "h3", "h4"):
            rooms.hear(row(host, cpu="A" if host in ("h2", like) else "B"))
        assert rooms.web_goes() == like


def test_a_vm_with_its_hosts_own_cpu_moves_anywhere_where_nobody_knows_better() -> None:
    rooms = Rooms(OWN_CPU)
    rooms.hear(row("h2", cpu="A", networks=None))
    rooms.hear(row("h3", cpu=""))
    rooms.hear(row("h4", cpu="B"))
    assert rooms.web_goes() == "h3"


def test_a_vm_with_its_hosts_own_cpu_starts_anew_on_any() -> None:
    desk = Desk(hosts=2)
    desk.runs("h1", "a", needs=OWN_CPU)
    desk.offers("h1", cpu="A")
    desk.offers("h2", cpu="B")
    desk.dies("h1")
    assert desk.where() == {"a": "h2"}


@pytest.mark.parametrize("needs", [BR0, OLD_CPU])
def test_room_is_made_only_by_moves_to_hosts_that_suit(needs: VmNeeds) -> None:
    for suits in ("h3", "h4"):
        rooms = Rooms(needs)
        for host in ("h2", "h3", "h4"):
            all_of_it: dict[str, Any] = {"networks": ("br0",), "cpu_models": ("Haswell",)}
            has = all_of_it if host in ("h2", suits) else {}
            rooms.hear(row(host, **has))
        assert rooms.web_goes() == suits


def test_a_look_at_capacity_is_taken_anew_when_offers_change_and_only_then() -> None:
    desk = test_proving.Desk()
    desk.decider = Placement(desk.decider.settings, policy=PoolPolicy(failures_to_tolerate=1))
    desk.host("h1", vm("a", needs=BR0))
    desk.host("h2")
    desk.hear(row("h1"), row("h2"))
    desk.looks()
    before = desk.state.proved
    assert before is not None
    desk.hear(row("h1"), row("h2"))
    desk.looks()
    assert desk.state.proved is not None
    assert desk.state.proved.found is before.found
    desk.hear(row("h2", networks=("br0",)))
    desk.looks()
    assert desk.state.proved.found.tolerates == 1
    assert before.found.tolerates == 0
