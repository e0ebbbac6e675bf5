"""Real agents against BMC emulators, each before a process that really dies.

They run where the programs are there; `make bmcs` installs them first.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from libs.config.entries import FenceDevice
from libs.core.ports import FenceError
from libs.model import PowerState, ProofMethod
from libs.power.agents import find_agent
from libs.power.devices import FenceDevices
from libs.power.metadata import ask, misfits
from tests.integration import bmcs
from tests.integration.bmcs import PASSWORD, IpmiBmc, Machine, RedfishBmc
from tests.unit.fenceagents import Seen
from tests.unit.made import boot
from tests.waiting import eventually

without_ipmi = bmcs.lacking("fence_ipmilan", "ipmitool", "ipmi_sim")
without_redfish = bmcs.lacking("fence_redfish", "sushy-emulator", "openssl")
SLACK_S = 5.0
"""For a machine that is busy with other tests; the agents themselves would take 20 s and more."""
needs_ipmi = pytest.mark.skipif(bool(without_ipmi), reason=without_ipmi)
needs_redfish = pytest.mark.skipif(bool(without_redfish), reason=without_redfish)


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    one = Machine(tmp_path, "h1")
    yield one
    one.end()


@pytest.fixture
def neighbour(tmp_path: Path) -> Iterator[Machine]:
    one = Machine(tmp_path, "h2")
    yield one
    one.end()


Begin = Callable[[IpmiBmc | RedfishBmc], subprocess.Popen[bytes]]


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Begin]:
    """Starts an emulator."""
    with ExitStack() as stack:
        yield lambda bmc: stack.enter_context(bmcs.running(bmc.arguments(), tmp_path / "emulator.log"))


async def answers(power: FenceDevices) -> None:
    async def reads_on() -> bool:
        return (await power.status("h1", 20.0))[0] is PowerState.ON

    await eventually(reads_on, "the emulator answers", within_s=40.0, every_s=0.1)


async def reading_without_proof(power: FenceDevices, timeout_s: float = 20.0) -> str:
    """What is said where a device gives neither a reading nor a proof."""
    state, detail = await power.status("h1", timeout_s)
    assert state is PowerState.UNKNOWN
    with pytest.raises(FenceError) as error:
        await power.fence(boot("h1"), Seen())
    return "; ".join([detail, *error.value.missing])


# -- IPMI


@needs_ipmi
async def test_ipmi_off_and_off_read_twice_is_a_proof_of_a_machine_that_is_gone(
    tmp_path: Path, machine: Machine, begin: Begin
) -> None:
    bmc = IpmiBmc(tmp_path)
    begin(bmc)
    power = bmc.device()
    await answers(power)
    assert machine.runs
    proof = await power.fence(boot("h1"), Seen())
    assert not machine.runs
    assert (proof.of, proof.method) == (boot("h1"), ProofMethod.POWER_OFF)
    assert "fence_ipmilan" in proof.detail
    assert (await power.status("h1", 20.0))[0] is PowerState.OFF
    await power.fence(boot("h1"), Seen())
    assert bmc.asked() == ["set power 0"], "what is off is not switched off again, and nothing on"


@needs_ipmi
async def test_ipmi_with_a_wrong_password_reads_nothing_proves_nothing_and_tells_no_secret(
    tmp_path: Path, machine: Machine, begin: Begin
) -> None:
    bmc = IpmiBmc(tmp_path)
    begin(bmc)
    await answers(bmc.device())
    said = await reading_without_proof(bmc.device(password="wr0ng-secret"))
    assert machine.runs
    assert "fence_ipmilan: status: exit 1" in said
    assert "wr0ng-secret" not in said
    assert PASSWORD not in said


@needs_ipmi
@pytest.mark.parametrize("how", ["gone", "mute"])
async def test_ipmi_that_does_not_answer_is_unknown_within_the_deadline_and_leaves_no_ipmitool(
    tmp_path: Path, machine: Machine, begin: Begin, how: str
) -> None:
    bmc = IpmiBmc(tmp_path)
    emulator = begin(bmc)
    await answers(bmc.device())
    os.killpg(emulator.pid, signal.SIGKILL if how == "gone" else signal.SIGSTOP)
    power = bmc.device(timeout_s=2.0)
    began = time.monotonic()
    state, detail = await power.status("h1", 2.0)
    took_s = time.monotonic() - began
    assert (state, took_s < 2.0 + SLACK_S) == (PowerState.UNKNOWN, True), (detail, took_s)
    with pytest.raises(FenceError) as error:
        await power.fence(boot("h1"), Seen())
    assert time.monotonic() - began < 2.0 + power.deadline_s("h1") + SLACK_S
    assert any("no answer by its deadline" in reason for reason in error.value.missing)
    assert machine.runs
    assert not speaking_to(bmc.port), "killed whole"


def speaking_to(port: int) -> list[str]:
    """Command lines of ipmitools that speak to this port."""
    shown = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if b"ipmitool" in words[0] and str(port).encode() in words:
            shown.append(b" ".join(words).decode())
    return shown


async def no_proof_until_it_ends(power: FenceDevices, machine: Machine) -> None:
    await answers(power)
    with pytest.raises(FenceError) as error:
        await power.fence(boot("h1"), Seen())
    assert any("reads on" in reason for reason in error.value.missing)
    assert machine.runs
    machine.end()
    await power.fence(boot("h1"), Seen())


@needs_ipmi
async def test_ipmi_that_acknowledges_before_the_power_is_gone_is_no_proof_until_it_is(
    tmp_path: Path, machine: Machine, begin: Begin
) -> None:
    bmc = IpmiBmc(tmp_path, off=bmcs.NEVER)
    begin(bmc)
    # the agent itself would wait for 20 s until it reads off: here it gives up before that
    power = bmc.device(power_timeout=1, power_wait=0)
    await no_proof_until_it_ends(power, machine)
    assert bmc.asked() == ["set power 0"]


@needs_ipmi
async def test_ipmi_whose_power_goes_seconds_after_its_answer_proves_it_only_then(
    tmp_path: Path, machine: Machine, begin: Begin
) -> None:
    bmc = IpmiBmc(tmp_path, off=bmcs.late(3.0))
    begin(bmc)
    power = bmc.device()
    await answers(power)
    began = time.monotonic()
    await power.fence(boot("h1"), Seen())
    assert not machine.runs
    assert time.monotonic() - began > 3.0


# -- Redfish


@needs_redfish
async def test_redfish_off_is_a_proof_of_the_system_that_was_named_and_spares_its_neighbour(
    tmp_path: Path, machine: Machine, neighbour: Machine, begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over TLS with a certificate that is looked at."""
    bmc = RedfishBmc(tmp_path)
    begin(bmc)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(bmc.certificate))
    power = bmc.device()
    await answers(power)
    proof = await power.fence(boot("h1"), Seen())
    assert (machine.runs, neighbour.runs) == (False, True)
    assert (proof.method, "fence_redfish" in proof.detail) == (ProofMethod.POWER_OFF, True)
    await power.fence(boot("h1"), Seen())
    assert bmc.asked() == ["h1 ForceOff"], "never gracefully, never twice, never on"


@needs_redfish
async def test_redfish_with_a_wrong_password_or_a_strange_certificate_proves_nothing_and_tells_no_secret(
    tmp_path: Path, machine: Machine, begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    bmc = RedfishBmc(tmp_path)
    begin(bmc)
    monkeypatch.delenv("REQUESTS_CA_BUNDLE", raising=False)
    await answers(bmc.device(ssl_insecure=True))
    for power in (bmc.device(password="wr0ng-secret", ssl_insecure=True), bmc.device()):
        said = await reading_without_proof(power)
        assert "fence_redfish: status: exit 1" in said
        assert "wr0ng-secret" not in said
        assert PASSWORD not in said
    assert machine.runs
    assert bmc.asked() == []


@needs_redfish
@pytest.mark.parametrize("how", ["gone", "mute"])
async def test_redfish_that_does_not_answer_is_unknown_within_the_deadline(
    tmp_path: Path, machine: Machine, begin: Begin, how: str
) -> None:
    """The agent waits for a mute one for ever: its deadline is ours."""
    bmc = RedfishBmc(tmp_path)
    emulator = begin(bmc)
    await answers(bmc.device(ssl_insecure=True))
    os.killpg(emulator.pid, signal.SIGKILL if how == "gone" else signal.SIGSTOP)
    power = bmc.device(timeout_s=3.0, ssl_insecure=True)
    began = time.monotonic()
    said = await reading_without_proof(power, 3.0)
    assert time.monotonic() - began < 3.0 + power.deadline_s("h1") + SLACK_S
    assert "status: exit 1" in said or "no answer by its deadline" in said
    assert machine.runs


@needs_redfish
async def test_redfish_that_acknowledges_before_the_power_is_gone_is_no_proof_until_it_is(
    tmp_path: Path, machine: Machine, begin: Begin
) -> None:
    bmc = RedfishBmc(tmp_path, obeys=False)
    begin(bmc)
    power = bmc.device(ssl_insecure=True, power_timeout=1)
    await no_proof_until_it_ends(power, machine)
    assert bmc.asked() == ["h1 ForceOff"]


# -- their metadata


@needs_ipmi
@pytest.mark.parametrize("agent", ["fence_ipmilan", "fence_redfish"])
async def test_the_real_agents_tell_of_what_a_pool_file_gives_them_and_know_no_mistyped_option(
    agent: str,
) -> None:
    metadata = await ask(find_agent(agent), 20.0)
    common: dict[str, str | int | bool] = {"ip": "127.0.0.1", "ipport": 1, "username": "admin"}
    own: dict[str, str | int | bool] = {"lanplus": True, "cipher": 3}
    if agent == "fence_redfish":
        own = {"systems_uri": "/redfish/v1/Systems/1", "ssl_insecure": True}
    assert list(misfits(FenceDevice(agent=agent, options={**common, **own}), metadata)) == []
    ((where, reason),) = misfits(
        FenceDevice(agent=agent, options={**common, **own, "pasword_script": "/x"}), metadata
    )
    assert (where, reason.endswith("(did you mean password_script?)")) == (
        ("options", "pasword_script"),
        True,
    )
