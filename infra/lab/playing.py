"""A command that plays something in a lab of its own: Ctrl-C, errors and the directory left behind, in one place."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Coroutine
from typing import Any, TypeVar

import typer

from infra.lab.interrupt import interruptible
from infra.lab.lab import LabError
from infra.lab.run import LabRun, RunFailedError
from libs.config.settings import Logging
from libs.logs import configure

T = TypeVar("T")


def play(work: Coroutine[Any, Any, T], run: LabRun, failed: str) -> T:
    """What the work brings, with our errors as messages that begin with `failed`. Exits with 1 where the lab fails;
    raises KeyboardInterrupt."""
    configure(Logging(level="error"))
    try:
        return asyncio.run(interruptible(work, lambda: run.stopping))
    except (LabError, RunFailedError, TimeoutError) as error:
        sys.stderr.write(f"rekindle: {failed}: {error}\n")
        raise typer.Exit(1) from error
    finally:
        if not run.keep and run.root.exists() and not any(run.root.iterdir()):
            run.root.rmdir()
