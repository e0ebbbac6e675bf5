"""`rekindle simulate --mutations`: every deliberate fault in random worlds, and the table of what caught it."""

from __future__ import annotations

import json
import multiprocessing
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import typer
from rich.console import Console

from services.cli.counting import counted
from services.cli.mutations import MUTATIONS, Mutation
from services.cli.simulate import CHUNK, world

TABLE = Path("docs/MUTATIONS.md")
SURVIVES = 2000
"""A mutation that is not caught in so many worlds shows that they are too kind."""


def _caught(job: tuple[str, int]) -> tuple[str, int, str]:
    """Which rule caught the mutation in this world; "" for none."""
    name, seed = job
    mutation = next(one for one in MUTATIONS if one.name == name)
    with mutation.applied():
        _, violations, _ = world(seed)
    rule = violations[0].rule if violations else ""
    if rule == "crash" and not mutation.crashes:
        raise RuntimeError(
            f"the deliberate fault {name!r} fails by itself (seed {seed}): {violations[0].detail}"
        )
    return name, seed, rule


def _hunted(job: tuple[str, int, int]) -> tuple[str, int, str]:
    """A survivor gets more worlds, until it is caught: how many these were, and by which rule."""
    name, first, worlds = job
    for done in range(1, worlds + 1):
        _, _, rule = _caught((name, first + done - 1))
        if rule:
            return name, done, rule
    return name, worlds, ""


def mutate(runs: int, first: int, jobs: int, as_json: bool) -> None:
    """Run them all, write the table, say in how many worlds each was caught. Exits with 1 where one survives."""
    console = Console(stderr=True)
    caught: dict[str, Counter[str]] = {one.name: Counter() for one in MUTATIONS}
    earliest: dict[str, int] = {}
    work = [(one.name, seed) for one in MUTATIONS for seed in range(first, first + runs)]
    with multiprocessing.get_context("fork").Pool(jobs) as pool:
        with counted(console, "mutated worlds", len(work)) as advance:
            for name, seed, rule in pool.imap_unordered(_caught, work, chunksize=CHUNK):
                advance()
                if rule:
                    caught[name][rule] += 1
                    earliest[name] = min(seed, earliest.get(name, seed))
        tried = {one.name: runs for one in MUTATIONS}
        left = [one.name for one in MUTATIONS if not caught[one.name]]
        console.print(f"not caught in {runs} worlds: {', '.join(left) or 'none'}", highlight=False)
        more = [(name, first + runs, SURVIVES - runs) for name in left]
        for name, done, rule in pool.imap_unordered(_hunted, more):
            tried[name] += done
            said = f"caught by rule {rule} after {tried[name]} worlds" if rule else "NOT CAUGHT"
            console.print(f"{name}: {said}", highlight=False)
            if rule:
                caught[name][rule] += 1
                earliest[name] = first + runs + done - 1
    rows = [_row(one, tried[one.name], caught[one.name], earliest.get(one.name)) for one in MUTATIONS]
    if TABLE.parent.is_dir():
        TABLE.write_text(_table(rows, runs, first))
    if as_json:
        sys.stdout.write(
            json.dumps({"schema": "rekindle.mutations.v1", "runs": runs, "mutations": rows}) + "\n"
        )
    else:
        for row in rows:
            rules = ", ".join(row["rules"]) or "-"
            sys.stdout.write(f"{row['name']:<28} {row['caught']:>5} of {row['worlds']} by rule {rules}\n")
    if any(not row["caught"] for row in rows):
        raise typer.Exit(1)


def _row(mutation: Mutation, tried: int, rules: Counter[str], earliest: int | None) -> dict[str, Any]:
    return {
        "name": mutation.name,
        "says": mutation.says,
        "caught": sum(rules.values()),
        "worlds": tried,
        "rules": [rule for rule, _ in rules.most_common()],
        "earliest": earliest,
    }


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
        caught = f"{row['caught']} of {row['worlds']}"
        lines.append(f"| {row['name']} | {row['says']} | {caught} | {', '.join(row['rules'])} | {seed} |")
    return "\n".join(lines) + "\n"
