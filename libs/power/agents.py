"""Driving fence agents as their API says (ClusterLabs FenceAgentAPI; measured traps in comments).

Parameters go as key=value lines to standard input, never on a command line. Each call is its own process
group and is killed whole at its deadline; one call at a time a device.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
from dataclasses import dataclass

from libs.config.settings import FenceDevice
from libs.config.yamlfile import BadInputError
from libs.model import PowerState

OFF_EXIT = 2
CLOSE_S = 0.5


@dataclass(frozen=True, slots=True)
class Call:
    """What one call of an agent brought."""

    code: int | None
    """None where it was killed at its deadline."""
    out: str
    err: str

    def gist(self) -> str:
        """For people: one line, without parameters."""
        if self.code is None:
            return "no answer by its deadline"
        text = (self.err.strip() or self.out.strip() or "no output").splitlines()[-1]
        return f"exit {self.code}: {text[:160]}"


def find_agent(agent: str) -> str:
    """The agent's path. Raises BadInputError."""
    found = (
        agent
        if os.path.isabs(agent)
        else (shutil.which(agent) or shutil.which(agent, path="/usr/sbin:/sbin"))
    )
    if found is None:
        raise BadInputError(f"fence agent {agent} is not installed (Debian and Ubuntu: package fence-agents)")
    if not os.access(found, os.X_OK):
        raise BadInputError(f"fence agent {found} is not an executable file")
    return found


class AgentDevice:
    """One fence device behind one agent."""

    def __init__(self, device: FenceDevice) -> None:
        self.name = os.path.basename(device.agent)
        self.level, self.timeout_s = device.level, device.timeout_s
        self._path = find_agent(device.agent)
        self._options = {key: _text(value) for key, value in device.options.items()}
        self._options |= {key: secret.read() for key, secret in device.secrets.items()}
        for key, value in self._options.items():
            if "\n" in value or "\n" in key:
                raise BadInputError(f"fence agent {self.name}: {key} contains a line break")
        self._turn = asyncio.Lock()

    async def status(self, timeout_s: float) -> tuple[PowerState, str]:
        """Off only when exit status and output both say so: a missing script exits 2 as well."""
        call = await self._call("status", timeout_s)
        if call.code == OFF_EXIT and "Status: OFF" in call.out:
            return PowerState.OFF, f"{self.name} reads off"
        if call.code == 0 and "Status: ON" in call.out:
            return PowerState.ON, f"{self.name} reads on"
        return PowerState.UNKNOWN, f"{self.name}: status: {call.gist()}"

    async def off(self) -> tuple[bool, str]:
        """Command off. True says that the agent reports success, which alone proves nothing."""
        call = await self._call("off", self.timeout_s)
        return call.code == 0, f"{self.name}: off: {call.gist()}"

    async def _start(self) -> asyncio.subprocess.Process:
        starting = asyncio.ensure_future(
            asyncio.create_subprocess_exec(
                self._path,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                start_new_session=True,
            )
        )
        try:
            return await asyncio.shield(starting)
        except asyncio.CancelledError:
            # cancelled while it starts, it would be forgotten with all its children, or waited for in vain
            with contextlib.suppress(OSError):
                await _end(await starting)
            raise

    async def _call(self, action: str, timeout_s: float) -> Call:
        # a missing action would mean reboot, so it is always sent, and last: agents take the last duplicate
        lines = [f"{key}={value}" for key, value in sorted(self._options.items())]
        stdin = "\n".join([*lines, f"action={action}", ""]).encode()
        async with self._turn:
            try:
                process = await self._start()
            except OSError as error:
                return Call(1, "", f"cannot be started: {error.strerror}")
            try:
                async with asyncio.timeout(timeout_s):
                    out, err = await process.communicate(stdin)
            except TimeoutError:
                return Call(None, "", "")
            finally:
                await _end(process)
            return Call(process.returncode, out.decode(errors="replace"), err.decode(errors="replace"))


async def _end(process: asyncio.subprocess.Process) -> None:
    """The whole group: killing only the agent leaves its ipmitool behind. An agent may end before it has read its
    parameters: Python 3.11.2 prints that error with its traceback unless somebody asks for it. A child that escaped
    the kill may hold the other end of its input for ever: that is not waited for."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()
    assert process.stdin is not None
    process.stdin.close()
    with contextlib.suppress(BrokenPipeError, ConnectionResetError, TimeoutError):
        async with asyncio.timeout(CLOSE_S):
            await process.stdin.wait_closed()


def _text(value: str | int | bool) -> str:
    if isinstance(value, bool):
        return "1" if value else "0"  # agents read 1/0 and ignore True/False
    return str(value)
