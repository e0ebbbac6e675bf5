"""S16: the gate before libvirt asks a real store, and the agent gives a real libvirt (its test driver) back what was held."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from libs.core.clock import SystemClock
from libs.jetstream.schema import Names
from libs.jetstream.server import EmbeddedServer
from libs.jetstream.store import JetStreamStore
from libs.model import HeldVm, Mark, VmPolicy, VmState
from libs.restored import mark as marks
from libs.restored.mark import MarkRecord
from libs.virt.autostart import Autostart
from libs.virt.held import LibvirtHeld
from libs.virt.host import LibvirtHost
from tests.integration.conftest import OpenBus
from tests.integration.test_cli import rekindle
from tests.integration.test_libvirt import NODE, A, B, domain
from tests.unit.made import boot, lease
from tests.unit.test_boot_gate import Etc

NONE = "00000000-0000-0000-0000-0000000000ff"


def passed(root: Path, etc: Etc, server: EmbeddedServer) -> Any:
    """What the command says, on a host whose libvirt does not run."""
    (root / "boot_id").write_text("boot-of-now\n")
    config = root / "pool.yaml"
    config.write_text(
        f"pool: p\ndata_dir: {root}/data\nbus: {{url: '{server.url}'}}\nhosts:\n"
        f"  - {{name: h1, uri: 'qemu:///system', agent: true, boot_id_path: {root}/boot_id,\n"
        f"      autostart: {etc.links}, resume_list: {etc.list}}}\n"
    )
    done = rekindle("gate", "--config", str(config), "--host", "h1", "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


async def test_s16_the_store_says_whose_lease_it_is(
    server: EmbeddedServer, open_as: OpenBus, tmp_path: Path
) -> None:
    bus = await open_as("executor")
    leases = JetStreamStore(bus.client, Names("p"), "leases")
    etc = Etc(tmp_path)
    theirs, free = etc.define("1", "none"), etc.define("2")
    unread, resumed = etc.define("3"), etc.define("4", link=False)
    etc.list.write_text(f"default {resumed} {free}\n")
    await leases.put(theirs, lease(theirs, boot("h2")).model_dump_json().encode(), 0)
    await leases.put(unread, b"of another age", 0)
    await leases.put(resumed, lease(resumed, boot("h1")).model_dump_json().encode(), 0)
    said = await asyncio.to_thread(passed, tmp_path, etc, server)
    assert [(row["vm"], row["reason"].split(",")[0]) for row in said["held"]] == [
        ("1", "its lease"), ("3", "it is protected"), ("4", "its lease")
    ]  # fmt: skip
    assert not said["asked"], "of one of them it could not tell"
    assert etc.started() == ["2"]
    assert etc.resumed() == [free]
    # the next boot: the lease is gone with its VM's host, so what was held may start by itself once more
    await leases.delete(theirs, None)
    await leases.delete(unread, None)
    said = await asyncio.to_thread(passed, tmp_path, etc, server)
    assert (said["asked"], [row["vm"] for row in said["held"]]) == (True, ["4"])
    assert etc.started() == ["1", "2", "3"]
    # S06: once somebody has led by it, the store may be an old copy that has lost a lease: no lease is no answer of it
    await marks.write(
        JetStreamStore(bus.client, Names("p"), marks.BUCKET), MarkRecord(mark=Mark(number=7)), 0
    )
    said = await asyncio.to_thread(passed, tmp_path, etc, server)
    assert [(row["vm"], row["reason"].split(",")[0]) for row in said["held"]] == [
        ("2", "it is protected"), ("3", "it is protected"), ("4", "its lease")
    ]  # fmt: skip
    assert etc.started() == ["1"]


async def test_s16_a_store_that_stands_still_is_asked_for_no_longer_than_ten_seconds(
    server: EmbeddedServer, open_as: OpenBus, tmp_path: Path
) -> None:
    await open_as("executor")
    etc = Etc(tmp_path)
    etc.define("1", "none")
    etc.define("2")
    assert server.process is not None
    os.kill(server.process.pid, signal.SIGSTOP)
    began = time.monotonic()
    said = await asyncio.to_thread(passed, tmp_path, etc, server)
    took_s = time.monotonic() - began
    os.kill(server.process.pid, signal.SIGCONT)
    assert (said["asked"], [row["vm"] for row in said["held"]]) == (False, ["2"])
    assert etc.started() == ["1"]
    assert 9.0 < took_s < 20.0, "ten, and the start of a process"


@pytest.fixture
def host(tmp_path: Path) -> LibvirtHost:
    path = tmp_path / "node.xml"
    path.write_text(NODE.format(domains=domain("a", A) + domain("b", B)))
    return LibvirtHost("h1", f"test://{path}", VmPolicy(), SystemClock().monotonic)


async def test_libvirt_has_its_flag_again_and_starts_what_it_would_have(
    host: LibvirtHost, tmp_path: Path
) -> None:
    etc = Etc(tmp_path)
    held = LibvirtHeld(host, etc.files)
    vms = [
        HeldVm(uuid=A, name="a", link="/etc/libvirt/qemu/a.xml"),
        HeldVm(uuid=B, name="b", resumed=True),
        HeldVm(uuid=NONE, name="gone", link="/etc/libvirt/qemu/gone.xml"),
    ]
    for vm in vms:
        etc.files.hold(vm)
    assert await held.held() == sorted(vms, key=lambda vm: vm.uuid)
    await host.destroy(A)
    await held.start(vms[0])
    await held.start(vms[0])
    report = await host.report(A)
    assert report is not None
    assert report.state is VmState.RUNNING
    for vm in vms:
        await held.give_back(vm)
    flags = await host.call(
        "flags", lambda connection: {d.name(): d.autostart() for d in connection.listAllDomains()}
    )
    assert flags == {"a": 1, "b": 0}
    assert await held.held() == []


async def test_what_cannot_be_read_is_no_answer(host: LibvirtHost, tmp_path: Path) -> None:
    """A file stands where the notes should lie."""
    (tmp_path / "held").write_text("")
    held = LibvirtHeld(host, Autostart(tmp_path / "autostart", tmp_path / "list", tmp_path / "held"))
    with pytest.raises(Exception, match="held back at boot cannot be read"):
        await held.held()
