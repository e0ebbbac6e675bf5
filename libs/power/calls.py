"""One run of a fence agent: its own process group, killed whole at its deadline, whatever it left behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from dataclasses import dataclass

CLOSE_S, GONE_S = 0.5, 2.0


@dataclass(frozen=True, slots=True)
class Call:
    """What one call of an agent brought."""

    code: int | None
    """None where it was killed at its deadline; `err` is ours then."""
    out: str
    err: str

    def gist(self) -> str:
        """For people: one line, without parameters."""
        if self.code is None:
            return self.err or "no answer by its deadline"
        text = (self.err.strip() or self.out.strip() or "no output").splitlines()[-1]
        return f"exit {self.code}: {text[:160]}"


async def run(arguments: list[str], stdin: bytes, timeout_s: float) -> Call:
    """Run a program to its end or for `timeout_s`. Raises nothing for the world's faults: they are in the Call."""
    try:
        process = await _start(arguments)
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


async def _start(arguments: list[str]) -> asyncio.subprocess.Process:
    starting = asyncio.ensure_future(
        asyncio.create_subprocess_exec(
            *arguments,
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


async def _end(process: asyncio.subprocess.Process) -> None:
    """The whole group: killing only the agent leaves its ipmitool behind. An agent may end before it has read its
    parameters: Python 3.11.2 prints that error with its traceback unless somebody asks for it. A child that escaped
    the kill may hold the other end of its input for ever: that is not waited for, nor is an agent that the kernel does
    not let go."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(GONE_S):
            await process.wait()
    assert process.stdin is not None
    process.stdin.close()
    # its output, too: what nobody reads to its end stays open for as long as an escaped child holds the other end, and
    # a loop that ends meanwhile leaves it so. asyncio closes it by no public name.
    process._transport.close()  # type: ignore[attr-defined]
    with contextlib.suppress(BrokenPipeError, ConnectionResetError, TimeoutError):
        async with asyncio.timeout(CLOSE_S):
            await process.stdin.wait_closed()
    await asyncio.sleep(0)
