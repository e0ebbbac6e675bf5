"""libvirt networks of a lab's hosts, on a bridge that guests share with the host's cable; and what such a host offers."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import libvirt
import pytest

from infra.lab import line, network
from infra.lab.cuts import BUS
from infra.lab.lab import Lab, LabError, LabHost, LabVm
from libs.virt.offers import Reader
from tests.lab.roots import Roots

pytestmark = pytest.mark.lab
PCI = Path("/sys/bus/pci/devices")
BRIDGE_CLASS = "0x06"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    if os.getuid() != 0 or not network.works():
        pytest.skip("networks need root, and a machine on which bridges can be made")
    roots = Roots()
    hosts = [LabHost("h1", networks=("lan", "san")), LabHost("h2", networks=("lan",)), LabHost("h3")]
    lab = Lab.create(hosts, roots.new(), network=True)
    lab.up()
    try:
        yield lab
    finally:
        lab.down()
        roots.remove()


def _networks(lab: Lab, host: str) -> set[str]:
    """Active ones, by the host's own libvirt."""
    with lab.connect(host) as connection:
        return {one.name() for one in connection.listAllNetworks() if one.isActive()}


def _reached(lab: Lab, host: str) -> bool:
    """Whether the host answers the machine at its address."""
    assert lab.spec.network is not None
    try:
        socket.create_connection((lab.spec.network.addresses[host], line.PORT), timeout=0.5).close()
    except OSError:
        return False
    return True


def test_each_host_has_its_own_networks_also_after_a_reboot(lab: Lab) -> None:
    expected = {"h1": {"lan", "san"}, "h2": {"lan"}, "h3": set()}
    assert {host: _networks(lab, host) for host in lab.hosts} == expected
    lab.reboot("h1")
    assert _networks(lab, "h1") == expected["h1"]


def test_a_vm_starts_where_its_networks_are_and_libvirt_refuses_it_elsewhere(lab: Lab) -> None:
    vm = LabVm("a", bare=True, networks=("lan", "san"))
    lab.define_vm(vm, "h1")
    lab.wait_guest_up("a")
    lab.destroy_vm("a")
    with pytest.raises(libvirt.libvirtError, match=r"Network not found.*san"):
        lab.define_vm(vm, "h2")
    assert lab.placement() == {}


def test_a_cut_link_of_a_host_with_a_bridge_is_cut(lab: Lab) -> None:
    assert _reached(lab, "h1")
    for link in ((BUS, "h1"), ("h1", BUS)):
        lab.cut([link])
        assert not _reached(lab, "h1")
        assert _reached(lab, "h2"), "no other link is cut"
    lab.cut([])
    assert _reached(lab, "h1")


def test_a_host_offers_its_networks_and_the_devices_that_the_kernel_could_hand_over(lab: Lab) -> None:
    with lab.connect("h1") as connection:
        h1 = Reader().read(connection)
    with lab.connect("h3") as connection:
        h3 = Reader().read(connection)
    assert {"lan", "san", "br0"} <= set(h1.networks or ())
    assert not {"lan", "san", "br0"} & set(h3.networks or ())
    assert not [name for name in h1.networks or () if name.startswith("vnet")]
    told = {name for name in h1.devices or () if name.startswith("pci ")}
    assert told == {_named(one) for one in _pci() if _could_be_passed(one)}


def _pci() -> list[Path]:
    return list(PCI.iterdir()) if PCI.exists() else []


def _could_be_passed(device: Path) -> bool:
    """By the kernel's own word: it has an IOMMU group, and is no bridge."""
    return (device / "iommu_group").exists() and not (device / "class").read_text().startswith(BRIDGE_CLASS)


def _named(device: Path) -> str:
    vendor, product = ((device / name).read_text().strip()[2:] for name in ("vendor", "device"))
    return f"pci {vendor}:{product} {device.name}"


def test_a_lab_without_a_network_of_its_own_has_no_hosts_with_networks(roots: Roots) -> None:
    with pytest.raises(LabError, match="networks of h1: they need root, and a network for each host"):
        Lab.create([LabHost("h1", networks=("lan",))], roots.new(), network=False)
