"""The relays between the nodes of a management plane leave nothing behind."""

from __future__ import annotations

import socket

import pytest

from infra.lab.relays import Relay, RelayThread
from libs.jetstream.server import free_port

pytestmark = pytest.mark.fast


def _refused(port: int) -> bool:
    with socket.socket() as asking:
        return asking.connect_ex(("127.0.0.1", port)) != 0


def test_stopped_relays_have_closed_what_they_listened_on_and_what_went_over_them() -> None:
    with socket.create_server(("127.0.0.1", 0)) as far:
        relays = [Relay(free_port(), far.getsockname()[1]) for _ in range(3)]
        thread = RelayThread()
        thread.start(relays)
        with socket.create_connection(("127.0.0.1", relays[0].port), timeout=10) as near:
            near.sendall(b"hello")
            there, _ = far.accept()
            with there:
                there.settimeout(10)
                assert there.recv(5) == b"hello"
                thread.stop()
                assert there.recv(5) == b"", "its end is told"
        assert all(_refused(relay.port) for relay in relays), "its sockets are closed once it has stopped"
