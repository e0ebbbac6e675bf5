"""What the lab's observer makes of a list that comes later than what processes showed: no end, and no start."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path

import pytest

from infra.lab.observer import Observer
from infra.lab.watching import Answer, Qemu

pytestmark = pytest.mark.fast


def test_a_list_that_is_older_than_a_process_tells_of_no_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = io.StringIO()
    observer = Observer({"h1": "test:///default"}, tmp_path, tmp_path, out)

    def heard(domains: dict[str, str] | None) -> None:
        observer.take(Answer("h1", time.monotonic(), domains))

    def turn(*running: str) -> None:
        found = [Qemu(1, uuid, uuid.upper(), "h1") for uuid in running]
        monkeypatch.setattr(observer.scan, "look", lambda now: found)
        observer.look()

    turn()
    heard({})
    heard(None)
    turn("a")
    heard({})
    heard({"a": "A"})
    heard({})
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [(line["vm"], line["active"]) for line in lines if line["kind"] == "vm"] == [
        ("a", True),
        ("a", False),
    ]
