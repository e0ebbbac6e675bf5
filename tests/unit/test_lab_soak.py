"""What a soak holds against the pool."""

from __future__ import annotations

from dataclasses import replace

import pytest

from infra.lab.soak import HARMLESS, Standing, differences, scenario

pytestmark = pytest.mark.fast
STANDING = Standing(power={"h1": "on"}, boots={"h1": "b1"}, runs={"h1": {"vm1": 1}}, guest_boots={"vm1": 1})


@pytest.mark.parametrize(
    ("after", "says"),
    [
        (replace(STANDING, power={"h1": "off"}), "hosts: power of h1 on before, off after"),
        (replace(STANDING, boots={"h1": "b2"}), "hosts: boots of h1 b1 before, b2 after"),
        (replace(STANDING, runs={"h1": {"vm1": 2}}), "hosts: runs of h1 {'vm1': 1} before, {'vm1': 2} after"),
        (replace(STANDING, runs={"h1": {}}), "hosts: runs of h1 {'vm1': 1} before, {} after"),
        (replace(STANDING, guest_boots={"vm1": 2}), "hosts: guest_boots of vm1 1 before, 2 after"),
    ],
)
def test_what_a_soak_must_not_change_is_named(after: Standing, says: str) -> None:
    assert differences(STANDING, after) == [says]


def test_what_a_soak_leaves_alone_is_not() -> None:
    assert differences(STANDING, replace(STANDING)) == []


def test_no_verdict_that_is_acted_on_is_harmless() -> None:
    acted_on = {"host.failed", "host.isolated", "host.fenced", "host.fence_failed", "failover.planned"}
    assert not acted_on & HARMLESS
    assert not any(kind.startswith("vm.") for kind in HARMLESS)
    assert len(scenario().hosts) == 3
