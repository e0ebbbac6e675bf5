"""The read model of an onlooker (the command line, the lab): what the buckets and the stream say at this moment."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from libs.config.settings import Settings
from libs.core.clock import SystemClock
from libs.events.envelope import Envelope
from libs.jetstream.bus import NatsBus, open_bus
from libs.jetstream.reader import events
from libs.jetstream.schema import Names
from libs.jetstream.store import JetStreamStore
from libs.model import Inventory, RunLease
from libs.report import FailoverStory, failovers


@dataclass(slots=True)
class Reader:
    """One connection of an onlooker. Raises UnavailableError where the bus does not answer."""

    settings: Settings
    bus: NatsBus

    def _store(self, bucket: str) -> JetStreamStore:
        return JetStreamStore(self.bus.client, Names(self.settings.pool), bucket)

    async def _records(self, service: str) -> dict[str, dict[str, Any]]:
        rows = await self._store("state").scan(f"{service}.")
        documents = {row.key.removeprefix(f"{service}."): json.loads(row.value) for row in rows}
        return {key: doc["record"] for key, doc in documents.items() if doc.get("record")}

    async def _inventories(self) -> dict[str, Inventory]:
        rows = await self._store("inventory").scan("")
        return {row.key: Inventory.model_validate_json(row.value) for row in rows}

    async def _leases(self) -> list[RunLease]:
        return [RunLease.model_validate_json(row.value) for row in await self._store("leases").scan("")]

    async def hosts(self) -> list[dict[str, Any]]:
        """One row a host of the pool file."""
        records, inventories = await self._records("detector"), await self._inventories()
        rows = []
        for host in self.settings.hosts:
            record, inventory = records.get(host.name, {}), inventories.get(host.name)
            at = record.get("at") or {}
            current = inventory is not None and inventory.at.boot == at.get("boot")
            active = [vm for vm in inventory.vms if vm.state.active] if inventory and current else []
            rows.append(
                {
                    "host": host.name,
                    "state": record.get("state", "unknown"),
                    "incarnation": at.get("boot", ""),
                    "epoch": record.get("epoch", 0),
                    "vms": len(active),
                    "memory_used_mib": sum(vm.memory_mib for vm in active),
                    "memory_mib": inventory.memory_mib if inventory else None,
                    "fencing": [device.agent for device in host.fencing],
                    "uri": host.uri,
                }
            )
        return rows

    async def vms(self) -> list[dict[str, Any]]:
        """One row a VM that any host or lease knows."""
        inventories, leases = await self._inventories(), {lease.vm: lease for lease in await self._leases()}
        states = {row["host"]: row["state"] for row in await self.hosts()}
        waiting = {
            item["vm"]: item["reason"]
            for record in (await self._records("placement")).values()
            if record.get("incident")
            for item in record["incident"]["items"]
            if item["phase"] == "waiting"
        }
        rows: dict[str, dict[str, Any]] = {}
        for host, inventory in sorted(inventories.items()):
            for vm in inventory.vms:
                lease = leases.get(vm.uuid)
                theirs = lease is not None and lease.holder == inventory.at
                if vm.uuid in rows and not theirs and not vm.state.active:
                    continue
                doubted = states.get(host) not in ("healthy", "agent_down")
                state = "unknown" if doubted and vm.state.active else vm.state.value
                rows[vm.uuid] = {
                    "vm": vm.name,
                    "uuid": vm.uuid,
                    "host": host,
                    "state": "waiting" if vm.uuid in waiting else state,
                    "protection": vm.policy.protection.value,
                    "priority": vm.policy.priority.value,
                    "memory_mib": vm.memory_mib,
                    "vcpus": vm.vcpus,
                    "token": lease.token if lease else 0,
                    "lease": f"{lease.state.value} on {lease.holder.host}" if lease else "",
                    "detail": waiting.get(vm.uuid, "")
                    or (vm.stop_reason.value if not vm.state.active else ""),
                }
        return sorted(rows.values(), key=lambda row: str(row["vm"]))

    async def events(self, *, follow: bool = False, after: int = 0) -> AsyncIterator[tuple[int, Envelope]]:
        """Facts in order."""
        async for stored in events(self.bus, Names(self.settings.pool), follow=follow, after=after):
            yield stored.sequence, stored.envelope

    async def failovers(self) -> list[FailoverStory]:
        """One story an incident, oldest first."""
        return failovers([envelope async for _, envelope in self.events()])

    async def leaders(self) -> dict[str, bool]:
        """Which roles are held at this moment, as far as the bucket says."""
        return {row.key: True for row in await self._store("leaders").scan("")}


@contextlib.asynccontextmanager
async def reader(settings: Settings) -> AsyncIterator[Reader]:
    """Connect as an onlooker and leave again."""

    async def closed() -> None:
        return None

    bus = await open_bus(
        settings.servers(), settings.pool, "cli", SystemClock(), "rekindle-cli", closed=closed, wait_s=3.0
    )
    try:
        yield Reader(settings, bus)
    finally:
        await bus.client.close()
