"""Asks the host's agent before libvirt takes a VM in by a migration: docs/adr/0011.

Run by libvirt's hook (rekindle-arrivals beside this) with the VM's XML on standard input: `arrivals.py SOCKET OVERRIDE NAME`.
Exit 1 refuses the migration, and what stands on standard error is shown to who migrates. On standard output nothing: libvirt
would take it for other XML. Standard library alone, and nothing of Rekindle: libvirt waits for it. It must not call libvirt.
"""

import socket
import sys
import time
import xml.etree.ElementTree as ET
from pathlib import Path

ANSWER_S = 5.0
"""The agent says in 4 s why it cannot tell."""
POLICY = "{urn:rekindle:policy:1}policy"


def unprotected(xml: bytes) -> bool:
    """By its own metadata: nothing of Rekindle's ever starts it."""
    try:
        policy = ET.fromstring(xml).find(f"metadata/{POLICY}")
    except ET.ParseError:
        return False
    return policy is not None and policy.get("protection") == "none"


def answered(path: str, xml: bytes) -> str:
    """The agent's line. Raises OSError where there is none in time."""
    until = time.monotonic() + ANSWER_S
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
        line.settimeout(ANSWER_S)
        line.connect(path)
        line.sendall(xml)
        line.shutdown(socket.SHUT_WR)
        said = b""
        while not said.endswith(b"\n"):
            line.settimeout(max(0.01, until - time.monotonic()))
            more = line.recv(65536)
            if not more:
                raise ConnectionError("it said nothing")
            said += more
    return said.decode("utf-8", "replace").strip()


def refusal(path: str, override: Path, xml: bytes) -> str:
    """Why the VM may not come in; "" where it may."""
    if override.exists():
        return ""
    try:
        said = answered(path, xml)
    except OSError as error:
        if unprotected(xml):
            return ""
        return f"the Rekindle agent of this host does not answer ({error.strerror or error})"
    return "" if said == "yes" else said.removeprefix("no ")


def main(arguments: list[str]) -> int:
    path, override, name = arguments
    why = refusal(path, Path(override), sys.stdin.buffer.read())
    if why:
        sys.stderr.write(
            f"Rekindle does not let {name} in: {why}. If this host failed now, or the one that it comes from, nobody could know "
            f"where it runs, and it might be started twice. To let VMs in all the same: touch {override} here, and "
            "remove it afterwards (docs/OPERATING.md, What you do with virsh).\n"
        )
    return 1 if why else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
