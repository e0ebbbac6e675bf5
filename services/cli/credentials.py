"""`rekindle credentials`: let another system hear this pool's events, and nothing else."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from libs import readmodel
from libs.config.settings import Settings
from libs.config.yamlfile import BadInputError
from libs.jetstream import subscribers
from libs.jetstream.schema import Names
from libs.jetstream.server import EmbeddedServer, embedded
from services.cli.app import ConfigOption, JsonOption, print_json, settings_of

credentials = typer.Typer(help="Users of the bus that may only hear events.", no_args_is_help=True)
NameArgument = Annotated[str, typer.Argument(help="of the system that subscribes: letters, digits, - and _")]


@credentials.command("subscriber")
def subscriber(
    name: NameArgument,
    config: ConfigOption = None,
    from_start: Annotated[
        bool, typer.Option("--from-start", help="begin with the oldest event that is kept, not with the next")
    ] = False,
    may_tell: Annotated[
        bool,
        typer.Option(
            "--may-tell", help="it may also publish facts, and answers to scale-out requests, in its name"
        ),
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(help="write them there as JSON with mode 0600, and no secret to the terminal"),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Make a user that may only hear events, and a place in the stream that is kept for it while it is away. Again for
    the same name: the same. The plane must run; nobody's connection is disturbed."""
    settings = settings_of(config)
    _embedded(settings)
    made = asyncio.run(_made(settings, name, from_start, may_tell))
    if output is not None:
        _write(output, made)
        made = {**made, "url": f"in {output}"}
    if as_json:
        print_json(made)
        return
    for field, value in made.items():
        if field != "schema":
            sys.stdout.write(f"{field:<13} {value}\n")


@credentials.command("list")
def list_(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Names of all subscribers; no secrets."""
    settings = settings_of(config)
    _embedded(settings)
    names = [one.name for one in subscribers.known(settings.nats_directory())]
    if as_json:
        print_json({"schema": "rekindle.subscribers.v1", "subscribers": names})
    else:
        sys.stdout.write("".join(f"{name}\n" for name in names))


@credentials.command("revoke")
def revoke(name: NameArgument, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Take a subscriber's user away, at once, and forget its place in the stream."""
    settings = settings_of(config)
    server = _embedded(settings)

    async def run() -> None:
        subscribers.remove(settings.nats_directory(), name)
        server.configure()
        await subscribers.reload(server.system_url, server.login)
        async with readmodel.reader(settings) as reader:
            await subscribers.forget_place(reader.bus.client.jetstream(timeout=5), settings.pool, name)

    asyncio.run(run())
    if as_json:
        print_json({"schema": "rekindle.subscribers.v1", "revoked": name})
    else:
        sys.stdout.write(f"{name} may hear events no more\n")


def _embedded(settings: Settings) -> EmbeddedServer:
    """Raises BadInputError where the server is somebody else's."""
    if not settings.embedded:
        raise BadInputError(
            "bus.url: this bus is a server of your own, whose users you configure yourself: see docs/SUBSCRIBING.md"
        )
    return embedded(settings)


async def _made(settings: Settings, name: str, from_start: bool, may_tell: bool) -> dict[str, Any]:
    server = _embedded(settings)
    async with readmodel.reader(settings) as reader:
        made = subscribers.add(settings.nats_directory(), name, tells=may_tell)
        js = reader.bus.client.jetstream(timeout=5)
        await subscribers.keep_place(js, settings.pool, name, from_start=from_start)
    server.configure()
    await subscribers.reload(server.system_url, server.login)
    names = Names(settings.pool)
    return {
        "schema": "rekindle.credentials.v1",
        "url": server.address.replace("://", f"://{made.user}:{made.password}@"),
        **({"ca": str(server.login.ca)} if server.login.ca is not None else {}),
        "stream": names.events,
        "durable": subscribers.durable(name),
        "inbox_prefix": f"_INBOX_{made.user}",
        "api_prefix": subscribers.API_PREFIX,
        "subject": f"{names.prefix}.event.>",
        **({"tell": f"{names.prefix}.in.{name}"} if made.tells else {}),
    }


def _write(output: Path, made: dict[str, Any]) -> None:
    try:
        handle = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    except OSError as error:
        raise BadInputError(f"--output: {output}: cannot be written: {error.strerror}") from error
    with os.fdopen(handle, "w") as file:
        json.dump(made, file, indent=2)
