"""Three real NATS servers whose links to each other can be cut: each reaches each other one through a relay of ours."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable

from infra.lab.bus import NODES, BusCluster
from infra.lab.relays import Relay
from libs.jetstream.server import free_port

NOBODY = "127.0.0.1:1"
"""What a node says of where it is reached: on no other way than those that it was given."""
ROUTES = re.compile(r"routes: \[ .*? \]")


class CuttableCluster(BusCluster):
    """A cluster of which one node can be cut off from the two others, with whatever clients it has."""

    _relays: dict[tuple[int, int], Relay]

    def _write(self) -> None:
        super()._write()
        texts = [(self.folder / f"{self.name(node)}.conf").read_text() for node in range(NODES)]
        ports = [int(port) for port in re.findall(r'"nats://127\.0\.0\.1:(\d+)"', texts[0])]
        self._relays = {
            (a, b): Relay(free_port(), ports[b]) for a in range(NODES) for b in range(NODES) if a != b
        }
        for node, text in enumerate(texts):
            ways = [f'"nats://127.0.0.1:{way.port}"' for (a, _), way in self._relays.items() if a == node]
            routes = f'routes: [ {", ".join(ways)} ], advertise: "{NOBODY}"'
            self._secret(self.folder / f"{self.name(node)}.conf", ROUTES.sub(routes, text))

    async def up(self) -> None:
        """Start all, and wait until JetStream answers."""
        self._write()
        for relay in self._relays.values():
            await relay.start()
        for node in range(NODES):
            await asyncio.to_thread(self.start_node, node)
        await self._ready()

    def _of(self, node: int) -> Iterable[Relay]:
        return (relay for pair, relay in self._relays.items() if node in pair)

    def cut_off(self, node: int) -> None:
        for relay in self._of(node):
            relay.cut()

    def mend(self) -> None:
        for relay in self._relays.values():
            relay.mend()

    def url(self, node: int) -> str:
        """Of this node alone."""
        return self.url_file.read_text().split(",")[node]

    async def leader(self, stream: str) -> int | None:
        """Which node leads it, as far as anybody says."""
        found = (await self.leaders()).get(stream)
        return None if found is None else next(n for n in range(NODES) if self.name(n) == found)

    async def down(self) -> None:
        for relay in self._relays.values():
            await relay.stop()
        await asyncio.to_thread(self.stop)
