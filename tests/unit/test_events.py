"""Envelopes out and back, other versions, and the story that facts tell."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any, get_args

import pytest

from infra.lab.story import untold_starts
from libs.events.envelope import Envelope, UnreadableError, subject_of, unwrap, wrap
from libs.events.facts import AnyFact
from libs.events.failovers import FailoverCompleted, FailoverPlanned, PlannedStart, WaitingVm
from libs.events.hosts import HostFenceFailed, HostJoined, HostSuspected, HostUndecided, StormHeld
from libs.events.vms import VmFailed, VmRestarted, VmRestartFailed
from libs.events.words import (
    HostConfirmedFailed,
    HostMaintenanceEntered,
    HostMaintenanceExited,
    HostRemoved,
)
from libs.model import Incarnation, StopReason
from libs.report import failovers
from tests.unit.made import boot, crashed, failed, fenced, proof, vm

pytestmark = pytest.mark.fast
ZERO = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
H1, H2, H3 = boot("h1"), boot("h2"), boot("h3")

FACTS: list[Any] = [
    failed(H1, vm("a"), proof=proof(H1)),
    fenced(H1, vm("a")),
    HostJoined(at=H1),
    HostSuspected(at=H1, number=3, silent_s=1.5),
    HostUndecided(at=H1, number=3, silent_s=9.5),
    HostFenceFailed(at=H1, incident="h1-1", attempt=2, missing=("no answer",)),
    HostConfirmedFailed(at=H1, incident="h1-1", epoch=1, by="ann@desk", said_at="2026-11-22T12:00:00"),
    HostMaintenanceEntered(host="h1", number=1, by="ann@desk"),
    HostMaintenanceExited(host="h1", number=2, by="ann@desk"),
    HostRemoved(at=H1, agent="life", by="ann@desk"),
    StormHeld(number=1, suspects=("h1", "h2"), limit=1),
    VmFailed(vm="a", name="A", at=H1, run=1, reason=StopReason.CRASHED, report=crashed("a")),
]


@pytest.mark.parametrize("fact", FACTS, ids=lambda fact: fact.kind)
def test_a_fact_comes_back_as_it_was(fact: AnyFact) -> None:
    envelope = wrap(fact, pool="p", service="detector", wall=ZERO)
    assert unwrap(envelope.model_dump_json().encode()) == envelope
    assert envelope.id == fact.key
    assert envelope.subject == fact.about
    assert envelope.type == f"rekindle.{fact.kind}.v1"
    assert subject_of("p", fact) == f"rekindle.p.event.{fact.kind}.{fact.about}"


def test_every_kind_of_fact_has_a_key_and_a_subject_of_its_own() -> None:
    kinds = [get_args(one.model_fields["kind"].annotation)[0] for one in get_args(get_args(AnyFact)[0])]
    assert len(kinds) == len(set(kinds))
    assert all(len(kind.split(".")) == 2 for kind in kinds)


def raw(**changes: Any) -> bytes:
    body = wrap(HostJoined(at=H1), pool="p", service="s", wall=ZERO).model_dump(mode="json")
    return json.dumps({**body, **changes}).encode()


def test_fields_that_another_version_added_are_tolerated() -> None:
    data = {
        "kind": "host.joined",
        "at": {"host": "h1", "boot": "b", "rack": "r1"},
        "epoch": 2,
        "mood": "fine",
    }
    envelope = unwrap(raw(data=data, traceparent="00-x", type="rekindle.host.joined.v9"))
    assert envelope.data == HostJoined(at=Incarnation(host="h1", boot="b"), epoch=2)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b"{}",
        raw(data={"kind": "host.exploded", "at": {"host": "h1", "boot": "b"}}),
        raw(data={"kind": "host.joined"}),
        raw(data={"kind": "host.joined", "at": {"host": "h1", "boot": ""}}),
        raw(specversion="2.0"),
        raw(id=""),
        raw(time="yesterday"),
    ],
)
def test_what_cannot_be_read_is_said_to_be_so(payload: bytes) -> None:
    with pytest.raises(UnreadableError):
        unwrap(payload)


# -- the story


def at(seconds: float, fact: AnyFact) -> Envelope:
    return wrap(fact, pool="p", service="s", wall=ZERO + timedelta(seconds=seconds))


def start(uuid: str, to: Incarnation = H2, attempt: int = 1) -> PlannedStart:
    return PlannedStart(
        key=f"h1-1/{uuid}/{attempt}", vm=uuid, name=uuid.upper(), origin=H1, to=to, wave=0, priority_rank=2,
        memory_mib=1, vcpus=1,
    )  # fmt: skip


def restarted(uuid: str, to: Incarnation, attempt: int, called_s: float | None) -> VmRestarted:
    called = "" if called_s is None else (ZERO + timedelta(seconds=called_s)).isoformat()
    return VmRestarted(
        vm=uuid, name=uuid.upper(), at=to, incident="h1-1", start_key=f"h1-1/{uuid}/{attempt}", token=2,
        called_at=called,
    )  # fmt: skip


def seconds(time: datetime | None) -> float | None:
    return None if time is None else (time - ZERO).total_seconds()


def test_a_failover_is_told_with_all_its_times() -> None:
    suspected = HostSuspected(at=H1, number=1, silent_s=1.5)
    verdict = failed(H1, vm("a")).model_copy(update={"cause": suspected.key, "rule": "power-off"})
    waiting = WaitingVm(vm="c", name="C", priority="low", reason="no_room", memory_mib=1, vcpus=1)
    refused = VmRestartFailed(
        vm="b", name="B", at=H2, incident="h1-1", start_key="h1-1/b/1", reason="no space"
    )
    told = [
        at(1.5, suspected),
        at(2.0, verdict),
        at(3.0, fenced(H1)),
        at(3.1, FailoverPlanned(incident="h1-1", revision=1, starts=(start("a"), start("b")), waiting=(waiting,))),
        at(4.0, restarted("a", H2, 1, 3.5)),
        at(4.1, refused),
    ]  # fmt: skip
    (story,) = failovers(told)
    assert {name: one.state for name, one in story.vms.items()} == {
        "a": "running",
        "b": "failed",
        "c": "waiting",
    }
    assert story.all_running is None
    told += [
        at(4.2, FailoverPlanned(incident="h1-1", revision=2, starts=(start("b", H3, 2), start("c", H3)))),
        at(5.0, restarted("b", H3, 2, None)),
        at(6.0, restarted("c", H3, 1, 5.5)),
        at(6.1, FailoverCompleted(incident="h1-1", revision=2)),
    ]
    (story,) = failovers(told)
    times = (story.suspected, story.confirmed, story.fenced, story.planned, story.first_start)
    assert [seconds(time) for time in times] == [1.5, 2.0, 3.0, 3.1, 3.5]
    assert (seconds(story.all_running), seconds(story.completed)) == (6.0, 6.1)
    assert (story.host, story.rule, story.proof) == ("h1", "power-off", "power_off")
    assert (story.vms["b"].to, story.vms["b"].origin) == ("h3", "h1")


def test_a_start_of_which_nobody_said_yet_how_it_came_out_is_known() -> None:
    told = [at(3.0, FailoverPlanned(incident="h1-1", revision=1, starts=(start("a"), start("b"))))]
    assert untold_starts(told) == {"a", "b"}
    refused = VmRestartFailed(
        vm="b", name="B", at=H2, incident="h1-1", start_key="h1-1/b/1", reason="no space"
    )
    told += [at(4.0, restarted("a", H2, 1, 3.5)), at(4.1, refused)]
    assert untold_starts(told) == set()
    told += [
        at(4.2, FailoverCompleted(incident="h1-1", revision=1)),
        at(9.0, FailoverPlanned(incident="h1-1", revision=2, starts=(start("b", H3, 2),))),
    ]
    assert untold_starts(told) == {"b"}, "who waited is started after its failover was completed"


def test_a_restart_in_place_is_a_story_too_and_what_belongs_to_none_is_passed_over() -> None:
    crash = VmFailed(vm="a", name="A", at=H1, run=3, reason=StopReason.CRASHED, report=crashed("a"))
    stories = failovers(
        [
            at(0, fenced(H2)),
            at(0, restarted("z", H2, 1, 0)),
            at(1, crash),
            at(2, FailoverPlanned(incident=crash.incident, revision=1, starts=(start("a", H1),))),
            at(9, HostJoined(at=H3)),
        ]
    )
    assert [(story.incident, story.host) for story in stories] == [(crash.incident, "h1")]
    assert stories[0].fenced is None


def test_no_facts_tell_no_story() -> None:
    assert failovers([]) == []
