"""Short directories for labs: paths of unix sockets end at 108 characters, pytest's own are too long."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from infra.lab.guest import ensure_guest
from infra.lab.paths import default_cache

REPOSITORY = Path(__file__).parents[2]
NOBODY = 65534


@dataclass(slots=True)
class Roots:
    made: list[Path] = field(default_factory=list)

    def new(self) -> Path:
        self.made.append(Path(tempfile.mkdtemp(prefix="rkl-")))
        return self.made[-1]

    def remove(self) -> None:
        for root in self.made:
            if root.exists():  # a test that failed may leave its lab up, which would weigh on all that follow
                down = [sys.executable, "-m", "services.cli", "lab", "down", "--root", str(root)]
                subprocess.run(down, cwd=REPOSITORY, capture_output=True, check=False, timeout=60)
            shutil.rmtree(root, ignore_errors=True)


def plain_user(home: Path) -> tuple[list[str], dict[str, str]]:
    """Command prefix and environment to run something of ours as a plain user with this fresh home; the lab's
    guest comes along, so that no package server is needed. Skips where we cannot become one, or where a plain
    user cannot read this checkout."""
    become = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    if os.getuid() != 0:
        pytest.skip("needs root to become a plain user")
    look = "import libvirt, pytest, infra.lab.lab"
    where = {"PYTHONPATH": str(REPOSITORY), "PYTHONDONTWRITEBYTECODE": "1"}
    readable = subprocess.run([*become, sys.executable, "-c", look], env=where, cwd="/", check=False)
    if readable.returncode != 0:
        pytest.skip(f"a plain user cannot read {REPOSITORY}")
    guest = ensure_guest(default_cache()).kernel.parent
    cache = home / "cache" / "rekindle" / "lab"
    cache.mkdir(parents=True)
    shutil.copytree(guest, cache / guest.name)
    for path in (home, *home.rglob("*")):
        os.chown(path, NOBODY, NOBODY)
    environment = {
        "PATH": "/usr/bin:/bin",
        "HOME": str(home),
        "XDG_CACHE_HOME": str(home / "cache"),
        "PYTHONPATH": str(REPOSITORY),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    return become, environment
