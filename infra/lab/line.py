"""Lines to the hosts' libvirt over the lab's network, so that a cut link cuts them too.

libvirtd itself listens on a unix socket only: over TCP it would obey every user of the machine. At each end of a line
stands a relay; who does not name the lab's secret first is not let in. Standard library only.
"""

import contextlib
import hmac
import os
import secrets
import socket
import threading
import traceback
from collections.abc import Callable
from pathlib import Path

from infra.lab.paths import HostPaths
from infra.lab.spec import LabSpec

PORT = 16509
_SECRET_BYTES = 32
_CHUNK = 1 << 16
_DIAL_S = 10.0
"""A line that was cut is dialled for so long: longer than anybody who asks waits."""
Dial = Callable[[socket.socket], socket.socket | None]


def make_secret(path: Path) -> None:
    """Write a fresh secret that only we can read."""
    path.touch(mode=0o600)
    path.write_text(secrets.token_hex(_SECRET_BYTES // 2))


def _pump(source: socket.socket, target: socket.socket) -> None:
    """Copy until one side ends; then both have."""
    with contextlib.suppress(OSError):
        while data := source.recv(_CHUNK):
            target.sendall(data)
    for one in (source, target):
        with contextlib.suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)


def _join(near: socket.socket, dial: Dial) -> None:
    """Connect what was accepted with what `dial` opens, and copy both ways."""
    with near:
        try:
            far = dial(near)
        except OSError:
            return
        if far is None:
            return
        with far:
            back = threading.Thread(target=_pump, args=(far, near), daemon=True)
            back.start()
            _pump(near, far)
            back.join()


def _accept(listener: socket.socket, dial: Dial) -> None:
    while True:
        near, _ = listener.accept()
        threading.Thread(target=_join, args=(near, dial), daemon=True).start()


def _serve(listener: socket.socket, dial: Dial) -> None:
    listener.listen(64)
    threading.Thread(target=_accept, args=(listener, dial), daemon=True).start()


def serve_local(path: Path, spec: LabSpec, host: str) -> None:
    """In threads of this process: what connects to the unix socket `path` speaks to `host`'s libvirt."""
    assert spec.network is not None
    address, secret = spec.network.addresses[host], spec.paths.line_secret.read_bytes()

    def dial(_: socket.socket) -> socket.socket:
        far = socket.create_connection((address, PORT), timeout=_DIAL_S)
        far.settimeout(None)
        far.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        far.sendall(secret)
        return far

    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    _serve(listener, dial)


def _serve_remote(spec: LabSpec, host: HostPaths) -> None:
    """In threads of this process: what connects over the network and knows the secret speaks to our libvirt."""
    assert spec.network is not None
    secret = spec.paths.line_secret.read_bytes()

    def dial(near: socket.socket) -> socket.socket | None:
        near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        said = b""
        while len(said) < len(secret) and (data := near.recv(len(secret) - len(said))):
            said += data
        if not hmac.compare_digest(said, secret):
            return None
        far = socket.socket(socket.AF_UNIX)
        far.connect(str(host.socket))
        return far

    listener = socket.socket(socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((spec.network.addresses[host.host], PORT))
    _serve(listener, dial)


def start(spec: LabSpec, host: HostPaths) -> None:
    """On a host: a process with its ends of all lines, listening when this returns (forked: an own interpreter
    would cost each power-on a tenth of a second)."""
    ready, done = os.pipe()
    if os.fork():
        os.close(done)
        listens = os.read(ready, 1)
        os.close(ready)
        if not listens:
            raise OSError(f"{host.host}: the lines to the other hosts did not start")
        return
    try:
        os.close(ready)
        _serve_remote(spec, host)
        for other in spec.hosts:
            if other.name != host.host:
                serve_local(host.line / f"{other.name}.sock", spec, other.name)
        os.write(done, b"1")
        os.close(done)
        threading.Event().wait()
    except OSError:
        traceback.print_exc()
    finally:
        os._exit(1)  # never back into the first process's own loop
