"""The workflow engines of docs/WORKFLOWS.md: each configuration as it stands there, posted to a small server that checks the
request as the engine's own documentation has it."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from aiohttp import web
from standardwebhooks.webhooks import Webhook as Signer

from libs.config.webhooks import Webhook
from libs.config.yamlfile import BadInputError
from libs.core.clock import SystemClock
from libs.core.ports import Kept
from libs.events.envelope import wrap
from libs.events.scaleout import Needs, ScaleOutRequested
from services.alerting import posting
from services.alerting.letters import letter
from services.alerting.posting import Answer, Poster, Target
from services.alerting.schedule import Verdict
from services.alerting.shaping import shaped

pytestmark = pytest.mark.fast
PAGE = Path(__file__).parents[2] / "docs" / "WORKFLOWS.md"
NAMES = ("generic", "awx", "rundeck", "stackstorm")
KEY = "whsec_" + base64.b64encode(bytes(32)).decode()
FACT = ScaleOutRequested(
    request="scale-out-7",
    revision=1,
    needs=Needs(vms=("db",), memory_mib=8192, vcpus=4, host_memory_mib=8192, host_vcpus=4, storage=("san",)),
    why=("exhausted",),
    deadline_s=600.0,
    callback="https://rekindle.example.com/v1/scale-out/scale-out-7",
)
SECRETS = {"capacity.key": KEY, "awx.token": "Bearer t0k", "rundeck.token": "t0k", "st2.key": "t0k"}
Check = Callable[[web.Request, Any], tuple[int, Any]]


def configured(name: str) -> dict[str, Any]:
    found = re.search(rf"<!-- workflow {name} -->\n```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert found is not None
    loaded: dict[str, Any] = yaml.safe_load(found[1])
    return loaded


def made_usable(webhook: dict[str, Any], port: int, folder: Path) -> Target:
    """The same, with this machine's secrets and address."""
    text = json.dumps(webhook).replace("/etc/rekindle/", f"{folder}/")
    parts = urlsplit(webhook["url"])
    text = text.replace(f"{parts.scheme}://{parts.netloc}", f"http://127.0.0.1:{port}")
    for name, secret in SECRETS.items():
        (folder / name).write_text(secret)
    return Target.of(Webhook.model_validate_json(text), "alerts.webhooks.0")


def generic(request: web.Request, body: Any) -> tuple[int, Any]:
    assert body["type"] == "rekindle.scaleout.requested.v1"
    assert body["data"]["request"] == "scale-out-7"
    return 204, None


def awx(request: web.Request, body: Any) -> tuple[int, Any]:
    """`POST /api/v2/job_templates/{id}/launch/`: a bearer token, `extra_vars`; 201 with the job."""
    if not re.fullmatch(r"/api/v2/job_templates/\d+/launch/", request.path):
        return 404, {}
    if request.headers.get("Authorization") != "Bearer t0k":
        return 401, {"detail": "Authentication credentials were not provided."}
    unknown = set(body) - {"extra_vars", "inventory", "limit", "credentials", "job_tags", "job_type"}
    if unknown or not isinstance(body["extra_vars"], dict):
        return 400, {"extra_vars": ["Must be valid JSON or YAML."]}
    given = body["extra_vars"]
    assert (given["rekindle_request"], given["rekindle_callback"]) == (FACT.request, FACT.callback)
    assert given["rekindle_needs"]["host_memory_mib"] == 8192, "a number stays one"
    assert given["rekindle_needs"]["storage"] == ["san"]
    return 201, {"job": 901, "ignored_fields": {}}


def rundeck(request: web.Request, body: Any) -> tuple[int, Any]:
    """`POST /api/V/job/ID/run` from API 18 on: `options` is an object of texts; 200 with the execution."""
    if not re.fullmatch(r"/api/(1[89]|[2-9]\d)/job/[0-9a-f-]{36}/run", request.path):
        return 404, {"error": True, "errorCode": "api.error.api-version.unsupported"}
    if request.headers.get("X-Rundeck-Auth-Token") != "t0k":
        return 403, {"error": True, "errorCode": "unauthorized"}
    assert request.headers["Accept"] == "application/json"
    assert set(body) <= {"argString", "loglevel", "asUser", "filter", "runAtTime", "options"}
    assert all(isinstance(value, str) for value in body["options"].values()), "options are texts"
    assert body["options"] == {
        "request": "scale-out-7",
        "callback": FACT.callback,
        "memory_mib": "8192",
        "vcpus": "4",
    }
    return 200, {"id": 1, "status": "running"}


def stackstorm(request: web.Request, body: Any) -> tuple[int, Any]:
    """`POST /api/v1/webhooks/NAME`: an API key in its header, JSON; 202."""
    if not request.path.startswith("/api/v1/webhooks/"):
        return 404, {}
    if request.headers.get("St2-Api-Key") != "t0k":
        return 401, {"faultstring": "Unauthorized"}
    assert body["event"] == "rekindle.scaleout.requested.v1"
    assert (body["request"], body["needs"]["vcpus"]) == ("scale-out-7", 4)
    return 202, body


CHECKS: dict[str, Check] = {"generic": generic, "awx": awx, "rundeck": rundeck, "stackstorm": stackstorm}


@asynccontextmanager
async def engine(check: Check) -> AsyncIterator[tuple[int, list[str]]]:
    """The engine's port, and what was wrong with what it was sent."""
    wrong: list[str] = []

    async def take(request: web.Request) -> web.Response:
        raw = await request.read()
        try:
            if check is generic:
                Signer(KEY).verify(raw, dict(request.headers))
            else:
                assert request.content_type == "application/json"
            status, answer = check(request, json.loads(raw))
        except Exception as error:  # noqa: BLE001  told by the test
            wrong.append(repr(error))
            return web.Response(status=500)
        return web.json_response(answer, status=status) if answer is not None else web.Response(status=status)

    application = web.Application()
    application.router.add_post("/{path:.*}", take)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield runner.addresses[0][1], wrong
    finally:
        await runner.cleanup()


async def posted(target: Target) -> Answer:
    kept = Kept(7, wrap(FACT, pool="p", service="alerting", wall=datetime.now(UTC)))
    made = letter(kept)
    async with posting.session() as session:
        return await Poster(session, SystemClock()).post(target, made.id, made.body)


@pytest.mark.parametrize("name", NAMES)
async def test_each_engine_takes_the_request_that_the_page_configures(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REKINDLE_ACCEPT", "application/json")
    async with engine(CHECKS[name]) as (port, wrong):
        answer = await posted(made_usable(configured(name), port, tmp_path))
    assert wrong == []
    assert answer.verdict is Verdict.DELIVERED, answer.reason


@pytest.mark.parametrize("name", ["awx", "rundeck", "stackstorm"])
async def test_a_wrong_token_is_no_delivery(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REKINDLE_ACCEPT", "application/json")
    async with engine(CHECKS[name]) as (port, _):
        target = made_usable(configured(name), port, tmp_path)
        headers = {header: "another" for header in target.headers}
        answer = await posted(Target(target.webhook, target.keys, target.trust, headers))
    assert answer.verdict is Verdict.FAILED


async def test_a_token_goes_to_no_other_host_that_a_redirect_leads_to(tmp_path: Path) -> None:
    seen: list[str | None] = []

    def elsewhere(request: web.Request, body: Any) -> tuple[int, Any]:
        seen.append(request.headers.get("St2-Api-Key"))
        return 202, {}

    async with engine(elsewhere) as (other, _):

        async def away(request: web.Request) -> web.Response:
            raise web.HTTPTemporaryRedirect(f"http://127.0.0.1:{other}/api/v1/webhooks/rekindle")

        application = web.Application()
        application.router.add_post("/{path:.*}", away)
        runner = web.AppRunner(application, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        webhook = {**configured("stackstorm"), "redirects_to": [f"127.0.0.1:{other}"]}
        answer = await posted(made_usable(webhook, runner.addresses[0][1], tmp_path))
        await runner.cleanup()
    assert answer.verdict is Verdict.DELIVERED
    assert seen == [None]


def test_a_form_is_filled_with_texts_and_with_parts_as_they_are() -> None:
    event = {"type": "t", "data": {"n": 3, "list": [1, 2], "name": "x"}}
    form = {
        "a": "${type}/${data.n}",
        "b": {"$event": "data.list"},
        "c": ["${data.name}", 7],
        "d": "${data.no.such}",
    }
    assert shaped(form, event) == {"a": "t/3", "b": [1, 2], "c": ["x", 7], "d": ""}
    assert shaped({"$event": "no.such"}, event) is None
    assert shaped({"$event": "type", "and": 1}, event) == {"$event": "type", "and": 1}


@pytest.mark.parametrize("name", ["Host", "webhook-signature", "Content-Length", "two words", ""])
def test_a_header_that_is_ours_or_none_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="no name of a header"):
        Webhook.model_validate({"name": "x", "url": "https://x/", "headers": {name: {"env": "X"}}})


def test_a_header_whose_file_cannot_be_read_is_named_with_field_and_reason(tmp_path: Path) -> None:
    webhook = {"name": "x", "url": "https://x/", "headers": {"X-Token": {"file": str(tmp_path / "none")}}}
    with pytest.raises(BadInputError, match=r"^alerts\.webhooks\.0\.headers\.X-Token: .*cannot be read"):
        Target.of(Webhook.model_validate(webhook), "alerts.webhooks.0")
    (tmp_path / "two").write_text("a\nb")
    webhook["headers"] = {"X-Token": {"file": str(tmp_path / "two")}}
    with pytest.raises(BadInputError, match="no value of a header"):
        Target.of(Webhook.model_validate(webhook), "alerts.webhooks.0")
