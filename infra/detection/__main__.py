"""`python -m infra.detection`: the table of detection, by simulation. Prints it; `--write` puts it into the docs."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from pydantic import ValidationError

from infra.detection.run import run
from infra.detection.table import document, faults, render, replaced
from libs.config.settings import Detection

DOCS = Path(__file__).resolve().parents[2] / "docs" / "DETECTION.md"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m infra.detection", description=__doc__)
    parser.add_argument(
        "--host-years", type=float, default=2000.0, help="in each weather (default: %(default)g)"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes (default: all cores)")
    parser.add_argument("--json", action="store_true", help="print one JSON document alone")
    parser.add_argument("--write", action="store_true", help=f"put the tables into {DOCS.name}")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a setting of detection to try in every profile, such as confirm_witnessed_s=6",
    )
    options = parser.parse_args()
    if options.host_years <= 0 or options.jobs < 1:
        parser.error("--host-years and --jobs must be greater than 0")
    options.changed = {}
    for given in options.set:
        name, _, value = given.partition("=")
        try:
            options.changed[name] = float(value)
            Detection.model_validate({name: options.changed[name]})
        except ValidationError as error:
            parser.error(f"--set {given}: {error.errors()[0]['msg']}")
        except ValueError:
            parser.error(f"--set {given}: not NAME=NUMBER")
    if options.write and options.changed:
        parser.error("--write tells of the profiles as they are: leave --set out")
    return options


class _Progress:
    """A line for every twentieth of the way, on standard error."""

    def __init__(self) -> None:
        self._told = 0

    def __call__(self, done: int, of: int) -> None:
        if done * 20 // of > self._told:
            self._told = done * 20 // of
            sys.stderr.write(f"{100 * done // of:3d} % of {of} blocks\n")


def main() -> int:
    options = _options()
    found = document(
        run(
            options.host_years,
            options.seed,
            jobs=options.jobs,
            progress=_Progress(),
            changed=options.changed,
        )
    )
    command = " ".join(
        (
            f"python -m infra.detection --host-years {options.host_years:g} --seed {options.seed}",
            *(f"--set {given}" for given in options.set),
        )
    )
    text = render(found, command)
    if options.write:
        DOCS.write_text(replaced(replaced(DOCS.read_text(), "detection", text), "faults", faults()))
    sys.stdout.write((json.dumps(found, indent=2) if options.json else text) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
