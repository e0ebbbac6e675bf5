"""Fence agents for tests, as real programs."""

from __future__ import annotations

from pathlib import Path

# Reads its parameters as agents do; keeps its power in a file; notes every action.
AGENT = """\
#!/bin/sh
cd "$(dirname "$0")"
while read -r line; do
  case "$line" in action=*) action="${line#action=}";; esac
  printf '%s\\n' "$line" >> stdin
done
echo "$action" >> calls
case "$action" in
  status) if [ "$(cat power)" = off ]; then echo "Status: OFF"; exit 2; else echo "Status: ON"; exit 0; fi;;
  off) {off};;
esac
"""


def program(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o755)
    return path


def agent(directory: Path, off: str = "echo off > power; exit 0", power: str = "on") -> Path:
    directory.mkdir(exist_ok=True)
    (directory / "power").write_text(power + "\n")
    return program(directory / "fence_test", AGENT.replace("{off}", off))


def calls(directory: Path) -> list[str]:
    return (directory / "calls").read_text().split()


class Seen:
    def __init__(self) -> None:
        self.times = 0

    def __call__(self) -> None:
        self.times += 1
