"""What the buckets say of a pool at this moment, for an onlooker: the same in both worlds."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from libs.config.settings import Settings
from libs.core.ports import Store
from libs.model import Incarnation, Inventory, LeaseState, Protection, RunLease, VmReport, VmState
from libs.promises import Promise
from libs.restored import mark as marks

STANDBY = "standby"
"""Of a host of the pool file that may be switched off, and has not joined since."""


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
        found = {row.key: Inventory.model_validate_json(row.value) for row in rows}
        return {host: one for host, one in found.items() if one.at.host == host}

    async def leases(self) -> list[RunLease]:
        """All run leases."""
        return [RunLease.model_validate_json(row.value) for row in await self.store("leases").scan("")]

    async def promises(self) -> dict[str, Promise]:
        """What each host promises by its watchdog; of a boot that may be over."""
        rows = await self.store("watchdogs").scan("")
        found = {row.key: Promise.model_validate_json(row.value) for row in rows}
        return {host: one for host, one in found.items() if one.at.host == host}

    async def hosts(self) -> list[dict[str, Any]]:
        """One row a host of the pool file, without those that were removed and have not joined again, but for those on
        standby: they may be off."""
        records, inventories = await self.records("detector"), await self.inventories()
        promises = await self.promises()
        words, fencer = await self.records("placement"), await self.records("fencer")
        ready = words.get("pool.ready", {}).get("ready") or {}
        rows = []
        for host in self.settings.hosts:
            record, inventory = records.get(host.name, {}), inventories.get(host.name)
            off = host.standby and not record.get("at")
            if gone(record) and not off:
                continue
            said = words.get(f"host.{host.name}", {}).get("words") or {}
            at = record.get("at") or {}
            current = inventory is not None and inventory.at.boot == at.get("boot")
            promise = promises.get(host.name)
            if promise is not None and (
                promise.at.boot != at.get("boot") or promise.presumed or promise.withdrawn
            ):
                promise = None
            active = [vm for vm in inventory.vms if vm.state.active] if inventory and current else []
            rows.append(
                {
                    "host": host.name,
                    "state": STANDBY if off else record.get("state", "unknown"),
                    "incarnation": at.get("boot", ""),
                    "epoch": record.get("epoch", 0),
                    "maintenance": said.get("maintenance", False),
                    "maintained_by": said.get("maintained_by", ""),
                    "quarantined": bool(record.get("quarantine")),
                    "drain": said.get("drain", ""),
                    "emptied": said.get("emptied", False),
                    "stays": [
                        {"vm": one["name"], "reason": one["reason"], "detail": one["detail"]}
                        for one in _stays(words, host.name, at)
                    ],
                    "vms": len(active),
                    "memory_used_mib": sum(vm.memory_mib for vm in active),
                    "memory_mib": inventory.memory_mib if inventory else None,
                    "ready_plan": ready.get(host.name),
                    "fencing": [device.agent for device in host.fencing],
                    "watchdog_s": None if promise is None else promise.timeout_s,
                    "fence_paths": _paths(fencer.get(f"path.{host.name}", {})),
                    "fence_missing": fence_missing(fencer.get(host.name, {})),
                    "uri": host.uri,
                }
            )
        return rows

    async def running(self, at: Incarnation) -> dict[str, Protection]:
        """By name every VM that runs on this boot, is being started there, or may be: what dies with its power."""
        inventory = (await self.inventories()).get(at.host)
        own = inventory.vms if inventory is not None and inventory.at == at else ()
        found = {vm.name: vm.policy.protection for vm in own if vm.state is not VmState.STOPPED}
        held = (LeaseState.STARTING, LeaseState.RUNNING, LeaseState.EVICTING)
        found |= {
            lease.name: lease.policy.protection
            for lease in await self.leases()
            if lease.holder == at and lease.state in held
        }
        return found

    async def vms(self) -> list[dict[str, Any]]:
        """One row a VM that any host or lease knows."""
        inventories, leases = await self.inventories(), {lease.vm: lease for lease in await self.leases()}
        states = {row["host"]: row["state"] for row in await self.hosts()}
        records = await self.records("detector")
        unread = {name for name, record in records.items() if record.get("unread")}
        placed = await self.records("placement")
        waiting = {
            item["vm"]: item["reason"]
            for record in placed.values()
            if record.get("incident")
            for item in record["incident"]["items"]
            if item["phase"] == "waiting"
        }
        stays = {
            one["vm"]: f"stays on {host}, which is drained: {one['detail']}"
            for host in states
            for one in _stays(placed, host, records.get(host, {}).get("at") or {})
        }
        rows: dict[str, dict[str, Any]] = {}
        removed = {name for name, record in records.items() if gone(record)}
        for host, inventory in sorted(inventories.items()):
            if host in removed:
                continue
            for vm in inventory.vms:
                lease = leases.get(vm.uuid)
                theirs = lease is not None and lease.holder == inventory.at
                if vm.uuid in rows and not theirs and not vm.state.active:
                    continue
                doubted = states.get(host) not in ("healthy", "agent_down") or host in unread
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
                    "detail": waiting.get(vm.uuid, "") or stays.get(vm.uuid, "") or _detail(vm),
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

    async def restored(self) -> dict[str, Any] | None:
        """Of an old copy of the state that was put back: since when it is known, and which hosts are waited for. None:
        what is stored is the latest."""
        restoring = (await marks.read(self.store(marks.BUCKET)))[0].restoring
        if restoring is None:
            return None
        waited = [host for host in restoring.missing if host not in restoring.confirmed]
        return {"since": restoring.since, "waiting_for": waited, "confirmed": list(restoring.confirmed)}

    async def leaders(self) -> dict[str, bool]:
        """Which roles are held at this moment, as far as the bucket says."""
        return {row.key: True for row in await self.store("leaders").scan("")}


def _stays(records: dict[str, Any], host: str, at: dict[str, Any]) -> list[dict[str, Any]]:
    """What of a host that is drained is not moved away, by placement's record; nothing by what it says of another boot."""
    drain = records.get(f"drain.{host}", {}).get("drain")
    return list(drain["stays"]) if drain and drain["at"] == at else []


def _detail(vm: VmReport) -> str:
    """Why it stopped, or what is wrong with its guest."""
    if not vm.state.active:
        return vm.stop_reason.value
    return vm.health.value if vm.health.bad else ""


def fence_missing(record: dict[str, Any]) -> list[str]:
    """What stands in the way of a proof, by the fencer's record of a host; nothing where none is owed."""
    owed = record.get("phase") in ("fencing", "waiting", "ordering", "order_waits")
    return list(record["missing"]) if owed else []


def _paths(record: dict[str, Any]) -> list[dict[str, Any]]:
    """What the fencer's drill found of each fence device of a host; nothing before the first."""
    return [
        {
            "device": path["name"],
            "level": path["level"],
            "state": "broken" if path["broken"] else ("doubtful" if path["failures"] else "proven"),
            "proven_at": path["proven_at"],
            "detail": path["detail"],
        }
        for path in record.get("paths", ())
    ]


def gone(record: dict[str, Any]) -> bool:
    """True where the detector's record says that the host is out of the pool."""
    return bool(record.get("removed")) and not record.get("at")
