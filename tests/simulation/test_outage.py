"""The whole management plane is away for ten minutes, and a host dies meanwhile."""

from __future__ import annotations

from tests.simulation.test_stories import at, played, really, told

BEGAN_S, AWAY_S, DIED_S, QUIET_S = 30.0, 600.0, 330.0, 60.0


def test_ten_minutes_without_a_plane_touch_no_vm_and_who_died_meanwhile_is_recovered() -> None:
    back_s = BEGAN_S + AWAY_S
    result = played(
        hosts=4,
        duration_s=back_s + QUIET_S + 30,
        vms=[{"name": f"vm{n}", "host": f"h{1 + n % 4}"} for n in range(8)],
        steps=[
            {"at_s": BEGAN_S, "do": "kill_service", "service": "plane", "seconds": AWAY_S},
            {"at_s": DIED_S, "do": "power_off", "host": "h1"},
        ],
        expect=[
            {"vm": "vm0", "state": "running", "host_not": "h1", "by_s": back_s + QUIET_S + 10},
            {"vm": "vm4", "state": "running", "host_not": "h1", "by_s": back_s + QUIET_S + 10},
            *({"vm": f"vm{n}", "state": "running", "host": f"h{1 + n % 4}"} for n in (1, 2, 3, 5, 6, 7)),
            {"host": "h1", "state": "fenced", "fenced": True},
            {"never": "host.suspected", "subject": "h2"},
            {"never": "host.suspected", "subject": "h3"},
            {"never": "host.suspected", "subject": "h4"},
        ],
    )
    assert [line for line in really(result, "") if not any(vm in line for vm in ("h1", "vm0", "vm4"))] == []
    assert len(told(result, "host.failed")) == 1
    assert at(result, "host.failed") >= back_s, "nobody decided anything meanwhile"
    outcome = result.outcome
    assert {name: vm.starts for name, vm in outcome.vms.items()} == {
        f"vm{n}": 2 if n in (0, 4) else 1 for n in range(8)
    }
