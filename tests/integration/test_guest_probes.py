"""A guest's addresses as libvirt knows them, and the executor's hands that ask there: a real small server on loopback."""

from __future__ import annotations

import asyncio
from typing import Any

import libvirt
import pytest

from libs.core.clock import SystemClock
from libs.core.ports import UnavailableError
from libs.guestprobes import NetworkGuestProbes
from libs.virt.guests import addresses_of
from libs.virt.host import LibvirtHost
from services.executor.act import Hands
from services.executor.orders import Probed, ProbeGuest
from tests.integration.test_doctor import with_devices
from tests.integration.test_libvirt import A, NewHost, domain, new_host  # noqa: F401  a fixture
from tests.unit.made import boot
from tests.unit.test_executor import Host, Hosts, Lab

H2 = boot("h2")
NIC = "<interface type='bridge'><source bridge='b'/></interface>"
LEASE = libvirt.VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_LEASE
AGENT = libvirt.VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_AGENT
ARP = libvirt.VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_ARP


async def test_libvirt_tells_the_addresses_of_a_guest_with_interfaces(new_host: NewHost) -> None:  # noqa: F811
    host = new_host(with_devices(domain("a", A), NIC))
    assert await host.addresses(A) == ("192.168.0.1",)
    with pytest.raises(UnavailableError):
        await host.addresses("6695eb01-f6a4-8304-79aa-97f2502e1999")


async def test_a_guest_without_interfaces_has_none(new_host: NewHost) -> None:  # noqa: F811
    host: LibvirtHost = new_host(domain("a", A))
    assert await host.addresses(A) == ()


class Guest:
    """A connection whose one domain is known at these addresses, by who knows them."""

    def __init__(self, known: dict[int, list[str]], *, alive: bool = True) -> None:
        self.known, self.alive, self.asked = known, alive, list[int]()

    def isAlive(self) -> bool:
        return self.alive

    def lookupByUUIDString(self, uuid: str) -> Guest:
        return self

    def interfaceAddresses(self, source: int, flags: int) -> dict[str, Any]:
        self.asked.append(source)
        if source not in self.known:
            raise libvirt.libvirtError("QEMU guest agent is not connected")
        found = {
            f"eth{at}": {"hwaddr": "", "addrs": [{"addr": one}]} for at, one in enumerate(self.known[source])
        }
        return {"lo": {"hwaddr": "", "addrs": None}, **found}


@pytest.mark.parametrize(
    ("known", "found", "asked"),
    [
        ({LEASE: ["10.0.0.5"]}, ("10.0.0.5",), [LEASE]),
        ({LEASE: [], AGENT: ["127.0.0.1", "::1", "fe80::1", "fd00::7", "10.0.0.5", "10.0.0.5"]},
         ("fd00::7", "10.0.0.5"), [LEASE, AGENT]),
        ({ARP: ["10.0.0.9"]}, ("10.0.0.9",), [LEASE, AGENT, ARP]),
        ({AGENT: ["169.254.3.4"]}, (), [LEASE, AGENT, ARP]),
        ({}, (), [LEASE, AGENT, ARP]),
    ],
)  # fmt: skip
def test_who_knows_a_guests_address_is_asked_in_turn(
    known: dict[int, list[str]], found: tuple[str, ...], asked: list[int]
) -> None:
    guest = Guest(known)
    assert addresses_of(guest, A) == found
    assert guest.asked == asked


def test_a_connection_that_breaks_is_no_answer() -> None:
    with pytest.raises(libvirt.libvirtError):
        addresses_of(Guest({}, alive=False), A)


class Serving:
    """A small server on loopback, whose one page is ill at first."""

    def __init__(self) -> None:
        self.status, self.port = "503 Service Unavailable", 0
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._answer, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if await reader.readline():
            writer.write(f"HTTP/1.1 {self.status}\r\nContent-Length: 0\r\n\r\n".encode())
        writer.close()

    async def close(self) -> None:
        assert self._server is not None
        self._server.close()
        await self._server.wait_closed()


@pytest.mark.parametrize("given", [True, False])
async def test_the_executor_probes_a_real_server_at_the_given_or_the_guests_own_address(given: bool) -> None:
    lab = Lab(H2)
    hosts = Hosts({H2: Host(H2, found_at=() if given else ("127.0.0.1",))})
    hands = Hands(lab.store, lab.store, hosts, lab.store, SystemClock(), probes=NetworkGuestProbes())
    server, at = Serving(), "127.0.0.1:" if given else ""

    async def asked(kind: str, rest: str = "") -> Probed:
        probe = f"{kind}:{at}{server.port}{rest}"
        found = await hands.perform(ProbeGuest(key="p", deadline_s=5.0, vm="db", at=H2, probe=probe))
        assert isinstance(found, Probed)
        return found

    await server.open()
    await server.close()
    closed = await asked("tcp")
    assert not closed.ready
    assert "refused" in closed.reason or "Connect call failed" in closed.reason
    await server.open()
    try:
        assert (await asked("tcp")).ready
        assert not (await asked("http", "/health")).ready
        server.status = "200 OK"
        page = await asked("http", "/health")
        assert (page.ready, page.reason) == (True, "127.0.0.1: status 200")
    finally:
        await server.close()
