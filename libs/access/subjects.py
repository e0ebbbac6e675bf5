"""Subjects of NATS and JetStream for what a role may do."""

from __future__ import annotations

from dataclasses import dataclass

from libs.access.rights import Role
from libs.jetstream.names import BUCKETS, Names

API = "$JS.API"
AGENT_API = "REKINDLE.API"
"""Under this name an agent's account has the few calls of JetStream that it imports: under its own one the server answers
first, for the account itself, which has none (nats-server 2.15.1)."""
ANSWER_S = 5
"""For so long after a question its reply may be sent."""


def inbox(user: str) -> str:
    """Where replies to a user come; nobody else may listen there."""
    return f"_INBOX.{user}"


@dataclass(frozen=True, slots=True)
class Subjects:
    publish: tuple[str, ...]
    subscribe: tuple[str, ...]
    replies: bool
    """May reply, once, to who asked."""


def calls(role: Role, names: Names) -> list[str]:
    """The calls of JetStream that a role makes, below its prefix."""
    streams = {bucket: f"KV_{names.bucket(bucket)}" for bucket in BUCKETS}
    used = sorted({*role.gets, *role.scans, *role.writes})
    found = [f"STREAM.INFO.{names.events}"]
    found += [f"STREAM.INFO.{streams[bucket]}" for bucket in (BUCKETS if role.creates else used)]
    found += [f"STREAM.MSG.GET.{streams[bucket]}" for bucket in sorted({*role.gets, *role.scans})]
    for bucket in role.scans:
        found += [f"CONSUMER.CREATE.{streams[bucket]}", f"CONSUMER.DELETE.{streams[bucket]}.*"]
    for durable in role.consumes:
        found += [
            f"CONSUMER.DURABLE.CREATE.{names.events}.{durable}",
            f"CONSUMER.INFO.{names.events}.{durable}",
            f"CONSUMER.MSG.NEXT.{names.events}.{durable}",
            f"CONSUMER.RESET.{names.events}.{durable}",
        ]
    if role.follows:
        found += [f"STREAM.MSG.GET.{names.events}", f"CONSUMER.CREATE.{names.events}"]
    if role.creates:
        found += [f"STREAM.CREATE.{stream}" for stream in (names.events, *streams.values())]
    if role.subscribers:
        found += [f"CONSUMER.{call}.{names.events}.*" for call in ("DURABLE.CREATE", "INFO", "DELETE")]
    return found


def keys(role: Role, names: Names) -> list[str]:
    """Rows that it may write, as subjects."""
    return [
        f"$KV.{names.bucket(bucket)}.{key}"
        for bucket, patterns in sorted(role.writes.items())
        for key in patterns
    ]


def bound(kind: str) -> bool:
    """Whether it says about whom the fact may be."""
    return kind.count(".") > 1


def facts(role: Role, names: Names) -> list[str]:
    return [f"{names.prefix}.event.{kind}{'' if bound(kind) else '.*'}" for kind in role.tells]


def subjects(role: Role, names: Names, api: str = API) -> Subjects:
    """What the server is told of a role."""
    publish = [f"{api}.{call}" for call in calls(role, names)]
    if api == API:
        publish.insert(0, f"{api}.INFO")
    for durable in role.consumes:
        publish += [f"$JS.ACK.{names.events}.{durable}.>", f"$JS.ACK.*.*.{names.events}.{durable}.>"]
    publish += keys(role, names)
    publish += facts(role, names)
    publish += [f"{names.prefix}.{topic}" for topic in (*role.sends, *role.asks)]
    subscribe = [
        f"{inbox(role.name)}.>",
        *(f"{names.prefix}.{topic}" for topic in (*role.hears, *role.answers)),
    ]
    return Subjects(tuple(publish), tuple(subscribe), bool(role.answers))
