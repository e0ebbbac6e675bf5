"""docker-compose.yml and what lies over it, run by a real Docker Engine: `make compose-test`."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from libs.access.accounts import POOL_ACCOUNT, SYSTEM_ACCOUNT, account_of
from libs.access.rights import NOTICES, agent_user
from services.cli.supervisor import SERVICES
from tests.compose import engine as engines
from tests.compose import onlookers
from tests.compose.engine import DATA, Engine, NoDockerError, compose, running
from tests.compose.seeing import asked, healthy, inside, inspect, logs, of_server, said, until

WITHOUT = "" if os.environ.get("REKINDLE_COMPOSE") else "it takes minutes: run `make compose-test`"
if not WITHOUT and not engines.has_compose():
    WITHOUT = "Docker cannot run here: there is no command `docker compose`"
pytestmark = [pytest.mark.timeout(1800), pytest.mark.skipif(bool(WITHOUT), reason=WITHOUT)]
ADDRESSES = ("198.18.77.1", "198.18.77.2", "198.18.77.3")
HOSTS = ("h1", "h2", "h3")
VMS = {"vm1", "vm2", "vm3", "vm4"}
UP_S, FAILOVER_S, LEADER_S = 120.0, 60.0, 40.0


@pytest.fixture(scope="module")
def built() -> Path:
    """A copy of the repository, and its images made from it. Skips where Docker cannot run."""
    reason = engines.reasons_against()
    if reason:
        pytest.skip(f"Docker cannot run here: {reason}")
    place = DATA / "copy"
    shutil.rmtree(place, ignore_errors=True)
    engines.copy_of_the_repository(place)
    try:
        with running(apart=False) as engine:
            engines.build(engine, place)
    except NoDockerError as error:
        pytest.skip(str(error))
    return place


@pytest.fixture
def engine(built: Path) -> Iterator[Engine]:
    with running(apart=True, addresses=ADDRESSES) as engine:
        try:
            yield engine
        finally:
            left = engine.docker("ps", "-aq").split()
            if left:
                engine.docker("rm", "-f", *left)
            engine.docker("volume", "prune", "-f")


@pytest.fixture
def place(built: Path, tmp_path: Path) -> Path:
    return engines.copy_of_the_repository(tmp_path / "plane")


@pytest.mark.parametrize("form", [[], ["demo"], ["cluster", "m1=10.0.0.1", "m2=10.0.0.2", "m3=10.0.0.3"]])
def test_compose_itself_takes_every_form(tmp_path: Path, form: list[str]) -> None:
    """By its own schema and its own reading of variables; no engine is asked."""
    place = engines.copy_of_the_repository(tmp_path / "plane")
    (place / "pool.yaml").write_text(POOL)
    engines.init(place, *form)
    if form[:1] == ["cluster"]:
        shutil.copytree(place / "nodes/m2", place, dirs_exist_ok=True)
    said = engines.run("docker", "compose", "--profile", "*", "config", "--format", "json", cwd=place)
    found = json.loads(said)["services"]
    assert {*SERVICES, "nats", "heartbeat", "cli"} <= set(found)
    for name in SERVICES:
        assert found[name]["read_only"]
        assert found[name]["image"] == "rekindle:local"
        assert found[name]["command"] == ["service", name]


def runs_on(engine: Engine) -> dict[str, list[str]]:
    """By VM the hosts whose libvirt says that it runs there."""
    found: dict[str, list[str]] = {}
    for host in HOSTS:
        for vm in asked(engine, f"rekindle-{host}", "virsh", "-q", "list", "--name").split():
            found.setdefault(vm, []).append(host)
    return found


def up(engine: Engine, place: Path, project: str = "rekindle") -> None:
    try:
        compose(
            engine, place, "-p", project, "up", "-d", "--wait", "--wait-timeout", "150", timeout=UP_S + 60
        )
    except AssertionError as error:
        raise AssertionError(f"{error}\n{logs(engine)}") from None


def told(engine: Engine, place: Path, *words: str) -> Any:
    """A command of the operator's, in the container of the executor."""
    return json.loads(compose(engine, place, "run", "--rm", "-T", "cli", *words, "--json"))


def check_rights(engine: Engine) -> None:
    """As Docker runs them, not as the file has it."""
    for service in ("nats", *SERVICES):
        name = f"rekindle-{service}-1"
        found = inspect(engine, name)
        assert found["Config"]["User"] == "7400:7400"
        assert found["HostConfig"]["ReadonlyRootfs"]
        assert not found["HostConfig"]["Privileged"]
        status = asked(engine, name, "cat", "/proc/self/status")
        rights = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
        assert rights["CapEff"] == rights["CapBnd"] == "0" * 16
        assert rights["NoNewPrivs"] == "1"
        assert asked(engine, name, "touch", "/opt/x") == "" == asked(engine, name, "ls", "/opt/x")
    for host in HOSTS:
        assert not inspect(engine, f"rekindle-{host}")["HostConfig"]["Privileged"]


def check_bus(engine: Engine, place: Path) -> None:
    """Each container comes to the bus over TLS, by the key that is its own and the only one that it has; and the server
    gives a host's agent no more than that host."""
    users = onlookers.users_of(place / "secrets/keys")
    accounts = {agent_user(host): account_of(host) for host in HOSTS} | {NOTICES: SYSTEM_ACCOUNT}
    said = of_server(engine, "rekindle-nats-1", onlookers.CONNECTIONS)
    found = onlookers.by_user(said, users)
    assert set(found) == {*SERVICES, *accounts}, said
    for user, connections in found.items():
        for one in connections:
            assert one.get("tls_version", "").startswith("1."), (user, one)
            assert one["account"] == accounts.get(user, POOL_ACCOUNT), (user, one)
    for service in SERVICES:
        own = {"bus_url", f"{service}_key"} | ({"system_key"} if service == "detector" else set())
        assert set(asked(engine, f"rekindle-{service}-1", "ls", "/run/secrets").split()) == own
    for host in HOSTS:
        assert set(asked(engine, f"rekindle-{host}", "ls", "/run/secrets").split()) == {
            "bus_url",
            f"{host}_key",
        }
    others = [f"rekindle.demo.{topic}.h2" for topic in ("heartbeat", "inventory", "goodbye")]
    others += ["rekindle.demo.event.host.failed.h2", "$KV.rekindle_demo_leases.vm3"]
    refused = json.loads(inside(engine, "rekindle-h1", onlookers.ROGUE, "/run/secrets/h1_key", *others))
    assert len(refused) == len(others)
    assert all("permissions violation" in one for one in refused), refused
    told = json.loads(inside(engine, "rekindle-h1", onlookers.STRANGER))
    assert told["tls_required"] is True
    assert "pong" not in told["in the clear"], told
    assert "authorization violation" in told["without a key"], told


def check_renewal(engine: Engine, place: Path) -> None:
    """Another certificate for the bus, as docs/DEPLOYING.md has it: shown to who comes, and nobody's connection ends."""

    def shown() -> str:
        return inside(engine, "rekindle-h2", onlookers.SHOWN)

    def connected() -> set[int]:
        said = of_server(engine, "rekindle-nats-1", onlookers.CONNECTIONS)
        return {one["cid"] for one in json.loads(said)["connections"]}

    before, held = shown(), connected()
    authority = place / "secrets/authority"
    engines.run(engines.COMMAND, "pki", "renew", "nats", "--dir", str(authority))
    shutil.copy(authority / "nats.pem", place / "secrets/tls/nats.pem")
    shutil.move(authority / "nats.key", place / "secrets/tls/nats.key")
    engines.init(place, "demo", engine=engine)
    compose(engine, place, "kill", "-s", "HUP", "nats")
    until(lambda: shown() != before, 20, "who comes is shown the new certificate")
    assert held <= connected()


def test_a_host_of_the_demo_is_killed_and_its_vms_run_on_the_others(engine: Engine, place: Path) -> None:
    engines.init(place, "demo", engine=engine)
    up(engine, place)
    for service in ("nats", *SERVICES):
        assert healthy(engine, f"rekindle-{service}-1")
    check_rights(engine)
    check_bus(engine, place)
    until(lambda: set(runs_on(engine)) == VMS, 60, "four VMs run")
    assert runs_on(engine)["vm1"] == runs_on(engine)["vm2"] == ["h1"]

    def protected() -> bool:
        rows = told(engine, place, "vms")["vms"]
        return {row["vm"] for row in rows if row.get("state") == "running"} >= VMS

    try:
        until(protected, 60, "the plane knows four running VMs")
        check_renewal(engine, place)
        # a service that dies is back by Docker's word alone
        pid = inspect(engine, "rekindle-executor-1")["State"]["Pid"]
        os.kill(pid, signal.SIGKILL)
        until(lambda: inspect(engine, "rekindle-executor-1")["State"]["Pid"] not in (0, pid), 20, "restart")
        until(lambda: healthy(engine, "rekindle-executor-1"), 60, "the executor is healthy again")

        engine.docker("kill", "rekindle-h1")
        took = until(
            lambda: {"vm1", "vm2"} <= set(runs_on(engine)), FAILOVER_S, "the VMs of h1 run on h2 and h3"
        )
    except AssertionError as error:
        raise AssertionError(f"{error}\n{logs(engine)}") from None
    where = runs_on(engine)
    assert set(where) == VMS
    assert all(len(hosts) == 1 for hosts in where.values()), where
    assert not {hosts[0] for hosts in where.values()} & {"h1"}
    print(f"\nkilled host: its VMs ran again after {took:.1f} s")  # noqa: T201

    def done() -> bool:
        return bool(told(engine, place, "failovers")["failovers"])

    until(done, 30, "the failover is told")
    # back, it is another boot; what it ran runs elsewhere, and stays there
    engine.docker("start", "rekindle-h1")
    until(lambda: healthy(engine, "rekindle-h1"), 90, "h1 is back")

    def joined() -> bool:
        rows = {row["host"]: row["state"] for row in told(engine, place, "hosts")["hosts"]}
        return bool(rows["h1"] == "healthy")

    until(joined, 60, "h1 is a host of the pool again")
    assert all(len(hosts) == 1 for hosts in runs_on(engine).values()), runs_on(engine)
    compose(engine, place, "down", "-v", "--timeout", "10")
    assert engine.docker("ps", "-aq").split() == []
    assert engine.docker("volume", "ls", "-q").split() == []


INSTALLING = """\
set -eu
groupadd --system libvirt
for program in systemctl udevadm; do
    printf '#!/bin/sh\\necho "$0 $*" >>/tmp/told\\n' >/usr/local/bin/$program
    chmod +x /usr/local/bin/$program
done
mkdir /etc/libvirt && umask 077 && echo 'lock_manager = "lockd"' >/etc/libvirt/qemu.conf && umask 022
mkdir /tmp/for_k1 && echo tls://127.0.0.1:1 >/tmp/for_k1/bus_url
cp /src/secrets/keys/agent-k1.nk /tmp/for_k1/bus_key && cp /src/secrets/ca/ca.pem /tmp/for_k1/
/src/infra/systemd/install.sh --pool /src/pool.yaml --bus-dir /tmp/for_k1 --host k1
/src/infra/systemd/install.sh --pool /src/pool.yaml --bus-dir /tmp/for_k1 --host k1
cat /tmp/told
stat -c '%n %U:%G %a' /etc/rekindle/bus_key
id rekindle
stat -c '%n %U %a' /srv/shared/.rekindle-three
cd /
as() { setpriv --reuid rekindle --regid rekindle --init-groups --no-new-privs --bounding-set=-all "$@"; }
as cat /etc/libvirt/qemu.conf
export $(sed -n 's/^Environment=\\(.*BUS__URL_FILE.*\\)/\\1/p' /etc/systemd/system/rekindle-heartbeat.service.d/10-host.conf)
env | grep ^REKINDLE_BUS
as timeout --preserve-status 4 rekindle service heartbeat --config /etc/rekindle/pool.yaml --host k1 2>&1
"""


def test_the_agent_is_installed_on_a_bare_debian(built: Path) -> None:
    """All but the service manager, which is a stand-in that only notes what it is told; then the agent runs as its user."""
    with running(apart=False) as engine:
        (built / "pool.yaml").write_text(POOL + "datastores: [{name: shared, path: /srv/shared}]\n")
        engines.init(built)
        mount = ["-v", f"{built}:/src:ro"]
        said = engine.docker(
            "run", "--rm", "--network", "host", *mount, engines.BASE, "sh", "-c", INSTALLING, timeout=500
        )
    assert "systemctl enable -q rekindle-heartbeat.service" in said
    assert "systemctl restart rekindle-heartbeat.service" in said
    assert "uid=7400(rekindle)" in said
    assert "(libvirt)" in said
    assert "/srv/shared/.rekindle-three rekindle 755" in said
    assert 'lock_manager = "lockd"' in said  # which nobody but root and the agent may read
    assert "/etc/rekindle/bus_key root:rekindle 640" in said
    for setting in (
        "URL_FILE=/etc/rekindle/bus_url",
        "KEY_FILE=/etc/rekindle/bus_key",
        "CA_FILE=/etc/rekindle/ca.pem",
    ):
        assert f"REKINDLE_BUS__{setting}" in said
    assert "Connect call failed" in said  # it runs, and asks for its bus
    assert "service stopped before it began" in said


POOL = """\
pool: three
hosts:
  - {name: k1, uri: "test:///default", agent: true}
  - {name: k2, uri: "test:///default", agent: true}
"""


def check_servers(engine: Engine, place: Path, nodes: list[str]) -> None:
    """Between the servers and to them there is TLS alone, by who knows the other's certificate; and each can be told to read
    its configuration anew."""
    users, found = onlookers.users_of(place / "secrets/keys"), set()
    for node in nodes:
        itself = json.loads(of_server(engine, f"{node}-nats-1", onlookers.ITSELF))
        assert (itself["server_name"], itself["tls_required"]) == (node, True)
        assert (itself["cluster"]["tls_required"], itself["cluster"]["tls_verify"]) == (True, True)
        connected = onlookers.by_user(of_server(engine, f"{node}-nats-1", onlookers.CONNECTIONS), users)
        assert all(one.get("tls_version") for connections in connected.values() for one in connections)
        found |= set(connected)
        engine.docker("kill", "-s", "HUP", f"{node}-nats-1")
    for node in nodes:
        until(
            lambda node=node: "Reloaded server configuration" in said(engine, f"{node}-nats-1"),  # type: ignore[misc]
            20,
            f"the server of {node} reads its configuration anew",
        )
    assert found == {*SERVICES, NOTICES}


def test_three_nodes_are_one_plane_and_outlive_the_loss_of_one(
    engine: Engine, place: Path, tmp_path: Path
) -> None:
    nodes = dict(zip(("m1", "m2", "m3"), ADDRESSES, strict=True))
    (place / "pool.yaml").write_text(POOL)
    engines.init(place, "cluster", *(f"{n}={a}" for n, a in nodes.items()), engine=engine)
    there = {}
    for name in nodes:
        there[name] = engines.copy_of_the_repository(tmp_path / name)
        shutil.copytree(place / "nodes" / name, there[name], dirs_exist_ok=True)
        engines.run("chown", "-R", "7400:7400", str(there[name] / "secrets"))
        (there[name] / "pool.yaml").write_text(POOL)
        compose(engine, there[name], "-p", name, "up", "-d")

    def leading(role: str) -> list[str]:
        """Nodes whose replica says that it leads."""
        url = f"http://127.0.0.1:{ {'detector': 7411, 'fencer': 7412, 'placement': 7413}[role] }/healthz"
        said = {name: asked(engine, f"{name}-{role}-1", "healthy", url) for name in nodes}
        return [name for name, text in said.items() if text and json.loads(text)["leading"]]

    def all_healthy(names: list[str]) -> bool:
        return all(
            healthy(engine, f"{name}-{service}-1") for name in names for service in ("nats", *SERVICES)
        )

    try:
        until(lambda: all_healthy(list(nodes)), UP_S, "three nodes are healthy")
        for role in ("detector", "fencer", "placement"):
            until(lambda role=role: len(leading(role)) == 1, LEADER_S, f"one {role} leads")  # type: ignore[misc]
        check_servers(engine, place, list(nodes))
        first = leading("detector")[0]
        left = [name for name in nodes if name != first]
        gone = engine.docker("ps", "-q", "--filter", f"name=^{first}-").split()
        engine.docker("kill", *gone)
        took = until(
            lambda: leading("detector") != [] and first not in leading("detector"), LEADER_S, "another leads"
        )
        until(lambda: all_healthy(left), LEADER_S, "two nodes are healthy")
        print(f"\nkilled node: another detector led after {took:.1f} s")  # noqa: T201
        compose(engine, there[first], "-p", first, "start")
        until(lambda: all_healthy(list(nodes)), UP_S, "three nodes are healthy again")
        assert len(leading("detector")) == 1
    except AssertionError as error:
        raise AssertionError(f"{error}\n{logs(engine)}") from None
    for name in nodes:
        compose(engine, there[name], "-p", name, "down", "-v", "--timeout", "5")
