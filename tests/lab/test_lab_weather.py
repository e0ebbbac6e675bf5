"""Loss and delay on the links of real hosts, measured with datagrams and streams to and from one of them."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.lab import procs, weather
from infra.lab.lab import Lab, LabError, LabHost
from tests.lab.roots import Roots

pytestmark = pytest.mark.lab

PORT = 7007
ECHO = f"""
import socket, threading
datagrams, streams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM), socket.create_server(("", {PORT}))
datagrams.bind(("", {PORT}))
def echo_datagrams():
    while True:
        datagrams.sendto(*datagrams.recvfrom(2048))
threading.Thread(target=echo_datagrams, daemon=True).start()
while True:
    stream, _ = streams.accept()
    with stream:
        while data := stream.recv(1 << 16):
            stream.sendall(data)
"""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Two hosts that send back what they get; each test ends its weather."""
    if weather.why_not() is not None:
        pytest.skip(f"weather {weather.why_not()}")
    roots = Roots()
    echo = [sys.executable, "-c", ECHO]
    lab = Lab.create(
        [LabHost("h1"), LabHost("h2")], roots.new(), network=True, agent_argv={"h1": echo, "h2": echo}
    )
    lab.up(observe=False)
    assert lab.spec.network is not None
    bridge = lab.spec.network.bridge
    try:
        for host in lab.hosts:
            _wait_for_echo(lab, host)
        yield lab
    finally:
        lab.down()
        roots.remove()
    assert [name for name in os.listdir("/sys/class/net") if name.startswith(bridge)] == []
    assert procs.of_lab(lab.root) == []


def _address(lab: Lab, host: str) -> tuple[str, int]:
    assert lab.spec.network is not None
    return lab.spec.network.addresses[host], PORT


def _trips(lab: Lab, host: str, count: int, wait_s: float) -> list[float]:
    """Seconds to the host and back, of those of `count` datagrams that were back within `wait_s` of the last."""
    took: list[float] = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ours:
        ours.connect(_address(lab, host))
        for number in range(count):
            ours.send(f"{number} {time.monotonic()}".encode())
        until = time.monotonic() + wait_s
        while len(took) < count and (left := until - time.monotonic()) > 0:
            ours.settimeout(left)
            try:
                sent = float(ours.recv(2048).split()[1])
            except (TimeoutError, ConnectionRefusedError):
                continue
            took.append(time.monotonic() - sent)
    return took


def _wait_for_echo(lab: Lab, host: str) -> None:
    procs.wait_for(lambda: _trips(lab, host, 1, 1) != [], 30, f"echo of {host}")


def test_a_delay_is_on_one_hosts_link_both_ways_and_over_a_reboot(lab: Lab) -> None:
    lab.weather("h1", delay_s=0.25)
    assert min(_trips(lab, "h1", 3, 5)) >= 0.5
    assert min(_trips(lab, "h2", 3, 5)) < 0.4, "the other link is as ever"
    boot = lab.boot_id("h1")
    lab.reboot("h1")
    assert lab.boot_id("h1") != boot
    _wait_for_echo(lab, "h1")
    assert min(_trips(lab, "h1", 3, 5)) >= 0.5
    lab.weather("h1")
    assert min(_trips(lab, "h1", 3, 5)) < 0.4


def test_jitter_makes_datagrams_differ(lab: Lab) -> None:
    lab.weather("h2", delay_s=0.2, jitter_s=0.15)
    took = _trips(lab, "h2", 40, 5)
    lab.weather("h2")
    assert len(took) == 40
    assert min(took) >= 0.1
    assert max(took) - min(took) > 0.1


def test_a_share_of_what_is_sent_is_lost_in_each_direction(lab: Lab) -> None:
    lab.weather("h1", loss_percent=50)
    back = len(_trips(lab, "h1", 400, 1))
    lab.weather("h1", loss_percent=100)
    assert _trips(lab, "h1", 20, 0.3) == []
    lab.weather(None)
    assert len(_trips(lab, "h1", 20, 5)) == 20
    assert 50 <= back <= 150, "half of it, there and back: 100 of 400; five deviations are 43"


def test_streams_arrive_whole_through_loss_and_delay(lab: Lab) -> None:
    """Both ways: the kernel leaves checksums and the cutting of long sends to a device, which a wire must pass on."""
    lab.weather(None, loss_percent=1, delay_s=0.001)
    sent = os.urandom(2_000_000)
    received = bytearray()
    with socket.create_connection(_address(lab, "h1"), timeout=20) as stream:
        stream.setblocking(False)
        offset, until = 0, time.monotonic() + 60
        while len(received) < len(sent) and time.monotonic() < until:
            if offset < len(sent):
                with contextlib.suppress(BlockingIOError):
                    offset += stream.send(sent[offset : offset + 65536])
            try:
                received += stream.recv(1 << 16)
            except BlockingIOError:
                time.sleep(0.001)
    lab.weather(None)
    assert hashlib.sha256(received).digest() == hashlib.sha256(sent).digest()


def test_a_wire_is_there_only_while_it_is_needed(lab: Lab) -> None:
    assert lab.spec.network is not None
    wires = [Path("/sys/class/net", lab.spec.network.wire(host)) for host in lab.hosts]
    lab.weather(None, delay_s=0.01)
    assert weather.has_netem() or all(wire.exists() for wire in wires)
    lab.power_off("h2")
    lab.weather(None)
    assert not any(wire.exists() for wire in wires)
    lab.power_on("h2")
    _wait_for_echo(lab, "h2")


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"loss_percent": 101.0}, "loss_percent 101"),
        ({"delay_s": -1.0}, "delay_s -1"),
        ({"jitter_s": 0.1}, "jitter_s 0.1: from 0 to delay_s, which is 0"),
    ],
)
def test_weather_that_cannot_be_is_refused_by_field(lab: Lab, wrong: dict[str, float], says: str) -> None:
    with pytest.raises(LabError, match=says):
        lab.weather("h1", **wrong)
