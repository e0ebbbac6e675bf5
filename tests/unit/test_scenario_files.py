"""A scenario file that could not show what it says is refused by file, line, field and reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from libs.config.yamlfile import BadInputError
from libs.scenario.files import load_scenario

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
