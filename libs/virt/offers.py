"""What a host offers VMs, read over libvirt: networks, devices that can be passed through, CPU models.

Reading blocks and is for a thread of that host. What a driver cannot tell is None, and nothing is made up.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import libvirt
import structlog

from libs.core.ports import UnavailableError
from libs.doctor.seen import Cpu
from libs.model import Offers
from libs.needs import model_name, pci_address, product_name

T = TypeVar("T")
EVERY_S = 30.0
"""What a host offers changes rarely."""
WAIT_S = 0.5
"""Whoever asks waits no longer than this for a reading: the first one makes libvirt start each QEMU to ask it."""
READ_S = 20.0
PASSING = re.compile(r"^(lo|(vnet|macvtap|macvlan|tap|vif)\d+|veth[0-9a-f]+)$")
"""Devices that come and go with VMs and containers, by the names that these give them; no definition asks for one."""
BRIDGE_CLASS = 0x06
HUBS = 0x1D6B
"""The vendor of Linux's own USB root hubs."""
UNKNOWN = Offers()
log = structlog.get_logger()


@dataclass(slots=True)
class OfferBook:
    """What one host offers, read again when somebody asks and it is old. `read` may take long, or hang: nobody waits for
    it for longer than WAIT_S."""

    read: Callable[[], Awaitable[Offers]]
    clock: Callable[[], float]
    known: Offers | None = None
    _read_at: float | None = None
    _reading: asyncio.Task[None] | None = None

    async def latest(self) -> Offers | None:
        """As it was read last; None where it is not known."""
        now = self.clock()
        if self._reading is None and (self._read_at is None or now - self._read_at >= EVERY_S):
            self._reading = asyncio.create_task(self._renewed())
        if self._reading is not None:
            await asyncio.wait([self._reading], timeout=WAIT_S)
            if self._reading.done():
                reading, self._reading = self._reading, None
                reading.result()  # an unforeseen error is the service's crash
        return self.known

    async def _renewed(self) -> None:
        try:
            found = await self.read()
            self.known = None if found == UNKNOWN else found
        except UnavailableError as error:  # what was read before stands
            log.info("what the host offers was not read", reason=str(error))
        self._read_at = self.clock()


@dataclass(slots=True)
class Reader:
    """Reads over one connection at a time; node devices once each, but for what is plugged into USB, which is called by
    its port."""

    _before: dict[str, ET.Element] = field(default_factory=dict)
    _described: dict[str, ET.Element] = field(default_factory=dict)

    def read(self, connection: Any) -> Offers:
        """Raises libvirt.libvirtError where the connection broke."""

        def ask(_: str, question: Callable[[], T]) -> T | None:
            try:
                return question()
            except libvirt.libvirtError:
                if not connection.isAlive():
                    raise
                return None

        self._before, self._described = self._described, {}
        capabilities = ask("capabilities", connection.getCapabilities)
        root = None if capabilities is None else ET.fromstring(capabilities)
        _, cpu = (None, None) if root is None else host_of(root)
        return Offers(
            networks=self._networks(connection, ask),
            devices=ask("devices", lambda: self._devices(connection)),
            cpu_models=None if root is None else ask("CPU models", lambda: _models(connection, root)),
            arch="" if root is None else root.findtext("host/cpu/arch", ""),
            cpu="" if cpu is None else _mark(cpu),
        )

    def _networks(self, connection: Any, ask: Callable[[str, Callable[[], Any]], Any]) -> Any:
        networks = ask("networks", lambda: active_networks(connection))
        links = links_of(connection, networks, ask, flags=0, described=self._describe)
        if networks is None or links is None:  # half of it would bar what the other half has
            return None
        names = {one.name() for one in networks} | {name for name in links if not PASSING.match(name)}
        return tuple(sorted(names))

    def _describe(self, device: Any) -> ET.Element:
        name = device.name()
        known = None if name.startswith("usb_") else self._described.get(name) or self._before.get(name)
        self._described[name] = ET.fromstring(device.XMLDesc(0)) if known is None else known
        return self._described[name]

    def _devices(self, connection: Any) -> dict[str, int]:
        kinds = (
            libvirt.VIR_CONNECT_LIST_NODE_DEVICES_CAP_PCI_DEV
            | libvirt.VIR_CONNECT_LIST_NODE_DEVICES_CAP_MDEV
            | libvirt.VIR_CONNECT_LIST_NODE_DEVICES_CAP_USB_DEV
        )
        found = [self._describe(one).find("capability") for one in _listed(connection, kinds)]
        names = (_named(one) for one in found if one is not None)
        return dict(sorted(Counter(name for name in names if name).items()))


def _listed(connection: Any, kinds: int) -> list[Any]:
    return list(connection.listAllDevices(kinds))


def _named(device: ET.Element) -> str:
    """ "" of what nobody can pass through: a PCI device without an IOMMU, or a bridge; a hub."""
    kind = device.get("type")
    vendor, product = device.find("vendor"), device.find("product")
    try:
        if kind == "mdev":
            of = device.find("type")
            uuid = device.findtext("uuid", "").strip().lower()
            return f"mdev {'' if of is None else of.get('id', '')} {uuid}" if uuid else ""
        if vendor is None or product is None:
            return ""
        made = product_name(vendor.get("id", ""), product.get("id", ""))
        if kind == "usb_device":
            return "" if int(vendor.get("id", ""), 0) == HUBS else f"usb {made}"
        if int(device.findtext("class") or "0", 0) >> 16 == BRIDGE_CLASS or device.find("iommuGroup") is None:
            return ""
        parts = {name: device.findtext(name, "0") for name in ("domain", "bus", "slot", "function")}
        return f"pci {made} {pci_address(parts)}"
    except ValueError:
        return ""


def active_networks(connection: Any) -> list[Any]:
    """libvirt's networks that VMs can join now."""
    return list(connection.listAllNetworks(libvirt.VIR_CONNECT_LIST_NETWORKS_ACTIVE))


def _described(device: Any) -> ET.Element:
    return ET.fromstring(device.XMLDesc(0))


def links_of(
    connection: Any,
    networks: Any,
    ask: Callable[[str, Callable[[], Any]], Any],
    *,
    flags: int = libvirt.VIR_CONNECT_LIST_INTERFACES_ACTIVE,
    described: Callable[[Any], ET.Element] = _described,
) -> frozenset[str] | None:
    """Bridges and devices by name, with `flags` 0 also those without a carrier: a bridge is one before its first VM.
    libvirt's interfaces are seldom built in; its node devices know them, too."""

    def interfaces() -> set[str]:
        return {one.name() for one in connection.listAllInterfaces(flags)}

    def devices() -> set[str]:
        found = _listed(connection, libvirt.VIR_CONNECT_LIST_NODE_DEVICES_CAP_NET)
        names = (described(one).findtext("capability/interface") for one in found)
        return {name for name in names if name}

    try:
        known = interfaces()
    except libvirt.libvirtError:
        known = ask("bridges", devices)
        if not known:  # even a host without any network has `lo`
            return None
    bridges = (ET.fromstring(one.XMLDesc(0)).find("bridge") for one in networks or ())
    return frozenset(known) | {one.get("name", "") for one in bridges if one is not None}


def host_of(capabilities: ET.Element) -> tuple[str | None, Cpu | None]:
    """The UUID of a host, and its processor."""
    host = capabilities.find("host")
    if host is None:
        return None, None
    cpu = host.find("cpu")
    model = None if cpu is None else cpu.findtext("model")
    if cpu is None or not model:  # a driver that does not tell
        return host.findtext("uuid"), None
    features = frozenset(one.get("name", "") for one in cpu.iterfind("feature"))
    return host.findtext("uuid"), Cpu(cpu.findtext("arch", ""), cpu.findtext("vendor", ""), model, features)


def _mark(cpu: Cpu) -> str:
    whole = " ".join((cpu.arch, cpu.vendor, cpu.model, *sorted(cpu.features)))
    return f"{cpu.model} {hashlib.sha256(whole.encode()).hexdigest()[:8]}"


def _models(connection: Any, capabilities: ET.Element) -> tuple[str, ...] | None:
    """By each kind of hypervisor that runs the host's own architecture. None where it is not told of which it can."""
    arch = capabilities.findtext("host/cpu/arch", "")
    kinds = {
        domain.get("type", "")
        for guest in capabilities.iterfind("guest/arch")
        if guest.get("name") == arch
        for domain in guest.iterfind("domain")
    }
    found: set[str] = set()
    for virt in sorted(kinds):
        told = ET.fromstring(connection.getDomainCapabilities(None, arch, None, virt, 0))
        custom = told.find("cpu/mode[@name='custom']")
        if custom is None:
            return None
        listed = custom.findall("model") if custom.get("supported") == "yes" else []
        # what a hypervisor does not know of a model is no reason against it
        found.update(
            model_name((one.text or "").strip(), virt) for one in listed if one.get("usable") != "no"
        )
    return tuple(sorted(found)) if found else None
