"""Starts that wait for a port or a page of another VM: it is probed until it answers or the longest wait is over, and whoever
waits for nobody is not held up by that."""

from __future__ import annotations

import asyncio
import xml.etree.ElementTree as ET
from typing import Any

import pytest

from libs.core.decider import Expired
from libs.core.ports import GuestProbes, UnavailableError
from libs.events.failovers import AwaitedVm
from libs.events.signals import LeaseWritten
from libs.model import Health, LeaseState, VmPolicy
from libs.readiness import Target, target_of
from libs.virt.definition import policy_of, with_policy
from services.executor.act import Hands
from services.executor.orders import Attempted, Probed, ProbeGuest, Result, StartVm
from services.executor.readiness import AT_ONCE, EVERY_S, PROBE_S
from tests.unit import placing, test_start_order
from tests.unit.made import boot, facts, lease, policy, requests, seen, vm
from tests.unit.test_executor import Host, Hosts, Lab
from tests.unit.test_start_order import order

pytestmark = pytest.mark.fast
H1, H2 = boot("h1"), boot("h2")


def awaited(uuid: str, probe: str = "tcp:5432", wait_s: float = 60.0, **more: Any) -> AwaitedVm:
    return AwaitedVm(
        vm=uuid, name=uuid.upper(), key=f"i/{uuid}/1", token=1, probe=probe, wait_s=wait_s, **more
    )


class Desk(test_start_order.Desk):
    """Its clock is moved by hand; what it was asked to probe is kept."""

    def __init__(self) -> None:
        super().__init__()
        self.probes: list[ProbeGuest] = []

    def hear(self, one: Any, now: float) -> None:
        step = self.decider.step(self.state, one, now)
        self.state = step.state
        self.told += facts(step.effects)
        self.begun += [one.start.vm for one in requests(step.effects) if isinstance(one, StartVm)]
        self.probes += [one for one in requests(step.effects) if isinstance(one, ProbeGuest)]

    def answers(self, now: float, *, ready: bool, reason: str = "", of: int = -1) -> None:
        self.hear(Probed(key=self.probes[of].key, ready=ready, reason=reason), now)

    def waits_until(self) -> float | None:
        return self.decider.wake_at(self.state)


def test_a_start_waits_until_the_port_of_another_vm_answers() -> None:
    desk = Desk()
    desk.plan(order("db"), order("web", awaited("db")))
    assert (desk.begun, desk.probes) == (["db"], []), "nobody is asked before he runs"
    desk.runs("db", 1.0)
    [asked] = desk.probes
    assert (asked.vm, asked.at, asked.probe, asked.deadline_s) == ("db", H2, "tcp:5432", PROBE_S)
    desk.answers(1.5, ready=False, reason="10.0.0.5: connection refused")
    assert (desk.begun, len(desk.probes)) == (["db"], 1)
    assert desk.waits_until() == 1.5 + EVERY_S
    desk.hear(None, 1.5 + EVERY_S)
    assert len({one.key for one in desk.probes}) == 2
    desk.answers(3.0, ready=True)
    assert desk.begun == ["db", "web"]
    assert desk.waits_until() is None
    assert [one.kind for one in desk.told if one.kind == "vm.waited_in_vain"] == []


def test_a_probe_that_brings_nothing_in_its_time_is_asked_again() -> None:
    desk = Desk()
    desk.plan(order("db"), order("web", awaited("db")))
    desk.runs("db", 1.0)
    desk.hear(Expired(key=desk.probes[0].key, request="probe_guest", reason="libvirt is away"), 10.0)
    desk.hear(None, 10.0 + EVERY_S)
    assert len(desk.probes) == 2
    desk.answers(12.0, ready=True)
    assert desk.begun == ["db", "web"]


def test_after_the_longest_wait_it_starts_all_the_same_and_says_what_the_probe_brought() -> None:
    desk = Desk()
    desk.plan(order("db"), order("web", awaited("db", wait_s=20.0)))
    desk.runs("db", 1.0)
    desk.answers(2.0, ready=False, reason="10.0.0.5: connection refused")
    desk.hear(None, 3.0)
    desk.hear(None, 20.0)
    assert desk.begun == ["db", "web"]
    [told] = [one for one in desk.told if one.kind == "vm.waited_in_vain"]
    assert (told.awaited, told.waited_s) == (("DB",), 20.0)
    assert told.why == "DB tcp:5432: 10.0.0.5: connection refused"
    asked = len(desk.probes)
    desk.answers(21.0, ready=True)
    assert (desk.begun, len(desk.probes)) == (["db", "web"], asked), "what comes late is no news"
    assert desk.waits_until() is None


def test_one_probe_serves_all_who_wait_for_it_and_another_port_is_another() -> None:
    desk = Desk()
    desk.plan(
        order("db"),
        order("web", awaited("db")),
        order("app", awaited("db")),
        order("job", awaited("db", "http:80/")),
    )
    desk.runs("db", 1.0)
    assert sorted(one.probe for one in desk.probes) == ["http:80/", "tcp:5432"]
    desk.answers(2.0, ready=True, of=[one.probe for one in desk.probes].index("tcp:5432"))
    assert sorted(desk.begun) == ["app", "db", "web"]


def test_an_answer_holds_while_others_are_still_waited_for() -> None:
    desk = Desk()
    desk.plan(order("db"), order("cache"), order("web", awaited("db"), awaited("cache", "tcp:6379")))
    desk.runs("db", 1.0)
    desk.answers(2.0, ready=True)
    for now in range(3, 40):
        desk.hear(None, float(now))
    assert [one.vm for one in desk.probes] == ["db"]
    desk.runs("cache", 40.0)
    desk.answers(41.0, ready=True)
    assert desk.begun[-1] == "web"


def test_an_answer_of_an_earlier_run_is_none_of_the_next() -> None:
    desk = Desk()
    desk.plan(order("db"), order("cache"), order("web", awaited("db"), awaited("cache", "tcp:6379")))
    desk.runs("db", 1.0)
    desk.answers(2.0, ready=True)
    desk.hear(LeaseWritten(lease=lease("db", H1, LeaseState.STARTING, token=3, seq=9)), 3.0)
    desk.hear(LeaseWritten(lease=lease("db", H1, LeaseState.RUNNING, token=3, seq=10)), 4.0)
    assert [(one.vm, one.at) for one in desk.probes] == [("db", H2), ("db", H1)]
    desk.runs("cache", 5.0)
    desk.answers(6.0, ready=True)
    assert "web" not in desk.begun
    desk.answers(7.0, ready=True, of=1)
    assert desk.begun[-1] == "web"


def test_probes_that_hang_are_bounded_and_hold_up_no_start_that_waits_for_nobody() -> None:
    desk = Desk()
    names = [f"db{number:02}" for number in range(AT_ONCE + 4)]
    desk.plan(*(order(name) for name in names), *(order(f"web-{name}", awaited(name)) for name in names))
    for name in names:
        if name not in desk.begun:
            desk.hear(None, 0.5)
        desk.runs(name, 1.0)
    assert len(desk.probes) == AT_ONCE
    assert (desk.waits_until() or 0.0) >= 60.0, "it does not turn in circles meanwhile"
    desk.plan(order("alone"), now=2.0)
    assert desk.begun[-1] == "alone"
    first = desk.probes[0].key
    desk.hear(Expired(key=first, request="probe_guest", reason="no end"), 16.0)
    assert len(desk.probes) == AT_ONCE + 1
    assert desk.probes[-1].vm in names[AT_ONCE:], "the next one's turn, not the same one's again"


def test_whoever_leads_next_asks_anew() -> None:
    desk = Desk()
    desk.plan(order("db"), order("web", awaited("db")))
    desk.runs("db", 1.0)
    step = desk.decider.resume(desk.state, desk.decider.records(desk.state), 50.0)
    asked = [one for one in requests(step.effects) if isinstance(one, ProbeGuest)]
    assert [one.vm for one in asked] == ["db"]


# -- what policies say


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("tcp:5432", Target("", 5432)),
        ("tcp:10.1.0.7:5432", Target("10.1.0.7", 5432)),
        ("tcp:[fd00::7]:22", Target("fd00::7", 22)),
        ("http:8080", Target("", 8080, "/")),
        ("http:8080/health?deep=1", Target("", 8080, "/health?deep=1")),
        ("http:db.lan:80/x", Target("db.lan", 80, "/x")),
        ("http:[fd00::7]:65535/", Target("fd00::7", 65535, "/")),
        *(
            (text, None)
            for text in ("", "running", "agent", "tcp:0", "tcp:65536", "tcp:", "tcp:1/x", "udp:53")
        ),
        *(
            (text, None)
            for text in ("http:/x", "http:80x", "tcp://10.0.0.1:80", "http:80/a b", "tcp:fd00::7:22")
        ),
    ],
)
def test_what_a_probe_is(text: str, target: Target | None) -> None:
    assert target_of(text) == target
    if target is not None:
        policy = VmPolicy(ready=text)
        assert policy_of(ET.fromstring(with_policy("<domain/>", policy)), VmPolicy()) == policy
    elif text:
        with pytest.raises(ValueError, match="ready"):
            VmPolicy(ready=text)


def test_the_pool_may_say_what_makes_its_vms_ready_and_a_vm_otherwise() -> None:
    pool = VmPolicy(ready="tcp:22")
    assert policy_of(ET.fromstring("<domain/>"), pool).ready == "tcp:22"
    own = with_policy("<domain/>", VmPolicy(ready="http:80/"))
    assert policy_of(ET.fromstring(own), pool).ready == "http:80/"


def test_whoever_comes_after_a_vm_waits_for_what_that_ones_policy_names() -> None:
    desk = placing.Desk()
    desk.show(
        "h1",
        vm("db", policy=policy(ready="tcp:5432")),
        vm("cache"),
        vm("web", policy=policy(after="DB agent 45; CACHE; gone", ready="http:80/")),
    )
    for uuid in ("db", "cache", "web"):
        desk.leased(uuid, boot("h1"))
    desk.dies("h1")
    by_vm = {one.vm: one for one in desk.plans()[-1].starts}
    found = [(one.vm, one.ready, one.probe, one.wait_s) for one in by_vm["web"].after]
    assert found == [("db", "agent", "tcp:5432", 45.0), ("cache", "running", "", 300.0)]
    assert (by_vm["db"].after, by_vm["cache"].after) == ((), ())


def test_where_an_agent_is_waited_for_too_both_must_answer() -> None:
    desk = Desk()
    desk.plan(order("db"), order("web", awaited("db", ready="agent")))
    desk.runs("db", 1.0)
    desk.answers(2.0, ready=True)
    assert desk.begun == ["db"]
    desk.hear(seen(H2, vm("db", token=2, agent=True, health=Health.OK)), 3.0)
    assert desk.begun == ["db", "web"]


# -- the hands


class Dialled:
    """Guests that answer at these addresses only."""

    def __init__(self, *well: str) -> None:
        self.well, self.asked = well, list[tuple[str, Target]]()

    async def ask(self, target: Target, address: str, timeout_s: float) -> tuple[bool, str]:
        self.asked.append((address, target))
        return (True, "it takes connections") if address in self.well else (False, "connection refused")


def probed(host: Host, probe: str, probes: GuestProbes | None) -> Probed:
    lab = Lab(H2)
    lab.hosts[H2] = host
    hands = Hands(lab.store, lab.store, Hosts({H2: host}), lab.store, lab.hands.clock, probes=probes)
    request = ProbeGuest(key="p", deadline_s=1.0, vm="db", at=H2, probe=probe)
    found = asyncio.run(hands.perform(request))
    assert isinstance(found, Probed)
    return found


def test_a_guest_is_asked_at_all_its_addresses_and_one_that_answers_will_do() -> None:
    dialled = Dialled("10.0.0.6")
    found = probed(Host(H2, found_at=("10.0.0.5", "10.0.0.6")), "tcp:5432", dialled)
    assert (found.ready, found.reason) == (True, "10.0.0.6: it takes connections")
    assert dialled.asked == [("10.0.0.5", Target("", 5432)), ("10.0.0.6", Target("", 5432))]
    found = probed(Host(H2, found_at=("10.0.0.5",)), "tcp:5432", dialled)
    assert (found.ready, found.reason) == (False, "10.0.0.5: connection refused")


def test_an_address_that_the_policy_names_is_asked_though_its_host_is_not_heard() -> None:
    dialled = Dialled("10.9.9.9")
    assert probed(Host(H2, gone=True), "http:10.9.9.9:80/x", dialled).ready
    assert dialled.asked == [("10.9.9.9", Target("10.9.9.9", 80, "/x"))]


def test_a_guest_whose_address_nobody_knows_is_not_ready_and_an_unheard_host_says_nothing() -> None:
    found = probed(Host(H2), "tcp:5432", Dialled())
    assert (found.ready, found.reason) == (False, "nobody on h2 knows its guest's address")
    assert not probed(Host(H2, found_at=("10.0.0.5",)), "tcp:5432", None).ready
    with pytest.raises(UnavailableError):
        probed(Host(H2, gone=True), "tcp:5432", Dialled())


def test_a_lease_that_is_not_running_is_not_probed() -> None:
    desk = Desk()
    desk.plan(order("db"), order("web", awaited("db")))
    desk.hear(seen(H2, vm("db")), 1.0)
    assert desk.probes == []
    start = desk.state.records["db"].start
    desk.hear(Attempted(key=f"start/{start.key}/1", start=start, result=Result.NOT_STARTED), 2.0)
    assert desk.probes == []
