"""How many hosts may fail: equal to trying everything on small pools, monotone, and never an optimistic guess."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from libs.planning.capacity import Capacity, capacity
from libs.planning.pool import Pool
from libs.planning.snapshot import Snapshot
from libs.planning.witness import Witnesses
from libs.planning.words import in_words
from tests.unit import oracle

pytestmark = pytest.mark.fast


def host(name: str, memory_mib: int = 100, **more: Any) -> dict[str, Any]:
    return {"name": name, "memory_mib": memory_mib, "cpus": 8, **more}


def vm(name: str, at: str, memory_mib: int = 10, **more: Any) -> dict[str, Any]:
    return {"name": name, "host": at, "memory_mib": memory_mib, "vcpus": 1, **more}


def pool(hosts: list[Any], vms: list[Any], *groups: Any) -> Snapshot:
    body = {"schema": "rekindle.snapshot.v1", "hosts": hosts, "vms": vms, "groups": groups}
    return Snapshot.model_validate(body)


def numbers(found: Capacity) -> tuple[int, int, int]:
    return found.tolerates, found.verified, found.upper_bound


@settings(max_examples=50, deadline=None)
@given(oracle.pools(hosts_max=4, vms_max=5, lost=False))
def test_what_is_tolerated_is_what_trying_everything_finds(shot: Snapshot) -> None:
    found = capacity(shot)
    assert found.tolerates <= found.verified <= found.upper_bound
    assert found.tolerates == oracle.tolerates(shot)
    assert found.tolerates <= oracle.tolerates_at_once(shot)
    if found.worst_case:
        lost = frozenset(found.worst_case)
        wanted = {one.name for one in oracle.orphans(shot, lost) if one.protection == "restart"}
        assert found.unplaced
        assert set(found.unplaced) <= wanted


@settings(max_examples=30, deadline=None)
@given(oracle.pools(hosts_max=4, vms_max=6, lost=False), st.integers(1, 60), st.integers(0, 3))
def test_one_more_host_or_more_memory_never_lowers_what_is_tolerated(
    shot: Snapshot, more: int, which: int
) -> None:
    before = capacity(shot).tolerates
    grown = [
        one.model_copy(update={"memory_mib": one.memory_mib + more}) if at == which else one
        for at, one in enumerate(shot.hosts)
    ]
    assert capacity(shot.model_copy(update={"hosts": tuple(grown)})).tolerates >= before
    new = shot.hosts[0].model_copy(update={"name": "new", "memory_mib": more, "state": "online"})
    assert capacity(shot.model_copy(update={"hosts": (*shot.hosts, new)})).tolerates >= before


def test_more_memory_does_not_break_a_witness_as_it_breaks_first_fit() -> None:
    """SCIENCE §3.4: with two units more, first-fit and best-fit find no plan for what they had placed."""
    sizes = [15, 14, 13, 13, 11, 9, 6, 5, 5, 4, 4, 3]
    vms = [vm(f"v{n:02}", "lost", size) for n, size in enumerate(sizes)]
    for memory in (40, 42):
        hosts = [host("h1", memory), host("h2", 12), host("h3", 30), host("h4", 20), host("lost", 500)]
        assert dict(capacity(pool(hosts, vms)).per_host)["lost"].complete


def test_a_pool_that_takes_one_loss_and_no_two_says_so() -> None:
    hosts = [host(name) for name in ("h1", "h2", "h3")]
    found = capacity(pool(hosts, [vm(name[-1], name, 60) for name in ("h1", "h2")]))
    assert numbers(found) == (1, 1, 1)
    assert found.proof == "exact: a plan for each loss of one host, and 2 hosts are proved too many"
    assert (len(found.worst_case), len(found.unplaced)) == (2, 1)


def in_a_ring() -> Snapshot:
    """Wherever `x` is put when h1 fails, it is in the way of what only that host could take from the next that fails."""
    hosts = [
        host("h1", 20, storage=("w", "z", "v")),
        host("h2", 21, storage=("w", "z")),
        host("h3", 20, storage=("w", "v")),
        host("h4", 20, storage=("z", "v")),
    ]
    others = [("z", "h2"), ("w", "h3"), ("v", "h4")]
    return pool(hosts, [vm("x", "h1"), *(vm(name, at, storage=(name,)) for name, at in others)])


def test_hosts_that_fail_one_after_the_other_may_be_more_than_those_that_fail_at_once() -> None:
    shot = in_a_ring()
    assert (oracle.tolerates_at_once(shot), oracle.tolerates(shot)) == (2, 1)
    found = capacity(shot)
    assert numbers(found) == (1, 1, 1)
    assert (found.worst_case, found.in_turn, found.unplaced) == (("h1", "h3"), True, ("w",))
    assert in_words(shot, found) == (
        "if h1 fails and then h3, w (10 MiB) cannot start: 9 MiB short on every host with w"
    )


def test_the_witness_of_a_host_is_one_that_leaves_room_for_the_next_that_fails() -> None:
    """The roomiest host would take `x`, and is the only one for `w` once h3 fails, too."""
    shot = in_a_ring()
    free = tuple(one.model_copy(update={"storage": None}) if one.name == "z" else one for one in shot.vms)
    shot = grown(shot, vms=free)
    kept = Witnesses(Pool(shot))
    assert dict(kept.of["h1"].placed) == {"x": "h2"}
    assert capacity(shot, kept).tolerates == oracle.tolerates(shot) == 2
    assert dict(kept.of["h1"].placed) == {"x": "h4"}
    assert capacity(shot, kept.refreshed(Pool(shot))).tolerates == 2


def test_without_promises_every_host_may_go() -> None:
    shot = pool([host("h1"), host("h2")], [vm("a", "h1", 90, protection="best_effort")])
    assert numbers(capacity(shot)) == (2, 2, 2)
    assert numbers(capacity(pool([], []))) == (0, 0, 0)


def test_what_fits_nowhere_is_named_and_the_rest_counted_without_it() -> None:
    shot = pool(
        [host("h1", 500), host("h2"), host("h3")], [vm("giant", "h1", 300), vm("a", "h2"), vm("b", "h3")]
    )
    found = capacity(shot)
    assert numbers(found) == (0, 0, 0)
    assert found.fit_nowhere == ("giant",)
    assert found.without is not None
    assert numbers(found.without) == (2, 2, 2)


def test_a_host_in_maintenance_may_fail_and_takes_nothing() -> None:
    shot = pool([host("h1", state="maintenance"), host("h2"), host("h3", 15)], [vm("a", "h1"), vm("b", "h2")])
    found = capacity(shot)
    assert numbers(found) == (1, 1, 1)
    assert {name for name, _ in found.per_host} == {"h1", "h2", "h3"}


def test_members_that_must_be_apart_bound_it() -> None:
    apart = {"name": "g", "rule": "anti_affinity", "vms": ["a", "b", "c"]}
    hosts = [host(f"h{n}") for n in range(1, 5)]
    vms = [vm("a", "h1"), vm("b", "h2"), vm("c", "h3")]
    assert numbers(capacity(pool(hosts, vms, apart))) == (1, 1, 1)


def test_plenty_is_certified_beyond_what_can_be_tried() -> None:
    hosts = [host(f"h{n:03}", 1000) for n in range(60)]
    vms = [vm(f"v{n}", f"h{n:03}", 10) for n in range(60)]
    found = capacity(pool(hosts, vms))
    assert found.tolerates >= 20
    assert found.verified >= found.tolerates
    assert found.upper_bound >= found.verified


# -- kept witnesses


def grown(shot: Snapshot, **changes: Any) -> Snapshot:
    return shot.model_copy(update=changes)


def racks(hosts: int, vms: int) -> Snapshot:
    return pool(
        [host(f"h{n:03}", 1000) for n in range(hosts)],
        [vm(f"v{n:04}", f"h{n % hosts:03}", 20 + n % 7) for n in range(vms)],
    )


def test_a_change_costs_only_the_witnesses_that_it_touches() -> None:
    shot = racks(60, 600)
    kept = Witnesses(Pool(shot))
    assert kept.sought == 60
    kept = kept.refreshed(Pool(shot))
    assert kept.sought == 0
    less = [one for one in shot.vms if one.name != "v0007"]
    kept = kept.refreshed(Pool(grown(shot, vms=tuple(less))))
    assert kept.sought == 1
    used = Counter(to for witness in kept.of.values() for to in witness.placed.values())
    [(most, _)] = used.most_common(1)
    full = (*less, shot.vms[0].model_copy(update={"name": "big", "host": most, "memory_mib": 770}))
    kept = kept.refreshed(Pool(grown(shot, vms=full)))
    assert kept.sought > 1
    assert all(witness.complete for witness in kept.of.values())


@settings(max_examples=30, deadline=None)
@given(oracle.pools(hosts_max=4, vms_max=5, lost=False), oracle.pools(hosts_max=4, vms_max=5, lost=False))
def test_witnesses_that_were_kept_are_as_good_as_new_ones(before: Snapshot, after: Snapshot) -> None:
    kept = Witnesses(Pool(before))
    kept = kept.refreshed(Pool(after))
    assert capacity(after, kept).tolerates == capacity(after).tolerates
    for name, witness in kept.of.items():
        where = {**oracle.running(after, frozenset({name})), **witness.placed}
        assert oracle.wrong(after, where, set(witness.placed)) == ""


def test_a_witness_that_holds_survives_more_memory() -> None:
    shot = racks(20, 300)
    kept = Witnesses(Pool(shot))
    before = dict(kept.of)
    bigger = tuple(one.model_copy(update={"memory_mib": one.memory_mib + 7}) for one in shot.hosts)
    kept = kept.refreshed(Pool(grown(shot, hosts=bigger)))
    assert kept.of == before
