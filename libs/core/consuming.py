"""The facts that a shell hears: pulled while it leads, left to the others while another does."""

from __future__ import annotations

from collections.abc import Callable

from libs.core.ports import Delivery, Subscription, UnavailableError
from libs.core.wiring import Wiring

GIVE_BACK_S = 1.0
"""Who may lead again in a moment, under the same token, hears it then."""


class Consuming:
    """Of one shell. All replicas of a service pull under one durable name. One that stands by must not: it could only give
    back what it is given, and each such fact would reach the leader so much later."""

    def __init__(self, wiring: Wiring, heard: Callable[[Delivery], None]) -> None:
        self._w, self._heard = wiring, heard
        self._pulling: Subscription | None = None

    async def begin(self) -> None:
        """Pull from now on; nothing where it does. Raises UnavailableError."""
        if self._w.kinds and self._pulling is None:
            self._pulling = await self._w.bus.consume(self._w.service, self._w.kinds, self._heard)

    @property
    def in_the_way(self) -> bool:
        """Another leads, or nobody, and we pull still."""
        return self._pulling is not None and self._w.lease is not None and self._w.lease.token is None

    async def end(self) -> None:
        """Whoever leads next is given what we have in hand."""
        if self._pulling is not None:
            pulling, self._pulling = self._pulling, None
            await pulling.stop()

    async def give_back(self, delivery: Delivery) -> None:
        """It comes to whoever leads: to others at once."""
        try:
            await delivery.nak(GIVE_BACK_S if self._pulling is not None else 0.0)
        except UnavailableError:
            return  # it comes again by itself when its time to acknowledge is over
