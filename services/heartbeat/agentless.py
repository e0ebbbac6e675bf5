"""Which boot an agentless host is in, as far as it can be told from outside.

libvirt gives no boot id over a connection. A run of a VM that goes on over the gap (same VM, same libvirt id)
shows that the host did not boot, unless its kernel has run for less long than it had before, or than it would have by
now: libvirt's ids begin anew with each boot, and autostart may give a VM the one that it had. Where no run goes on, it is held to be another boot. That
errs on the side of "another": a new name for the same boot costs a look, an old name for a new boot would void a fence
proof.

So a new name alone proves little, and says so itself: only where the kernel was seen to be younger than before is the boot
before it certainly over (`libs/model.py:Incarnation.guessed`). Else what may be under way there goes on, and is nobody else's
to start (`libs/leases.py:rule`), and the host is asked about all else that it had (`services/executor/act.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import uuid
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol, TypeVar

from pydantic import ValidationError

from libs.core.ledger import FORMAT
from libs.core.ports import Store, UnavailableError
from libs.model import BEGUN, GUESSED, Answer, Incarnation, Inventory, Value, VmReport

LOOK_S = 1.0
PROBE_S = 0.9
MISSES = 2
LOOKS = 8
"""Heartbeats from one look at its kernel's age to the next."""
JITTER_S = 2.0
"""What a kernel counts may go back a little while it runs: idle time and waiting for disks are settled late."""
FORMER_KEPT = 8
"""Names that a host had before, as many as are kept: leases may be in any of them."""
AGE = "watched."
RUN_SHARE, RUN_MORE_S = 0.95, 5.0
"""A kernel that runs counts at least so much of our time, less so many seconds (ADR 2)."""
STILL_S = 1.0
"""A counter that does not move in this time counts nothing (libvirt's test driver), and tells nothing of a boot."""
TRIES = 5
"""So often it is asked for how long it has run before it is taken for one that cannot tell."""
Work = list[Coroutine[Any, Any, None]]


class Reached(Protocol):
    """What is asked of one agentless host's libvirt, over one connection."""

    @property
    def name(self) -> str: ...

    async def reports(self) -> list[VmReport]: ...

    async def probe(self, timeout_s: float) -> tuple[Answer, str]: ...

    async def up_s(self) -> float:
        """For how long its kernel has run. Raises UnavailableError."""


class Age(Value):
    """For how long the kernel of a boot had run when it was last looked at."""

    boot: str
    up_s: float
    at: float | None = None
    """By our clock."""
    machine: str = ""
    """Whose clock that is: one boot of the management machine."""


class AgeDocument(Value):
    """It as all documents in that bucket are."""

    format: int = FORMAT
    record: Age
    owed: tuple[()] = ()


H = TypeVar("H", bound=Reached)


def boot_name() -> str:
    """Of a boot of which nobody knows whether it has a name: no other ever had this one."""
    return f"{uuid.uuid4().hex}{GUESSED}"


def begun_name() -> str:
    """Of a boot that certainly began after the one before it."""
    return f"{uuid.uuid4().hex}{BEGUN}"


async def watch(
    reach: Callable[[], H],
    inventory: Store,
    ages: Store,
    interval_s: float,
    agent: Callable[[H, Incarnation, tuple[str, ...]], Awaitable[Work]],
    lost: Callable[[str], None],
    named: Callable[[], str] = boot_name,
    begun: Callable[[], str] = begun_name,
    clock: Callable[[], float] | None = None,
    machine: str = "",
) -> None:
    """Beat for a host as long as its libvirt answers, by an `agent` of its own; each time that it comes back, anew.
    `inventory` and `ages` keep what it ran and for how long it had run, over our own end, too. `reach` makes a new
    connection: callbacks belong to one life. An `agent` is told what the host was called before, too. `lost`: it
    answers no more. `clock` is monotonic, of this boot of our `machine`."""
    seen: Age | None = None
    while True:
        host = reach()
        watched = Watched(host, inventory, ages, named, seen, begun, clock, machine)
        at = await watched.until_up()
        tasks = [asyncio.create_task(one) for one in await agent(host, at, watched.former)]
        gone = asyncio.create_task(watched.until_lost(interval_s, at))
        try:
            done, _ = await asyncio.wait([gone, *tasks], return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in (gone, *tasks):
                task.cancel()
            await asyncio.gather(gone, *tasks, return_exceptions=True)
            lost(host.name)
        seen = watched.seen


class Kernel(StrEnum):
    """A host's kernel, by its age, against what was noted of a boot."""

    OLDER = "may have run all the time, for all that is known"
    SHORT = "has run for less long than it would have"  # by our clock, and its own may be slow
    YOUNGER = "has run for less long than before"  # which is certain


@dataclass(slots=True)
class Watched:
    """One agentless host."""

    host: Reached
    inventory: Store
    ages: Store | None = None
    named: Callable[[], str] = boot_name
    seen: Age | None = None
    """What we have noted ourselves: the bus may not have taken it."""
    begun: Callable[[], str] | None = None
    """Names a boot that certainly began after the one before it; None: as any other."""
    clock: Callable[[], float] | None = None
    machine: str = ""
    former: tuple[str, ...] = ()
    """What the host was called before the boot that `until_up` named."""

    async def until_up(self) -> Incarnation:
        """Wait until libvirt answers and its VMs can be read; then name the boot."""
        while True:
            try:
                reports = await self.host.reports()
                stored = await self._stored()
                age = await self._age()
                kernel = Kernel.OLDER if stored is None else await self._kernel(stored.at, age)
            except UnavailableError:
                await asyncio.sleep(LOOK_S)
                continue
            self.former = () if stored is None else stored.former
            if stored is not None and _goes_on(stored.vms, reports) and kernel is Kernel.OLDER:
                return self._noted(stored.at, age)
            if stored is not None:
                self.former = (*self.former, stored.at.boot)[-FORMER_KEPT:]
            name = self.begun if kernel is Kernel.YOUNGER and self.begun is not None else self.named
            return self._noted(Incarnation(host=self.host.name, boot=name()), age)

    def _noted(self, at: Incarnation, age: Age | None) -> Incarnation:
        """What was seen before it got its name is this boot's: one that ends right after that is missed by nobody."""
        if age is not None:
            self.seen = age.model_copy(update={"boot": at.boot})
        return at

    async def until_lost(self, interval_s: float, at: Incarnation | None = None) -> None:
        """Return when libvirt fails to answer twice in a row, or another boot answers. Meanwhile note for how long this
        one has run: at once, or a boot that soon ends could not be told from the next."""
        missed, looked = 0, 0
        while missed < MISSES:
            noted = self.seen is not None and at is not None and self.seen.boot == at.boot
            due = looked % LOOKS == 0 or not noted
            if at is not None and not missed and due and not await self._goes_on(at):
                return
            looked += 1
            await asyncio.sleep(interval_s)
            answer, _ = await self.host.probe(PROBE_S)
            missed = 0 if answer is Answer.UP else missed + 1

    async def _goes_on(self, at: Incarnation) -> bool:
        """Note the age of its kernel; False where that has run for less long than before."""
        if self.ages is None:
            return True
        with contextlib.suppress(UnavailableError):
            before, age = self.seen, await self._asked()
            known = before is not None and before.boot == at.boot
            least_s = -math.inf if before is None else max(before.up_s - JITTER_S, self._least_s(before))
            if before is not None and known and age.up_s < least_s and await self._counts(age, before):
                return False
            self.seen = age.model_copy(update={"boot": at.boot})
            document = AgeDocument(record=self.seen)
            await self.ages.put(AGE + at.host, document.model_dump_json().encode(), None)
        return True

    async def _kernel(self, at: Incarnation, age: Age | None) -> Kernel:
        """What its age says of this boot. Raises UnavailableError where what was noted of it cannot be read."""
        if self.ages is None or age is None:
            return Kernel.OLDER
        row = await self.ages.get(AGE + at.host)
        try:
            stored = None if row is None else AgeDocument.model_validate_json(row.value).record
        except ValidationError:
            stored = None  # of another version
        known = [one for one in (stored, self.seen) if one is not None and one.boot == at.boot]
        if any(age.up_s < one.up_s - JITTER_S for one in known):
            return Kernel.YOUNGER
        short = [one for one in known if age.up_s < self._least_s(one)]
        return Kernel.SHORT if short and await self._counts(age, *short) else Kernel.OLDER

    async def _counts(self, age: Age, *noted: Age) -> bool:
        """False where its age is what it was, and stays so while we look. Raises UnavailableError."""
        if all(age.up_s != one.up_s for one in noted):
            return True
        await asyncio.sleep(STILL_S)
        return (await self._asked()).up_s != age.up_s

    def _least_s(self, noted: Age) -> float:
        """For how long its kernel has run by now if it goes on, at least."""
        if (
            self.clock is None
            or noted.at is None
            or (noted is not self.seen and noted.machine != self.machine)
        ):
            return 0.0
        return noted.up_s + RUN_SHARE * (self.clock() - noted.at) - RUN_MORE_S

    async def _asked(self) -> Age:
        """Of a boot yet without a name. Raises UnavailableError."""
        at = None if self.clock is None else self.clock()
        return Age(boot="", up_s=await self.host.up_s(), at=at, machine=self.machine)

    async def _age(self) -> Age | None:
        """None where its libvirt cannot tell: an answer that is lost once says nothing of that."""
        for _ in range(TRIES if self.ages is not None else 0):
            with contextlib.suppress(UnavailableError):
                return await self._asked()
        return None

    async def _stored(self) -> Inventory | None:
        row = await self.inventory.get(self.host.name)
        try:
            return None if row is None else Inventory.model_validate_json(row.value)
        except ValidationError:
            return None  # of another version: then this is another boot


def _goes_on(before: tuple[VmReport, ...], now: list[VmReport]) -> bool:
    runs = {(report.uuid, report.run) for report in before if report.state.active and report.run}
    return any((report.uuid, report.run) in runs for report in now if report.state.active)
