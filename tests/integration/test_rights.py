"""Each line of the table of rights against a real server: what a user needs it may do, and what others need it may not."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from libs.access.accounts import Access, accounts, users
from libs.access.rights import BY_NAME, SERVICES, Role, agent
from libs.access.subjects import AGENT_API, API, subjects
from libs.core.ports import Delivery, UnavailableError
from libs.events.signals import Heartbeat, MarkAsked, Question, Reply, Signal
from libs.events.vms import VmStopSettled
from libs.jetstream.archive import JetStreamArchive
from libs.jetstream.bus import NatsBus
from libs.jetstream.names import BUCKETS
from libs.jetstream.reader import events
from libs.jetstream.schema import ensure
from libs.jetstream.store import JetStreamStore
from libs.jetstream.subscribers import forget_place, keep_place
from libs.model import Answer
from tests.integration.keyed import HOSTS, NAMES, POOL, Keyed, keyed
from tests.unit.made import boot
from tests.waiting import eventually

ROLES = [*SERVICES, agent("h1")]


@pytest.fixture
async def ground(tmp_path: Path) -> AsyncIterator[Keyed]:
    async with keyed(tmp_path) as one:
        yield one


def plain(pattern: str) -> str:
    """A subject that a pattern matches."""
    return re.sub(r"\*", "h1", pattern).replace(">", "x.y")


def matches(pattern: str, subject: str) -> bool:
    """As the server matches."""
    wanted, found = pattern.split("."), subject.split(".")
    if wanted[-1] == ">":
        return len(found) >= len(wanted) and _same(wanted[:-1], found)
    return len(found) == len(wanted) and _same(wanted, found)


def _same(wanted: list[str], found: list[str]) -> bool:
    return all(one in ("*", other) for one, other in zip(wanted, found, strict=False))


async def test_each_user_can_do_all_that_its_service_does(ground: Keyed) -> None:
    owner = await ground.owner()
    for bucket in BUCKETS:
        await JetStreamStore(owner.client, NAMES, bucket).put("h1", b"{}", None)
    for role in ROLES:
        bus = await ground.bus(role.name)
        await uses_buckets(role, bus)
        await uses_bus(role, bus)
    assert {user: said for user, said in ground.refusals.items() if said} == {}
    log = (ground.server.directory / "nats.log").read_text()
    assert "Violation" not in log


async def uses_buckets(role: Role, bus: NatsBus) -> None:
    js = bus.client.jetstream(timeout=5)
    used = BUCKETS if role.creates else sorted({*role.gets, *role.scans, *role.writes})
    await ensure(js, POOL, buckets=used, create=role.creates)
    for bucket in role.gets:
        row = await JetStreamStore(bus.client, NAMES, bucket).get("h1")
        assert row is not None, (role.name, bucket)
        assert row.value == b"{}"
        assert await JetStreamStore(bus.client, NAMES, bucket).get("none") is None
    for bucket in role.scans:
        assert await JetStreamStore(bus.client, NAMES, bucket).scan(""), (role.name, bucket)
    for bucket, patterns in role.writes.items():
        store = JetStreamStore(bus.client, NAMES, bucket)
        for pattern in patterns:
            key = plain(pattern).replace("h1", f"by-{role.name}" if pattern == "*" else "h1")
            revision = await store.put(key, b"{}", None)
            await store.delete(key, revision)


async def uses_bus(role: Role, bus: NatsBus) -> None:
    def hear(_: object) -> None:
        return None

    async def reply(_: Signal) -> Signal:
        return Reply(about="h2", peer=boot("h1"), answer=Answer.SILENT)

    if role.hears:
        await bus.listen([plain(topic) for topic in role.hears], hear)
    for topic in role.answers:
        await bus.answer(plain(topic), reply)
    for topic in role.sends:
        await bus.send(plain(topic), MarkAsked())
    for kind in role.tells:
        subject = f"{NAMES.prefix}.event.{kind}" + ("" if kind.count(".") > 1 else ".h1")
        headers = {"Nats-Msg-Id": f"{role.name}/{kind}"}
        await bus.client.jetstream(timeout=5).publish(subject, b"{}", headers=headers)
    for durable in role.consumes:
        consumed: list[Delivery] = []
        subscription = await bus.consume(durable, ["host.suspected"], consumed.append)
        await subscription.stop()
    if role.follows:
        archive = JetStreamArchive(bus.client, NAMES)
        await archive.after(0, 1)
        assert await archive.last() > 0
        async for _ in events(bus, NAMES):
            pass
    if role.subscribers:
        js = bus.client.jetstream(timeout=5)
        await keep_place(js, POOL, "erp")
        await forget_place(js, POOL, "erp")
    await bus.client.flush(timeout=5)


async def test_no_user_can_do_what_only_others_need(ground: Keyed) -> None:
    await ground.owner()
    everything = {
        plain(subject) for role in (*SERVICES, agent("h2")) for subject in subjects(role, NAMES).publish
    }
    everything |= {
        f"{API}.STREAM.{call}.{NAMES.events}" for call in ("DELETE", "PURGE", "UPDATE", "MSG.DELETE")
    }
    for role in ROLES:
        api = AGENT_API if role.name.startswith("agent-") else API
        allowed = subjects(role, NAMES, api).publish
        bus = await ground.bus(role.name)
        wrong = sorted(one for one in everything if not any(matches(may, one) for may in allowed))
        assert len(wrong) > 30, role.name
        for subject in wrong:
            await bus.client.publish(subject, b"{}")
        await bus.client.flush(timeout=5)
        refused = ground.refusals[role.name]
        await eventually(lambda: len(refused) >= len(wrong), f"{role.name}: all are refused")  # noqa: B023
        named = {said.split('"')[1] for said in refused}
        assert named == {subject.lower() for subject in wrong}, role.name
        await bus.client.close()


async def test_nobody_listens_where_replies_to_others_come(ground: Keyed) -> None:
    await ground.owner()
    for role in ROLES:
        bus = await ground.bus(role.name)
        other = "_INBOX.detector.>" if role.name != "detector" else "_INBOX.fencer.>"
        for subject in (other, "_INBOX.>", ">", "rekindle.>", "$KV.>"):
            await bus.client.subscribe(subject)
        await bus.client.flush(timeout=5)
        refused = ground.refusals[role.name]
        await eventually(lambda: len(refused) >= 5, f"{role.name}: all are refused")  # noqa: B023
        await bus.client.close()


async def test_an_agent_in_its_own_account_is_heard_asked_and_told(ground: Keyed) -> None:
    """Across accounts: heartbeats, questions, hints, rows and facts, with the code that the services use."""
    await ground.owner()
    detector, executor, h1 = [await ground.bus(name) for name in ("detector", "executor", "agent-h1")]
    heard: list[Signal] = []
    await detector.listen(["heartbeat.*"], heard.append)
    told: list[Signal] = []
    await h1.listen(["mark", "mark_asked"], told.append)

    async def reply(_: Signal) -> Signal:
        return Reply(about="h2", peer=boot("h1"), answer=Answer.UP)

    await h1.answer("ask.h1", reply)
    await h1.send("heartbeat.h1", Heartbeat(at=boot("h1"), agent="a", seq=1))
    await eventually(lambda: heard, "the detector hears the heartbeat")
    answer = await detector.ask("ask.h1", Question(about="h2"), 2.0)
    assert isinstance(answer, Reply)
    assert answer.answer is Answer.UP
    await executor.send("mark_asked", MarkAsked())
    await eventually(lambda: told, "the agent hears the executor")
    with pytest.raises(UnavailableError):
        await detector.ask("ask.h2", Question(about="h1"), 0.3)
    placement = await ground.bus("placement")
    deliveries: list[Delivery] = []
    await placement.consume("placement", ["vm.stop_settled"], deliveries.append)
    await h1.publish(VmStopSettled(vm="vm1", name="VM1", at=boot("h1"), rule="r"))
    await eventually(lambda: deliveries, "placement is delivered what the agent told")
    assert deliveries[0].fact.about == "vm1"


async def test_a_new_host_gets_its_account_without_a_restart(tmp_path: Path) -> None:
    async with keyed(tmp_path) as ground:
        owner = await ground.owner()
        lost: list[bool] = []
        owner.on_change(lost.append)
        ground.server.hosts = (*HOSTS, "h3")
        ground.server.configure()
        await ground.server.reload()
        h3 = await ground.bus("agent-h3")
        await JetStreamStore(h3.client, NAMES, "inventory").put("h3", b"{}", None)
        heard: list[Signal] = []
        detector = await ground.bus("detector")
        await detector.listen(["heartbeat.*"], heard.append)
        await h3.send("heartbeat.h3", Heartbeat(at=boot("h3"), agent="a", seq=1))
        await eventually(lambda: heard, "the new host is heard")

        async def reply(_: Signal) -> Signal:
            return Reply(about="h1", peer=boot("h3"), answer=Answer.UP)

        await h3.answer("ask.h3", reply)
        assert isinstance(await detector.ask("ask.h3", Question(about="h1"), 2.0), Reply)
        assert lost == [], "nobody's connection was disturbed"


def test_the_configuration_names_no_secret(tmp_path: Path) -> None:
    from libs.access.keys import KeyRing

    ring = KeyRing(tmp_path)
    ring.make(users(HOSTS))
    text = accounts(Access(POOL, {user: ring.public(user) for user in users(HOSTS)}, HOSTS))
    seeds = [ring.seed(user).read_text().strip() for user in users(HOSTS)]
    assert seeds
    assert not [seed for seed in seeds if seed in text]
    assert {path.stat().st_mode & 0o777 for path in tmp_path.glob("*.nk")} == {0o600}


def test_every_service_has_a_role() -> None:
    from services.cli.supervisor import SERVICES as SUPERVISED

    assert {*SUPERVISED, "heartbeat", "operator"} == set(BY_NAME)
