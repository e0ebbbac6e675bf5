"""The installer's branch for relatives of RHEL, by real dnf, rpm and systemd, on a stand-in: see rhel.py. `make systemd-test`."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from tests.systemd import machine as machines
from tests.systemd import rhel
from tests.systemd.machine import DATA, bare, until
from tests.systemd.pool import SHARED, Pool, define, install, running, thrown_away

WITHOUT = "" if os.environ.get("REKINDLE_SYSTEMD") else "it takes minutes: run `make systemd-test`"
pytestmark = [pytest.mark.timeout(900), pytest.mark.skipif(bool(WITHOUT), reason=WITHOUT)]
UNIT, GATE = "rekindle-heartbeat.service", "rekindle-gate.service"


@pytest.mark.parametrize(
    ("version", "crb"),
    [
        pytest.param(10, "crb", id="Rocky 10, whose Python is new enough"),
        pytest.param(9, "codeready-builder-for-rhel-9-x86_64-rpms", id="RHEL 9, whose CRB has another name"),
    ],
)
def test_it_is_installed_by_dnf_and_stands_beside_virtqemud(version: int, crb: str) -> None:
    reason = machines.reasons_against()
    if reason:
        pytest.skip(f"no host can be booted here: {reason}")
    base = bare(rhel.RECIPE, of=bare())
    place = Path(tempfile.mkdtemp(prefix="run-", dir=DATA))
    place.chmod(0o755)
    pool = Pool(place, names=("r1",))
    host = pool.machine("r1", base)
    rhel.make(host, version, crb)
    try:
        pool.lay_out()
        pool.start()
        host.boot()
        assert host.ask("systemctl", "is-active", "virtqemud", "libvirtd").stdout.split()[0] == "active"
        said = install(host, "--pool", "pool.yaml", "--bus-dir", "for-r1")
        assert "the agent of r1 is installed" in said
        assert "must be restarted" not in said
        wanted = {*rhel.PYTHON, *(rhel.OLD if version < 10 else ())}
        assert wanted <= set(host.do("rpm", "-qa", "--qf", "%{NAME}\n").split())
        interpreter = "/usr/bin/python3.11" if version < 10 else "/usr/bin/python3"
        assert f"exec {interpreter} -I" in host.do("cat", "/etc/libvirt/hooks/qemu.d/rekindle-arrivals")
        assert host.do("systemd-analyze", "verify", UNIT, GATE) == ""
        until(lambda: pool.host("r1")["state"] == "healthy", 20, "the pool hears it")
        define(host, "vm1", protection="none", autostart=True, start=False)
        host.cut()
        host.boot()
        until(lambda: running(host) == {"vm1"}, 20, "virtqemud starts what the gate leaves to it")
        order = [
            int(host.shown(unit, which)[which])
            for unit, which in (
                (GATE, "ExecMainExitTimestampMonotonic"),
                ("virtqemud.service", "ExecMainStartTimestampMonotonic"),
                (UNIT, "ExecMainStartTimestampMonotonic"),
            )
        ]
        assert order == sorted(order), "the gate, then libvirt, then the agent"
        assert "1 of 1 VMs are libvirt's to start" in host.journal(GATE)
        until(lambda: pool.vm("vm1").get("state") == "running", 20, "its agent sees the VM")
        assert host.ask("stat", f"{SHARED}/.rekindle-rack-a/r1.slot").returncode == 0
    finally:
        host.cut()
        pool.stop()
        thrown_away(place)
