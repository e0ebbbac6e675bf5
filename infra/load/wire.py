"""An agent as the bus sees it: a connection of its own that speaks NATS's protocol and says what an agent says.

nats-py would cost each agent some tasks and a timer, ten thousand of them more than a processor: here a connection is one
asyncio protocol, and its lines are made beforehand but for what changes. What is said is what services/heartbeat says, checked
against the models when it is made.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from libs.events.signals import Heartbeat, InventorySeen, MarkTold
from libs.jetstream.notices import agent_name
from libs.jetstream.schema import Names
from libs.model import Incarnation, Inventory, Mark, VmReport, VmState

SEQ = 987_654_321
CLOCK_S = 123_456.789
"""Stand for the number and the clock in a heartbeat that was made beforehand."""
MEMORY_MIB, CPUS, VM_MIB = 262_144, 64, 8_192


@dataclass
class SimAgent(asyncio.Protocol):
    """One host's agent."""

    host: str
    pool: str
    vms: int
    url: str
    seq: int = 0
    answers: int = 0
    """How often it was asked for the mark."""
    lost: bool = False
    """The server has ended its connection."""
    losses: int = 0
    """How often it did."""
    errors: list[str] = field(default_factory=list)
    _rest: bytes = b""
    _transport: asyncio.Transport | None = None

    def __post_init__(self) -> None:
        at = Incarnation(host=self.host, boot=f"boot-{self.host}")
        beat = Heartbeat(
            at=at,
            agent=f"life-{self.host}",
            seq=SEQ,
            inventory_rev=1,
            stores={"shared": 0.2},
            slot_seq=SEQ,
            clock_s=CLOCK_S,
            hardware=hashlib.sha256(self.host.encode()).hexdigest()[:16],
        )
        said = beat.model_dump_json()
        assert (said.count(str(SEQ)), said.count(str(CLOCK_S)), "%" in said) == (2, 1, False)
        self._beat = said.replace(str(SEQ), "%d").replace(str(CLOCK_S), "%.3f").encode()
        self.inventory = Inventory(
            at=at,
            agent=f"life-{self.host}",
            rev=1,
            memory_mib=MEMORY_MIB,
            cpus=CPUS,
            vms=tuple(
                VmReport(
                    uuid=f"{self.host}-vm{number}",
                    name=f"{self.host}-vm{number}",
                    state=VmState.RUNNING,
                    run=1,
                    memory_mib=VM_MIB,
                    vcpus=2,
                    datastores=("shared",),
                )
                for number in range(self.vms)
            ),
        )
        self._prefix = Names(self.pool).prefix
        told = InventorySeen(inventory=self.inventory).model_dump_json().encode()
        self.inventory_line = self._publish(f"inventory.{self.host}", told)
        self._mark = self._publish("mark_told", MarkTold(mark=Mark()).model_dump_json().encode())

    def _publish(self, topic: str, payload: bytes) -> bytes:
        return f"PUB {self._prefix}.{topic} {len(payload)}\r\n".encode() + payload + b"\r\n"

    # -- what it says

    def beat(self, *, inventory: bool) -> None:
        """A heartbeat, and a ping as its client library sends them; with it, where it is time, the inventory."""
        line = self.beat_line() + b"PING\r\n"
        self.write(line + self.inventory_line if inventory else line)

    def beat_line(self) -> bytes:
        """The next heartbeat, as it goes over the wire."""
        self.seq += 1
        said = self._beat % (self.seq, self.seq, time.monotonic())
        return self._publish(f"heartbeat.{self.host}", said)

    def write(self, data: bytes) -> None:
        """Over this agent's connection, if it has one."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    # -- the connection

    async def connect(self) -> None:
        """Raises OSError."""
        parts = urlsplit(self.url)
        assert parts.hostname is not None
        assert parts.port is not None
        self._rest = b""
        await asyncio.get_running_loop().create_connection(lambda: self, parts.hostname, parts.port)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        parts = urlsplit(self.url)
        hello = {
            "verbose": False,
            "pedantic": False,
            "user": parts.username,
            "pass": parts.password,
            "name": agent_name(self.pool, self.host, 1),
            "lang": "python3",
            "version": "2.16.0",
            "protocol": 1,
        }
        topics = (f"ask.{self.host}", f"stray.{self.host}", "mark", "mark_asked")
        subscriptions = "".join(
            f"SUB {self._prefix}.{topic} {sid}\r\n" for sid, topic in enumerate(topics, 1)
        )
        transport.write(f"CONNECT {json.dumps(hello)}\r\n{subscriptions}".encode())
        transport.write(self._mark)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        if data == b"PONG\r\n" and not self._rest:
            return
        lines = (self._rest + data).split(b"\r\n")
        self._rest = lines.pop()
        for line in lines:
            if line == b"PING" and self._transport is not None:
                self._transport.write(b"PONG\r\n")
            elif line.startswith(b"MSG") and b".mark_asked " in line and self._transport is not None:
                self.answers += 1
                self._transport.write(self._mark)
            elif line.startswith(b"-ERR"):
                self.errors.append(line.decode())

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost, self.losses = True, self.losses + 1

    def close(self) -> None:
        """End the connection."""
        if self._transport is not None:
            self._transport.abort()
