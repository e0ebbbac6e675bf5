"""One JetStream bucket as a Store: reads from the leader, writes by compare-and-set."""

from __future__ import annotations

import asyncio

import nats.errors
import nats.js.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

from libs.core.ports import ConflictError, Row, UnavailableError
from libs.jetstream.schema import Names

WRONG_SEQUENCE, WRITE_IN_FLIGHT = 10071, 10164
EXPECTED = "Nats-Expected-Last-Subject-Sequence"
CALL_S = 1.5
SCAN_S = 5.0


class JetStreamStore:
    """Store over a bucket. Every method raises UnavailableError where the server does not answer."""

    def __init__(self, client: Client, names: Names, bucket: str) -> None:
        self._client = client
        self._js = client.jetstream(timeout=CALL_S)
        self._stream = f"KV_{names.bucket(bucket)}"
        self._prefix = f"$KV.{names.bucket(bucket)}."

    async def get(self, key: str) -> Row | None:
        """The row, or None. May be stale: decide only by a write that succeeds."""
        row, _ = await self._read(key)
        return row

    async def _read(self, key: str) -> tuple[Row | None, int]:
        """The row and the revision that a compare-and-set must name: a deleted key has one, too."""
        try:
            message = await self._js.get_msg(self._stream, subject=self._prefix + key)
        except nats.js.errors.NotFoundError:
            return None, 0
        except (TimeoutError, nats.errors.Error) as error:
            raise UnavailableError(f"get {key}: {error!r}") from error
        revision = message.seq or 0
        if "KV-Operation" in (message.headers or {}):
            return None, revision
        return Row(key, message.data or b"", revision), revision

    async def put(self, key: str, value: bytes, expected: int | None) -> int:
        """Write; see ports.Store.put."""
        return await self._write(key, value, expected, {})

    async def delete(self, key: str, expected: int | None) -> None:
        """Remove; a key that is not there is no error when `expected` is None."""
        await self._write(key, b"", expected, {"KV-Operation": "DEL"})

    async def _write(self, key: str, value: bytes, expected: int | None, headers: dict[str, str]) -> int:
        if expected is not None:
            headers = {**headers, EXPECTED: str(expected)}
        try:
            ack = await self._js.publish(self._prefix + key, value, timeout=CALL_S, headers=headers or None)
            return ack.seq
        except nats.js.errors.APIError as error:
            if error.err_code == WRITE_IN_FLIGHT:
                raise UnavailableError(f"put {key}: another write is in flight") from error
            if error.err_code != WRONG_SEQUENCE:
                raise UnavailableError(f"put {key}: {error!r}") from error
        except (TimeoutError, nats.errors.Error) as error:
            raise UnavailableError(f"put {key}: {error!r}") from error
        if expected == 0:
            row, revision = await self._read(key)
            if row is None and revision:  # absent, but a marker of its deletion lies there
                return await self._write(key, value, revision, headers)
        raise ConflictError(f"{key} is not at revision {expected}")

    async def scan(self, prefix: str) -> list[Row]:
        """All rows below a prefix that ends with a dot, or all where it is empty; in order of key."""
        assert prefix == "" or prefix.endswith("."), prefix
        try:
            async with asyncio.timeout(SCAN_S):
                return await self._scan(f"{self._prefix}{prefix}>")
        except nats.js.errors.NotFoundError as error:
            raise UnavailableError(f"bucket {self._stream} does not exist: has the plane run yet?") from error
        except (TimeoutError, nats.errors.Error) as error:
            raise UnavailableError(f"scan {prefix}*: {error!r}") from error

    async def _scan(self, subject: str) -> list[Row]:
        rows: dict[str, Row] = {}
        inbox, ended = self._client.new_inbox(), asyncio.Event()
        pending = -1

        async def on(message: Msg) -> None:
            nonlocal pending
            if message.subject == inbox:
                return  # a status of the consumer, no row
            key, metadata = message.subject.removeprefix(self._prefix), message.metadata
            if "KV-Operation" not in (message.headers or {}):
                rows[key] = Row(key, message.data, metadata.sequence.stream)
            if metadata.num_pending == 0:
                ended.set()

        subscription = await self._client.subscribe(inbox, cb=on)
        try:
            info = await self._js.add_consumer(
                self._stream,
                ConsumerConfig(
                    filter_subject=subject,
                    deliver_subject=inbox,
                    deliver_policy=DeliverPolicy.LAST_PER_SUBJECT,
                    ack_policy=AckPolicy.NONE,
                    inactive_threshold=5.0,
                    mem_storage=True,
                    num_replicas=1,
                ),
            )
            pending = (info.num_pending or 0) + (info.delivered.consumer_seq if info.delivered else 0)
            if pending > 0:
                await ended.wait()
            await self._js.delete_consumer(self._stream, info.name)
        finally:
            await subscription.unsubscribe()
        return [rows[key] for key in sorted(rows)]
