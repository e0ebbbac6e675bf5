"""`rekindle alerts`: what stands, and an operator's words on it."""

from __future__ import annotations

import asyncio
import getpass
import json
import re
import socket
import sys
import uuid
from typing import Annotated, Any

import typer
from pydantic import TypeAdapter, ValidationError

from libs import readmodel
from libs.config.notify import refuse_unreadable
from libs.config.settings import Settings
from libs.config.webhooks import shown_in
from libs.config.yamlfile import BadInputError, did_you_mean
from libs.events.alerts import AlertAcknowledged, AlertSilenced, AlertUnsilenced
from services.alerting.notices import Alert, AlertRecord, Heard, Message, Silence
from services.cli import tables
from services.cli.app import ConfigOption, JsonOption, config_path, print_json, settings_of

alerts = typer.Typer(help="Alerts that stand, and words on them.", invoke_without_command=True)
RECORD: TypeAdapter[Alert | Silence | Heard | Message] = TypeAdapter(AlertRecord)
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


@alerts.callback()
def listed(context: typer.Context, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """All alerts that stand, the worst first; and silences."""
    if context.invoked_subcommand is not None:
        return
    found, silences, waiting = asyncio.run(_read(settings_of(config)))
    if as_json:
        body = {
            "schema": "rekindle.alerts.v1",
            "alerts": [one.model_dump(mode="json", exclude={"kind"}) for one in found],
            "silences": [one.model_dump(mode="json", exclude={"kind"}) for one in silences],
            "messages_waiting": waiting,
        }
        print_json(body)
        return
    rows = [
        {
            "severity": one.severity.value,
            "key": one.key,
            "since": one.since[:19].replace("T", " "),
            "minded by": one.acknowledged_by,
            "text": one.text,
        }
        for one in found
    ]
    tables.rows("", ("severity", "key", "since", "minded by", "text"), rows)
    if silences:
        told = [
            {"silence": one.order, "keys": one.pattern, "left_s": round(one.left_s), "by": one.by}
            for one in silences
        ]
        tables.rows("silences", ("silence", "keys", "left_s", "by"), told)
    if waiting:
        sys.stdout.write(f"{waiting} messages wait to be taken by their channels\n")


@alerts.command("ack")
def ack(
    key: Annotated[str, typer.Argument(help="of the alert, as `rekindle alerts` shows it")],
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say that you mind an alert: it is repeated no more."""
    settings = settings_of(config)
    found, _, _ = asyncio.run(_read(settings))
    keys = [one.key for one in found]
    if key not in keys:
        raise BadInputError(
            f"KEY: no alert is called {key}{did_you_mean(key, keys)}; `rekindle alerts` has them"
        )
    order = _order()
    _say(settings, AlertAcknowledged(order=order, alert=key, by=_me()))
    _done(as_json, {"word": "acknowledged", "alert": key}, f"{key} is repeated no more")


@alerts.command("silence")
def silence(
    pattern: Annotated[str, typer.Argument(help="keys of alerts; * stands for any part, as in */kvm1")],
    for_: Annotated[str, typer.Option("--for", help="how long, such as 90s, 30m, 2h or 1d")],
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Tell nobody of some alerts for a while. They are raised and cleared all the same."""
    settings, seconds, order = settings_of(config), _seconds(for_), _order()
    _say(settings, AlertSilenced(order=order, pattern=pattern, for_s=seconds, by=_me()))
    _done(
        as_json,
        {"word": "silenced", "silence": order, "pattern": pattern, "for_s": seconds},
        f"nobody is told of {pattern} for {for_}; `rekindle alerts unsilence {order}` ends it",
    )


@alerts.command("unsilence")
def unsilence(
    order: Annotated[str, typer.Argument(metavar="SILENCE", help="as `rekindle alerts` shows it")],
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """End a silence before its time."""
    settings = settings_of(config)
    _, silences, _ = asyncio.run(_read(settings))
    if order not in [one.order for one in silences]:
        raise BadInputError(f"SILENCE: there is no silence {order}; `rekindle alerts` has them")
    _say(settings, AlertUnsilenced(order=_order(), silence=order, by=_me()))
    _done(as_json, {"word": "unsilenced", "silence": order}, f"silence {order} is over")


@alerts.command("test")
def try_once(
    name: Annotated[str, typer.Argument(help="of the channel in the pool file")],
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Send one message through a channel. Needs no plane. Exit 1 where it was not taken."""
    settings, path = settings_of(config), config_path(config)
    names = [one.name for one in settings.alerts.channels]
    if name not in names:
        raise BadInputError(f"NAME: no channel is called {name}{did_you_mean(name, names)}")
    refuse_unreadable(settings.alerts.channels, settings.alerts.alertmanagers, path)
    from libs.lean import let_in

    let_in("aiohttp")
    from services.alerting.notify import Speaker
    from services.alerting.texts import Severity

    index = names.index(name)
    with shown_in(path):
        speaker = Speaker.of(settings.alerts.channels[index], f"alerts.channels.{index}")
    text = f"[{settings.pool}] a test of channel {name}, sent by {_me()}"
    taken = asyncio.run(speaker.say(text, text, Severity.INFO, over=False))
    if as_json:
        print_json({"schema": "rekindle.alerts_test.v1", "channel": name, "taken": taken})
    else:
        sys.stdout.write(f"{name} {'took it' if taken else 'did not take it'}\n")
    if not taken:
        raise typer.Exit(1)


async def _read(settings: Settings) -> tuple[list[Alert], list[Silence], int]:
    async with readmodel.reader(settings) as reader:
        rows = await reader.store("state").scan("alerts.")
    found: list[Alert] = []
    silences: list[Silence] = []
    waiting = 0
    for row in rows:
        try:
            record = RECORD.validate_python(json.loads(row.value)["record"])
        except (ValidationError, ValueError, KeyError):
            continue  # of another version, or a debt alone
        if isinstance(record, Alert) and not record.over:
            found.append(record)
        elif isinstance(record, Silence):
            silences.append(record)
        elif isinstance(record, Message):
            waiting += 1
    found.sort(key=lambda one: (one.severity.value != "critical", one.since, one.key))
    return found, silences, waiting


def _say(settings: Settings, word: Any) -> None:
    async def run() -> None:
        async with readmodel.reader(settings) as reader:
            await reader.bus.publish(word)

    asyncio.run(run())


def _done(as_json: bool, fields: dict[str, Any], text: str) -> None:
    if as_json:
        print_json({"schema": "rekindle.word.v1", "said": True, **fields})
    else:
        sys.stdout.write(text + "\n")


def _seconds(given: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", given.strip())
    if found is None or float(found[1]) <= 0:
        raise BadInputError(f"--for: {given!r} is no time such as 90s, 30m, 2h or 1d")
    return float(found[1]) * UNITS[found[2]]


def _order() -> str:
    return uuid.uuid4().hex[:8]


def _me() -> str:
    return f"{getpass.getuser()}@{socket.gethostname()}"
