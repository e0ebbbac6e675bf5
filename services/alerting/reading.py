"""The stream of events, read for whoever in alerting has a place in it. Letters are made once for all of them."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

from libs.core.ports import Archive
from services.alerting.letters import Fetch, Fetched, Letter, letter

BATCH = 200
CACHED = 2000


@dataclass(slots=True)
class Reading:
    """Raises UnavailableError where the stream cannot be read."""

    archive: Archive
    _following: OrderedDict[int, Letter] = field(default_factory=OrderedDict)
    """By the sequence after which it was asked, what came next."""

    async def perform(self, request: Fetch) -> Fetched:
        if request.after is None:
            end = await self.archive.last()
            return Fetched(key=request.key, endpoint=request.endpoint, end=end)
        letters = await self._after(request.after)
        end = letters[-1].sequence if letters else request.after
        return Fetched(key=request.key, endpoint=request.endpoint, letters=tuple(letters), end=end)

    async def _after(self, sequence: int) -> list[Letter]:
        """What is known of the stream from earlier readings, else what it says now."""
        letters: list[Letter] = []
        while len(letters) < BATCH and (following := self._following.get(sequence)) is not None:
            letters.append(following)
            sequence = following.sequence
        if letters:
            return letters
        for kept in await self.archive.after(sequence, BATCH):
            made = letter(kept)
            letters.append(made)
            self._following[sequence] = made
            sequence = made.sequence
        while len(self._following) > CACHED:
            self._following.popitem(last=False)
        return letters
