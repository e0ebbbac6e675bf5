"""`python -m infra.lab.detectbench`: from the death of a host to its verdict, with all processors otherwise busy.

One lab for each kind of death stays up over all its runs: a host dies at a random moment, `host.failed` is awaited, the
host is switched on again and joins. `--write` puts the figures into docs/BENCH.md. The bars are the project's own.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console

from infra.detection.table import replaced
from infra.lab.bench import show
from infra.lab.burners import burning
from infra.lab.figures import BENCH, Bar, false_verdicts, machine
from infra.lab.interrupt import interruptible
from infra.lab.lab import LabError
from infra.lab.run import LabRun, RunFailedError
from libs.config.settings import Logging
from libs.events.base import Fact
from libs.events.failovers import FailoverCompleted
from libs.events.hosts import HostFailed, HostFenced, HostJoined, HostSuspected
from libs.events.vms import VmRestarted
from libs.logs import configure
from libs.scenario.model import Scenario

F = TypeVar("F", bound="Fact")
WITHIN_S = 60.0
"""For each fact that is awaited: far beyond every bar, so that a late one is measured and not lost."""
SPREAD_S = 1.0
"""Hosts die at random moments of so long a time, which is more than a heartbeat's interval."""
SUSPECTED, FAILED, FENCED, FIRST_START = "host.suspected", "host.failed", "host.fenced", "first start call"


@dataclass(frozen=True, slots=True)
class Kind:
    """One way to die, and what the pool knows of it."""

    name: str
    title: str
    bars: tuple[Bar, ...]
    profile: str = "balanced"
    crash: bool = False
    """Its processes end while its power stays on; otherwise its power is cut."""
    silent: bool = False
    """A pool of two hosts without fence devices and shared datastores: too few voters, no slot, no power reading."""

    @property
    def rows(self) -> tuple[str, ...]:
        return (SUSPECTED, FAILED) if self.silent else (SUSPECTED, FAILED, FENCED, FIRST_START)

    def scenario(self) -> Scenario:
        hosts: list[dict[str, Any]] = [
            {"name": f"h{number + 1}"} for number in range(2 if self.silent else 3)
        ]
        if self.silent:
            hosts = [{**host, "fencing": []} for host in hosts]
        # dying once a run must not close a host to VMs, which the next run needs on it
        settings: dict[str, Any] = {"profile": self.profile, "detection": {"failures_max": 10_000}}
        document = {
            "schema": "rekindle.scenario.v1",
            "name": f"detection: {self.title}",
            "hosts": hosts,
            # without a proof nothing is started elsewhere
            "vms": [] if self.silent else [{"name": "a", "host": "h1"}],
            "settings": {**settings, "datastores": []} if self.silent else settings,
        }
        return Scenario.model_validate(document)


KINDS = (
    Kind("off", "power readable as off", (Bar(FAILED, median_s=2.0, worst_s=3.5),)),
    Kind("crashed", "crashed, its power still on", (Bar(FAILED, median_s=5.0, worst_s=7.0),), crash=True),
    Kind("silent", "silence only", (Bar(FAILED, worst_s=12.0),), silent=True),
    Kind("fast", "power readable as off, profile fast", (Bar(FIRST_START, median_s=1.8),), profile="fast"),
)


@dataclass(slots=True)
class Bench:
    """The runs of one kind in one lab. `told` is told the figures of each run."""

    kind: Kind
    runs: int
    told: Callable[[str], None]
    chance: random.Random = field(default_factory=random.Random)
    run: LabRun = field(init=False)

    async def measure(self) -> list[dict[str, float]]:
        """Seconds since the death, a run. Raises RunFailedError, LabError or TimeoutError."""
        self.run = LabRun(self.kind.scenario(), Path(tempfile.mkdtemp(prefix="rkl-")))
        found = []
        try:
            async with self.run.standing():
                for number in range(self.runs):
                    found.append(await self._one(number))
                    figures = ", ".join(f"{name} {found[-1][name]:.2f} s" for name in self.kind.rows)
                    self.told(f"{self.kind.name} {number + 1}/{self.runs}: {figures}")
        finally:
            if self.run.root.exists() and not any(self.run.root.iterdir()):
                self.run.root.rmdir()
        return found

    def cleans_up(self) -> bool:
        return hasattr(self, "run") and self.run.stopping

    async def _one(self, number: int) -> dict[str, float]:
        lab, kind = self.run.lab, self.kind
        where = await asyncio.to_thread(lab.placement)
        host = where["a"][0] if "a" in where else lab.hosts[number % len(lab.hosts)]
        await asyncio.sleep(self.chance.uniform(0.0, SPREAD_S))
        seen, died = len(self.run.envelopes), datetime.now(UTC)
        await asyncio.to_thread(lab.crash_host if kind.crash else lab.power_off, host)
        failed_at, failed = await self._fact(HostFailed, seen, lambda fact: fact.at.host == host)
        took = {FAILED: (failed_at - died).total_seconds()}
        suspected_at, _ = await self._fact(HostSuspected, seen, lambda fact: fact.key == failed.cause)
        took[SUSPECTED] = (suspected_at - died).total_seconds()
        if not kind.silent:
            fenced_at, _ = await self._fact(HostFenced, seen, lambda fact: fact.incident == failed.incident)
            took[FENCED] = (fenced_at - died).total_seconds()
            _, restarted = await self._fact(VmRestarted, seen, lambda fact: fact.incident == failed.incident)
            took[FIRST_START] = (datetime.fromisoformat(restarted.called_at) - died).total_seconds()
            await self._fact(FailoverCompleted, seen, lambda fact: fact.incident == failed.incident)
        await asyncio.to_thread(lab.power_off, host)  # what crashed stays so until its power was off
        await asyncio.to_thread(lab.power_on, host)
        await self._fact(HostJoined, seen, lambda fact: fact.at.host == host and fact.at != failed.at)
        await self.run.ready()
        return took

    async def _fact(self, wanted: type[F], seen: int, is_it: Callable[[F], bool]) -> tuple[datetime, F]:
        """The first such fact since `seen`, and when it was told. Raises TimeoutError."""
        loop = asyncio.get_running_loop()
        until = loop.time() + WITHIN_S
        while loop.time() < until:
            for envelope in self.run.envelopes[seen:]:
                fact: Fact = envelope.data
                if isinstance(fact, wanted) and is_it(fact):
                    return envelope.time, fact
            await asyncio.sleep(0.02)
        heard = ", ".join(f"{one.data.kind} {one.subject}" for one in self.run.envelopes[seen:])
        raise TimeoutError(f"no {wanted.__name__} within {WITHIN_S:g} s; heard were: {heard or 'none'}")


def summary(kind: Kind, found: list[dict[str, float]]) -> dict[str, Any]:
    """The figures of one kind as they are printed for machines."""
    rows = {
        name: {
            "median_s": round(statistics.median(run[name] for run in found), 3),
            "lowest_s": round(min(run[name] for run in found), 3),
            "worst_s": round(max(run[name] for run in found), 3),
            "deviation_s": round(statistics.pstdev(run[name] for run in found), 3),
            "runs_s": [round(run[name], 3) for run in found],
        }
        for name in kind.rows
    }
    bars = [
        {"of": bar.of, "figure": figure, "bar_s": limit, "is_s": rows[bar.of][figure], "met": met}
        for bar in kind.bars
        for figure, limit, met in bar.held_against(rows[bar.of])
    ]
    verdicts = false_verdicts(kind.profile)
    return {
        "kind": kind.name,
        "title": kind.title,
        "profile": kind.profile,
        "false_verdicts_host_year": verdicts,
        "rows": rows,
        "bars": bars,
    }


def markdown(document: dict[str, Any]) -> str:
    """The table for docs/BENCH.md."""
    lines = [
        f"`python -m infra.lab.detectbench --runs {document['runs']}`, {document['machine']}.",
        "",
        "| death | profile | until | median s | lowest s | worst s | deviation s | bar | false verdicts a host-year |",
        "|---|---|---|---:|---:|---:|---:|---|---:|",
    ]
    for kind in document["kinds"]:
        for name, row in kind["rows"].items():
            said = [
                f"{bar['figure'].removesuffix('_s')} under {bar['bar_s']:g}: {'met' if bar['met'] else '**missed**'}"
                for bar in kind["bars"]
                if bar["of"] == name
            ]
            figures = " | ".join(
                f"{row[key]:.2f}" for key in ("median_s", "lowest_s", "worst_s", "deviation_s")
            )
            lines.append(
                f"| {kind['title']} | {kind['profile']} | {name} | {figures} | {', '.join(said) or '-'} | "
                f"{kind['false_verdicts_host_year']} |"
            )
    return "\n".join(lines)


def _options() -> argparse.Namespace:
    names = [kind.name for kind in KINDS]
    parser = argparse.ArgumentParser(prog="python -m infra.lab.detectbench", description=__doc__)
    parser.add_argument("--runs", type=int, default=20, help="of each kind (default: %(default)s)")
    parser.add_argument(
        "--kind", action="append", choices=names, help="only this one, or these; not with --write"
    )
    parser.add_argument("--seed", type=int, default=1, help="of the moments at which hosts die")
    parser.add_argument("--burners", type=int, help="busy loops beside it (default: one a processor)")
    parser.add_argument("--json", action="store_true", help="print one JSON document alone")
    parser.add_argument("--write", action="store_true", help=f"put the table into {BENCH.name}")
    options = parser.parse_args()
    if options.runs < 1:
        parser.error("--runs must be greater than 0")
    if options.burners is not None and (options.burners < 0 or options.write):
        parser.error("--burners must be 0 or greater, and what is written is measured with the default")
    if options.write and options.kind:
        parser.error("--write tells of all kinds: leave --kind out")
    return options


def main() -> int:
    options = _options()
    configure(Logging(level="error"))
    console = Console(stderr=options.json, highlight=False)
    document: dict[str, Any] = {
        "schema": "rekindle.detectbench.v1",
        "runs": options.runs,
        "machine": machine(),
        "kinds": [],
    }
    console.print(f"{options.runs} runs of each kind, {document['machine']}")
    chance = random.Random(options.seed)
    try:
        with burning(options.burners):
            for kind in KINDS:
                if options.kind and kind.name not in options.kind:
                    continue
                bench = Bench(kind, options.runs, console.print, chance)
                found = asyncio.run(interruptible(bench.measure(), bench.cleans_up))
                document["kinds"].append(summary(kind, found))
                _tell(console, kind, found, document["kinds"][-1])
    except KeyboardInterrupt:
        return 130
    except (LabError, RunFailedError, TimeoutError) as error:
        sys.stderr.write(f"detectbench: {error}\n")
        return 1
    if options.write:
        BENCH.write_text(replaced(BENCH.read_text(), "detectbench", markdown(document)))
    if options.json:
        sys.stdout.write(json.dumps(document, indent=2) + "\n")
    return 0 if all(bar["met"] for kind in document["kinds"] for bar in kind["bars"]) else 1


def _tell(console: Console, kind: Kind, found: list[dict[str, float]], figures: dict[str, Any]) -> None:
    show(console, f"{kind.title}, profile {kind.profile}, since its death", kind.rows, found)
    for bar in figures["bars"]:
        word = "[green]met[/]" if bar["met"] else "[bold red]missed[/]"
        figure = bar["figure"].removesuffix("_s")
        console.print(f"{bar['of']}: {figure} {bar['is_s']:.2f} s; the bar is {bar['bar_s']:g} s: {word}")
    price = figures["false_verdicts_host_year"]
    console.print(f"its price: {price} false verdicts a host-year in normal weather (docs/DETECTION.md)")


if __name__ == "__main__":
    sys.exit(main())
