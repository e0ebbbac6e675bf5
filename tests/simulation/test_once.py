"""One failure, one recovery, one copy: stories S01 to S03, S16, S23 and S24 of docs/STORIES.md, in the simulator, where
every message can come fifty times, every replica can hold itself to lead, and a host can come back at any moment.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from libs.core.ports import UnavailableError
from libs.jetstream.lease import JetStreamLease
from libs.scenario.model import Scenario
from libs.sim import broker as sim_broker
from libs.sim import virt as sim_virt
from libs.sim.broker import Broker
from libs.sim.bus import SimBus
from libs.sim.hosts import Domain, SimHost
from libs.sim.machines import Machines
from libs.sim.power import SimDevice
from libs.sim.run import Result, run
from libs.sim.virt import SimHypervisor
from services.cli.simplane import PLANE
from tests.simulation.test_stories import SEED, played, really, told

pytestmark = [pytest.mark.fast, pytest.mark.long]
FIFTY = 50
ORDERS = ("host.failed", "host.fenced", "failover.planned")


class Calls:
    """What was called for in the world, counted by whom it was meant for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.off: Counter[str] = Counter()
        self.start: Counter[str] = Counter()
        off, start = SimDevice.off, SimHypervisor.start

        async def counted_off(device: SimDevice) -> tuple[bool, str]:
            self.off[device.name] += 1
            return await off(device)

        async def counted_start(host: SimHypervisor, definition: Any, token: int) -> None:
            self.start[definition.name] += 1
            await start(host, definition, token)

        monkeypatch.setattr(SimDevice, "off", counted_off)
        monkeypatch.setattr(SimHypervisor, "start", counted_start)


def tell_fifty_times(monkeypatch: pytest.MonkeyPatch, kinds: tuple[str, ...]) -> None:
    """Whoever consumes such a fact gets it again and again, however often it has acknowledged it."""
    store = Broker.store

    def stored(self: Broker, fact: Any, service: str, process: Any) -> None:
        before = len(self.facts)
        store(self, fact, service, process)
        if len(self.facts) == before or fact.kind not in kinds:
            return
        for consumer in self.consumers.values():
            if fact.kind in consumer.kinds:
                consumer.again.extend([before] * (FIFTY - 1))
                self.pump(consumer)

    monkeypatch.setattr(Broker, "store", stored)


def all_lead(monkeypatch: pytest.MonkeyPatch, role: str) -> None:
    """Every replica of this role holds itself to lead, from its first moment on."""
    held = JetStreamLease.held
    token: Callable[[JetStreamLease], int | None] = vars(JetStreamLease)["token"].fget

    def mine(lease: JetStreamLease) -> bool:
        return lease._role == role or held(lease)

    def numbered(lease: JetStreamLease) -> int | None:
        return 1 if lease._role == role else token(lease)

    monkeypatch.setattr(JetStreamLease, "held", mine)
    monkeypatch.setattr(JetStreamLease, "token", property(numbered))


def played_by_all(monkeypatch: pytest.MonkeyPatch, *roles: str, **parts: Any) -> Result:
    """As `played`, where all replicas of these roles hold themselves to lead. That who does not lead writes a verdict is
    what is broken on purpose; that it comes to nothing is what is asserted."""
    for role in roles:
        all_lead(monkeypatch, role)
    hosts = [{"name": name} for name in ("h1", "h2", "h3")]
    body = {"schema": "rekindle.scenario.v1", "name": "all lead", "hosts": hosts, "vms": VMS, **parts}
    result = run(Scenario.model_validate(body), SEED, PLANE, stop_at_first=False)
    others = [one for one in result.outcome.violations if not (one.rule == "8" and "leads" in one.detail)]
    assert not others, "\n".join([str(others), *result.log])
    return result


def once(result: Result, calls: Calls) -> None:
    """One incident, one off command, each VM started once, seen in the world and in the calls."""
    assert len(told(result, "host.failed")) == 1, result.log
    assert len(told(result, "host.fenced")) == 1
    assert calls.off == {"sim-h1-1": 1}
    assert calls.start == {"a": 1, "b": 1}
    assert {name: vm.starts for name, vm in result.outcome.vms.items()} == {"a": 2, "b": 2, "c": 1}
    assert result.outcome.double_running_s == 0


VMS = [{"name": "a", "host": "h1"}, {"name": "b", "host": "h1"}, {"name": "c", "host": "h2"}]
CRASH = {"at_s": 5, "do": "crash", "host": "h1", "how": "for_good"}
RECOVERED = [{"vm": name, "state": "running", "host_not": "h1", "by_s": 50} for name in ("a", "b")]


def test_s01_one_failure_told_fifty_times_by_three_detectors_and_an_operator_is_one_recovery(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = Calls(monkeypatch)
    tell_fifty_times(monkeypatch, (*ORDERS, "host.confirmed_failed"))
    words: list[str] = []
    publish = SimBus.publish

    async def published(self: SimBus, fact: Any) -> None:
        if fact.kind in ("host.failed", "host.confirmed_failed"):
            words.append(f"{fact.kind} {self.process.name.split('/')[0]}")
        await publish(self, fact)

    monkeypatch.setattr(SimBus, "publish", published)
    # it reads on, so that it takes an off command and four seconds: the operator's words fall into that
    says = [{"at_s": 5 + n / 4, "do": "confirm_failed", "host": "h1"} for n in range(8, 60)]
    result = played_by_all(
        monkeypatch,
        "detector",
        duration_s=60,
        management={"replicas": 3},
        steps=[CRASH, *says],
        expect=[*RECOVERED, {"never": "vm.start_uncertain"}],
    )
    assert "host.confirmed_failed operator" in words, "the operator's word never fell into the fencing"
    once(result, calls)


@pytest.mark.parametrize("role", ["detector", "executor"])
@pytest.mark.parametrize("at_s", [6.0, 6.6, 9.0, 10.0, 10.3, 10.6])
def test_s02_with_two_replicas_the_holder_of_the_role_dies_and_nothing_is_done_twice(
    role: str, at_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = Calls(monkeypatch)
    result = played(
        duration_s=90,
        management={"replicas": 2},
        vms=VMS,
        settings={"detection": {"quiet_after_start_s": 5}},
        steps=[
            CRASH,
            *({"at_s": at_s, "do": "kill_service", "service": role, "replica": n} for n in (0, 1)),
        ],
        expect=[{**one, "by_s": 80} for one in RECOVERED],
    )
    assert len(told(result, "host.failed")) == 1
    assert calls.start["a"] <= 2, "at most the one under way, asked for again under its key"
    assert {name: vm.starts for name, vm in result.outcome.vms.items()} == {"a": 2, "b": 2, "c": 1}
    assert calls.off == {"sim-h1-1": 1}


def test_s02_two_replicas_that_both_hold_themselves_to_lead_do_nothing_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    result = played_by_all(
        monkeypatch,
        "detector",
        "executor",
        duration_s=90,
        management={"replicas": 2},
        steps=[CRASH],
        expect=[{**one, "by_s": 80} for one in RECOVERED],
    )
    assert len(told(result, "host.failed")) == 1
    assert {name: vm.starts for name, vm in result.outcome.vms.items()} == {"a": 2, "b": 2, "c": 1}
    assert result.outcome.double_running_s == 0


def test_s03_told_again_while_it_is_being_recovered_it_is_recovered_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The time to acknowledge is far shorter than a fence or a start, and no acknowledgement comes through for 20 s."""
    calls = Calls(monkeypatch)
    monkeypatch.setattr(sim_broker, "ACK_WAIT_S", 0.3)
    monkeypatch.setattr(sim_virt, "QEMU_START_S", (3.0, 6.0))
    deliveries: Counter[str] = Counter()
    delivery = SimBus.delivery

    def counted(self: SimBus, broker: Broker, consumer: Any, index: int, number: int) -> Any:
        made = delivery(self, broker, consumer, index, number)
        deliveries[f"{consumer.durable} {made.fact.kind}"] += 1

        async def lost() -> None:
            if broker.loop.now > 40:
                await made.ack()
            else:
                raise UnavailableError("it does not come through")

        return type(made)(made.fact, lost, made.nak)

    monkeypatch.setattr(SimBus, "delivery", counted)
    result = played(duration_s=70, vms=VMS, steps=[CRASH], expect=[*RECOVERED, {"never": "storm.held"}])
    for what in ("fencer host.failed", "placement host.fenced", "executor failover.planned"):
        assert deliveries[what] > 10, deliveries
    once(result, calls)


@pytest.mark.parametrize("call", range(1, 16))
def test_s03_an_executor_that_dies_after_its_start_and_before_it_has_said_so_starts_nothing_twice(
    call: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed at each of its calls from the moment that QEMU begins: the start has happened, its fact is not acknowledged."""
    began: list[str] = []
    worlds: list[Any] = []
    init = sim_virt.Virt.__init__

    def made(self: sim_virt.Virt, *arguments: Any) -> None:
        init(self, *arguments)
        self.machines.on_change.append(strike)
        worlds.append(self)

    def strike(host: SimHost, domain: Domain, starts: bool) -> None:
        if starts and domain.token and not began:
            began.append(domain.spec.name)
            for bus in executors:
                if bus.process.alive:
                    bus.process.strike = call

    executors: list[SimBus] = []
    bus_init = SimBus.__init__

    def bus(self: SimBus, broker: Broker, process: Any, service: str) -> None:
        bus_init(self, broker, process, service)
        if service == "executor":
            executors.append(self)

    monkeypatch.setattr(sim_virt.Virt, "__init__", made)
    monkeypatch.setattr(SimBus, "__init__", bus)
    result = played(duration_s=60, vms=VMS, steps=[CRASH], expect=RECOVERED)
    assert began
    assert {name: vm.starts for name, vm in result.outcome.vms.items()} == {"a": 2, "b": 2, "c": 1}
    assert result.outcome.double_running_s == 0


AUTOSTART = [
    {"name": "db", "host": "h1", "autostart": True},
    {"name": "mail", "host": "h1"},
    {"name": "web", "host": "h2"},
]
SAVED = [
    # its memory lies saved on h1, and a person has started it on h2 since: what h1 resumes at boot is a second copy
    {"at_s": 3, "do": "save_vm", "vm": "mail"},
    {"at_s": 5, "do": "start_copy", "vm": "mail", "host": "h2"},
]


WITH_GATE = [{"name": "h1"}, {"name": "h2"}, {"name": "h3"}]
WITHOUT = [{"name": "h1", "gate": False}, {"name": "h2"}, {"name": "h3"}]
"""On h1 nothing stands before libvirt: what it starts by itself its agent has to stop."""


def never_on_h1_by_itself(result: Result, *vms: str) -> None:
    """By the world's own processes: not for a moment. That it would have, WITHOUT shows."""
    up = next(index for index, line in enumerate(result.log) if "(really)             h1 up" in line)
    joined = next(index for index, line in enumerate(result.log) if "host.joined" in line and " h1/0" in line)
    assert up < joined
    began = [line for line in really(result, " on h1 starts") if any(f" {vm} on" in line for vm in vms)]
    assert [line for line in began if result.log.index(line) < joined] == []


def test_s16_back_before_the_recovery_what_would_start_by_itself_is_held_back() -> None:
    """It reboots before anybody suspects it: its VM is planned as any that its host lost, and starts once."""
    result = played(
        duration_s=90,
        vms=AUTOSTART,
        pool=WITH_GATE,
        settings={"detection": {"suspect_after_s": 20}},
        steps=[*SAVED, {"at_s": 12, "do": "reboot", "host": "h1"}],
        expect=[
            {"vm": "db", "state": "running"},
            {"vm": "mail", "state": "running", "host": "h2"},
            {"never": "vm.stopped_by_gate"},
            {"never": "host.suspected"},
        ],
    )
    never_on_h1_by_itself(result, "db", "mail")
    assert result.outcome.vms["db"].starts == 2, "once at first, once by the plan"
    assert result.outcome.double_running_s == 0


def test_s16_back_before_the_recovery_with_autostart_and_a_saved_image() -> None:
    """It reboots before anybody suspects it: what it starts by itself is stopped first, and runs once in the end."""
    result = played(
        duration_s=90,
        vms=AUTOSTART,
        pool=WITHOUT,
        settings={"detection": {"suspect_after_s": 20}},
        steps=[*SAVED, {"at_s": 12, "do": "reboot", "host": "h1"}],
        expect=[
            {"vm": "db", "state": "running"},
            {"vm": "mail", "state": "running", "host": "h2"},
            {"event": "vm.stopped_by_gate", "subject": "db"},
            {"never": "host.suspected"},
        ],
    )
    assert result.outcome.double_running_s == 0


@pytest.mark.parametrize("pool", [WITH_GATE, WITHOUT], ids=["gate", "no gate"])
@pytest.mark.parametrize("back_s", [0.0, 0.5, 1.0, 2.0, 4.0, 8.0])
def test_s16_back_during_the_recovery_with_autostart_and_a_saved_image(
    back_s: float, pool: list[dict[str, Any]]
) -> None:
    """It is switched on while its VM is being started elsewhere, which takes its time."""
    result = played(
        duration_s=150,
        vms=AUTOSTART,
        pool=pool,
        steps=[
            *SAVED,
            {"at_s": 11, "do": "delay", "how": "libvirt", "percent": 100},
            {"at_s": 12, "do": "power_off", "host": "h1", "how": "for_good"},
            {"at_s": 13.5 + back_s, "do": "power_on", "host": "h1"},
            {"at_s": 60, "do": "heal"},
            # switched on in the midst of its fencing, it was switched off once more
            {"at_s": 100, "do": "power_on", "host": "h1"},
        ],
        expect=[
            {"vm": "db", "state": "running", "by_s": 140},
            {"vm": "mail", "state": "running", "host": "h2"},
            {"event": "host.joined", "subject": "h1"},
        ],
    )
    assert result.outcome.double_running_s == 0


@pytest.mark.parametrize("pool", [WITH_GATE, WITHOUT], ids=["gate", "no gate"])
def test_s16_back_after_the_recovery_with_autostart_and_a_saved_image(pool: list[dict[str, Any]]) -> None:
    result = played(
        duration_s=90,
        vms=AUTOSTART,
        pool=pool,
        steps=[
            *SAVED,
            {"at_s": 12, "do": "power_off", "host": "h1", "how": "for_good"},
            {"at_s": 40, "do": "power_on", "host": "h1"},
        ],
        expect=[
            {"vm": "db", "state": "running", "host_not": "h1"},
            {"vm": "mail", "state": "running", "host": "h2"},
            {"event": "host.joined", "subject": "h1"},
        ],
    )
    assert result.outcome.double_running_s == 0


def test_s16_where_the_bus_is_dark_what_is_protected_waits_and_nothing_else() -> None:
    """The bus itself may run in such a VM, and runs on once it answers: that an earlier boot of its host has the lease is
    nobody's business. With it back, what is protected and has a lease is placement's, and libvirt has its flags again."""
    result = played(
        duration_s=120,
        vms=[*AUTOSTART, {"name": "bus", "host": "h1", "autostart": True, "protection": "none"}],
        pool=WITH_GATE,
        steps=[
            *({"at_s": 5, "do": "kill_bus", "node": node} for node in range(3)),
            {"at_s": 6, "do": "reboot", "host": "h1", "how": "fast"},
            *({"at_s": 40, "do": "start_bus", "node": node} for node in range(3)),
            # what was held starts by itself once more: on a second boot, it is held by its lease
            {"at_s": 80, "do": "reboot", "host": "h1", "how": "fast"},
        ],
        expect=[{"vm": name, "state": "running"} for name in ("db", "mail", "web", "bus")],
    )
    assert not really(result, "bus on h1 ends (on_purpose)"), "nobody stops it"
    (began,) = [line for line in really(result, "bus on h1 starts") if float(line.split()[0]) < 40]
    assert 6 + 10 < float(began.split()[0]) < 6 + 14, "after the ten seconds that the gate asks"
    assert not [line for line in really(result, "db on h1 starts") if float(line.split()[0]) < 40]
    assert result.outcome.double_running_s == 0


@pytest.mark.parametrize("count", range(1, 9))
def test_s16_an_agent_that_is_killed_as_it_gives_back_leaves_it_to_the_next(count: int) -> None:
    """At each of its first calls to the world. That what is held is given back is a rule of every world."""
    result = played(
        duration_s=60,
        vms=AUTOSTART,
        pool=WITH_GATE,
        steps=[
            {"at_s": 5, "do": "reboot", "host": "h1", "how": "fast"},
            {"at_s": 6.4, "do": "kill_agent", "host": "h1", "count": count},
        ],
        expect=[{"vm": "db", "state": "running"}, {"event": "host.joined", "subject": "h1"}],
    )
    never_on_h1_by_itself(result, "db")
    assert result.outcome.double_running_s == 0


@pytest.mark.parametrize("do", ["reboot", "power_off"])
def test_s16_where_no_lock_keeps_it_out_the_gate_before_libvirt_does(
    do: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both run elsewhere when it comes back, and neither begins on it, saved image or not."""
    monkeypatch.setattr(Machines, "image_locks", False)
    result = played(
        duration_s=120,
        vms=AUTOSTART,
        pool=WITH_GATE,
        steps=[
            *SAVED,
            {"at_s": 8, "do": "migrate_vm", "vm": "db", "host": "h3", "seconds": 1},
            {"at_s": 20, "do": do, "host": "h1"},
            {"at_s": 30, "do": "power_on", "host": "h1"},
        ],
        expect=[
            {"vm": "db", "state": "running", "host": "h3"},
            {"vm": "mail", "state": "running", "host": "h2"},
            {"never": "vm.stopped_by_gate"},
            {"event": "host.joined", "subject": "h1"},
            {"never": "vm.runs_twice"},
        ],
    )
    assert result.outcome.double_running_s == 0
    assert not really(result, "db on h1 starts")
    assert not really(result, "mail on h1 starts")


@pytest.mark.parametrize("do", ["reboot", "power_off"])
def test_s16_where_no_lock_keeps_it_out_the_gate_stops_what_was_saved_and_what_starts_by_itself(
    do: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both run elsewhere when it comes back, and both begin again on it: until its agent has come through its gate."""
    monkeypatch.setattr(Machines, "image_locks", False)
    result = played(
        duration_s=120,
        vms=AUTOSTART,
        pool=WITHOUT,
        steps=[
            *SAVED,
            {"at_s": 8, "do": "migrate_vm", "vm": "db", "host": "h3", "seconds": 1},
            {"at_s": 20, "do": do, "host": "h1"},
            {"at_s": 30, "do": "power_on", "host": "h1"},
        ],
        expect=[
            {"vm": "db", "state": "running", "host": "h3"},
            {"vm": "mail", "state": "running", "host": "h2"},
            {"event": "vm.stopped_by_gate", "subject": "db"},
            {"event": "vm.stopped_by_gate", "subject": "mail"},
            {"event": "host.joined", "subject": "h1"},
            {"never": "vm.runs_twice"},
        ],
    )
    came = [line for line in result.log if " on h1 starts" in line and "(really)" in line]
    gone = [line for line in really(result, " on h1 ends (on_purpose)")]
    assert len(came) == len(gone) == 2
    joined = next(index for index, line in enumerate(result.log) if "host.joined" in line and " h1/0" in line)
    assert max(result.log.index(line) for line in gone) < joined


def test_s23_done_is_said_once_each_vm_was_seen_running_and_none_stays_with_the_dead() -> None:
    """The first starts are refused and their answers lost; that no VM is left with a fenced host is a rule of every world."""
    result = played(
        duration_s=150,
        vms=VMS,
        steps=[
            {"at_s": 4, "do": "loss", "how": "libvirt", "percent": 60},
            CRASH,
            {"at_s": 40, "do": "heal"},
        ],
        expect=[{**one, "by_s": 140} for one in RECOVERED],
    )
    done = next(index for index, line in enumerate(result.log) if " failover.completed " in line)
    last = [index for index, line in enumerate(result.log) if "(really)" in line and line.endswith(" starts")]
    assert max(last) < done
    for name in ("a", "b"):
        assert len(told(result, "vm.restarted", name)) == 1


def test_s24_the_first_target_fails_the_second_is_full_the_third_takes_it() -> None:
    result = played(
        duration_s=90,
        pool=[{"name": name} for name in ("h1", "h2", "h3", "h4")],
        vms=[{"name": "a", "host": "h1"}],
        steps=[
            {"at_s": 4, "do": "fail_start", "vm": "a", "host": "h2", "count": 100},
            {"at_s": 4, "do": "fail_start", "vm": "a", "host": "h3", "count": 100},
            {"at_s": 5, "do": "power_off", "host": "h1", "how": "for_good"},
        ],
        expect=[{"vm": "a", "state": "running", "host": "h4", "by_s": 30}],
    )
    assert len(told(result, "vm.restart_failed", "a")) <= 2


def test_s24_without_any_target_it_is_queued_told_once_and_started_when_a_host_joins() -> None:
    small = {"memory_mib": 1024, "cpus": 4}
    result = played(
        duration_s=150,
        pool=[{"name": "h1", **small}, {"name": "h2", **small}],
        vms=[{"name": "a", "host": "h1", "memory_mib": 800}, {"name": "b", "host": "h2", "memory_mib": 800}],
        steps=[
            {"at_s": 5, "do": "power_off", "host": "h1", "how": "for_good"},
            {"at_s": 60, "do": "add_host", "host": {"name": "h3", **small}},
        ],
        expect=[
            {"vm": "a", "state": "running", "host": "h3", "by_s": 120},
            {"event": "capacity.exhausted"},
            {"event": "capacity.relieved"},
        ],
    )
    assert len(told(result, "capacity.exhausted")) == 1
    assert "a" in told(result, "capacity.exhausted")[0]
    joined = next(index for index, line in enumerate(result.log) if "host.joined" in line and "h3" in line)
    assert not [
        line for line in really(result, "a on ") if " starts" in line and result.log.index(line) < joined
    ]
