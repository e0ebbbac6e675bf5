"""What lab tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab.roots import Roots


@pytest.fixture
def roots() -> Iterator[Roots]:
    made = Roots()
    yield made
    made.remove()
