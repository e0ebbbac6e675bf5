"""Scenario files in the simulator: what cannot be played is refused by file, line, field and reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from libs.config.yamlfile import BadInputError
from libs.scenario.model import StepEntry
from libs.scenario.outcome import Violation
from libs.sim.loop import SimLoop
from libs.sim.power import Outlet
from libs.sim.random_world import compose, draw, parts
from libs.sim.run import run
from libs.sim.shrink import shrink
from libs.sim.steps import Stage
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


def test_fencing_that_is_not_there_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(POOL.replace("{name: h2}", "{name: h2, fencing: [{method: watchdog, timeout_s: 10}]}"))
    with pytest.raises(
        BadInputError, match=r"line 4: hosts\.1\.fencing\.0\.method: watchdog is not possible here yet"
    ):
        load(path)


@pytest.mark.fast
@pytest.mark.parametrize("seed", range(20))
def test_a_random_world_is_a_scenario_that_can_be_taken_apart(seed: int) -> None:
    world = draw(seed)
    assert compose(*parts(world)) == world


def test_what_breaks_a_rule_is_made_short_and_written_as_a_file(tmp_path: Path) -> None:
    mutation = next(one for one in MUTATIONS if one.name == "token stays")

    def breaks(scenario: object) -> Violation | None:
        assert isinstance(scenario, type(draw(1)))
        found = run(scenario, 1, PLANE, liveness=True).violations
        return next((one for one in found if one.rule == "1"), None)

    with mutation.applied():
        first = breaks(draw(1))
        assert first is not None
        smallest, tries = shrink(draw(1), breaks)
        found = breaks(smallest)
        assert found is not None
        assert tries > 0
        assert len(smallest.steps) < len(draw(1).steps)
        path = tmp_path / "found.yaml"
        path.write_text(as_file(smallest, 1, found))
        again = run(load(path), 1, PLANE)
        assert again.log == run(smallest, 1, PLANE, liveness=True).log
        assert [one.rule for one in again.violations] == ["1"]
    assert run(load(path), 1, PLANE).violations == []


@pytest.mark.fast
@pytest.mark.parametrize("seed", range(4))
def test_a_world_that_is_kept_plays_again_as_it_did(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], seed: int
) -> None:
    drawn = run(draw(seed), seed, PLANE, liveness=True)
    path = tmp_path / "kept.yaml"
    path.write_text(as_file(draw(seed), seed, Violation(rule="1", at_s=1.0, detail="a test's")))
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
