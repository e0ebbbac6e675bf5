"""What a host offers VMs, as libvirt tells it: its test driver, and the words of a QEMU host with devices that this machine has not."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import libvirt
import pytest

from libs.core.clock import SystemClock
from libs.model import Offers, VmPolicy
from libs.virt.host import LibvirtHost
from libs.virt.offers import Reader
from tests.integration.test_doctor import INTERFACE, NETWORK
from tests.integration.test_libvirt import NODE

CAPABILITIES = """<capabilities><host><uuid>u</uuid><cpu><arch>x86_64</arch><model>{model}</model>
  <vendor>Intel</vendor><feature name='vmx'/><feature name='pcid'/></cpu></host>
  <guest><arch name='i686'><domain type='qemu'/></arch></guest>
  <guest><arch name='x86_64'><domain type='qemu'/><domain type='kvm'/></arch></guest></capabilities>"""
DOMAIN_CAPABILITIES = """<domainCapabilities><cpu><mode name='host-passthrough' supported='yes'/>
  <mode name='custom' supported='yes'>{models}</mode></cpu></domainCapabilities>"""
MODEL = "<model usable='{usable}' vendor='Intel'>{name}</model>"
NIC = """<device><name>net_{name}</name><capability type='net'><interface>{name}</interface>
  <link state='down'/><capability type='80203'/></capability></device>"""
PCI = """<device><name>pci_0000_3b_00_0</name><driver><name>vfio-pci</name></driver>
  <capability type='pci'><class>{of}</class><domain>0</domain><bus>59</bus><slot>0</slot><function>{function}</function>
  <product id='0x1eb8'>TU104GL</product><vendor id='0x10de'>NVIDIA</vendor>{iommu}</capability></device>"""
GROUP = "<iommuGroup number='7'><address domain='0x0000' bus='0x3b' slot='0x00' function='0x0'/></iommuGroup>"
MDEV = """<device><name>mdev_4b20</name><capability type='mdev'><type id='nvidia-63'/><uuid>4B20</uuid>
  <iommuGroup number='12'/></capability></device>"""
USB = """<device><name>usb_1_1</name><capability type='usb_device'><bus>1</bus><device>4</device>
  <product id='0x{product}'>c</product><vendor id='0x{vendor}'>v</vendor></capability></device>"""
CAPS = {
    libvirt.VIR_CONNECT_LIST_NODE_DEVICES_CAP_NET: "net",
    libvirt.VIR_CONNECT_LIST_NODE_DEVICES_CAP_PCI_DEV: "pci",
    libvirt.VIR_CONNECT_LIST_NODE_DEVICES_CAP_MDEV: "mdev",
    libvirt.VIR_CONNECT_LIST_NODE_DEVICES_CAP_USB_DEV: "usb_device",
}


class Named:
    def __init__(self, name: str, xml: str = "", asked: list[str] | None = None) -> None:
        self._name, self._xml, self._asked = name, xml, asked

    def name(self) -> str:
        return self._name

    def XMLDesc(self, flags: int) -> str:
        if self._asked is not None:
            self._asked.append(self._name)
        return self._xml


class Qemu:
    """A connection to a QEMU host. What is None there fails as where it is not built in."""

    def __init__(self, devices: Mapping[str, str] | None, models: Mapping[str, str] | None = None) -> None:
        self.devices, self.models = devices, models
        self.model, self.alive = "Skylake-Server", True
        self.networks: list[str] | None = ["default"]
        self.described: list[str] = []

    def isAlive(self) -> bool:
        return self.alive

    def getCapabilities(self) -> str:
        return CAPABILITIES.format(model=self.model)

    def getDomainCapabilities(self, emulator: Any, arch: str, machine: Any, virt: str, flags: int) -> str:
        if self.models is None:
            raise libvirt.libvirtError("not supported")
        assert arch == "x86_64"
        return DOMAIN_CAPABILITIES.format(models=self.models[virt])

    def listAllNetworks(self, flags: int) -> list[Named]:
        if self.networks is None:
            raise libvirt.libvirtError("not supported")
        return [Named(name, f"<network><bridge name='virbr-{name}'/></network>") for name in self.networks]

    def listAllInterfaces(self, flags: int) -> list[Named]:
        raise libvirt.libvirtError("not supported")

    def listAllDevices(self, flags: int) -> list[Named]:
        if self.devices is None:
            raise libvirt.libvirtError("not supported")
        kinds = [kind for flag, kind in CAPS.items() if flag & flags]
        return [
            Named(name, xml, self.described)
            for name, xml in self.devices.items()
            if any(f"<capability type='{kind}'>" in xml for kind in kinds)
        ]


def nics(*names: str) -> dict[str, str]:
    return {f"net_{name}": NIC.format(name=name) for name in names}


async def test_a_host_of_the_test_driver_tells_its_networks_and_makes_nothing_up(tmp_path: Path) -> None:
    path = tmp_path / "node.xml"
    path.write_text(NODE.format(domains=NETWORK.format(name="lan") + INTERFACE))
    host = LibvirtHost("h1", f"test://{path}", VmPolicy(), SystemClock().monotonic)
    offers = await host.offers()
    assert offers is not None
    assert offers.networks == ("br-lan", "eth7", "lan")
    assert (offers.cpu_models, offers.cpu) == (None, "")
    assert (
        await LibvirtHost("h1", "test:///no-such-node.xml", VmPolicy(), SystemClock().monotonic).offers()
        is None
    )


def test_bridges_count_before_they_have_a_carrier_and_what_comes_with_vms_does_not() -> None:
    found = Reader().read(
        Qemu(nics("lo", "eth0", "br0", "br-int", "vnet3", "macvtap0", "veth3fa9c1", "tapestry"))
    )
    assert found.networks == ("br-int", "br0", "default", "eth0", "tapestry", "virbr-default")


@pytest.mark.parametrize("missing", ["networks", "devices"])
def test_half_of_a_hosts_networks_would_bar_what_the_other_half_has(missing: str) -> None:
    host = Qemu(nics("br0"))
    setattr(host, missing, None)
    assert Reader().read(host).networks is None


def test_devices_are_told_by_what_they_are_and_where_they_lie() -> None:
    told = {
        "gpu": PCI.format(of="0x030000", function=0, iommu=GROUP),
        "bridge": PCI.format(of="0x060400", function=1, iommu=GROUP),
        "no iommu": PCI.format(of="0x030000", function=2, iommu=""),
        "mdev": MDEV,
        "usb_1_1": USB.format(vendor="046d", product="c52b"),
        "usb_1_2": USB.format(vendor="046d", product="c52b"),
        "usb_1_3": USB.format(vendor="1d6b", product="0002"),
        "broken": USB.format(vendor="zz", product="0002"),
    }
    assert Reader().read(Qemu(told)).devices == {
        "mdev nvidia-63 4b20": 1,
        "pci 10de:1eb8 0000:3b:00.0": 1,
        "usb 046d:c52b": 2,
    }
    assert Reader().read(Qemu({})).devices == {}
    assert Reader().read(Qemu(None)).devices is None


def test_a_device_is_described_once_but_for_what_is_plugged_into_usb() -> None:
    host, reader = Qemu({}), Reader()
    host.devices = {**nics("br0", "vnet1"), "usb_1_1": USB.format(vendor="046d", product="c52b")}
    for _ in range(3):
        reader.read(host)
    assert sorted(host.described) == ["net_br0", "net_vnet1", *["usb_1_1"] * 3]
    host.devices = {**nics("br0"), "usb_1_1": USB.format(vendor="0951", product="1666")}
    assert reader.read(host).devices == {"usb 0951:1666": 1}
    host.devices = nics("br0", "vnet1")
    reader.read(host)
    assert host.described.count("net_vnet1") == 2, "what has gone is not remembered"


def test_cpu_models_are_those_that_each_hypervisor_of_the_host_can_give() -> None:
    kvm = MODEL.format(usable="yes", name="Haswell") + MODEL.format(usable="no", name="EPYC")
    tcg = MODEL.format(usable="unknown", name="max32") + MODEL.format(usable="yes", name="EPYC")
    found = Reader().read(Qemu({}, {"kvm": kvm, "qemu": tcg}))
    assert found.cpu_models == ("EPYC (qemu)", "Haswell", "max32 (qemu)")
    assert found.arch == "x86_64"
    assert Reader().read(Qemu({}, {"kvm": "", "qemu": ""})).cpu_models is None
    assert Reader().read(Qemu({})).cpu_models is None


def test_processors_are_the_same_where_all_their_features_are() -> None:
    one, other = Qemu({}), Qemu({})
    assert Reader().read(one).cpu == Reader().read(other).cpu
    other.model = "EPYC"
    assert Reader().read(one).cpu != Reader().read(other).cpu
    assert Reader().read(one).cpu.startswith("Skylake-Server ")


def test_a_connection_that_breaks_meanwhile_has_told_nothing() -> None:
    host = Qemu(None)
    host.alive = False
    with pytest.raises(libvirt.libvirtError):
        Reader().read(host)


def test_a_host_that_tells_nothing_is_one_of_which_nothing_is_known() -> None:
    host = Qemu(None)
    host.networks = None
    found = Reader().read(host)
    assert (found.networks, found.devices, found.cpu_models) == (None, None, None)
    assert found != Offers(), "its processor it tells"
