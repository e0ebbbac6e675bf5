"""Relays between the parts of a management plane on one machine, so that the way from one to another can be cut."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(slots=True)
class Relay:
    """One direction in which connections between two nodes are made. What flows in them flows both ways."""

    port: int
    to_port: int
    listen: str = "127.0.0.1"
    to: str = "127.0.0.1"
    is_cut: bool = False
    _server: asyncio.Server | None = None
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._accept, self.listen, self.port)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.is_cut:
            writer.transport.abort()
            return
        try:
            onward, back = await asyncio.open_connection(self.to, self.to_port)
        except OSError:
            writer.transport.abort()
            return
        both = {writer, back}
        self._writers |= both
        await asyncio.gather(self._pump(reader, back), self._pump(onward, writer))
        self._writers -= both

    @staticmethod
    async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.transport.abort()

    def cut(self) -> None:
        self.is_cut = True
        for writer in list(self._writers):
            writer.transport.abort()

    def mend(self) -> None:
        self.is_cut = False

    async def stop(self) -> None:
        self.cut()
        if self._server is not None:
            self._server.close()


class RelayThread:
    """Relays in a thread of their own, which works on while everybody else waits for something."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="relays", daemon=True)
        self._relays: list[Relay] = []

    def start(self, relays: Iterable[Relay]) -> None:
        """Returns when all are listened on. Raises OSError."""
        self._thread.start()
        for relay in relays:
            asyncio.run_coroutine_threadsafe(relay.start(), self._loop).result(10)
            self._relays.append(relay)

    def cut(self, relays: Iterable[Relay]) -> None:
        """Break what goes over them, and refuse what comes."""
        for relay in relays:
            self._loop.call_soon_threadsafe(relay.cut)

    def mend(self, relays: Iterable[Relay]) -> None:
        """Take new connections again."""
        for relay in relays:
            self._loop.call_soon_threadsafe(relay.mend)

    def stop(self) -> None:
        """End the thread, and all that goes over its relays with it: no socket of theirs stays open."""
        if self._thread.is_alive():
            asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(10)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(10)
        self._loop.close()

    async def _end(self) -> None:
        for relay in self._relays:
            await relay.stop()
        under_way = asyncio.all_tasks() - {asyncio.current_task()}
        for task in under_way:
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)
        await asyncio.sleep(0)  # an aborted connection's socket is closed in the loop's next turn
