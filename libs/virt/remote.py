"""What there is to know of a host whose libvirt does not answer: what its error says, and whether its kernel answers."""

from __future__ import annotations

import asyncio
from urllib.parse import urlsplit

from libs.model import Answer
from libs.probe import kernel_answers

PORTS = {"tcp": 16509, "tls": 16514, "ssh": 22, "libssh": 22, "libssh2": 22}
PATIENCE = 0.5
"""Share of the deadline after which the kernel is asked, too: never behind a libvirt that works."""
OUR_FAULTS = (
    "could not resolve",
    "name resolution",
    "name or service not known",
    "too many open files",
    "cannot exec",
)
"""The question was never asked. ssh's own end shows as a reset connection, whatever it ended of."""
TURNED_AWAY = ("permission denied (", "host key verification failed", "too many authentication failures")
"""By the other end's sshd: the machine lives."""
UNREACHED = ("no route", "timed out", "unreachable")
SILENT = (*UNREACHED, "closed", "reset", "end of file")
NO_SOCKET = "no such file"
"""Where it is libvirt's own. Over TLS it is a certificate of ours, and over ssh it may be told of a key on the way."""


def address_of(uri: str) -> tuple[str, int] | None:
    """Where a libvirt URI leads over the network; None of a local one."""
    try:
        parts = urlsplit(uri)
        port = parts.port
    except ValueError:
        return None
    transport = parts.scheme.partition("+")[2] or "tls"
    if not parts.hostname or transport not in PORTS:
        return None
    return parts.hostname, port or PORTS[transport]


def is_local(uri: str) -> bool:
    """It leads to this machine's own libvirt and its QEMU. A socket that the URI names may lead anywhere."""
    parts = urlsplit(uri)
    return parts.scheme.startswith("qemu") and not parts.netloc and "socket=" not in parts.query


async def kernel_behind(uri: str, timeout_s: float) -> tuple[Answer, str]:
    """Asked late, and done by the deadline. Silent of a local URI: nothing but its libvirt can be asked there."""
    address = address_of(uri)
    if address is None:
        return Answer.SILENT, "nothing else to ask"
    await asyncio.sleep(PATIENCE * timeout_s)
    return await kernel_answers(address, (1.0 - PATIENCE) * timeout_s)


def concluded(uri: str, said: str) -> Answer:
    """What libvirt's error says of the machine."""
    text = said.lower()
    if any(fault in text for fault in OUR_FAULTS):
        return Answer.UNKNOWN
    if any(away in text for away in TURNED_AWAY):
        return Answer.REFUSED
    if "connection refused" in text:
        # over TCP a kernel refused; a socket file outlives its daemon and its machine
        local = "unix" in uri or ("://" in uri and uri.split("://")[1].startswith("/"))
        return Answer.SILENT if local else Answer.REFUSED
    if NO_SOCKET in text:
        return _without_socket(uri, text)
    return Answer.SILENT if any(silent in text for silent in SILENT) else Answer.UNKNOWN


def _without_socket(uri: str, text: str) -> Answer:
    """A file is missing: on the other end, where its sshd has answered, or on ours."""
    parts = urlsplit(uri)
    if not parts.hostname:
        return Answer.SILENT  # a libvirt on this machine that does not run
    if "ssh" not in parts.scheme:
        return Answer.UNKNOWN
    return Answer.SILENT if any(word in text for word in UNREACHED) else Answer.REFUSED
