"""S07, S08 and S09 of docs/STORIES.md with real fence agents, a BMC emulator before a lab host whose processes really die,
and the whole plane. `make bmcs` installs what they need.

The emulators are those of tests/integration/bmcs.py; what their power is comes from the lab's host.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from infra.lab import network, steps
from infra.lab.plane import Plane
from infra.lab.run import LabRun
from infra.lab.steps import Stage
from libs.scenario.model import Scenario, StepEntry
from libs.scenario.outcome import Outcome
from libs.scenario.pool import ScenarioHost
from tests.integration import bmcs
from tests.integration.bmcs import IpmiBmc, RedfishBmc
from tests.lab.roots import Roots
from tests.lab.test_failover import _run

pytestmark = pytest.mark.lab
without_ipmi = bmcs.lacking("fence_ipmilan", "ipmitool", "ipmi_sim")
without_redfish = bmcs.lacking("fence_redfish", "sushy-emulator", "openssl")
needs_ipmi = pytest.mark.skipif(bool(without_ipmi), reason=without_ipmi)
needs_redfish = pytest.mark.skipif(bool(without_redfish), reason=without_redfish)
NEXT_S, SLACK_S = 3.0, 4.0
"""fencing.next_level_after_s here; what a level of a lab's device takes on a busy machine."""

# Reads and cuts the lab host's power. `early`, once it is there, makes it read off whatever is.
CHASSIS = """\
#!{python}
import json, os, socket, sys
def ask(what):
    with socket.socket(socket.AF_UNIX) as s:
        s.connect({control!r})
        s.sendall(json.dumps({{"do": what}}).encode() + b"\\n")
        return json.loads(s.makefile().readline())["power"]
what = sys.argv[2:]
os.chdir({directory!r})
with open("asked", "a") as file:
    file.write(" ".join(what) + "\\n")
if what[:2] == ["get", "power"]:
    print("power:" + ("0" if os.path.exists("early") or ask("status") == "off" else "1"))
elif what == ["set", "power", "0"]:
    ask("off")
"""


class Bench:
    """One run in which h1 has the BMC emulator at level 1 and the lab's own device (a PDU) at level 2, if any."""

    def __init__(
        self, tmp_path: Path, roots: Roots, monkeypatch: pytest.MonkeyPatch, stack: ExitStack
    ) -> None:
        self.directory, self.root = tmp_path, roots.new()
        self._monkeypatch, self._stack = monkeypatch, stack
        self.emulator: subprocess.Popen[bytes] | None = None

    @property
    def control(self) -> Path:
        return self.root / "h1" / "control.sock"

    def ipmi(self) -> IpmiBmc:
        bmc = IpmiBmc(self.directory)
        text = CHASSIS.format(
            python="/usr/bin/python3", control=str(self.control), directory=str(self.directory)
        )
        (self.directory / "chassis").write_text(text)
        self._before_h1(bmc, "fence_ipmilan", lanplus=True, cipher=3)
        return bmc

    def redfish(self) -> RedfishBmc:
        bmc = RedfishBmc(self.directory, control=self.control)
        self._before_h1(bmc, "fence_redfish", systems_uri="/redfish/v1/Systems/h1", ssl_insecure=True)
        return bmc

    def _before_h1(self, bmc: IpmiBmc | RedfishBmc, agent: str, **options: Any) -> None:
        self.emulator = self._stack.enter_context(
            bmcs.running(bmc.arguments(), self.directory / "emulator.log")
        )
        secret = self.directory / "secret"
        secret.write_text(bmcs.PASSWORD + "\n")
        given = {"ip": "127.0.0.1", "ipport": bmc.port, "username": "admin", **options}
        first = {
            "agent": bmcs.found(agent),
            "name": "bmc",
            "options": given,
            "secrets": {"password": {"file": str(secret)}},
        }
        entry = Plane._entry

        def with_bmc(plane: Plane, host: ScenarioHost) -> dict[str, Any]:
            made = entry(plane, host)
            if host.name == "h1":
                made["fencing"] = [first, *(one for one in made["fencing"] if one["level"] > 1)]
            return made

        self._monkeypatch.setattr(Plane, "_entry", with_bmc)

    def at(self, step: str, do: Callable[[Stage], None], *, before: bool = True) -> None:
        """Something more happens with a step of the scenario."""
        own = getattr(Stage, step)

        def both(stage: Stage, entry: StepEntry) -> None:
            for one in (lambda: do(stage), lambda: own(stage, entry))[:: 1 if before else -1]:
                one()

        self._monkeypatch.setitem(steps.STEPS, step, both)

    def signal(self, number: signal.Signals) -> None:
        assert self.emulator is not None
        os.killpg(self.emulator.pid, number)

    async def play(
        self, steps: list[dict[str, Any]], *, levels: tuple[int, ...] = (1,), **more: Any
    ) -> Outcome:
        fencing = [{"method": "power", "level": level} for level in levels]
        settings = {"fencing": {"next_level_after_s": NEXT_S, "retry_max_s": 2, **more.pop("fencing", {})}}
        body = {
            "schema": "rekindle.scenario.v1",
            "name": "a BMC before a lab host",
            "settings": settings,
            "hosts": [{"name": "h1", "fencing": fencing}, {"name": "h2"}, {"name": "h3"}],
            "vms": [{"name": "db", "host": "h1"}, {"name": "mail", "host": "h2"}],
            "steps": steps,
            "expect": [
                {"vm": "db", "state": "running", "host_not": "h1"},
                {"vm": "mail", "state": "running", "host": "h2"},
                {"host": "h1", "fenced": True},
            ],
            **more,
        }
        return await _run(LabRun(Scenario.model_validate(body), self.root, bare=True))


@pytest.fixture
def bench(tmp_path: Path, roots: Roots, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    with ExitStack() as stack:
        yield Bench(tmp_path, roots, monkeypatch, stack)


def when(outcome: Outcome, event: str, subject: str = "h1") -> float:
    return next(one.at_s for one in outcome.timeline if (one.event, one.subject) == (event, subject))


@needs_ipmi
async def test_s07_a_bmc_that_dies_with_its_host_leads_to_the_pdu_within_the_stated_bound(
    bench: Bench,
) -> None:
    bench.ipmi()
    bench.at("power_off", lambda stage: bench.signal(signal.SIGKILL))
    outcome = await bench.play([{"at_s": 2, "do": "power_off", "host": "h1"}], levels=(1, 2), duration_s=40)
    assert when(outcome, "host.fenced") - when(outcome, "host.failed") < NEXT_S + SLACK_S
    assert not [one for one in outcome.timeline if one.event == "host.fence_failed"]


@needs_ipmi
async def test_s07_a_mute_bmc_and_no_other_level_is_told_by_name_in_time_and_tried_until_it_answers(
    bench: Bench,
) -> None:
    """Its agent hangs for 20 s a call: the alert does not wait for the end of that."""
    bench.ipmi()
    bench.at("crash", lambda stage: bench.signal(signal.SIGSTOP))
    bench.at("mend_fencing", lambda stage: bench.signal(signal.SIGCONT))
    outcome = await bench.play(
        [{"at_s": 2, "do": "crash", "host": "h1"}, {"at_s": 32, "do": "mend_fencing", "host": "h1"}],
        fencing={"alert_after_s": 10},
        duration_s=110,
    )
    assert when(outcome, "host.fence_failed") - when(outcome, "host.failed") < 10.0 + SLACK_S
    restarted = when(outcome, "vm.restarted", "db")
    assert restarted > when(outcome, "host.fenced") > 32.0


@needs_redfish
async def test_s08_a_bmc_that_refuses_off_with_409_as_its_host_is_off_proves_it_at_once(bench: Bench) -> None:
    bmc = bench.redfish()
    outcome = await bench.play([{"at_s": 2, "do": "power_off", "host": "h1"}], duration_s=40)
    assert when(outcome, "host.fenced") - when(outcome, "host.failed") < 5.0
    assert bmc.asked() == [], "a host found off is fenced without a command"


@needs_ipmi
@pytest.mark.skipif(os.getuid() != 0 or not network.works(), reason="cut links need root and bridges")
async def test_s09_a_bmc_that_says_off_seconds_before_its_host_dies_is_not_believed_until_then(
    bench: Bench,
) -> None:
    """Cut off from everybody the host lives on and writes its slot."""
    bench.ipmi()
    died: list[threading.Timer] = []

    def early(stage: Stage) -> None:
        (bench.directory / "early").touch()
        died.append(threading.Timer(8.0, stage.lab.power_off, ["h1"]))
        died[0].start()

    bench.at("partition", early)
    outcome = await bench.play(
        [{"at_s": 2, "do": "partition", "groups": [["h1"], ["bus", "h2", "h3"]]}], duration_s=50
    )
    died[0].join()
    assert when(outcome, "host.failed") < 10.0, "its BMC says off while it is silent"
    assert when(outcome, "host.fenced") > 10.0, "and it lived until then"
    assert when(outcome, "host.fence_failed") < 10.0
