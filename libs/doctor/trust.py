"""Whether who speaks to the plane, and whom it speaks to, is known: the bus, certificates, fence devices, libvirt."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from libs.config.entries import FenceDevice, HostEntry, unverified
from libs.config.fencing import is_yes, plain
from libs.config.health import loopback
from libs.config.settings import Settings
from libs.doctor.made import Finding, of_host
from libs.doctor.seen import CertificateSeen, Seen
from libs.pki import SOON_DAYS

WEAK_CIPHERS = {
    0: "asks for no password",
    1: "has neither integrity nor encryption",
    2: "has no encryption",
}
"""IPMI 2.0, table 22-20: cipher suites without confidentiality that BMCs commonly allow."""


def of_trust(settings: Settings, seen: Seen) -> Iterator[Finding]:
    """Findings about what anybody on the network could hear, or play."""
    yield from _bus(settings, seen)
    for one in seen.certificates:
        yield from _certificate(settings.pool, one)
    for entry in settings.hosts:
        yield from _libvirt(entry)
        for device in entry.fencing:
            for why in unverified_options(device):
                yield of_host("fence-unverified", entry.name, f"level {device.level}, {device.agent}: {why}")


def _bus(settings: Settings, seen: Seen) -> Iterator[Finding]:
    """By the servers' own greeting; of an embedded server that does not run, by its settings."""
    for server in seen.servers:
        if server.beyond and not server.asks_for_tls:
            how = "offers TLS and does not ask for it" if server.offers_tls else "speaks without TLS"
            yield Finding("bus-in-the-clear", settings.pool, f"{server.address} {how}")
    bus = settings.bus
    if settings.embedded and not bus.tls and not loopback(bus.listen) and not seen.servers:
        yield Finding("bus-in-the-clear", settings.pool, f"bus.tls is false, and bus.listen is {bus.listen}")


def _certificate(pool: str, one: CertificateSeen) -> Iterator[Finding]:
    if one.days_left is None:
        yield Finding("certificate-unread", pool, f"{one.what}: {one.said}")
    elif one.days_left <= 0:
        yield Finding("certificate-ended", pool, f"{one.what}: ended {one.said}")
    elif one.days_left < SOON_DAYS:
        yield Finding(
            "certificate-ends-soon", pool, f"{one.what}: ends {one.said}, in {one.days_left:.0f} days"
        )


def _libvirt(entry: HostEntry) -> Iterator[Finding]:
    for field, uri in (("uri", entry.uri), ("peer_uri", entry.peer_uri or "")):
        why = unverified(uri)
        if why:
            yield of_host("libvirt-unverified", entry.name, f"{field}: {why}")


def unverified_options(device: FenceDevice) -> Iterator[str]:
    """What a device's options say against knowing who answers, each as a reason. Repeats no value but of switches."""
    options = {plain(name): value for name, value in device.options.items()}
    for name, why in (
        ("ssl_insecure", "takes any certificate"),
        ("notls", "keeps to SSL 3.0, which is broken"),
    ):
        if _said(options, name) is True:
            yield f"{name} {why}"
    for name, why in (
        ("ssl", "speaks without TLS"),
        ("ssl_secure", "verifies no certificate"),
        ("ssh", "speaks without SSH"),
        ("secure", "speaks without SSH"),
        ("lanplus", "speaks IPMI 1.5, without encryption"),
    ):
        if _said(options, name) is False:
            yield f"{name} is off: {why}"
    cipher = str(options.get("cipher", "")).strip()
    if cipher.isdecimal() and int(cipher) in WEAK_CIPHERS:
        yield f"cipher {cipher} {WEAK_CIPHERS[int(cipher)]}"
    if "stricthostkeychecking=no" in str(options.get("ssh_options", "")).replace(" ", "").lower():
        yield "ssh_options take any host key"
    if str(options.get("snmp_version", "")).strip().lower() in ("1", "2c"):
        yield "snmp_version has its community in the clear"
    if str(options.get("snmp_sec_level", "")).strip().lower() in ("noauthnopriv", "authnopriv"):
        yield "snmp_sec_level has no encryption"


def _said(options: Mapping[str, str | int | bool], name: str) -> bool | None:
    """A switch as an agent reads it; None where the file does not say."""
    return None if name not in options else is_yes(options[name])
