"""A connection to NATS that survives what nats-py's own does not.

Each override answers a measured failure of nats-py 2.16.0: a late PONG after a cancelled flush that kills the
read loop for minutes, a reconnect that waits for a peer that is silently gone, and a flush whose PING overtakes
what it is to flush. The version is pinned;
tests/integration/test_connection.py must pass before the pin moves.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import Any
from urllib.parse import urlsplit

import nats.errors
import nats.js.errors
import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.js import JetStreamContext

from libs.access.login import NOBODY, Login
from libs.config.yamlfile import BadInputError
from libs.core.ports import UnavailableError
from libs.jetstream.parsing import Heard, QuickParser

MIN_SERVER = (2, 14)
PING_INTERVAL_S: Any = 0.5  # nats-py annotates int and sleeps for it: a fraction is fine
RECONNECT_WAIT_S: Any = 0.1
JETSTREAM_TRIES, JETSTREAM_WAIT_S = 5, 0.4
NO_LEADER = 10008
"""What a server of a cluster says in an election, and while it is cut off from its peers: no reason to hold it for one without."""
log = structlog.get_logger()


class BusRefusedError(Exception):
    """The server cannot be used: too old, or without JetStream. Says what was found and what is needed."""


class SafeClient(Client):
    """nats-py's client with its fatal habits mended."""

    def __init__(self, login: Login = NOBODY) -> None:
        super().__init__()
        self._login = login
        self._ps: QuickParser = QuickParser(self)

    def jetstream(self, **options: Any) -> JetStreamContext:
        """JetStream under the prefix at which this user has it."""
        return super().jetstream(**{"prefix": self._login.prefix, **options})

    async def listen(self, subject: str, heard: Heard) -> Subscription:
        """Subscribe, and have each message handed over as it is read."""

        async def one(message: Msg) -> None:  # what comes before the parser knows
            headers = "".join(f"{name}: {value}\r\n" for name, value in (message.headers or {}).items())
            heard(message.subject, message.reply, message.data, headers.encode())

        subscription = await self.subscribe(subject, cb=one)
        task: Any = subscription._wait_for_msgs_task
        self._ps.listen(subscription._id, heard, task)
        return subscription

    def _remove_sub(self, sid: int, max_msgs: int = 0) -> None:
        self._ps.forget(sid)
        super()._remove_sub(sid, max_msgs)

    async def _process_pong(self) -> None:
        if self._pongs:
            future = self._pongs.pop(0)
            if not future.done():  # cancelled by a time-out: setting it would kill the read loop
                future.set_result(True)
            self._pongs_received += 1
            self._pings_outstanding = 0

    async def _send_ping(self, future: asyncio.Future[Any] | None = None) -> None:
        if self._transport is not None and self._pending and not self._broken():
            # a PING goes out ahead of what waits to be written, and its PONG would say nothing of that
            self._transport.writelines(self._pending[:])
            self._pending, self._pending_data_size = [], 0
        await super()._send_ping(future)

    async def _attempt_reconnect(self) -> None:
        self._abort()
        await super()._attempt_reconnect()

    async def _connect_to_server(self, s: Any) -> None:
        self._abort()  # nats-py forgets, unclosed, a connection on which the server said nothing in time
        self._identify()
        await super()._connect_to_server(s)

    def _identify(self) -> None:
        """Key and certificates as they are now: they may have been replaced since. Raises nats.errors.Error, after which
        it is tried again."""
        try:
            if self._login.ca is not None:
                self.options["tls"] = self._login.tls()
            if self._login.key is not None:
                key = self._login.user_key()
                self._public_nkey, self._signature_cb = key.public, key.sign
        except BadInputError as error:
            raise nats.errors.Error(str(error)) from error

    def _connect_command(self) -> bytes:
        """nats-py speaks in the clear to a server that does not ask for TLS, whatever it was told."""
        writer = getattr(self._transport, "_io_writer", None)
        encrypted = writer is not None and writer.get_extra_info("ssl_object") is not None
        if writer is not None and encrypted:
            # asyncio warns at the end of each connection that was upgraded, unless its protocol knows
            writer.transport.get_protocol()._over_ssl = True
        if self._login.ca is not None and not encrypted:
            raise nats.errors.Error("the server offers no TLS, and bus.ca_file asks for it")
        command: bytes = super()._connect_command()
        return command

    async def _close(self, status: int, do_cbs: bool = True) -> None:
        if self._broken():
            self._pending, self._pending_data_size = (
                [],
                0,
            )  # nobody takes it any more, and nats-py would write it
        await super()._close(status, do_cbs)

    def _broken(self) -> bool:
        """Over TLS, and aborted or closed: asyncio raises AttributeError at whatever is done with it."""
        writer = getattr(self._transport, "_io_writer", None)
        return writer is not None and getattr(writer.transport, "_ssl_protocol", writer) is None

    def _abort(self) -> None:
        """Never wait for a peer that may be gone."""
        writer = getattr(self._transport, "_io_writer", None)
        if writer is not None and not self._broken():
            writer.transport.abort()


async def exit_when_closed() -> None:
    # nats-py closes for good on an error it holds final (revoked, wrong token): only a new process helps
    log.error("bus connection closed for good, exiting to be restarted")
    os._exit(70)


async def connect(
    servers: Sequence[str],
    name: str,
    *,
    wait_s: float = 10.0,
    on_change: Callable[[bool], None] | None = None,
    closed: Callable[[], Awaitable[None]] = exit_when_closed,
    jetstream: bool = True,
    login: Login = NOBODY,
) -> SafeClient:
    """Connect, and check that the server is one that keeps its promises. `jetstream`: that it has one, too, for
    this user.

    Raises UnavailableError when no server answers within `wait_s`, BusRefusedError for an unusable one, BadInputError for
    a key or certificate that cannot be used."""
    client = SafeClient(login)
    inbox = login.inbox or f"_INBOX_{name}".replace(".", "-")
    await _resolvable(servers)
    try:
        await asyncio.wait_for(
            client.connect(
                list(servers),
                name=name,
                closed_cb=closed,
                **_told(name, on_change),
                ping_interval=PING_INTERVAL_S,
                max_outstanding_pings=2,
                connect_timeout=1,
                reconnect_time_wait=RECONNECT_WAIT_S,
                max_reconnect_attempts=-1,
                reconnect_to_server_handler=_never_straight_back(client),
                pending_size=0,  # a message is sent now or refused: none may be replayed stale
                inbox_prefix=inbox.encode(),
                **_secure(login),
            ),
            wait_s,
        )
    except (TimeoutError, OSError, nats.errors.Error) as error:
        client._closed_cb = None
        if (
            client._flush_queue is not None
        ):  # of an address that it cannot read it has not begun, and cannot end
            await client.close()
        raise UnavailableError(f"no NATS server at {', '.join(map(_bare, servers))}: {error!r}") from error
    await _require(client, jetstream)
    return client


def _secure(login: Login) -> dict[str, Any]:
    secure: dict[str, Any] = {}
    if login.key is not None:
        secure["signature_cb"] = login.user_key().sign
    if login.ca is not None:
        secure["tls"] = login.tls()
    return secure


def _told(name: str, on_change: Callable[[bool], None] | None) -> dict[str, Any]:
    """What the client calls when something befalls the connection."""

    async def on_error(error: Exception) -> None:
        # must not raise: nats-py's subscription task would end silently
        log.info("bus", name=name, error=repr(error))

    async def lost() -> None:
        if on_change is not None:
            on_change(False)

    async def back() -> None:
        if on_change is not None:
            on_change(True)

    return {"error_cb": on_error, "disconnected_cb": lost, "reconnected_cb": back}


def _never_straight_back(client: SafeClient) -> Callable[[list[Any], Any], tuple[Any, float]]:
    """Which server is tried next: never the one that we are leaving, where there are others."""
    turns = itertools.count(1)

    def pick(pool: list[Any], _info: Any) -> tuple[Any, float]:
        current = client._current_server.uri.netloc if client._current_server else None
        others = [server for server in pool if server.uri.netloc != current] or pool
        return others[next(turns) % len(others)], 0.1

    return pick


async def _resolvable(servers: Sequence[str]) -> None:
    """Where no name can be resolved that is a mistake in the configuration, not an outage."""
    unknown = []
    for server in servers:
        parts = urlsplit(server if "//" in server else f"nats://{server}")
        try:
            await asyncio.get_running_loop().getaddrinfo(parts.hostname, parts.port or 4222)
        except socket.gaierror as error:
            unknown.append(f"{_bare(server)}: {error.strerror}")
        else:
            return
    raise UnavailableError("; ".join(unknown))


async def _require(client: SafeClient, jetstream: bool) -> None:
    """Raises BusRefusedError for a server that cannot be used, UnavailableError for one that does not say."""
    version = client.connected_server_version
    found = f"{version.major}.{version.minor}.{version.patch}"
    try:
        if (version.major, version.minor) < MIN_SERVER:
            raise BusRefusedError(
                f"NATS server {found} is too old: {MIN_SERVER[0]}.{MIN_SERVER[1]} or newer is needed "
                "(older ones let several compare-and-set writers win)"
            )
        if jetstream:
            await _has_jetstream(client, found)
    except (BusRefusedError, UnavailableError):
        client._closed_cb = None
        await client.close()
        raise


async def _has_jetstream(client: SafeClient, found: str) -> None:
    """A server that starts may take connections a moment before its JetStream, and one that is overloaded
    answers late: neither says that it has none."""
    for again in range(JETSTREAM_TRIES):
        try:
            await client.jetstream(timeout=5).account_info()
            return
        except (nats.js.errors.ServiceUnavailableError, nats.errors.NoRespondersError) as error:
            if getattr(error, "err_code", None) == NO_LEADER:
                raise UnavailableError(f"JetStream of NATS server {found} has no leader just now") from error
            if again == JETSTREAM_TRIES - 1:
                reason = f"NATS server {found} offers no JetStream (start it with JetStream on): {error!r}"
                raise BusRefusedError(reason) from error
        except (nats.errors.Error, TimeoutError) as error:
            raise UnavailableError(f"NATS server {found} says nothing of JetStream: {error!r}") from error
        await asyncio.sleep(JETSTREAM_WAIT_S)


def _bare(server: str) -> str:
    """The address without its credentials, for messages."""
    return server.rsplit("@", 1)[-1]
