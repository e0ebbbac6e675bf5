"""Where libvirt's hook asks before it takes a VM in by a migration: a unix socket of the agent's. docs/adr/0011.

The hook (infra/systemd/arrivals.py) sends the VM's XML and closes its half; it gets one line: `yes`, or `no` and why.
Only root and the agent's own user may connect.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import uuid
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import structlog

from libs.model import VmPolicy, VmReport, VmState
from libs.virt.definition import BadPolicyError, policy_of, size_of, token_of

XML_MOST = 4 * 1024 * 1024
WAIT_S = 5.0
"""As long as the hook waits. The agent's decider answers before."""
ASKING_MOST = 32
log = structlog.get_logger()
Knocked = Callable[[str, VmReport], None]


def arriving(xml: bytes, defaults: VmPolicy) -> VmReport:
    """The VM as it comes. Raises ValueError where nobody can make sense of it."""
    try:
        root = ET.fromstring(xml)
    except ET.ParseError as error:
        raise ValueError(f"its XML cannot be read: {error}") from error
    vm, name = root.findtext("uuid", ""), root.findtext("name", "")
    if not name or root.findtext("memory") is None:
        raise ValueError("its XML is no domain's")
    try:
        policy = policy_of(root, defaults)
    except BadPolicyError:  # as everywhere: then the pool's defaults hold
        policy = defaults
    memory_mib, vcpus = size_of(root)
    return VmReport(
        uuid=str(uuid.UUID(vm)),
        name=name,
        state=VmState.PAUSED,
        token=token_of(root),
        memory_mib=memory_mib,
        vcpus=vcpus,
        policy=policy,
    )


class LibvirtDoor:
    """See services.heartbeat.act.Door."""

    def __init__(self, path: Path, hook: Path, defaults: VmPolicy) -> None:
        self._path, self._hook, self._defaults = path, hook, defaults
        self._waiting: dict[str, asyncio.Future[str]] = {}
        self._life, self._numbers = uuid.uuid4().hex[:8], itertools.count(1)
        self._knocked: Knocked = lambda ask, report: None
        self._server: asyncio.Server | None = None

    async def open(self, knocked: Knocked) -> None:
        """`knocked` is called with each request from now on. Where there can be no socket it is said in the log: the hook, if
        there is one, refuses."""
        self._knocked = knocked
        try:
            self._server = await asyncio.start_unix_server(self._asked, self._path)
            self._path.chmod(0o600)
        except OSError as error:
            log.warning(
                "libvirt cannot ask here before it takes a VM in", socket=str(self._path), reason=str(error)
            )

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
            with contextlib.suppress(OSError):
                self._path.unlink()

    def answer(self, ask: str, refused: str) -> None:
        waiting = self._waiting.get(ask)
        if waiting is not None and not waiting.done():
            waiting.set_result(refused)

    def asks(self) -> bool | None:
        try:
            return bool(self._hook.stat().st_mode & 0o100)
        except FileNotFoundError:
            return False
        except OSError:
            return None

    async def _asked(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            refused = await self._judged(reader)
            said = f"no {' '.join(refused.split())}" if refused else "yes"
            writer.write(f"{said}\n".encode())
            await writer.drain()
        except OSError:
            return  # the hook waits no longer, and has refused
        finally:
            writer.close()

    async def _judged(self, reader: asyncio.StreamReader) -> str:
        """Why not."""
        if len(self._waiting) >= ASKING_MOST:
            return f"{ASKING_MOST} others wait for an answer"
        ask = f"{self._life}-{next(self._numbers)}"
        waiting: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._waiting[ask] = waiting
        try:
            async with asyncio.timeout(WAIT_S):
                xml = await _all(reader)
                report = arriving(xml, self._defaults)
                self._knocked(ask, report)
                refused = await waiting
        except TimeoutError:
            return "its agent has not answered itself in time"
        except ValueError as error:
            return str(error)
        finally:
            del self._waiting[ask]
        log.info("a VM is to come in", vm=report.name, refused=refused)
        return refused


async def _all(reader: asyncio.StreamReader) -> bytes:
    """Raises ValueError where it is too long."""
    xml = bytearray()
    while more := await reader.read(65536):
        xml += more
        if len(xml) > XML_MOST:
            raise ValueError(f"its XML is longer than {XML_MOST} bytes")
    return bytes(xml)
