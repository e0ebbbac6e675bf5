"""What other systems tell: who may, what it means by the rules, that it is taken once, and that it is never a verdict."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from standardwebhooks.webhooks import Webhook as Signer

from libs.config.alerts import refuse_files
from libs.config.incoming import Incoming
from libs.config.settings import load_settings
from libs.config.yamlfile import BadInputError
from libs.events.outside import OutsideTold
from libs.events.scaleout import ScaleOutAnswered
from services.alerting import meaning
from services.alerting.callbacks import listening
from services.alerting.front import Published
from services.alerting.intake import ALERTMANAGER, EVENTS, Intake
from tests.unit.world import Process, World

pytestmark = pytest.mark.fast
KEY, OTHER = ("whsec_" + base64.b64encode(bytes([n]) * 32).decode() for n in (1, 2))
TOKEN = "a-token-of-a-good-length"
HOSTS = ("kvm1", "kvm2")
RULES = {
    "rules": [
        {"name": "Disk*", "severities": ["critical"], "do": "mark_suspect"},
        {"source": "power-*", "do": "drain"},
        {"source": "alertmanager", "labels": {"alertname": "PowerCut*", "room": "r?"}, "do": "drain"},
        {"name": "Disk*", "do": "note"},
    ]
}
INCOMING = Incoming.model_validate(RULES)


def told(source: str = "events", **fields: Any) -> OutsideTold:
    body = {"id": "1", "name": "DiskFailing", "host": "kvm1", "severity": "critical", **fields}
    return meaning.of_event(meaning.Told.model_validate(body), source, INCOMING, HOSTS)


@pytest.mark.parametrize(
    ("source", "fields", "action"),
    [
        ("events", {}, "mark_suspect"),
        ("events", {"severity": "warning"}, "note"),
        ("power-room1", {"name": "maintenance"}, "drain"),
        ("events", {"name": "unheard-of"}, "note"),
        ("events", {"host": "kvm9"}, "note"),
        ("events", {"host": ""}, "note"),
        ("events", {"state": "resolved"}, "note"),
    ],
)
def test_the_first_rule_that_matches_says_what_it_means(source: str, fields: Any, action: str) -> None:
    assert told(source, **fields).action == action


@pytest.mark.parametrize(
    ("text", "host"),
    [("kvm1", "kvm1"), ("kvm1:9100", "kvm1"), ("kvm1.example.com:9100", "kvm1"), ("kvm10", ""), ("", "")],
)
def test_a_host_is_known_by_its_name_with_port_or_domain(text: str, host: str) -> None:
    assert meaning.named(text, HOSTS) == host


def notification(**alert: Any) -> dict[str, Any]:
    """As Alertmanager's documentation has it, version 4."""
    one = {
        "status": "firing",
        "labels": {
            "alertname": "PowerCutPlanned",
            "room": "r1",
            "instance": "kvm2:9100",
            "severity": "warning",
        },
        "annotations": {"summary": "the power of room r1 is cut at noon"},
        "startsAt": "2026-11-29T10:00:00Z",
        "endsAt": "0001-01-01T00:00:00Z",
        "generatorURL": "http://prometheus/graph",
        "fingerprint": "1234567890abcdef",
        **alert,
    }
    return {
        "version": "4",
        "groupKey": '{}:{alertname="PowerCutPlanned"}',
        "truncatedAlerts": 0,
        "status": one["status"],
        "receiver": "rekindle",
        "groupLabels": {"alertname": "PowerCutPlanned"},
        "commonLabels": one["labels"],
        "commonAnnotations": one["annotations"],
        "externalURL": "http://alertmanager:9093",
        "alerts": [one],
    }


@dataclass
class Operator:
    """Closes hosts and drains them, unless it is told that the bus is away."""

    closed: list[str]

    async def enter_maintenance(self, host: str, *, drain: bool) -> None:
        assert drain, "what runs there is to move away"
        self.closed.append(host)


class Clock:
    def monotonic(self) -> float:
        return 0.0

    def wall(self) -> datetime:
        return datetime.now(UTC)


@dataclass
class Place:
    world: World
    operator: Operator
    intake: Intake
    send: Callable[..., Any]
    alert: Callable[..., Any]

    def kinds(self) -> list[str]:
        return [fact.kind for fact in self.world.stream]

    def actions(self) -> list[str]:
        return [fact.action for fact in self.world.stream if isinstance(fact, OutsideTold)]


@pytest.fixture
async def place() -> AsyncIterator[Place]:
    world, operator = World(), Operator([])
    process = Process(world)
    intake = Intake(INCOMING, (KEY,), (TOKEN,), HOSTS, process, process, Clock(), operator)  # type: ignore[arg-type]
    routes = [web.post(EVENTS, intake.event), web.post(ALERTMANAGER, intake.alertmanager)]
    async with listening("127.0.0.1:0", "here", routes) as port, aiohttp.ClientSession() as session:

        async def send(body: Any, *, key: str = KEY, name: str = "msg_1", age_s: float = 0.0) -> int:
            text, wall = json.dumps(body), datetime.now(UTC) - timedelta(seconds=age_s)
            headers = {
                "webhook-id": name,
                "webhook-timestamp": str(int(wall.timestamp())),
                "webhook-signature": Signer(key).sign(name, wall, text),
            }
            async with session.post(
                f"http://127.0.0.1:{port}{EVENTS}", data=text, headers=headers
            ) as response:
                return response.status

        async def alert(body: Any, token: str = TOKEN) -> int:
            headers = {"Authorization": f"Bearer {token}"} if token else {}
            url = f"http://127.0.0.1:{port}{ALERTMANAGER}"
            async with session.post(url, json=body, headers=headers) as response:
                return response.status

        yield Place(world, operator, intake, send, alert)


EVENT = {"id": "e1", "name": "DiskFailing", "host": "kvm1", "severity": "critical", "text": "sector 7"}


async def test_a_signed_event_is_a_fact_with_its_meaning(place: Place) -> None:
    assert await place.send(EVENT) == 202
    (fact,) = place.world.stream
    assert isinstance(fact, OutsideTold)
    assert (fact.source, fact.host, fact.action, fact.text) == ("events", "kvm1", "mark_suspect", "sector 7")
    assert place.operator.closed == []


async def test_a_forged_a_stale_and_a_replayed_event_are_refused_and_told(place: Place) -> None:
    assert await place.send(EVENT, key=OTHER) == 401
    assert await place.send(EVENT, age_s=400) == 401
    assert place.kinds() == ["callback.refused"]
    assert await place.send(EVENT) == 202
    assert await place.send(EVENT) == 409
    assert place.actions() == ["mark_suspect"]
    assert await place.send({"id": "x"}, name="msg_2") == 400
    assert await place.send({**EVENT, "text": "x" * 100_000}, name="msg_3") == 413


async def test_alertmanagers_own_notification_closes_the_host_that_its_label_names(place: Place) -> None:
    assert await place.alert(notification()) == 202
    assert place.operator.closed == ["kvm2"]
    (fact,) = place.world.stream
    assert isinstance(fact, OutsideTold)
    assert (fact.source, fact.name, fact.severity) == ("alertmanager", "PowerCutPlanned", "warning")
    assert fact.text == "the power of room r1 is cut at noon"


async def test_alertmanager_repeats_itself_and_that_is_no_news(place: Place) -> None:
    await place.alert(notification())
    assert await place.alert(notification()) == 202
    assert len(place.world.stream) == 1
    assert await place.alert(notification(status="resolved")) == 202
    assert place.actions() == ["drain", "note"], "that it is over opens no host by itself"
    assert await place.alert(notification(startsAt="2026-11-30T10:00:00Z")) == 202
    assert place.actions() == ["drain", "note", "drain"], "another one of the same name"


@pytest.mark.parametrize("token", ["", "a-token-of-another-length", TOKEN + "x", TOKEN[:-1]])
async def test_a_wrong_token_is_refused_and_told(place: Place, token: str) -> None:
    assert await place.alert(notification(), token) == 401
    assert place.kinds() == ["callback.refused"]
    assert place.operator.closed == []


@pytest.mark.parametrize(
    "body", [{}, [], {**notification(), "version": "3"}, {**notification(), "alerts": [{}]}]
)
async def test_what_is_no_notification_is_refused_by_name(place: Place, body: Any) -> None:
    assert await place.alert(body) == 400
    assert place.world.stream == []


async def test_a_bus_that_is_away_is_told_and_the_same_event_may_come_again(place: Place) -> None:
    place.world.store_down = True
    assert await place.send(EVENT) == 503
    place.world.store_down = False
    assert await place.send(EVENT) == 202


async def test_over_the_bus_a_user_tells_in_its_own_name_and_a_repeat_is_no_news(place: Place) -> None:
    body = json.dumps({**EVENT, "id": "b1", "name": "maintenance"}).encode()
    assert await place.intake.heard("power-room1", "event", body) == {"taken": True, "action": "drain"}
    assert await place.intake.heard("power-room1", "event", body) == {"taken": True, "action": "drain"}
    assert len(place.world.stream) == 1
    assert "error" in await place.intake.heard("power-room1", "event", b"nonsense")
    assert "error" in await place.intake.heard("power-room1", "what", body)


async def test_a_scale_out_request_is_answered_over_the_bus(place: Place) -> None:
    body = json.dumps({"id": "a1", "request": "scale-out-7", "status": "accepted", "host": "h9"}).encode()
    assert await place.intake.heard("awx", "scaleout", body) == {"taken": True}
    assert await place.intake.heard("awx", "scaleout", body) == {"taken": True}
    (fact,) = place.world.stream
    assert isinstance(fact, ScaleOutAnswered)
    assert (fact.request, fact.status, fact.host) == ("scale-out-7", "accepted", "h9")
    assert "error" in await place.intake.heard(
        "awx", "scaleout", b'{"id": "a2", "request": "r", "status": "yes"}'
    )


async def test_the_schemas_are_served() -> None:
    async with (
        listening("127.0.0.1:0", "here", Published().routes()) as port,
        aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session,
    ):

        async def get(path: str) -> tuple[int, Any]:
            async with session.get(path) as response:
                return response.status, await response.json()

        status, document = await get("/asyncapi.json")
        assert (status, document["asyncapi"]) == (200, "3.0.0")
        _, listed = await get("/schemas/")
        assert "rekindle.host.failed.v1.json" in listed["schemas"]
        status, one = await get("/schemas/rekindle.host.failed.v1.json")
        assert (status, one["$id"]) == (200, "urn:rekindle:schema:rekindle.host.failed.v1")
        status, _ = await get("/schemas/nothing.json")
        assert status == 404


@pytest.mark.parametrize(
    ("incoming", "line", "told"),
    [
        ("{listen: '0.0.0.0:7420'}", 4, "alerts.incoming: .*neither secrets nor tokens"),
        ("{tokens: [{env: X}]}", 4, "alerts.incoming: .*no listen"),
        ("{listen: here, tokens: [{env: X}]}", 4, "alerts.incoming.listen"),
        ("{rules: [{do: fence}]}", 4, "alerts.incoming.rules.0.do"),
        (
            "{listen: '127.0.0.1:7420', tokens: [{file: /none}]}",
            4,
            r"alerts\.incoming\.tokens\.0: .*cannot be read",
        ),
        (
            "{listen: '127.0.0.1:7420', tokens: [{env: SHORT}]}",
            4,
            r"alerts\.incoming\.tokens\.0: is no token",
        ),
        (
            "{listen: '127.0.0.1:7420', secrets: [{env: SHORT}]}",
            4,
            r"alerts\.incoming\.secrets\.0: is no key",
        ),
    ],
)
def test_what_is_wrong_in_the_pool_file_is_named_with_line_field_and_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, incoming: str, line: int, told: str
) -> None:
    monkeypatch.setenv("SHORT", "short")
    config = tmp_path / "pool.yaml"
    config.write_text(
        f"pool: p\nhosts: [{{name: h1, uri: 'test:///default'}}]\nalerts:\n  incoming: {incoming}\n"
    )
    with pytest.raises(BadInputError, match=rf"pool\.yaml: line {line}: {told}") as refused:
        refuse_files(load_settings(config).alerts, config)
    assert "short" not in str(refused.value).replace("shorter", "")
