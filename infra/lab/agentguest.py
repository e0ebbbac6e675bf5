"""The guest's second flavour: with QEMU's guest agent, a panic device and a watchdog that it feeds.

It has the same kernel. The agent is the distribution's, downloaded and unpacked as the kernel is; the libraries that
it needs are this machine's own, since QEMU needs them here. The small kernels have no driver for the watchdog card:
the guest's script sets it up and feeds it through /dev/mem.
"""

import re
import subprocess
from pathlib import Path

from infra.lab import initramfs

PACKAGE = "qemu-guest-agent"
MODULES = ("virtio_console", "pvpanic_mmio")
"""The agent's channel, and the ISA panic device."""

MIN_MEMORY_MIB = 88
"""Its initramfs is larger by six MiB, and the agent needs some (80 MiB do not boot, 84 do)."""

WATCHDOG_S = 8
"""A guest that does not feed its watchdog for so long has it bite. It is fed each second; a loaded machine needs the
rest."""

COMMAND_LINE = "unknown_nmi_panic"
"""An injected NMI has the guest's kernel panic."""

STARVE = "/starve"
"""Where this file is, the watchdog is fed no more."""

# The card (Intel 6300ESB) has two timers that run one after the other, in units of 2^15 cycles of 30 ns. Each write
# to its registers is unlocked by two others.
_START = r"""$b mkdir /run
tries=0
# Its first number is that of the channel's controller among all virtio devices.
while for port in /dev/vport*p1; do :; done; [ ! -e $port ] && [ $((tries = tries + 1)) -lt 100 ]; do $b usleep 20000; done
$b mkdir /sbin
printf '#!/bin/busybox sh\n[ "$2" = -r ] && exec %s reboot -f\nexec %s poweroff -f\n' $b $b > /sbin/shutdown
$b chmod 755 /sbin/shutdown
echo REKINDLE-GUEST-AGENT > /dev/ttyS1
/bin/qemu-ga -m virtio-serial -p $port -t /run > /dev/null 2>&1 &
agent=$!
# A guest that is up has an agent that listens.
until $b ls -l /proc/$agent/fd 2> /dev/null | $b grep -q vport || [ $((tries = tries + 1)) -gt 200 ]; do $b usleep 20000; done
for card in /sys/bus/pci/devices/*; do
  read -r vendor < $card/vendor
  read -r device < $card/device
  [ $vendor$device = 0x80860x25ab ] || continue
  echo 1 > $card/enable
  read -r dog rest < $card/resource
  for timer in $dog $((dog + 4)); do
    $b devmem $((dog + 12)) 16 0x80
    $b devmem $((dog + 12)) 16 0x86
    $b devmem $timer 32 @TICKS@
  done
  printf '\002' | $b dd of=$card/config bs=1 seek=104 2> /dev/null
done
"""
_FEED = r"""  if [ ! -e @STARVE@ ]; then
    $b devmem $((dog + 12)) 16 0x80
    $b devmem $((dog + 12)) 16 0x86
    $b devmem $((dog + 12)) 16 0x100
  fi
"""
START = _START.replace("@TICKS@", str(int(WATCHDOG_S / 2 / (2**15 * 30e-9))))
EACH_SECOND = _FEED.replace("@STARVE@", STARVE)
INIT = initramfs.init(START, EACH_SECOND)

DEVICES = """    <serial type='file'>
      <source path={says} append='on'/>
      <target port='1'/>
    </serial>
    <channel type='unix'>
      <target type='virtio' name='org.qemu.guest_agent.0'/>
    </channel>
    <panic model='isa'/>
    <watchdog model='i6300esb' action='none'>
      <address type='pci' domain='0x0000' bus='0x00' slot='0x02' function='0x0'/>
    </watchdog>
"""
"""What the definition of a VM has besides; the watchdog only tells libvirt that it bit. `says`: a file, quoted, for what the
guest has to say of its agent, so that its console carries the up line and nothing else."""


def libraries(binary: Path) -> list[Path]:
    """The loader and the libraries that a program of this machine's distribution needs, as they lie here.

    Raises FileNotFoundError naming one that is not here.
    """
    loader = Path("/lib64/ld-linux-x86-64.so.2")
    listed = subprocess.run([str(loader), "--list", str(binary)], capture_output=True, text=True, check=False)
    missing = re.findall(r"^\s*(\S+) => not found", listed.stdout, re.MULTILINE)
    if listed.returncode != 0 or missing:
        raise FileNotFoundError(f"{binary.name} needs {', '.join(missing) or listed.stderr.strip()}")
    return [loader, *(Path(path) for path in re.findall(r"=> (/\S+)", listed.stdout))]
