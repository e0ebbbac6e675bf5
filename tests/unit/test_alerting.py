"""Every fact to the log, and to the webhook until it is delivered; never more kept than is bounded."""

from __future__ import annotations

from typing import Any, get_args

import aiohttp
import pytest
from aiohttp import web

from libs.core.decider import Expired
from libs.events.facts import AnyFact
from libs.events.hosts import HostFailed, HostFenceFailed
from services.alerting import decide
from services.alerting.act import Hands
from services.alerting.decide import Alerting, AlertingState, Announce, Posted, PostWebhook
from services.alerting.texts import TEXTS, Severity, tell
from tests.unit import desk
from tests.unit.made import boot, failed, stored, vm

pytestmark = pytest.mark.fast


class Desk(desk.Desk[AlertingState]):
    """Alerting."""

    def __init__(self, webhook: bool = True) -> None:
        super().__init__(Alerting(webhook, 5.0), 10.0)

    def posted(self, ok: bool) -> list[str]:
        request = self.asked[-1]
        return self.hear(Posted(key=request.key, record=request.record, ok=ok))


def test_a_fact_goes_to_the_log_and_to_the_webhook() -> None:
    desk = Desk()
    assert desk.hear(failed(boot("h1"), vm("a"))) == [
        "log/host.failed/h1-1",
        "post/host.failed.h1-1/1",
    ]
    log, post = desk.asked
    assert (log.severity, log.text) == ("critical", "host h1 has failed (), 1 VMs ran there")
    assert (post.id, post.body["severity"], post.body["data"]["incident"]) == (
        "host.failed/h1-1",
        "critical",
        "h1-1",
    )
    assert desk.hear(failed(boot("h1"), vm("a"))) == [], "told again"
    assert desk.posted(True) == []
    assert len(desk.state.records) == 0


def test_it_is_tried_until_it_is_delivered_with_a_growing_pause() -> None:
    desk = Desk()
    desk.hear(failed(boot("h1")))
    pauses = []
    for _ in range(15):
        began = desk.now
        desk.posted(False)
        desk.wait()
        pauses.append(desk.now - began)
    assert pauses[:5] == [1, 2, 4, 8, 16]
    assert pauses[-1] == 300
    assert {one.id for one in desk.asked if one.kind == "post_webhook"} == {"host.failed/h1-1"}
    desk.posted(True)
    assert len(desk.state.records) == 0
    assert desk.decider.wake_at(desk.state) is None


def test_a_post_without_an_end_counts_as_not_delivered() -> None:
    desk = Desk()
    desk.hear(failed(boot("h1")))
    desk.hear(Expired(key="post/host.failed.h1-1/1", request="post_webhook", reason="no end"))
    assert desk.wait() == ["post/host.failed.h1-1/2"]


def test_after_a_day_it_is_given_up() -> None:
    desk = Desk()
    desk.hear(failed(boot("h1")))
    for _ in range(decide.TRIES - 1):
        desk.posted(False)
        desk.wait()
    assert desk.now > 80_000
    desk.posted(False)
    assert len(desk.state.records) == 0


def test_what_waits_is_bounded_and_what_finds_no_place_is_still_logged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(decide, "PENDING", 10)
    desk = Desk()
    for number in range(30):
        desk.hear(failed(boot(f"h{number}")))
    assert len(desk.state.records) == 10
    assert len([one for one in desk.asked if one.kind == "announce"]) == 30


def test_without_a_webhook_nothing_is_kept() -> None:
    desk = Desk(webhook=False)
    assert desk.hear(failed(boot("h1"))) == ["log/host.failed/h1-1"]
    assert len(desk.state.records) == 0


def test_a_successor_posts_what_its_predecessor_waited_with() -> None:
    desk = Desk()
    desk.hear(failed(boot("h1")))
    desk.posted(False)
    after = Desk()
    after.take(after.decider.resume(after.state, stored(desk.state.records), 5.0))
    assert after.take(after.decider.step(after.state, None, 5.0)) == ["post/host.failed.h1-1/2"]


def test_every_kind_of_fact_has_its_words() -> None:
    kinds = {get_args(one.model_fields["kind"].annotation)[0] for one in get_args(get_args(AnyFact)[0])}
    assert kinds == set(TEXTS)


def test_what_is_missing_for_a_proof_is_named() -> None:
    fact = HostFenceFailed(at=boot("h1"), incident="i", attempt=1, missing=("fence_ipmilan: no answer",))
    severity, text = tell(fact)
    assert severity is Severity.CRITICAL
    assert "fence_ipmilan: no answer" in text
    assert isinstance(failed(boot("h1")), HostFailed)


async def test_only_a_2xx_is_delivered_and_repeats_have_the_same_id() -> None:
    answers = [500, 302, 204]
    seen: list[tuple[str, Any]] = []

    async def hook(request: web.Request) -> web.Response:
        seen.append((request.headers["webhook-id"], await request.json()))
        status = answers.pop(0)
        return web.Response(status=status, headers={"Location": "/elsewhere"} if status == 302 else {})

    app = web.Application()
    app.router.add_post("/hook", hook)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    async with aiohttp.ClientSession() as session:
        hands = Hands(f"http://127.0.0.1:{port}/hook", 2.0, session)
        request = PostWebhook(
            key="post/a/1", deadline_s=3.0, id="host.failed/h1-1", record="a", body={"n": 1}
        )
        done = [await hands.perform(request) for _ in range(3)]
        await runner.cleanup()
        gone = await hands.perform(request)
        await hands.perform(Announce(key="log/a", deadline_s=1.0, severity="info", text="a sentence"))
    assert [one.ok for one in done if isinstance(one, Posted)] == [False, False, True]
    assert isinstance(gone, Posted)
    assert not gone.ok
    assert seen == [("host.failed_h1-1", {"n": 1})] * 3
