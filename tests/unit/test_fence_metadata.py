"""An agent's own list of its parameters, and a pool file held against it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import structlog

from infra.lab.lab import FENCE_AGENT
from libs.config.entries import FenceDevice, HostEntry, Secret
from libs.config.settings import FencingSettings, load_settings
from libs.config.yamlfile import BadInputError
from libs.power import checked
from libs.power.checked import misfits_of, refuse_misfits
from libs.power.metadata import UnreadableMetadataError, ask, misfits, parse
from services.detector import __main__ as detector
from services.fencer import __main__ as fencer
from tests.unit.fenceagents import program

pytestmark = pytest.mark.fast

# As fence-agents 4.12 prints it: an older name beside each newer one, required where the newer is.
IPMI = """\
<?xml version="1.0" ?>
<resource-agent name="fence_ipmi" shortdesc="x" >
<longdesc>Two &lt;lines&gt;.</longdesc>
<parameters>
	<parameter name="action" unique="0" required="1"><content type="string" default="reboot"  /></parameter>
	<parameter name="ip" unique="0" required="0" obsoletes="ipaddr"><content type="string"  /></parameter>
	<parameter name="ipaddr" unique="0" required="0" deprecated="1"><content type="string"  /></parameter>
	<parameter name="lanplus" unique="0" required="0"><content type="boolean"  /></parameter>
	<parameter name="login" unique="0" required="1" deprecated="1"><content type="string"  /></parameter>
	<parameter name="username" unique="0" required="1" obsoletes="login"><content type="string"  /></parameter>
	<parameter name="password" unique="0" required="0" obsoletes="passwd"><content type="string"  /></parameter>
	<parameter name="passwd" unique="0" required="0" deprecated="1"><content type="string"  /></parameter>
	<parameter name="systems-uri" unique="0" required="0" deprecated="1"><content type="string"  /></parameter>
	<parameter name="systems_uri" unique="0" required="0" obsoletes="systems-uri"><content type="string"  /></parameter>
	<parameter name="privlvl" unique="0" required="0">
		<content type="select" default="administrator"  ><option value="user" /><option value="administrator" /></content>
	</parameter>
</parameters>
<actions><action name="on" automatic="0"/><action name="off" /></actions>
</resource-agent>
"""


@pytest.fixture(autouse=True)
def _nothing_known() -> Iterator[None]:
    checked._known.clear()
    yield
    checked._known.clear()


def said(options: dict[str, Any], *secrets: str, text: str = IPMI) -> list[str]:
    device = FenceDevice(
        agent="/x/fence_ipmi", options=options, secrets={name: Secret(env="X") for name in secrets}
    )
    return [f"{'.'.join(where)}: {reason}" for where, reason in misfits(device, parse(text))]


@pytest.mark.parametrize(
    "options",
    [
        {"username": "admin"},
        {"login": "admin", "ipaddr": "10.0.0.1"},
        {"username": "admin", "systems-uri": "/x"},
        {"username": "admin", "lanplus": True, "privlvl": "USER"},
        {"username": "admin", "lanplus": "Yes"},
        {"username": "admin", "lanplus": 0},
    ],
)
def test_what_the_agent_knows_is_taken_under_its_newer_and_its_older_names(options: dict[str, Any]) -> None:
    assert said(options, "password") == []
    assert said(options, "passwd") == []


@pytest.mark.parametrize(
    ("options", "secrets", "expected"),
    [
        ({"username": "a", "sytem_uri": "x"}, (), ["options.sytem_uri: fence_ipmi has no such option (did you mean systems_uri?)"]),
        ({"username": "a", "lan_plus": 1}, (), ["options.lan_plus: fence_ipmi has no such option (did you mean lanplus?)"]),
        ({"username": "a", "zzz": 1}, (), ["options.zzz: fence_ipmi has no such option"]),
        ({"username": "a"}, ("pasword",), ["secrets.pasword: fence_ipmi has no such option (did you mean password?)"]),
        ({"username": "a", "Lanplus": 1}, (), ["options.Lanplus: fence_ipmi has no such option (did you mean lanplus?)"]),
        ({"username": "a", " ip": "x"}, (), ["options. ip: fence_ipmi has no such option (did you mean ip?)"]),
        ({}, (), ["options.username: is missing, and fence_ipmi requires it"]),
        ({"username": ""}, (), ["options.username: is missing, and fence_ipmi requires it"]),
        ({"usrname": "a"}, (), [
            "options.usrname: fence_ipmi has no such option (did you mean username?)",
            "options.username: is missing, and fence_ipmi requires it",
        ]),
        ({"username": "a", "lanplus": "hunter2"}, (), ["options.lanplus: fence_ipmi takes yes or no here, and ignores all else"]),
        ({"username": "a", "privlvl": "hunter2"}, (), ["options.privlvl: fence_ipmi takes one of user, administrator here"]),
    ],
)  # fmt: skip
def test_what_the_agent_would_ignore_or_miss_is_said_with_its_field_and_no_value(
    options: dict[str, Any], secrets: tuple[str, ...], expected: list[str]
) -> None:
    assert said(options, *secrets) == expected


def test_a_required_parameter_may_be_a_secret() -> None:
    assert said({}, "username") == []


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "it is no XML"),
        ("Status: ON", "it is no XML"),
        ("<resource-agent><parameters>", "it is no XML"),
        ("<html><parameter name='a'/></html>", "it names no parameters"),
        ("<resource-agent/>", "it names no parameters"),
        ("<a>" + "x" * 1_000_001 + "</a>", "it is longer"),
    ],
)
def test_what_is_no_metadata_is_not_taken_for_an_empty_list(text: str, why: str) -> None:
    with pytest.raises(UnreadableMetadataError, match=why):
        parse(text)


async def test_the_labs_own_agent_tells_of_its_parameters_and_fits_what_the_lab_writes() -> None:
    metadata = await ask(str(FENCE_AGENT), 10.0)
    device = FenceDevice(agent=str(FENCE_AGENT), options={"socket": "/x/power.sock"})
    assert list(misfits(device, metadata)) == []
    missing = list(misfits(FenceDevice(agent=str(FENCE_AGENT)), metadata))
    assert [where for where, _ in missing] == [("options", "socket")]


TELLS = f"""\
#!/bin/sh
cd "$(dirname "$0")"
echo "$@" >> asked
cat >> stdin
cat <<'END'
{IPMI}END
"""


def hosts(*devices: FenceDevice) -> list[HostEntry]:
    return [
        HostEntry(name=f"h{n}", uri="test:///default", fencing=(one,)) for n, one in enumerate(devices, 1)
    ]


async def test_an_agent_is_asked_once_for_all_hosts_and_gets_no_parameter_of_theirs(tmp_path: Path) -> None:
    path = str(program(tmp_path / "fence_ipmi", TELLS))
    pool = hosts(*(FenceDevice(agent=path, options={"username": f"u{n}"}) for n in range(20)))
    assert await misfits_of(pool, FencingSettings(), 5.0) == []
    assert await misfits_of(pool, FencingSettings(), 5.0) == []
    assert (tmp_path / "asked").read_text() == "-o metadata\n"
    assert (tmp_path / "stdin").read_text() == "action=metadata\n", "without an action it would mean reboot"


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("sleep 1000", "no answer by its deadline"),
        ("echo 'no module pycurl' >&2; exit 1", "exit 1: no module pycurl"),
        ("exit 0", "it is no XML"),
    ],
)
async def test_an_agent_that_does_not_tell_of_itself_is_named_at_each_of_its_devices(
    tmp_path: Path, script: str, why: str
) -> None:
    path = str(program(tmp_path / "fence_mute", f"#!/bin/sh\n{script}\n"))
    pool = hosts(FenceDevice(agent=path), FenceDevice(agent=path, options={"anything": 1}))
    began = time.monotonic()
    found = await misfits_of(pool, FencingSettings(), 0.5)
    assert time.monotonic() - began < 3
    assert [(one.where, one.host, one.unread) for one in found] == [
        (("hosts", 0, "fencing", 0, "agent"), "h1", True),
        (("hosts", 1, "fencing", 0, "agent"), "h2", True),
    ]
    assert all("fence_mute" in one.reason and why in one.reason for one in found)
    program(tmp_path / "fence_mute", TELLS)
    again = await misfits_of(pool, FencingSettings(), 5.0)
    assert not any(one.unread for one in again), "what could not be read is asked again"


POOL = """\
hosts:
  - name: h1
    uri: test:///default
    fencing:
      - agent: {agent}
        options:
          username: admin
          lanpuls: true
"""


async def test_what_uses_a_device_refuses_to_start_with_an_option_that_its_agent_does_not_know(
    tmp_path: Path,
) -> None:
    config = tmp_path / "pool.yaml"
    config.write_text(POOL.format(agent=program(tmp_path / "fence_ipmi", TELLS)))
    settings = load_settings(config)
    with pytest.raises(BadInputError) as error:
        await refuse_misfits(settings.hosts, settings.fencing, config)
    field = "line 8: hosts.0.fencing.0.options.lanpuls"
    assert str(error.value) == f"{config}: {field}: h1: fence_ipmi has no such option (did you mean lanplus?)"


async def test_what_uses_a_device_starts_with_a_warning_where_its_agent_does_not_tell_of_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checked, "START_S", 0.3)
    config = tmp_path / "pool.yaml"
    config.write_text(POOL.format(agent=program(tmp_path / "fence_ipmi", "#!/bin/sh\nsleep 1000\n")))
    settings = load_settings(config)
    with structlog.testing.capture_logs() as lines:
        async with asyncio.timeout(3):
            await refuse_misfits(settings.hosts, settings.fencing, config)
    assert [line["event"] for line in lines] == ["fence devices go unchecked"]
    assert "no answer by its deadline" in lines[0]["reason"]


@pytest.mark.parametrize("module", [fencer, detector])
@pytest.mark.parametrize("supervisor", [None, "1"])
async def test_a_service_on_its_own_asks_the_agents_and_one_of_up_does_not_ask_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: Any, supervisor: str | None
) -> None:
    """One that starts again in the middle of a failover must not wait for agents, nor end for what they say."""
    config = tmp_path / "pool.yaml"
    config.write_text(POOL.format(agent=program(tmp_path / "fence_ipmi", TELLS)))
    begun: list[Any] = []

    async def wire(context: Any) -> list[Any]:
        return [context]

    monkeypatch.setattr(module, "run", lambda name, path, begin: begun.append(begin))
    monkeypatch.setattr(module, "wire", wire)
    monkeypatch.delenv("REKINDLE_SUPERVISED", raising=False)
    if supervisor is not None:
        monkeypatch.setenv("REKINDLE_SUPERVISED", supervisor)
    module.main(config)
    context = SimpleNamespace(settings=load_settings(config))
    if supervisor is None:
        with pytest.raises(BadInputError, match="lanpuls"):
            await begun[0](context)
    else:
        assert await begun[0](context) == [context]
    assert (tmp_path / "asked").exists() == (supervisor is None)
