"""The stream of facts, read from any place in it, by whoever keeps that place himself."""

from __future__ import annotations

import nats.errors
import nats.js.errors
from nats.aio.client import Client

from libs.core.ports import Kept, UnavailableError
from libs.events.envelope import UnreadableError, unwrap
from libs.jetstream.schema import Names

CALL_S = 1.5


class JetStreamArchive:
    """Archive over a pool's stream; each message is read from the stream's leader."""

    def __init__(self, client: Client, names: Names) -> None:
        self._js = client.jetstream(timeout=CALL_S)
        self._stream, self._subject = names.events, f"{names.prefix}.event.>"

    async def last(self) -> int:
        """See ports.Archive."""
        try:
            return (await self._js.stream_info(self._stream)).state.last_seq
        except (TimeoutError, nats.errors.Error) as error:
            raise UnavailableError(f"{self._stream}: {error!r}") from error

    async def after(self, sequence: int, most: int) -> list[Kept]:
        """See ports.Archive."""
        found: list[Kept] = []
        while len(found) < most:
            try:
                message = await self._js.get_msg(
                    self._stream, seq=sequence + 1, subject=self._subject, next=True
                )
            except nats.js.errors.NotFoundError:
                break
            except (TimeoutError, nats.errors.Error) as error:
                if found:
                    break  # what was read is worth having
                raise UnavailableError(f"{self._stream} after {sequence}: {error!r}") from error
            sequence = message.seq or sequence + 1
            try:
                found.append(Kept(sequence, unwrap(message.data or b"")))
            except UnreadableError:
                continue  # the services report it
        return found
