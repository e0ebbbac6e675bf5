"""A mistake in a file is shown with file, line, field and reason; a secret never is."""

from __future__ import annotations

from pathlib import Path

import pytest

from libs.config.entries import Secret
from libs.config.settings import Settings, load_settings
from libs.config.yamlfile import BadInputError
from libs.model import Priority, Protection
from libs.scenario.files import load_scenario
from services.heartbeat.__main__ import neighbours_of

pytestmark = pytest.mark.fast

GOOD = """\
pool: rack-a
data_dir: /tmp/x
hosts:
  - name: h1
    uri: qemu+ssh://root@h1/system
    fencing:
      - agent: fence_ipmilan
        options: {ip: 10.0.0.1, lanplus: true}
        secrets: {password: {env: BMC_PASSWORD}}
  - name: h2
    uri: test:///default
"""


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    path = tmp_path / "pool.yaml"
    path.write_text(GOOD)
    return path


def complaint(path: Path) -> str:
    with pytest.raises(BadInputError) as error:
        load_settings(path)
    return str(error.value)


def test_a_good_file_is_read(pool: Path) -> None:
    settings = load_settings(pool)
    assert [host.name for host in settings.hosts] == ["h1", "h2"]
    assert settings.detection.suspect_after_s == 1.5
    assert settings.vm_defaults.priority is Priority.MEDIUM
    assert settings.hosts[0].fencing[0].options["lanplus"] is True


@pytest.mark.parametrize(
    ("old", "new", "line", "field", "reason"),
    [
        ("pool: rack-a", "pools: rack-a", 1, "pools", "unknown field (did you mean pool?)"),
        ("pool: rack-a", "detection: {suspect_after: 2}", 1, "detection.suspect_after", "suspect_after_s"),
        ("    uri: test", "    url: test", 11, "hosts.1.url", "unknown field (did you mean uri?)"),
        ("    uri: test:///default", "    memory_mib: 1", 10, "hosts.1.uri", "Field required"),
        ("pool: rack-a", "pool: rack a", 1, "pool", "'rack a' is no name"),
        ("pool: rack-a", "detection: {ask_every_s: 2s}", 1, "detection.ask_every_s", "not '2s'"),
        ("pool: rack-a", "detection: {ask_every_s: -1}", 1, "detection.ask_every_s", "greater than 0"),
        (
            "    uri: test:///default",
            "    uri: test:///default\n    memory_mib: 64GiB",
            12,
            "hosts.1.memory_mib",
            "not '64GiB'",
        ),
        ("name: h2", "name: h1", None, "", "two hosts are called h1"),
        ("name: h2", "name: 10.0.0.2", 10, "hosts.1.name", "is no name"),
        ("test:///default", "h2.example.com", 11, "hosts.1.uri", "is no libvirt URI"),
        ("test:///default", "http://h2/", 11, "hosts.1.uri", "is no libvirt URI"),
        (
            "pool: rack-a",
            "detection: {suspect_after_s: 1.4}",
            None,
            "detection.suspect_after_s",
            "shorter than three heartbeats",
        ),
        ("pool: rack-a", "guests: {silent_after_s: 14}", None, "", "shorter than three pings"),
        (
            "pool: rack-a",
            "datastores: [{name: nfs, path: /nfs}]\ndetection: {datastore_lost_s: 7}",
            None,
            "",
            "shorter than three slow writes",
        ),
        ("pool: rack-a", "guests: {grey_min: 1}", 1, "guests.grey_min", "greater than or equal to 2"),
        ("pool: rack-a", "heartbeats: {interval_s: 0.6}", None, "", "shorter than three heartbeats"),
        ("pool: rack-a", "detection: {confirm_silence_s: 2}", None, "", "less evidence must wait longer"),
        ("pool: rack-a", "detection: {confirm_witnessed_s: 0.5}", None, "", "nobody could answer in time"),
        (
            "pool: rack-a",
            "detection: {ask_timeout_s: 1.1}",
            None,
            "detection.ask_timeout_s",
            "longer than ask_every_s",
        ),
        (
            "pool: rack-a",
            "fencing: {retry_first_s: 31}",
            None,
            "fencing.retry_first_s",
            "longer than retry_max_s",
        ),
        (
            "pool: rack-a",
            "restart: {retry_max_s: 0.5}",
            None,
            "restart.retry_first_s",
            "longer than retry_max_s",
        ),
        ("pool: rack-a", "bus: {url: 'nats://a:1', url_file: /a}", 1, "bus", "either url or url_file"),
        ("pool: rack-a", "bus: {listen: '10.0.0.1:4222'}", 1, "bus.listen", "its port is bus.port"),
        ("pool: rack-a", "bus: {replicas: 3}", 1, "bus", "the embedded server is one"),
        ("agent: fence_ipmilan", "agnt: fence_ipmilan", 7, "hosts.0.fencing.0.agnt", "did you mean agent?"),
        ("lanplus: true", "action: reboot", None, "hosts.0.fencing.0", "the action is ours to choose"),
        ("{env: BMC_PASSWORD}", "{env: A, file: /b}", 9, "password", "give either file or env"),
        ("ip: 10.0.0.1", "password: x", None, "hosts.0.fencing.0", "both as option and as secret"),
        ("pool: rack-a", "vm_defaults: {priority: urgent}", 1, "vm_defaults.priority", "highest"),
        ("pool: rack-a", "bus: {replicas: 2}", 1, "bus.replicas", "1, 3 or 5"),
        (
            "pool: rack-a",
            "health: {ports: {detectr: 7411}}",
            1,
            "health.ports.detectr",
            "did you mean detector?",
        ),
        (
            "pool: rack-a",
            "health: {ports: {fencer: 0}}",
            1,
            "health.ports.fencer",
            "greater than or equal to 1",
        ),
        ("pool: rack-a", "health: {ports: {fencer: 70000}}", 1, "health.ports.fencer", "equal to 65535"),
        (
            "pool: rack-a",
            "health: {ports: {detector: 7411, fencer: 7411}}",
            1,
            "health.ports",
            "detector and fencer have the same port, 7411",
        ),
        ("pool: rack-a", "health: {lag_max_s: 0}", 1, "health.lag_max_s", "greater than 0"),
        ("pool: rack-a", "pool: a\npool: b", 2, "", "'pool' is given twice"),
        ("pool: rack-a", "pool: [a", None, "", "line"),
        ("pool: rack-a", "alerts: {webhook_url: hooks.example.com}", 1, "alerts.webhook_url", "match"),
    ],
)
def test_a_mistake_names_file_line_field_and_reason(
    pool: Path, old: str, new: str, line: int | None, field: str, reason: str
) -> None:
    assert old in GOOD
    pool.write_text(GOOD.replace(old, new, 1))
    said = complaint(pool)
    assert said.startswith(f"{pool}: ")
    if line is not None:
        assert f"line {line}: " in said
    assert field in said
    assert reason in said


def test_all_mistakes_are_shown_at_once(pool: Path) -> None:
    pool.write_text(GOOD.replace("pool: rack-a", "pools: x").replace("name: h2", "nam: h2"))
    lines = complaint(pool).splitlines()
    assert len(lines) == 3  # the unknown pools, the unknown nam, the missing name
    assert all(one.startswith(str(pool)) for one in lines)


def test_a_host_that_is_wrong_is_not_said_to_be_missing(pool: Path) -> None:
    pool.write_text("hosts:\n  - {name: h1, uri: foo}\n")
    assert complaint(pool) == (
        f"{pool}: line 2: hosts.0.uri: 'foo' is no libvirt URI, such as qemu+ssh://root@host/system"
    )
    pool.write_text("hosts: []\n")
    assert "line 1: hosts: Tuple should have at least 1 item" in complaint(pool)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "hosts: Field required"),
        ("- a\n- b\n", "must be a mapping"),
        ("hosts: []\n", "hosts"),
        ("a: b: c\n", "line 1"),
        ("\t- x", "line 1"),
        ("pool: x\n{[1]: 2}: 3\n", "line 2: "),
        ("pool: x\nhosts: [{[1]: 2}]\n", "line 2: a list or a mapping cannot be a field's name"),
        ("pool: x\n? {a: 1}\n: 2\n", "line 2: a list or a mapping cannot be a field's name"),
        ("pool: x\nhosts: \x07\n", "line 2: the character 0x07 cannot stand in YAML"),
        ("pool: 2026-13-45\n", "line 1: the value cannot be read as timestamp"),
        ("hosts: 1\npool: !!int x\n", "line 2: the value cannot be read as int"),
        ("hosts: 1\npool: !!bool x\n", "line 2: the value cannot be read as bool"),
        ("hosts: 1\npool: !!timestamp x\n", "line 2: the value cannot be read as timestamp"),
        ("pool: " + "[" * 2000, "is nested too deeply"),
    ],
)
def test_a_file_that_is_no_pool_file_is_refused(pool: Path, content: str, reason: str) -> None:
    pool.write_text(content)
    assert reason in complaint(pool)


def test_a_file_that_is_not_there_or_no_text_is_named(tmp_path: Path) -> None:
    assert complaint(tmp_path / "no.yaml") == f"{tmp_path}/no.yaml: cannot be read: No such file or directory"
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00")
    assert "is no UTF-8 text" in complaint(tmp_path / "b.yaml")


# -- secrets


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("{password: {env: BMC_PASSWORD}}", "{password: hunter2}"),
        ("{password: {env: BMC_PASSWORD}}", "hunter2"),
        ("{password: {env: BMC_PASSWORD}}", "{password: {value: hunter2}}"),
        ("{password: {env: BMC_PASSWORD}}", "{password: {env: A, file: hunter2}}"),
        ("pool: rack-a", "alerts: {webhook_url: 'htps://hooks.example.com/hunter2'}"),
        ("pool: rack-a", "bus: {url: {nats: hunter2}}"),
        ("ip: 10.0.0.1", "ip: [hunter2]"),
    ],
)
def test_a_secret_in_the_wrong_place_is_not_repeated(pool: Path, old: str, new: str) -> None:
    pool.write_text(GOOD.replace(old, new))
    assert "hunter2" not in complaint(pool)


def test_secrets_are_read_from_where_they_lie_and_named_by_place_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BMC", "one")
    (tmp_path / "two").write_text("two\n")
    assert Secret(env="BMC").read() == "one"
    assert Secret(file=tmp_path / "two").read() == "two"
    with pytest.raises(BadInputError, match="environment variable NOT_THERE is not set"):
        Secret(env="NOT_THERE").read()
    with pytest.raises(BadInputError, match="three: cannot be read"):
        Secret(file=tmp_path / "three").read()


# -- environment


def test_the_environment_overrides_the_file(pool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REKINDLE_DETECTION__SUSPECT_AFTER_S", "2.5")
    monkeypatch.setenv("REKINDLE_POOL", "other")
    monkeypatch.setenv("REKINDLE_VM_DEFAULTS__PROTECTION", "none")
    monkeypatch.setenv("REKINDLE_SUPERVISED", "1")
    settings = load_settings(pool)
    assert (settings.pool, settings.detection.suspect_after_s) == ("other", 2.5)
    assert settings.vm_defaults.protection is Protection.NONE
    assert settings.detection.ask_every_s == 1.0


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("REKINDLE_DETECTION__SUSPECT_AFTER_S", "soon", "not 'soon'"),
        ("REKINDLE_DETECTION__SUSPECT_AFTER_S", "1", "shorter than three heartbeats"),
        ("REKINDLE_DETECTION__SUSPECT_AFTER", "1", "unknown field (did you mean suspect_after_s?)"),
        ("REKINDLE_DETECTION", "5", "detection"),
        ("REKINDLE_BUS__REPLICAS", "3", "the embedded server is one"),
        ("REKINDLE_DETECTOIN__X_S", "1", "did you mean REKINDLE_DETECTION__X_S?"),
        ("REKINDLE_COOK__SALT", "1", "no section of settings is called cook"),
        ("REKINDLE_POOL", "{a: [", "REKINDLE_POOL"),
    ],
)
def test_a_mistake_in_the_environment_is_a_mistake_too(
    pool: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str, reason: str
) -> None:
    monkeypatch.setenv(name, value)
    assert reason in complaint(pool)
    assert name in complaint(pool)


def test_a_mistake_of_the_file_is_not_blamed_on_the_environment(
    pool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REKINDLE_DETECTION__SUSPECT_AFTER_S", "soon")
    pool.write_text(GOOD + "guests: {grey_min: 1}\ndetection: {suspect_after_s: 2}\n")
    of_environment, of_file = complaint(pool).splitlines()
    assert of_environment.startswith("environment variable REKINDLE_DETECTION__SUSPECT_AFTER_S: detection.s")
    assert of_file.startswith(f"{pool}: line 12: guests.grey_min: ")


def test_what_is_told_by_environment_to_our_own_processes_is_no_setting(
    pool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("REKINDLE_HOLDER", "REKINDLE_LAB", "REKINDLE_SEEDS", "REKINDLE_CONFIG"):
        monkeypatch.setenv(name, "x")
    assert load_settings(pool).pool == "rack-a"


def test_a_value_and_its_parts_in_the_environment_contradict_each_other(
    pool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REKINDLE_DETECTION", "5")
    monkeypatch.setenv("REKINDLE_DETECTION__SUSPECT_AFTER_S", "2")
    assert "REKINDLE_DETECTION" in complaint(pool)


def test_where_the_bus_is(pool: Path, tmp_path: Path) -> None:
    pool.write_text(GOOD + "bus: {url: 'nats://a:1, nats://b:2'}\n")
    assert load_settings(pool).servers() == ["nats://a:1", "nats://b:2"]
    (tmp_path / "url").write_text("nats://t@c:3")
    pool.write_text(GOOD + f"bus: {{url_file: {tmp_path}/url}}\n")
    assert load_settings(pool).servers() == ["nats://t@c:3"]
    pool.write_text(GOOD)
    with pytest.raises(BadInputError, match="is `rekindle up` running"):
        load_settings(pool).servers()


def test_an_unknown_host_is_answered_with_the_known(pool: Path) -> None:
    with pytest.raises(BadInputError, match="no host is called h9; there are h1, h2"):
        load_settings(pool).host("h9")


# -- scenarios

SCENARIO = """\
schema: rekindle.scenario.v1
name: power loss
duration_s: 60
hosts:
  - {name: h1, memory_mib: 4096, cpus: 4}
  - {name: h2}
vms:
  - {name: a, host: h1, memory_mib: 128, vcpus: 1, priority: high}
steps:
  - {at_s: 10, do: power_off, host: h1}
  - {at_s: 20, do: power_on, host: h1}
expect:
  - {vm: a, state: running, host_not: h1, by_s: 40}
"""


@pytest.mark.parametrize(
    ("old", "new", "line", "reason"),
    [
        ("schema: rekindle.scenario.v1", "schema: rekindle.scenario.v2", 1, "rekindle.scenario.v1"),
        ("duration_s: 60", "duration: 60", 3, "did you mean duration_s?"),
        ("do: power_off", "do: explode", 10, "'explode' is no step"),
        ("do: power_off, host: h1", "do: power_off", 10, "power_off needs a host"),
        ("do: power_off, host: h1", "do: power_off, host: h9", 10, "there is no host h9"),
        ("do: power_off, host: h1", "do: power_off, host: {name: h1}", 10, "host"),
        ("do: power_off, host: h1", "do: crash_vm", 10, "crash_vm needs a vm"),
        ("do: power_off, host: h1", "do: crash_vm, vm: z", 10, "there is no VM z"),
        ("do: power_off, host: h1", "do: kill_service", 10, "needs a service"),
        ("do: power_off, host: h1", "do: kill_service, service: cook", 10, "service"),
        ("do: power_off, host: h1", "do: add_host", 10, "add_host needs a host"),
        ("do: power_off, host: h1", "do: add_host, host: h3", 10, "host"),
        ("do: power_off, host: h1", "do: add_host, host: {name: h3, cores: 4}", 10, "cores"),
        ("do: power_off, host: h1", "do: add_host, host: {name: h2}", None, "h2 is given twice"),
        ("do: power_off, host: h1", "do: partition, groups: [[h1]]", 10, "at least two groups"),
        ("at_s: 20", "at_s: 5", 11, "lies before the step above"),
        ("at_s: 20", "at_s: 61", 11, "lies after the end"),
        ("at_s: 20", "at_s: -1", 11, "greater than or equal to 0"),
        ("{name: h2}", "{name: h1}", None, "h1 is given twice"),
        ("host: h1, memory_mib", "host: h7, memory_mib", None, "there is no host h7"),
        ("{vm: a, state: running", "{vm: b, state: running", 13, "there is no VM b"),
        ("host_not: h1", "host_not: h8", 13, "there is no host h8"),
        ("state: running", "state: happy", 13, "there are running, stopped, waiting"),
        ("{name: a, host: h1,", "{name: a, state: running, host: h1,", None, "vms.0.state: unknown field\n"),
        ("{vm: a, state: running, host_not: h1, by_s: 40}", "{by_s: 40}", 13, "an expectation is about"),
    ],
)
def test_a_mistake_in_a_scenario_is_shown_before_anything_starts(
    tmp_path: Path, old: str, new: str, line: int | None, reason: str
) -> None:
    assert old in SCENARIO
    path = tmp_path / "s.yaml"
    path.write_text(SCENARIO.replace(old, new, 1))
    with pytest.raises(BadInputError) as error:
        load_scenario(path)
    said = f"{error.value}\n"
    assert said.startswith(f"{path}: ")
    assert reason in said
    if line is not None:
        assert f"line {line}: " in said


def test_a_step_that_is_not_possible_here_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(SCENARIO)
    assert len(load_scenario(path).steps) == 2
    with pytest.raises(BadInputError, match=r"line 11: steps\.1\.do: power_on is not possible here yet"):
        load_scenario(path, possible={"power_off"})


def test_a_host_that_is_added_exists_from_then_on(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(
        SCENARIO.replace("do: power_off, host: h1", "do: add_host, host: {name: h3}").replace(
            "do: power_on, host: h1", "do: crash, host: h3"
        )
    )
    assert load_scenario(path).steps[1].host == "h3"


def test_a_hosts_neighbours_are_asked_where_hosts_reach_them() -> None:
    hosts = [
        {"name": "h1", "uri": "qemu+tls://m1/system"},
        {"name": "h2", "uri": "qemu+tls://m2/system", "peer_uri": "qemu+tls://v2/system"},
        {"name": "h3", "uri": "qemu+tls://m3/system"},
    ]
    settings = Settings.model_validate({"pool": "p", "hosts": hosts})
    uris = [one.uri for one in neighbours_of(settings, "h1")]
    assert uris == ["qemu+tls://v2/system", "qemu+tls://m3/system"]
    assert settings.host("h2").uri == "qemu+tls://m2/system"
