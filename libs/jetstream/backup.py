"""All that a pool has on its bus, in one file: every bucket, the stream of facts with its numbers, and where each durable
consumer is in it. And the way back, into a server that has nothing of the pool.

The file is gzipped JSON, a document a line: a head, a line a message, a line a consumer, and an end that says how many there
were: without it the file is torn. It holds definitions of VMs, which may hold secrets: it is written with mode 0600.
"""

from __future__ import annotations

import base64
import gzip
import os
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal, TextIO

import nats.errors
import nats.js.errors
from nats.aio.client import Client
from nats.js.api import ConsumerConfig, DeliverPolicy, RawStreamMsg
from pydantic import Field, TypeAdapter, ValidationError

from libs.config.yamlfile import BadInputError
from libs.core.ports import UnavailableError
from libs.jetstream.schema import BUCKETS, Names, ensure
from libs.model import Value

SCHEMA = "rekindle.backup.v1"
CALL_S = 5.0
NOT_KEPT = frozenset(["leaders"])
"""Who leads is of the day on which it is asked."""
GAP = "gap"
"""The last token of the subject of what stands for a message that was not there any more, and is deleted at once."""


class Head(Value):
    """The first line."""

    kind: Literal["head"] = "head"
    schema_: str = Field(SCHEMA, alias="schema")
    pool: str
    at: datetime
    first: dict[str, int] = Field(description="by stream the number of its oldest message")


class Message(Value):
    """One message of one stream, as it lay there."""

    kind: Literal["message"] = "message"
    stream: str
    seq: int
    subject: str
    headers: dict[str, str] = Field({})
    data: str = Field("", description="base64")


class Place(Value):
    """A durable consumer of the stream of facts, and up to where it has acknowledged."""

    kind: Literal["place"] = "place"
    durable: str
    subjects: tuple[str, ...]
    acknowledged: int
    ack_wait_s: float
    ack_pending_max: int


class End(Value):
    """The last line."""

    kind: Literal["end"] = "end"
    messages: int
    places: int


Line = Annotated[Head | Message | Place | End, Field(discriminator="kind")]
LINE: TypeAdapter[Line] = TypeAdapter(Line)


def kept(names: Names) -> list[str]:
    """The streams that are in a backup. The mark is first: restored, it holds who starts meanwhile."""
    buckets = sorted((one for one in BUCKETS if one not in NOT_KEPT), key=lambda one: one != "marks")
    return [*(f"KV_{names.bucket(one)}" for one in buckets), names.events]


# -- from the server


async def write(client: Client, pool: str, file: Path, at: datetime) -> End:
    """Write all of it. Raises UnavailableError; then there is no file."""
    names = Names(pool)
    fresh = file.with_name(f".{file.name}.new")
    messages = places = 0
    try:
        with _written(fresh) as out:
            js = client.jetstream(timeout=CALL_S)
            infos = {stream: await js.stream_info(stream) for stream in kept(names)}
            first = {stream: info.state.first_seq for stream, info in infos.items()}
            _put(out, Head(pool=pool, at=at, first=first))
            # the consumers first: what they acknowledge meanwhile comes again after a restore, and is known to have come
            for place in await _places(client, names):
                _put(out, place)
                places += 1
            for stream, info in infos.items():
                async for message in _messages(client, stream, info.state.last_seq):
                    _put(out, message)
                    messages += 1
            end = End(messages=messages, places=places)
            _put(out, end)
        fresh.replace(file)
        return end
    except (TimeoutError, nats.errors.Error) as error:
        raise UnavailableError(f"backup: {error!r}") from error
    finally:
        fresh.unlink(missing_ok=True)


async def _messages(client: Client, stream: str, last: int) -> AsyncIterator[Message]:
    """Up to the last number that there was when it was begun."""
    js, seq = client.jetstream(timeout=CALL_S), 0
    while seq < last:
        try:
            found: RawStreamMsg = await js.get_msg(stream, seq=seq + 1, next=True, subject=">")
        except nats.js.errors.NotFoundError:
            return
        assert found.seq is not None
        seq = found.seq
        if seq > last:
            return
        data = base64.b64encode(found.data or b"").decode()
        yield Message(
            stream=stream, seq=seq, subject=str(found.subject), headers=dict(found.headers or {}), data=data
        )


async def _places(client: Client, names: Names) -> list[Place]:
    found = []
    for info in await client.jetstream(timeout=CALL_S).consumers_info(names.events):
        config = info.config
        if not config.durable_name:
            continue  # an onlooker's
        subjects = config.filter_subjects or ([config.filter_subject] if config.filter_subject else [])
        found.append(
            Place(
                durable=config.durable_name,
                subjects=tuple(subjects),
                acknowledged=info.ack_floor.stream_seq if info.ack_floor is not None else 0,
                ack_wait_s=config.ack_wait or 0.0,
                ack_pending_max=config.max_ack_pending or 0,
            )
        )
    return found


@contextmanager
def _written(path: Path) -> Iterator[TextIO]:
    path.unlink(missing_ok=True)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "wb") as raw:
        with gzip.open(raw, "wt", encoding="utf-8") as out:
            yield out
        raw.flush()
        os.fsync(raw.fileno())


def _put(out: TextIO, line: Line) -> None:
    out.write(line.model_dump_json(by_alias=True) + "\n")


# -- into a server


def lines(file: Path) -> Iterator[Line]:
    """All lines, in order. Raises BadInputError for a file that is none of ours, or torn."""
    count = 0
    try:
        with gzip.open(file, "rt", encoding="utf-8") as given:
            for count, text in enumerate(given, 1):  # noqa: B007  named in an error
                yield LINE.validate_json(text)
    except ValidationError as error:
        raise BadInputError(
            f"{file}: line {count}: is no line of a {SCHEMA}: {error.errors()[0]['msg']}"
        ) from error
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise BadInputError(f"{file}: {getattr(error, 'strerror', None) or error}") from error


def check(file: Path, pool: str) -> Head:
    """Read all of it, and see that it is whole and of this pool. Raises BadInputError with file and reason."""
    head: Head | None = None
    last: Line | None = None
    messages = places = 0
    for last in lines(file):
        if head is None:
            if not isinstance(last, Head):
                raise BadInputError(f"{file}: does not begin as a backup does")
            head = last
        messages += isinstance(last, Message)
        places += isinstance(last, Place)
    if head is None or not isinstance(last, End):
        raise BadInputError(f"{file}: is torn: its end is missing")
    if (last.messages, last.places) != (messages, places):
        raise BadInputError(
            f"{file}: is not whole: {messages} messages of {last.messages}, {places} places of {last.places}"
        )
    if head.schema_ != SCHEMA:
        raise BadInputError(f"{file}: schema: is {head.schema_}, and {SCHEMA} can be read here")
    if head.pool != pool:
        raise BadInputError(f"{file}: pool: is of {head.pool}, and the pool file's is {pool}")
    return head


async def empty(client: Client, pool: str) -> str:
    """Which of the pool's streams has something in it; "" where none has. Raises UnavailableError."""
    js = client.jetstream(timeout=CALL_S)
    names = Names(pool)
    for stream in (*kept(names), *(f"KV_{names.bucket(one)}" for one in NOT_KEPT)):
        try:
            if (await js.stream_info(stream)).state.messages:
                return stream
        except nats.js.errors.NotFoundError:
            continue
        except (TimeoutError, nats.errors.Error) as error:
            raise UnavailableError(f"{stream}: {error!r}") from error
    return ""


async def read(
    client: Client, pool: str, file: Path, hold: Callable[[bytes], bytes], *, replicas: int
) -> End:
    """Put all of it into a server that has nothing of the pool; the mark as `hold` makes it of that in the file. Raises
    BadInputError, UnavailableError."""
    head, js, names = check(file, pool), client.jetstream(timeout=CALL_S), Names(pool)
    try:
        await _begin(client, pool, head, replicas)
        next_seq: dict[str, int] = {}
        end = End(messages=0, places=0)
        for line in lines(file):
            if isinstance(line, Message):
                due = next_seq.get(line.stream, head.first.get(line.stream, line.seq))
                if line.stream == names.events:
                    for seq in range(due, line.seq):
                        await js.publish(f"{names.prefix}.event.{GAP}.{GAP}.{GAP}", b"")
                        await js.delete_msg(line.stream, seq)
                next_seq[line.stream] = line.seq + 1
                headers = {key: value for key, value in line.headers.items() if _is_ours(key)}
                data = base64.b64decode(line.data)
                if line.stream == f"KV_{names.bucket('marks')}":
                    data = hold(data)
                await js.publish(line.subject, data, headers=headers or None)
            elif isinstance(line, End):
                end = line
        for line in lines(file):
            if isinstance(line, Place):
                await js.add_consumer(names.events, _consumer(line))
        return end
    except (TimeoutError, nats.errors.Error) as error:
        raise UnavailableError(f"restore: {error!r}") from error


async def _begin(client: Client, pool: str, head: Head, replicas: int) -> None:
    """The streams, that of the facts with the numbers that it had: places in it are kept by number."""
    js, events = client.jetstream(timeout=CALL_S), Names(pool).events
    with_numbers = head.first.get(events, 0) > 1
    await ensure(js, pool, replicas=replicas)
    if with_numbers:
        # a stream that is there takes no first number; an empty one that is purged up to it begins with it
        await js.purge_stream(events, seq=head.first[events])


def _is_ours(header: str) -> bool:
    """What the server made of a message, or asked of its writer, is not said again; what names it is."""
    return not header.startswith("Nats-Expected-") and header != "Nats-TTL"


def _consumer(place: Place) -> ConsumerConfig:
    after = place.acknowledged
    return ConsumerConfig(
        durable_name=place.durable,
        filter_subjects=list(place.subjects),
        deliver_policy=DeliverPolicy.BY_START_SEQUENCE if after else DeliverPolicy.ALL,
        opt_start_seq=after + 1 if after else None,
        ack_wait=place.ack_wait_s,
        max_ack_pending=place.ack_pending_max,
        max_deliver=-1,
    )
