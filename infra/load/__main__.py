"""`python -m infra.load`: 10,000 simulated agents at one heartbeat a second on one NATS server, and a real detector."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import shutil
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TextIO

from infra.load.cost import Cost, Costing
from infra.load.run import Load, Result
from libs.config.settings import Logging
from libs.logs import configure

BAR_CORES = 1.0
MEMORY = Path("/dev/shm")
"""The bus keeps its data there, where there is such: a disk's time to sync is another matter."""
HEARD_SHARE = 0.99


def report(result: Result) -> str:
    """A row of the table in docs/BENCH.md."""
    return (
        f"| {result.agents:,} | {result.every_s:g} | {result.seconds:g} | {result.sent:,} | {result.heard:,} | "
        f"{result.detector_us:.1f} | {result.detector_cores:.3f} | {result.detector_had_cores:.3f} | "
        f"{100 * result.detector_waited:.0f} % | {result.lag_worst_s:.3f} | {result.detector_mib:.0f} | "
        f"{result.growth_mib_per_million:+.2f} | {result.server_cores:.3f} | {result.server_mib:.0f} | "
        f"{result.generator_cores:.3f} | {result.others_cores:.3f} | "
        f"{sum(result.facts.values())} | {result.proof_s:.1f} |"
    )


def costs(cost: Cost) -> str:
    """A row of the other table there."""
    return (
        f"| {cost.agents:,} | {cost.agents * cost.beats:,} | {cost.heartbeat_us:.1f} | {cost.inventory_us:.1f} | "
        f"{cost.inventory_new_us:.1f} | "
        f"{cost.tick_us:.0f} | {cost.cores:.3f} | {cost.mib_first:.0f} | {cost.mib_last:.0f} | "
        f"{cost.growth_mib_per_million:+.2f} |"
    )


def kept_up(result: Result) -> bool:
    """It needs under one core by its own processor time, all was heard, and nobody suspected of silence."""
    heard = result.heard >= HEARD_SHARE * result.sent
    return result.detector_cores < BAR_CORES and heard and not result.facts and not result.lost


def say(to: TextIO, line: str) -> None:
    to.write(f"{line}\n")
    to.flush()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m infra.load", description=__doc__)
    parser.add_argument("--agents", type=int, nargs="+", default=[100, 1_000, 10_000])
    parser.add_argument("--seconds", type=float, default=120.0, help="measured, after all have joined")
    parser.add_argument("--every-s", type=float, default=1.0, help="between two heartbeats of an agent")
    parser.add_argument("--vms", type=int, default=4, help="on each host")
    parser.add_argument("--profile", action="store_true", help="the detector under cProfile; leaves its file")
    parser.add_argument("--cost", type=int, metavar="BEATS", help="processor time alone: see cost.py")
    parser.add_argument(
        "--nice", type=int, default=0, help="for all of it; below 0, as root: others wait for it"
    )
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    configure(Logging(level="error"))
    os.nice(chosen.nice)  # server and detector inherit it
    passed = True
    for agents in chosen.agents:
        with contextlib.ExitStack() as stack:
            directory = tempfile.mkdtemp(prefix="rkl-load-", dir=MEMORY if MEMORY.is_dir() else None)
            if not chosen.profile:
                stack.callback(shutil.rmtree, directory, ignore_errors=True)
            if chosen.cost:
                cost = asyncio.run(Costing(Path(directory), agents, chosen.cost).play())
                say(sys.stdout, json.dumps(cost.document()) if chosen.json else costs(cost))
                passed = passed and cost.cores < BAR_CORES
                continue
            load = Load(
                Path(directory),
                agents,
                chosen.seconds,
                chosen.every_s,
                chosen.vms,
                chosen.profile,
                lambda line: say(sys.stderr, line),
            )
            result = asyncio.run(load.play())
        passed = passed and kept_up(result)
        document = {"schema": "rekindle.load.v1", "kept_up": kept_up(result), **asdict(result)}
        say(sys.stdout, json.dumps(document) if chosen.json else report(result))
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
