"""What the lab can do of a scenario, and what it refuses before anything starts. No lab is made here."""

from __future__ import annotations

import os
import re
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest

from infra.lab.commands import lab_do
from infra.lab.cuts import BUS, NONE, Cuts, links_of
from infra.lab.labvms import lab_vm
from infra.lab.powerd import Device
from infra.lab.spec import LabError, LabHost, LabNetwork, LabSpec
from infra.lab.stepnotes import NOTES, WHY_NOT
from infra.lab.steps import POSSIBLE, load, table, with_ends
from libs.config.yamlfile import BadInputError
from libs.scenario.model import STEPS, StepEntry
from libs.sim.steps import POSSIBLE as SIMULATED

if TYPE_CHECKING:
    from infra.lab.machine import Machine

README = Path(__file__).parents[2] / "infra" / "lab" / "README.md"
POOL = """\
schema: rekindle.scenario.v1
name: a file
hosts: [{name: h1}, {name: h2}]
vms: [{name: a, host: h1}]
steps:
"""


@pytest.mark.fast
def test_the_readme_lists_the_steps_of_both_worlds() -> None:
    text = README.read_text()
    fresh = re.sub(
        r"(<!-- steps -->\n).*(<!-- /steps -->)",
        lambda found: f"{found[1]}{table(SIMULATED)}\n{found[2]}",
        text,
        flags=re.DOTALL,
    )
    if os.environ.get("REKINDLE_UPDATE_GOLDEN"):
        README.write_text(fresh)
    assert text == fresh or os.environ.get("REKINDLE_UPDATE_GOLDEN"), "REKINDLE_UPDATE_GOLDEN=1 writes it"


@pytest.mark.fast
def test_notes_are_about_steps_that_there_are() -> None:
    assert POSSIBLE <= STEPS
    assert set(NOTES) <= POSSIBLE
    assert set(WHY_NOT) <= STEPS - POSSIBLE


@pytest.mark.fast
@pytest.mark.parametrize(
    ("step", "says"),
    [
        (
            "{at_s: 6, do: step_clock, host: h1}",
            "line 6: steps.0.do: step_clock is not possible here: the hosts of one machine share its clock",
        ),
        (
            "{at_s: 6, do: guest_io_error, vm: a}",
            "line 6: steps.0.do: guest_io_error is not possible here: no file system under the lab's disks",
        ),
        (
            "{at_s: 6, do: guest_panic, vm: a}",
            "line 6: steps.0.vm: guest_panic is done inside the guest: the VM needs agent: true",
        ),
        ("{at_s: 6, do: guest_silent, vm: a}", "line 6: steps.0.vm: guest_silent is done inside the guest"),
        ("{at_s: 6, do: stall_storage}", "line 6: steps.0.do: stall_storage needs datastores, and the file"),
        ("{at_s: 6, do: delay}", "line 6: steps.0.seconds: delay needs seconds"),
        ("{at_s: 6, do: delay, seconds: 61}", "line 6: steps.0.seconds: a delay in the lab is from 0 to 60"),
        ("{at_s: 6, do: loss, seconds: 1}", "line 6: steps.0.percent: loss needs percent"),
        ("{at_s: 6, do: loss, percent: 101}", "line 6: steps.0.percent: Input should be less than"),
        (
            "{at_s: 6, do: loss, percent: 9, how: bus}",
            "line 6: steps.0.how: loss is of the network in the lab",
        ),
        ("{at_s: 6, do: loss, percent: 9, host: h9}", "line 6: steps.0.host: there is no host h9"),
        ("{at_s: 6, do: explode, host: h1}", "line 6: steps.0.do: 'explode' is no step"),
        ("{at_s: 6, do: power_off, host: h9}", "line 6: steps.0.host: there is no host h9"),
        ("{at_s: 6, do: partition, groups: [[h1], [h9]]}", "line 6: steps.0.groups: there is no machine h9"),
        ("{at_s: 6, do: partition, groups: [[h1], [bus]], how: odd}", "line 6: steps.0.how: a partition is"),
        (
            "{at_s: 6, do: partition, groups: [[management], [h1]]}",
            "line 6: steps.0.groups: bus and management",
        ),
        ("{at_s: 6, do: kill_bus, node: 1}", "line 6: steps.0.node: the lab's bus has one node"),
        (
            "{at_s: 6, do: kill_service, service: fencer, replica: 1}",
            "line 6: steps.0.replica: the lab runs one",
        ),
        (
            "{at_s: 6, do: kill_service, service: fencer, count: 3}",
            "line 6: steps.0.count: kill_service at the so-manieth call is possible in the simulator only",
        ),
        (
            "{at_s: 6, do: kill_agent, host: h1, count: 3}",
            "line 6: steps.0.count: kill_agent at the so-manieth call is possible in the simulator only",
        ),
        (
            "{at_s: 6, do: reboot, host: h1, how: fast}",
            "line 6: steps.0.how: a fast reboot is possible in the simulator only",
        ),
        (
            "{at_s: 6, do: break_fencing, host: h1, how: odd}",
            "line 6: steps.0.how: a device can be broken by",
        ),
    ],
)
def test_an_impossible_step_is_refused_by_line_field_and_reason(step: str, says: str, tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(POOL + f"  - {step}\n")
    with pytest.raises(BadInputError) as refused:
        load(file)
    assert f"{file}: {says}" in str(refused.value)


@pytest.mark.fast
@pytest.mark.parametrize(
    ("what", "subject", "how", "says"),
    [
        ("kill_service", "foo", None, "kill_service foo: service: Input should be 'heartbeat', 'detector'"),
        ("kill_service", "plane", None, "kill_service plane: service: the whole plane can be lost"),
        ("reboot", "h1", "fast", "reboot h1: how: a fast reboot is possible in the simulator only"),
        ("power_on", "h1", "fast", "power_on h1: how: means nothing for power_on, which takes host"),
        ("break_fencing", "h1", "odd", "break_fencing h1: how: a device can be broken by"),
        ("explode", "h1", None, "explode is not possible here; possible are break_fencing"),
    ],
)
def test_a_step_that_is_no_step_of_a_running_lab_is_refused(
    what: str, subject: str, how: str | None, says: str
) -> None:
    with pytest.raises(BadInputError) as refused:
        lab_do(what, subject, how)
    assert str(refused.value).startswith(says)


@pytest.mark.fast
def test_a_vm_that_is_too_small_for_a_real_guest_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "small.yaml"
    file.write_text(POOL.replace("host: h1}", "host: h1, memory_mib: 100}") + "  []\n")
    with pytest.raises(BadInputError, match=r"line 4: vms\.0\.memory_mib: 100 MiB; a VM of the lab"):
        load(file)


@pytest.mark.fast
def test_a_vm_with_an_agent_takes_more_and_panics_with_its_qemu_kept(tmp_path: Path) -> None:
    file = tmp_path / "agent.yaml"
    file.write_text(POOL.replace("host: h1}", "host: h1, agent: true}") + "  []\n")
    with pytest.raises(
        BadInputError, match=r"line 4: vms\.0\.memory_mib: 128 MiB; a VM of the lab with an agent"
    ):
        load(file)
    agent = "host: h1, agent: true, memory_mib: 136, on_guest_failure: alert}"
    file.write_text(POOL.replace("host: h1}", agent) + "  - {at_s: 1, do: guest_panic, vm: a}\n")
    vm = lab_vm(load(file).vms[0])
    assert (vm.guest_agent, vm.on_crash, vm.memory_mib) == (True, "preserve", 88)
    assert 'on_guest_failure="alert"' in vm.metadata


@pytest.mark.fast
def test_a_paused_service_goes_on_by_itself_in_the_order_of_time() -> None:
    steps = (
        StepEntry(at_s=1, do="pause_service", service="fencer", seconds=3),
        StepEntry(at_s=2, do="power_off", host="h1"),
        StepEntry(at_s=9, do="power_on", host="h1"),
    )
    found = [(step.at_s, step.do, told) for step, told in with_ends(steps)]
    assert found == [
        (1, "pause_service", True),
        (2, "power_off", True),
        (4, "resume_service", False),
        (9, "power_on", True),
    ]


def _spec(network: LabNetwork | None) -> LabSpec:
    return LabSpec(Path("/tmp/x"), True, (LabHost("h1"), LabHost("h2")), Path("/tmp/c"), network)


@pytest.mark.fast
def test_a_cut_link_is_dropped_by_its_receiver_and_held_back_only_before_the_machine_itself() -> None:
    spec = _spec(LabNetwork("rk0", "198.18.0.1", 24, {"h1": "198.18.0.10", "h2": "198.18.0.11"}))
    found = links_of(spec, [("h1", "h2"), ("h1", BUS), (BUS, "h1")])
    assert found["h1"] == Cuts(deaf_to=frozenset({"198.18.0.1"}), mute_to=frozenset({"198.18.0.1"}))
    assert found["h2"] == Cuts(deaf_to=frozenset({"198.18.0.10"}))
    assert set(links_of(spec, []).values()) == {NONE}


@pytest.mark.fast
def test_links_cannot_be_cut_where_hosts_have_no_network_of_their_own() -> None:
    assert links_of(_spec(None), []) == {}
    with pytest.raises(LabError, match="needs a network"):
        links_of(_spec(None), [("h1", "h2")])


class _Machine:
    """As much of a machine as its BMC needs."""

    def __init__(self, folder: Path) -> None:
        self.power = "on"
        self.host = SimpleNamespace(boot_id=folder / "boot_id")
        self.host.boot_id.write_text("b1")

    def off(self) -> bool:
        self.power = "off"
        return True


@pytest.mark.fast
@pytest.mark.parametrize(
    ("how", "off", "power", "status"),
    [
        ("none", True, "off", "off"),
        ("no_effect", True, "on", "on"),
        ("shared_power", True, "off", None),
        ("lie", True, "on", "off"),
        ("refuse", False, "on", None),
        ("dead", None, "on", None),
    ],
)
def test_a_bmc_is_broken_in_its_own_way(
    how: str, off: bool | None, power: str, status: str | None, tmp_path: Path
) -> None:
    machine = _Machine(tmp_path)
    device = Device(cast("Machine", machine))
    device.control({"do": "fault", "how": how})
    answer = device.bmc({"do": "off"})
    assert (answer and answer["ok"]) == off
    assert machine.power == power
    read = device.bmc({"do": "status"})
    assert (read and read.get("power")) == status
