"""What a VM needs of the host that it starts on, by the definition that it would start from."""

from __future__ import annotations

import posixpath
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

FIRMWARE_STATE = "/var/lib/libvirt/qemu/nvram"


class Kind(StrEnum):
    """How a disk is reached."""

    PATH = "path"
    BLOCK = "block"
    VOLUME = "volume"


@dataclass(frozen=True, slots=True)
class Disk:
    """One file, device or volume (`pool` is its storage pool then) that it reads or writes."""

    kind: Kind
    place: str
    pool: str = ""

    def __str__(self) -> str:
        return f"{self.pool}/{self.place}" if self.pool else self.place


@dataclass(frozen=True, slots=True)
class Machine:
    """What QEMU is to be to it. Empty where the definition leaves it to the host."""

    emulator: str
    arch: str
    machine: str
    virt: str

    def __str__(self) -> str:
        return " ".join(part for part in (self.virt, self.arch, self.machine, self.emulator) if part)


@dataclass(frozen=True, slots=True)
class Wants:
    """`files` are (what, path); `links` are bridges and devices by name, `secrets` libvirt's by UUID or usage. `host_cpu`: the CPU mode where it is the
    host's own, `cpu` the XML of a CPU that a host must be able to give. `nvram`, `tpm` are paths, "" where there is
    none. `leased`: a lock manager is told of it; `shareable`: disks that are written to, and of which it takes shared locks
    only."""

    machine: Machine
    disks: tuple[Disk, ...] = ()
    media: tuple[Disk, ...] = ()
    files: tuple[tuple[str, str], ...] = ()
    firmware: str = ""
    networks: tuple[str, ...] = ()
    links: tuple[str, ...] = ()
    secrets: tuple[str, ...] = ()
    host_cpu: str = ""
    cpu: str = ""
    host_devices: tuple[str, ...] = ()
    vhost_user: tuple[str, ...] = ()
    nvram: str = ""
    tpm: str = ""
    leased: bool = False
    shareable: tuple[str, ...] = ()

    def paths(self) -> frozenset[str]:
        """Files of which another host may be asked whether it has them."""
        disks = (disk.place for disk in (*self.disks, *self.media) if disk.kind is not Kind.VOLUME)
        firmware = (self.firmware,) if self.firmware else ()
        return frozenset((*disks, *(path for _, path in self.files), *firmware))


def wants_of(inactive_xml: str, live_xml: str = "") -> Wants:
    """From the definition, and from the XML of a running VM the backing files, which only that one names.
    Raises ET.ParseError."""
    root = ET.fromstring(inactive_xml)
    disks, media, local = _disks(root)
    if live_xml:
        disks = (*disks, *(disk for disk in _backing(ET.fromstring(live_xml)) if disk not in disks))
    networks, links, vhost, held = _interfaces(root)
    mode, cpu = _cpu(root)
    return Wants(
        machine=_machine(root),
        disks=disks,
        media=media,
        files=tuple(_files(root)),
        firmware=(root.findtext("os/loader") or "").strip(),
        networks=networks,
        links=links,
        secrets=tuple(sorted(set(_secrets(root)))),
        host_cpu=mode,
        cpu=cpu,
        host_devices=(*local, *held, *_host_devices(root)),
        vhost_user=vhost + tuple(_vhost_disks(root)),
        nvram=_nvram(root),
        tpm=_tpm(root),
        leased=root.find("devices/lease") is not None,
        shareable=tuple(_shareable(root)),
    )


def _machine(root: ET.Element) -> Machine:
    kind = root.find("os/type")
    arch, machine = ("", "") if kind is None else (kind.get("arch", ""), kind.get("machine", ""))
    return Machine((root.findtext("devices/emulator") or "").strip(), arch, machine, root.get("type", ""))


def _source(kind: str, source: ET.Element) -> Disk | None:
    """None of one that QEMU itself reaches over a network, and of one without a place: an empty drive."""
    path = source.get("file") or source.get("dir")
    if path:
        return Disk(Kind.PATH, posixpath.normpath(path))
    if source.get("dev"):
        return Disk(Kind.BLOCK, posixpath.normpath(source.get("dev", "")))
    if kind == "volume" and source.get("volume"):
        return Disk(Kind.VOLUME, source.get("volume", ""), source.get("pool", ""))
    return None


def _disks(root: ET.Element) -> tuple[tuple[Disk, ...], tuple[Disk, ...], tuple[str, ...]]:
    """Disks, media in drives, and disks that are devices or processes of this very host."""
    disks: list[Disk] = []
    media: list[Disk] = []
    local: list[str] = []
    for disk in root.iterfind("devices/disk"):
        kind, source = disk.get("type", ""), disk.find("source")
        if source is None:
            continue
        if kind == "nvme":
            local.append("NVMe disk")
        elif kind == "network" and any(host.get("transport") == "unix" for host in source.iterfind("host")):
            local.append(f"disk over the socket {next(source.iterfind('host')).get('socket', '')}")
        found = _source(kind, source)
        if found is None:
            continue
        if disk.get("device", "disk") in ("disk", "lun"):
            disks.append(found)
        # libvirt drops an optional medium that is not there, and starts all the same
        elif source.get("startupPolicy") != "optional":
            media.append(found)
    return tuple(disks), tuple(media), tuple(local)


def _shareable(root: ET.Element) -> Iterator[str]:
    for disk in root.iterfind("devices/disk"):
        target = disk.find("target")
        if disk.find("shareable") is not None and disk.find("readonly") is None and target is not None:
            yield target.get("dev", "")


def _secrets(root: ET.Element) -> Iterator[str]:
    for disk in root.iterfind("devices/disk"):
        for secret in disk.iter("secret"):
            yield secret.get("uuid") or secret.get("usage") or ""


def _backing(root: ET.Element) -> Iterator[Disk]:
    for disk in root.iterfind("devices/disk"):
        if disk.get("device", "disk") not in ("disk", "lun"):
            continue
        for store in disk.iter("backingStore"):
            source = store.find("source")
            found = None if source is None else _source(store.get("type", ""), source)
            if found is not None:
                yield found


def _vhost_disks(root: ET.Element) -> Iterator[str]:
    for disk in root.iterfind("devices/disk"):
        if disk.get("type") in ("vhostuser", "vhostvdpa"):
            source = disk.find("source")
            where = "" if source is None else source.get("path") or source.get("dev") or ""
            yield f"disk over {where or 'a socket'}"


def _files(root: ET.Element) -> Iterator[tuple[str, str]]:
    for what in ("kernel", "initrd", "dtb"):
        path = (root.findtext(f"os/{what}") or "").strip()
        if path:
            yield what, posixpath.normpath(path)
    for share in root.iterfind("devices/filesystem"):
        source = share.find("source")
        shared = None if source is None else source.get("dir") or source.get("file")
        if shared:
            yield "shared directory", posixpath.normpath(shared)
    for memory in root.iterfind("devices/memory/source/path"):
        yield "NVDIMM", posixpath.normpath((memory.text or "").strip())
    for rom in root.iterfind("devices/*/rom"):
        if rom.get("file"):
            yield "ROM", posixpath.normpath(rom.get("file", ""))


def _interfaces(
    root: ET.Element,
) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Networks, bridges and devices by name, sockets of switches, and devices of this very host."""
    networks: list[str] = []
    links: list[str] = []
    vhost: list[str] = []
    held: list[str] = []
    for nic in root.iterfind("devices/interface"):
        kind, source = nic.get("type", ""), nic.find("source")
        if kind == "hostdev":
            held.append("SR-IOV interface")
        elif kind == "vdpa":
            held.append("vDPA interface")
        elif source is None:
            continue
        elif kind == "network":
            networks.append(source.get("network", ""))
        elif kind == "bridge":
            links.append(source.get("bridge", ""))
        elif kind == "direct":
            links.append(source.get("dev", ""))
        elif kind == "vhostuser":
            vhost.append(f"interface over {source.get('path', 'a socket')}")
    return tuple(networks), tuple(links), tuple(vhost), tuple(held)


def _host_devices(root: ET.Element) -> Iterator[str]:
    for device in root.iterfind("devices/hostdev"):
        address = device.find("source/address")
        where = "" if address is None else " " + (address.get("uuid") or " ".join(address.attrib.values()))
        yield f"{device.get('type') or device.get('mode', 'host device')}{where}"
    for kind in ("serial", "parallel", "console"):
        for device in root.iterfind(f"devices/{kind}[@type='dev']"):
            source = device.find("source")
            yield f"{kind} port {'' if source is None else source.get('path', '')}".rstrip()
    for device in root.iterfind("devices/input"):
        if device.get("type") in ("passthrough", "evdev"):
            yield f"{device.get('type')} input"
    for device in root.iterfind("devices/tpm/backend[@type='passthrough']"):
        source = device.find("device")
        yield f"TPM {'' if source is None else source.get('path', '')}".rstrip()


def _cpu(root: ET.Element) -> tuple[str, str]:
    """The mode where the CPU is the host's own; the XML of one that a host must be able to give."""
    cpu = root.find("cpu")
    if cpu is None:
        return "", ""
    mode = cpu.get("mode", "custom")
    if mode != "custom":
        return mode, ""
    if cpu.find("model") is None or cpu.get("check") == "none":
        return "", ""  # libvirt starts it whatever comes of it
    return "", ET.tostring(cpu, encoding="unicode").strip()


def _nvram(root: ET.Element) -> str:
    nvram = root.find("os/nvram")
    if nvram is None:
        pflash = root.find("os/loader[@type='pflash']")
        uefi = pflash is not None or root.find("os[@firmware='efi']") is not None
        stateless = pflash is not None and pflash.get("stateless") == "yes"
        return FIRMWARE_STATE if uefi and not stateless else ""
    if nvram.get("type", "file") == "network":
        return ""
    source = nvram.find("source")
    path = (nvram.text or "").strip() if source is None else source.get("file") or source.get("dev") or ""
    return posixpath.normpath(path) if path else FIRMWARE_STATE


def _tpm(root: ET.Element) -> str:
    """Of an emulated one where its state lies: with libvirt itself, unless the definition says another place."""
    backend = root.find("devices/tpm/backend[@type='emulator']")
    if backend is None:
        return ""
    source = backend.find("source")
    path = "" if source is None else source.get("path") or source.get("file") or source.get("dir") or ""
    return posixpath.normpath(path) if path else f"/var/lib/libvirt/swtpm/{root.findtext('uuid', '')}"
