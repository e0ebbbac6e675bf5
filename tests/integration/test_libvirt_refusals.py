"""S14 on a real libvirtd: it stops, certificates expire, its socket is forbidden, the URI is wrong. Each time its VMs are
unknown: nobody hears that one stopped, none is started, none is destroyed. The VMs are libvirtd's own test driver's.

A libvirtd of our own, in directories of its own and under an unprivileged user, listening with TLS.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from libs.config.entries import HostEntry
from libs.core.clock import SystemClock
from libs.core.ports import UnavailableError
from libs.events.signals import Heartbeat
from libs.jetstream.server import free_port
from libs.model import Answer, VmDefinition, VmPolicy, VmState
from libs.virt.host import LibvirtHost
from libs.virt.hosts import RUN_SHARE, LibvirtHosts
from services.heartbeat.act import Hands
from services.heartbeat.orders import PassGate, ReadAll
from tests.unit.made import boot
from tests.unit.world import Process, World
from tests.waiting import eventually

NOBODY = 65534
VALID, OVER = "20991231235959Z", "20200102000000Z"
CA = """[ca]
default_ca = lab
[lab]
database = {dir}/index
serial = {dir}/serial
new_certs_dir = {dir}
default_md = sha256
policy = anyone
unique_subject = no
copy_extensions = copy
[anyone]
commonName = supplied
"""
CONF = """listen_tls = 1
listen_tcp = 0
listen_addr = "127.0.0.1"
tls_port = "{port}"
key_file = "{dir}/{name}/clientkey.pem"
cert_file = "{dir}/{name}/clientcert.pem"
ca_file = "{dir}/{name}/cacert.pem"
tls_no_sanity_certificate = 1
auth_tls = "none"
"""
"""Without the check of its own certificate at the start: a server whose certificate expires goes on to run."""


def _openssl(*arguments: object) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True, timeout=30)


@dataclass
class Authority:
    """Makes certificates, as directories that libvirt takes as its `pkipath`."""

    dir: Path

    def __post_init__(self) -> None:
        (self.dir / "ca.conf").write_text(CA.format(dir=self.dir))
        (self.dir / "index").write_text("")
        (self.dir / "serial").write_text("01")
        key, cert = ("-keyout", self.dir / "ca.key"), ("-out", self.dir / "cacert.pem")
        _openssl("req", "-x509", *self._new(), *key, *cert, "-subj", "/CN=lab", "-days", 30)

    def _new(self) -> tuple[str, ...]:
        return ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")

    def certificate(self, name: str, until: str) -> Path:
        place = self.dir / name
        place.mkdir()
        request, key, cert = place / "request", place / "clientkey.pem", place / "clientcert.pem"
        says = (
            "subjectAltName=IP:127.0.0.1",
            "extendedKeyUsage=serverAuth,clientAuth",
            "keyUsage=digitalSignature,keyEncipherment",
        )
        extensions = [part for one in says for part in ("-addext", one)]
        _openssl("req", *self._new(), "-keyout", key, "-out", request, "-subj", f"/CN={name}", *extensions)
        signed = (
            "-config",
            self.dir / "ca.conf",
            "-cert",
            self.dir / "cacert.pem",
            "-keyfile",
            self.dir / "ca.key",
        )
        dates = ("-startdate", "20200101000000Z", "-enddate", until)
        _openssl("ca", "-batch", "-notext", *signed, *dates, "-in", request, "-out", cert)
        (place / "cacert.pem").write_bytes((self.dir / "cacert.pem").read_bytes())
        return place


@dataclass
class Daemon:
    """One libvirtd, and how it is reached."""

    authority: Authority
    port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def home(self) -> Path:
        return self.authority.dir / "home"

    @property
    def socket(self) -> Path:
        return self.home / "run" / "libvirt" / "libvirt-sock"

    def start(self, certificate: str = "server") -> None:
        places = {name: self.home / name for name in ("run", "config", "cache", "data")}
        for place in places.values():
            place.mkdir(parents=True, exist_ok=True)
        conf = self.authority.dir / "libvirtd.conf"
        conf.write_text(CONF.format(port=self.port, dir=self.authority.dir, name=certificate))
        user: dict[str, Any] = {}
        if os.geteuid() == 0:
            user = {"user": NOBODY, "group": NOBODY, "extra_groups": []}
            for path in (self.authority.dir, *self.authority.dir.rglob("*")):
                os.chown(path, NOBODY, NOBODY)
        env = {"PATH": os.environ["PATH"], "HOME": str(self.home)}
        env |= {
            f"XDG_{name.upper()}_{'DIR' if name == 'run' else 'HOME'}": str(at) for name, at in places.items()
        }
        env["XDG_RUNTIME_DIR"] = str(places["run"])
        with (self.authority.dir / "libvirtd.log").open("ab") as log:
            self.process = subprocess.Popen(
                ["libvirtd", "-f", str(conf), "--listen", "--pid-file", str(self.home / "pid")],
                env=env,
                stdout=log,
                stderr=log,
                **user,
            )

    def stop(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(timeout=20)
            self.process = None

    def uri(self, certificate: str = "client") -> str:
        return f"test+tls://127.0.0.1:{self.port}/default?pkipath={self.authority.dir / certificate}"

    async def ready(self, certificate: str = "client") -> LibvirtHost:
        """A connection to it, once it answers."""
        host = new_host(self.uri(certificate))

        async def up() -> bool:
            return (await host.probe(2.0))[0] is Answer.UP

        await eventually(up, "libvirtd answers", within_s=40.0, every_s=0.1)
        return host


def new_host(uri: str) -> LibvirtHost:
    return LibvirtHost("h1", uri, VmPolicy(), SystemClock().monotonic)


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    """In a directory that its own user can get to: pytest's are closed to others, and closed anew by each run."""
    place = Path(tempfile.mkdtemp(prefix="rk-libvirtd-"))
    place.chmod(0o755)
    authority = Authority(place)
    for name, until in (("server", VALID), ("client", VALID), ("over", OVER)):
        authority.certificate(name, until)
    one = Daemon(authority, free_port())
    yield one
    one.stop()
    shutil.rmtree(place)


async def nothing_is_known(host: LibvirtHost, says: str) -> None:
    """None of what is asked brings an empty answer or a stopped VM, and nothing is started or destroyed."""
    uuid = "6695eb01-f6a4-8304-79aa-97f2502e193f"
    copy = VmDefinition(uuid=uuid, name="test", xml="<domain/>", sha256="x")
    for ask in (host.reports, host.definitions, host.node):
        with pytest.raises(UnavailableError, match=says):
            await ask()
    with pytest.raises(UnavailableError, match=says):
        await host.report(uuid)
    with pytest.raises(UnavailableError, match=says):
        await host.destroy(uuid)
    with pytest.raises(UnavailableError, match=says):
        await host.start(copy, 7)
    await _the_agent_says_nothing(host)


async def _the_agent_says_nothing(host: LibvirtHost) -> None:
    """Its gate stays shut, and it reads nothing: what it said before stands, and grows old (`unread_s`)."""
    world = World()
    process = Process(world)
    nobody: Any = None  # no peer is asked
    hands = Hands(
        host,
        nobody,
        process,
        process,
        process,
        process,
        boot("h1"),
        boots_known=True,
        slots={},
        probes=nobody,
        probe_s=1.0,
        clock=SystemClock(),
    )
    with pytest.raises(UnavailableError):
        await hands.perform(PassGate(key="gate/0", deadline_s=5.0, at=boot("h1"), condemn=True))
    with pytest.raises(UnavailableError):
        await hands.perform(ReadAll(key="read/0", deadline_s=5.0))
    assert world.rows == {}
    assert not [signal for _, signal in process.sent if not isinstance(signal, Heartbeat)]


async def running(host: LibvirtHost) -> list[tuple[VmState, int]]:
    """State and libvirt's number of the run: another number would be another run."""
    return [(one.state, one.run) for one in await host.reports()]


async def test_s14_a_libvirtd_that_is_stopped_says_nothing_of_its_vms(daemon: Daemon) -> None:
    daemon.start()
    host = await daemon.ready()
    assert await running(host) == [(VmState.RUNNING, 1)]
    daemon.stop()
    await nothing_is_known(host, "h1: ")
    assert (await host.probe(2.0))[0] is Answer.REFUSED, "its kernel answers: the machine lives"


async def test_s14_a_certificate_of_ours_that_expired_says_nothing_of_the_vms(daemon: Daemon) -> None:
    daemon.start()
    well = await daemon.ready()
    expired = new_host(daemon.uri("over"))
    await nothing_is_known(expired, "h1: ")
    answer, said = await expired.probe(2.0)
    assert answer in (Answer.REFUSED, Answer.UNKNOWN), (
        f"never silent, which would be a vote for its death: {said}"
    )
    assert await running(well) == [(VmState.RUNNING, 1)], "as before: it was not touched"


async def test_s14_a_certificate_of_its_own_that_expired_says_nothing_of_the_vms(daemon: Daemon) -> None:
    daemon.start("over")
    host = new_host(daemon.uri())

    async def turned_away() -> bool:
        return "certificate" in (await host.probe(2.0))[1].lower()

    await eventually(turned_away, "its certificate is refused", within_s=40.0, every_s=0.1)
    await nothing_is_known(host, "expired|certificate")
    answer, said = await host.probe(2.0)
    assert answer in (Answer.REFUSED, Answer.UNKNOWN), (
        f"never silent, which would be a vote for its death: {said}"
    )


ASK = """
import asyncio, json, sys
from libs.config.entries import HostEntry
from libs.core.clock import SystemClock
from libs.core.ports import UnavailableError
from libs.model import VmPolicy
from libs.virt.host import LibvirtHost
from libs.virt.hosts import RUN_SHARE, LibvirtHosts

async def main():
    host = LibvirtHost("h1", sys.argv[1], VmPolicy(), SystemClock().monotonic)
    said = {"probe": (await host.probe(2.0))[0].value}
    for name, ask in (("reports", host.reports), ("report", lambda: host.report("6695eb01-f6a4-8304-79aa-97f2502e193f")),
                      ("destroy", lambda: host.destroy("6695eb01-f6a4-8304-79aa-97f2502e193f"))):
        try:
            said[name] = repr(await ask())
        except UnavailableError as error:
            said[name] = f"unavailable: {error}"
    print(json.dumps(said))

asyncio.run(main())
"""


async def test_s14_a_socket_that_is_forbidden_says_nothing_of_the_vms(daemon: Daemon) -> None:
    """Asked by a user who may not: root may everything, so the question is put by another process."""
    daemon.start()
    well = await daemon.ready()
    uri = f"test+unix:///default?socket={daemon.socket}"
    daemon.socket.parent.chmod(0o000)
    user: dict[str, Any] = {"user": 65533, "extra_groups": []} if os.geteuid() == 0 else {}
    try:
        asked = subprocess.run(
            [sys.executable, "-c", ASK, uri],
            check=True,
            capture_output=True,
            timeout=30,
            cwd=Path.cwd(),
            **user,
        )
    finally:
        daemon.socket.parent.chmod(0o700)
    said = json.loads(asked.stdout)
    for name in ("reports", "report", "destroy"):
        assert said[name].startswith("unavailable: "), said
        assert "Permission denied" in said[name], said
    assert said["probe"] == Answer.UNKNOWN.value, "no evidence at all: it is our own rights that are missing"
    assert await running(well) == [(VmState.RUNNING, 1)]


@pytest.mark.parametrize(
    "driver", ["qemu+tls://{}/nonsense", "nosuch+tls://{}/system", "test+tls://{}/no/such/file"]
)
async def test_s14_a_wrong_uri_says_nothing_of_the_vms(daemon: Daemon, driver: str) -> None:
    daemon.start()
    well = await daemon.ready()
    pki = f"?pkipath={daemon.authority.dir / 'client'}"
    await nothing_is_known(new_host(driver.format(f"127.0.0.1:{daemon.port}") + pki), "h1: ")
    assert await running(well) == [(VmState.RUNNING, 1)]


# -- which boot answers, where no heartbeat says it any more


class Later(SystemClock):
    """A clock of which the test says how late it is."""

    def __init__(self) -> None:
        self.passed_s = 0.0

    def monotonic(self) -> float:
        return super().monotonic() + self.passed_s


async def test_a_kernel_that_has_run_for_longer_than_the_boot_is_known_proves_it(daemon: Daemon) -> None:
    """A detector that started after the agent fell silent, and a libvirtd that was restarted meanwhile."""
    daemon.start()
    up_s = await (await daemon.ready()).up_s()
    assert up_s > 3600, "what the test driver says of itself, always"
    entry, clock, at = HostEntry(name="h1", uri=daemon.uri()), Later(), boot("h1")
    hosts = LibvirtHosts([entry], VmPolicy(), Process(World()), clock)
    with pytest.raises(UnavailableError, match="it is not heard"):
        await hosts.still(at, None, 1.0)
    with pytest.raises(UnavailableError, match="it is not heard"):
        await hosts.at(at, 1.0)
    assert await (await hosts.still(at, 60.0, 10.0)).reports()
    daemon.stop()
    daemon.start()
    await daemon.ready()
    clock.passed_s = 120.0
    assert await (await hosts.still(at, 180.0, 10.0)).reports(), (
        "over a connection that is younger than any heartbeat"
    )
    for known_s in (RUN_SHARE * up_s, up_s, up_s + 60.0):  # it may have booted since
        with pytest.raises(UnavailableError, match="it is not heard"):
            await hosts.still(at, known_s, 1.0)
    hosts.heard(Heartbeat(at=boot("h1", 2), agent="life", seq=1))
    with pytest.raises(UnavailableError, match="cannot prove"):
        await hosts.still(at, 60.0, 1.0)


async def test_what_a_kernel_has_counted_is_how_long_it_has_run(daemon: Daemon) -> None:
    """By libvirt's QEMU driver, which reads the kernel's own counters."""
    daemon.start()
    await daemon.ready()
    host = new_host(daemon.uri().replace("test+tls", "qemu+tls").replace("/default", "/session"))
    truly_s = float(Path("/proc/uptime").read_text().split()[0])
    up_s = await host.up_s()
    assert 0.8 * truly_s < up_s < truly_s / RUN_SHARE


async def test_of_a_libvirt_on_this_machine_its_age_proves_nothing() -> None:
    """A lab's hosts share one kernel, which outlives each of them."""
    entry = HostEntry(name="h1", uri="test:///default")
    hosts = LibvirtHosts([entry], VmPolicy(), Process(World()), SystemClock())
    with pytest.raises(UnavailableError, match="it is not heard"):
        await hosts.still(boot("h1"), 1.0, 1.0)
