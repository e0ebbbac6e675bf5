"""Alerts as states: raised once, told, repeated while nobody minds them, cleared by themselves; storms as digests."""

from __future__ import annotations

import os
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from libs.config.alerts import Alerts
from libs.core.decider import Expired, Records
from libs.core.ports import Kept
from libs.events.alerts import AlertAcknowledged, AlertSilenced, AlertUnsilenced
from libs.events.datastores import DatastoreFailed, DatastoreLost, DatastoreRecovered
from libs.events.envelope import wrap
from libs.events.facts import KINDS, AnyFact
from libs.events.failovers import CapacityExhausted, CapacityRelieved
from libs.events.hosts import HostFenceFailed, HostJoined, HostSuspected, StormHeld, StormReleased
from services.alerting import catalogue, standing
from services.alerting.letters import Fetch, Fetched, Letter, letter
from services.alerting.notices import Alert, Mirror, Mirrored, Notice, Said, Tell
from services.alerting.notify import subject, text
from services.alerting.standing import Standing
from services.alerting.state import StandingState
from services.alerting.texts import TEXTS, Severity
from tests.unit import desk
from tests.unit.made import boot, failed, fenced, stored

pytestmark = pytest.mark.fast
ZERO = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
DOCS = Path(__file__).parents[2] / "docs" / "ALERTS.md"
CHAT = {"name": "chat", "url": {"env": "X"}}
PAGER = {"name": "pager", "url": {"env": "X"}, "severities": ["critical"]}


def unfenced(host: str) -> HostFenceFailed:
    return HostFenceFailed(at=boot(host), incident=f"{host}-1", attempt=1, missing=("no answer",))


class Desk(desk.Desk[StandingState]):
    """The keeper of alerts with a stream; what it says is kept until it is answered."""

    def __init__(self, *channels: dict[str, Any], stream: list[Letter] | None = None, **more: Any) -> None:
        settings = Alerts.model_validate({"channels": channels, "repeat_s": 3600.0, "digest_s": 30.0, **more})
        super().__init__(Standing(settings), 10.0)
        self.stream = stream if stream is not None else []
        self.said: list[Tell] = []
        self.mirrored: list[Mirror] = []
        self._handled = 0
        self.mute = False

    def begin(self, records: Records | None = None) -> None:
        self.take(self.decider.resume(self.state, records or self.state.records, self.now))
        self.work()

    def work(self) -> None:
        """Answer readings, and messages unless the channels are mute."""
        while self._handled < len(self.asked):
            request = self.asked[self._handled]
            self._handled += 1
            if isinstance(request, Fetch):
                after = len(self.stream) if request.after is None else request.after
                found = tuple(self.stream[after:])
                end = found[-1].sequence if found else after
                self.hear(Fetched(key=request.key, endpoint="alerts", letters=found, end=end))
            elif isinstance(request, Mirror):
                self.mirrored.append(request)
                self.hear(Mirrored(key=request.key, manager=request.manager, ok=not self.mute))
            else:
                self.said.append(request)
                self.hear(Said(key=request.key, record=request.record, ok=not self.mute))

    def tell(self, *facts: AnyFact) -> None:
        for fact in facts:
            envelope = wrap(fact, pool="p", service="s", wall=ZERO)
            self.stream.append(letter(Kept(len(self.stream) + 1, envelope)))
        self.hear(facts[-1])
        self.work()

    def pass_time(self, seconds: float) -> None:
        until = self.now + seconds
        while (at := self.decider.wake_at(self.state)) is not None and at <= until:
            self.wait()
            self.work()
        self.now = until

    def heard(self, channel: str = "chat") -> list[list[tuple[Any, str]]]:
        """What a channel was told, message by message."""
        found = [[(n.state, n.key) for n in one.notices] for one in self.said if one.channel == channel]
        self.said = [one for one in self.said if one.channel != channel]
        return found

    def keys(self) -> set[str]:
        return {one.key for one in self.state.records.values() if isinstance(one, Alert) and not one.over}


def test_an_alert_fires_once_and_clears_by_itself() -> None:
    desk = Desk(CHAT)
    desk.begin()
    desk.tell(unfenced("h1"))
    assert desk.heard() == [[("firing", "host-unfenced/h1")]]
    desk.tell(unfenced("h1").model_copy(update={"attempt": 2}))
    desk.pass_time(60)
    assert desk.heard() == [], "it is the same alert"
    desk.tell(fenced(boot("h1")))
    assert desk.heard() == [[("resolved", "host-unfenced/h1")]]
    assert desk.keys() == set()
    desk.pass_time(10_000)
    assert desk.heard() == []


def test_it_is_repeated_while_it_lasts_until_somebody_minds_it() -> None:
    desk = Desk(CHAT)
    desk.begin()
    desk.tell(unfenced("h1"))
    desk.heard()
    desk.pass_time(3 * 3600 + 1)
    assert desk.heard() == [[("firing", "host-unfenced/h1")]] * 3
    desk.tell(AlertAcknowledged(order="1", alert="host-unfenced/h1", by="ann@desk"))
    desk.pass_time(10 * 3600)
    assert desk.heard() == []
    desk.tell(fenced(boot("h1")))
    assert desk.heard() == [[("resolved", "host-unfenced/h1")]], "that it is over is told all the same"
    desk.pass_time(100)
    desk.tell(unfenced("h1"))
    assert desk.heard() == [[("firing", "host-unfenced/h1")]], "raised again it is a new one"


def test_nobody_is_told_of_what_is_silenced_and_the_silence_ends_by_itself() -> None:
    desk = Desk(CHAT)
    desk.begin()
    desk.tell(AlertSilenced(order="s1", pattern="*/h1", for_s=600.0, by="ann@desk"))
    desk.tell(unfenced("h1"))
    desk.pass_time(31)
    assert desk.heard() == []
    assert desk.keys() == {"host-unfenced/h1"}, "it stands all the same"
    desk.tell(unfenced("h2"))
    assert desk.heard() == [[("firing", "host-unfenced/h2")]]
    desk.tell(fenced(boot("h1")))
    desk.pass_time(31)
    assert desk.heard() == [], "what nobody was told of need not be called over"
    desk.pass_time(600)
    desk.tell(unfenced("h1"))
    assert desk.heard() == [[("firing", "host-unfenced/h1")]]


def test_a_silence_outlives_a_restart_and_can_be_ended() -> None:
    desk = Desk(CHAT)
    desk.begin()
    desk.tell(AlertSilenced(order="s1", pattern="host-*", for_s=3600.0, by="ann@desk"))
    desk.pass_time(3000)
    after = Desk(CHAT, stream=desk.stream)
    after.begin(stored(desk.state.records))
    after.tell(unfenced("h1"))
    after.pass_time(500)
    assert after.heard() == []
    after.tell(AlertUnsilenced(order="2", silence="s1", by="ann@desk"), unfenced("h2"))
    assert after.heard() == [[("firing", "host-unfenced/h2")]]
    after.pass_time(3600)
    assert ("firing", "host-unfenced/h1") in [one for message in after.heard() for one in message]


def test_a_storm_of_a_thousand_events_is_a_handful_of_messages() -> None:
    desk = Desk(CHAT)
    desk.begin()
    for number in range(500):
        desk.tell(failed(boot(f"h{number}")), unfenced(f"h{number}"))
        desk.pass_time(0.12)
    desk.pass_time(40)
    messages = desk.heard()
    assert len(messages) <= 4
    assert len({key for message in messages for _, key in message}) == 1000
    assert len(messages[0]) == 1, "the first is told at once"


def test_what_comes_and_goes_within_a_digest_is_told_as_it_is() -> None:
    desk = Desk(CHAT)
    desk.begin()
    desk.tell(unfenced("h0"))
    desk.heard()
    desk.tell(unfenced("h1"), fenced(boot("h1")), unfenced("h2"))
    desk.pass_time(31)
    assert desk.heard() == [[("resolved", "host-unfenced/h1"), ("firing", "host-unfenced/h2")]]


def test_a_channel_hears_only_what_it_wants() -> None:
    desk = Desk(CHAT, PAGER)
    desk.begin()
    desk.tell(StormHeld(number=1, suspects=("h1", "h2"), limit=1))
    desk.pass_time(31)
    desk.tell(HostSuspected(at=boot("h1"), number=1, silent_s=1.5))
    assert desk.heard("pager") == [[("firing", "storm/pool")]]
    desk.heard()
    desk.tell(StormReleased(number=1))
    assert desk.heard("pager") == [[("resolved", "storm/pool")]]


def test_a_message_that_is_not_taken_is_sent_again_also_by_a_successor() -> None:
    desk = Desk(CHAT)
    desk.mute = True
    desk.begin()
    desk.tell(unfenced("h1"))
    desk.pass_time(20)
    assert len(desk.heard()) == 4, "after 2, 4 and 8 seconds"
    after = Desk(CHAT, stream=desk.stream)
    after.begin(stored(desk.state.records))
    after.take(after.decider.step(after.state, None, after.now))
    after.work()
    assert after.heard() == [[("firing", "host-unfenced/h1")]], "at once"
    after.pass_time(100)
    assert after.heard() == []


def test_a_message_without_an_end_counts_as_not_taken() -> None:
    desk = Desk(CHAT)
    desk.begin()
    desk.tell(unfenced("h1"))
    desk.said.clear()
    desk.mute = True
    desk.tell(unfenced("h2"))
    desk.pass_time(31)
    request = desk.said[-1]
    desk.hear(Expired(key=request.key, request="tell", reason="no end in 30 s"))
    desk.mute = False
    desk.said.clear()
    desk.pass_time(5)
    assert desk.heard() == [[("firing", "host-unfenced/h2")]]


def test_what_was_before_its_first_start_is_no_alert_and_nothing_is_lost_over_a_restart() -> None:
    stream = [letter(Kept(1, wrap(unfenced("h9"), pool="p", service="s", wall=ZERO)))]
    desk = Desk(CHAT, stream=stream)
    desk.begin()
    assert desk.keys() == set()
    desk.tell(unfenced("h1"))
    for host in ("h2", "h3"):  # nobody runs
        envelope = wrap(unfenced(host), pool="p", service="s", wall=ZERO)
        desk.stream.append(letter(Kept(len(desk.stream) + 1, envelope)))
    after = Desk(CHAT, stream=desk.stream)
    after.begin(stored(desk.state.records))
    assert after.keys() == {f"host-unfenced/{host}" for host in ("h1", "h2", "h3")}


def test_what_no_event_ends_clears_after_a_time() -> None:
    desk = Desk(CHAT)
    desk.begin()
    fact = next(kind for kind, row in catalogue.ALERTS.items() if row.expires_s == catalogue.HOUR_S)
    assert fact == "host.obeyed"
    desk.tell(
        KINDS["detector.degraded"].model_validate({"replica": "r", "number": 1, "deaf_s": 2.0})  # type: ignore[arg-type]
    )
    assert desk.keys() == {"detector-degraded/pool"}
    desk.pass_time(catalogue.HOUR_S + 1)
    assert desk.keys() == set()


def test_an_alertmanager_is_shown_what_stands_again_and_again_and_what_is_over_until_it_has_heard() -> None:
    desk = Desk(alertmanagers=[{"name": "am", "url": "http://127.0.0.1:9093"}])
    desk.begin()
    desk.tell(unfenced("h1"))
    shown = [[(n.state, n.key) for n in one.notices] for one in desk.mirrored]
    assert shown[-1] == [("firing", "host-unfenced/h1")]
    desk.mirrored.clear()
    desk.pass_time(5 * standing.MIRROR_S)
    assert len(desk.mirrored) == 5
    desk.mute = True
    desk.tell(fenced(boot("h1")))
    assert [n.state for n in desk.mirrored[-1].notices] == ["resolved"]
    desk.mute = False
    desk.pass_time(standing.MIRROR_S)
    assert [n.state for n in desk.mirrored[-1].notices] == ["resolved"], "it had not heard"
    desk.pass_time(standing.MIRROR_S)
    assert desk.mirrored[-1].notices == ()


LOST = DatastoreLost(datastore="nfs", number=1, at=boot("h1"), well=2, asked=3)


@pytest.mark.parametrize(
    ("begins", "key", "other", "ends"),
    [
        (
            failed(boot("h1")),
            "host-failed/h1",
            HostJoined(at=boot("h2"), epoch=1),
            HostJoined(at=boot("h1", 2), epoch=1),
        ),
        (
            CapacityExhausted(incident="i", revision=1, waiting=()),
            "no-capacity/i",
            CapacityRelieved(incident="j", revision=1),
            CapacityRelieved(incident="i", revision=2),
        ),
        (
            LOST,
            "datastore-lost/nfs/h1",
            DatastoreRecovered(datastore="nfs", number=1, host="h2"),
            DatastoreRecovered(datastore="nfs", number=1, host="h1"),
        ),
        (
            DatastoreFailed(datastore="nfs", number=2, hosts=("h1",), asked=3),
            "datastore-failed/nfs",
            DatastoreRecovered(datastore="nfs", number=1, host="h1"),
            DatastoreRecovered(datastore="nfs", number=2),
        ),
    ],
)
def test_an_alert_ends_with_its_own_end_and_no_others(
    begins: AnyFact, key: str, other: AnyFact, ends: AnyFact
) -> None:
    desk = Desk(CHAT)
    desk.begin()
    desk.tell(begins)
    assert desk.keys() == {key}
    desk.tell(other)
    assert desk.keys() == {key}
    desk.tell(ends)
    assert desk.keys() == set()


def test_every_event_that_is_more_than_news_is_an_alert_and_every_end_is_an_event() -> None:
    serious = {kind for kind, (severity, _) in TEXTS.items() if severity is not Severity.INFO}
    assert serious == set(catalogue.ALERTS)
    assert {kind for row in catalogue.TABLE for kind in row.cleared_by} <= set(KINDS)
    names = [row.name for row in catalogue.ALERTS.values()]
    assert len(set(names)) == len(names)
    assert all(row.cleared_by or row.expires_s for row in catalogue.ALERTS.values()), "each clears by itself"


def test_the_docs_have_the_table() -> None:
    page = DOCS.read_text()
    pattern = r"(<!-- alerts -->\n).*?(<!-- /alerts -->)"
    assert re.search(pattern, page, re.DOTALL)
    wanted = re.sub(
        pattern, lambda found: f"{found[1]}{catalogue.as_table()}\n{found[2]}", page, flags=re.DOTALL
    )
    if os.environ.get("REKINDLE_UPDATE_GOLDEN"):
        DOCS.write_text(wanted)
    assert DOCS.read_text() == wanted


def noticed(key: str, severity: Severity = Severity.CRITICAL, state: str = "firing") -> Notice:
    return Notice.model_validate(
        {
            "key": key,
            "state": state,
            "name": key.split("/")[0],
            "severity": severity,
            "text": f"text of {key}",
            "do": "do this",
            "since": "2026-03-01T12:00:00+00:00",
        }
    )


def test_what_people_read() -> None:
    one = [noticed("host-unfenced/h1")]
    assert subject(one, "p") == "[p] critical: host-unfenced/h1"
    assert text(one, "https://wiki/alerts").splitlines() == [
        "text of host-unfenced/h1",
        "since 2026-03-01T12:00:00+00:00",
        "key: host-unfenced/h1",
        "",
        "do this",
        "https://wiki/alerts#host-unfenced",
    ]
    many = [
        noticed("b/1", Severity.WARNING),
        noticed("c/1", state="resolved"),
        *(noticed(f"a/{number}") for number in range(100)),
    ]
    assert subject(many, "p") == "[p] 101 alerts (critical), 1 resolved"
    lines = text(many, "https://wiki/alerts").splitlines()
    assert lines[0] == "critical: a/0: text of a/0"
    assert "and 52 more: `rekindle alerts` has them all" in lines
