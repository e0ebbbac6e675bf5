"""For all tests."""

from __future__ import annotations

import gc
import signal
from pathlib import Path

import pytest

# Whoever runs us in the background of a script has SIGINT ignored, and our children would inherit that: what a
# Ctrl-C does could not be tested. A handler is not inherited, so they begin with the default.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Thousands of modules and tests come and stay: collecting garbage among them is a tenth of the processor time of fast tests.
gc.disable()

ORDER = ("lab", "compose", "contract", "integration")
"""Directories of tests that wait for real parts, those that wait longest first; all others come after them."""


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """With `-m fast`, modules without such a test are not even imported: that takes longer than many a test."""
    if not config.option.markexpr.startswith("fast") or not collection_path.name.startswith("test_"):
        return None
    return True if "mark.fast" not in collection_path.read_text() else None


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


def _turn(item: pytest.Item) -> tuple[bool, int]:
    """Long tests begin first, so that no worker is left alone with one in the end."""
    kind = item.path.relative_to(Path(__file__).parent).parts[0]
    return item.get_closest_marker("long") is None, ORDER.index(kind) if kind in ORDER else len(ORDER)


def _shares_with_its_module(item: pytest.Item) -> bool:
    """Whether the test uses a fixture of its module's (a lab, a server): that is made once for all of them."""
    fixtures = item._fixtureinfo.name2fixturedefs if isinstance(item, pytest.Function) else {}
    return any(made.scope == "module" for given in fixtures.values() for made in given)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """In which order tests begin, and which stay together on one worker (with `--dist loadgroup`)."""
    items.sort(key=_turn)
    for item in items:
        if _shares_with_its_module(item):
            item.add_marker(pytest.mark.xdist_group(item.path.stem))
