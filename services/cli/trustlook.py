"""What `rekindle doctor` looks at to see who is known: the greeting and certificate of each server of the bus, and the
certificates that lie here."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from cryptography import x509

from libs.config.health import loopback
from libs.config.settings import Settings
from libs.config.yamlfile import BadInputError
from libs.doctor.seen import CertificateSeen, ServerSeen
from libs.pki import end_of

SERVER_S = 5.0
"""For one server to greet and show its certificate."""
NATS_PORT = 4222
LIBVIRT_PKI = (Path("/etc/pki/CA/cacert.pem"), Path("/etc/pki/libvirt/clientcert.pem"))
"""Where libvirt looks for them without `pkipath`: https://libvirt.org/kbase/tlscerts.html."""


async def look_at_trust(
    settings: Settings, authority: Path
) -> tuple[tuple[ServerSeen, ...], tuple[CertificateSeen, ...]]:
    """Servers of the bus that answer, and all certificates. `authority`: the directory of `rekindle pki`, where there is
    one."""
    try:
        addresses = settings.servers()
    except BadInputError:
        addresses = []  # the look at the bus says so
    greeted = await asyncio.gather(*(_greeted(url) for url in addresses))
    there = await asyncio.to_thread(
        lambda: [_of_file(*one) for one in certificate_files(settings, authority)]
    )
    servers = tuple(server for server, _ in greeted if server is not None)
    shown = tuple(certificate for _, certificate in greeted if certificate is not None)
    return servers, (*shown, *there)


def certificate_files(settings: Settings, authority: Path) -> Iterator[tuple[str, Path]]:
    """What is named by the settings, whether it is there or not, and what lies where it is looked for; each once."""
    named = [("bus.ca_file", settings.bus.ca_file), ("bus.cert_file", settings.bus.cert_file)]
    named += [("health.cert_file", settings.health.cert_file)]
    named += [("alerts.http.cert_file", settings.alerts.http.cert_file)]
    found = [(where, path) for where, path in named if path is not None]
    places = [settings.nats_directory() / "tls"] if settings.embedded else []
    for place in (*places, authority):
        found += [("rekindle pki", path) for path in sorted(place.glob("*.pem"))]
    for host in settings.hosts:
        found += [("qemu+tls://", path) for path in _of_libvirt(host.uri) if path.exists()]
    taken: set[Path] = set()
    for where, path in found:
        if path.resolve() not in taken:
            taken.add(path.resolve())
            yield where, path


def _of_libvirt(uri: str) -> tuple[Path, ...]:
    """Those by which libvirt reaches a URI over TLS."""
    parts = urlsplit(uri)
    if (parts.scheme.partition("+")[2] or "tls") != "tls" or parts.hostname is None:
        return ()
    place = parse_qs(parts.query).get("pkipath")
    return (
        LIBVIRT_PKI if place is None else (Path(place[-1], "cacert.pem"), Path(place[-1], "clientcert.pem"))
    )


def _of_file(where: str, path: Path) -> CertificateSeen:
    try:
        return _ends(f"{path} ({where})", end_of(path))
    except BadInputError as error:
        return CertificateSeen(where, None, str(error))


def _ends(what: str, end: datetime) -> CertificateSeen:
    left = (end - datetime.now(UTC)).total_seconds() / 86400
    return CertificateSeen(what, left, f"{end:%Y-%m-%d}")


async def _greeted(url: str) -> tuple[ServerSeen | None, CertificateSeen | None]:
    """What one server says before anybody has said who he is, and the certificate that it shows. Nothing is sent to it, so
    that it need not be known: also a certificate that has ended is seen."""
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or NATS_PORT
    address = f"{host}:{port}"
    try:
        async with asyncio.timeout(SERVER_S):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                greeting = json.loads((await reader.readline()).removeprefix(b"INFO "))
                beyond = not (loopback(writer.get_extra_info("peername")[0]) and loopback(greeting["host"]))
                asks, offers = (bool(greeting.get(f"tls_{how}")) for how in ("required", "available"))
                server = ServerSeen(address, beyond, asks, asks or offers)
                return server, await _shown(writer, address) if asks or offers else None
            finally:
                writer.transport.abort()
    except (OSError, TimeoutError, ValueError, KeyError, asyncio.IncompleteReadError):
        return None, None  # not reached, or no NATS: the look at the bus says so


async def _shown(writer: asyncio.StreamWriter, address: str) -> CertificateSeen | None:
    """The certificate that a server shows. Raises OSError."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    await writer.start_tls(context)
    found = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    return (
        None if found is None else _ends(address, x509.load_der_x509_certificate(found).not_valid_after_utc)
    )
