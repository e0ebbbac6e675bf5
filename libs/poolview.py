"""What the buckets say of a pool at this moment, for an onlooker: the same in both worlds."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from libs.config.settings import Settings
from libs.core.ports import Store
from libs.model import Inventory, RunLease, VmReport


@dataclass(slots=True)
class PoolView:
    """Reads only. Raises UnavailableError where the bus does not answer."""

    settings: Settings
    store: Callable[[str], Store]

    async def records(self, service: str) -> dict[str, dict[str, Any]]:
        """What a service has stored, by the names of its records."""
        rows = await self.store("state").scan(f"{service}.")
        documents = {row.key.removeprefix(f"{service}."): json.loads(row.value) for row in rows}
        return {key: doc["record"] for key, doc in documents.items() if doc.get("record")}

    async def inventories(self) -> dict[str, Inventory]:
        """The latest of each host; of a boot that may be over."""
        rows = await self.store("inventory").scan("")
        return {row.key: Inventory.model_validate_json(row.value) for row in rows}

    async def leases(self) -> list[RunLease]:
        """All run leases."""
        return [RunLease.model_validate_json(row.value) for row in await self.store("leases").scan("")]

    async def hosts(self) -> list[dict[str, Any]]:
        """One row a host of the pool file, without those that were removed and have not joined again."""
        records, inventories = await self.records("detector"), await self.inventories()
        words = await self.records("placement")
        rows = []
        for host in self.settings.hosts:
            record, inventory = records.get(host.name, {}), inventories.get(host.name)
            if gone(record):
                continue
            said = words.get(f"host.{host.name}", {}).get("words") or {}
            at = record.get("at") or {}
            current = inventory is not None and inventory.at.boot == at.get("boot")
            active = [vm for vm in inventory.vms if vm.state.active] if inventory and current else []
            rows.append(
                {
                    "host": host.name,
                    "state": record.get("state", "unknown"),
                    "incarnation": at.get("boot", ""),
                    "epoch": record.get("epoch", 0),
                    "maintenance": said.get("maintenance", False),
                    "quarantined": bool(record.get("quarantine")),
                    "drain": said.get("drain", ""),
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
        inventories, leases = await self.inventories(), {lease.vm: lease for lease in await self.leases()}
        states = {row["host"]: row["state"] for row in await self.hosts()}
        waiting = {
            item["vm"]: item["reason"]
            for record in (await self.records("placement")).values()
            if record.get("incident")
            for item in record["incident"]["items"]
            if item["phase"] == "waiting"
        }
        rows: dict[str, dict[str, Any]] = {}
        removed = {name for name, record in (await self.records("detector")).items() if gone(record)}
        for host, inventory in sorted(inventories.items()):
            if host in removed:
                continue
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
                    "health": vm.health.value,
                    "detail": waiting.get(vm.uuid, "") or _detail(vm),
                }
        return sorted(rows.values(), key=lambda row: str(row["vm"]))

    async def storm(self) -> dict[str, Any] | None:
        """The storm that is held: its number, who is silent, and whom an operator has released. None: there is none."""
        records = await self.records("detector")
        storm = records.get("pool.storm", {})
        if not storm.get("held"):
            return None
        silent = [
            host.name
            for host in self.settings.hosts
            if records.get(host.name, {}).get("state") in ("suspect", "failed")
        ]
        return {
            "number": storm["number"],
            "order": storm["order"],
            "suspects": silent,
            "released": [host for host in storm["released"] if host in silent],
        }

    async def leaders(self) -> dict[str, bool]:
        """Which roles are held at this moment, as far as the bucket says."""
        return {row.key: True for row in await self.store("leaders").scan("")}


def _detail(vm: VmReport) -> str:
    """Why it stopped, or what is wrong with its guest."""
    if not vm.state.active:
        return vm.stop_reason.value
    return vm.health.value if vm.health.bad else ""


def gone(record: dict[str, Any]) -> bool:
    """True where the detector's record says that the host is out of the pool."""
    return bool(record.get("removed")) and not record.get("at")
