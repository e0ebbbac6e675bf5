"""What the measurements of the lab make of what they saw."""

from __future__ import annotations

import pytest

from infra.detection.table import replaced
from infra.lab.detectbench import FAILED, FENCED, FIRST_START, KINDS, SUSPECTED, Kind, markdown, summary
from infra.lab.figures import BENCH, Bar, false_verdicts
from libs.config.settings import PROFILES, Settings

pytestmark = pytest.mark.fast


def test_a_bar_is_met_below_it_only() -> None:
    bar = Bar("host.failed", median_s=2.0, worst_s=3.5)
    held = bar.held_against({"median_s": 1.99, "worst_s": 3.5})
    assert held == [("median_s", 2.0, True), ("worst_s", 3.5, False)]


@pytest.mark.parametrize("profile", sorted(PROFILES))
def test_the_docs_have_the_price_of_every_profile(profile: str) -> None:
    assert float(false_verdicts(profile)) > 0


def test_a_profile_without_a_price_is_refused() -> None:
    with pytest.raises(ValueError, match="brave"):
        false_verdicts("brave")


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_each_kind_of_death_is_a_pool_that_can_be(kind: Kind) -> None:
    found = kind.scenario()
    hosts = [{"name": host.name, "uri": "qemu:///system"} for host in found.hosts]
    settings = Settings.model_validate({**found.settings, "hosts": hosts})
    assert settings.profile == kind.profile
    assert settings.datastores == ()
    if kind.silent:
        assert all(not host.fencing for host in found.hosts)
        assert len(found.hosts) - 1 < settings.detection.votes_min
    assert {bar.of for bar in kind.bars} <= set(kind.rows)


def test_a_missed_bar_is_told_as_missed() -> None:
    off = KINDS[0]
    runs = [dict.fromkeys(off.rows, 1.0), dict.fromkeys(off.rows, 4.0), dict.fromkeys(off.rows, 1.5)]
    told = summary(off, runs)
    assert told["rows"][FAILED]["median_s"] == 1.5
    assert told["rows"][FAILED]["worst_s"] == 4.0
    assert [bar["met"] for bar in told["bars"]] == [True, False]
    text = markdown({"runs": 3, "machine": "2 cores", "kinds": [told]})
    assert "median under 2: met, worst under 3.5: **missed**" in text
    assert all(f"| {name} |" in text for name in (SUSPECTED, FAILED, FENCED, FIRST_START))


def test_the_docs_have_a_place_for_the_table() -> None:
    assert "new" in replaced(BENCH.read_text(), "detectbench", "new")
