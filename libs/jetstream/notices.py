"""The server's own word that a client's connection ended: a hint that starts questions, never a verdict.

At most once, and only about clients of servers that live: who loses its power says nothing, its server notices by its
pings. Heard by a second connection as a user of the system account, which hears and sees nothing of the pool.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Sequence

import structlog
from nats.aio.msg import Msg

from libs.access.accounts import account_of
from libs.access.login import NOBODY, Login
from libs.config.yamlfile import BadInputError
from libs.core.ports import UnavailableError
from libs.jetstream.connection import BusRefusedError, connect

SUBJECT = "$SYS.ACCOUNT.*.DISCONNECT"
RETRY_S = 2.0
log = structlog.get_logger()


def agent_name(pool: str, host: str, pid: int) -> str:
    """What the agent of a host calls its connection."""
    return f"{pool}.heartbeat@{host}-{pid}"


def host_of(pool: str, name: str) -> str | None:
    """The host of the agent with this connection; None where it is none of this pool's."""
    found = re.fullmatch(rf"{re.escape(pool)}\.heartbeat@([A-Za-z0-9_-]+)-\d+", name)
    return None if found is None else found[1]


async def _closed() -> None:
    log.warning("the system account is closed to us: no notices of ended connections")


async def listen(
    servers: Callable[[], Sequence[str]],
    pool: str,
    name: str,
    ended: Callable[[str], None],
    login: Callable[[], Login] = lambda: NOBODY,
) -> None:
    """Call `ended` with each host whose agent's connection ended, for ever. Without a usable system account this
    waits and does nothing: notices only hasten what silence brings."""

    async def on(message: Msg) -> None:
        try:
            client = json.loads(message.data)["client"]
            host = host_of(pool, str(client.get("name", "")))
            account = str(client.get("acc", ""))
        except (ValueError, KeyError, TypeError, AttributeError):
            return  # not what this version of the server says: evidence of nothing
        if host is not None and (account == account_of(host) or not account.startswith(account_of(""))):
            ended(host)  # any client may call itself as it likes: an agent is also known by its account

    told = ""
    while True:
        try:
            client = await connect(servers(), name, closed=_closed, jetstream=False, login=login())
            await client.subscribe(SUBJECT, cb=on)
            break  # from now on it reconnects by itself
        except (UnavailableError, BusRefusedError, BadInputError) as error:
            if str(error) != told:
                told = str(error)
                log.info("no notices of ended connections", reason=told)
            await asyncio.sleep(RETRY_S)
    try:
        await asyncio.Event().wait()
    finally:
        client._closed_cb = None
        await client.close()
