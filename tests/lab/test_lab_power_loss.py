"""A machine that loses its power says nothing more: no FIN, no RST. One process that dies does."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.lab import network, procs
from infra.lab.lab import Lab, LabHost
from infra.lab.needs import program
from tests.lab.roots import Roots

pytestmark = pytest.mark.lab

DIAL = "import socket, time; s = socket.create_connection(({!r}, {})); s.sendall(b'x'); time.sleep(1000)"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """One host; each test leaves it on."""
    if os.getuid() != 0 or not network.works():
        pytest.skip("a host has a cable as root only, and where bridges can be made")
    roots = Roots()
    lab = Lab.create([LabHost("h1")], roots.new(), network=True)
    lab.up(observe=False)
    try:
        yield lab
    finally:
        lab.down()
        roots.remove()


@pytest.fixture
def connection(lab: Lab) -> Iterator[socket.socket]:
    """Our end of a TCP connection from the host's agent, which has said its first word."""
    with socket.socket() as listener:
        listener.bind((lab.bus_address, 0))
        listener.listen()
        listener.settimeout(20)
        lab.set_agent("h1", [sys.executable, "-c", DIAL.format(*listener.getsockname())])
        lab.power_off("h1")
        lab.power_on("h1")
        ours, _ = listener.accept()
        with ours:
            ours.settimeout(20)
            assert ours.recv(1) == b"x"
            yield ours


@pytest.mark.parametrize("how", ["power_off", "reboot", "crash_host"])
def test_a_host_without_power_leaves_its_peers_in_silence(
    lab: Lab, connection: socket.socket, how: str
) -> None:
    pids = lab.pids("h1")
    getattr(lab, how)("h1")
    assert not any(pid in pids for pid in lab.pids("h1")), "nobody is left who could hold it open"
    connection.settimeout(1)
    with pytest.raises(TimeoutError):
        connection.recv(1)


def test_a_process_that_dies_alone_ends_its_connections(lab: Lab, connection: socket.socket) -> None:
    lab.kill_agent("h1")
    assert connection.recv(1) == b""


def test_a_lost_host_keeps_no_network_behind_its_unsaid_words(lab: Lab, connection: socket.socket) -> None:
    """A connection whose end nobody hears holds the host's whole network, in the kernel, for 100 s by default. A
    second cable into it shows when it is gone."""
    assert lab.spec.network is not None
    assert connection.fileno() > 0
    cable = f"{lab.spec.network.bridge}t"
    where = ["netns", lab.host("h1").init_pid.read_text().split()[0]]
    ip = program("ip")
    subprocess.run([ip, "link", "add", cable, "type", "veth", "peer", "name", "x0", *where], check=True)
    try:
        lab.power_off("h1")
        procs.wait_for(lambda: not Path("/sys/class/net", cable).exists(), 20, "end of the host's network")
    finally:
        subprocess.run([ip, "link", "del", cable], capture_output=True, check=False)
