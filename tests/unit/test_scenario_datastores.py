"""Datastores of a scenario file: what it may name, and what the lab is told."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from infra.lab import stores
from infra.lab.lab import Lab, LabError, LabHost, LabStore
from infra.lab.plane import Plane
from infra.lab.spec import LabSpec, check_stores
from infra.lab.steps import Stage
from infra.lab.steps import load as load_for_lab
from libs.config.yamlfile import BadInputError
from libs.scenario.files import load_scenario
from libs.scenario.model import StepEntry
from libs.scenario.pool import ScenarioDatastore
from libs.sim.run import run as simulate
from services.cli.simplane import PLANE

pytestmark = pytest.mark.fast

GOOD = """\
schema: rekindle.scenario.v1
name: a file
duration_s: 20
hosts: [{name: h1}, {name: h2}]
datastores:
  - {name: nfs}
  - {name: san, hosts: [h1]}
vms:
  - {name: a, host: h1, datastore: san}
  - {name: b, host: h2, datastore: nfs}
steps:
  - {at_s: 1, do: stall_storage, host: h1, datastore: san}
  - {at_s: 2, do: restore_storage}
"""


def _file(folder: Path, text: str) -> Path:
    path = folder / "scenario.yaml"
    path.write_text(text)
    return path


def test_a_file_with_datastores_is_read_and_the_simulator_takes_it(tmp_path: Path) -> None:
    scenario = load_scenario(_file(tmp_path, GOOD))
    assert scenario.datastores == (
        ScenarioDatastore(name="nfs"),
        ScenarioDatastore(name="san", hosts=("h1",)),
    )
    assert [vm.datastore for vm in scenario.vms] == ["san", "nfs"]
    assert simulate(scenario, scenario.seed, PLANE).outcome.passed


@pytest.mark.parametrize(
    ("right", "wrong", "says"),
    [
        ("hosts: [h1]}", "hosts: [h9]}", "line 7: datastores.1.hosts: there is no host h9"),
        ("{name: nfs}", "{name: Nfs!}", "line 6: datastores.0.name: "),
        ("{name: nfs}", "{name: san}", "datastores: san is given twice"),
        (
            "datastore: san}\n  - {name: b",
            "datastore: sun}\n  - {name: b",
            "line 9: vms.0.datastore: there is no datastore sun",
        ),
        (
            "host: h2, datastore: nfs",
            "host: h2, datastore: san",
            "line 10: vms.1.datastore: host h2 has no datastore san",
        ),
        (
            "host: h1, datastore: san}\n  - {at",
            "datastore: x}\n  - {at",
            "line 12: steps.0.datastore: there is no datastore x",
        ),
        (
            "host: h1, datastore: san}\n  - {at",
            "host: h2, datastore: san}\n  - {at",
            "line 12: steps.0.datastore: host h2 has",
        ),
    ],
)
def test_a_name_that_is_not_there_is_refused_by_line_and_field(
    tmp_path: Path, right: str, wrong: str, says: str
) -> None:
    assert right in GOOD
    path = _file(tmp_path, GOOD.replace(right, wrong, 1))
    with pytest.raises(BadInputError) as refused:
        load_scenario(path)
    assert f"{path}: " in str(refused.value)
    assert says in str(refused.value)


def test_the_lab_refuses_datastores_where_it_can_have_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores, "why_not", lambda: "need root")
    with pytest.raises(BadInputError, match="line 5: datastores: they need root"):
        load_for_lab(_file(tmp_path, GOOD))
    with pytest.raises(LabError, match="datastores need root"):
        Lab.create([LabHost("h1")], Path("/tmp/rkl-never"), datastores=("one",))
    assert not Path("/tmp/rkl-never").exists()


@pytest.mark.parametrize(
    ("named", "says"),
    [
        (("a b",), "datastore name 'a b'"),
        (("one", LabStore("one")), "datastore name 'one': given twice"),
        ((LabStore("one", ("h9",)),), "datastore 'one': there is no host 'h9'"),
    ],
)
def test_a_lab_cannot_have_such_datastores(named: tuple[str | LabStore, ...], says: str) -> None:
    with pytest.raises(LabError, match=says):
        check_stores(named, [LabHost("h1")])


def test_a_step_without_names_is_of_every_host_and_datastore_as_far_as_one_has_the_other() -> None:
    told: list[tuple[str, str]] = []
    kept = (LabStore("nfs"), LabStore("san", ("h1",)))
    spec = LabSpec(Path("/tmp/x"), True, (LabHost("h1"), LabHost("h2")), Path("/tmp/c"), datastores=kept)
    lab = SimpleNamespace(
        hosts=["h1", "h2"], spec=spec, stall_storage=lambda host, name: told.append((host, name))
    )
    stage = Stage(cast(Lab, lab), cast(Plane, None))
    for step, expected in (
        ({}, [("h1", "nfs"), ("h1", "san"), ("h2", "nfs")]),
        ({"host": "h2"}, [("h2", "nfs")]),
        ({"datastore": "san"}, [("h1", "san")]),
        ({"host": "h2", "datastore": "san"}, []),
    ):
        told.clear()
        stage.perform(StepEntry.model_validate({"at_s": 0, "do": "stall_storage", **step}))
        assert told == expected
