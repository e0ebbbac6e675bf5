"""How far long work has come: a bar for people, a line now and then where nobody watches a terminal."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

TENTH = 10


@contextlib.contextmanager
def counted(console: Console, what: str, total: int) -> Iterator[Callable[[], None]]:
    """Call what is given once for each that is done."""
    if console.is_terminal:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=console) as progress:
            task = progress.add_task(what, total=total)
            yield lambda: progress.advance(task)
        return
    done = 0

    def advance() -> None:
        nonlocal done
        done += 1
        if done * TENTH // total > (done - 1) * TENTH // total:
            console.print(f"{what}: {done} of {total}", highlight=False)

    yield advance
