"""The domain XML of the lab's VMs: as few devices as boot fast, and nothing that hides a double start."""

import uuid
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape, quoteattr

from infra.lab import agentguest
from infra.lab.guest import COMMAND_LINE, Guest

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
    <!-- shareable: turns QEMU's image lock off. The lab exists to show a double start if there is one; a lock that
         happens to work on this machine's file system would hide it. -->
    <disk type='file' device='disk'>
      <driver name='qemu' type='raw' cache={cache}/>
      <source file={disk}/>
      <target dev='vda' bus='virtio'/>
      <shareable/>
    </disk>
    <controller type='usb' model='none'/>
    <serial type='file'>
      <source path={console} append='on'/>
      <target port='0'/>
    </serial>
    <memballoon model='none'/>
{agent}  </devices>
</domain>
"""


@dataclass(frozen=True)
class LabVm:
    """A VM of the lab. Without a uuid it has one that follows from its name, the same in every lab.

    `disk` defaults to a file on the lab's shared directory, or in the `datastore`; `metadata` is the XML inside
    libvirt's <metadata>. `guest_agent`: the guest has QEMU's guest agent, a panic device and a watchdog that it feeds
    (see agentguest.py); `on_crash`: what libvirt does when such a guest panics. `bare`: the guest has no operating
    system (see bareguest.py).
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

    def __post_init__(self) -> None:
        if self.disk is not None and self.datastore:
            raise ValueError(f"VM {self.name}: a disk of its own or a datastore, not both")
        if self.bare and self.guest_agent:
            raise ValueError(f"VM {self.name}: a bare guest has no agent")
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


def domain_xml(vm: LabVm, ground: VmGround, disk: Path, console: Path) -> str:
    """The definition to hand to libvirt."""
    linux = ""
    if ground.guest.initrd is not None:
        line = f"{COMMAND_LINE} {agentguest.COMMAND_LINE}" if vm.guest_agent else COMMAND_LINE
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
        agent=agentguest.DEVICES if vm.guest_agent else "",
        emulator=escape(ground.emulator),
        cache=quoteattr(ground.disk_cache),
        disk=quoteattr(str(disk)),
        console=quoteattr(str(console)),
    )
