"""Process of placement."""

from __future__ import annotations

from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from libs.service import Context, run
from services.placement.wiring import shell


async def wire(context: Context) -> list[Coroutine[Any, Any, None]]:
    return [shell(context).run()]


def main(config: Path) -> int:
    return run("placement", config, wire)
