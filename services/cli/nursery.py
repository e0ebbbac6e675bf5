"""Services begin as forks of a process that has imported what all of them need.

Importing costs a service's process one second of CPU at its start, which is downtime after a crash, and for all of them at
once as long a start of the plane. Here it is paid once: the nursery is forked off `rekindle up` before anything runs there,
imports, and forks a child for each order. It has one thread and does nothing else. Without it (it was killed)
services are started as programs of their own, as `rekindle service NAME` starts them.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import importlib
import json
import os
import select
import signal
import socket
import sys
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import structlog

from libs.core.ports import UnavailableError
from libs.lean import let_in
from libs.service import die_with_parent

PR_SET_NAME = 15
PRELOADED = ("alerting", "executor", "placement", "fencer", "detector", "heartbeat")
LINE_MOST = 1 << 20
ORDER_S = 60.0
"""For the nursery to have imported everything, on a machine that is busy, and to have begun what it was told to."""
STATUS_S = 2.0
"""For the nursery to tell the status of a child that has ended."""
log = structlog.get_logger()


@dataclass(slots=True)
class Child:
    """A service's process; as much of asyncio's own as its supervisor needs. It is held by a descriptor of the kernel's:
    its number may be another's by the time that we hear of its end, and its end shows also where the nursery is gone."""

    pid: int
    handle: int
    returncode: int | None = None
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    async def wait(self) -> int:
        """Its exit status, negative for a signal."""
        await self.ended.wait()
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Raises ProcessLookupError where it has ended."""
        if self.returncode is not None:
            raise ProcessLookupError(self.pid)
        signal.pidfd_send_signal(self.handle, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def end(self, code: int) -> None:
        """It has ended: nothing more is said of it."""
        if self.returncode is None:
            self.returncode = code
            asyncio.get_running_loop().remove_reader(self.handle)
            os.close(self.handle)
            self.ended.set()


@dataclass(slots=True)
class Nursery:
    """The supervisor's end of the line to the nursery."""

    pid: int
    line: socket.socket
    _children: dict[int, Child] = field(default_factory=dict)
    _orders: dict[int, asyncio.Future[Child]] = field(default_factory=dict)
    _number: int = 0
    _gone: bool = False
    _writer: asyncio.StreamWriter | None = None
    _reading: asyncio.Task[None] | None = None
    _opening: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def begin(self, name: str, config: Path, environment: dict[str, str], log: Path | None) -> Child:
        """Have a service started. Raises UnavailableError where the nursery is gone, or stands still: then it is ended."""
        async with self._opening:  # all services are begun at once; of several readers one would hear the end
            if self._writer is None:
                reader, self._writer = await asyncio.open_unix_connection(sock=self.line, limit=LINE_MOST)
                self._reading = asyncio.create_task(self._read(reader))
        if self._gone:
            raise UnavailableError("the nursery is gone")
        self._number += 1
        order: asyncio.Future[Child] = asyncio.get_running_loop().create_future()
        self._orders[self._number] = order
        said = {"id": self._number, "name": name, "config": str(config), "environment": environment}
        self._writer.write(json.dumps({**said, "log": None if log is None else str(log)}).encode() + b"\n")
        try:
            async with asyncio.timeout(ORDER_S):
                return await order
        except TimeoutError:
            self._kill()  # what it may still have begun ends with it, before anybody is told so
            raise UnavailableError(f"the nursery did not answer in {ORDER_S:g} s") from None

    async def stop(self) -> None:
        """End it; its children have ended, or end with it."""
        self._kill()
        if self._reading is not None:
            await asyncio.gather(self._reading, return_exceptions=True)
        if self._writer is not None:
            self._writer.close()
        self.line.close()
        with contextlib.suppress(ChildProcessError):
            await asyncio.to_thread(os.waitpid, self.pid, 0)

    def _kill(self) -> None:
        # our child, and not waited for yet: its number is its own
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    async def _read(self, reader: asyncio.StreamReader) -> None:
        try:
            while told := await reader.readline():
                self._heard(json.loads(told))
        except OSError:
            log.info("the line to the nursery broke")
        finally:
            self._gone = True
            for order in self._orders.values():
                if not order.done():
                    order.set_exception(UnavailableError("the nursery is gone"))
            # who is told that a service has ended takes over what it led: it must be true
            for child in list(self._children.values()):
                with contextlib.suppress(ProcessLookupError):
                    child.kill()

    def _heard(self, word: dict[str, Any]) -> None:
        pid = word["pid"]
        if "id" in word:
            self._born(pid, self._orders.pop(word["id"]))
        elif (child := self._children.pop(pid, None)) is not None:
            child.end(word["code"])

    def _born(self, pid: int, order: asyncio.Future[Child]) -> None:
        try:
            handle = os.pidfd_open(pid)
        except (
            ProcessLookupError
        ):  # it has ended and been waited for: its status comes next, and nobody misses it
            if not order.done():
                order.set_exception(UnavailableError("it ended at once"))
            return
        child = self._children[pid] = Child(pid, handle)
        asyncio.get_running_loop().add_reader(handle, self._ending, child)
        if order.done():
            child.kill()  # waited for in vain
        else:
            order.set_result(child)

    def _ending(self, child: Child) -> None:
        """The kernel says that it has ended. With which status is the nursery's to tell, if it still can."""
        loop = asyncio.get_running_loop()
        loop.remove_reader(child.handle)
        loop.call_later(0.0 if self._gone else STATUS_S, child.end, -signal.SIGKILL)


def fork() -> Nursery | None:
    """Begin a nursery as a fork of this process, which must have one thread and run no loop yet. None where the kernel
    cannot hold a process by a descriptor (Linux before 5.3)."""
    try:
        os.close(os.pidfd_open(os.getpid()))
    except OSError:
        return None
    ours, theirs = socket.socketpair()
    sys.stdout.flush()
    sys.stderr.flush()
    supervisor = os.getpid()
    pid = os.fork()
    if pid == 0:
        ours.close()
        _nurse(theirs, supervisor)
    theirs.close()
    return Nursery(pid, ours)


def _nurse(line: socket.socket, supervisor: int) -> NoReturn:
    """The nursery itself. A Ctrl-C on the terminal is not for it; the end of its supervisor is."""
    try:
        os.setsid()
        if die_with_parent(supervisor):
            for name in PRELOADED:
                # alerting alone speaks HTTP: what it needs more is imported in its own process
                importlib.import_module(f"services.{name}.{'wiring' if name == 'alerting' else '__main__'}")
            importlib.import_module("libs.measures")  # 50 ms, wherever a service has a port
            _serve(line)
    except BaseException:  # noqa: BLE001  nothing may return into the supervisor's code
        traceback.print_exc()
    finally:
        os._exit(0)


def _serve(line: socket.socket) -> None:
    woken, wakes = os.pipe()
    os.set_blocking(wakes, False)
    os.set_blocking(woken, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wakes)
    heard, nursery = b"", os.getpid()
    while True:
        ready, _, _ = select.select([line.fileno(), woken], [], [])
        if woken in ready:
            os.read(woken, 4096)
            _reap(line)
        if line.fileno() not in ready:
            continue
        more = line.recv(65536)
        if not more:
            return
        *orders, heard = (heard + more).split(b"\n")
        for order in orders:
            request = json.loads(order)
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                for descriptor in (woken, wakes, line.fileno()):
                    os.close(descriptor)
                _become(request, nursery)
            line.sendall(json.dumps({"id": request["id"], "pid": pid}).encode() + b"\n")


def _reap(line: socket.socket) -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        code = os.waitstatus_to_exitcode(status)
        line.sendall(json.dumps({"pid": pid, "code": code}).encode() + b"\n")


def _become(request: dict[str, Any], nursery: int) -> NoReturn:
    """This child is the service from now on."""
    code = 1
    try:
        name = request["name"]
        os.setsid()
        ctypes.CDLL(None).prctl(PR_SET_NAME, f"rk-{name}".encode(), 0, 0, 0)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        if request["log"] is not None:
            sink = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            os.dup2(sink, 1)
            os.dup2(sink, 2)
        os.environ.clear()
        os.environ.update(request["environment"], REKINDLE_SUPERVISED=str(nursery))
        if name == "alerting":
            let_in("aiohttp")
        code = importlib.import_module(f"services.{name}.__main__").main(Path(request["config"]))
    except BaseException:  # noqa: BLE001  the supervisor starts it again, whatever it was
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)
