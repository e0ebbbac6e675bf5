"""One request for capacity a shortage: said once, updated, answered, escalated, closed."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import aiohttp
import pytest
from standardwebhooks.webhooks import Webhook as Signer

from libs.config.scaleout import Callbacks, ScaleOut
from libs.core.decider import Expired, Records
from libs.core.ports import Kept
from libs.events.capacity import CapacityOvercommitted, CapacityRestored
from libs.events.envelope import wrap
from libs.events.facts import AnyFact
from libs.events.failovers import CapacityExhausted, CapacityRelieved, WaitingVm
from libs.events.hosts import HostJoined
from libs.events.scaleout import Needs, ScaleOutAnswered
from services.alerting import scaleout
from services.alerting.callbacks import Desk as Callback
from services.alerting.callbacks import serving
from services.alerting.letters import Fetch, Fetched, Letter, letter
from services.alerting.scaleout import Asking, ScaleOutState
from tests.unit import desk
from tests.unit.made import boot, stored
from tests.unit.world import Process, World

pytestmark = pytest.mark.fast
ZERO = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
KEY, OTHER = ("whsec_" + base64.b64encode(bytes([n]) * 32).decode() for n in (1, 2))
CALLBACKS = Callbacks.model_validate(
    {"listen": "127.0.0.1:0", "url": "https://rekindle.example/", "secrets": [{"env": "X"}]}
)


def waiting(name: str, memory_mib: int = 1000, vcpus: int = 2) -> WaitingVm:
    return WaitingVm(
        vm=name, name=name.upper(), priority="high", reason="no_room", memory_mib=memory_mib, vcpus=vcpus
    )


def exhausted(incident: str, *vms: WaitingVm, revision: int = 1) -> CapacityExhausted:
    return CapacityExhausted(incident=incident, revision=revision, waiting=vms)


class Desk(desk.Desk[ScaleOutState]):
    def __init__(self, stream: list[Letter] | None = None) -> None:
        super().__init__(Asking(ScaleOut(deadline_s=600.0, callbacks=CALLBACKS)), 10.0)
        self.stream = stream if stream is not None else []
        self._handled = 0

    def begin(self, records: Records | None = None) -> None:
        self.take(self.decider.resume(self.state, records or self.state.records, self.now))
        self.work()

    def work(self) -> None:
        while self._handled < len(self.asked):
            request = self.asked[self._handled]
            self._handled += 1
            assert isinstance(request, Fetch)
            after = len(self.stream) if request.after is None else request.after
            found = tuple(self.stream[after:])
            end = found[-1].sequence if found else after
            self.hear(Fetched(key=request.key, endpoint="scaleout", letters=found, end=end))

    def tell(self, *facts: AnyFact) -> list[Any]:
        """What it says of them."""
        before = len(self.told)
        for fact in facts:
            envelope = wrap(fact, pool="p", service="s", wall=ZERO)
            self.stream.append(letter(Kept(len(self.stream) + 1, envelope)))
        self.hear(facts[-1])
        self.work()
        return self.told[before:]


def test_a_shortage_is_one_request_that_says_what_is_needed() -> None:
    desk = Desk()
    desk.begin()
    (asked,) = desk.tell(exhausted("i1", waiting("a", 4000, 2), waiting("b", 1000, 8)))
    assert (asked.kind, asked.request, asked.revision) == ("scaleout.requested", "scale-out-1", 1)
    assert asked.needs.model_dump() == {
        "vms": ("A", "B"),
        "memory_mib": 5000,
        "vcpus": 10,
        "host_memory_mib": 4000,
        "host_vcpus": 8,
        "storage": (),
        "networks": (),
        "devices": {},
        "labels": (),
    }
    assert asked.why == ("exhausted",)
    assert asked.callback == "https://rekindle.example/v1/scale-out/scale-out-1"
    assert desk.tell(exhausted("i1", waiting("a", 4000, 2), waiting("b", 1000, 8), revision=2)) == []
    (changed,) = desk.tell(exhausted("i2", waiting("c", 9000, 1)))
    assert (changed.kind, changed.request, changed.revision) == ("scaleout.updated", "scale-out-1", 2)
    assert (changed.needs.memory_mib, changed.needs.host_memory_mib) == (14000, 9000)


def test_it_is_over_when_nothing_waits_and_says_whether_a_host_came() -> None:
    desk = Desk()
    desk.begin()
    desk.tell(exhausted("i1", waiting("a")), exhausted("i2", waiting("b")))
    assert [one.kind for one in desk.tell(CapacityRelieved(incident="i1", revision=2))] == [
        "scaleout.updated"
    ]
    assert desk.tell(HostJoined(at=boot("h9"))) == []
    (closed,) = desk.tell(CapacityRelieved(incident="i2", revision=2))
    assert (closed.kind, closed.outcome, closed.hosts) == ("scaleout.closed", "met", ("h9",))
    assert desk.decider.wake_at(desk.state) is None
    (again,) = desk.tell(exhausted("i3", waiting("a")))
    assert again.request != closed.request, "another shortage is another request"
    (cancelled,) = desk.tell(CapacityRelieved(incident="i3", revision=2))
    assert (cancelled.outcome, cancelled.hosts) == ("cancelled", ())


def test_without_an_answer_people_are_told_once() -> None:
    desk = Desk()
    desk.begin()
    desk.tell(exhausted("i1", waiting("a")))
    began = desk.now
    assert desk.wait() == ["scaleout.escalated"]
    assert desk.now - began == 600.0
    assert desk.told[-1].reason == "no answer for 600 s"
    assert desk.decider.wake_at(desk.state) is None
    (changed,) = desk.tell(exhausted("i1", waiting("a"), waiting("b"), revision=2))
    assert changed.kind == "scaleout.updated"
    assert desk.wait() == ["scaleout.escalated"], "what is more has a deadline of its own"


def test_an_answer_moves_the_deadline_and_a_refusal_goes_to_people_at_once() -> None:
    desk = Desk()
    desk.begin()
    desk.tell(exhausted("i1", waiting("a")))
    desk.now += 500
    accepted = ScaleOutAnswered(request="scale-out-1", answer="x", status="accepted", host="h9")
    assert desk.tell(accepted) == []
    assert desk.decider.wake_at(desk.state) == desk.now + 600
    assert desk.state.records["open"].host == "h9"
    stranger = accepted.model_copy(update={"request": "scale-out-7", "status": "refused", "answer": "y"})
    assert desk.tell(stranger) == [], "of another request"
    refused = accepted.model_copy(update={"status": "refused", "answer": "z", "detail": "no money"})
    (told,) = desk.tell(refused)
    assert (told.kind, told.reason) == ("scaleout.escalated", "it was refused: no money")
    assert desk.tell(refused) == [], "told again"


def test_a_successor_goes_on_with_the_request_that_is_open() -> None:
    desk = Desk()
    desk.begin()
    desk.tell(exhausted("i1", waiting("a")))
    after = Desk(desk.stream)
    after.begin(stored(desk.state.records))
    assert after.told == []
    assert after.wait() == ["scaleout.escalated"]
    (closed,) = after.tell(CapacityRelieved(incident="i1", revision=2))
    assert closed.request == "scale-out-1"


def test_a_stream_that_cannot_be_read_is_read_again() -> None:
    desk = Desk()
    desk.take(desk.decider.resume(desk.state, desk.state.records, desk.now))
    desk.hear(Expired(key=desk.asked[-1].key, request="fetch", reason="not connected"))
    desk._handled = len(desk.asked)
    desk.wait()
    assert desk.decider.wake_at(desk.state) is None
    desk.work()
    assert len(desk.tell(exhausted("i1", waiting("a")))) == 1
    assert scaleout.needs(scaleout.Asked(request="r", waiting={})).host_memory_mib == 0


OVER = Needs(vms=("B", "C"), memory_mib=5000, vcpus=6, host_memory_mib=3000, host_vcpus=4, storage=("nfs",))


def over(number: int = 1, needs: Needs | None = OVER) -> CapacityOvercommitted:
    return CapacityOvercommitted(number=number, target=1, tolerates=0, verified=0, upper_bound=0, needs=needs)


def test_a_host_is_asked_for_before_anything_fails_where_the_pool_is_overcommitted_for_long() -> None:
    desk = Desk()
    desk.begin()
    assert desk.tell(over()) == []
    (kind,) = desk.wait()
    asked = desk.told[-1]
    assert (kind, asked.request, asked.why) == ("scaleout.requested", "scale-out-over-1", ("overcommitted",))
    assert desk.now == 10.0 + 300.0
    assert asked.needs == OVER
    (closed,) = desk.tell(CapacityRestored(number=1, target=1, tolerates=1))
    assert (closed.kind, closed.request, closed.outcome) == (
        "scaleout.closed",
        "scale-out-over-1",
        "cancelled",
    )


def test_an_overcommitment_that_ends_in_time_asks_for_nothing() -> None:
    desk = Desk()
    desk.begin()
    desk.tell(over())
    assert desk.tell(CapacityRestored(number=1, target=1, tolerates=1)) == []
    assert desk.decider.wake_at(desk.state) is None


def test_an_overcommitment_that_lasts_while_vms_wait_is_part_of_the_same_request() -> None:
    desk = Desk()
    desk.begin()
    desk.tell(exhausted("i1", waiting("a")))
    desk.tell(over())
    (kind,) = desk.wait()
    asked = desk.told[-1]
    assert (kind, asked.request, asked.revision) == ("scaleout.updated", "scale-out-1", 2)
    assert asked.why == ("exhausted", "overcommitted")
    assert (asked.needs.memory_mib, asked.needs.host_memory_mib) == (6000, 3000)
    (changed,) = desk.tell(CapacityRelieved(incident="i1", revision=2))
    assert (changed.kind, changed.needs) == ("scaleout.updated", OVER), (
        "the pool is still to tolerate a failure"
    )
    assert desk.tell(CapacityRestored(number=1, target=1, tolerates=1))[0].kind == "scaleout.closed"


def test_another_leader_counts_the_time_of_an_overcommitment_anew() -> None:
    desk = Desk()
    desk.begin()
    desk.tell(over())
    after = Desk(desk.stream)
    after.begin(stored(desk.state.records))
    assert after.wait() == ["scaleout.requested"]


def test_a_pool_that_asks_for_nothing_before_a_failure_may_say_so() -> None:
    desk = Desk()
    desk.decider = Asking(ScaleOut(overcommitted_s=None))
    desk.begin()
    desk.tell(over())
    assert desk.decider.wake_at(desk.state) is None


def test_the_request_says_what_the_host_must_have() -> None:
    desk = Desk()
    desk.begin()
    a = waiting("a").model_copy(update={"storage": ("san",), "requires_labels": "rack=r1,disk=ssd"})
    b = waiting("b").model_copy(update={"storage": ("nfs", "san"), "devices": {"gpu": 1}})
    (asked,) = desk.tell(exhausted("i1", a, b))
    assert asked.needs.storage == ("nfs", "san")
    assert asked.needs.labels == ("disk=ssd", "rack=r1")
    assert asked.needs.devices == {"gpu": 1}


class Clock:
    def monotonic(self) -> float:
        return 0.0

    def wall(self) -> datetime:
        return datetime.now(UTC)


Send = Callable[..., Any]


@pytest.fixture
async def desk_and_send() -> AsyncIterator[tuple[World, Send]]:
    """Alerting's endpoint over a bus in memory, and somebody who sends it answers."""
    world = World()
    process = Process(world)
    desk = Callback((KEY,), process, process, Clock())  # its bus and store in one
    async with serving(CALLBACKS, desk) as port, aiohttp.ClientSession() as session:

        async def send(
            body: dict[str, Any], *, key: str = KEY, name: str = "msg_1", age_s: float = 0.0, **headers: str
        ) -> int:
            text, wall = json.dumps(body), datetime.now(UTC) - timedelta(seconds=age_s)
            signature = Signer(key).sign(name, wall, text)
            signed = {
                "webhook-id": name,
                "webhook-timestamp": str(int(wall.timestamp())),
                "webhook-signature": signature,
            }
            url = f"http://127.0.0.1:{port}/v1/scale-out/scale-out-1"
            async with session.post(url, data=text, headers={**signed, **headers}) as response:
                return response.status

        yield world, send


async def test_a_signed_answer_is_an_event(desk_and_send: tuple[World, Send]) -> None:
    world, send = desk_and_send
    assert await send({"status": "accepted", "host": "h9", "more": 1}) == 202
    (fact,) = world.stream
    assert isinstance(fact, ScaleOutAnswered)
    assert (fact.request, fact.status, fact.host) == ("scale-out-1", "accepted", "h9")


async def test_a_forged_a_stale_and_a_replayed_answer_are_refused_and_told(
    desk_and_send: tuple[World, Send],
) -> None:
    world, send = desk_and_send
    good = {"status": "accepted"}
    assert await send(good, key=OTHER) == 401
    assert await send(good, age_s=400) == 401
    assert await send(good, **{"webhook-signature": "v1,nonsense"}) == 401
    assert await send(good, **{"webhook-signature": "nonsense"}) == 401
    assert await send(good, **{"webhook-id": "msg_2"}) == 401, "the signature is of another id"
    assert [fact.kind for fact in world.stream] == ["callback.refused"], "a flood is one event a minute"
    assert await send(good) == 202
    assert await send(good) == 409
    assert [fact.kind for fact in world.stream if fact.kind == "scaleout.answered"] == ["scaleout.answered"]
    assert await send({"status": "perhaps"}, name="msg_3") == 400
    assert await send({"status": "accepted", "detail": "x" * 100_000}, name="msg_4") == 413
