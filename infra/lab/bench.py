"""`make bench`: where the seconds of a failover go, and the floor below which nobody comes.

Prints figures, checks nothing. Medians of several runs, each in a fresh lab; the spread is shown because the
machine is rarely quiet.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from infra.lab.lab import Lab, LabHost, LabVm
from infra.lab.run import LabRun
from libs.config.settings import Logging
from libs.logs import configure
from libs.scenario.model import Scenario
from libs.scenario.outcome import FailoverOutcome, Outcome

ROWS = (
    "detect",
    "confirm",
    "fence",
    "plan",
    "start called",
    "seen running",
    "guest up",
    "total to first start",
)
SCENARIO = {
    "schema": "rekindle.scenario.v1",
    "name": "bench: power loss of a host with one VM",
    "duration_s": 60,
    "hosts": [{"name": "h1"}, {"name": "h2"}, {"name": "h3"}],
    "vms": [{"name": "a", "host": "h1"}],
    "steps": [{"at_s": 2, "do": "power_off", "host": "h1"}],
    "expect": [{"vm": "a", "state": "running", "host_not": "h1"}],
}


def breakdown(one: FailoverOutcome) -> dict[str, float]:
    """Seconds that each stage took, and from power cut to first start call."""
    marks = (
        one.occurred_s,
        one.suspected_s,
        one.confirmed_s,
        one.fenced_s,
        one.planned_s,
        one.first_start_s,
        one.all_running_s,
        one.guests_up_s,
    )
    times = [mark for mark in marks if mark is not None]
    if len(times) != len(marks):
        raise RuntimeError(f"a stage is missing: {one}")
    stages = [after - before for before, after in itertools.pairwise(times)]
    return dict(zip(ROWS, [*stages, times[5] - times[0]], strict=True))


def one_failover() -> Outcome:
    """One power loss in a fresh lab. Raises RuntimeError where it did not end well."""
    run = LabRun(Scenario.model_validate(SCENARIO), Path(tempfile.mkdtemp(prefix="rkl-")))
    outcome = asyncio.run(run.run())
    if not outcome.passed:
        raise RuntimeError(f"the failover went wrong: {outcome.violations}")
    return outcome


def floor() -> dict[str, float]:
    """Start and guest boot alone: what a failover without any detection, fencing or planning would take."""
    lab = Lab.create([LabHost("h1")], Path(tempfile.mkdtemp(prefix="rkl-")))
    lab.up()
    try:
        lab.define_vm(LabVm("a", 128), "h1", start=False)
        with lab.connect("h1") as connection:
            domain = connection.lookupByName("a")
            began = time.monotonic()
            domain.create()
            started = time.monotonic()
            lab.wait_guest_up("a")
            up = time.monotonic()
        return {"seen running": started - began, "guest up": up - started}
    finally:
        lab.down()


def show(
    console: Console, title: str, names: Sequence[str], runs: list[dict[str, float]]
) -> dict[str, float]:
    """A table of median, lowest and highest; returns the medians."""
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    for column in ("stage", "median", "lowest", "highest"):
        table.add_column(column, justify="left" if column == "stage" else "right")
    medians = {}
    for name in names:
        values = [run[name] for run in runs]
        medians[name] = round(statistics.median(values), 3)
        table.add_row(name, *(f"{v:.2f} s" for v in (medians[name], min(values), max(values))))
    console.print(table)
    return medians


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print one JSON document alone")
    options = parser.parse_args()
    configure(Logging(level="error"))
    console = Console(stderr=options.json)
    load = os.getloadavg()[0]
    console.print(f"{options.runs} runs on {os.cpu_count()} cores, load average {load:.1f} at the start")
    failovers, floors = [], []
    for number in range(options.runs):
        failovers.append(breakdown(one_failover().failovers[0]))
        floors.append(floor())
        console.print(f"run {number + 1}: first start after {failovers[-1]['total to first start']:.2f} s")
    medians = show(console, "failover, stage by stage", ROWS, failovers)
    floor_medians = show(console, "floor: start and guest boot alone", ("seen running", "guest up"), floors)
    ours = medians["seen running"] + medians["guest up"]
    alone = sum(floor_medians.values())
    console.print(f"start and guest boot in a failover: {ours / alone:.2f} times the floor", highlight=False)
    if options.json:
        body = {"schema": "rekindle.bench.v1", "load": load, "median": medians, "floor": floor_medians}
        sys.stdout.write(json.dumps(body, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
