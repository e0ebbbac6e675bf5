"""`rekindle simulate`: what would happen if; and ten thousand bad days of random pools."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
import yaml
from rich.console import Console

from libs.config.yamlfile import BadInputError
from libs.scenario.files import load_scenario
from libs.scenario.model import Scenario
from libs.scenario.outcome import Violation
from libs.sim.possible import problem
from libs.sim.random_world import draw, written
from libs.sim.run import Result, run
from libs.sim.shrink import shrink
from libs.sim.steps import POSSIBLE
from services.cli.counting import counted
from services.cli.simplane import PLANE

CHUNK = 8
FOUND = Path("tests/simulation/found")
"""In a checkout: each file there is played by tests/simulation/test_found.py."""


def simulate(
    scenario: Annotated[Path | None, typer.Option(help="a scenario file (rekindle.scenario.v1)")] = None,
    runs: Annotated[int | None, typer.Option(help="so many random worlds", min=1)] = None,
    seed: Annotated[int | None, typer.Option(help="of the scenario, or of the first world")] = None,
    jobs: Annotated[int | None, typer.Option(help="processes; default: all cores", min=1)] = None,
    mutations: Annotated[
        bool, typer.Option("--mutations", help="break the services on purpose, and see it noticed")
    ] = False,
    keep: Annotated[
        Path | None,
        typer.Option(
            help="where the scenario of a violation is written; default: tests/simulation/found in a checkout of "
            "Rekindle, where each is a test from then on, else ./found"
        ),
    ] = None,
    log: Annotated[bool, typer.Option("--log", help="with a scenario: one line a decision")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON, for machines")] = False,
) -> None:
    """Play a scenario, or random bad days, with the real services in a simulated pool. Exit 1 on a violation."""
    if scenario is not None and (runs is not None or mutations):
        raise BadInputError("--scenario plays one file; --runs and --mutations draw random worlds")
    if scenario is not None:
        _one(scenario, seed, log, as_json)
    elif mutations:
        from services.cli.mutating import (
            mutate,
        )  # it reaches into every service, which no other command needs

        mutate(runs, seed or 0, jobs or os.cpu_count() or 1, as_json)
    elif runs is not None:
        _many(runs, 1 if seed is None else seed, jobs or os.cpu_count() or 1, keep or _place(), as_json)
    else:
        raise BadInputError("give --scenario FILE, --runs N or --mutations")


def load(path: Path) -> Scenario:
    """A scenario that can be played here. Raises BadInputError with file, line, field and reason."""
    return load_scenario(path, POSSIBLE, problem)


def _one(path: Path, seed: int | None, log: bool, as_json: bool) -> None:
    scenario = load(path)
    # a kept world stops at its first violation, as it did when it was drawn
    chosen = scenario.seed if seed is None else seed
    result = run(scenario, chosen, PLANE, stop_at_first=scenario.healed)
    if log:
        sys.stdout.write("\n".join(result.log) + "\n")
    elif as_json:
        sys.stdout.write(result.outcome.model_dump_json(indent=2, by_alias=True) + "\n")
    else:
        _report(scenario, result)
    if not result.outcome.passed:
        raise typer.Exit(1)


def _report(scenario: Scenario, result: Result) -> None:
    from services.cli import tables

    outcome = result.outcome
    tables.console.print("\n".join(result.log), highlight=False, markup=False, soft_wrap=True)
    tables.machines(scenario, outcome)
    tables.console.print(f"\nran twice: {outcome.double_running_s:.2f} s", highlight=False)
    for broken in outcome.violations:
        said = f"[bold red]rule {broken.rule}[/] at {broken.at_s} s: "
        tables.console.print(said, broken.detail, highlight=False, soft_wrap=True)
    tables.console.print("[green]passed[/]" if outcome.passed else "[bold red]failed[/]")


# -- many worlds


def world(seed: int) -> tuple[int, list[Violation], float]:
    """One random bad day: its seed, what it broke, how long it lasted."""
    result = run(draw(seed), seed, PLANE, liveness=True)
    return seed, result.violations, result.virtual_s


def _each(seeds: range, jobs: int) -> Iterator[tuple[int, list[Violation], float]]:
    """In the order in which they end. Seeds share nothing, so the order tells nothing."""
    if jobs == 1:
        yield from map(world, seeds)
        return
    with multiprocessing.get_context("fork").Pool(jobs) as pool:
        yield from pool.imap_unordered(world, seeds, chunksize=CHUNK)


def _many(runs: int, first: int, jobs: int, keep: Path, as_json: bool) -> None:
    console = Console(stderr=True)
    began, virtual_s = time.monotonic(), 0.0
    broken: list[tuple[int, Violation]] = []
    with counted(console, "random worlds", runs) as advance:
        for seed, violations, lasted_s in _each(range(first, first + runs), jobs):
            virtual_s += lasted_s
            advance()
            if violations:
                broken.append((seed, violations[0]))
                console.print(_told(seed, violations[0]), highlight=False, markup=False)
    took_s = time.monotonic() - began
    written_to = [str(_keep(seed, violation, keep, console)) for seed, violation in sorted(broken)[:3]]
    if as_json:
        document = {
            "schema": "rekindle.simulation.v1",
            "runs": runs,
            "seed": first,
            "violations": [{"seed": s, **v.model_dump(mode="json")} for s, v in sorted(broken)],
            "scenarios": written_to,
            "elapsed_s": round(took_s, 1),
            "simulated_s": round(virtual_s, 1),
        }
        sys.stdout.write(json.dumps(document, indent=2) + "\n")
    else:
        said = f"{len(broken)} of {runs} worlds broke a rule" if broken else f"{runs} worlds, no violation"
        sys.stdout.write(f"{said}; {virtual_s / 3600:.1f} simulated hours in {took_s:.1f} s\n")
    if broken:
        raise typer.Exit(1)


def _told(seed: int, violation: Violation) -> str:
    return f"seed {seed}: rule {violation.rule} at {violation.at_s} s: {violation.detail}"


def _place() -> Path:
    """Where violations are kept if nobody says where."""
    return FOUND if FOUND.is_dir() else Path(FOUND.name)


def _keep(seed: int, violation: Violation, directory: Path, console: Console) -> Path:
    """Shrink the world and write it as a scenario file."""

    def fails(scenario: Scenario) -> Violation | None:
        result: Result = run(scenario, seed, PLANE, liveness=True)
        return next((one for one in result.violations if one.rule == violation.rule), None)

    smallest, tries = shrink(draw(seed), fails)
    found = fails(smallest) or violation
    path = directory / f"seed-{seed}-rule-{violation.rule}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(as_file(smallest, seed, found))
    steps = len(smallest.steps)
    console.print(f"seed {seed}: {steps} steps left after {tries} tries: {path}", highlight=False)
    return path


def as_file(scenario: Scenario, seed: int, violation: Violation) -> str:
    """A drawn world as a file that plays again byte for byte, with what it shows at its head."""
    body = scenario.model_dump(mode="json", exclude_defaults=True, exclude={"format", "steps", "expect"})
    body["seed"], body["healed"] = seed, True
    if violation.rule in ("9", "10"):  # what must happen in the end is an expectation in a file
        broken = [vm.name for vm in scenario.vms if f"VM {vm.name} " in violation.detail]
        body["expect"] = [{"vm": name, "state": "running"} for name in broken]
    steps = [written(step) for step in scenario.steps]
    document = {"schema": scenario.format, **body, "steps": steps}
    said = f"rule {violation.rule} at {violation.at_s} s: {violation.detail}"
    head = "".join(f"# {line}\n" for line in said.splitlines())
    return head + yaml.safe_dump(document, sort_keys=False, default_flow_style=None, width=120)
