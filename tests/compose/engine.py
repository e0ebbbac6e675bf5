"""A Docker Engine of the tests' own, from Debian's package, and images that need no registry.

It has a data directory, a socket, and while containers run a network namespace of its own: no address, bridge or
packet filter of the machine is touched. To build images, which needs the package sources, it is started once in the
machine's network, without any network of Docker's.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.compose.files import ROOT

DATA = Path(os.environ.get("REKINDLE_COMPOSE_DATA", "/var/tmp/rekindle-compose"))
SUITE = "bookworm"
COMMAND = str(Path(sys.executable).parent / "rekindle")
BASE, SERVER = "rekindle-test-base:1", "rekindle-test-nats:1"
START_S, STOP_S = 60.0, 40.0
LACKING = ("dockerd", "docker", "containerd", "runc", "iptables", "debootstrap", "unshare", "setpriv", "ip")
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
COPIED = (
    "docker-compose.yml",
    ".dockerignore",
    "requirements.lock",
    "pyproject.toml",
    "docs",
    "infra",
    "libs",
    "services",
)


class NoDockerError(Exception):
    """Docker cannot run here; says why."""


def run(*words: str, env: dict[str, str] | None = None, cwd: Path | None = None, timeout: float = 600) -> str:
    """Standard output of a command. Raises AssertionError with what it said where it fails."""
    done = subprocess.run(
        words, env=env, cwd=cwd, capture_output=True, text=True, check=False, timeout=timeout
    )
    assert done.returncode == 0, (
        f"{' '.join(words)}: exit {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    )
    return done.stdout


def reasons_against() -> str:
    """Why Docker cannot run here; "" where nothing is known against it."""
    if os.getuid() != 0:
        return "Docker Engine needs root"
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    lacking = [name for name in LACKING if shutil.which(name, path=path) is None]
    if lacking:
        return f"not installed: {', '.join(lacking)}"
    if not Path("/proc/self/ns/net").exists():
        return "the kernel has no network namespaces"
    return ""


def has_compose() -> bool:
    """Whether `docker compose` is there; it needs no engine to say so."""
    try:
        asked = subprocess.run(["docker", "compose", "version"], capture_output=True, check=False)
    except FileNotFoundError:
        return False
    return asked.returncode == 0


@dataclass(slots=True)
class Engine:
    """One dockerd. `apart`: in a network namespace of its own, with addresses on its loopback."""

    apart: bool
    addresses: Sequence[str] = ()
    process: subprocess.Popen[bytes] | None = None
    log: Path = field(default_factory=lambda: DATA / "dockerd.log")

    @property
    def socket(self) -> Path:
        return DATA / "docker.sock"

    @property
    def environment(self) -> dict[str, str]:
        """For the docker command."""
        paths = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
        return {**os.environ, "PATH": paths, "DOCKER_HOST": f"unix://{self.socket}", "COMPOSE_ANSI": "never"}

    def start(self) -> None:
        """Raises NoDockerError with the end of its log."""
        DATA.mkdir(parents=True, exist_ok=True)
        command = ["dockerd", "--data-root", str(DATA / "data"), "--exec-root", str(DATA / "exec")]
        command += ["--pidfile", str(DATA / "pid"), "--host", f"unix://{self.socket}", "--ip-forward=false"]
        command += ["--iptables=false", "--ip6tables=false"]
        if self.apart:
            links = "".join(f" && ip addr add {each}/32 dev lo" for each in self.addresses)
            script = f'ip link set lo up{links} && exec "$@"'
            command = ["unshare", "--net", "sh", "-c", script, "sh", *command, "--bip", "172.31.255.1/24"]
        else:
            command += ["--bridge=none"]
        command = ["setpriv", "--pdeathsig", "TERM", *command]  # killed, we leave no daemon behind
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, env=self.environment, stdout=log, stderr=log, start_new_session=True
            )
        until = time.monotonic() + START_S
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() > until:
                self.stop()
                raise NoDockerError(f"dockerd does not start here: {self.log.read_text()[-1500:]}")
            time.sleep(0.2)

    def _answers(self) -> bool:
        return (
            subprocess.run(
                ["docker", "version"], env=self.environment, capture_output=True, check=False
            ).returncode
            == 0
        )

    def stop(self) -> None:
        """SIGTERM: it stops its containers and its containerd."""
        if self.process is None or self.process.poll() is not None:
            return
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def docker(self, *words: str, timeout: float = 600) -> str:
        return run("docker", *words, env=self.environment, timeout=timeout)

    def has(self, image: str) -> bool:
        asked = ["docker", "image", "inspect", image]
        return subprocess.run(asked, env=self.environment, capture_output=True, check=False).returncode == 0


@contextlib.contextmanager
def running(*, apart: bool, addresses: Sequence[str] = ()) -> Iterator[Engine]:
    engine = Engine(apart, addresses)
    engine.start()
    try:
        yield engine
    finally:
        engine.stop()


def make_base(engine: Engine) -> None:
    """The stand-in for `debian:12-slim`: debootstrap, and whom this machine trusts."""
    if engine.has(BASE):
        return
    root, unfinished = DATA / "base", DATA / "base.new"
    if not root.exists():
        shutil.rmtree(unfinished, ignore_errors=True)
        run("debootstrap", "--variant=minbase", SUITE, str(unfinished), env=engine.environment, timeout=900)
        unfinished.rename(root)
    shutil.rmtree(root / "var/cache/apt/archives", ignore_errors=True)
    (root / "var/cache/apt/archives/partial").mkdir(parents=True)
    changes = []
    if CERTIFICATES.exists():
        shutil.copy(CERTIFICATES, root / "usr/local/share/ca.pem")
        changes = ["--change", "ENV PIP_CERT=/usr/local/share/ca.pem"]
    archive = DATA / "base.tar"
    run("tar", "-C", str(root), "-cf", str(archive), ".")
    engine.docker("import", *changes, str(archive), BASE)
    archive.unlink()
    shutil.rmtree(root)


def make_server(engine: Engine) -> None:
    """The stand-in for `nats:…-scratch`: one static file."""
    if engine.has(SERVER):
        return
    from libs.jetstream.server import binary

    folder = DATA / "server"
    folder.mkdir(exist_ok=True)
    shutil.copy(binary(), folder / "nats-server")
    archive = DATA / "server.tar"
    run("tar", "-C", str(folder), "-cf", str(archive), "nats-server")
    engine.docker("import", str(archive), SERVER)
    archive.unlink()


def copy_of_the_repository(to: Path) -> Path:
    """What a person has who cloned it; `.env` and secrets are made there and not here."""
    to.mkdir(parents=True, exist_ok=True)
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(
                source, to / name, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True
            )
        else:
            shutil.copy(source, to / name)
    return to


def variables(engine: Engine) -> dict[str, str]:
    """What differs from a person's machine: where images come from, and where Docker's socket is."""
    return {
        **engine.environment,
        "REKINDLE_BASE_IMAGE": BASE,
        "REKINDLE_NATS_IMAGE": SERVER,
        # the demo's fence agent is the lab's; real ones are tried by `make bmcs`
        "REKINDLE_FENCE_PACKAGES": os.environ.get("REKINDLE_FENCE_PACKAGES", "ca-certificates"),
        "REKINDLE_DOCKER_SOCKET": str(engine.socket),
    }


def compose(engine: Engine, place: Path, *words: str, timeout: float = 600, **more: str) -> str:
    """`docker compose …` in a copy of the repository."""
    return run("docker", "compose", *words, env={**variables(engine), **more}, cwd=place, timeout=timeout)


def init(place: Path, *words: str, engine: Engine | None = None) -> None:
    """`infra/docker/init.sh …`. With an engine the keys are made in the image, as where there is nothing but Docker; else
    by the command that lies beside this Python."""
    env = {**os.environ, "REKINDLE_COMMAND": COMMAND} if engine is None else variables(engine)
    run(str(place / "infra/docker/init.sh"), *words, env=env, cwd=place)


def build(engine: Engine, place: Path) -> None:
    """All images by the compose files, as a person would; only the network of the build is the machine's."""
    make_base(engine)
    make_server(engine)
    override = place / "build.yml"
    names = ("nats", "detector", "h1")
    override.write_text(
        "services:\n" + "".join(f"  {name}: {{build: {{network: host}}}}\n" for name in names)
    )
    files = "docker-compose.yml:infra/docker/demo.yml:build.yml"
    compose(engine, place, "build", *names, COMPOSE_FILE=files, COMPOSE_PROFILES="demo", timeout=1500)
    override.unlink()
