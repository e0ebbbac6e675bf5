"""What a domain's XML says that it needs of a host, and what it does not."""

from __future__ import annotations

from typing import Any

import pytest

from libs.wants import Disk, Kind, Machine, Wants, wants_of

pytestmark = pytest.mark.fast


def wants(
    devices: str = "", os: str = "<type arch='x86_64' machine='pc-q35-7.2'>hvm</type>", more: str = ""
) -> Wants:
    return wants_of(
        f"<domain type='kvm'><name>a</name><uuid>u</uuid><os>{os}</os>{more}<devices>{devices}</devices></domain>"
    )


def path(place: str) -> Disk:
    return Disk(Kind.PATH, place)


OS = "<type arch='x86_64'>hvm</type>"
ISO = "<disk type='file' device='cdrom'>{source}<target dev='sda'/></disk>"
NBD = "<disk type='network'><source protocol='nbd'><host {host}/></source></disk>"
CASES: dict[str, tuple[dict[str, str], dict[str, Any]]] = {
    "nothing": ({}, {}),
    "a file": (
        {"devices": "<disk type='file'><source file='/srv//a.raw'/></disk>"}, {"disks": (path("/srv/a.raw"),)}),
    "a device": (
        {"devices": "<disk type='block' device='lun'><source dev='/dev/vg/a'/></disk>"},
        {"disks": (Disk(Kind.BLOCK, "/dev/vg/a"),)}),
    "a volume": (
        {"devices": "<disk type='volume'><source pool='p' volume='v'/></disk>"},
        {"disks": (Disk(Kind.VOLUME, "v", "p"),)}),
    "a disk that needs a secret": (
        {"devices": "<disk type='network'><auth><secret type='ceph' usage='c'/></auth><source protocol='rbd'>"
                    "<encryption><secret type='passphrase' uuid='s'/></encryption></source></disk>"},
        {"secrets": ("c", "s")}),
    "a disk over a network": ({"devices": NBD.format(host="name='nas'")}, {}),
    "a disk over a socket": (
        {"devices": NBD.format(host="transport='unix' socket='/run/nbd'")},
        {"host_devices": ("disk over the socket /run/nbd",)}),
    "an NVMe disk": (
        {"devices": "<disk type='nvme'><source type='pci' namespace='1'/></disk>"},
        {"host_devices": ("NVMe disk",)}),
    "a disk of another process": (
        {"devices": "<disk type='vhostuser'><source type='unix' path='/run/v'/></disk>"},
        {"vhost_user": ("disk over /run/v",)}),
    "an empty drive": ({"devices": ISO.format(source="")}, {}),
    "a medium": ({"devices": ISO.format(source="<source file='/i.iso'/>")}, {"media": (path("/i.iso"),)}),
    "a medium that may be missing": (
        {"devices": ISO.format(source="<source file='/i.iso' startupPolicy='optional'/>")}, {}),
    "a kernel": (
        {"os": f"{OS}<kernel>/k</kernel><initrd>/i</initrd>"}, {"files": (("kernel", "/k"), ("initrd", "/i"))}),
    "a shared directory": (
        {"devices": "<filesystem type='mount'><source dir='/data'/></filesystem>"},
        {"files": (("shared directory", "/data"),)}),
    "an NVDIMM": (
        {"devices": "<memory model='nvdimm'><source><path>/nv</path></source></memory>"},
        {"files": (("NVDIMM", "/nv"),)}),
    "a ROM": (
        {"devices": "<interface type='user'><rom file='/rom'/></interface>"}, {"files": (("ROM", "/rom"),)}),
    "UEFI": (
        {"os": f"{OS}<loader type='pflash'>/f.fd</loader><nvram template='/t'>/v.fd</nvram>"},
        {"firmware": "/f.fd", "nvram": "/v.fd"}),
    "UEFI with its variables at the usual place": (
        {"os": f"{OS}<loader type='pflash'>/f.fd</loader>"},
        {"firmware": "/f.fd", "nvram": "/var/lib/libvirt/qemu/nvram"}),
    "UEFI without variables": (
        {"os": f"{OS}<loader type='pflash' stateless='yes'>/f.fd</loader>"}, {"firmware": "/f.fd"}),
    "UEFI with its variables on a network": (
        {"os": f"{OS}<loader type='pflash'>/f.fd</loader><nvram type='network'><source protocol='iscsi'/></nvram>"},
        {"firmware": "/f.fd"}),
    "a TPM": (
        {"devices": "<tpm><backend type='emulator'/></tpm>"}, {"tpm": "/var/lib/libvirt/swtpm/u"}),
    "a TPM with its state elsewhere": (
        {"devices": "<tpm><backend type='emulator'><source type='dir' path='/nfs/t'/></backend></tpm>"},
        {"tpm": "/nfs/t"}),
    "a TPM of the host": (
        {"devices": "<tpm><backend type='passthrough'><device path='/dev/tpm0'/></backend></tpm>"},
        {"host_devices": ("TPM /dev/tpm0",)}),
    "a PCI device": (
        {"devices": "<hostdev mode='subsystem' type='pci'><source><address bus='0x1'/></source></hostdev>"},
        {"host_devices": ("pci 0x1",)}),
    "a mediated device": (
        {"devices": "<hostdev mode='subsystem' type='mdev'><source><address uuid='m'/></source></hostdev>"},
        {"host_devices": ("mdev m",)}),
    "a USB device": (
        {"devices": "<hostdev mode='subsystem' type='usb'><source><vendor id='1'/></source></hostdev>"},
        {"host_devices": ("usb",)}),
    "an SR-IOV interface": (
        {"devices": "<interface type='hostdev'/>"}, {"host_devices": ("SR-IOV interface",)}),
    "an interface of a switch's": (
        {"devices": "<interface type='vhostuser'><source path='/run/v'/></interface>"},
        {"vhost_user": ("interface over /run/v",)}),
    "a serial port of the host": (
        {"devices": "<serial type='dev'><source path='/dev/ttyS0'/></serial>"},
        {"host_devices": ("serial port /dev/ttyS0",)}),
    "a serial port into a file": ({"devices": "<serial type='file'><source path='/c'/></serial>"}, {}),
    "networks and bridges": (
        {"devices": "<interface type='network'><source network='n'/></interface>"
                    "<interface type='bridge'><source bridge='b'/></interface>"
                    "<interface type='direct'><source dev='e'/></interface><interface type='user'/>"},
        {"networks": ("n",), "links": ("b", "e")}),
    "the host's CPU": ({"more": "<cpu mode='host-passthrough'/>"}, {"host_cpu": "host-passthrough"}),
    "the model of the host's CPU": ({"more": "<cpu mode='host-model'/>"}, {"host_cpu": "host-model"}),
    "a CPU": (
        {"more": "<cpu mode='custom'><model>EPYC</model></cpu>"},
        {"cpu": '<cpu mode="custom"><model>EPYC</model></cpu>'}),
    "a CPU of which nothing is required": ({"more": "<cpu check='none'><model>EPYC</model></cpu>"}, {}),
    "only the CPU's topology": ({"more": "<cpu><topology sockets='2'/></cpu>"}, {}),
    "a lease": ({"devices": "<lease><key>k</key></lease>"}, {"leased": True}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_a_definition_asks_of_a_host(case: str) -> None:
    given, found = CASES[case]
    seen = wants(**given)
    assert seen == Wants(**{"machine": seen.machine, **found})


def test_a_machine_is_what_qemu_is_to_be() -> None:
    assert wants("<emulator>/usr/bin/q</emulator>").machine == Machine(
        "/usr/bin/q", "x86_64", "pc-q35-7.2", "kvm"
    )


def test_other_hosts_are_asked_for_every_file_but_not_for_volumes() -> None:
    disks = "<disk type='file'><source file='/n/a'/></disk><disk type='volume'><source pool='p' volume='v'/></disk>"
    found = wants(disks, os=f"{OS}<loader type='pflash'>/f.fd</loader><kernel>/k</kernel>")
    assert found.paths() == {"/n/a", "/f.fd", "/k"}


def test_backing_files_are_disks_too_and_only_the_running_vm_names_them() -> None:
    disk = "<disk type='file'><source file='/n/a.qcow2'/>{backing}</disk>"
    backing = "<backingStore type='file'><source file='/n/b.qcow2'/><backingStore/></backingStore>"
    given = "<domain type='kvm'><devices>{disk}</devices></domain>"
    found = wants_of(
        given.format(disk=disk.format(backing="")), given.format(disk=disk.format(backing=backing))
    )
    assert found.disks == (path("/n/a.qcow2"), path("/n/b.qcow2"))
    assert found.paths() == {"/n/a.qcow2", "/n/b.qcow2"}
