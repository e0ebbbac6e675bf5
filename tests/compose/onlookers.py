"""What is looked at inside the containers' bus: who is connected, as whom, and what a stolen key or no key can do there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

TOLD = "import sys, urllib.request as u; print(u.urlopen('http://127.0.0.1:8222/' + sys.argv[1], timeout=5).read().decode())"
"""Run in the server's container, on whose loopback alone it tells that."""
CONNECTIONS, ITSELF = "connz?auth=true&limit=1000", "varz"

ROGUE = """\
import asyncio, json, sys
from pathlib import Path
from libs.access.login import Login
from libs.jetstream.connection import connect

async def main(key, *subjects):
    login = Login("agent-h1", Path(key), Path("/etc/rekindle/ca/ca.pem"))
    async def closed():
        pass
    client = await connect(["tls://nats:4222"], "rogue", jetstream=False, login=login, closed=closed)
    refused = []
    async def note(error):
        refused.append(str(error).lower())
    client._error_cb = note
    for subject in subjects:
        before = len(refused)
        await client.publish(subject, b"{}")
        async with asyncio.timeout(10):
            while len(refused) == before:
                await asyncio.sleep(0.05)
    print(json.dumps(refused))
    await client.close()

asyncio.run(main(*sys.argv[1:]))
"""
"""Run in a host's container: what the server says of each subject. Fails where one is not refused in ten seconds."""

STRANGER = """\
import json, socket, ssl
from pathlib import Path

def greeted():
    bare = socket.create_connection(("nats", 4222), timeout=5)
    return bare, json.loads(bare.makefile("r").readline().removeprefix("INFO "))

def answer(connection):
    connection.settimeout(15)
    said = b""
    try:
        connection.sendall(b'CONNECT {"verbose":false}\\r\\nPING\\r\\n')
        while b"PONG" not in said and (more := connection.recv(4096)):
            said += more
    except OSError:
        pass
    return said.decode(errors="replace").lower()

bare, info = greeted()
told = {"tls_required": info.get("tls_required"), "in the clear": answer(bare)}
bare, _ = greeted()
context = ssl.create_default_context(cafile="/etc/rekindle/ca/ca.pem")
told["without a key"] = answer(context.wrap_socket(bare, server_hostname="nats"))
print(json.dumps(told))
"""
"""The same without any key: in the clear, and over TLS."""

SHOWN = """\
import hashlib, socket, ssl
bare = socket.create_connection(("nats", 4222), timeout=5)
bare.recv(65536)
context = ssl.create_default_context(cafile="/etc/rekindle/ca/ca.pem")
with context.wrap_socket(bare, server_hostname="nats") as found:
    print(hashlib.sha256(found.getpeercert(True)).hexdigest())
"""
"""The fingerprint of the certificate that a client is shown now."""


def users_of(keys: Path) -> dict[str, str]:
    """By public key who it is."""
    return {path.read_text().strip(): path.stem for path in keys.glob("*.pub")}


def by_user(told: str, users: Mapping[str, str]) -> dict[str, list[dict[str, Any]]]:
    """Connections by user, of what the server tells; of one that came without a key of ours by what it tells instead."""
    found: dict[str, list[dict[str, Any]]] = {}
    for one in json.loads(told)["connections"]:
        key = one.get("nkey") or one.get("authorized_user", "")
        found.setdefault(users.get(key, key or "nobody"), []).append(one)
    return found
