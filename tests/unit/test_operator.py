"""When an operator's word may be said: against what the services have stored, and what is said of a refusal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from libs import operator
from libs.config.settings import Settings
from libs.config.yamlfile import BadInputError
from libs.core.clock import SystemClock
from libs.core.ports import Bus, Row, Store, UnavailableError
from libs.events.drains import StayingVm
from libs.events.words import (
    HostConfirmedFailed,
    HostMaintenanceEntered,
    HostMaintenanceExited,
    HostRemoved,
)
from libs.model import Inventory, LeaseState, Protection, RunLease, VmState
from libs.operator import Operator, RefusedError, Verdict
from libs.poolview import PoolView
from services.cli import tables
from services.detector.state import STORM, HostRecord, StormRecord
from services.placement.state import Drain, HostWords, Item, Phase, PlacementRecord
from services.placement.state import Incident as OpenIncident
from tests.unit.made import boot, inventory, lease, policy, vm

pytestmark = pytest.mark.fast
H1, H2 = boot("h1"), boot("h2")


@dataclass
class Pool:
    """What lies in the buckets; `hears` is what the services make of a fact at once."""

    records: dict[str, Any] = field(default_factory=dict)
    words: dict[str, PlacementRecord] = field(default_factory=dict)
    inventories: dict[str, Inventory] = field(default_factory=dict)
    leases: dict[str, RunLease] = field(default_factory=dict)
    told: list[Any] = field(default_factory=list)
    hears: Callable[[Any], None] | None = None

    def rows(self, bucket: str, prefix: str) -> dict[str, str]:
        if bucket == "state":
            records = {f"detector.{name}": one for name, one in self.records.items()}
            more = {f"placement.{name}": one for name, one in self.words.items()}
            both: dict[str, Any] = {**records, **more}
            return {
                key: f'{{"format": 1, "record": {one.model_dump_json()}, "owed": []}}'
                for key, one in both.items()
                if key.startswith(prefix)
            }
        known: dict[str, dict[str, Any]] = {"inventory": self.inventories, "leases": self.leases}
        rows = known.get(bucket, {})
        return {key: one.model_dump_json() for key, one in rows.items()}

    def store(self, bucket: str) -> Store:
        pool = self

        class Reading:
            async def scan(self, prefix: str) -> list[Row]:
                return [Row(key, text.encode(), 1) for key, text in pool.rows(bucket, prefix).items()]

        return cast(Store, Reading())

    async def publish(self, fact: Any) -> None:
        self.told.append(fact)
        if self.hears is not None:
            self.hears(fact)


def at_work(pool: Pool) -> Operator:
    hosts = [{"name": name, "uri": "test:///default"} for name in ("h1", "h2", "h3")]
    view = PoolView(Settings.model_validate({"hosts": hosts}), pool.store)
    return Operator(view, cast(Bus, pool), SystemClock(), "ann@desk")


def guarded(*, memory_mib: int = 2000) -> Pool:
    """Three healthy hosts with one VM each; the services take up whatever is said at once. With 2000 MiB a host any one
    of them may be lost, and none more."""
    pool = Pool()
    for name in ("h1", "h2", "h3"):
        at = boot(name)
        pool.records[name] = HostRecord.model_validate(
            {"host": name, "state": "healthy", "at": at, "epoch": 0}
        )
        pool.inventories[name] = inventory(at, vm(f"on-{name}", memory_mib=900), memory_mib=memory_mib)

    def hears(fact: Any) -> None:
        if isinstance(fact, HostMaintenanceEntered):
            words = HostWords(number=fact.number, maintenance=True)
            pool.words[f"host.{fact.host}"] = PlacementRecord(words=words)

    pool.hears = hears
    return pool


async def test_a_host_may_go_into_maintenance_while_the_pool_takes_a_failure_all_the_same() -> None:
    pool = guarded()
    await at_work(pool).enter_maintenance("h1")
    assert [(one.kind, one.override) for one in pool.told] == [("host.maintenance_entered", "")]


async def test_maintenance_that_leaves_too_little_room_is_refused_by_name_and_nothing_is_said() -> None:
    pool = guarded()
    await at_work(pool).enter_maintenance("h1")
    with pytest.raises(RefusedError, match=r"if h[123] fails.*--override"):
        await at_work(pool).enter_maintenance("h2")
    assert len(pool.told) == 1


async def test_an_override_says_it_all_the_same_and_its_reason_is_recorded() -> None:
    pool = guarded()
    await at_work(pool).enter_maintenance("h1")
    await at_work(pool).enter_maintenance("h2", override="its fan is on fire")
    assert pool.told[-1].override == "its fan is on fire"


async def test_a_pool_that_is_overcommitted_already_is_never_blocked() -> None:
    pool = guarded(memory_mib=1000)
    await at_work(pool).enter_maintenance("h1")
    await at_work(pool).enter_maintenance("h2")
    assert len(pool.told) == 2


def known(state: str, **more: Any) -> HostRecord:
    return HostRecord.model_validate({"host": "h1", "state": state, "at": H1, "epoch": 1, **more})


@pytest.fixture
def failed() -> Pool:
    """h1 is held failed; the fencer takes a word up at once."""
    pool = Pool(records={"h1": known("failed", incident="h1-1")})
    free = vm("free", policy=policy(protection=Protection.NONE))
    pool.inventories["h1"] = inventory(H1, vm("a"), vm("b", VmState.STOPPED), free)

    def hears(fact: Any) -> None:
        pool.records["h1"] = known("fenced", incident="h1-1")

    pool.hears = hears
    return pool


async def test_a_word_names_the_boot_the_incident_and_who_said_it(failed: Pool) -> None:
    verdict = await at_work(failed).verdict("h1")
    assert verdict == Verdict(H1, "h1-1", 1, ("A",)), "what ran there and is started elsewhere, by name"
    await at_work(failed).confirm_failed(verdict)
    (fact,) = failed.told
    assert isinstance(fact, HostConfirmedFailed)
    assert (fact.at, fact.incident, fact.epoch, fact.by) == (H1, "h1-1", 1, "ann@desk")
    assert fact.said_at


@pytest.mark.parametrize("state", ["healthy", "suspect", "agent_down", "fenced", "unknown"])
async def test_a_host_without_an_open_verdict_cannot_be_confirmed(state: str) -> None:
    pool = Pool(records={"h1": known(state)})
    with pytest.raises(RefusedError, match=f"h1 is held to be {state}, not failed"):
        await at_work(pool).verdict("h1")


async def test_a_host_that_spoke_or_failed_again_while_the_operator_typed_is_not_confirmed(
    failed: Pool,
) -> None:
    verdict = await at_work(failed).verdict("h1")
    failed.records["h1"] = known("failed", incident="h1-2", epoch=2)
    with pytest.raises(RefusedError, match="failed again since"):
        await at_work(failed).confirm_failed(verdict)
    failed.records["h1"] = known("healthy")
    with pytest.raises(RefusedError, match="held to be healthy"):
        await at_work(failed).confirm_failed(verdict)
    assert failed.told == []


@pytest.mark.long
async def test_a_word_that_nobody_takes_up_is_said_to_be_so(
    failed: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operator, "SEEN_S", 0.05)
    monkeypatch.setattr(operator, "LOOK_S", 0.01)
    failed.hears = None
    with pytest.raises(UnavailableError, match="it is said, but the fencer"):
        await at_work(failed).confirm_failed(await at_work(failed).verdict("h1"))
    assert len(failed.told) == 1


async def test_a_host_that_nobody_knows_is_refused() -> None:
    for act in (Operator.verdict, Operator.remove, Operator.enter_maintenance):
        with pytest.raises(RefusedError, match="h1 was never heard"):
            await act(at_work(Pool()), "h1")
        with pytest.raises(BadInputError, match="no host is called h9"):
            await act(at_work(Pool()), "h9")


# -- storms


def stormy(*silent: str, **more: Any) -> Pool:
    """A storm of these hosts is held; the detector takes a word up at once."""
    pool = Pool()
    for host in ("h1", "h2", "h3"):
        state = "suspect" if host in silent else "healthy"
        pool.records[host] = HostRecord.model_validate({"host": host, "state": state, "at": boot(host)})
    pool.records[STORM] = StormRecord(number=7, held=True, suspects=silent, **more)

    def hears(fact: Any) -> None:
        update = {"order": fact.order, "released": fact.suspects}
        pool.records[STORM] = pool.records[STORM].model_copy(update=update)

    pool.hears = hears
    return pool


async def test_a_release_names_the_storm_and_the_suspects_that_were_shown() -> None:
    pool = stormy("h1", "h2")
    seen = await at_work(pool).storm()
    assert seen.suspects == ("h1", "h2")
    await at_work(pool).release_storm(seen)
    (fact,) = pool.told
    assert (fact.number, fact.order, fact.suspects, fact.by) == (7, 1, ("h1", "h2"), "ann@desk")
    assert await at_work(pool).view.storm() == {
        "number": 7, "order": 1, "suspects": ["h1", "h2"], "released": ["h1", "h2"],
    }  # fmt: skip
    with pytest.raises(RefusedError, match="released already: h1, h2"):
        await at_work(pool).storm()


@pytest.mark.parametrize("held", [True, False])
async def test_without_a_storm_there_is_nothing_to_release(held: bool) -> None:
    pool = stormy("h1", "h2") if not held else Pool()
    if not held:
        pool.records[STORM] = StormRecord(number=7, held=False, suspects=())
    with pytest.raises(RefusedError, match="no storm is held"):
        await at_work(pool).storm()


async def test_suspects_that_changed_since_the_operator_looked_must_be_looked_at_again() -> None:
    pool = stormy("h1", "h2")
    seen = await at_work(pool).storm()
    pool.records["h3"] = HostRecord.model_validate({"host": "h3", "state": "suspect", "at": boot("h3")})
    with pytest.raises(RefusedError, match="changed since you looked; they are now h1, h2, h3"):
        await at_work(pool).release_storm(seen)
    pool.records["h3"] = HostRecord.model_validate({"host": "h3", "state": "healthy", "at": boot("h3")})
    pool.records["h2"] = pool.records["h3"].model_copy(update={"host": "h2"})
    with pytest.raises(RefusedError, match="they are now h1: look again"):
        await at_work(pool).release_storm(seen)
    assert pool.told == []


# -- quarantine


async def test_a_host_is_readmitted_by_the_number_of_its_quarantine() -> None:
    pool = Pool(records={"h1": known("healthy", quarantine=4)})

    def hears(fact: Any) -> None:
        pool.records["h1"] = known("healthy")

    pool.hears = hears
    assert [row["quarantined"] for row in await at_work(pool).view.hosts()] == [True, False, False]
    await at_work(pool).readmit("h1")
    (fact,) = pool.told
    assert (fact.kind, fact.host, fact.number, fact.by) == ("host.readmit_ordered", "h1", 4, "ann@desk")
    with pytest.raises(RefusedError, match="h1 is not in quarantine"):
        await at_work(pool).readmit("h1")


# -- maintenance and removal


def pool_of(*vms: Any, state: str = "healthy") -> Pool:
    """h1 in this state with these VMs; placement and detector take words up at once."""
    pool = Pool(records={"h1": known(state)}, inventories={"h1": inventory(H1, *vms)})

    def hears(fact: Any) -> None:
        if isinstance(fact, HostRemoved):
            pool.records["h1"] = HostRecord(host="h1", epoch=2, removed=fact.agent)
        else:
            entered = isinstance(fact, HostMaintenanceEntered)
            drains = isinstance(fact, HostMaintenanceEntered) and fact.drain
            words = HostWords(number=fact.number, maintenance=entered, emptied=drains)
            pool.words["host.h1"] = PlacementRecord(words=words)

    pool.hears = hears
    return pool


def kinds(pool: Pool) -> list[str]:
    return [fact.kind for fact in pool.told]


async def test_words_on_maintenance_are_numbered_and_never_said_twice() -> None:
    pool = pool_of()
    person = at_work(pool)
    with pytest.raises(RefusedError, match="h1 is not in maintenance"):
        await person.exit_maintenance("h1")
    await person.enter_maintenance("h1")
    with pytest.raises(RefusedError, match="h1 is already in maintenance"):
        await person.enter_maintenance("h1")
    await person.exit_maintenance("h1")
    await person.enter_maintenance("h1")
    assert [(type(fact), fact.number) for fact in pool.told] == [
        (HostMaintenanceEntered, 1),
        (HostMaintenanceExited, 2),
        (HostMaintenanceEntered, 3),
    ]


async def test_a_host_in_maintenance_may_be_drained_later_and_that_is_said_once() -> None:
    pool = pool_of(vm("a"))
    person = at_work(pool)
    await person.enter_maintenance("h1")
    await person.enter_maintenance("h1", drain=True)
    with pytest.raises(RefusedError, match="h1 is already in maintenance"):
        await person.enter_maintenance("h1", drain=True)
    assert [(fact.number, fact.drain) for fact in pool.told] == [(1, False), (2, True)]


async def test_what_stays_on_a_drained_host_is_shown_with_its_reason_until_that_boot_is_over() -> None:
    pool = pool_of(vm("a"), vm("b"))
    stays = StayingVm(
        vm="a", name="A", protection="restart", priority="medium", reason="no_room", detail="1 MiB short"
    )
    drain = Drain(at=H1, incident="maintenance-h1-1", mark="maintenance-1", stays=(stays,))
    pool.words["host.h1"] = PlacementRecord(words=HostWords(number=1, maintenance=True, emptied=True))
    pool.words["drain.h1"] = PlacementRecord(drain=drain)
    view = at_work(pool).view
    row = next(row for row in await view.hosts() if row["host"] == "h1")
    assert (row["emptied"], row["stays"]) == (
        True,
        [{"vm": "A", "reason": "no_room", "detail": "1 MiB short"}],
    )
    assert tables.closed(row) == "maintenance, drained"
    details = {row["vm"]: row["detail"] for row in await view.vms()}
    assert details == {"A": "stays on h1, which is drained: 1 MiB short", "B": ""}
    pool.words["drain.h1"] = PlacementRecord(drain=drain.model_copy(update={"at": boot("h1", 2)}))
    assert next(row for row in await view.hosts() if row["host"] == "h1")["stays"] == []


async def test_an_empty_host_is_closed_and_then_removed() -> None:
    pool = pool_of(vm("b", VmState.STOPPED), vm("c", policy=policy(protection=Protection.NONE)))
    await at_work(pool).remove("h1")
    assert kinds(pool) == ["host.maintenance_entered", "host.removed"]
    assert (pool.told[-1].at, pool.told[-1].agent, pool.told[-1].by) == (H1, "life", "ann@desk")
    with pytest.raises(RefusedError, match="was removed from the pool and has not joined again"):
        await at_work(pool).remove("h1")


async def test_a_host_that_runs_protected_vms_is_not_removed_and_stays_open() -> None:
    pool = pool_of(vm("a"), vm("b"))
    with pytest.raises(RefusedError, match="protected VMs run on h1: A, B"):
        await at_work(pool).remove("h1")
    assert pool.told == []


async def test_a_vm_that_came_between_the_look_and_the_closing_keeps_the_host() -> None:
    pool = pool_of()
    takes_up = pool.hears
    assert takes_up is not None

    def hears(fact: Any) -> None:
        takes_up(fact)
        pool.leases["a"] = lease("a", H1, LeaseState.STARTING)

    pool.hears = hears
    with pytest.raises(RefusedError, match="protected VMs run on h1: A"):
        await at_work(pool).remove("h1")
    assert kinds(pool) == ["host.maintenance_entered", "host.maintenance_exited"], "open as it was before"


@pytest.mark.parametrize("state", ["suspect", "failed", "unknown"])
async def test_a_host_in_doubt_is_not_removed(state: str) -> None:
    with pytest.raises(RefusedError, match=f"held to be {state}: what runs there is not known"):
        await at_work(pool_of(state=state)).remove("h1")


async def test_a_host_that_has_not_told_what_runs_there_is_not_removed() -> None:
    pool = pool_of()
    pool.inventories["h1"] = inventory(boot("h1", 9))
    with pytest.raises(RefusedError, match="has not told yet what runs there"):
        await at_work(pool).remove("h1")


@pytest.mark.parametrize(("origin", "to"), [(H1, None), (H2, H1)], ids=["from it", "to it"])
async def test_a_host_with_an_open_incident_is_not_removed(origin: Any, to: Any) -> None:
    pool = pool_of(state="fenced" if to is None else "healthy")
    item = Item(
        vm="a", name="A", memory_mib=1, vcpus=1, policy=policy(), origin=origin, to=to,
        phase=Phase.WAITING if to is None else Phase.PLANNED,
    )  # fmt: skip
    pool.words["incident.x-1"] = PlacementRecord(incident=OpenIncident(id="x-1", cause="c", items=(item,)))
    with pytest.raises(RefusedError, match=r"h1 has an open incident \(x-1, VM A\)"):
        await at_work(pool).remove("h1")


async def test_a_fenced_host_without_open_incident_is_removed() -> None:
    pool = pool_of(vm("a"), state="fenced")
    await at_work(pool).remove("h1")
    assert kinds(pool) == ["host.removed"], "nothing runs there, and nothing is planned onto it"


# -- what an onlooker sees of it


async def test_an_onlooker_sees_maintenance_and_no_host_that_was_removed() -> None:
    pool = pool_of(vm("a", policy=policy(protection=Protection.NONE)))
    view = at_work(pool).view
    await at_work(pool).enter_maintenance("h1")
    assert {row["host"] for row in await view.hosts() if row["maintenance"]} == {"h1"}
    assert [row["vm"] for row in await view.vms()] == ["A"]
    await at_work(pool).remove("h1")
    assert [row["host"] for row in await view.hosts()] == ["h2", "h3"]
    assert await view.vms() == []
