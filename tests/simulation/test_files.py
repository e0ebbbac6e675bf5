"""Scenario files in the simulator: what cannot be played is refused by file, line, field and reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from libs.config.yamlfile import BadInputError
from libs.scenario.model import Scenario, StepEntry
from libs.scenario.outcome import Violation
from libs.sim.loop import SimLoop
from libs.sim.poolfile import settings_of
from libs.sim.power import Outlet
from libs.sim.random_world import compose, draw, parts
from libs.sim.run import run
from libs.sim.shrink import _shorter, shrink
from libs.sim.steps import POSSIBLE, Stage
from libs.sim.world import World
from services.cli.mutations import MUTATIONS
from services.cli.simplane import PLANE
from services.cli.simulate import as_file, load, simulate

POOL = """\
schema: rekindle.scenario.v1
name: a file
duration_s: 60
hosts: [{name: h1}, {name: h2}]
vms: [{name: a, host: h1}]
steps:
  - {at_s: 5, do: power_on, host: h2}
"""


@pytest.mark.fast
@pytest.mark.parametrize(
    ("step", "says"),
    [
        ("{at_s: 6, do: explode, host: h1}", "line 8: steps.1.do: 'explode' is no step"),
        ("{at_s: 6, do: stall_storage, host: h9}", "line 8: steps.1.host: there is no host h9"),
        (
            "{at_s: 6, do: restore_storage, host: [h1]}",
            "line 8: steps.1: host: restore_storage takes the name",
        ),
        ("{at_s: 6, do: confirm_failed}", "line 8: steps.1: confirm_failed needs a host"),
        ("{at_s: 6, do: remove_host, host: h9}", "line 8: steps.1.host: there is no host h9"),
        ("{at_s: 6, do: enter_maintenance, vm: a}", "line 8: steps.1: enter_maintenance needs a host"),
        ("{at_s: 6, do: exit_maintenance, host: h9}", "line 8: steps.1.host: there is no host h9"),
        ("{at_s: 6, do: protect, host: h1}", "line 8: steps.1: protect needs a vm"),
        ("{at_s: 6, do: unprotect, vm: z}", "line 8: steps.1.vm: there is no VM z"),
        ("{at_s: 6, do: power_off, host: h9}", "line 8: steps.1.host: there is no host h9"),
        ("{at_s: 1, do: power_off, host: h1}", "line 8: steps.1.at_s: 1.0 s lies before the step above"),
        ("{at_s: 6, do: partition, groups: [[h1], [h9]]}", "line 8: steps.1.groups: there is no machine h9"),
        (
            "{at_s: 6, do: break_fencing, host: h1, how: melt}",
            "line 8: steps.1.how: a device can be broken by",
        ),
        ("{at_s: 6, do: kill_service, service: fencer, replica: 1}", "line 8: steps.1.replica: there are 1"),
        (
            "{at_s: 6, do: partition, groups: [[h1], [storage]], how: one_way}",
            "line 8: steps.1.groups: hosts are cut off from storage both ways",
        ),
        ("{at_s: 6, do: step_clock}", "line 8: steps.1: step_clock needs a host; or service: plane"),
        (
            "{at_s: 6, do: step_clock, host: h1, service: plane}",
            "line 8: steps.1: step_clock needs a host; or service: plane",
        ),
        (
            "{at_s: 6, do: step_clock, service: fencer}",
            "line 8: steps.1.service: services of one replica share their machine's clock",
        ),
        ("{at_s: 6, do: step_clock, service: plane, replica: 1}", "line 8: steps.1.replica: there are 1"),
        (
            "{at_s: 6, do: loss, percent: 9, host: h1}",
            "line 8: steps.1.host: loss of network is of all hosts",
        ),
        ("{at_s: 6, do: kill_service, service: heartbeat}", "line 8: steps.1.service: kill_service is for"),
    ],
)
def test_a_step_that_cannot_be_played_is_refused(tmp_path: Path, step: str, says: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(f"{POOL}  - {step}\n")
    with pytest.raises(BadInputError) as refused:
        load(path)
    assert str(refused.value).startswith(f"{path}: {says}")


@pytest.mark.parametrize(
    ("fencing", "says"),
    [
        ("[{method: watchdog, timeout_s: 10.5}]", r"line 4: hosts\.1\.fencing\.0: .*whole seconds"),
        ("[{method: watchdog, timeout_s: 2}]", r"line 4: hosts\.1\.fencing\.0: .*from 5 to 600 s"),
        ("[{method: watchdog}, {method: watchdog}]", r"line 4: hosts\.1: .*a host has one watchdog"),
        ("[{method: power, coarse_s: 2}]", r"line 4: hosts\.1\.fencing\.0: .*means nothing for power"),
    ],
)
def test_a_watchdog_that_cannot_be_is_refused(tmp_path: Path, fencing: str, says: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(POOL.replace("{name: h2}", f"{{name: h2, fencing: {fencing}}}"))
    with pytest.raises(BadInputError, match=says):
        load(path)


def test_a_host_with_a_watchdog_alone_can_be_played(tmp_path: Path) -> None:
    path = tmp_path / "good.yaml"
    path.write_text(POOL.replace("{name: h2}", "{name: h2, fencing: [{method: watchdog, timeout_s: 10}]}"))
    assert load(path).hosts[1].watchdog == {"timeout_s": 10}


def test_a_watchdog_can_only_be_dead(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    dog = POOL.replace("{name: h2}", "{name: h2, fencing: [{method: watchdog}]}")
    path.write_text(f"{dog}  - {{at_s: 6, do: break_fencing, host: h2, method: watchdog, how: lie}}\n")
    with pytest.raises(BadInputError, match=r"line 8: steps\.1\.how: a watchdog can only be dead"):
        load(path)


@pytest.mark.fast
@pytest.mark.parametrize("seed", range(20))
def test_a_random_world_is_a_scenario_that_can_be_taken_apart(seed: int) -> None:
    world = draw(seed)
    assert compose(*parts(world)) == world


def test_what_breaks_a_rule_is_made_short_and_written_as_a_file(tmp_path: Path) -> None:
    mutation = next(one for one in MUTATIONS if one.name == "token stays")

    def breaks(scenario: Scenario) -> Violation | None:
        found = run(scenario, scenario.seed, PLANE, liveness=True).violations
        return next((one for one in found if one.rule == "1"), None)

    with mutation.applied():
        world = next(world for world in map(draw, range(20)) if breaks(world) is not None)
        seed = world.seed
        smallest, tries = shrink(world, breaks)
        found = breaks(smallest)
        assert found is not None
        assert tries > 0
        assert len(smallest.steps) < len(world.steps)
        path = tmp_path / "found.yaml"
        path.write_text(as_file(smallest, seed, found))
        again = run(load(path), seed, PLANE)
        assert again.log == run(smallest, seed, PLANE, liveness=True).log
        assert [one.rule for one in again.violations] == ["1"]
    assert run(load(path), seed, PLANE).violations == []


@pytest.mark.fast
@pytest.mark.parametrize("seed", range(4))
def test_a_world_that_is_kept_plays_again_as_it_did(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], seed: int
) -> None:
    drawn = run(draw(seed), seed, PLANE, liveness=True)
    path = tmp_path / "kept.yaml"
    path.write_text(
        as_file(draw(seed), seed, Violation(rule="1", at_s=1.0, detail="an error's:\n  two lines"))
    )
    assert load(path).healed
    simulate(scenario=path, log=True)
    assert capsys.readouterr().out.splitlines() == drawn.log


@pytest.mark.fast
@pytest.mark.parametrize(("said", "rules"), [("", []), ("healed: true\n", ["9", "10"])])
def test_what_a_healed_world_in_a_file_owes_is_a_violation(
    tmp_path: Path, said: str, rules: list[str]
) -> None:
    path = tmp_path / "kept.yaml"
    lost = "  - {at_s: 6, do: break_fencing, host: h1, how: dead}\n  - {at_s: 6, do: power_off, host: h1}\n"
    path.write_text(said + POOL + lost)
    assert [one.rule for one in run(load(path), 1, PLANE).violations] == rules


def test_a_fence_device_is_broken_by_its_method_or_with_all_others() -> None:
    scenario = draw(1)
    loop = SimLoop()
    world = World(scenario, 1, PLANE, loop)
    stage, (host, *_) = Stage(world), scenario.hosts
    timer = Outlet(loop, world.machines, host.name, 9, 1.0, "watchdog")
    power = world.outlets[host.name]
    world.outlets[host.name] = [*power, timer]

    def broken(do: str, method: str | None, how: str | None = None) -> tuple[set[str], str]:
        stage.perform(StepEntry(at_s=1, do=do, host=host.name, method=method, how=how))
        return {one.how for one in power}, timer.how

    assert broken("break_fencing", "power", "dead") == ({"dead"}, "")
    assert broken("break_fencing", "watchdog", "hang") == ({"dead"}, "hang")
    assert broken("mend_fencing", "power") == ({""}, "hang")
    assert broken("break_fencing", None, "refuse") == ({"refuse"}, "refuse")
    assert broken("mend_fencing", None) == ({""}, "")
    loop.close()


DESIGN = """power_off power_on reboot crash hang partition heal delay loss stall_storage restore_storage kill_agent start_agent
kill_service pause_service resume_service kill_bus start_bus break_fencing mend_fencing step_clock crash_vm hang_guest
shutdown_guest destroy_vm fail_start add_host remove_host enter_maintenance exit_maintenance protect unprotect
confirm_failed"""
"""The steps of DESIGN §6."""
EXAMPLE = """\
schema: rekindle.scenario.v1
name: power loss with a dead BMC
duration_s: 300
seed: 7                                   # simulator only
policy: {failures_to_tolerate: 1}
management: {replicas: 3}                 # replicas of each service
hosts:                                    # as in the snapshot, and:
  - {name: h1, memory_mib: 4096, cpus: 4, fencing: [{method: power, level: 1}, {method: watchdog, timeout_s: 10, level: 2}]}
vms: [{name: a, host: h1, memory_mib: 128, vcpus: 1, priority: high}]
steps:
  - {at_s: 10, do: power_off, host: h1}
  - {at_s: 10, do: break_fencing, host: h1, method: power, how: dead}      # dead | hang | refuse | lie
  - {at_s: 90, do: power_on, host: h1}
expect:
  - {vm: a, state: running, host_not: h1, by_s: 40}
"""
"""The file of DESIGN §6, to the letter."""
ANOTHER = "  - {name: h%d, memory_mib: 4096, cpus: 4}\n"
"""Where `a` is to run: the design shows one host of its pool only."""


@pytest.mark.fast
def test_every_step_of_the_design_can_be_played() -> None:
    assert set(DESIGN.split()) <= POSSIBLE


@pytest.mark.parametrize("others", [1, 2, 4])
def test_the_designs_example_is_played(tmp_path: Path, others: int) -> None:
    """Its fence device dies with the host: that its watchdog has reset it by then is the proof, 13 s after the cut."""
    path = tmp_path / "example.yaml"
    more = "".join(ANOTHER % (number + 2) for number in range(others))
    path.write_text(EXAMPLE.replace("vms:", more + "vms:"))
    scenario = load(path)
    assert scenario.policy.failures_to_tolerate == 1
    result = run(scenario, scenario.seed, PLANE)
    assert result.outcome.passed, result.log
    assert result.violations == []
    (fenced,) = [line.split() for line in result.log if " host.fenced " in line]
    assert fenced[3] == "watchdog"
    assert 10 + 10 + 1 < float(fenced[0]) < 10 + 10 + 4, "its time-out, and the margins"


@pytest.mark.fast
def test_a_host_that_is_cut_off_from_storage_reaches_none_until_that_is_healed(tmp_path: Path) -> None:
    path = tmp_path / "cut.yaml"
    cut = "  - {at_s: 6, do: partition, groups: [[h1], [storage]]}\n  - {at_s: 40, do: heal}\n"
    path.write_text(POOL.replace("{name: a, host: h1}", "{name: a, host: h1, datastore: nfs}") + cut)
    path.write_text(path.read_text().replace("vms:", "datastores: [{name: nfs}]\nvms:"))
    log = run(load(path), 1, PLANE, stop_at_first=False).log
    assert [line.split()[1] for line in log if "datastore" in line] == [
        "datastore.lost",
        "datastore.recovered",
    ]


def test_a_world_without_its_hosts_on_standby_is_one_that_can_be_played() -> None:
    worlds = (draw(seed) for seed in range(400))
    with_reserves = next(one for one in worlds if sum(host.standby for host in one.hosts) == 1)
    shorter = list(_shorter(with_reserves))
    assert any("standby" not in one.settings for one in shorter)
    for one in shorter:
        settings_of(one.hosts, one)  # or it raises
