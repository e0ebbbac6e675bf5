"""The lab finds a secret where it must not stand."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from infra.lab import procs
from infra.lab.leaks import leaks
from libs.access.keys import KeyRing
from libs.pki import Pki

pytestmark = pytest.mark.fast


def test_a_secret_in_a_log_an_event_or_a_command_line_is_found_and_not_repeated(tmp_path: Path) -> None:
    nats, logs = tmp_path / "nats", tmp_path / "logs"
    ring, pki = KeyRing(nats / "keys"), Pki(nats / "tls")
    ring.make(["fencer"])
    pki.init("x")
    (nats / "token").write_text("0123456789abcdefXYZ")
    logs.mkdir()
    (logs / "up.log").write_text("all is well\n")
    assert leaks(nats, logs, ["{}"]) == []
    seed = ring.seed("fencer").read_text().strip()
    (logs / "up.log").write_text(f"key={seed}\n")
    assert leaks(nats, logs, []) == ["keys/fencer.nk in up.log"]
    (logs / "up.log").write_text("")
    assert leaks(nats, logs, [f'{{"url": "nats://a:{(nats / "token").read_text()}@b"}}']) == [
        "token in an event"
    ]
    shown = subprocess.Popen(["sleep", "60", "--", f"0.0{'0' * 20}"])
    try:
        (nats / "token").write_text(f"0.0{'0' * 20}")
        # a process has its command line a moment after Popen returns: exec closes files before it sets it
        procs.wait_for(
            lambda: bool(Path(f"/proc/{shown.pid}/cmdline").read_bytes()),
            10,
            "sleep to have its command line",
        )
        assert leaks(nats, logs, []) == [f"token in the command line of {shown.pid}"]
    finally:
        shown.kill()
        shown.wait()
