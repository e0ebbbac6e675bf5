"""Driving fence agents as their API says (ClusterLabs FenceAgentAPI; measured traps in comments).

Parameters go as key=value lines to standard input, never on a command line. Each call is its own process
group and is killed whole at its deadline; one call at a time a device, and a bounded number of all devices.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from dataclasses import replace

from libs.config.entries import FenceDevice
from libs.config.yamlfile import BadInputError
from libs.model import PowerState
from libs.power.calls import Call, run

OFF_EXIT = 2
HIDDEN = "(secret)"
NO_TURN = "no turn by its deadline: other calls were under way (fencing.parallel_max)"


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
    """One fence device behind one agent. `slots` are shared by all devices and bound their calls together; `turn` by
    the outlets of one device."""

    def __init__(
        self, device: FenceDevice, slots: asyncio.Semaphore, turn: asyncio.Lock | None = None
    ) -> None:
        self.name = device.name or os.path.basename(device.agent)
        self.level, self.timeout_s = device.level, device.timeout_s
        self._path = find_agent(device.agent)
        secrets = {key: secret.read() for key, secret in device.secrets.items()}
        self._options = {key: as_text(value) for key, value in device.options.items()} | secrets
        # longest first: one secret may begin another
        self._secrets = sorted(filter(None, secrets.values()), key=len, reverse=True)
        for key, value in self._options.items():
            wrong = _unfit(key, value)
            if wrong is not None:
                raise BadInputError(f"fence agent {self.name}: {wrong}")
        self._turn, self._slots = turn or asyncio.Lock(), slots

    async def status(self, timeout_s: float) -> tuple[PowerState, str]:
        """Off only when exit status and output both say so: a missing script exits 2 as well."""
        call = await self._call("status", timeout_s)
        if call.code == OFF_EXIT and "Status: OFF" in call.out:
            return PowerState.OFF, f"{self.name} reads off"
        if call.code == 0 and "Status: ON" in call.out:
            return PowerState.ON, f"{self.name} reads on"
        return PowerState.UNKNOWN, f"{self.name}: status: {self._gist(call)}"

    async def off(self) -> tuple[bool, str]:
        """Command off. True says that the agent reports success, which alone proves nothing."""
        call = await self._call("off", self.timeout_s)
        return call.code == 0, f"{self.name}: off: {self._gist(call)}"

    async def on(self) -> tuple[bool, str]:
        """Command on. True says that the agent reports success."""
        call = await self._call("on", self.timeout_s)
        return call.code == 0, f"{self.name}: on: {self._gist(call)}"

    async def _call(self, action: str, timeout_s: float) -> Call:
        # a missing action would mean reboot, so it is always sent, and last: agents take the last duplicate
        lines = [f"{key}={value}" for key, value in sorted(self._options.items())]
        stdin = "\n".join([*lines, f"action={action}", ""]).encode()
        # waiting counts: what an attempt may take in all is known beforehand. A slot is taken last, so that a queue
        # before one slow device holds none
        until = asyncio.get_running_loop().time() + timeout_s
        async with contextlib.AsyncExitStack() as held:
            try:
                async with asyncio.timeout_at(until):
                    await held.enter_async_context(self._turn)
                    await held.enter_async_context(self._slots)
            except TimeoutError:
                return Call(None, "", NO_TURN)
            return await run([self._path], stdin, until - asyncio.get_running_loop().time())

    def _gist(self, call: Call) -> str:
        """What an agent says is logged and told: one that complains about a line of its input repeats it."""
        return replace(call, out=self._hidden(call.out), err=self._hidden(call.err)).gist()

    def _hidden(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, HIDDEN)
        return text


def as_text(value: str | int | bool) -> str:
    """An option's value as it is handed over."""
    if isinstance(value, bool):
        return "1" if value else "0"  # agents read 1/0 and ignore True/False
    return str(value)


def _unfit(key: str, value: str) -> str | None:
    """Why an agent would read something else than is meant; None where it reads it. Repeats no value."""
    if len(f"{key}={value}.".splitlines()) > 1:
        return f"{key} contains a line break"
    if "=" in key or key.lstrip().startswith("#"):
        return f"{key.split('=')[0]}: no option has such a name"
    if value != value.strip():
        return f"{key} begins or ends with a space, which agents cut off"
    if len(value) > 1 and value[0] == value[-1] == '"':
        return f"{key} begins and ends with a double quote, which agents cut off"
    return None
