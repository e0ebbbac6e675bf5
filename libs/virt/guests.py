"""What libvirt knows of the guest inside a domain: its agent's channel, why it is paused, whether its agent answers."""

from __future__ import annotations

import ipaddress
import xml.etree.ElementTree as ET
from typing import Any

import libvirt
import libvirt_qemu

from libs.model import Health

CHANNEL = "org.qemu.guest_agent.0"
PING = '{"execute":"guest-ping"}'
SYNC_S = 7.0
"""libvirt first brings itself and the agent into step, for which it gives it five seconds of its own."""
SOURCES = (
    libvirt.VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_LEASE,
    libvirt.VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_AGENT,
    libvirt.VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_ARP,
)
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


def addresses_of(connection: Any, uuid: str) -> tuple[str, ...]:
    """At which a guest may be reached: what libvirt's own networks have given it, else what its agent says, else whom the
    host's kernel has seen. The first that knows any; it costs less, and hangs less. Raises libvirtError where the
    connection broke, or the domain is none here."""
    domain = connection.lookupByUUIDString(uuid)
    for source in SOURCES:
        try:
            found = domain.interfaceAddresses(source, 0)
        except libvirt.libvirtError:
            if not connection.isAlive():
                raise
            continue
        addresses = [one["addr"] for nic in found.values() for one in nic.get("addrs") or ()]
        known = [one for one in dict.fromkeys(addresses) if not _useless(one)]
        if known:
            return tuple(known)
    return ()


def _useless(address: str) -> bool:
    """Nobody reaches a guest at its own loopback, nor, without the name of an interface, over one link alone."""
    known = ipaddress.ip_address(address)
    return known.is_loopback or known.is_link_local or known.is_unspecified
