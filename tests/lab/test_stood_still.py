"""S13, S14: processes that stand still on real hosts, one after the other in one lab. Nobody is held failed for it, and no VM
is touched."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from infra.lab import procs
from infra.lab.hostinit import FORKED_AGENT
from infra.lab.run import LabRun
from libs.events.envelope import Envelope
from libs.scenario.model import Scenario
from tests.lab.roots import Roots

pytestmark = [pytest.mark.lab, pytest.mark.long]
STILL_S = 8.0
"""Longer than any confirmation, `confirm_hung_s` apart."""


def _pool() -> Scenario:
    names = ("h1", "h2", "h3")
    return Scenario.model_validate(
        {
            "schema": "rekindle.scenario.v1",
            "name": "what stands still",
            "settings": {"detection": {"quiet_after_start_s": 5}},
            "hosts": [{"name": name} for name in names],
            "vms": [{"name": f"vm{name[1:]}", "host": name} for name in names],
        }
    )


def _pid_of(run: LabRun, host: str, name: str) -> int:
    """The process of a host that the kernel calls so."""
    (pid,) = [pid for pid in run.lab.pids(host) if procs.name(pid) == name]
    return pid


def _server(run: LabRun) -> int:
    """The NATS server of the plane."""
    up = int((run.lab.root / "up.pid").read_text())
    programs = {proc.pid: (procs.cmdline(proc.pid) or [""])[0] for proc in procs.descendants(up)}
    return next(pid for pid, program in programs.items() if Path(program).name == "nats-server")


@contextlib.asynccontextmanager
async def _still(pid: int) -> AsyncIterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


async def _told(run: LabRun, what: Callable[[Envelope], bool], since: int, within_s: float = 30.0) -> None:
    until = time.monotonic() + within_s
    while not any(what(one) for one in run.envelopes[since:]):
        heard = [(one.data.kind, one.subject) for one in run.envelopes]
        assert time.monotonic() < until, f"never told: {heard}"
        await asyncio.sleep(0.1)


def _of(kind: str, subject: str) -> Callable[[Envelope], bool]:
    return lambda one: (one.data.kind, one.subject) == (kind, subject)


async def test_s13_s14_an_agent_a_libvirtd_and_a_bus_that_stand_still_are_nobodys_death(roots: Roots) -> None:
    run = LabRun(_pool(), roots.new(), bare=True)
    async with run.standing():
        start = len(run.envelopes)
        async with _still(_pid_of(run, "h1", FORKED_AGENT)):
            await _told(run, _of("host.agent_down", "h1"), start)
            await asyncio.sleep(STILL_S)
        await _told(run, _of("host.refuted", "h1"), start)

        async with _still(_pid_of(run, "h2", "libvirtd")):
            await asyncio.sleep(STILL_S)

        async with _still(_server(run)):
            await asyncio.sleep(STILL_S)
        # the plane works again: what happens now is noticed
        await asyncio.to_thread(run.lab.crash_vm, "vm3")
        await _told(run, lambda one: one.data.kind == "vm.restarted", start)

        kinds = {one.data.kind for one in run.envelopes[start:]}
        assert not kinds & {"host.failed", "host.isolated", "host.fenced"}
        assert [one.subject for one in run.envelopes[start:] if one.data.kind == "vm.failed"] != []
        for host, vm in (("h1", "vm1"), ("h2", "vm2")):
            with run.lab.connect(host) as connection:
                assert [one.name() for one in connection.listAllDomains() if one.isActive()] == [vm]
                assert connection.lookupByName(vm).ID() == 1, "it runs as it did from the beginning"
        summary = await asyncio.to_thread(run.lab.stop_observer)
        assert not summary.sightings
