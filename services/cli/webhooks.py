"""`rekindle webhooks`: how deliveries stand, one try by hand, and dead letters sent again."""

from __future__ import annotations

import asyncio
import getpass
import json
import socket
import sys
import uuid
from datetime import UTC, datetime
from typing import Annotated, Any
from urllib.parse import urlsplit

import typer
from pydantic import TypeAdapter, ValidationError

from libs import readmodel
from libs.config.settings import Settings
from libs.config.webhooks import Webhook, refuse_unusable
from libs.config.yamlfile import BadInputError, did_you_mean
from libs.events.webhooks import WebhookRetryOrdered
from libs.jetstream.archive import JetStreamArchive
from libs.jetstream.schema import Names
from services.alerting.letters import Dead, Place, Record
from services.cli import tables
from services.cli.app import ConfigOption, JsonOption, config_path, print_json, settings_of

webhooks = typer.Typer(help="Deliveries of events to other systems.", no_args_is_help=True)
NameArgument = Annotated[str, typer.Argument(help="of the webhook in the pool file")]
RECORD: TypeAdapter[Place | Dead] = TypeAdapter(Record)


@webhooks.command("list")
def list_(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Each webhook: whether it takes events, how many wait, and what was given up."""
    settings = settings_of(config)
    found = asyncio.run(_listed(settings))
    if as_json:
        print_json(found)
        return
    tables.rows("", ("name", "state", "to", "waiting", "dead", "detail"), found["webhooks"])
    if found["dead_letters"]:
        sys.stdout.write("\n")
        tables.rows("dead letters", ("webhook", "event", "tries", "reason"), found["dead_letters"])


@webhooks.command("retry")
def retry(
    name: NameArgument,
    event: Annotated[
        list[str] | None, typer.Argument(help="ids of events; all dead letters without one")
    ] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Send dead letters again, and go on with an endpoint that had said it was gone."""
    settings = settings_of(config)
    _known(settings, name)
    word = WebhookRetryOrdered(
        endpoint=name,
        order=uuid.uuid4().hex[:12],
        events=tuple(event or ()),
        by=f"{getpass.getuser()}@{socket.gethostname()}",
    )

    async def run() -> None:
        async with readmodel.reader(settings) as reader:
            await reader.bus.publish(word)

    asyncio.run(run())
    if as_json:
        print_json({"schema": "rekindle.webhook_retry.v1", "webhook": name, "order": word.order})
    else:
        sys.stdout.write(f"{name} is tried again; `rekindle webhooks list` shows what comes of it\n")


@webhooks.command("test")
def try_once(name: NameArgument, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Post one signed test event from here and say what came of it. Needs no plane. Exit 1 where it was not taken."""
    settings = settings_of(config)
    _known(settings, name)
    refuse_unusable(settings.alerts.webhooks, config_path(config))
    verdict, reason = asyncio.run(_posted(settings, name))
    if as_json:
        body = {"schema": "rekindle.webhook_test.v1", "webhook": name, "delivered": verdict, "reason": reason}
        print_json(body)
    elif verdict:
        sys.stdout.write(f"{name} took it: {reason}\n")
    if not verdict:
        sys.stderr.write(f"rekindle: {name} did not take it: {reason}\n")
        raise typer.Exit(1)


def _known(settings: Settings, name: str) -> Webhook:
    names = [one.name for one in settings.alerts.webhooks]
    if name not in names:
        known = f"; there are {', '.join(names)}" if names else "; the pool file has none"
        raise BadInputError(f"NAME: no webhook is called {name}{did_you_mean(name, names)}{known}")
    return settings.alerts.webhooks[names.index(name)]


async def _listed(settings: Settings) -> dict[str, Any]:
    async with readmodel.reader(settings) as reader:
        rows = await reader.store("state").scan("webhooks.")
        end = await JetStreamArchive(reader.bus.client, Names(settings.pool)).last()
    records: dict[str, Place | Dead] = {}
    for row in rows:
        try:
            record = RECORD.validate_python(json.loads(row.value)["record"])
        except (ValidationError, ValueError, KeyError):
            continue  # of another version, or a debt alone
        records[row.key.removeprefix("webhooks.")] = record
    dead = [record for record in records.values() if isinstance(record, Dead)]
    return {
        "schema": "rekindle.webhooks.v1",
        "webhooks": [
            _standing(one, records.get(f"place.{one.name}"), dead, end) for one in settings.alerts.webhooks
        ],
        "dead_letters": [
            {
                "webhook": one.endpoint,
                "event": one.event,
                "sequence": one.sequence,
                "tries": one.tries,
                "reason": one.reason,
            }
            for one in dead
        ],
    }


def _standing(webhook: Webhook, place: Place | Dead | None, dead: list[Dead], end: int) -> dict[str, Any]:
    """`waiting`: events in the stream beyond its place, also such as it does not want."""
    parts = urlsplit(webhook.url)
    told = {"name": webhook.name, "to": f"{parts.scheme}://{parts.netloc}"}  # a path may hold a secret
    count = sum(1 for one in dead if one.endpoint == webhook.name)
    if not isinstance(place, Place):
        return {
            **told,
            "state": "new",
            "waiting": 0,
            "dead": count,
            "detail": "alerting has not taken it up yet",
        }
    state, detail = "ok", ""
    if place.disabled:
        state, detail = "disabled", f"it said that it is gone ({place.disabled})"
    elif place.tries:
        state, detail = "failing", f"{place.tries} tries in vain"
    return {**told, "state": state, "waiting": max(0, end - place.sequence), "dead": count, "detail": detail}


async def _posted(settings: Settings, name: str) -> tuple[bool, str]:
    from libs.core.clock import SystemClock
    from libs.lean import let_in

    let_in("aiohttp")
    from services.alerting import posting
    from services.alerting.schedule import Verdict
    from services.alerting.targets import targets

    event = f"webhook.test/{name}/{uuid.uuid4().hex[:12]}"
    body = {
        "specversion": "1.0",
        "id": event,
        "source": f"/rekindle/{settings.pool}/cli",
        "type": "rekindle.webhook.test.v1",
        "subject": name,
        "time": datetime.now(UTC).isoformat(),
        "datacontenttype": "application/json",
        "severity": "info",
        "text": f"a test of webhook {name}, sent by hand",
        "data": {"kind": "webhook.test", "endpoint": name},
    }
    async with posting.session() as session:
        poster = posting.Poster(session, SystemClock())
        answer = await poster.post(targets(settings)[name], event, json.dumps(body))
    return answer.verdict is Verdict.DELIVERED, answer.reason
