"""`rekindle backup` and `rekindle restore`: all that the pool has on its bus, to one file and back."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated

import typer

from libs.access.rights import OWNER
from libs.config.settings import Settings
from libs.config.yamlfile import BadInputError
from libs.core.clock import SystemClock
from libs.jetstream import backup as backups
from libs.jetstream.bus import NatsBus, open_bus
from libs.jetstream.schema import Names
from libs.jetstream.store import JetStreamStore
from libs.restored import mark as marks
from services.cli.app import ConfigOption, JsonOption, print_json, settings_of

FileArgument = Annotated[Path, typer.Argument(metavar="FILE", help="gzipped, one JSON document a line")]


@contextlib.asynccontextmanager
async def _bus(settings: Settings) -> AsyncIterator[NatsBus]:
    async def closed() -> None:
        return None

    servers, clock = settings.servers(), SystemClock()
    login = settings.login(OWNER)
    bus = await open_bus(
        servers, settings.pool, "cli", clock, "rekindle-cli", closed=closed, wait_s=5.0, login=login
    )
    try:
        yield bus
    finally:
        with contextlib.suppress(OSError):
            await bus.client.close()


def backup(file: FileArgument, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Write all state of the pool (leases, records, inventories, definitions, facts, places of consumers) to FILE. Changes nothing, while the plane runs."""
    settings = settings_of(config)

    async def write() -> backups.End:
        async with _bus(settings) as bus:
            return await backups.write(bus.client, settings.pool, file, SystemClock().wall())

    if not file.parent.is_dir():
        raise BadInputError(f"FILE: {file.parent} is no directory")
    _say(file, asyncio.run(write()), "written", as_json)


def restore(file: FileArgument, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Put FILE into a bus that has nothing of the pool. Exit 1 where it has something, or a service runs. The plane then only reads until every host has told what it runs."""
    settings = settings_of(config)
    backups.check(file, settings.pool)

    def hold(value: bytes) -> bytes:
        now = SystemClock().wall().isoformat(timespec="seconds")
        try:
            return marks.held(value, tuple(host.name for host in settings.hosts), now)
        except ValueError as error:
            raise BadInputError(f"{file}: its mark is none of ours: {str(error)[:200]}") from error

    async def read() -> backups.End | str:
        async with _bus(settings) as bus:
            full = await backups.empty(bus.client, settings.pool)
            if full:
                return full
            done = await backups.read(bus.client, settings.pool, file, hold, replicas=settings.bus.replicas)
            store = JetStreamStore(bus.client, Names(settings.pool), marks.BUCKET)
            record, revision = await marks.read(store)
            if (
                record.restoring is None
            ):  # the copy was made before anything was led: there is nothing to disagree with
                await store.put(marks.KEY, hold(record.model_dump_json().encode()), revision)
            return done

    found = asyncio.run(read())
    if isinstance(found, str):
        sys.stderr.write(
            f"rekindle: {found} is not empty: stop every service, and give the pool a server with an empty store\n"
        )
        raise typer.Exit(1)
    _say(file, found, "restored", as_json)
    if not as_json:
        sys.stdout.write(
            "the plane will only read until every host has told what it runs: `rekindle status`\n"
        )


def _say(file: Path, end: backups.End, what: str, as_json: bool) -> None:
    if as_json:
        print_json({"schema": f"rekindle.{what}.v1", "file": str(file), **end.model_dump(exclude={"kind"})})
    else:
        sys.stdout.write(f"{file}: {end.messages} messages and {end.places} places {what}\n")
