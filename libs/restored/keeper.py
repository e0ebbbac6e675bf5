"""Who keeps the mark: beside the leading executor, which alone writes leases. It makes the mark grow, finds that the store
is an old copy, and brings it in line with what the hosts tell. Every decision is a compare-and-set that succeeded."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import structlog

from libs.core.ports import Bus, Clock, ConflictError, Lease, Store, Subscription, UnavailableError
from libs.events.signals import InventorySeen, MarkTold, Signal
from libs.events.state import StateReconciled, StateRestored
from libs.model import Inventory, Mark, RunLease
from libs.restored import mark as marks
from libs.restored.guard import Guard
from libs.restored.mark import MarkRecord, Restoring
from libs.restored.reconcile import missing, reconciled, unowed

LOOK_S = 0.5
log = structlog.get_logger()


class Keeper:
    """Runs for ever; acts while `lease`, that of the executor, is held."""

    def __init__(
        self,
        bus: Bus,
        clock: Clock,
        lease: Lease,
        guard: Guard,
        hosts: Sequence[str],
        stores: tuple[Store, Store, Store],
    ) -> None:
        """`stores`: of marks, leases and state."""
        self._bus, self._clock, self._lease, self._guard = bus, clock, lease, guard
        self._hosts = tuple(hosts)
        self._marks, self._leases, self._state = stores
        self._told: dict[str, Inventory] = {}
        self._grow_at = 0.0
        self._alerted = Mark()
        self._listening: Subscription | None = None

    async def run(self) -> None:
        self._guard.on_change(self._changed)
        while True:
            await asyncio.sleep(LOOK_S)
            if not self._lease.held():
                continue
            try:
                await self._look()
            except (UnavailableError, ConflictError) as error:
                log.info("the mark is looked at again", reason=str(error))

    def _heard(self, signal: Signal) -> None:
        """Only what is told while the store is an old copy counts: what was heard before may be of another day."""
        if isinstance(signal, InventorySeen) and self._guard.record.restoring is not None:
            inventory = signal.inventory
            if not inventory.outdated(self._told.get(inventory.at.host)):
                self._told[inventory.at.host] = inventory

    def _changed(self) -> None:
        if self._guard.ok:
            self._told.clear()
            self._grow_at = 0.0

    async def _look(self) -> None:
        guard = self._guard
        if guard.ok:
            if self._clock.monotonic() >= self._grow_at:
                await self._grow()
            return
        record, revision = await marks.read(self._marks)
        if record.restoring is not None:
            await self._restore(record, record.restoring, revision)
        elif record.mark.behind(guard.heard):
            await self._begin(record, revision)

    def _now(self) -> str:
        return self._clock.wall().isoformat(timespec="seconds")

    async def _grow(self) -> None:
        record, revision = await marks.read(self._marks)
        if record.restoring is not None or record.mark.behind(self._guard.heard):
            self._guard.look()
            return
        mark = Mark(generation=record.mark.generation, number=record.mark.number + 1)
        await marks.write(self._marks, MarkRecord(mark=mark, at=self._now()), revision)
        self._grow_at = self._clock.monotonic() + marks.EVERY_S
        await self._bus.send("mark", MarkTold(mark=mark))

    async def _begin(self, record: MarkRecord, revision: int) -> None:
        """The write succeeds only on the latest there is: then it is proven that the store is behind."""
        restoring = Restoring(told=self._guard.heard, since=self._now(), missing=self._hosts)
        self._told.clear()
        await marks.write(
            self._marks, record.model_copy(update={"restoring": restoring, "at": self._now()}), revision
        )
        self._guard.look()

    async def _restore(self, record: MarkRecord, restoring: Restoring, revision: int) -> None:
        if self._listening is None:
            self._listening = await self._bus.listen(("inventory.*",), self._heard)
        generation = max(restoring.told.generation, self._guard.heard.generation, record.mark.generation) + 1
        if self._alerted != restoring.told:
            alert = StateRestored(
                found=record.mark,
                told=restoring.told,
                since=restoring.since,
                rule="an agent has heard of a later mark than lies in the store",
            )
            await self._bus.publish(alert)
            self._alerted = restoring.told
        self._guard.look()  # an operator's word may have come, and it must know that we still restore
        left = missing(self._hosts, self._told, restoring.confirmed)
        if left != restoring.missing:
            update = restoring.model_copy(update={"missing": left})
            record = record.model_copy(update={"restoring": update, "at": self._now()})
            await marks.write(self._marks, record, revision)
            return
        if left:
            return
        rows = await self._leases.scan("")
        leases = {row.key: RunLease.model_validate_json(row.value) for row in rows}
        absent = [host for host in self._hosts if host not in self._told]
        found = reconciled(leases, self._told, generation)
        revisions = {row.key: row.revision for row in rows}
        for lease in found.writes:
            await self._leases.put(lease.vm, lease.model_dump_json().encode(), revisions.get(lease.vm, 0))
        await self._unowe()
        fact = StateReconciled(
            generation=generation,
            down=found.down,
            unheard=tuple(absent),
            adopted=len([one for one in found.writes if one.state.value == "running"]),
            rule="every host has told what it runs, or an operator said not to wait for it",
        )
        await self._bus.publish(fact)
        mark = Mark(generation=generation, number=1)
        await marks.write(self._marks, MarkRecord(mark=mark, at=self._now()), revision)
        await self._bus.send("mark", MarkTold(mark=mark))
        self._guard.look()

    async def _unowe(self) -> None:
        """What the old copy owed is not owed any more."""
        for row in await self._state.scan(""):
            later = unowed(row.key, row.value)
            if later is None:
                await self._state.delete(row.key, row.revision)
            elif later != row.value:
                await self._state.put(row.key, later, row.revision)
