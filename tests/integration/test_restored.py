"""S06 on a real server: its data directory is copied, life goes on, and the copy is put back."""

from __future__ import annotations

import asyncio
import inspect
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from libs.core.ports import Hypervisor, UnavailableError
from libs.events.facts import AnyFact
from libs.events.failovers import FailoverPlanned, PlannedStart
from libs.events.state import StateReconciled, StateRestored
from libs.jetstream.bus import NatsBus
from libs.jetstream.reader import events
from libs.jetstream.server import EmbeddedServer
from libs.jetstream.store import JetStreamStore
from libs.model import Answer, Incarnation, LeaseState, VmDefinition, VmState
from libs.operator import Operator
from libs.poolview import PoolView
from libs.restored import keeper, mark
from services.executor import wiring as executor
from tests.integration.conftest import OpenBus
from tests.integration.services import NAMES, SETTINGS, Agent, Ports, lease_of, running
from tests.unit.made import boot, proof, vm
from tests.unit.test_executor import Host
from tests.waiting import eventually as until

H1, H2, H3 = boot("h1"), boot("h2"), boot("h3")


class Hosts:
    """Nobody answers, until they do."""

    def __init__(self) -> None:
        self.hosts = {at: Host(at) for at in (H1, H2, H3)}
        self.away = True

    async def at(self, incarnation: Incarnation, timeout_s: float) -> Hypervisor:
        if self.away:
            raise UnavailableError("nobody answers yet")
        return self.hosts[incarnation]

    async def probe(self, host: str, timeout_s: float) -> tuple[Answer, str]:
        return Answer.UNKNOWN, ""


async def eventually(condition: Callable[[], Any], what: str, *, within_s: float = 20.0) -> Any:
    """As tests.waiting; while the server is away nothing is true yet."""

    async def asked() -> Any:
        found = condition()
        try:
            return await found if inspect.isawaitable(found) else found
        except UnavailableError:
            return None

    return await until(asked, what, within_s=within_s)


async def told(bus: NatsBus) -> list[AnyFact]:
    return [stored.envelope.data async for stored in events(bus, NAMES, follow=False, after=0)]


async def marked(bus: NatsBus) -> mark.MarkRecord:
    return (await mark.read(JetStreamStore(bus.client, NAMES, mark.BUCKET)))[0]


def owed_start() -> FailoverPlanned:
    """A start that is owed when the copy is made: its target does not answer, so it is tried again and again."""
    start = PlannedStart(
        key="i/web/1", vm="web", name="WEB", origin=boot("h9"), to=H2, wave=0, priority_rank=2, memory_mib=100,
        vcpus=1, proofs=(proof(boot("h9")),),
    )  # fmt: skip
    return FailoverPlanned(incident="h9-1", revision=1, starts=(start,))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mark, "EVERY_S", 0.2)
    monkeypatch.setattr(keeper, "LOOK_S", 0.1)


@pytest.mark.usefixtures("quick")
async def test_s06_an_old_copy_of_the_data_directory_starts_nothing_and_is_brought_in_line(
    server: EmbeddedServer, open_as: OpenBus, tmp_path: Path
) -> None:
    ports, hosts = Ports(await open_as("executor"), "executor"), Hosts()
    h1, h2, h3 = [Agent(await open_as(f"agent-{at.host}"), at) for at in (H1, H2, H3)]
    onlooker = await open_as("onlooker")
    h1.shows(vm("db"), vm("mail"))
    shell = executor.shell(ports, hosts)
    for name in ("web", "web2"):
        definition = VmDefinition(uuid=name, name=name.upper(), xml="<x/>", sha256="0")
        await ports.store("definitions").put(name, definition.model_dump_json().encode(), None)
    async with running(shell.run(), h1.run(), h2.run(), h3.run(), *ports.works):

        async def held(name: str, at: Incarnation) -> bool:
            lease = await lease_of(onlooker, name)
            return lease is not None and lease.holder == at and lease.state is LeaseState.RUNNING

        await eventually(lambda: held("db", H1), "db has its lease")
        await eventually(lambda: held("mail", H1), "mail has its lease")
        await onlooker.publish(owed_start())
        await eventually(lambda: "web" in shell.state.records, "a start is owed")

        # -- the copy is made
        await server.stop()
        shutil.copytree(server.directory / "jetstream", tmp_path / "yesterday")
        await server.start()

        # -- a day goes by: db is migrated, mail is shut down, web was started by hand on h3
        h2.shows(vm("db"))
        h1.shows()
        h3.shows(vm("web"))
        await eventually(lambda: held("db", H2), "the lease has followed")
        before = await marked(onlooker)
        await eventually(lambda: grown(onlooker, before), "the mark has grown")

        # -- the copy is put back; h3 is not heard for now
        h3.silent = True
        await server.stop()
        shutil.rmtree(server.directory / "jetstream")
        shutil.copytree(tmp_path / "yesterday", server.directory / "jetstream")
        hosts.away = False
        await server.start()

        await eventually(lambda: waiting(onlooker), "it waits for h3, and for nobody else", within_s=30)
        assert (await lease_of(onlooker, "db")).holder == H1  # type: ignore[union-attr]
        assert (await view(onlooker).restored() or {})["waiting_for"] == ["h3"]
        assert [one for one in await told(onlooker) if isinstance(one, StateRestored)]
        await asyncio.sleep(2.5)  # longer than an owed start is tried again
        assert [host.starts for host in hosts.hosts.values()] == [[], [], []], "nothing starts meanwhile"

        # -- it is heard
        h3.silent = False
        await eventually(lambda: held("db", H2), "the lease is where db runs")
        await eventually(lambda: held("web", H3), "and where web runs")
        [done] = await eventually(lambda: reconciled(onlooker), "it is told")
        assert done.down == ("MAIL",)
        lease = await lease_of(onlooker, "mail")
        assert lease is not None
        assert lease.state is LeaseState.STOPPED
        assert (await lease_of(onlooker, "db")).token > 1_000  # type: ignore[union-attr]
        await eventually(lambda: ports_ok(onlooker), "it goes on by itself")

        # -- and works as before: a start that is ordered now is performed
        await onlooker.publish(owed_start().model_copy(update={"incident": "h9-2", "starts": (later(),)}))
        await eventually(
            lambda: len(hosts.hosts[H2].starts) == 1, "an order of today is carried out", within_s=20
        )
        assert hosts.hosts[H1].starts == hosts.hosts[H3].starts == []
        assert hosts.hosts[H2].vms["web2"] is VmState.RUNNING


def later() -> PlannedStart:
    return owed_start().starts[0].model_copy(update={"key": "j/web2/1", "vm": "web2", "name": "WEB2"})


def view(bus: NatsBus) -> PoolView:
    return PoolView(SETTINGS, lambda bucket: JetStreamStore(bus.client, NAMES, bucket))


async def grown(bus: NatsBus, before: mark.MarkRecord) -> bool:
    return (await marked(bus)).mark.number > before.mark.number + 3


async def waiting(bus: NatsBus) -> bool:
    restoring = (await marked(bus)).restoring
    return restoring is not None and restoring.missing == ("h3",)


async def ports_ok(bus: NatsBus) -> bool:
    record = await marked(bus)
    return record.restoring is None and record.mark.generation == 1


async def reconciled(bus: NatsBus) -> list[Any]:
    return [one for one in await told(bus) if isinstance(one, StateReconciled)]


@pytest.mark.usefixtures("quick")
async def test_s06_an_operators_word_lets_a_host_go_that_does_not_tell(open_as: OpenBus) -> None:
    """An agent comes with the memory of a pool whose data are gone altogether."""
    ports = Ports(await open_as("executor"), "executor")
    h1, onlooker = Agent(await open_as("agent-h1"), H1, (vm("db"),)), await open_as("onlooker")
    shell = executor.shell(ports, Hosts())
    async with running(shell.run(), h1.run(), *ports.works):
        await eventually(lambda: lease_of(onlooker, "db"), "it leads")
        h1.memory.mark = h1.memory.mark.model_copy(update={"number": 1_000_000})
        await h1.memory.tell()
        await eventually(lambda: missing(onlooker, "h2", "h3"), "it waits for two hosts")
        operator = Operator(view(onlooker), onlooker, ports.clock, "tester@test")
        with pytest.raises(Exception, match="h1 has told what it runs"):
            await operator.confirm_absent("h1")
        await operator.confirm_absent("h2")
        await eventually(lambda: missing(onlooker, "h3"), "it waits for one")
        await operator.confirm_absent("h3")
        await eventually(lambda: ports_ok(onlooker), "it goes on")
        with pytest.raises(Exception, match="no old copy"):
            await operator.confirm_absent("h3")


async def missing(bus: NatsBus, *hosts: str) -> bool:
    restoring = (await marked(bus)).restoring
    return restoring is not None and restoring.missing == hosts
