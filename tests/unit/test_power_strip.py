"""The power of the demo's hosts: a container is off only where Docker itself says that nothing of it is left."""

from __future__ import annotations

import http.server
import importlib.machinery
import importlib.util
import json
import socket
import socketserver
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.compose.files import ROOT

pytestmark = pytest.mark.fast
STRIP = ROOT / "infra/docker/demo/powerstrip"
FENCE = ROOT / "infra/lab/fence_lab"


def container(status: str = "running", **more: Any) -> dict[str, Any]:
    """What Docker tells of one."""
    on = status in ("running", "paused", "restarting")
    state = {
        "Status": status,
        "Running": on,
        "Paused": status == "paused",
        "Restarting": status == "restarting",
        "Pid": 4711 if on else 0,
    }
    return {
        "Id": "c0ffee",
        "State": state,
        "Config": {"Labels": {"rekindle.demo.host": "h1"}},
        "HostConfig": {"PidMode": "", "RestartPolicy": {"Name": "no"}},
        **more,
    }


class World:
    """A Docker with one container, `rekindle-h1`; what was asked of it in `acts`."""

    def __init__(self) -> None:
        self.container: dict[str, Any] | None = container()
        self.acts: list[str] = []
        self.obeys = True

    def act(self, path: str) -> int:
        self.acts.append(path)
        if self.obeys:
            self.container = container("exited" if "kill" in path else "running")
        return 204


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True


def serving(world: World) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def _say(self, status: int, body: bytes = b"") -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            known = self.path == "/containers/rekindle-h1/json" and world.container is not None
            self._say(200 if known else 404, json.dumps(world.container).encode() if known else b"{}")

        def do_POST(self) -> None:
            self._say(world.act(self.path))

        def log_message(self, *_: Any) -> None:
            pass

        def address_string(self) -> str:
            return "unix"

    return Handler


@pytest.fixture
def strip(tmp_path: Path) -> ModuleType:
    loader = importlib.machinery.SourceFileLoader("powerstrip", str(STRIP))
    spec = importlib.util.spec_from_loader("powerstrip", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    vars(module).update(DOCKER=str(tmp_path / "docker.sock"), GONE_S=0.3)
    return module


@pytest.fixture
def world(strip: ModuleType) -> Iterator[World]:
    world = World()
    with Server(strip.DOCKER, serving(world)) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield world
        server.shutdown()
        thread.join()


def ask(strip: ModuleType, do: str) -> dict[str, Any]:
    answer: dict[str, Any] = strip.answer("h1", "rekindle-h1", json.dumps({"do": do}).encode())
    return answer


@pytest.mark.parametrize(
    ("status", "power"),
    [
        ("running", "on"),
        ("paused", "on"),
        ("restarting", "on"),
        ("removing", "on"),
        ("exited", "off"),
        ("dead", "off"),
    ],
)
def test_what_is_in_between_is_on(strip: ModuleType, world: World, status: str, power: str) -> None:
    world.container = container(status)
    assert ask(strip, "status") == {"ok": True, "power": power}


def test_a_first_process_that_was_not_waited_for_is_on(strip: ModuleType, world: World) -> None:
    world.container = container("exited")
    world.container["State"]["Pid"] = 4711
    assert ask(strip, "status")["power"] == "on"


def test_off_is_said_after_docker_says_so_and_of_the_container_by_its_id(
    strip: ModuleType, world: World
) -> None:
    assert ask(strip, "off") == {"ok": True, "power": "off", "changed": True}
    assert world.acts == ["/containers/c0ffee/kill?signal=KILL"]
    assert ask(strip, "off")["changed"] is False
    assert len(world.acts) == 1
    assert ask(strip, "on") == {"ok": True, "power": "on", "changed": True}


def test_a_container_that_does_not_end_is_not_said_to_be_off(strip: ModuleType, world: World) -> None:
    world.obeys = False
    answer = ask(strip, "off")
    assert answer["ok"] is False
    assert "not off" in answer["error"]


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (None, "404"),
        (
            container("exited", HostConfig={"PidMode": "host", "RestartPolicy": {"Name": "no"}}),
            "PID namespace",
        ),
        (
            container("exited", HostConfig={"PidMode": "", "RestartPolicy": {"Name": "always"}}),
            "start it again",
        ),
        (container("exited", Config={"Labels": {"rekindle.demo.host": "h2"}}), "label"),
        (container("exited", Config={"Labels": {}}), "label"),
    ],
)
def test_a_container_whose_end_would_prove_nothing_has_no_power_to_tell(
    strip: ModuleType, world: World, found: dict[str, Any] | None, reason: str
) -> None:
    world.container = found
    for do in ("status", "off", "on"):
        answer = ask(strip, do)
        assert answer["ok"] is False
        assert reason in answer["error"]
    assert world.acts == []


def test_no_docker_is_no_power_off(strip: ModuleType) -> None:
    assert "does not answer" in ask(strip, "status")["error"]


def test_what_is_no_request_is_refused(strip: ModuleType, world: World) -> None:
    for line in (b"", b"off\n", b"[]", b'{"do": "reboot"}'):
        assert strip.answer("h1", "rekindle-h1", line)["ok"] is False
    assert world.acts == []


def test_the_fence_agent_of_the_lab_speaks_to_it(strip: ModuleType, world: World, tmp_path: Path) -> None:
    vars(strip)["PLACE"] = str(tmp_path)
    threading.Thread(target=strip.listen, args=("h1", "rekindle-h1"), daemon=True).start()

    def fence(action: str) -> int:
        lines = f"action={action}\nsocket={tmp_path}/h1.sock\n"
        done = subprocess.run([str(FENCE)], input=lines, text=True, capture_output=True, check=False)
        return done.returncode

    until_there(tmp_path / "h1.sock")
    assert fence("status") == 0
    assert fence("off") == 0
    assert fence("status") == 2
    world.container = None
    assert fence("status") == 1


def until_there(path: Path) -> None:
    """Until somebody listens there."""
    while True:
        with socket.socket(socket.AF_UNIX) as trying:
            if trying.connect_ex(str(path)) == 0:
                return
