"""The command `rekindle lab soak`."""

from __future__ import annotations

from rich.console import Console

from infra.lab import weather
from infra.lab.bus import NODES
from infra.lab.playing import play
from infra.lab.soak import Result, Soak
from libs.config.yamlfile import BadInputError

SHOWN = ("host.suspected", "host.refuted", "host.agent_down", "storm.held", "detector.degraded")


def perform(soak: Soak) -> Result:
    """Play it. Exits with 1 where the lab itself fails."""
    return play(soak.play(), soak.run, "the lab failed")


def check_nodes(bus_nodes: int) -> None:
    """Raises BadInputError for a bus that the lab cannot have."""
    if bus_nodes not in (1, NODES):
        raise BadInputError(f"--bus-nodes {bus_nodes}: 1 or {NODES}")


def check(bus_nodes: int) -> None:
    """Raises BadInputError for what cannot be done here."""
    check_nodes(bus_nodes)
    lacking = weather.why_not()
    if lacking is not None:
        raise BadInputError(f"lab soak loses packets: it {lacking}")


def report(console: Console, result: Result) -> None:
    """For people."""
    console.print()
    console.print(
        f"{result.lasted_s / 60:.1f} min, {result.loss_percent:g} % of the packets lost each way, "
        f"load average {result.load:g}, processors idle for {result.idle_percent:g} % of it, "
        f"{len(result.changes)} leader changes on {result.bus_nodes} NATS nodes"
    )
    for change in result.changes:
        console.print(
            f"  {change.at_s:7.1f} s  {change.how} {change.node}: no leader for {change.away_s:.2f} s"
        )
    counts = ", ".join(f"{kind} {result.facts.get(kind, 0)}" for kind in SHOWN)
    console.print(
        f"told: {counts} ({result.degraded_s:g} s in all); "
        f"{result.service_restarts} services of the plane ended and were started again"
    )
    console.print(
        f"the observer looked at least {result.observer_lowest_hz:.0f} times a second at every host"
    )
    if result.proof:
        console.print(f"afterwards {result.proof}")
    for found in result.found:
        console.print(f"[bold red]must not be[/]: {found}")
    console.print(
        "[green]passed[/]: no verdict, no fencing, no VM touched" if result.passed else "[bold red]failed[/]"
    )
