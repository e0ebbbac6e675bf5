"""What the load run concludes: from the detector's own processor time, whoever else uses the machine."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from infra.load.__main__ import kept_up, report
from infra.load.run import Result, Sample, Spent, machine, reckon, spent
from infra.load.wire import SimAgent
from libs.config.settings import Detection
from libs.events.signals import Heartbeat
from services.detector.decide import Detector
from services.detector.state import _blank
from tests.waiting import eventually

pytestmark = pytest.mark.fast


def run(*, given: float = 1.0, others: float = 0.0, us: float = 60.0, seconds: int = 100) -> Result:
    """10,000 agents at one heartbeat a second, of which the detector could take the share `given`, each at `us`."""
    result = Result(agents=10_000, every_s=1.0, seconds=seconds, vms_a_host=4)
    for second in range(seconds + 1):
        heard = 10_000 * second * given
        own = Spent(5.0 + heard * us / 1e6, second * (1 - given), 300.0 + 2e-6 * heard)
        everybody = own.ran_s + second * (0.5 + others)
        result.samples.append(
            Sample(float(second), own, Spent(second * 0.5, 0.0, 90.0), heard, 0.01, 1000.0 + everybody)
        )
    result.sent, result.heard = 10_000 * seconds, round(10_000 * seconds * given)
    reckon(result)
    return result


def test_what_the_detector_needs_is_the_same_on_a_quiet_machine_and_on_a_starved_one() -> None:
    quiet, busy = run(), run(given=0.25, others=1.3)
    assert quiet.detector_us == busy.detector_us == 60.0
    assert quiet.detector_cores == busy.detector_cores == 0.6
    assert (quiet.detector_had_cores, busy.detector_had_cores) == (0.6, 0.15)
    assert (quiet.detector_waited, busy.detector_waited) == (0.0, 0.75)
    assert (quiet.others_cores, busy.others_cores) == (0.0, 1.3)
    assert quiet.growth_mib_per_million == pytest.approx(2.0)


def test_a_starved_detector_has_not_kept_up_and_one_that_needs_too_much_has_neither() -> None:
    assert kept_up(run())
    assert not kept_up(run(given=0.25, others=1.3)), "it did not hear all, whosever fault that is"
    assert not kept_up(run(us=101.0))
    assert not kept_up(replace(run(), facts={"host.suspected": 1}))
    assert not kept_up(replace(run(), lost=1))


def test_a_row_has_as_many_cells_as_the_table_of_the_docs() -> None:
    lines = (Path(__file__).parents[2] / "docs" / "BENCH.md").read_text().splitlines()
    (head,) = [line for line in lines if line.startswith("| agents | every | measured |")]
    assert report(run()).count("|") == head.count("|")


def test_a_simulated_agent_says_what_a_real_one_says_and_its_clock_goes_on() -> None:
    """Without clocks a detector looks through all hosts for one that has one, whenever another joins."""
    agent = SimAgent("h7", "load", 4, "nats://a:b@127.0.0.1:1")
    beats = [Heartbeat.model_validate_json(agent.beat_line().split(b"\r\n")[1]) for _ in range(2)]
    assert [beat.seq for beat in beats] == [beat.slot_seq for beat in beats] == [1, 2]
    first, second = (beat.clock_s for beat in beats)
    assert first is not None
    assert second is not None
    assert 0 <= second - first < 5
    assert beats[0].hardware
    assert (
        beats[0].hardware
        != Heartbeat.model_validate_json(
            SimAgent("h8", "load", 4, agent.url).beat_line().split(b"\r\n")[1]
        ).hardware
    )
    line = agent.beat_line()
    assert int(line.split(b"\r\n")[0].rsplit(b" ", 1)[1]) == len(line.split(b"\r\n")[1])


def test_a_host_of_which_nothing_is_known_is_made_once_and_asked_for_by_no_tick() -> None:
    """Among 10,000 that have not joined a tick took longer than until the next one, and none ever joined."""
    detector = Detector(tuple(f"unknown{number}" for number in range(50)), Detection())
    state = detector.step(detector.initial(0.0), None, 1.0).state
    assert state.record("unknown7") is state.record("unknown7")
    before = _blank.cache_info()
    for _ in range(5):
        state = detector.step(state, None, state.tick_at).state
    assert _blank.cache_info() == before


@pytest.mark.long
async def test_processor_time_is_that_of_the_process_alone() -> None:
    """By the kernel's count, beside another that burns as much as it gets."""
    work = "import time\nwhile time.process_time() < 0.5: pass\nprint(time.process_time(), flush=True)\ninput()\n"
    burning = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    one = subprocess.Popen([sys.executable, "-c", work], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert one.stdout is not None
        before = machine()
        said = float(one.stdout.readline())
        assert spent(one.pid).ran_s == pytest.approx(said, abs=0.1)
        assert spent(one.pid).mib > 1
        await eventually(lambda: machine() > before, "the machine's count goes on", within_s=10)
    finally:
        for process in (burning, one):
            process.kill()
            process.communicate()
    assert spent(os.getpid()).waited_s >= 0
