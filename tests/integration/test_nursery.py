"""The process that forks services: what becomes of them when it, or they, stand still or are killed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.test_cli import REPOSITORY, environment

PROGRAM = """
import asyncio, os, signal, sys
from pathlib import Path
from libs.core.ports import UnavailableError
from services.cli import nursery

config, log = Path(sys.argv[1]), Path(sys.argv[2])

def ended(pid):
    try:
        return Path(f"/proc/{{pid}}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True

async def begin(nurse):
    return await nurse.begin("fencer", config, dict(os.environ), log)

async def waits_for_the_bus():
    while not log.exists() or "waiting for the bus" not in log.read_text():
        await asyncio.sleep(0.05)

async def main(nurse):
{story}

one = nursery.fork()
asyncio.run(main(one))
"""
STORIES = {
    "its status is told": """
    config.write_text("hosts: []")
    child = await begin(nurse)
    assert await child.wait() == 2
    await nurse.stop()
""",
    "a service that stands still is gone before it is said to be, where the nursery is killed": """
    child = await begin(nurse)
    await waits_for_the_bus()
    os.kill(child.pid, signal.SIGSTOP)
    os.kill(nurse.pid, signal.SIGKILL)
    assert await child.wait() < 0
    assert ended(child.pid), "it was said to have ended, and had not"
    try:
        await begin(nurse)
    except UnavailableError:
        await nurse.stop()
    else:
        raise AssertionError("a nursery that is gone began a service")
""",
    "services begun at once share one line, on which the end is heard": """
    await asyncio.gather(*(begin(nurse) for _ in range(6)))
    await asyncio.wait_for(nurse.stop(), 5)
    others = asyncio.all_tasks() - {asyncio.current_task()}
    assert not others, others
""",
    "a nursery that stands still hides no end, and is given up": """
    child = await begin(nurse)  # by then it has imported everything
    nursery.ORDER_S = 0.5
    os.kill(nurse.pid, signal.SIGSTOP)
    os.kill(child.pid, signal.SIGKILL)
    assert await child.wait() == -signal.SIGKILL
    try:
        await begin(nurse)
    except UnavailableError as error:
        assert "did not answer" in str(error)
    else:
        raise AssertionError("who stands still began a service")
    await nurse.stop()
""",
}


@pytest.mark.parametrize("story", STORIES)
def test_whoever_is_said_to_have_ended_has(story: str, tmp_path: Path) -> None:
    config = tmp_path / "pool.yaml"
    config.write_text(
        "pool: p\nbus: {url: 'nats://127.0.0.1:1'}\nhosts:\n  - {name: h1, uri: test:///default}\n"
    )
    program = PROGRAM.format(story=STORIES[story])
    done = subprocess.run(
        [sys.executable, "-c", program, str(config), str(tmp_path / "fencer.log")],
        cwd=REPOSITORY,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stderr
