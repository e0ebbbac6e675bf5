"""A round of faults on real hosts, in which a person runs a VM twice: that is what `rekindle lab chaos` is there to find."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from infra.lab import network
from infra.lab.chaos import Chaos
from infra.lab.chaosdraw import Fault, Round
from infra.lab.labvms import lab_vm
from infra.lab.steps import load
from libs.scenario.model import StepEntry
from tests.lab.roots import Roots

pytestmark = [pytest.mark.lab, pytest.mark.long]


async def test_a_failover_is_counted_and_a_vm_that_a_person_runs_twice_is_found(
    roots: Roots, tmp_path: Path
) -> None:
    if os.getuid() != 0 or not network.works():
        pytest.skip("a bad day is drawn for hosts with a network of their own")
    day = Chaos(roots.new(), faults=1, seed=1, hosts=3, vms=3)
    cut = Fault(
        "power cut",
        (StepEntry(at_s=0.3, do="power_off", host="h1"), StepEntry(at_s=2.0, do="power_on", host="h1")),
    )
    planted = Fault("a person", (StepEntry(at_s=0.3, do="start_vm", vm="vm2", host="h3"),))
    day.rounds = [Round((cut, planted))]
    stage = type(day)._bring_about

    async def bring_about(self: Chaos, step: StepEntry) -> None:
        if step.do != "start_vm":
            await stage(self, step)
            return
        vm = next(one for one in self.run.scenario.vms if one.name == step.vm)
        self.run.lab.define_vm(lab_vm(vm, bare=True), str(step.host))
        with self.run.lab.connect(str(step.host)) as connection:  # and he notices
            connection.lookupByName(vm.name).destroy()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Chaos, "_bring_about", bring_about)
        result = await day.play()
    assert (result.rounds, result.faults) == (1, 2)
    assert result.kinds == {"a person": 1, "power cut": 1}
    # a fence that is under way as the host comes back may shut it down once more
    assert result.hosts_fenced >= 1
    assert result.vms["vm1"].restarts >= 1
    assert 0 < result.vms["vm1"].longest_downtime_s < 20
    assert not result.passed
    assert result.double_running_s > 0
    assert {name for name, vm in result.vms.items() if vm.double_s} == {"vm2"}
    (failing,) = result.failing
    assert (failing.number, failing.faults) == (1, ("power cut", "a person"))
    assert [what for what in failing.found if "vm2 was on h2 and h3" in what]
    assert not [what for what in failing.found if "vm1" in what or "vm3" in what]
    file = tmp_path / "round.yaml"
    file.write_text(failing.scenario)
    assert {step.do for step in load(file).steps} == {"power_off", "power_on", "start_vm"}
