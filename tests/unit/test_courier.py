"""Every event to every endpoint that wants it, in order; one that fails holds up nobody but itself."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from libs.config.webhooks import Webhook
from libs.core.decider import Expired, Records
from libs.core.ports import Kept
from libs.events.envelope import wrap
from libs.events.facts import AnyFact
from libs.events.hosts import HostFenceFailed, HostSuspected
from libs.events.vms import VmRestarted
from libs.events.webhooks import WebhookDisabled, WebhookRetryOrdered
from services.alerting import courier, schedule
from services.alerting.courier import Courier, CourierState
from services.alerting.filters import wants
from services.alerting.letters import Fetch, Fetched, Letter, Post, Resend, Tried, letter, message_id
from services.alerting.schedule import TRIES, Verdict, judge, pause_s, plain_pause_s
from services.alerting.texts import tell
from tests.unit import desk
from tests.unit.made import boot, failed, stored, vm

pytestmark = pytest.mark.fast
ZERO = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)


def endpoint(name: str, **more: Any) -> Webhook:
    return Webhook.model_validate({"name": name, "url": f"https://{name}.example/hook", **more})


def suspected(number: int) -> HostSuspected:
    return HostSuspected(at=boot("h1"), number=number, silent_s=1.5)


class Desk(desk.Desk[CourierState]):
    """The courier with a stream to read from; deliveries are answered by hand."""

    def __init__(self, *endpoints: Webhook, stream: list[Letter] | None = None, began: float = 10.0) -> None:
        super().__init__(Courier(endpoints), began)
        self.stream = stream if stream is not None else []
        self.posts: dict[str, Post] = {}
        self.resends: list[Resend] = []
        self.told_at: dict[int, float] = {}
        self._handled = 0

    def begin(self, records: Records | None = None) -> None:
        self.take(self.decider.resume(self.state, records or self.state.records, self.now))
        self.read()

    def read(self) -> None:
        """Answer all readings, until none is left; keep deliveries for the test."""
        while self._handled < len(self.asked):
            request = self.asked[self._handled]
            self._handled += 1
            if isinstance(request, Fetch):
                after = len(self.stream) if request.after is None else request.after
                found = tuple(self.stream[after : after + 200])
                end = found[-1].sequence if found else after
                self.hear(Fetched(key=request.key, endpoint=request.endpoint, letters=found, end=end))
            elif isinstance(request, Post):
                self.posts[request.endpoint] = request
            else:
                self.resends.append(request)

    def tell(self, *facts: AnyFact) -> None:
        for fact in facts:
            envelope = wrap(fact, pool="p", service="s", wall=ZERO)
            self.stream.append(letter(Kept(len(self.stream) + 1, envelope)))
            self.told_at[len(self.stream)] = self.now
            self.hear(fact)
        self.read()

    def answer(self, name: str, verdict: Verdict, **more: Any) -> None:
        request = self.posts.pop(name)
        tried = Tried(
            key=request.key,
            endpoint=name,
            sequence=request.letter.sequence,
            verdict=verdict,
            age_s=self.now - self.told_at[request.letter.sequence],
            **more,
        )
        self.hear(tried)
        self.read()

    def pass_time(self) -> float:
        began = self.now
        self.wait()
        self.read()
        return self.now - began

    def until_due(self, name: str) -> float:
        """Wait until the endpoint is tried again."""
        began = self.now
        while name not in self.posts:
            self.pass_time()
        return self.now - began

    def on_its_way(self, name: str) -> str:
        return self.posts[name].letter.id


def test_every_endpoint_gets_every_event_in_order_from_the_moment_it_was_configured() -> None:
    desk = Desk(endpoint("a"), endpoint("b"))
    desk.stream += [letter(Kept(1, wrap(suspected(0), pool="p", service="s", wall=ZERO)))]
    desk.begin()
    assert desk.posts == {}, "what was before it was configured is not for it"
    desk.tell(suspected(1), suspected(2), suspected(3))
    for name in ("a", "b"):
        got = []
        while name in desk.posts:
            got.append(desk.on_its_way(name))
            desk.answer(name, Verdict.DELIVERED)
        assert got == [suspected(n).key for n in (1, 2, 3)]


def test_a_dead_endpoint_holds_up_nobody_and_keeps_its_order() -> None:
    desk = Desk(endpoint("dead"), endpoint("well"))
    desk.begin()
    desk.tell(suspected(1), suspected(2))
    desk.answer("dead", Verdict.FAILED, reason="HTTP 500")
    assert "dead" not in desk.posts, "it waits"
    desk.answer("well", Verdict.DELIVERED)
    desk.answer("well", Verdict.DELIVERED)
    desk.tell(suspected(3))
    desk.answer("well", Verdict.DELIVERED)
    desk.until_due("dead")
    got = []
    while "dead" in desk.posts:
        got.append(desk.on_its_way("dead"))
        desk.answer("dead", Verdict.DELIVERED)
    assert got == [suspected(n).key for n in (1, 2, 3)]


def test_pauses_grow_with_jitter_for_a_day_and_then_it_is_a_dead_letter() -> None:
    desk = Desk(endpoint("a"))
    desk.begin()
    began = desk.now
    desk.tell(suspected(1), suspected(2))
    pauses = []
    while desk.on_its_way("a") == suspected(1).key:
        desk.answer("a", Verdict.FAILED, reason="HTTP 500")
        pauses.append(desk.until_due("a"))
    for number, pause in enumerate(pauses[:5]):
        assert 0.8 * 2**number <= pause <= 1.2 * 2**number
    assert max(pauses) <= 1.2 * schedule.MOST_S
    assert len({round(pause, 3) for pause in pauses[12:]}) > 20, "the pauses are not all alike"
    assert pauses[-1] == 0, "what waited behind it goes on at once"
    assert 0.95 * schedule.DAY_S < desk.now - began < 1.05 * schedule.DAY_S
    assert abs(len(pauses) - TRIES) < 10
    told = [fact for fact in desk.told if fact.kind == "webhook.dead_lettered"]
    assert [(fact.undelivered, fact.reason) for fact in told] == [(suspected(1).key, "HTTP 500")]
    assert [name for name in desk.state.records if name.startswith("dead.")] == ["dead.a.000000000001"]


def test_behind_a_dead_endpoint_each_event_has_its_own_day() -> None:
    desk = Desk(endpoint("a"), endpoint("other"))
    desk.begin()
    desk.tell(suspected(1), suspected(2))
    began = desk.now
    while desk.now - began < schedule.DAY_S / 2:
        desk.answer("a", Verdict.FAILED, reason="HTTP 500")
        desk.until_due("a")
    desk.tell(suspected(3))
    third_told = desk.now
    tried: dict[str, int] = {}
    while desk.now - third_told < 1.2 * schedule.DAY_S and "a" in desk.posts:
        tried[desk.on_its_way("a")] = tried.get(desk.on_its_way("a"), 0) + 1
        desk.answer("a", Verdict.FAILED, reason="HTTP 500")
        if desk.state.lines["a"].queue:
            desk.until_due("a")
    assert tried[suspected(2).key] == 1, "it had waited for a day"
    assert tried[suspected(3).key] > 20
    assert desk.now - third_told < 1.05 * schedule.DAY_S
    told = [fact.kind for fact in desk.told]
    assert told == ["webhook.failing", "webhook.dead_lettered"], "people are told once of a row"
    assert len([name for name in desk.state.records if name.startswith("dead.")]) == 3


def test_dead_endpoints_do_not_make_events_for_each_other() -> None:
    desk = Desk(endpoint("a"), endpoint("b"))
    desk.begin()
    desk.tell(WebhookDisabled(endpoint="c", sequence=1, reason="HTTP 410"))
    for _ in range(schedule.REFUSED_TRIES):
        desk.until_due("a")
        desk.answer("a", Verdict.REFUSED, reason="HTTP 400")
    assert [name for name in desk.state.records if name.startswith("dead.")] == ["dead.a.000000000001"]
    assert desk.told == []


def test_people_are_told_once_that_it_fails_and_once_that_it_is_well() -> None:
    desk = Desk(endpoint("a"))
    desk.begin()
    desk.tell(suspected(1))
    for _ in range(12):
        desk.answer("a", Verdict.FAILED, reason="no answer in 5 s")
        desk.until_due("a")
    desk.answer("a", Verdict.DELIVERED)
    assert [fact.kind for fact in desk.told] == ["webhook.failing", "webhook.recovered"]
    assert desk.told[0].reason == "no answer in 5 s"
    assert 100 < sum(plain_pause_s(n) for n in range(1, schedule.FAILING_TRIES)) < 300


def test_what_is_refused_for_its_form_is_given_up_soon() -> None:
    desk = Desk(endpoint("a"))
    desk.begin()
    desk.tell(suspected(1), suspected(2))
    began = desk.now
    for _ in range(schedule.REFUSED_TRIES - 1):
        desk.answer("a", Verdict.REFUSED, reason="HTTP 400")
        desk.until_due("a")
    desk.answer("a", Verdict.REFUSED, reason="HTTP 400")
    assert desk.on_its_way("a") == suspected(2).key
    assert desk.now - began < 60


def test_an_endpoint_that_asks_for_time_gets_it() -> None:
    desk = Desk(endpoint("a"))
    desk.begin()
    desk.tell(suspected(1))
    desk.answer("a", Verdict.FAILED, reason="HTTP 429", asked_s=120.0)
    assert desk.until_due("a") == pytest.approx(120.0)
    desk.answer("a", Verdict.FAILED, reason="HTTP 429", asked_s=1e9)
    assert desk.until_due("a") <= schedule.ASKED_MOST_S + 1


def test_an_endpoint_that_is_gone_is_told_nothing_until_an_operator_says_so_and_then_everything() -> None:
    desk = Desk(endpoint("a"), endpoint("b"))
    desk.begin()
    desk.tell(suspected(1))
    desk.answer("a", Verdict.GONE, reason="HTTP 410")
    assert [type(fact) for fact in desk.told] == [WebhookDisabled]
    desk.answer("b", Verdict.DELIVERED)
    desk.tell(suspected(2))
    assert set(desk.posts) == {"b"}
    desk.answer("b", Verdict.DELIVERED)
    after = Desk(endpoint("a"), endpoint("b"), stream=desk.stream)
    after.told_at = dict(desk.told_at)
    after.begin(stored(desk.state.records))
    assert "a" not in after.posts, "a successor knows that it is gone"
    after.tell(WebhookRetryOrdered(endpoint="a", order="1", by="ann@desk"))
    got = []
    while "a" in after.posts:
        got.append(after.on_its_way("a"))
        after.answer("a", Verdict.DELIVERED)
    assert got == [suspected(1).key, suspected(2).key]


def test_a_successor_goes_on_where_the_last_one_wrote_and_repeats_have_the_same_id() -> None:
    desk = Desk(endpoint("a"))
    desk.begin()
    desk.tell(*(suspected(number) for number in range(250)))
    got = []
    for _ in range(230):
        got.append(desk.on_its_way("a"))
        desk.answer("a", Verdict.DELIVERED)
    after = Desk(endpoint("a"), stream=desk.stream)
    after.told_at = desk.told_at
    after.begin(stored(desk.state.records))  # killed: what was delivered since the last writing comes again
    again = []
    while "a" in after.posts:
        again.append(after.on_its_way("a"))
        after.answer("a", Verdict.DELIVERED)
    assert set(got) | set(again) == {suspected(number).key for number in range(250)}
    assert again == [suspected(number).key for number in range(250 - len(again), 250)], "in order"
    assert len(set(got) & set(again)) <= courier.SAVE_AFTER
    assert message_id(got[0]) == message_id(suspected(0).key)


def test_the_tries_of_a_day_go_on_after_a_restart() -> None:
    desk = Desk(endpoint("a"))
    desk.begin()
    desk.tell(suspected(1))
    for _ in range(6):
        desk.answer("a", Verdict.FAILED, reason="HTTP 500")
        desk.until_due("a")
    after = Desk(endpoint("a"), stream=desk.stream)
    after.told_at = desk.told_at
    after.begin(stored(desk.state.records))
    after.answer("a", Verdict.FAILED, reason="HTTP 500")
    assert after.until_due("a") > 0.8 * 2**6


def test_where_everything_is_delivered_the_place_is_written_within_a_second() -> None:
    desk = Desk(endpoint("a"))
    desk.begin()
    desk.tell(suspected(1))
    desk.answer("a", Verdict.DELIVERED)
    desk.pass_time()
    assert desk.state.records["place.a"].sequence == 1
    assert desk.decider.wake_at(desk.state) is None


def test_what_it_does_not_want_is_passed_over_and_the_place_moves_on() -> None:
    desk = Desk(endpoint("a", events=["host.failed"]))
    desk.begin()
    desk.tell(*(suspected(number) for number in range(5)))
    assert desk.posts == {}
    assert desk.pass_time() <= courier.SAVE_S
    assert desk.state.records["place.a"].sequence == 5
    desk.tell(failed(boot("h1")), suspected(9))
    assert desk.on_its_way("a") == "host.failed/h1-1"
    desk.answer("a", Verdict.DELIVERED)
    desk.pass_time()
    assert desk.state.records["place.a"].sequence == 7


def test_a_dead_letter_is_sent_again_by_an_operators_word_and_forgotten_once_it_is_taken() -> None:
    desk = Desk(endpoint("a"))
    desk.begin()
    desk.tell(suspected(1), suspected(2))
    for _ in range(schedule.REFUSED_TRIES):
        desk.until_due("a")
        desk.answer("a", Verdict.REFUSED, reason="HTTP 400")
    desk.answer("a", Verdict.DELIVERED)
    word = WebhookRetryOrdered(endpoint="a", order="1", by="ann@desk")
    desk.tell(word.model_copy(update={"events": ("another",)}))
    assert desk.resends == []
    desk.tell(word)
    assert [one.sequence for one in desk.resends] == [1]
    request = desk.resends[0]
    late = Expired(key=request.key, request="resend", reason="no end in 25 s")
    desk.hear(late)
    assert desk.state.records[request.record].reason == "no end in 25 s"
    desk.tell(word.model_copy(update={"order": "2"}))
    request = desk.resends[1]
    assert request.key != desk.resends[0].key
    desk.hear(
        Tried(key=request.key, endpoint="a", sequence=1, verdict=Verdict.DELIVERED, record=request.record)
    )
    assert not [name for name in desk.state.records if name.startswith("dead.")]


def test_dead_letters_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(courier, "DEAD_MOST", 3)
    monkeypatch.setattr(schedule, "REFUSED_TRIES", 1)
    desk = Desk(endpoint("a"))
    desk.begin()
    desk.tell(*(suspected(number) for number in range(5)))
    for _ in range(5):
        desk.answer("a", Verdict.REFUSED, reason="HTTP 400")
    dead = sorted(name for name in desk.state.records if name.startswith("dead."))
    assert dead == [f"dead.a.{sequence:012d}" for sequence in (3, 4, 5)]


def test_an_endpoint_that_is_configured_no_more_is_forgotten() -> None:
    desk = Desk(endpoint("a"), endpoint("b"))
    desk.begin()
    desk.tell(suspected(1))
    desk.answer("a", Verdict.DELIVERED)
    desk.answer("b", Verdict.FAILED)
    after = Desk(endpoint("a"), stream=desk.stream)
    after.begin(stored(desk.state.records))
    assert {name.split(".")[1] for name in after.state.records} <= {"a"}


def test_a_stream_that_cannot_be_read_is_read_again() -> None:
    desk = Desk(endpoint("a"))
    desk.take(desk.decider.resume(desk.state, desk.state.records, desk.now))
    request = desk.asked[-1]
    desk.hear(Expired(key=request.key, request="fetch", reason="not connected"))
    assert desk.decider.wake_at(desk.state) == desk.now + courier.FETCH_AGAIN_S
    desk._handled = len(desk.asked)
    desk.pass_time()
    desk.tell(suspected(1))
    assert desk.on_its_way("a") == suspected(1).key


def test_an_answer_to_what_an_earlier_life_asked_is_nothing() -> None:
    desk = Desk(endpoint("a"))
    desk.begin()
    desk.tell(suspected(1))
    tried = Tried(key="post/a/1/0", endpoint="a", sequence=1, verdict=Verdict.DELIVERED)
    desk.hear(tried)
    assert "a" in desk.posts
    assert desk.state.lines["a"].done == 0


RESTARTED = VmRestarted(vm="u", name="db", at=boot("h2"), incident="i", start_key="k", token=2)


@pytest.mark.parametrize(
    ("filters", "fact", "wanted"),
    [
        ({}, suspected(1), True),
        ({"events": ["host.*"]}, suspected(1), True),
        ({"events": ["vm.*", "host.failed"]}, suspected(1), False),
        ({"severities": ["critical"]}, suspected(1), False),
        ({"severities": ["critical"]}, failed(boot("h1")), True),
        ({"hosts": ["h1"]}, suspected(1), True),
        ({"hosts": ["h2"]}, suspected(1), False),
        ({"vms": ["db"]}, RESTARTED, True),
        ({"vms": ["db"], "hosts": ["h1"]}, RESTARTED, False),
        ({"vms": ["A"]}, failed(boot("h1"), vm("a")), True),
        ({"vms": ["B"]}, failed(boot("h1"), vm("a")), False),
        ({}, WebhookDisabled(endpoint="a", sequence=1, reason="HTTP 410"), False),
        ({}, WebhookDisabled(endpoint="b", sequence=1, reason="HTTP 410"), True),
    ],
)
def test_an_event_must_pass_every_filter(filters: dict[str, Any], fact: AnyFact, wanted: bool) -> None:
    assert wants(endpoint("a", **filters), fact, tell(fact)[0]) is wanted


def test_what_a_status_means() -> None:
    by = {status: judge(status) for status in (200, 204, 301, 400, 401, 404, 408, 410, 413, 429, 500, 503)}
    assert [s for s, v in by.items() if v is Verdict.DELIVERED] == [200, 204]
    assert [s for s, v in by.items() if v is Verdict.GONE] == [410]
    assert [s for s, v in by.items() if v is Verdict.REFUSED] == [400, 413]
    assert pause_s("a", "x", 1) != pause_s("b", "x", 1), "endpoints do not come all at once"
    assert HostFenceFailed(at=boot("h1"), incident="i", attempt=1, missing=()).kind == "host.fence_failed"
