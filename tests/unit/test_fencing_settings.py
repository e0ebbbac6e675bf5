"""What a pool file may not ask of a fence agent: refused with file, line, field and reason, before anything runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from libs.config.settings import load_settings
from libs.config.yamlfile import BadInputError

pytestmark = pytest.mark.fast

POOL = """\
hosts:
  - name: h1
    uri: test:///default
    fencing:
      - agent: {agent}
        options: {{{options}}}
        secrets: {{{secrets}}}
"""


def pool(path: Path, agent: str, options: str = "", secrets: str = "") -> Path:
    path.write_text(POOL.format(agent=agent, options=options, secrets=secrets))
    return path


def complaint(path: Path) -> str:
    with pytest.raises(BadInputError) as error:
        load_settings(path)
    return str(error.value)


@pytest.mark.parametrize("agent", ["fence_redfish", "/usr/sbin/fence_redfish"])
@pytest.mark.parametrize(
    "options",
    [
        "ip: 10.0.0.1",
        "ip: 10.0.0.1, system_uri: /redfish/v1/Systems/1",
        "ip: 10.0.0.1, Systems_URI: /redfish/v1/Systems/1",
        "ip: 10.0.0.1, systems_uri: ''",
    ],
)
def test_redfish_without_a_systems_uri_would_switch_off_whichever_system_comes_last(
    tmp_path: Path, agent: str, options: str
) -> None:
    said = complaint(pool(tmp_path / "p.yaml", agent, options))
    assert said.startswith(f"{tmp_path}/p.yaml: line 5: hosts.0.fencing.0: options.systems_uri is missing")
    assert "the last system that the BMC names" in said


@pytest.mark.parametrize("key", ["systems_uri", "systems-uri"])
def test_redfish_with_its_systems_uri_is_taken_under_both_of_its_names(tmp_path: Path, key: str) -> None:
    load_settings(pool(tmp_path / "p.yaml", "fence_redfish", f"{key}: /redfish/v1/Systems/1"))


@pytest.mark.parametrize(
    ("options", "secrets", "reason"),
    [
        ("action: reboot", "", "options.action: the action is ours to choose"),
        ("option: 'off'", "", "options.option: the action is ours to choose"),
        ("' Action': cycle", "", "options.action: the action is ours to choose"),
        ("", "action: {env: X}", "secrets.action: the action is ours to choose"),
        ("method: cycle", "", "options.method: only onoff: a cycle reports success without"),
        ("method: ' CYCLE '", "", "options.method: only onoff"),
        ("method: cycle, Method: onoff", "", "options.method: only onoff"),
        ("method: power-cycle", "", "options.method: only onoff"),
        ("", "method: {env: X}", "secrets.method: it is no secret"),
        ("missing_as_off: true", "", "options.missing_as_off: a plug that is not found would read as off"),
        ("missing-as-off: 1", "", "options.missing_as_off: "),
        ("missing_as_off: maybe", "", "options.missing_as_off: "),
        ("", "missing_as_off: {env: X}", "secrets.missing_as_off: it is no secret"),
        ("password: hunter2", "", "options.password: a secret does not belong into the pool file"),
        ("snmp_priv_passwd: hunter2", "", "options.snmp_priv_passwd: a secret does not belong"),
    ],
)
def test_what_would_make_off_mean_something_else_or_show_a_secret_is_refused(
    tmp_path: Path, options: str, secrets: str, reason: str
) -> None:
    said = complaint(pool(tmp_path / "p.yaml", "fence_ipmilan", options, secrets))
    assert said.startswith(f"{tmp_path}/p.yaml: line 5: hosts.0.fencing.0: {reason}")
    assert "hunter2" not in said


@pytest.mark.parametrize("options", ["method: onoff", "missing_as_off: false", "password_script: /x"])
def test_the_harmless_forms_of_the_same_options_are_taken(tmp_path: Path, options: str) -> None:
    load_settings(pool(tmp_path / "p.yaml", "fence_ipmilan", options))
