"""The diagnosis of `rekindle doctor` for people: worst first, one block a reason, and a last line that sums it up."""

from __future__ import annotations

from itertools import groupby

from rich.padding import Padding
from rich.text import Text

from libs.doctor.codes import Severity
from libs.doctor.findings import Diagnosis, Summary
from services.cli.tables import console

COLOURS = {Severity.ERROR: "bold red", Severity.WARNING: "yellow", Severity.INFO: "dim"}


def show(told: Diagnosis) -> None:
    """Print it."""
    for code, members in groupby(told.findings, key=lambda one: one.code):
        found = list(members)
        first = found[0]
        head = Text.assemble(
            (f"{first.severity:<8}", COLOURS[first.severity]), (code, "bold"), ": ", first.means
        )
        console.print(head)
        for one in found:
            at = f" on {one.host}" if one.host and one.host != one.subject else ""
            console.print(
                Padding(Text.assemble((one.subject, "bold"), at, ": ", one.seen), (0, 0, 0, 8), expand=False)
            )
        console.print(Padding(Text(f"do: {first.do}", style="italic"), (0, 0, 1, 8), expand=False))
    console.print(Text(sums_up(told.summary), style="green" if told.passed else "red"), soft_wrap=True)


def sums_up(summary: Summary) -> str:
    """The last line: how many protected VMs that run could be restarted today, and how many not."""
    unseen = f", {summary.vms_not_seen} on hosts that do not answer" if summary.vms_not_seen else ""
    return (
        f"{_counted(summary.vms_protected, 'protected VM')} that run{'s' if summary.vms_protected == 1 else ''}: {summary.vms_restartable} could be restarted today, "
        f"{summary.vms_not_restartable} not{unseen} "
        f"({_counted(summary.errors, 'error')}, {_counted(summary.warnings, 'warning')}, "
        f"{_counted(summary.infos, 'note')})"
    )


def _counted(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"
