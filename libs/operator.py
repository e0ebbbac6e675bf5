"""What an operator tells a pool, and when such a word means something: the same for the command and the simulator.

A word is checked against what the services have stored, said as a fact, and looked for in what they store then.
They check once more when they hear it: between our look and their hearing a host may have spoken.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from libs.core.ports import Bus, Clock, ConflictError, UnavailableError
from libs.events.words import (
    HostConfirmedFailed,
    HostMaintenanceEntered,
    HostMaintenanceExited,
    HostReadmitOrdered,
    HostRemoved,
    StormReleaseOrdered,
)
from libs.model import HostState, Incarnation, Inventory, LeaseState, Protection
from libs.poolview import PoolView, gone
from libs.restored import mark as marks
from libs.restored.mark import MarkRecord, Restoring

SEEN_S, LOOK_S = 10.0, 0.2
CLEAR = (HostState.HEALTHY, HostState.AGENT_DOWN, HostState.FENCED)
"""What a host must be held to be for its removal: of any other it is not known what runs there."""


class RefusedError(Exception):
    """The answer is no: nothing was said, and why not."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """An open verdict, and which protected VMs its host ran when it was last heard: those start elsewhere."""

    at: Incarnation
    incident: str
    epoch: int
    vms: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class StormSeen:
    """A storm as an operator was shown it: its number, the latest order on it, and who is silent."""

    number: int
    order: int
    suspects: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Operator:
    """One person at one pool. `by` names them. Raises RefusedError, and UnavailableError where the bus or the
    service that the word is for does not answer."""

    view: PoolView
    bus: Bus
    clock: Clock
    by: str

    # -- an operator's word as a fence proof

    async def verdict(self, host: str) -> Verdict:
        """The open verdict on this host, which is what a word may be said about."""
        record = await self.record(host)
        state = HostState(record["state"])
        if state is not HostState.FAILED:
            raise RefusedError(
                f"{host} is held to be {state.value}, not failed: there is no open verdict to confirm"
            )
        at = Incarnation.model_validate(record["at"])
        inventory = await self._inventory(at)
        ran = inventory.vms if inventory is not None else ()
        vms = tuple(vm.name for vm in ran if vm.state.active and _protected(vm.policy.protection))
        return Verdict(at, record["incident"], record["epoch"], vms)

    async def confirm_failed(self, verdict: Verdict) -> None:
        """Vouch that the host of this verdict is down. Refused where it has spoken or was fenced meanwhile."""
        host = verdict.at.host
        present = await self.verdict(host)
        if present.incident != verdict.incident:
            raise RefusedError(f"{host} has failed again since ({present.incident}): look again")
        word = HostConfirmedFailed(
            at=verdict.at,
            incident=verdict.incident,
            epoch=verdict.epoch,
            by=self.by,
            said_at=self.clock.wall().isoformat(timespec="seconds"),
            cause=f"host.failed/{verdict.incident}",
            rule="an operator's explicit word",
        )
        await self.bus.publish(word)

        async def taken() -> bool:
            record = await self.record(host)
            return bool(record["state"] != HostState.FAILED or record["incident"] != verdict.incident)

        await self.seen("the fencer", taken)

    # -- an old copy of the state

    async def confirm_absent(self, host: str) -> None:
        """The stored state is an old copy, and this host is not to be waited for: it is off, or nothing of the pool's
        runs on it. What the old copy says to run there stands, and its silence is dealt with as any other's."""
        store = self.view.store(marks.BUCKET)
        record, restoring, revision = await self._awaited(host)
        update = restoring.model_copy(update={"confirmed": (*restoring.confirmed, host)})
        try:
            await marks.write(store, record.model_copy(update={"restoring": update}), revision)
        except ConflictError as error:
            raise UnavailableError("another has written in the same moment: say it again") from error

        async def taken() -> bool:
            restoring = (await marks.read(store))[0].restoring
            return restoring is None or host not in restoring.missing

        await self.seen("the executor", taken)

    async def awaited(self, host: str) -> None:
        """Nothing, where this host is waited for. Raises RefusedError."""
        await self._awaited(host)

    async def _awaited(self, host: str) -> tuple[MarkRecord, Restoring, int]:
        self.view.settings.host(host)
        record, revision = await marks.read(self.view.store(marks.BUCKET))
        if record.restoring is None:
            raise RefusedError("the stored state is no old copy: no host is waited for")
        if host not in record.restoring.missing:
            raise RefusedError(f"{host} has told what it runs: it is not waited for")
        return record, record.restoring, revision

    # -- storms

    async def storm(self) -> StormSeen:
        """The storm that is held and has suspects whom no operator has released yet."""
        storm = await self.view.storm()
        if storm is None:
            raise RefusedError("no storm is held: there is nothing to release")
        seen = StormSeen(storm["number"], storm["order"], tuple(storm["suspects"]))
        if set(storm["suspects"]) <= set(storm["released"]):
            raise RefusedError(f"released already: {', '.join(seen.suspects)}")
        return seen

    async def release_storm(self, seen: StormSeen) -> None:
        """Let the suspects of this storm be held failed without a proof. Refused where they have changed."""
        present = await self.storm()
        if (present.number, present.suspects) != (seen.number, seen.suspects):
            now = ", ".join(present.suspects)
            raise RefusedError(f"the suspects have changed since you looked; they are now {now}: look again")
        order = present.order + 1
        word = StormReleaseOrdered(
            number=present.number,
            order=order,
            suspects=present.suspects,
            by=self.by,
            cause=f"storm.held/{present.number}",
            rule="an operator's word",
        )
        await self.bus.publish(word)

        async def taken() -> bool:
            storm = await self.view.storm()
            return storm is None or storm["number"] != present.number or storm["order"] >= order

        await self.seen("the detector", taken)

    # -- maintenance

    async def enter_maintenance(self, host: str, override: str = "", *, drain: bool = False) -> None:
        """The host takes no new VMs from now on, and with `drain` what runs there moves away, also where it was in
        maintenance before. Refused where the pool would tolerate too little then, but with the reason of an `override`,
        which is recorded."""
        if not (await self.words(host)).get("maintenance", False):
            await self._admitted(host, override, removed=False)
        await self._maintain(host, enter=True, override=override, drain=drain)

    async def _admitted(self, host: str, override: str, *, removed: bool) -> None:
        if override:
            return
        from libs.admission import refusal  # the planner is read only once it is meant

        reason = await refusal(self.view, host, removed=removed)
        if reason:
            raise RefusedError(f"{reason}; --override REASON says it all the same")

    async def exit_maintenance(self, host: str) -> None:
        """The host takes VMs again."""
        await self._maintain(host, enter=False)

    async def _maintain(self, host: str, *, enter: bool, override: str = "", drain: bool = False) -> None:
        await self.record(host)
        words = await self.words(host)
        drained = bool(words.get("drain")) and not enter  # by us: that ends by the same word
        more = drain and not words.get("emptied", False)
        if words.get("maintenance", False) is enter and not drained and not more:
            raise RefusedError(f"{host} is {'already' if enter else 'not'} in maintenance")
        number = words.get("number", 0) + 1
        rule = "an operator's word"
        word = (
            HostMaintenanceEntered(
                host=host, number=number, by=self.by, override=override, drain=drain, rule=rule
            )
            if enter
            else HostMaintenanceExited(host=host, number=number, by=self.by, rule=rule)
        )
        await self.bus.publish(word)

        async def taken() -> bool:
            return bool((await self.words(host)).get("number", 0) >= number)

        await self.seen("placement", taken)

    # -- quarantine

    async def readmit(self, host: str) -> None:
        """Let a host that failed too often have new VMs again; its failures are forgotten."""
        number = (await self.record(host)).get("quarantine", 0)
        if not number:
            raise RefusedError(f"{host} is not in quarantine")
        await self.bus.publish(
            HostReadmitOrdered(host=host, number=number, by=self.by, rule="an operator's word")
        )

        async def taken() -> bool:
            return bool((await self.record(host)).get("quarantine", 0) != number)

        await self.seen("the detector", taken)

    # -- removal

    async def remove(self, host: str, override: str = "") -> None:
        """Take the host out of the pool. Refused as maintenance is. It is closed to new VMs first and then looked at once more, so that
        nothing can be planned onto it between the look and the word."""
        record = await self._removable(host)
        await self._admitted(host, override, removed=True)
        closes = record["state"] != HostState.FENCED and not (await self.words(host)).get("maintenance")
        if closes:
            await self._maintain(host, enter=True, override=override)
        try:
            record = await self._removable(host)
        except RefusedError:
            if closes:
                await self.exit_maintenance(host)
            raise
        at = Incarnation.model_validate(record["at"])
        inventory = await self._inventory(at)
        agent = inventory.agent if inventory is not None else ""
        await self.bus.publish(
            HostRemoved(at=at, agent=agent, by=self.by, override=override, rule="an operator's word")
        )

        async def taken() -> bool:
            found = (await self.view.records("detector")).get(host, {})
            return bool(found.get("at") != record["at"])

        await self.seen("the detector", taken)

    async def _removable(self, host: str) -> dict[str, Any]:
        """The detector's record of the host, or why it must stay."""
        record = await self.record(host)
        state = HostState(record["state"])
        if state not in CLEAR:
            raise RefusedError(f"{host} is held to be {state.value}: what runs there is not known")
        at = Incarnation.model_validate(record["at"])
        for incident in await self._incidents():
            for item in incident["items"]:
                to = (item.get("to") or {}).get("host")
                busy = item["phase"] == "planned" and to == host
                waits = item["phase"] in ("waiting", "planned") and item["origin"]["host"] == host
                if busy or waits:
                    raise RefusedError(f"{host} has an open incident ({incident['id']}, VM {item['name']})")
        if state is HostState.FENCED:
            return record  # nothing runs there
        inventory = await self._inventory(at)
        if inventory is None:
            raise RefusedError(f"{host} has not told yet what runs there")
        runs = {vm.name for vm in inventory.vms if vm.state.active and _protected(vm.policy.protection)}
        runs |= {
            lease.name
            for lease in await self.view.leases()
            if lease.holder == at
            and lease.state in (LeaseState.STARTING, LeaseState.RUNNING, LeaseState.EVICTING)
            and _protected(lease.policy.protection)
        }
        if runs:
            raise RefusedError(f"protected VMs run on {host}: {', '.join(sorted(runs))}")
        return record

    # -- looking

    async def record(self, host: str) -> dict[str, Any]:
        """What the detector has stored of it. Raises RefusedError where that is nothing."""
        self.view.settings.host(host)
        record = (await self.view.records("detector")).get(host, {})
        if gone(record):
            raise RefusedError(f"{host} was removed from the pool and has not joined again")
        if not record.get("at"):
            raise RefusedError(f"{host} was never heard: the pool knows nothing of it")
        return record

    async def words(self, host: str) -> dict[str, Any]:
        """What placement has stored of the words on it."""
        record = (await self.view.records("placement")).get(f"host.{host}", {})
        return record.get("words") or {}

    async def _incidents(self) -> list[dict[str, Any]]:
        records = (await self.view.records("placement")).values()
        return [record["incident"] for record in records if record.get("incident")]

    async def _inventory(self, at: Incarnation) -> Inventory | None:
        """What this very boot told last."""
        inventory = (await self.view.inventories()).get(at.host)
        return inventory if inventory is not None and inventory.at == at else None

    async def seen(self, who: str, taken: Callable[[], Awaitable[bool]], within_s: float = SEEN_S) -> None:
        """Until the word shows in what `who` has stored. It is said by now and stays said."""
        until = self.clock.monotonic() + within_s
        while not await taken():
            if self.clock.monotonic() > until:
                raise UnavailableError(
                    f"it is said, but {who} has not taken it up in {within_s:.0f} s; it will when it runs again"
                )
            await asyncio.sleep(LOOK_S)


def _protected(protection: Protection) -> bool:
    return protection is not Protection.NONE
