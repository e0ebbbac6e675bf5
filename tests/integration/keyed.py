"""A real server whose users have keys, and clients that hold one of them."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

from nats.aio.msg import Msg

from libs.access.accounts import account_of, users
from libs.access.keys import KeyRing
from libs.access.login import Login
from libs.access.rights import Role
from libs.core.clock import SystemClock
from libs.jetstream.bus import NatsBus, open_bus
from libs.jetstream.connection import SafeClient
from libs.jetstream.names import Names
from libs.jetstream.schema import ensure
from libs.jetstream.server import EmbeddedServer

POOL = "p"
HOSTS = ("h1", "h2")
NAMES = Names(POOL)


async def _closed() -> None:
    return None


@dataclass
class Keyed:
    """The server of pool `p` with hosts h1 and h2, and who is connected to it."""

    server: EmbeddedServer
    opened: list[NatsBus] = field(default_factory=list)
    refusals: dict[str, list[str]] = field(default_factory=dict)

    @property
    def address(self) -> str:
        """Without a password."""
        return f"nats://{self.server.listen}:{self.server.port}"

    def login(self, user: str) -> Login:
        ring = KeyRing(self.server.directory / "keys")
        return Login(user, ring.seed(user))

    async def bus(self, user: str) -> NatsBus:
        """Connected with that user's key; what the server refuses it is kept."""
        login = self.login(user)
        bus = await open_bus([self.address], POOL, user, SystemClock(), user, closed=_closed, login=login)
        refused = self.refusals.setdefault(user, [])

        async def note(error: Exception) -> None:
            refused.append(str(error).lower())

        bus.client._error_cb = note
        self.opened.append(bus)
        return bus

    async def owner(self) -> NatsBus:
        """With all rights, and the pool's streams made."""
        bus = await open_bus([self.server.url], POOL, "owner", SystemClock(), "owner", closed=_closed)
        await ensure(bus.client.jetstream(timeout=5), POOL)
        self.opened.append(bus)
        return bus


@contextlib.asynccontextmanager
async def keyed(directory: Path) -> AsyncIterator[Keyed]:
    server = EmbeddedServer(directory / "nats", pool=POOL, hosts=HOSTS)
    await server.start()
    one = Keyed(server)
    try:
        yield one
    finally:
        for bus in one.opened:
            with contextlib.suppress(Exception):
                await bus.client.close()
        await server.stop()


async def replies(client: SafeClient) -> tuple[str, list[Msg]]:
    """A place to reply to, and what came there."""
    inbox, found = client.new_inbox(), []

    async def on(message: Msg) -> None:
        found.append(message)

    await client.subscribe(inbox, cb=on)
    return inbox, found


__all__ = ["HOSTS", "NAMES", "POOL", "Keyed", "Role", "account_of", "keyed", "replies", "users"]
