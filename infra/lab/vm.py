"""The domain XML of the lab's VMs: as few devices as boot fast, and nothing that hides a double start."""

import uuid
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape, quoteattr

from infra.lab import agentguest, netguest
from infra.lab.guest import AGENT_SUFFIX, COMMAND_LINE, Guest

_NAMESPACE = uuid.UUID("0f5f3b2a-6a55-5c5e-9a64-0b8f6c0f7a11")

MIN_MEMORY_MIB = 80
"""Below this the guest's kernel does not come up (72 MiB hangs, 80 boots)."""

_TEMPLATE = """<domain type={type}>
  <name>{name}</name>
  <uuid>{uuid}</uuid>
  <metadata>{metadata}</metadata>
  <memory unit='MiB'>{memory}</memory>
  <vcpu>{vcpus}</vcpu>
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
    <kernel>{kernel}</kernel>
{linux}  </os>
  <features><acpi/></features>
  <on_poweroff>destroy</on_poweroff>
  <on_reboot>restart</on_reboot>
  <on_crash>{on_crash}</on_crash>
  <devices>
    <emulator>{emulator}</emulator>
    <disk type='file' device='disk'>
      <driver name='qemu' type='raw' cache={cache}/>
      <source file={disk}/>
      <target dev='vda' bus='virtio'/>
{shareable}    </disk>
    <controller type='usb' model='none'/>
    <serial type='file'>
      <source path={console} append='on'/>
      <target port='0'/>
    </serial>
    <memballoon model='none'/>
{nics}{agent}  </devices>
{override}</domain>
"""
_NO_IMAGE_LOCK = """  <qemu:override xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
    <qemu:device alias='virtio-disk0'>
      <qemu:frontend><qemu:property name='share-rw' type='bool' value='true'/></qemu:frontend>
    </qemu:device>
  </qemu:override>
"""


@dataclass(frozen=True)
class LabVm:
    """A VM of the lab. Without a uuid it has one that follows from its name, the same in every lab.

    `disk` defaults to a file on the lab's shared directory, or in the `datastore`; `metadata` is the XML inside
    libvirt's <metadata>. `guest_agent`: the guest has QEMU's guest agent, a panic device and a watchdog that it feeds
    (see agentguest.py); `on_crash`: what libvirt does when such a guest panics. `bare`: the guest has no operating
    system (see bareguest.py). `shareable`: QEMU's own lock of its disk image is off, and a lock manager takes shared locks
    only; None: where the lab has no lock manager. The lab exists to show a double start if there is one, and a lock that
    happens to work on this machine's file system would hide it. Without `image_lock` only QEMU's own is off, as it is
    without effect between hosts on a disk that is a block device. `networks`: libvirt networks that it joins. With an `address`
    (see Lab.guest_address) it is there in the first of them, and `serves` a port and a page (8080/health) from
    `serves_after_s` after it has come up.
    """

    name: str
    memory_mib: int = 96
    vcpus: int = 1
    uuid: str = ""
    disk: Path | None = None
    metadata: str = ""
    datastore: str = ""
    guest_agent: bool = False
    on_crash: str = "destroy"
    bare: bool = False
    shareable: bool | None = None
    image_lock: bool = True
    networks: tuple[str, ...] = ()
    address: str = ""
    serves: str = ""
    serves_after_s: float = 0.0

    def __post_init__(self) -> None:
        if self.disk is not None and self.datastore:
            raise ValueError(f"VM {self.name}: a disk of its own or a datastore, not both")
        if self.bare and self.guest_agent:
            raise ValueError(f"VM {self.name}: a bare guest has no agent")
        if self.address and (self.bare or not self.networks or not self.serves):
            raise ValueError(
                f"VM {self.name}: an address is of a guest with Linux and a network, that serves something"
            )
        least = agentguest.MIN_MEMORY_MIB if self.guest_agent else MIN_MEMORY_MIB
        if self.memory_mib < least:
            raise ValueError(f"VM {self.name}: memory_mib {self.memory_mib}, the guest needs {least}")
        if not self.uuid:
            object.__setattr__(self, "uuid", vm_uuid(self.name))


def vm_uuid(name: str) -> str:
    """The uuid of a VM of this name for which none was given."""
    return str(uuid.uuid5(_NAMESPACE, name))


@dataclass(frozen=True)
class VmGround:
    """What all VMs of one lab have in common."""

    guest: Guest
    emulator: str
    domain_type: str
    disk_cache: str


def _command_line(vm: LabVm) -> str:
    agent = (agentguest.COMMAND_LINE,) if vm.guest_agent else ()
    net = (netguest.command_line(vm.address, vm.serves, vm.serves_after_s),) if vm.address else ()
    return " ".join((COMMAND_LINE, *agent, *net))


def domain_xml(
    vm: LabVm, ground: VmGround, disk: Path, console: Path, *, shareable: bool = True, mac: str = ""
) -> str:
    """The definition to hand to libvirt; `mac`: its hardware address in the first of its networks."""
    linux = ""
    if ground.guest.initrd is not None:
        line = _command_line(vm)
        linux = f"    <initrd>{escape(str(ground.guest.initrd))}</initrd>\n    <cmdline>{escape(line)}</cmdline>\n"
    return _TEMPLATE.format(
        type=quoteattr(ground.domain_type),
        name=escape(vm.name),
        uuid=vm.uuid,
        metadata=vm.metadata,
        memory=vm.memory_mib,
        vcpus=vm.vcpus,
        kernel=escape(str(ground.guest.kernel)),
        linux=linux,
        on_crash=escape(vm.on_crash),
        nics=netguest.interfaces(vm.networks, mac),
        agent=agentguest.DEVICES.format(says=quoteattr(str(console.with_suffix(AGENT_SUFFIX))))
        if vm.guest_agent
        else "",
        emulator=escape(ground.emulator),
        cache=quoteattr(ground.disk_cache),
        disk=quoteattr(str(disk)),
        console=quoteattr(str(console)),
        shareable="      <shareable/>\n" if shareable else "",
        override="" if vm.image_lock else _NO_IMAGE_LOCK,
    )
