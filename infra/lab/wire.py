"""Wires that lose and delay, for kernels without netem: a process that relays the frames of hosts' cables.

`python -m infra.lab.wire ROOT` puts itself into the background and returns when it listens on `<root>/wire.sock`, for
one JSON line a request: `set` the weather of a host, or `unset` it. A cable with weather is off the switch; in its
place there stands a TAP device, which is this process and goes with it. Standard library only; root only.
"""

import contextlib
import fcntl
import heapq
import json
import os
import select
import socket
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from infra.lab import network, procs
from infra.lab.paths import MARKER
from infra.lab.spec import LabError, LabNetwork, load
from infra.lab.weather import TUN, Weather

_TUNSETIFF, _IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR = 0x400454CA, 0x0002, 0x1000, 0x4000
_ETH_P_ALL, _SOL_PACKET, _PACKET_VNET_HDR, _PACKET_IGNORE_OUTGOING = 3, 263, 15, 23
_SO_RCVBUFFORCE = 33
_FRAME = 10 + 18 + 65536
"""A sender leaves checksums and the cutting into packets to its device, so a frame may be long, and ten bytes of what
is still to be done to it (virtio_net_hdr) come along on both ends."""
_AT_ONCE = 64
"""Frames taken from one end before the other ends have their turn."""
_QUEUE = 10_000
"""More frames than these are never on their way at once; as with netem, further ones are lost."""


class Lane:
    """One direction of a wire. No I/O here: frames are offered, and taken when they are due."""

    def __init__(self, seed: str) -> None:
        self.weather = Weather()
        self._chance = Random(seed)
        self._queue: list[tuple[float, int, bytes]] = []
        self._count = 0

    def offer(self, frame: bytes, now: float) -> None:
        """A frame enters at `now` (seconds of any clock)."""
        weather = self.weather
        if self._chance.random() * 100 < weather.loss_percent or len(self._queue) >= _QUEUE:
            return
        due = now + weather.delay_s + self._chance.uniform(-weather.jitter_s, weather.jitter_s)
        self._count += 1
        heapq.heappush(self._queue, (due, self._count, frame))

    @property
    def next_due(self) -> float | None:
        """When the next frame leaves; None when none is on its way."""
        return self._queue[0][0] if self._queue else None

    def take(self, now: float) -> list[bytes]:
        """The frames that have arrived by `now`, in the order of their arrival."""
        arrived = []
        while self._queue and self._queue[0][0] <= now:
            arrived.append(heapq.heappop(self._queue)[2])
        return arrived


def _open_tap(name: str) -> int:
    """A TAP device that goes with its descriptor."""
    tap = os.open(TUN, os.O_RDWR | os.O_NONBLOCK)
    try:
        flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR
        fcntl.ioctl(tap, _TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
    except OSError:
        os.close(tap)
        raise
    return tap


def _open_cable(port: str) -> socket.socket:
    """All frames that come out of a cable's end, and the way into it."""
    cable = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    try:
        cable.setblocking(False)
        cable.setsockopt(_SOL_PACKET, _PACKET_VNET_HDR, 1)
        cable.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
        cable.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 1 << 22)
        cable.bind((port, _ETH_P_ALL))
    except OSError:
        cable.close()
        raise
    return cable


class Wire:
    """What stands between one host's cable and the switch. It stays over the host's boots, each with a new cable."""

    def __init__(self, plan: LabNetwork, host: str) -> None:
        self._plan, self._port, self._name = plan, plan.port(host), plan.wire(host)
        self.inward, self.outward = Lane(f"to {host}"), Lane(f"from {host}")
        self.tap = _open_tap(self._name)
        network.put_on(plan.bridge, self._name)
        self.cable: socket.socket | None = None
        self._index = 0

    def plug(self) -> None:
        """Put the wire between switch and cable, if there is a cable; does nothing when it is there. Raises OSError."""
        try:
            index = socket.if_nametoindex(self._port)
        except OSError:
            self._index = 0  # the host is off
            return
        if index == self._index:
            return
        self._drop_cable()
        self.cable, self._index = _open_cable(self._port), index
        network.take_off(self._plan.bridge, self._port)

    def _drop_cable(self) -> None:
        if self.cable is not None:
            self.cable.close()
        self.cable, self._index = None, 0

    def close(self) -> None:
        """Take the wire away and put the cable back on the switch. What was on its way is lost. Raises OSError."""
        network.take_off(self._plan.bridge, self._name)
        if self.cable is not None and Path("/sys/class/net", self._port).exists():
            network.put_on(self._plan.bridge, self._port)
        self._drop_cable()
        os.close(self.tap)

    # -- frames

    def from_switch(self, now: float) -> None:
        """The switch has frames for the host."""
        with contextlib.suppress(OSError):
            for _ in range(_AT_ONCE):
                self.inward.offer(os.read(self.tap, _FRAME), now)

    def from_cable(self, now: float) -> None:
        """The host sent frames, or its cable is gone."""
        if self.cable is None:
            return
        try:
            for _ in range(_AT_ONCE):
                self.outward.offer(self.cable.recv(_FRAME), now)
        except BlockingIOError:
            return
        except OSError:
            self._drop_cable()

    def deliver(self, now: float) -> None:
        """Hand on what is due. An end that takes no frame, because it is full, pulled or gone, loses it."""
        for frame in self.inward.take(now):
            if self.cable is not None:
                with contextlib.suppress(OSError):
                    self.cable.send(frame)
        for frame in self.outward.take(now):
            with contextlib.suppress(OSError):
                os.write(self.tap, frame)


class Loom:
    """All wires of a lab, and who asks for them: one thread, one loop."""

    def __init__(self, plan: LabNetwork, listener: socket.socket) -> None:
        self._plan, self._listener = plan, listener
        self.wires: dict[str, Wire] = {}

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Carry out one request."""
        host = str(request["host"])
        try:
            if request["do"] == "set":
                weather = Weather(request["loss_percent"], request["delay_s"], request["jitter_s"])
                wire = self.wires.get(host) or Wire(self._plan, host)
                self.wires[host] = wire
                wire.inward.weather = wire.outward.weather = weather
                wire.plug()
            elif host in self.wires:
                self.wires.pop(host).close()
        except (OSError, LabError, KeyError) as error:
            return {"ok": False, "error": f"wire of {host}: {error}"}
        return {"ok": True}

    def _serve(self) -> None:
        """One request: who asks is a power device, and waits for the answer."""
        connection, _ = self._listener.accept()
        with connection, contextlib.suppress(OSError, ValueError):
            connection.settimeout(5)
            with connection.makefile("rb") as lines:
                connection.sendall(json.dumps(self.answer(json.loads(lines.readline()))).encode() + b"\n")

    def turn(self) -> None:
        """Wait for frames, due times or a request, and deal with them."""
        sources: dict[Any, Callable[[float], None]] = {}
        due: list[float] = []
        for wire in self.wires.values():
            sources[wire.tap] = wire.from_switch
            if wire.cable is not None:
                sources[wire.cable] = wire.from_cable
            due += [at for at in (wire.inward.next_due, wire.outward.next_due) if at is not None]
        wait_s = max(0.0, min(due) - time.monotonic()) if due else None
        ready, _, _ = select.select([self._listener, *sources], [], [], wait_s)
        now = time.monotonic()
        for one in ready:
            if one is not self._listener:
                sources[one](now)
        for wire in self.wires.values():
            wire.deliver(time.monotonic())
        if self._listener in ready:
            self._serve()


def main() -> None:
    """Listen first, then go to the background."""
    spec = load(Path(sys.argv[1]))
    assert spec.network is not None
    os.environ[MARKER] = str(spec.root)
    paths = spec.paths
    paths.wire_socket.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(paths.wire_socket))
    listener.listen(64)
    procs.go_background(paths.wire_log, paths.wire_pid)
    loom = Loom(spec.network, listener)
    while True:
        loom.turn()


if __name__ == "__main__":
    main()
