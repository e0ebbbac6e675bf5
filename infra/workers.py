"""How many tests with real hosts run at once in `make test`: as many as this machine bears.

They hold deadlines of real time, so on a slow machine fewer of them may share it. What is timed is our own work, on all processors
at once, since two of them may be threads of one core. Where it takes 0.3 to 0.44 s, five workers kept processors 82 % busy, with a
load of up to eleven; of two whole runs one missed a deadline of 3,485 so, and four took two minutes longer. So the bounds below
keep the processors a little less busy than that on any machine.
"""

from __future__ import annotations

import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor

from libs.sim.random_world import draw
from libs.sim.run import run
from services.cli.simplane import PLANE

SEEDS = range(100, 104)
BEARS = ((0.28, 5), (0.5, 4), (0.7, 3))
"""Up to so many seconds, so many workers."""
LEAST = 2


def workers(took_s: float) -> int:
    return next((number for most_s, number in BEARS if took_s <= most_s), LEAST)


def _play(_: int) -> float:
    run(draw(SEEDS[0]), SEEDS[0], PLANE, liveness=True)  # what is done once only
    began = time.perf_counter()
    for seed in SEEDS:
        run(draw(seed), seed, PLANE, liveness=True)
    return time.perf_counter() - began


def main() -> None:
    count = os.cpu_count() or 1
    with ProcessPoolExecutor(count) as pool:
        sys.stdout.write(f"{workers(max(pool.map(_play, range(count))))}\n")


if __name__ == "__main__":
    main()
