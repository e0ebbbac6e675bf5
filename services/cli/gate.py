"""`rekindle gate`: before a host's libvirt starts, keep from it what may not run here. DESIGN §4 rule 5, ADR 7.

Run once a boot, ordered before libvirtd (infra/systemd/rekindle-gate.service). It reads and renames files, and asks the
store for the run leases; libvirt itself it does not need.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

from libs.access.rights import agent_user
from libs.config.settings import Settings
from libs.config.yamlfile import BadInputError
from libs.core.ports import UnavailableError
from libs.jetstream.connection import BusRefusedError, SafeClient, connect
from libs.jetstream.schema import Names
from libs.jetstream.store import JetStreamStore
from libs.leases import held_back
from libs.model import Incarnation, RunLease
from libs.restored.mark import BUCKET, KEY
from libs.virt.autostart import Autostart, BootStart, autostart_of
from services.cli.app import ConfigOption, JsonOption, print_json, settings_of

ASK_S = 10.0
"""For all questions to the store: a host whose bus is away must boot all the same."""
CONNECT_S, RETRY_S = 2.0, 0.3
Leases = dict[str, RunLease | None]


@dataclass(frozen=True, slots=True)
class Said:
    """What the store said, and why it did not of the others."""

    leases: Leases = field(default_factory=dict)
    trouble: str = ""
    led: bool = True
    """Somebody has led by it, or it is not known that nobody has: then it may be an old copy of itself."""


def gate(
    host: Annotated[str, typer.Option(help="the host of the pool that this machine is")],
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Before libvirt starts on this host: keep from its autostart what may not run here. For rekindle-gate.service."""
    settings = settings_of(config)
    entry = settings.host(host)
    if not entry.agent:
        raise BadInputError(
            f"hosts.{host}.agent: false; without an agent nobody would give back what is held"
        )
    at = Incarnation(host=entry.name, boot=entry.boot())
    files = autostart_of(entry, settings.data_dir)
    try:
        wanted = files.wanted(settings.vm_defaults)
        said = asyncio.run(_ask(settings, host, [one.vm.uuid for one in wanted])) if wanted else Said()
        led = said.led or _remembers(settings.data_dir / "marks" / f"{entry.name}.json")
        reasons = {one.vm.uuid: _reason(one, said.leases, at, led=led) for one in wanted}
    except OSError as error:
        raise BadInputError(f"hosts.{host}: {error.filename}: {error.strerror}") from error
    failed = _put(files, wanted, reasons)
    if failed:
        raise BadInputError(f"hosts.{host}: {'; '.join(failed)}")
    held = [{"vm": one.vm.name, "uuid": one.vm.uuid, "reason": reasons[one.vm.uuid]} for one in wanted]
    held = [one for one in held if one["reason"]]
    if as_json:
        print_json({"schema": "rekindle.gate.v1", "host": host, "asked": not said.trouble, "held": held})
        return
    if said.trouble:
        sys.stdout.write(f"the store does not answer: {said.trouble}\n")
    for row in held:
        sys.stdout.write(f"{row['vm']} is held back: {row['reason']}\n")
    sys.stdout.write(f"{len(wanted) - len(held)} of {len(wanted)} VMs are libvirt's to start\n")


def _put(files: Autostart, wanted: list[BootStart], reasons: dict[str, str]) -> list[str]:
    """Each to its place, whatever becomes of the others; returns what could not be done."""
    failed = []
    for one in wanted:
        try:
            if reasons[one.vm.uuid]:
                files.hold(one.vm)
            else:
                files.let(one.vm)
        except OSError as error:
            failed.append(f"{one.vm.name}: {error.filename}: {error.strerror}")
    return failed


def _reason(one: BootStart, leases: Leases, at: Incarnation, *, led: bool) -> str:
    return held_back(leases.get(one.vm.uuid), at, one.policy, answered=one.vm.uuid in leases, led=led)


def _remembers(file: Path) -> bool:
    """This host has heard of a plane that led, whatever the store has of it. A file that is torn remembers one."""
    return file.exists()


async def _ask(settings: Settings, host: str, vms: Iterable[str]) -> Said:
    """The leases of which the store said something, and why it did not of the others."""
    led = True
    leases: Leases = {}
    left, trouble = list(vms), "no answer in time"
    client: SafeClient | None = None
    try:
        async with asyncio.timeout(ASK_S):
            while left:
                try:
                    if client is None:
                        servers = settings.servers()
                        client = await connect(
                            servers,
                            "gate",
                            wait_s=CONNECT_S,
                            closed=_given_up,
                            jetstream=False,
                            login=settings.login(agent_user(host)),
                        )
                    row = await JetStreamStore(client, Names(settings.pool), "leases").get(left[0])
                    leases[left[0]] = None if row is None else RunLease.model_validate_json(row.value)
                    left.pop(0)
                    if not left and None in leases.values():
                        led = await JetStreamStore(client, Names(settings.pool), BUCKET).get(KEY) is not None
                except UnavailableError as error:
                    trouble = str(error)
                    await asyncio.sleep(RETRY_S)
                except ValidationError as error:
                    trouble = f"the lease {left.pop(0)} cannot be read: {str(error)[:200]}"
    except TimeoutError:
        pass
    except (BadInputError, BusRefusedError) as error:  # no address, or no server that could be believed
        trouble = str(error)
    finally:
        if client is not None:
            await client.close()
    return Said(leases, "" if leases.keys() >= set(vms) else trouble, led)


async def _given_up() -> None:
    """A connection that is closed for good: what was not answered by then is unknown."""
