"""The command `rekindle lab chaos`."""

from __future__ import annotations

from rich.console import Console

from infra.lab.chaos import Chaos, Result
from infra.lab.playing import play


def perform(chaos: Chaos) -> Result:
    """Play it. Exits with 1 where the lab itself fails."""
    return play(chaos.play(), chaos.run, "the lab failed")


def report(console: Console, result: Result) -> None:
    """For people."""
    from services.cli import tables

    console.print()
    tables.rows("faults", ("fault", "times"), [{"fault": k, "times": n} for k, n in result.kinds.items()])
    console.print()
    rows = [
        {
            "vm": name,
            "ran twice": f"{vm.double_s:.2f} s",
            "restarts": vm.restarts,
            "longest downtime": f"{vm.longest_downtime_s:.1f} s",
        }
        for name, vm in result.vms.items()
    ]
    tables.rows("VMs", ("vm", "ran twice", "restarts", "longest downtime"), rows)
    console.print()
    console.print(
        f"seed {result.seed}: {result.faults} faults in {result.rounds} rounds over {result.lasted_s / 60:.1f} min, "
        f"{result.hosts_fenced} hosts fenced, {result.failovers} failovers, longest downtime "
        f"{result.longest_downtime_s:.1f} s; whole again at most {result.slowest_whole_s:.1f} s after the last step of a round"
    )
    console.print(
        f"ran twice: {result.double_running_s:.2f} s, as an independent observer saw it "
        f"(at least {result.observer_lowest_hz:.0f} looks a second at every host)"
    )
    for failing in result.failing:
        console.print(f"\n# round {failing.number} as a scenario, for `rekindle lab run --bare`")
        console.print(failing.scenario, markup=False)
    for found in result.found:
        console.print(f"[bold red]must not be[/]: {found}")
    console.print(
        "[green]passed[/]: nothing ran twice, every VM came back" if result.passed else "[bold red]failed[/]"
    )
