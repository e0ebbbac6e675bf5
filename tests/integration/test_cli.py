"""`rekindle` as a person runs it: what it says, on which channel, with which exit status, and what it leaves."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from libs import readmodel
from libs.config.settings import load_settings
from libs.config.yamlfile import BadInputError
from libs.core.ports import UnavailableError

REPOSITORY = Path(__file__).parents[2]
GOOD = "pool: p\ndata_dir: {data}\nhosts:\n  - {{name: h1, uri: test:///default}}\n"


def environment(**more: str) -> dict[str, str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("REKINDLE_")}
    return {**clean, **more}


def rekindle(*arguments: str, timeout_s: float = 40.0, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "services.cli", *arguments],
        cwd=REPOSITORY,
        env=environment(**more),
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


@pytest.fixture
def pool(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        path = tmp_path / "pool.yaml"
        path.write_text(text.format(data=tmp_path / "data"))
        return path

    return write


# -- bad input: exit 2, file, field and reason on standard error, nothing on standard output

BAD = {
    "an unknown field": ("pools: x\n" + GOOD, ["pool.yaml", "line 1", "pools", "did you mean pool?"]),
    "a wrong unit": (
        GOOD + "detection: {{suspect_after_s: 2s}}\n",
        ["pool.yaml", "line 5", "detection.suspect_after_s", "'2s'"],
    ),
    "two hosts of one name": (
        GOOD + "  - {{name: h1, uri: test:///default}}\n",
        ["pool.yaml", "hosts", "two hosts are called h1"],
    ),
    "no libvirt URI": (GOOD.replace("test:///default", "h1.lan"), ["line 4", "hosts.0.uri", "no libvirt URI"]),
    "no YAML": ("pool: [\n", ["pool.yaml", "line"]),
    "a fence agent that is not installed": (
        GOOD.replace("default}}", "default, fencing: [{{agent: fence_nothing}}]}}"),
        ["hosts.h1.fencing", "fence_nothing is not installed"],
    ),
    "a secret that is not there": (
        GOOD.replace(
            "default}}", "default, fencing: [{{agent: /bin/true, secrets: {{password: {{env: NOT_SET_1}}}}}}]}}"
        ),
        ["hosts.h1.fencing", "environment variable NOT_SET_1 is not set"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_to_up_is_said_and_nothing_is_started(
    pool: Callable[[str], Path], tmp_path: Path, case: str
) -> None:
    text, words = BAD[case]
    done = rekindle("up", "--config", str(pool(text)))
    assert done.returncode == 2
    assert done.stdout == ""
    for word in words:
        assert word in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "data" / "nats").exists()


@pytest.mark.parametrize(
    ("made", "directory"), [("", "file/logs"), ("", "file"), ("logs/fencer.log", "logs")]
)
def test_a_log_directory_that_cannot_be_used_is_said_and_nothing_is_started(
    pool: Callable[[str], Path], tmp_path: Path, made: str, directory: str
) -> None:
    (tmp_path / "file").write_text("no directory")
    if made:
        (tmp_path / made).mkdir(parents=True)
    done = rekindle("up", "--config", str(pool(GOOD)), "--log-dir", str(tmp_path / directory))
    assert (done.returncode, done.stdout) == (2, "")
    assert f"--log-dir: {tmp_path / directory}" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "data" / "nats").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("hosts", "--config", "/no/such/pool.yaml"), ["/no/such/pool.yaml", "cannot be read"]),
        (("service", "cook", "--config", "/x"), ["no service is called cook", "detector"]),
        (("service", "fencer", "--host", "h1", "--config", "/x"), ["--host", "only heartbeat"]),
        (("explode",), ["explode"]),
        (("hosts", "--fast"), ["--fast"]),
        (("events", "--after", "-1"), ["--after"]),
        (("hosts",), ["no pool file"]),
    ],
)
def test_a_wrong_command_is_bad_input_too(arguments: tuple[str, ...], words: list[str]) -> None:
    if Path("/etc/rekindle/pool.yaml").exists():
        pytest.skip("this machine has a pool file of its own")
    done = rekindle(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert all(word in done.stderr for word in words), done.stderr
    assert "Traceback" not in done.stderr


def test_a_question_while_no_plane_runs_says_where_it_looked(pool: Callable[[str], Path]) -> None:
    done = rekindle("hosts", "--json", "--config", str(pool(GOOD)))
    assert done.returncode == 2
    assert done.stdout == ""
    assert "nats/url" in done.stderr
    assert "rekindle up" in done.stderr


TELLS = """\
#!/bin/sh
[ "$2" = metadata ] && {
  echo '<resource-agent><parameters><parameter name="ip" required="0"/><parameter name="port"/></parameters></resource-agent>'
  exit 0
}
"""
"""An agent that tells of its parameters, and is to go on."""


def test_check_names_the_field_of_what_does_not_answer(pool: Callable[[str], Path], tmp_path: Path) -> None:
    broken = tmp_path / "fence_broken"
    broken.write_text(f"{TELLS}echo 'no route to BMC' >&2\nexit 1\n")
    broken.chmod(0o755)
    works = tmp_path / "fence_works"
    works.write_text(f"{TELLS}cat >/dev/null\necho 'Status: ON'\n")
    works.chmod(0o755)
    text = (
        "data_dir: {data}\nhosts:\n"
        f"  - name: h1\n    uri: test:///default\n    fencing: [{{{{agent: {broken}}}}}]\n"
        f"  - name: h2\n    uri: qemu+tcp://127.0.0.1:1/system\n    fencing: [{{{{agent: {works}}}}}]\n"
    )
    path = pool(text)
    done = rekindle("check", "--config", str(path))
    assert done.returncode == 2
    assert done.stdout == ""
    lines = done.stderr.strip().splitlines()
    assert any(
        line.startswith(f"{path}: line 5: hosts.0.fencing: h1: ") and "no route to BMC" in line
        for line in lines
    )
    assert any(
        line.startswith(f"{path}: line 7: hosts.1.uri: h2: ") and "does not answer" in line for line in lines
    )
    assert len(lines) == 2
    as_json = json.loads(rekindle("check", "--json", "--config", str(path)).stdout)
    assert (as_json["schema"], as_json["ok"], len(as_json["findings"])) == ("rekindle.check.v1", False, 2)
    path.write_text(f"hosts:\n  - {{name: h1, uri: 'test:///default', fencing: [{{agent: {works}}}]}}\n")
    good = rekindle("check", "--config", str(path))
    assert (good.returncode, good.stderr) == (0, "")


MISTYPED = (
    "data_dir: {data}\nhosts:\n  - name: h1\n    uri: test:///default\n    fencing:\n"
    "      - agent: AGENT\n        options:\n          ipp: 10.0.0.1\n"
)


@pytest.mark.parametrize("command", [("check",), ("up",)])
def test_an_option_that_the_agent_does_not_know_is_refused_before_anything_is_started(
    pool: Callable[[str], Path], tmp_path: Path, command: tuple[str, ...]
) -> None:
    agent = tmp_path / "fence_works"
    agent.write_text(f"{TELLS}cat >/dev/null\necho 'Status: ON'\n")
    agent.chmod(0o755)
    path = pool(MISTYPED.replace("AGENT", str(agent)))
    done = rekindle(*command, "--config", str(path))
    field = "line 8: hosts.0.fencing.0.options.ipp: h1: fence_works has no such option (did you mean ip?)"
    assert (done.returncode, done.stdout) == (2, "")
    assert f"{path}: {field}" in done.stderr
    assert "10.0.0.1" not in done.stderr
    assert not (tmp_path / "data" / "nats").exists()


def test_check_says_of_an_agent_without_metadata_that_its_options_cannot_be_checked(
    pool: Callable[[str], Path], tmp_path: Path
) -> None:
    mute = tmp_path / "fence_mute"
    mute.write_text("#!/bin/sh\ncat >/dev/null\necho 'Status: ON'\n")
    mute.chmod(0o755)
    path = pool(MISTYPED.replace("AGENT", str(mute)))
    done = rekindle("check", "--config", str(path))
    assert done.returncode == 2
    assert f"{path}: line 6: hosts.0.fencing.0.agent: h1: the options of fence_mute cannot be" in done.stderr


# -- up


@dataclass
class Plane:
    """A running `rekindle up`."""

    process: subprocess.Popen[bytes]
    config: Path
    data: Path
    log: Path

    def ask(self, *arguments: str) -> Any:
        done = rekindle(*arguments, "--json", "--config", str(self.config))
        return json.loads(done.stdout) if done.stdout else None

    def states(self) -> dict[str, str]:
        """As `rekindle hosts` reads them, without a new process for each look; empty where no plane answers."""

        async def read() -> dict[str, str]:
            async with readmodel.reader(load_settings(self.config)) as reader:
                return {host["host"]: host["state"] for host in await reader.hosts()}

        try:
            return asyncio.run(read())
        except (BadInputError, UnavailableError, OSError):
            return {}

    def pids(self) -> dict[str, int]:
        """Every process of ours, by its name; the server included."""
        found = {path.stem: int(path.read_text()) for path in (self.data / "run").glob("*.pid")}
        config = str(self.data / "nats" / "nats.conf")
        for path in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if path.name.isdigit() and config in (path / "cmdline").read_text().split("\0"):
                    found["nats-server"] = int(path.name)
        return found

    def wait(self, condition: Callable[[], bool], what: str, within_s: float = 30.0) -> None:
        until = time.monotonic() + within_s
        while not condition():
            log = self.log.read_text()[-3000:]
            assert self.process.poll() is None, f"it ended: {log}"
            assert time.monotonic() < until, f"not within {within_s} s: {what}\n{log}"
            time.sleep(0.2)

    def stop(self, number: signal.Signals = signal.SIGINT) -> int:
        self.process.send_signal(number)
        return self.process.wait(30)


def exists(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def start(config: Path, data: Path) -> Plane:
    log = config.parent / "up.log"
    with log.open("ab") as sink:
        process = subprocess.Popen(
            [sys.executable, "-m", "services.cli", "up", "--config", str(config)],
            cwd=REPOSITORY,
            env=environment(),
            stdout=sink,
            stderr=sink,
            start_new_session=True,
        )
    return Plane(process, config, data, log)


def standing(config: Path, data: Path) -> Iterator[Plane]:
    """For a fixture: a plane that holds h1 healthy, until the test is over; nothing of it is left then."""
    one = start(config, data)
    try:
        one.wait(lambda: one.states().get("h1") == "healthy", "h1 is healthy")
        yield one
    finally:
        pids = list(one.pids().values())
        if one.process.poll() is None:
            one.stop(signal.SIGTERM)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@pytest.fixture
def plane(tmp_path: Path) -> Iterator[Plane]:
    config, data = tmp_path / "pool.yaml", tmp_path / "data"
    config.write_text(
        f"pool: p\ndata_dir: {data}\nhosts:\n"
        "  - {name: h1, uri: test:///default}\n"
        "  - {name: h2, uri: qemu+tcp://127.0.0.1:1/system}\n"
        "detection: {quiet_after_start_s: 2}\n"
        # one host and none to spare would be told after a while
        "placement: {failures_to_tolerate: 0}\n"
    )
    one = start(config, data)
    yield one
    left = list(one.pids().values())
    if one.process.poll() is None:
        one.process.kill()
        one.process.wait()
    for pid in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def test_up_runs_the_plane_and_ctrl_c_leaves_nothing(plane: Plane) -> None:
    plane.wait(lambda: plane.states().get("h1") == "healthy", "h1 is healthy")
    vms = plane.ask("vms")["vms"]
    assert [(vm["vm"], vm["host"], vm["state"]) for vm in vms] == [("test", "h1", "running")]
    plane.wait(lambda: plane.ask("vms")["vms"][0]["token"] == 1, "what runs has a lease")
    plane.wait(lambda: not plane.ask("status")["roles_vacant"], "every role is held")

    # a host that was never heard of: unknown, long after the quiet time, and nothing is done about it
    time.sleep(3.0)
    shown = plane.ask("hosts")["hosts"]
    assert {host["host"]: host["state"] for host in shown} == {"h1": "healthy", "h2": "unknown"}
    status = rekindle("status", "--json", "--config", str(plane.config))
    assert status.returncode == 1
    assert json.loads(status.stdout)["hosts_not_healthy"] == ["h2"]
    told = rekindle("events", "--json", "--config", str(plane.config)).stdout.splitlines()
    assert [(json.loads(line)["data"]["kind"], json.loads(line)["subject"]) for line in told] == [
        ("host.joined", "h1")
    ]
    failovers = plane.ask("failovers")
    assert failovers["failovers"] == []
    missing = rekindle("failovers", "show", "h9-1", "--config", str(plane.config))
    assert (missing.returncode, missing.stdout) == (2, "")
    assert "no failover is called h9-1" in missing.stderr

    second = rekindle("up", "--config", str(plane.config))
    assert (second.returncode, second.stdout) == (2, "")
    assert "in use by another `rekindle up`" in second.stderr
    assert plane.states()["h1"] == "healthy", "the first one does not suffer from it"

    pids = plane.pids()
    services = {"alerting", "executor", "placement", "fencer", "detector", "heartbeat", "nats-server"}
    assert set(pids) == services
    assert plane.stop() == 0
    assert {name for name, pid in pids.items() if exists(pid)} == set()
    assert "Traceback" not in plane.log.read_text()
    assert list((plane.data / "run").glob("*.pid")) == []


def test_a_service_that_is_killed_is_started_again_and_a_killed_up_takes_all_with_it(plane: Plane) -> None:
    plane.wait(lambda: plane.states().get("h1") == "healthy", "h1 is healthy")
    first = plane.pids()
    os.kill(first["fencer"], signal.SIGKILL)
    os.kill(first["nats-server"], signal.SIGKILL)

    def both_run_again() -> bool:
        now = plane.pids()  # one look: who finds no bus yet may end once more
        return {"fencer", "nats-server"} <= now.keys() and all(
            now[name] != first[name] for name in ("fencer", "nats-server")
        )

    plane.wait(both_run_again, "both run again")
    plane.wait(lambda: plane.states().get("h1") == "healthy", "h1 is healthy again")
    pids = plane.pids()
    plane.process.kill()
    plane.process.wait()
    until = time.monotonic() + 15
    while any(exists(pid) for pid in pids.values()):
        left = {name for name, pid in pids.items() if exists(pid)}
        assert time.monotonic() < until, f"left behind: {left}"
        time.sleep(0.1)
    again = start(plane.config, plane.data)
    try:
        again.wait(lambda: again.states().get("h1") == "healthy", "the next one comes up")
        kinds = rekindle("events", "--json", "--config", str(plane.config)).stdout
        assert "host.failed" not in kinds
        assert again.stop(signal.SIGTERM) == 0
    finally:
        if again.process.poll() is None:
            again.process.kill()
            again.process.wait()


def children(pid: int) -> dict[str, int]:
    found = {}
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        with contextlib.suppress(FileNotFoundError):
            found[Path(f"/proc/{child}/comm").read_text().strip()] = int(child)
    return found


def told_to_end(pid: int) -> bool:
    """A signal that ends it waits for a process that stands still."""
    (pending,) = (
        int(line.split()[1], 16)
        for line in Path(f"/proc/{pid}/status").read_text().splitlines()
        if line.startswith("ShdPnd:")
    )
    return any(pending >> (number - 1) & 1 for number in (signal.SIGTERM, signal.SIGINT))


def test_ctrl_c_while_the_bus_is_looked_at_is_obeyed_at_once(tmp_path: Path) -> None:
    config, data = tmp_path / "pool.yaml", tmp_path / "data"
    with socket.create_server(("127.0.0.1", 0)) as mute:  # it takes connections and says nothing
        url = f"nats://127.0.0.1:{mute.getsockname()[1]}"
        config.write_text(GOOD.format(data=data) + f"bus: {{url: '{url}'}}\n")
        one = start(config, data)
        try:
            mute.settimeout(30)
            mute.accept()[0].close()
            left = children(one.process.pid)
            one.process.send_signal(signal.SIGINT)
            assert one.process.wait(5) == 0
        finally:
            one.process.kill()
            one.process.wait()
    assert "stopped before it began" in one.log.read_text()
    assert "management plane runs" not in one.log.read_text()
    assert {name for name, pid in left.items() if exists(pid)} == set()


def test_ctrl_c_while_nats_begins_leaves_nothing(tmp_path: Path) -> None:
    config, data = tmp_path / "pool.yaml", tmp_path / "data"
    config.write_text(GOOD.format(data=data))
    one = start(config, data)
    try:
        until = time.monotonic() + 30
        while "nats-server" not in (left := children(one.process.pid)):
            assert time.monotonic() < until
            time.sleep(0.002)  # a poll up to a deadline
        os.kill(left["nats-server"], signal.SIGSTOP)  # so that its beginning lasts
        one.process.send_signal(signal.SIGINT)
        while not told_to_end(left["nats-server"]):
            assert time.monotonic() < until, "it was not told to end while it began"
            time.sleep(0.01)  # a poll up to a deadline
        os.kill(left["nats-server"], signal.SIGCONT)
        assert one.process.wait(15) == 0
    finally:
        one.process.kill()
        one.process.wait()
    assert "management plane runs" not in one.log.read_text()
    assert "Traceback" not in one.log.read_text()
    assert {name for name, pid in left.items() if exists(pid)} == set()


def test_a_service_that_can_be_kept_no_more_ends_the_plane_with_the_reason(plane: Plane) -> None:
    plane.wait(lambda: plane.states().get("h1") == "healthy", "h1 is healthy")
    pids = plane.pids()
    (plane.data / "run").rename(plane.data / "elsewhere")
    os.kill(pids["fencer"], signal.SIGKILL)
    assert plane.process.wait(30) == 1
    assert "fencer.pid" in plane.log.read_text()
    assert {name for name, pid in pids.items() if exists(pid)} == set()


def test_a_service_that_waits_for_a_bus_ends_when_it_is_told_to(tmp_path: Path) -> None:
    config = tmp_path / "pool.yaml"
    config.write_text(
        "pool: p\nbus: {url: 'nats://127.0.0.1:1'}\nhosts:\n  - {name: h1, uri: test:///default}\n"
    )
    command = [sys.executable, "-m", "services.cli", "service", "fencer", "--config", str(config)]
    with subprocess.Popen(
        command, cwd=REPOSITORY, env=environment(), stderr=subprocess.PIPE, text=True
    ) as one:
        assert one.stderr is not None
        try:
            while "waiting for the bus" not in one.stderr.readline():
                assert one.poll() is None, "it ended by itself"
            one.send_signal(signal.SIGTERM)
            assert one.wait(15) == 0
        finally:
            one.kill()


def test_an_agent_of_a_host_that_is_not_in_the_pool_does_not_wait_for_a_bus(tmp_path: Path) -> None:
    config = tmp_path / "pool.yaml"
    config.write_text(
        "pool: p\nbus: {url: 'nats://127.0.0.1:1'}\nhosts:\n  - {name: h1, uri: test:///default}\n"
    )
    done = rekindle("service", "heartbeat", "--host", "h9", "--config", str(config))
    assert done.returncode == 2
    assert "no host is called h9; there are h1" in done.stdout + done.stderr
    assert "waiting for the bus" not in done.stdout + done.stderr


def test_a_service_whose_supervisor_has_gone_does_not_begin(tmp_path: Path) -> None:
    config = tmp_path / "pool.yaml"
    config.write_text(GOOD.format(data=tmp_path / "data"))
    done = rekindle("service", "fencer", "--config", str(config), REKINDLE_SUPERVISED="1")
    assert done.returncode == 1
    assert "its supervisor is gone" in done.stdout + done.stderr


def test_services_are_forks_with_names_and_outlive_the_end_of_what_forks_them(plane: Plane) -> None:
    plane.wait(lambda: plane.states().get("h1") == "healthy", "h1 is healthy")
    first = plane.pids()
    assert Path(f"/proc/{first['fencer']}/comm").read_text() == "rk-fencer\n"
    parents = {
        pid: int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1]) for pid in first.values()
    }
    (nursery,) = {parents[pid] for name, pid in first.items() if name != "nats-server"}
    assert nursery != plane.process.pid
    os.kill(nursery, signal.SIGKILL)
    services = first.keys()
    plane.wait(
        lambda: (
            (now := plane.pids()).keys() == services
            and all(now[name] != first[name] for name in services - {"nats-server"})
        ),
        "every service runs again",
    )
    plane.wait(lambda: plane.states().get("h1") == "healthy", "h1 is healthy again")
    assert plane.stop() == 0
    assert "Traceback" not in plane.log.read_text()
