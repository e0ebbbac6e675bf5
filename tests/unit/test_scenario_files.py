"""A scenario file that could not show what it says is refused by file, line, field and reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from libs.config.yamlfile import BadInputError
from libs.scenario.files import load_scenario
from libs.scenario.model import STEPS, TAKES, WAYS

pytestmark = pytest.mark.fast

POOL = """\
schema: rekindle.scenario.v1
name: a file
hosts: [{name: h1}, {name: h2}]
datastores: [{name: nfs}]
vms: [{name: web, host: h1}]
steps:
  - {at_s: 1, do: power_off, host: h1}
  - {at_s: 2, do: add_host, host: {name: h3}}
expect:
"""


def complaint(path: Path, text: str) -> str:
    path.write_text(text)
    with pytest.raises(BadInputError) as refused:
        load_scenario(path)
    said = str(refused.value)
    assert said.startswith(f"{path}: ")
    return said.removeprefix(f"{path}: ")


@pytest.mark.parametrize(
    ("expected", "says"),
    [
        ("{never: host.faild}", "expect.0.never: there is no event host.faild (did you mean host.failed?)"),
        ("{event: vm.restart}", "expect.0.event: there is no event vm.restart (did you mean vm.restarted?)"),
        ("{event: step.power_off}", "expect.0.event: there is no event step.power_off"),
        (
            "{never: host.failed, subject: web}",
            "expect.0.subject: host.failed is about a host, and there is no host web",
        ),
        (
            "{event: vm.restarted, subject: wep}",
            "expect.0.subject: vm.restarted is about a VM, and there is no VM wep (did you mean web?)",
        ),
        ("{never: storm.held, subject: h1}", "expect.0.subject: storm.held is about a pool, and there is no"),
        (
            "{event: datastore.lost, subject: nsf}",
            "expect.0.subject: datastore.lost is about a datastore, and there is no datastore nsf (did you mean nfs?)",
        ),
        (
            "{event: failover.planned, subject: h1}",
            "expect.0.subject: failover.planned is about an incident, whose name is made in the run",
        ),
        ("{host: h9, state: failed}", "expect.0.host: there is no host h9"),
        ("{order: [web, wep]}", "expect.0.order: there is no VM wep (did you mean web?)"),
        ("{order: [web, web]}", "expect.0.order: web is given twice"),
        ("{order: [web]}", "expect.0.order: "),
        ("{vm: web, host_not: h9}", "expect.0.host_not: there is no host h9"),
        (
            "{host: h1, state: fencd}",
            "expect.0.state: 'fencd' is no state of a host (did you mean fenced?); there are agent_down,",
        ),
        (
            "{vm: web, state: stoped}",
            "expect.0.state: 'stoped' is no state of a VM (did you mean stopped?); there are running,",
        ),
        ("{vm: web, fenced: true}", "expect.0: fenced: means nothing beside vm"),
        ("{host: h1, state: failed, by_s: 9}", "expect.0: by_s: means nothing beside host"),
        ("{event: vm.failed, vm: web}", "expect.0: vm: means nothing beside event"),
        ("{vm: web}", "expect.0: nothing is expected of the vm: state, host, host_not, by_s"),
        ("{host: h1}", "expect.0: nothing is expected of the host: state, fenced"),
        ("{vm: web, host: h2, by_s: 9}", "expect.0.by_s: of a VM it is the time until it runs"),
    ],
)
def test_what_is_expected_of_nothing_that_there_is_is_refused(
    expected: str, says: str, tmp_path: Path
) -> None:
    assert complaint(tmp_path / "s.yaml", f"{POOL}  - {expected}\n").startswith(f"line 10: {says}")


def test_what_can_be_expected_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(
        POOL + "  - {never: host.failed, subject: h3}\n"
        "  - {event: vm.restarted, subject: web, by_s: 20}\n"
        "  - {event: datastore.lost, subject: nfs}\n"
        "  - {never: storm.held, subject: pool}\n"
        "  - {event: failover.completed}\n"
        "  - {host: h3, fenced: false}\n"
        "  - {vm: web, host_not: h1}\n"
    )
    assert len(load_scenario(path).expect) == 7


STEPS_ALONE = POOL.replace("expect:\n", "")


@pytest.mark.parametrize(
    ("step", "says"),
    [
        ("do: partition, groups: [[h1], [h1]]", "groups: h1 is given twice"),
        ("do: partition, groups: [[], []]", "groups: a group is empty"),
        ("do: partition, groups: [[h1], [h2]], host: h1", "host: means nothing for partition, which takes"),
        ("do: loss, percent: 5, host: h9", "host: there is no host h9"),
        ("do: loss, seconds: 5", "seconds: means nothing for loss, which takes how, percent, host"),
        ("do: delay, seconds: -3", "seconds: -3 s is less than nothing"),
        ("do: pause_service, service: fencer, seconds: -1", "seconds: -1 s is less than nothing"),
        ("do: heal, once: host.fence", "once: there is no event host.fence"),
        ("do: heal, host: h1", "host: means nothing for heal, which takes no fields"),
        ("do: power_off, host: h1, vm: web", "vm: means nothing for power_off, which takes host, how"),
        ("do: power_off, host: h1, how: fast", "how: power_off is for_good, not fast"),
        ("do: reboot, host: h1, how: slow", "how: reboot is fast or for_good, not slow"),
        ("do: power_on, host: h1, how: fast", "how: means nothing for power_on"),
        ("do: crash_vm, vm: web, host: h1", "host: means nothing for crash_vm, which takes vm"),
        ("do: fail_start, vm: web, host: h9", "host: there is no host h9"),
        ("do: kill_bus, replica: 1", "replica: means nothing for kill_bus, which takes node"),
        ("do: release_storm, count: 2", "count: means nothing for release_storm"),
        (
            "do: break_fencing, host: h2, method: watchdog, how: dead",
            "method: h2 has no fencing by watchdog",
        ),
        ("do: mend_fencing, host: h3, method: watchdog", "method: h3 has no fencing by watchdog"),
        ("do: kill_service, service: fencer, seconds: 2", "seconds: only the whole plane is away for a time"),
        ("do: kill_service, service: plane, count: 2", "count: the calls of a whole plane are not counted"),
    ],
)
def test_a_step_that_would_do_nothing_or_something_else_is_refused(
    step: str, says: str, tmp_path: Path
) -> None:
    said = complaint(tmp_path / "s.yaml", f"{STEPS_ALONE}  - {{at_s: 6, {step}}}\n")
    assert said.startswith(f"line 9: steps.2.{says}")


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (
            "settings:\n  detection: {suspect_after_s: 1}\n",
            "line 4: settings.detection.suspect_after_s: detection.suspect_after_s (1.0 s) is shorter",
        ),
        (
            "settings:\n  fencing: {}\n  detection: {suspect_after: 1}\n",
            "line 5: settings.detection.suspect_after: unknown field (did you mean suspect_after_s?)",
        ),
        (
            "settings:\n  fencing: {retry_max_s: soon}\n",
            "line 4: settings.fencing.retry_max_s: Input should be a valid number",
        ),
        ("settings: {hosts: []}\n", "line 3: settings.hosts: the hosts of a scenario are those of its own"),
        ("settings:\n  datastores: [{name: a, path: /a, hosts: [h7]}]\n", "line 4: settings.datastores"),
    ],
)
def test_a_mistake_in_the_settings_of_a_scenario_is_shown_in_its_place(
    given: str, says: str, tmp_path: Path
) -> None:
    text = STEPS_ALONE.replace("hosts: [{name: h1}", f"{given}hosts: [{{name: h1}}", 1)
    assert complaint(tmp_path / "s.yaml", text).startswith(says)


@pytest.mark.parametrize(
    ("old", "line", "field"),
    [("{name: h2}", 3, "hosts.1.fencing.1"), ("{name: h3}", 8, "steps.1")],
)
def test_a_watchdog_that_no_kernel_takes_is_refused_in_its_place(
    old: str, line: int, field: str, tmp_path: Path
) -> None:
    levels = "fencing: [{method: power}, {method: watchdog, timeout_s: 1000, level: 2}]"
    said = complaint(tmp_path / "s.yaml", STEPS_ALONE.replace(old, f"{old[:-1]}, {levels}}}"))
    assert said.startswith(f"line {line}: {field}: ")
    assert "timeout_s: 1000 s; of a watchdog it is from 5 to 600 s" in said


def test_every_step_says_which_fields_it_takes() -> None:
    assert set(TAKES) == STEPS
    assert set(WAYS) <= STEPS


def test_a_policy_by_which_nobody_plans_is_refused(tmp_path: Path) -> None:
    text = STEPS_ALONE.replace("hosts:", "policy: {memory_overcommit: 1.5}\nhosts:", 1)
    said = complaint(tmp_path / "s.yaml", text)
    assert said == (
        "line 3: policy.memory_overcommit: no service plans by it yet, in neither world: leave it out, or say 1"
    )


@pytest.mark.parametrize("wanted", [0, 1, 2])
def test_how_many_failures_a_pool_is_to_tolerate_may_be_said(wanted: int, tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    said = f"policy: {{failures_to_tolerate: {wanted}, memory_overcommit: 1.0}}\nhosts:"
    path.write_text(STEPS_ALONE.replace("hosts:", said, 1))
    assert load_scenario(path).policy.failures_to_tolerate == wanted
