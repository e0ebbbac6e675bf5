"""What a definition needs of a host is said in the words of what hosts offer; what cannot be told is not asked for."""

from __future__ import annotations

from typing import Any

import pytest

from libs.model import Offers, VmDefinition, VmNeeds
from libs.needs import asked_of, with_needs
from tests.unit.made import vm

pytestmark = pytest.mark.fast
HOME = Offers(
    networks=("br0",),
    devices={"mdev nvidia-63 4b2": 1, "pci 10de:1eb8 0000:3b:00.0": 1, "usb 046d:c52b": 2},
    cpu_models=("Haswell",),
    arch="x86_64",
)
PCI = "<hostdev mode='subsystem' type='pci'><source><address bus='{bus}' slot='0' function='0x0'/></source></hostdev>"
USB = "<hostdev mode='subsystem' type='usb'><source{how}><vendor id='0x046d'/><product id='0xc52b'/></source></hostdev>"
NIC = "<interface type='{kind}'><source {source}/></interface>"


def definition(devices: str = "", cpu: str = "", kind: str = "kvm", arch: str = "x86_64") -> str:
    os = f"<os><type arch='{arch}'>hvm</type></os>"
    return f"<domain type='{kind}'><name>a</name><uuid>u</uuid>{os}{cpu}<devices>{devices}</devices></domain>"


def needs(xml: str, home: Offers = HOME) -> VmNeeds:
    asked = asked_of(xml)
    assert asked is not None
    return asked.of(home)


NETWORKS = (
    NIC.format(kind="bridge", source="bridge='br0'")
    + NIC.format(kind="network", source="network='lan'")
    + NIC.format(kind="direct", source="dev='eth1'")
    + NIC.format(kind="bridge", source="bridge='br0'")
    + "<interface type='user'/>"
)
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "nothing": (definition(), {}),
    "networks": (definition(NETWORKS), {"networks": ("br0", "eth1", "lan")}),
    "a PCI device": (definition(PCI.format(bus="0x3b")), {"devices": {"pci 10de:1eb8 0000:3b:00.0": 1}}),
    "a PCI device, in decimal": (
        definition(PCI.format(bus="59")),
        {"devices": {"pci 10de:1eb8 0000:3b:00.0": 1}},
    ),
    "one at an address that its host does not know": (definition(PCI.format(bus="0x5e")), {}),
    "an interface that is a PCI device": (
        definition("<interface type='hostdev'><source><address type='pci' bus='0x3b'/></source></interface>"),
        {"devices": {"pci 10de:1eb8 0000:3b:00.0": 1}},
    ),
    "a mediated device": (
        definition("<hostdev mode='subsystem' type='mdev'><source><address uuid='4B2'/></source></hostdev>"),
        {"devices": {"mdev nvidia-63 4b2": 1}},
    ),
    "two of a kind": (definition(USB.format(how="") * 2), {"devices": {"usb 046d:c52b": 2}}),
    "one that may be missing": (definition(USB.format(how=" startupPolicy='optional'")), {}),
    "a SCSI device of this very host": (
        definition(
            "<hostdev mode='subsystem' type='scsi'><source><adapter name='scsi_host0'/></source></hostdev>"
        ),
        {},
    ),
    "a number that is none": (definition(PCI.format(bus="b")), {}),
    "a CPU model": (definition(cpu="<cpu><model>Haswell</model></cpu>"), {"cpu_model": "Haswell"}),
    "one that QEMU emulates": (
        definition(cpu="<cpu><model>Haswell</model></cpu>", kind="qemu"),
        {"cpu_model": "Haswell (qemu)"},
    ),
    "of another architecture": (
        definition(cpu="<cpu><model>cortex-a57</model></cpu>", kind="qemu", arch="aarch64"),
        {},
    ),
    "of which less would do": (
        definition(cpu="<cpu><model>Haswell</model><feature policy='disable' name='rtm'/></cpu>"),
        {},
    ),
    "of which more is required": (
        definition(cpu="<cpu><model>Haswell</model><feature policy='require' name='vmx'/></cpu>"),
        {"cpu_model": "Haswell"},
    ),
    "of which nothing is checked": (definition(cpu="<cpu check='none'><model>Haswell</model></cpu>"), {}),
    "the host's own CPU": (definition(cpu="<cpu mode='host-passthrough'/>"), {"host_cpu": True}),
    "a model of the host's own": (definition(cpu="<cpu mode='host-model'/>"), {"host_cpu": True}),
}


@pytest.mark.parametrize("case", CASES)
def test_what_a_definition_needs_of_a_host(case: str) -> None:
    xml, found = CASES[case]
    assert needs(xml) == VmNeeds(**found)


def test_what_a_host_does_not_know_of_itself_is_not_asked_of_others() -> None:
    xml = definition(PCI.format(bus="0x3b") + NETWORKS, "<cpu><model>Haswell</model></cpu>")
    assert needs(xml, Offers()) == VmNeeds(networks=("br0", "eth1", "lan"))


def test_a_vm_whose_definition_was_not_read_or_cannot_be_is_not_known_to_need_anything() -> None:
    told = [VmDefinition(uuid=uuid, name=uuid, xml=xml, sha256="") for uuid, xml in (
        ("a", definition(NETWORKS)), ("b", "<domain")
    )]  # fmt: skip
    a, b, c = with_needs([vm("a"), vm("b"), vm("c")], told, HOME)
    assert a.needs == VmNeeds(networks=("br0", "eth1", "lan"))
    assert (b.needs, c.needs) == (None, None)
    assert with_needs([vm("a")], told, None)[0].needs == a.needs, "a host that does not tell what it offers"
