"""The watchdog's hands on its host: arm and feed the device, keep the promise in the bucket, greet the peers."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass

from pydantic import ValidationError

from libs.core.ports import (
    Clock,
    ConflictError,
    Probes,
    PromiseMemory,
    Row,
    Store,
    UnavailableError,
    Watchdog,
    WatchdogError,
)
from libs.model import Incarnation
from libs.promises import Promise
from services.heartbeat.orders import (
    ArmWatchdog,
    FeedWatchdog,
    Greet,
    Greeted,
    KeepPromise,
    PromiseKept,
    PromiseRead,
    ReadPromise,
    WatchdogArmed,
    WatchdogFed,
    WatchdogUnarmed,
)

LONG_S = 3600.0
Work = ReadPromise | ArmWatchdog | FeedWatchdog | KeepPromise | Greet
Done = PromiseRead | WatchdogArmed | WatchdogUnarmed | WatchdogFed | PromiseKept | Greeted


@dataclass(frozen=True, slots=True)
class Keeper:
    at: Incarnation
    device: Watchdog
    promises: Store
    probes: Probes
    clock: Clock
    memory: PromiseMemory | None = None
    """On the host's own disk; None: nothing outlives this process."""

    async def perform(self, request: Work) -> Done:
        """Raises UnavailableError where the bus did not answer."""
        match request:
            case ReadPromise():
                promise = _ours(await self.promises.get(self.at.host), self.at)
                await self._remember(promise)
                return PromiseRead(key=request.key, promise=promise)
            case ArmWatchdog():
                return await self._arm(request)
            case FeedWatchdog():
                return self._feed(request)
            case KeepPromise():
                return PromiseKept(key=request.key, promise=await self._keep(request))
            case Greet():
                return await self._greet(request)

    async def _arm(self, request: ArmWatchdog) -> WatchdogArmed | WatchdogUnarmed:
        if self.clock.monotonic() > request.until:
            return WatchdogArmed(key=request.key, too_late=True)
        try:
            timeout_s = await self.device.arm(request.timeout_s)
        except WatchdogError as error:
            return WatchdogUnarmed(key=request.key, reason=str(error))
        return WatchdogArmed(key=request.key, timeout_s=timeout_s)

    def _feed(self, request: FeedWatchdog) -> WatchdogFed | WatchdogUnarmed:
        """Nothing is awaited between the look at the clock and the device: whoever stood still since it was decided
        must not feed on what was true then."""
        if self.clock.monotonic() > request.until:
            return WatchdogFed(key=request.key, fed=False)
        try:
            self.device.feed()
        except WatchdogError as error:
            return WatchdogUnarmed(key=request.key, reason=str(error))
        return WatchdogFed(key=request.key)

    async def _keep(self, request: KeepPromise) -> Promise:
        """What stands afterwards. Raises UnavailableError where that is not known."""
        row = await self.promises.get(self.at.host)
        stands = _ours(row, self.at)
        if stands is not None and (stands.presumed or stands == request.promise):
            return stands
        if stands != request.instead:
            raise UnavailableError(f"the promise of {self.at} is not the one that was read")
        payload = request.promise.model_dump_json().encode()
        await self._remember(
            stands, request.promise
        )  # first: whoever goes on after us must not know of one alone
        try:
            await self.promises.put(self.at.host, payload, 0 if row is None else row.revision)
        except ConflictError as error:
            raise UnavailableError(f"the promise of {self.at} was changed by another") from error
        await self._remember(request.promise)
        return request.promise

    async def _remember(self, *perhaps: Promise | None) -> None:
        if self.memory is not None:
            await self.memory.remember(self.at, tuple(one for one in perhaps if one is not None))

    async def _greet(self, request: Greet) -> Greeted:
        """Side by side, and no longer than what they say is of use. Those who do not answer are not waited for: the
        answers of the others would be too old by then."""

        async def greet(peer: str) -> str:
            return peer if await self.probes.greet(peer, self.at, request.within_s) else ""

        greeting = [asyncio.ensure_future(greet(peer)) for peer in request.peers]
        noted: list[str] = []
        try:
            async with asyncio.timeout(request.within_s):
                for answer in asyncio.as_completed(greeting):
                    if peer := await answer:
                        noted.append(peer)
                    if len(noted) >= request.enough:
                        break
        except TimeoutError:
            pass  # whoever has noted it by then has
        finally:
            for task in greeting:
                task.cancel()
        return Greeted(key=request.key, peers=tuple(sorted(noted)))

    async def withdraw(self) -> str:
        """Before a clean stop of the agent: the promise first, so that nobody presumes by it any more, then the watchdog.
        Returns why the watchdog goes on, and the host is reset unless its agent is started again in time; "" where it
        is disarmed. Raises UnavailableError where it is not known what stands: then it goes on, too."""
        row = await self.promises.get(self.at.host)
        stands, revision = _ours(row, self.at), 0 if row is None else row.revision
        if stands is not None and stands.presumed:
            return f"it was presumed fenced in {stands.presumed}"
        # written also where none stands: one that we began to store may be under way, and fails by this
        over = (stands or Promise(at=self.at, timeout_s=LONG_S, lag_s=0.0)).model_copy(
            update={"withdrawn": True}
        )
        try:
            await self.promises.put(self.at.host, over.model_dump_json().encode(), revision)
        except ConflictError:
            return "its promise was changed by another at this moment"
        with contextlib.suppress(
            UnavailableError
        ):  # nobody presumes by it any more: it may as well be remembered
            await self._remember()
        try:
            await self.device.disarm()
        except WatchdogError as error:
            return str(error)
        return ""


def _ours(row: Row | None, at: Incarnation) -> Promise | None:
    """What was promised by this boot. Raises UnavailableError where it cannot be read: it may stand all the same."""
    if row is None:
        return None
    try:
        promise = Promise.model_validate_json(row.value)
    except ValidationError as error:
        raise UnavailableError(f"the promise of {at.host} cannot be read: {str(error)[:200]}") from error
    return promise if promise.at == at and not promise.withdrawn else None
