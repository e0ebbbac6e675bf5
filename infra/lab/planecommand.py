"""The commands `rekindle lab planechaos` and `rekindle lab outage`."""

from __future__ import annotations

import statistics

from rich.console import Console

from infra.lab.outage import Outage
from infra.lab.outage import Result as OutageResult
from infra.lab.planechaos import PlaneChaos, Result
from infra.lab.playing import play


def perform(chaos: PlaneChaos) -> Result:
    """Play it. Exits with 1 where the lab itself fails."""
    return play(chaos.play(), chaos.run, "the lab failed")


def report(console: Console, result: Result) -> None:
    """For people."""
    console.print()
    usual_s = statistics.median(result.alone_s) if result.alone_s else 0.0
    console.print(
        f"{result.failovers} failovers in {result.lasted_s / 60:.1f} min, {result.incidents} incidents in all, "
        f"{sum(result.faults.values())} faults of the plane; undisturbed a failover takes {usual_s:.2f} s"
    )
    console.print(", ".join(f"{kind} {count}" for kind, count in result.faults.items()))
    for bar, late in result.delays.items():
        console.print(
            f"  beside {bar:<18} {late['count']:4.0f} failovers, late by {late['median']:.2f} s in the median, "
            f"{late['p95']:.2f} s in the 95th percentile, {late['worst']:.2f} s at most"
        )
    console.print(f"ran twice: {result.double_running_s:g} s")
    for found in result.found:
        console.print(f"[bold red]must not be[/]: {found}")
    console.print("[green]passed[/]" if result.passed else "[bold red]failed[/]")


def perform_outage(outage: Outage) -> OutageResult:
    """Play it. Exits with 1 where the lab itself fails."""
    return play(outage.play(), outage.run, "the lab failed")


def report_outage(console: Console, result: OutageResult) -> None:
    """For people."""
    console.print()
    console.print(
        f"the plane was away for {result.away_s / 60:.1f} min; once it was started again its view was right after "
        f"{result.right_s:g} s, and what ran on the dead host ran elsewhere after {result.recovered_s:g} s "
        f"(of which {result.quiet_s:g} s nobody is suspected)"
    )
    for found in result.found:
        console.print(f"[bold red]must not be[/]: {found}")
    console.print("[green]passed[/]: no other VM was touched" if result.passed else "[bold red]failed[/]")
