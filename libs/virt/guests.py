"""What libvirt knows of the guest inside a domain: its agent's channel, why it is paused, whether its agent answers."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from typing import Any

import libvirt
import libvirt_qemu

from libs.model import Health

CHANNEL = "org.qemu.guest_agent.0"
PING = '{"execute":"guest-ping"}'
SYNC_S = 7.0
"""libvirt first brings itself and the agent into step, for which it gives it five seconds of its own."""
PAUSES = {
    libvirt.VIR_DOMAIN_PAUSED_IOERROR: Health.IO_ERROR,
    libvirt.VIR_DOMAIN_PAUSED_WATCHDOG: Health.WATCHDOG,
    libvirt.VIR_DOMAIN_PAUSED_CRASHED: Health.PANICKED,
}


def health_of(state: int, reason: int) -> Health:
    """What the state of a domain that has a process says of its guest."""
    if state == libvirt.VIR_DOMAIN_CRASHED:
        return Health.PANICKED
    return PAUSES.get(reason, Health.UNKNOWN) if state == libvirt.VIR_DOMAIN_PAUSED else Health.UNKNOWN


def agent_connected(root: ET.Element) -> bool:
    """True where the guest has opened its agent's channel, by the XML of the running domain."""
    return any(
        target.get("name") == CHANNEL and target.get("state") == "connected"
        for target in root.iterfind("devices/channel/target")
    )


def answers(connection: Any, uuid: str, timeout_s: float) -> bool:
    """One ping; False where it was asked and did not answer. Raises libvirtError where it could not be asked."""
    domain = connection.lookupByUUIDString(uuid)
    try:
        libvirt_qemu.qemuAgentCommand(domain, PING, max(1, round(timeout_s)), 0)
    except libvirt.libvirtError as error:
        # the same code says that the channel is closed by now: then nobody was asked
        asked = error.get_error_code() == libvirt.VIR_ERR_AGENT_UNRESPONSIVE
        if asked and "not connected" not in str(error):
            return False
        raise
    return True
