"""One JetStream bucket as a Store: reads from the leader, writes by compare-and-set."""

from __future__ import annotations

import asyncio

import nats.errors
import nats.js.errors
from nats.aio.msg import Msg
from nats.js.api import AckPolicy, ConsumerConfig, ConsumerInfo, DeliverPolicy

from libs.core.ports import ConflictError, Row, UnavailableError
from libs.jetstream.connection import SafeClient
from libs.jetstream.schema import Names

WRONG_SEQUENCE, WRITE_IN_FLIGHT, NO_MESSAGE = 10071, 10164, 10037
TTL = "Nats-TTL"
EXPECTED = "Nats-Expected-Last-Subject-Sequence"
CALL_S = 1.5
SCAN_S = 5.0
"""For a reading of all rows to begin, and from then on for each PROGRESS of them: ten thousand take as long as they take."""
PROGRESS = 500
ELECTION_LOOK_S = 0.1
WITHOUT_DOMAIN = 9
"""Fields of $JS.ACK.<stream>.<consumer>.<delivered>.<revision>.<sequence>.<time>.<pending>; else two more come first."""
OPERATION = b"KV-Operation:"
"""The header of a row that is none: it marks that the key was deleted."""


class JetStreamStore:
    """Store over a bucket. Every method raises UnavailableError where the server does not answer."""

    def __init__(self, client: SafeClient, names: Names, bucket: str) -> None:
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
        except nats.js.errors.NotFoundError as error:
            if error.err_code != NO_MESSAGE:  # the bucket itself is gone: that a row is absent is not known
                raise UnavailableError(f"get {key}: {error!r}") from error
            return None, 0
        except (TimeoutError, nats.errors.Error) as error:
            raise UnavailableError(f"get {key}: {error!r}") from error
        revision = message.seq or 0
        if "KV-Operation" in (message.headers or {}):
            return None, revision
        return Row(key, message.data or b"", revision), revision

    async def put(self, key: str, value: bytes, expected: int | None, *, ttl_s: int | None = None) -> int:
        """Write; see ports.Store.put. `ttl_s`: the server forgets the row after so many seconds, if it is not written
        anew; only in a bucket that allows it. None of a pool's does: what expires by a server's clock expires for a
        holder that lives, too."""
        return await self._write(key, value, expected, {} if ttl_s is None else {TTL: str(ttl_s)})

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
        """All rows below a prefix that ends with a dot, or all where it is empty; in order of key. All that was
        acknowledged to anybody before is in it."""
        assert prefix == "" or prefix.endswith("."), prefix
        try:
            async with asyncio.timeout(SCAN_S) as limit:
                return await self._scan(f"{self._prefix}{prefix}>", limit)
        except nats.js.errors.NotFoundError as error:
            raise UnavailableError(f"bucket {self._stream} does not exist: has the plane run yet?") from error
        except (TimeoutError, nats.errors.Error) as error:
            raise UnavailableError(f"scan {prefix}*: {error!r}") from error

    async def _scan(self, subject: str, limit: asyncio.Timeout) -> list[Row]:
        inbox = self._client.new_inbox()
        wanted = ConsumerConfig(
            filter_subject=subject,
            deliver_subject=inbox,
            deliver_policy=DeliverPolicy.LAST_PER_SUBJECT,
            ack_policy=AckPolicy.NONE,
            inactive_threshold=5.0,
            mem_storage=True,
            num_replicas=1,
        )
        info = await self._at_the_leader(wanted)
        pending = (info.num_pending or 0) + (info.delivered.consumer_seq if info.delivered else 0)
        rows = await self._rows(inbox, limit) if pending else {}
        await self._js.delete_consumer(self._stream, info.name)
        return [rows[key] for key in sorted(rows)]

    async def _at_the_leader(self, wanted: ConsumerConfig) -> ConsumerInfo:
        """A consumer where all lies that anybody was told to be written: the server makes it at any of the stream's replicas,
        and one that was away lacks writes of the last seconds until it has caught up. Nothing is delivered yet, since
        nobody listens."""
        while True:
            stream = await self._js.stream_info(self._stream)
            if stream.cluster is not None and not stream.cluster.leader:
                await asyncio.sleep(ELECTION_LOOK_S)
                continue
            info = await self._js.add_consumer(self._stream, wanted)
            if stream.cluster is None or info.cluster is None or info.cluster.leader == stream.cluster.leader:
                return info
            await self._js.delete_consumer(self._stream, info.name)

    async def _rows(self, inbox: str, limit: asyncio.Timeout) -> dict[str, Row]:
        rows: dict[str, Row] = {}
        ended, before = asyncio.Event(), self._prefix
        now = asyncio.get_running_loop().time

        def on(subject: str, reply: str, data: bytes, headers: bytes) -> None:
            if subject == inbox:
                return  # a status of the consumer, no row
            key, (revision, pending) = subject.removeprefix(before), _place(reply)
            if OPERATION not in headers:
                rows[key] = Row(key, data, revision)
            if pending == 0:
                ended.set()
            elif pending % PROGRESS == 0 and not limit.expired():
                limit.reschedule(now() + SCAN_S)

        subscription = await self._client.listen(inbox, on)
        try:
            await ended.wait()
        finally:
            await subscription.unsubscribe()
        return rows


def _place(reply: str) -> tuple[int, int]:
    """Of a message of a stream its revision, and how many come after it, by where it is acknowledged."""
    fields = Msg.Metadata._get_metadata_fields(reply)
    at = 5 if len(fields) == WITHOUT_DOMAIN else 7
    return int(fields[at]), int(fields[at + 3])
