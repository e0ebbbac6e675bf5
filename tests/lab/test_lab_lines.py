"""The lines to the hosts' libvirt, and links that are cut, on a real lab with a network of its own."""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import libvirt
import pytest

from infra.lab import line, network
from infra.lab.cuts import BUS
from infra.lab.lab import Lab, LabHost
from tests.lab.roots import Roots

pytestmark = pytest.mark.lab


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Two hosts; each test mends what it cuts."""
    if os.getuid() != 0 or not network.works():
        pytest.skip("links can be cut as root only, and where bridges can be made")
    roots = Roots()
    lab = Lab.create([LabHost("h1"), LabHost("h2")], roots.new(), network=True)
    lab.up()
    try:
        yield lab
    finally:
        lab.down()
        roots.remove()


def test_two_labs_that_choose_their_network_at_one_time_choose_two(tmp_path: Path) -> None:
    """Neither has an address on it yet. Their directories' names lead both to the same one."""
    if os.getuid() != 0:
        pytest.skip("a lab has a network of its own as root only")

    def first_choice(root: Path) -> int:
        return int.from_bytes(hashlib.sha256(str(root).encode()).digest()[:2]) % 512

    one = tmp_path / "one"
    other = next(o for n in range(100_000) if first_choice(o := tmp_path / f"o{n}") == first_choice(one))
    for root in (one, other):
        root.mkdir()
    chosen = network.plan(one, [LabHost("h1")])
    second = network.plan(other, [LabHost("h1")])
    assert chosen.gateway != second.gateway
    network.down(chosen, one)
    assert network.plan(other, [LabHost("h1")]).gateway == chosen.gateway
    network.down(second, other)
    assert not [claim for claim in network.CLAIMS.glob("198.*") if claim.readlink() in (one, other)]


def _answers(lab: Lab, host: str, said: bytes) -> bool:
    """Whether the host's end of its line lets in who says this. Raises OSError where it is not reached."""
    assert lab.spec.network is not None
    with socket.create_connection((lab.spec.network.addresses[host], line.PORT), timeout=0.5) as connection:
        connection.sendall(said)
        try:
            return connection.recv(1) != b""
        except TimeoutError:
            return True  # libvirtd waits for our first word


def test_a_line_to_libvirt_lets_in_only_who_knows_the_secret(lab: Lab) -> None:
    secret = lab.paths.line_secret.read_bytes()
    assert _answers(lab, "h1", secret)
    assert not _answers(lab, "h1", b"0" * len(secret))
    assert lab.paths.line_secret.stat().st_mode & 0o077 == 0
    connection = libvirt.open(lab.line_uri("h1"))
    assert connection.getHostname().startswith("h1")
    connection.close()


def test_a_cut_link_stays_cut_over_a_reboot_and_each_direction_is_its_own(lab: Lab) -> None:
    secret = lab.paths.line_secret.read_bytes()
    for link in ((BUS, "h2"), ("h2", BUS)):
        lab.cut([link])
        with pytest.raises(OSError, match=r"timed out|No route"):
            _answers(lab, "h2", secret)
        boot = lab.boot_id("h2")
        lab.reboot("h2")
        assert lab.boot_id("h2") != boot
        with pytest.raises(OSError, match=r"timed out|No route"):
            _answers(lab, "h2", secret)
        assert _answers(lab, "h1", secret), "no other link is cut"
        assert lab.domains("h2") == [], "the lab itself sees through it"
    lab.cut([])
    assert _answers(lab, "h2", secret)
