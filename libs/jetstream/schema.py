"""The one stream and the buckets of a pool: made where missing, checked on every start.

A bucket that exists with other settings is named and refused: silently using it would void a promise
(a bucket with a time to live forgets leases; one with direct reads answers from a replica that may be late).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import nats.errors
import nats.js.errors
from nats.js import JetStreamContext
from nats.js.api import DiscardPolicy, RetentionPolicy, StorageType, StreamConfig

from libs.core.ports import UnavailableError
from libs.jetstream.names import BUCKETS, Names

__all__ = ["BUCKETS", "Names", "WrongStreamError", "ensure"]
DAY_S = 86_400.0
UNLIMITED = -1


class WrongStreamError(Exception):
    """A stream or bucket exists with settings that we cannot live with."""


def _wanted(names: Names, replicas: int) -> list[StreamConfig]:
    shared: dict[str, Any] = {
        "storage": StorageType.FILE,
        "num_replicas": replicas,
        "retention": RetentionPolicy.LIMITS,
        "max_msgs": UNLIMITED,
        "max_bytes": UNLIMITED,
    }
    events = StreamConfig(
        name=names.events,
        subjects=[f"{names.prefix}.event.>"],
        max_msgs_per_subject=UNLIMITED,
        max_age=30 * DAY_S,
        duplicate_window=600.0,
        deny_delete=False,
        discard=DiscardPolicy.OLD,
        allow_direct=False,
        **shared,
    )
    buckets = [
        StreamConfig(
            name=f"KV_{names.bucket(bucket)}",
            subjects=[f"$KV.{names.bucket(bucket)}.>"],
            max_msgs_per_subject=1,
            max_age=0.0,
            allow_direct=False,  # a follower may answer late; what we read, we read from the leader
            allow_rollup_hdrs=True,
            deny_delete=True,
            discard=DiscardPolicy.NEW,
            duplicate_window=120.0,
            **shared,
        )
        for bucket in BUCKETS
    ]
    return [events, *buckets]


CHECKED = (
    "subjects",
    "storage",
    "retention",
    "max_msgs_per_subject",
    "max_age",
    "allow_direct",
    "num_replicas",
    "duplicate_window",  # who publishes again within it is not heard twice
    "discard",
    "deny_delete",
    "max_msgs",
    "max_bytes",
)


async def ensure(
    js: JetStreamContext,
    pool: str,
    *,
    replicas: int = 1,
    wait_s: float = 15.0,
    buckets: Sequence[str] = BUCKETS,
    create: bool = True,
) -> None:
    """Create what is missing and check what is there. `buckets`: those that concern who calls. Not to `create`: wait for
    who may.

    Raises WrongStreamError naming stream, field, found and wanted; UnavailableError when JetStream does not
    answer within `wait_s` (right after a boot it may take a while to have a leader)."""
    names = Names(pool)
    concerned = {names.events, *(f"KV_{names.bucket(bucket)}" for bucket in buckets)}
    for config in _wanted(names, replicas):
        if config.name not in concerned:
            continue
        found = await _find_or_create(js, config, wait_s, create)
        for field in CHECKED:
            wanted, is_ = getattr(config, field), getattr(found, field)
            if (wanted or None) != (is_ or None):
                raise WrongStreamError(
                    f"{config.name}: {field} is {is_!r}, wanted {wanted!r}; it was made by something else or "
                    "by hand: remove it (its contents are lost) or point this pool at another server"
                )


async def _find_or_create(
    js: JetStreamContext, config: StreamConfig, wait_s: float, create: bool
) -> StreamConfig:
    loop = asyncio.get_running_loop()
    until = loop.time() + wait_s
    while True:
        try:
            try:
                return (await js.stream_info(str(config.name))).config
            except nats.js.errors.NotFoundError:
                if create:
                    return (await js.add_stream(config)).config
                raise
        except (TimeoutError, nats.errors.Error) as error:
            if loop.time() > until:
                raise UnavailableError(
                    f"JetStream did not give {config.name} in {wait_s} s: {error!r}"
                ) from error
            await asyncio.sleep(0.2)
