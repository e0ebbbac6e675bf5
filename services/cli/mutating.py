"""`rekindle simulate --mutations`: every deliberate fault in random worlds, and the table of what caught it.

Each is run in the first N worlds, to say in how many of them it is caught, and one that is caught in none of these in
more, until it is: `--runs 1` stops each at the first world that catches it. The first worlds are run mutation after
mutation; of what survives them the least advanced comes first, so that the last survivors have all cores to themselves.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import typer
from rich.console import Console

from services.cli.counting import counted
from services.cli.mutations import MUTATIONS, Mutation
from services.cli.simulate import world

TABLE = Path("docs/MUTATIONS.md")
RUNS = 30
SURVIVES = 2000
"""A mutation that is not caught in so many worlds shows that they are too kind."""
CHUNK = 10
"""Worlds that one process runs at a time."""
Rules = dict[int, str]
"""By seed the rule that caught a mutation; "" for none."""


@dataclass(slots=True)
class Hunt:
    """One mutation: how far it has come, and what caught it."""

    mutation: Mutation
    first: int
    runs: int
    most: int
    rules: Rules = field(default_factory=dict)
    given: int = 0
    """Worlds that were handed out."""

    @property
    def earliest(self) -> int | None:
        return min((seed for seed, rule in self.rules.items() if rule), default=None)

    @property
    def wants(self) -> bool:
        """There is a world more to be tried."""
        return self.given < self.runs or (self.earliest is None and self.given < self.most)

    @property
    def done(self) -> bool:
        return not self.wants and len(self.rules) == self.given

    def next(self) -> range:
        """The worlds to be tried now: no chunk reaches over the end of the first N."""
        end = self.runs if self.given < self.runs else self.most
        begin, self.given = self.given, min(self.given + CHUNK, end)
        return range(self.first + begin, self.first + self.given)

    def row(self) -> dict[str, Any]:
        """What the table says. Of the worlds after the first N those up to the one that caught it count: the last
        chunks run side by side, and which of the later ones were still tried is chance."""
        earliest = self.earliest
        worlds = self.runs
        if earliest is None or earliest >= self.first + self.runs:
            worlds = len(self.rules) if earliest is None else earliest - self.first + 1
        seen = [rule for seed, rule in sorted(self.rules.items()) if rule and seed < self.first + worlds]
        return {
            "name": self.mutation.name,
            "says": self.mutation.says,
            "caught": len(seen),
            "worlds": worlds,
            "rules": [rule for rule, _ in Counter(seen).most_common()],
            "earliest": earliest,
        }


def caught(name: str, seeds: range) -> Rules:
    """What catches this mutation in these worlds. Raises RuntimeError where its own code fails."""
    mutation = next(one for one in MUTATIONS if one.name == name)
    rules: Rules = {}
    for seed in seeds:
        with mutation.applied():
            _, violations, _ = world(seed)
        rules[seed] = violations[0].rule if violations else ""
        if rules[seed] == "crash" and not mutation.crashes:
            said = f"the deliberate fault {name!r} fails by itself (seed {seed}): {violations[0].detail}"
            raise RuntimeError(said)
    return rules


def hunted(hunts: list[Hunt], jobs: int) -> Iterator[Hunt]:
    """Each as soon as it is done."""
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("fork")) as pool:
        running: dict[Future[Rules], Hunt] = {}
        try:
            while True:
                while len(running) < jobs + 1 and (open_ := [hunt for hunt in hunts if hunt.wants]):
                    hunt = min(open_, key=lambda one: 0 if one.given < one.runs else one.given)
                    running[pool.submit(caught, hunt.mutation.name, hunt.next())] = hunt
                if not running:
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    hunt = running.pop(future)
                    hunt.rules.update(future.result())
                    if hunt.done:
                        yield hunt
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def mutate(runs: int | None, first: int, jobs: int, as_json: bool) -> None:
    """Run them all, write the table, say in how many worlds each was caught. Exits with 1 where one survives."""
    runs = runs or RUNS
    console = Console(stderr=True)
    hunts = [Hunt(one, first, runs, max(runs, SURVIVES)) for one in MUTATIONS]
    with counted(console, "deliberate faults", len(hunts)) as advance:
        for hunt in hunted(hunts, jobs):
            advance()
            row = hunt.row()
            if row["worlds"] > runs or not row["caught"]:
                said = f"caught by rule {row['rules'][0]} in world" if row["rules"] else "NOT CAUGHT in"
                console.print(f"{row['name']}: {said} {row['worlds']}", highlight=False)
    rows = [hunt.row() for hunt in hunts]
    if TABLE.parent.is_dir():
        TABLE.write_text(_table(rows, runs, first))
    if as_json:
        document = {"schema": "rekindle.mutations.v1", "runs": runs, "mutations": rows}
        sys.stdout.write(json.dumps(document) + "\n")
    else:
        for row in rows:
            rules = ", ".join(row["rules"]) or "-"
            sys.stdout.write(f"{row['name']:<28} {row['caught']:>5} of {row['worlds']} by rule {rules}\n")
    if any(not row["caught"] for row in rows):
        raise typer.Exit(1)


def _table(rows: list[dict[str, Any]], runs: int, first: int) -> str:
    """The table in docs/: written by this command only."""
    lines = [
        "# Does the simulator find bugs?",
        "",
        f"Each line is one deliberate fault in the production code (`services/cli/mutations.py`), run in {runs} random",
        f"worlds from seed {first}, and in more where it was not caught by then. Written by `rekindle simulate --mutations --runs {runs}`; do not edit.",
        "",
        "| mutation | what is wrong | caught | by rule | first seed |",
        "|---|---|---:|---|---:|",
    ]
    for row in rows:
        seed = "" if row["earliest"] is None else row["earliest"]
        counts = f"{row['caught']} of {row['worlds']}"
        lines.append(f"| {row['name']} | {row['says']} | {counts} | {', '.join(row['rules'])} | {seed} |")
    return "\n".join(lines) + "\n"
