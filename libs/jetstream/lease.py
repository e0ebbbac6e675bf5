"""Leadership by compare-and-set, timed by each observer's own monotonic clock.

No server TTL is used: it is counted by a replica's wall clock. The holder counts from before it sent its
renewal, the others from when they saw it change, so their claims never overlap while clocks run at about
the same speed. A time lease is no fence: what must happen once is also guarded by compare-and-set.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import uuid
from collections.abc import Callable

from pydantic import ValidationError

from libs.core.ports import Clock, ConflictError, Store, UnavailableError
from libs.model import Value

TERM_S = 3.0
RENEW_S = 1.0
MARGIN_S = 0.25
LOOK_S = 0.25
EARLY_S = 0.1
"""By how much a follower looks sooner than the next renewal after one that it saw. It finds nothing new once in a
while, looks again LOOK_S later, and so never sees a renewal much later than LOOK_S, with a third of the looks. What is given up is found so much
later, within RENEW_S."""


class _Claim(Value):
    holder: str
    token: int  # 0 in the first write of a term, whose revision becomes the token


class JetStreamLease:
    """Lease of one role for this process. `run` renews it for ever."""

    def __init__(
        self,
        store: Store,
        role: str,
        clock: Clock,
        *,
        term_s: float = TERM_S,
        me: str | None = None,
        predecessor: str | None = None,
    ) -> None:
        """`me` names this process among all that ever claim the role; drawn at random where not given.
        `predecessor` is a holder that is known to have ended (its supervisor saw its process exit): its
        claim is taken over at once."""
        self._store, self._role, self._clock, self._term_s = store, role, clock, term_s
        self._me = me or uuid.uuid4().hex
        self._predecessor = predecessor
        self._token: int | None = None
        self._valid_until = 0.0
        self._seen: tuple[int, float] = (-1, clock.monotonic())
        self._ours = 0  # revision of our last write
        self._changed: list[Callable[[], None]] = []

    @property
    def token(self) -> int | None:
        return self._token

    def held(self) -> bool:
        return self._token is not None and self._clock.monotonic() < self._valid_until

    def unseen_s(self) -> float:
        """See ports.Lease."""
        return 0.0 if self.held() else self._clock.monotonic() - max(self._seen[1], self._valid_until)

    def on_change(self, changed: Callable[[], None]) -> None:
        self._changed.append(changed)

    async def run(self) -> None:
        """Claim, renew, watch; for ever. While the store is away, validity simply runs out."""
        while True:
            began = self._clock.monotonic()
            seen = self._seen
            with contextlib.suppress(UnavailableError, ConflictError):
                await self.look()
            renewed = self._seen[0] != seen[0]
            pause_s = RENEW_S if self.held() else RENEW_S - EARLY_S if renewed else LOOK_S
            await asyncio.sleep(max(0.05, pause_s - (self._clock.monotonic() - began)))

    async def resign(self) -> None:
        """Give the role up on a clean stop, so that nobody waits out our term: followers find it free within a second."""
        if self._token is None:
            return
        row = await self._store.get(self._role)
        claim = None if row is None else _read(row.value)
        if row is not None and claim is not None and claim.holder == self._me:
            await self._store.delete(self._role, row.revision)
        self._hold(None, 0.0)

    async def look(self) -> None:
        """One look at the claim and what follows from it. Who holds it renews it unread: where it was lost
        meanwhile, or an answer was, its revision is another one."""
        if self._token is not None:
            with contextlib.suppress(ConflictError):
                await self._claim(self._token, self._ours)
                return
        row = await self._store.get(self._role)
        claim = None if row is None else _read(row.value)
        revision = 0 if row is None else row.revision
        if claim is not None and claim.holder == self._me:
            await self._claim(claim.token or revision, revision)  # ours, or our write whose answer was lost
            return
        self._hold(None, 0.0)
        now = self._clock.monotonic()
        if revision != self._seen[0]:
            self._seen = (revision, now)
        over = claim is not None and claim.holder == self._predecessor
        if claim is None or over or now - self._seen[1] > self._term_s:
            await self._claim(None, revision)

    async def _claim(self, token: int | None, revision: int) -> None:
        began = self._clock.monotonic()
        claim = _Claim(holder=self._me, token=token or 0)
        written = await self._store.put(self._role, claim.model_dump_json().encode(), revision)
        self._ours = written
        # the bucket's revisions only grow, also over deletions: the first of a term is its token
        self._hold(token or written, began + self._term_s - MARGIN_S)

    def _hold(self, token: int | None, until: float) -> None:
        """The one place where our claim changes. Told also where it had run out by time and is ours again under
        the same token, since whoever waits for leadership waits for nothing else; and where what had run out is lost."""
        before, lost = self._token if self.held() else None, self._token is not None and token is None
        self._token, self._valid_until = token, until
        if lost or (self._token if self.held() else None) != before:
            for changed in self._changed:
                changed()


@functools.lru_cache(maxsize=64)  # a renewal repeats the claim to the byte
def _read(value: bytes) -> _Claim | None:
    try:
        return _Claim.model_validate_json(value)
    except ValidationError:
        return None  # unreadable: as long unchanged as any other claim, then replaced
