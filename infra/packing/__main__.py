"""`python -m infra.packing`: how good and how fast placement is. Prints tables, checks nothing.

The exact optimum needs OR-tools (`pip install ortools`); without it that column is empty.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from infra.packing.changes import changes
from infra.packing.pools import HOSTS, LOST, large, real
from infra.packing.rivals import RIVALS, optimum
from libs.planning.capacity import capacity
from libs.planning.plan import Allowed, plan
from libs.planning.pool import Pool
from libs.planning.snapshot import Snapshot
from libs.planning.witness import Witnesses

FILLS = (0.90, 0.95, 0.98)
GROWTH = ((100, 1_000), (300, 3_000), (1_000, 10_000), (3_000, 30_000), (10_000, 100_000))
DOCS = Path(__file__).resolve().parents[2] / "docs" / "PLACEMENT.md"
OURS, MOVING = "ours, nothing moved", "ours, with moves"
STILL, MOVED = "optimum, nothing moved", "optimum, with moves"
Rows = list[dict[str, Any]]


def quality(pools: int) -> Rows:
    """By fill, for each way of placing: in how many pools a VM stays down, and how many VMs in all."""
    rows: Rows = []
    for fill in FILLS:
        down: dict[str, list[int | None]] = {name: [] for name in (*RIVALS, OURS, MOVING, STILL, MOVED)}
        moves, slowest = [], 0.0
        for seed in range(pools):
            shot, lost = real(fill, seed), frozenset(f"h{at:02}" for at in range(LOST))
            for name, rival in RIVALS.items():
                down[name].append(rival(shot, lost))
            down[OURS].append(len(plan(shot, lost).unplaced))
            begun = time.perf_counter()
            found = plan(shot, lost, allowed=Allowed(migrations=True))
            slowest = max(slowest, time.perf_counter() - begun)
            down[MOVING].append(len(found.unplaced))
            moves.append(len(found.migrations))
            down[STILL].append(optimum(shot, lost, moves=False))
            down[MOVED].append(optimum(shot, lost, moves=True))
        rows += [_summed(fill, name, counts) for name, counts in down.items()]
        ours = [row for row in rows if row["fill"] == fill and row["way"] == MOVING]
        ours[0] |= {"moves_median": statistics.median(moves), "moves_most": max(moves), "slowest_s": slowest}
        worse = [
            seed
            for seed in range(pools)
            if any((down[OURS][seed] or 0) > (down[name][seed] or 0) for name in RIVALS)
        ]
        missed = [
            seed
            for seed in range(pools)
            if down[MOVED][seed] is not None and (down[MOVING][seed] or 0) > (down[MOVED][seed] or 0)
        ]
        ours[0] |= {"worse_than_a_rival": len(worse), "missed_the_optimum": len(missed)}
        sys.stderr.write(f"{fill:.0%} done\n")
    return rows


def _summed(fill: float, way: str, counts: list[int | None]) -> dict[str, Any]:
    known = [count for count in counts if count is not None]
    return {
        "fill": fill,
        "way": way,
        "pools": len(known),
        "pools_with_a_vm_down": sum(1 for count in known if count),
        "vms_down": sum(known),
    }


def speed(growth: tuple[tuple[int, int], ...]) -> Rows:
    """How long a plan and a proof take as pools grow: processor time, the least of three, since the machine is rarely quiet."""
    rows: Rows = []
    for hosts, vms in growth:
        shot = large(hosts, vms)
        lost = frozenset([shot.hosts[1].name])
        row: dict[str, Any] = {"hosts": hosts, "vms": vms}
        row["plan_ms"] = _least(lambda shot=shot, lost=lost: plan(shot, lost))
        begun = time.process_time()
        kept = Witnesses(Pool(shot))
        row["witnesses_s"] = time.process_time() - begun
        costs = {what: _proved_ms(kept, changed) for what, changed in changes(shot, kept)}
        row["worst_change"] = max(costs, key=costs.__getitem__)
        row["capacity_ms"] = costs[row["worst_change"]]
        row["changes_ms"] = costs
        rows.append(row)
        sys.stderr.write(f"{hosts} hosts done\n")
    return rows


def _least(work: Any) -> float:
    times = []
    for _ in range(3):
        begun = time.process_time()
        work()
        times.append(1000 * (time.process_time() - begun))
    return min(times)


def _proved_ms(kept: Witnesses, changed: Snapshot) -> float:
    """From a pool that has changed to the proof for one failure."""
    return _least(lambda: capacity(changed, kept.refreshed(Pool(changed)), up_to=1))


def rendered(qualities: Rows, speeds: Rows) -> str:
    """The tables that there are, as Markdown."""
    return "\n".join([*_goodness(qualities), *_growth(speeds)]).strip() + "\n"


def _goodness(qualities: Rows) -> list[str]:
    if not qualities:
        return []
    lines = [
        f"{HOSTS} hosts of 128 GiB, {LOST} lost, filled so far afterwards; pools in which a VM stays down, and VMs:",
        "",
    ]
    fills = sorted({row["fill"] for row in qualities})
    lines += ["| way | " + " | ".join(f"{fill:.0%}" for fill in fills) + " |", "|---|" + "---:|" * len(fills)]
    for way in dict.fromkeys(row["way"] for row in qualities):
        cells = []
        for fill in fills:
            [row] = [one for one in qualities if one["fill"] == fill and one["way"] == way]
            share = f"{row['pools_with_a_vm_down']} of {row['pools']}"
            cells.append(f"{share} ({row['vms_down']})" if row["pools"] else "-")
        lines.append(f"| {way} | " + " | ".join(cells) + " |")
    moving = [row for row in qualities if row["way"] == MOVING]
    lines += [
        "",
        "| ours | " + " | ".join(f"{row['fill']:.0%}" for row in moving) + " |",
        "|---|" + "---:|" * len(fills),
    ]
    for name, form in (
        ("moves_median", "{:g}"),
        ("moves_most", "{}"),
        ("slowest_s", "{:.2f}"),
        ("worse_than_a_rival", "{}"),
        ("missed_the_optimum", "{}"),
    ):
        lines.append(
            f"| {name.replace('_', ' ')} | " + " | ".join(form.format(row[name]) for row in moving) + " |"
        )
    return lines


def _growth(speeds: Rows) -> list[str]:
    if not speeds:
        return []
    return [
        "",
        "Processor time, the least of three (`make bench` prints this table, too):",
        "",
        "| hosts | VMs | plan for a dead host, ms | all witnesses, s | one failure after any change, ms | the dearest change |",
        "|---:|---:|---:|---:|---:|---|",
        *(
            f"| {row['hosts']} | {row['vms']} | {row['plan_ms']:.1f} | {row['witnesses_s']:.2f} | {row['capacity_ms']:.0f} | {row['worst_change']} |"
            for row in speeds
        ),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m infra.packing", description=__doc__)
    parser.add_argument("--pools", type=int, default=100, help="for each fill (default: %(default)s)")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--no-speed", action="store_true", help="only how good, not how fast")
    which.add_argument("--only-speed", action="store_true", help="only how fast, which takes half a minute")
    parser.add_argument("--json", action="store_true", help="print one JSON document alone")
    parser.add_argument("--write", action="store_true", help=f"put the tables into {DOCS.name}")
    options = parser.parse_args()
    qualities = [] if options.only_speed else quality(options.pools)
    speeds = [] if options.no_speed else speed(GROWTH)
    text = rendered(qualities, speeds)
    if options.json:
        sys.stdout.write(json.dumps({"quality": qualities, "speed": speeds}, indent=2) + "\n")
    else:
        sys.stdout.write(text)
    if options.write:
        head, _, rest = DOCS.read_text(encoding="utf-8").partition("<!-- packing -->\n")
        _, mark, tail = rest.partition("<!-- /packing -->")
        DOCS.write_text(f"{head}<!-- packing -->\n{text}{mark}{tail}", encoding="utf-8")


if __name__ == "__main__":
    main()
