"""What a thief of each key of the bus tries, against a real server, and what comes of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from libs.access.subjects import API
from libs.core.ports import Delivery
from libs.events.hosts import HostFailed
from libs.events.signals import Heartbeat, LeaseWritten, MarkTold, Signal
from libs.events.vms import VmStopFailed
from libs.jetstream.bus import NatsBus
from libs.jetstream.names import BUCKETS
from libs.jetstream.store import JetStreamStore
from libs.model import Mark
from tests.integration.keyed import NAMES, Keyed
from tests.unit.made import boot, lease
from tests.waiting import eventually

REFUSED, DROPPED, NOTHING, WORKS = (
    "refused by the server",
    "dropped by who hears it",
    "nothing comes of it",
    "**works**",
)
PREFIX, EVENTS = NAMES.prefix, NAMES.events
SETTLE_S = 0.15


def row(bucket: str, key: str) -> str:
    """The subject of a row."""
    return f"$KV.{NAMES.bucket(bucket)}.{key}"


def stream(bucket: str) -> str:
    return f"KV_{NAMES.bucket(bucket)}"


@dataclass
class Truth:
    """What really lies on the bus, as its owner sees it, and what the services hear."""

    owner: NatsBus
    heard: list[Signal] = field(default_factory=list)
    delivered: list[Delivery] = field(default_factory=list)

    async def begin(self, ground: Keyed) -> None:
        """Rows that a thief would like to change, and services that listen."""
        for bucket in BUCKETS:
            for key in ("h1", "h2", "vm1", "detector", "mark"):
                await JetStreamStore(self.owner.client, NAMES, bucket).put(key, b"true", None)
        detector, placement = await ground.bus("detector"), await ground.bus("placement")
        await detector.listen(["heartbeat.*", "inventory.*", "goodbye.*", "mark_told"], self.heard.append)
        await placement.listen(["lease.*", "heartbeat.*"], self.heard.append)
        await placement.consume("placement", ["host.failed", "vm.stop_failed"], self.delivered.append)

    async def rows(self) -> dict[str, int]:
        """Revisions by bucket and key."""
        found = {}
        for bucket in BUCKETS:
            for one in await JetStreamStore(self.owner.client, NAMES, bucket).scan(""):
                found[f"{bucket}/{one.key}"] = one.revision
        return found

    async def facts(self) -> int:
        return (await self.owner.client.jetstream(timeout=5).stream_info(EVENTS)).state.last_seq


@dataclass
class Thief:
    """A client with a stolen key."""

    client: Any
    refused: list[str]
    truth: Truth
    api: str = API
    rows: list[tuple[str, str]] = field(default_factory=list)
    """What was tried, and what came of it."""

    def note(self, tried: str, outcome: str) -> None:
        self.rows.append((tried, outcome))

    async def refusals(self, do: Callable[[], Awaitable[object]]) -> int:
        """How often the server refused something meanwhile."""
        before = len(self.refused)
        await do()
        await self.client.flush(timeout=5)
        await asyncio.sleep(SETTLE_S)
        return len(self.refused) - before

    async def barred(self, tried: str, subjects: Sequence[str], payload: bytes = b"{}") -> None:
        """Each of these subjects is refused, and nothing on the bus changes."""
        before, facts = await self.truth.rows(), await self.truth.facts()

        async def publish() -> None:
            for subject in subjects:
                await self.client.publish(subject, payload)

        assert await self.refusals(publish) == len(subjects), (tried, self.refused[-len(subjects) :])
        assert (await self.truth.rows(), await self.truth.facts()) == (before, facts), tried
        self.note(tried, REFUSED)

    async def deaf(self, tried: str, subjects: Sequence[str]) -> None:
        """None of these subjects can be listened to."""

        async def subscribe() -> None:
            for subject in subjects:
                await self.client.subscribe(subject)

        assert await self.refusals(subscribe) == len(subjects), tried
        self.note(tried, REFUSED)

    async def unheard(self, tried: str, topic: str, signal: Signal) -> None:
        """It may be sent, and no service takes it."""
        before = len(self.truth.heard)
        payload = signal.model_dump_json().encode()
        assert await self.refusals(lambda: self.client.publish(f"{PREFIX}.{topic}", payload)) == 0, tried
        assert self.truth.heard[before:] == [], tried
        self.note(tried, DROPPED)

    async def deputized(self, tried: str, calls: Sequence[tuple[str, bytes]], targets: Sequence[str]) -> bool:
        """Have the server answer its calls at places where it may not write itself. True where any row or fact changed."""
        before, facts, heard = await self.truth.rows(), await self.truth.facts(), len(self.truth.heard)
        for subject, payload in calls:
            for target in targets:
                await self.client.publish(subject, payload, reply=target)
        await self.client.flush(timeout=5)
        await asyncio.sleep(SETTLE_S)
        after = await self.truth.rows()
        own = {"inventory/h1", "watchdogs/h1", "definitions/vm1.h1"}
        changed = {key for key in after if after[key] != before.get(key)} - own
        worked = bool(changed) or await self.truth.facts() != facts or len(self.truth.heard) > heard
        self.note(tried, WORKS if worked else NOTHING)
        return worked


TARGETS = (
    row("leases", "vm1"),
    row("state", "detector.h2"),
    row("inventory", "h2"),
    row("definitions", "vm1.h2"),
    f"{PREFIX}.heartbeat.h2",
    f"{PREFIX}.event.host.failed.h2",
    f"{PREFIX}.event.host.confirmed_failed.h2",
)


async def agent(thief: Thief) -> None:
    """The key of the agent of h1."""
    await thief.barred(
        "speak as h2: heartbeat, inventory, goodbye",
        [f"{PREFIX}.{noun}.h2" for noun in ("heartbeat", "inventory", "goodbye")],
    )
    forged = Heartbeat(at=boot("h2"), agent="x", seq=1)
    await thief.unheard("speak of h2 in its own heartbeat", "heartbeat.h1", forged)
    hint = LeaseWritten(lease=lease("vm1", boot("h1"), token=99))
    await thief.unheard("hint at a lease in its own heartbeat", "heartbeat.h1", hint)
    await thief.deaf("answer what h2 is asked", [f"{PREFIX}.ask.h2"])
    await thief.barred(
        "write the rows of h2: inventory, promise, definition of a VM",
        [
            row("inventory", "h2"),
            row("watchdogs", "h2"),
            row("definitions", "vm1.h2"),
            row("definitions", "vm1"),
        ],
    )
    await thief.barred(
        "write run leases, records, leadership, the mark",
        [row("leases", "vm1"), row("state", "detector.h2"), row("leaders", "detector"), row("marks", "mark")],
    )
    await thief.barred(
        "tell a verdict, a proof, a plan, an operator's word",
        [
            f"{PREFIX}.event.{kind}"
            for kind in (
                "host.failed.h2",
                "host.fenced.h2",
                "failover.planned.x",
                "host.confirmed_failed.h2",
                "host.removed.h2",
                "host.watchdog_unarmed.h2",
            )
        ],
    )
    await _other_hosts_vm(thief)
    await thief.barred(
        "order: a stop on h2, the mark, a question to h2",
        [
            f"{PREFIX}.{topic}"
            for topic in ("stray.h2", "let_in.h2", "arriving.h2", "mark", "ask.h2", "lease.vm1")
        ],
    )
    await thief.barred(
        "read definitions, records, events",
        [f"{thief.api}.STREAM.MSG.GET.{one}" for one in (stream("definitions"), stream("state"), EVENTS)],
    )
    await _no_jetstream(thief)
    await _agent_listens(thief)
    await _own_host(thief)


async def _agent_listens(thief: Thief) -> None:
    """By itself, or by having the server answer to others."""
    await thief.deaf(
        "listen to other hosts, events, replies to others",
        [
            f"{PREFIX}.heartbeat.*",
            f"{PREFIX}.event.>",
            "_INBOX.>",
            "_INBOX.detector.>",
            f"{PREFIX}.ask.*",
            ">",
        ],
    )
    ask = json.dumps({"last_by_subj": row("leases", "vm1")}).encode()
    calls = (
        (f"{thief.api}.STREAM.MSG.GET.{stream('leases')}", ask),
        (f"{thief.api}.STREAM.INFO.{EVENTS}", b""),
        (row("inventory", "h1"), b"mine"),
        (row("definitions", "vm1.h1"), b"mine"),
    )
    assert not await thief.deputized(
        "have the server deliver its answers into rows and subjects of others", calls, TARGETS
    )


async def _other_hosts_vm(thief: Thief) -> None:
    """It may tell of any VM, and the server adds who told it."""
    fact = VmStopFailed(vm="vm2", name="VM2", at=boot("h2"), holder=boot("h1"), reason="x", rule="x")
    before, facts = len(thief.truth.delivered), await thief.truth.facts()
    payload = json.dumps(
        {
            "specversion": "1.0",
            "id": fact.key,
            "source": "/x",
            "type": "rekindle.vm.stop_failed.v1",
            "subject": "vm2",
            "time": "2026-01-01T00:00:00Z",
            "data": json.loads(fact.model_dump_json()),
        }
    ).encode()
    await thief.client.publish(f"{PREFIX}.event.vm.stop_failed.vm2", payload)

    async def told() -> bool:
        return await thief.truth.facts() >= facts + 2  # the forged one, and that it was taken out of the way

    await eventually(told, "placement tells of the forged fact")
    assert len(thief.truth.delivered) == before
    thief.note("tell that a VM of h2 cannot be stopped", f"{DROPPED}, with an alert (`message.unreadable`)")


async def _own_host(thief: Thief) -> None:
    """What is left: what the agent itself can do."""
    before = len(thief.truth.heard)
    beat = Heartbeat(at=boot("h1"), agent="x", seq=1)
    await thief.client.publish(f"{PREFIX}.heartbeat.h1", beat.model_dump_json().encode())
    await eventually(lambda: len(thief.truth.heard) > before, "its own heartbeat is heard")
    thief.note("speak as h1: keep it from being failed over, or lie about what it runs", WORKS)
    js = thief.client.jetstream(timeout=2)
    assert (await js.get_msg(stream("leases"), subject=row("leases", "vm1"))).data == b"true"
    assert (await js.get_msg(stream("inventory"), subject=row("inventory", "h2"))).data == b"true"
    thief.note("read run leases, inventories and watchdogs' promises of all hosts", WORKS)
    before = len(thief.truth.heard)
    mark = MarkTold(mark=Mark(generation=9, number=9))
    await thief.client.publish(f"{PREFIX}.mark_told", mark.model_dump_json().encode())
    await eventually(lambda: len(thief.truth.heard) > before, "its mark is heard")
    thief.note("tell a mark far ahead: the plane stops acting and asks all hosts what they run", WORKS)


async def _no_jetstream(thief: Thief) -> None:
    await thief.barred(
        "make, change, empty or delete streams and consumers",
        [
            f"{thief.api}.{call}"
            for call in (
                "STREAM.CREATE.evil",
                f"STREAM.UPDATE.{EVENTS}",
                f"STREAM.PURGE.{stream('leases')}",
                f"STREAM.DELETE.{EVENTS}",
                f"STREAM.MSG.DELETE.{stream('leases')}",
                f"CONSUMER.CREATE.{EVENTS}.x",
                f"CONSUMER.DELETE.{EVENTS}.executor",
                f"CONSUMER.RESET.{EVENTS}.executor",
            )
        ],
    )


WRITES = {
    "detector": ("leases", "definitions", "marks", "watchdogs"),
    "fencer": ("leases", "definitions", "marks", "inventory"),
    "placement": ("leases", "definitions", "marks", "watchdogs", "inventory"),
    "executor": ("inventory", "watchdogs"),
    "alerting": ("leases", "definitions", "marks", "watchdogs", "inventory"),
    "heartbeat": ("leases", "marks"),
    "operator": ("leases", "definitions", "watchdogs", "inventory"),
}
"""Buckets of which a service has no business to write any row."""
TELLS = {
    "detector": ("failover.planned", "host.confirmed_failed", "vm.restarted"),
    "fencer": ("host.failed", "failover.planned", "host.confirmed_failed"),
    "placement": ("host.failed", "host.fenced", "host.confirmed_failed", "host.removed"),
    "executor": ("host.failed", "host.fenced", "failover.planned", "host.confirmed_failed"),
    "alerting": ("host.failed", "host.fenced", "failover.planned", "host.confirmed_failed"),
    "heartbeat": ("host.failed", "host.fenced", "failover.planned", "host.confirmed_failed"),
    "operator": ("host.failed", "host.fenced", "failover.planned", "vm.restarted"),
}


async def service(thief: Thief, name: str) -> None:
    """The key of one service of the plane, or of the operator."""
    buckets = WRITES[name]
    await thief.barred(f"write rows of {', '.join(buckets)}", [row(one, "vm1") for one in buckets])
    if name != "executor":
        others = [one for one in ("detector", "fencer", "placement", "executor") if one != name]
        await thief.barred("write records of other services", [row("state", f"{one}.x") for one in others])
    others = [one for one in ("detector", "fencer", "placement", "executor", "alerting") if one != name]
    await thief.barred("take another service's leadership", [row("leaders", one) for one in others])
    await thief.barred(
        f"tell {', '.join(TELLS[name])}", [f"{PREFIX}.event.{kind}.h2" for kind in TELLS[name]]
    )
    calls = ["STREAM.DELETE", "STREAM.PURGE", "STREAM.UPDATE", "STREAM.MSG.DELETE"]
    await thief.barred(
        "change, empty or delete streams",
        [f"{API}.{call}.{one}" for call in calls for one in (EVENTS, stream("leases"))],
    )
    await thief.barred(
        "have facts delivered anew to another service",
        [f"{API}.CONSUMER.RESET.{EVENTS}.{one}" for one in others],
    )
    await thief.deaf("listen to replies to others", ["_INBOX.>", "_INBOX.agent-h1.>", "$KV.>", ">"])
    bucket = "leases" if name == "heartbeat" else "state"
    call = (
        f"{API}.STREAM.MSG.GET.{stream(bucket)}",
        json.dumps({"last_by_subj": row(bucket, "h1")}).encode(),
    )
    assert await thief.deputized(
        "have the server deliver its answers into rows of the pool's account", [call], [row("leases", "vm1")]
    )


async def subscriber(thief: Thief, durable: str) -> None:
    """The credentials of an outside subscriber."""
    await thief.barred(
        "speak as a host, tell a fact, write a row",
        [
            f"{PREFIX}.heartbeat.h1",
            f"{PREFIX}.event.host.failed.h2",
            row("leases", "vm1"),
            f"{PREFIX}.ask.h1",
        ],
    )
    await thief.barred(
        "read a bucket, or another subscriber's events",
        [
            f"{API}.STREAM.MSG.GET.{stream('leases')}",
            f"{API}.CONSUMER.MSG.NEXT.{EVENTS}.executor",
            f"$JS.ACK.{EVENTS}.executor.1.1.1.1.1",
        ],
    )
    await _no_jetstream(thief)
    await thief.deaf("listen to heartbeats, replies to others", [f"{PREFIX}.heartbeat.*", "_INBOX.>", ">"])
    await thief.truth.owner.publish(HostFailed(at=boot("h9"), incident="h9-1", epoch=1))
    pull = (f"{API}.CONSUMER.MSG.NEXT.{EVENTS}.{durable}", b"8")
    ack = f"$JS.ACK.{EVENTS}.placement.1.1.1.1.1"
    assert not await thief.deputized(
        "have the server deliver events into rows and subjects of others", [pull], [*TARGETS, ack]
    )
    thief.note("hear all events: names of hosts and VMs, verdicts, fences, alerts", WORKS)


async def notices(thief: Thief) -> None:
    """The key of the user of the system account."""
    await thief.barred(
        "anything but to listen",
        ["$SYS.REQ.SERVER.PING", "$SYS.REQ.SERVER.x.RELOAD", f"{PREFIX}.heartbeat.h1", row("leases", "vm1")],
    )
    await thief.deaf("listen to the pool, to the server's figures", [f"{PREFIX}.>", "$SYS.>", ">"])
    thief.note("hear which client's connection began to fail, and its address", WORKS)
