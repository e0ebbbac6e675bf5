"""What a VM needs of a host beside room and datastores, in the words in which hosts say what they offer (libs/model.py:Offers).

A VM starts elsewhere from its definition as it is. So a device is the same only where it has the same address, too: a
definition names that, and libvirt would pass through whatever lies there. What cannot be told is not asked for: then
only the start itself tells.
"""

from __future__ import annotations

import functools
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from libs.model import Offers, VmDefinition, VmNeeds, VmReport
from libs.wants import wants_of

LOOSE = frozenset({"disable", "optional"})
"""Policies of a CPU's features by which it can do with less than its model has."""
KVM = "kvm"


@dataclass(frozen=True, slots=True)
class Asked:
    """As a definition says it: devices by address, and a CPU model of one architecture."""

    networks: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    cpu_model: str = ""
    arch: str = ""
    host_cpu: bool = False

    def of(self, home: Offers) -> VmNeeds:
        """With its devices named as its own host names them, which knows what lies at an address; those that it does not
        know are left out. So is a CPU that its host would have to emulate whole."""
        found = (_called(device, home.devices or {}) for device in self.devices)
        return VmNeeds(
            networks=self.networks,
            devices=dict(sorted(Counter(name for name in found if name).items())),
            cpu_model=self.cpu_model if self.arch in ("", home.arch) else "",
            host_cpu=self.host_cpu,
        )


def with_needs(
    reports: Sequence[VmReport], definitions: Sequence[VmDefinition], home: Offers | None
) -> tuple[VmReport, ...]:
    """Each VM with what it needs by its definition. One whose definition was not read, or cannot be, as it is."""
    by_uuid = {one.uuid: asked_of(one.xml) for one in definitions}
    found = []
    for report in reports:
        asked = by_uuid.get(report.uuid)
        needs = None if asked is None else asked.of(home or Offers())
        found.append(report if needs is None else report.model_copy(update={"needs": needs}))
    return tuple(found)


@functools.lru_cache(maxsize=1024)
def asked_of(xml: str) -> Asked | None:
    """None of what is no XML."""
    try:
        root, wants = ET.fromstring(xml), wants_of(xml)
    except ET.ParseError:
        return None
    cpu, machine = root.find("cpu"), wants.machine
    model = "" if cpu is None or not wants.cpu else cpu.findtext("model", "").strip()
    if cpu is not None and any(one.get("policy") in LOOSE for one in cpu.iterfind("feature")):
        model = ""
    names = {name for name in (*wants.networks, *wants.links) if name}
    return Asked(
        networks=tuple(sorted(names)),
        devices=tuple(_passed_through(root)),
        cpu_model=model_name(model, machine.virt) if model else "",
        arch=machine.arch,
        host_cpu=bool(wants.host_cpu),
    )


def model_name(model: str, virt: str) -> str:
    """A CPU model as a hypervisor of this kind (a domain's `type`) gives it."""
    return model if virt == KVM else f"{model} ({virt})"


def pci_address(parts: Mapping[str, str]) -> str:
    """As 0000:3b:00.0; numbers in libvirt's XML are decimal or begin with 0x. Raises ValueError."""
    numbers = [int(parts.get(name) or "0", 0) for name in ("domain", "bus", "slot", "function")]
    return "{:04x}:{:02x}:{:02x}.{:x}".format(*numbers)


def product_name(vendor: str, product: str) -> str:
    """As 10de:1eb8. Raises ValueError."""
    return f"{int(vendor, 0):04x}:{int(product, 0):04x}"


def _called(device: str, known: Mapping[str, int]) -> str:
    """The name of a device on a host that knows these; "" where it knows none such."""
    if device in known:
        return device
    kind, _, address = device.partition(" ")
    return next((name for name in known if name.startswith(f"{kind} ") and name.endswith(f" {address}")), "")


def _passed_through(root: ET.Element) -> Iterator[str]:
    """`pci ADDRESS`, `mdev UUID`, `usb VENDOR:PRODUCT`. One that may be missing at a start is none."""
    nics = root.iterfind("devices/interface[@type='hostdev']")
    for device in (*root.iterfind("devices/hostdev"), *nics):
        source = device.find("source")
        address = None if source is None else source.find("address")
        if source is None or source.get("startupPolicy") == "optional":
            continue
        kind = device.get("type", "") if device.tag == "hostdev" else "pci"
        vendor, product = source.find("vendor"), source.find("product")
        try:
            if kind == "mdev" and address is not None and address.get("uuid"):
                yield f"mdev {address.get('uuid', '').lower()}"
            elif kind == "pci" and address is not None:
                yield f"pci {pci_address(address.attrib)}"
            elif kind == "usb" and vendor is not None and product is not None:
                yield f"usb {product_name(vendor.get('id', ''), product.get('id', ''))}"
        except ValueError:
            continue  # no number where one belongs: libvirt would not take that either
