"""Hosts that differ in what they offer, the whole chain simulated: VMs start where what they need is, or wait for it."""

from __future__ import annotations

from libs.sim.random_world import draw
from tests.simulation.test_stories import played, really, told

GPU, DONGLE = "pci 10de:1eb8 0000:3b:00.0", "usb 1050:0407"
KNOWN_S = 15
"""By then placement has read what hosts offer."""


def test_a_vm_with_a_device_starts_where_one_is_free_and_waits_where_none_is() -> None:
    held = {DONGLE: 1}
    result = played(
        duration_s=60,
        pool=[
            {"name": "h1", "devices": {DONGLE: 2}},
            {"name": "h2", "devices": {}},
            {"name": "h3", "devices": held},
        ],
        vms=[
            {"name": "key", "host": "h1", "priority": "high", "devices": held},
            {"name": "spare", "host": "h1", "priority": "low", "devices": held},
            {"name": "web", "host": "h1"},
        ],
        steps=[{"at_s": KNOWN_S, "do": "power_off", "host": "h1"}],
        expect=[
            {"vm": "key", "state": "running", "host": "h3"},
            {"vm": "web", "state": "running", "host_not": "h1"},
            {"vm": "spare", "state": "waiting"},
            {"never": "vm.restart_failed"},
        ],
    )
    assert len(told(result, "capacity.exhausted")) == 1


def test_a_vm_starts_where_its_cpu_model_and_its_network_are_and_nowhere_else() -> None:
    old, new = ["Haswell"], ["Haswell", "Skylake-Server"]
    played(
        duration_s=60,
        pool=[
            {"name": "h1", "cpu_models": new, "networks": ["lan"]},
            {"name": "h2", "cpu_models": old, "networks": ["lan"], "memory_mib": 8192},
            {"name": "h3", "cpu_models": new, "networks": ["lan"], "memory_mib": 1024},
            {"name": "h4", "cpu_models": new, "networks": [], "memory_mib": 8192},
        ],
        vms=[{"name": "fast", "host": "h1", "cpu_model": "Skylake-Server", "networks": ["lan"]}],
        steps=[{"at_s": KNOWN_S, "do": "power_off", "host": "h1"}],
        expect=[{"vm": "fast", "state": "running", "host": "h3"}, {"never": "vm.restart_failed"}],
    )


def test_a_host_that_does_not_tell_what_it_offers_is_tried_and_its_libvirt_refuses_nothing() -> None:
    played(
        duration_s=60,
        pool=[{"name": "h1", "networks": ["lan"]}, {"name": "h2"}],
        vms=[{"name": "a", "host": "h1", "networks": ["lan"]}],
        steps=[{"at_s": KNOWN_S, "do": "power_off", "host": "h1"}],
        expect=[{"vm": "a", "state": "running", "host": "h2"}],
    )


def test_libvirt_refuses_what_the_host_has_not_before_placement_knows_of_it() -> None:
    """Nobody has read yet what hosts offer: the start tells, and another host is tried."""
    result = played(
        duration_s=60,
        pool=[
            {"name": "h1", "networks": ["lan", "san"]},
            {"name": "h2", "networks": ["lan"], "memory_mib": 8192},
            {"name": "h3", "networks": ["lan", "san"], "memory_mib": 1024},
        ],
        vms=[{"name": "a", "host": "h1", "networks": ["san"]}],
        steps=[{"at_s": 1, "do": "power_off", "host": "h1"}],
        expect=[{"vm": "a", "state": "running", "host": "h3"}],
    )
    [refused] = told(result, "vm.restart_failed")
    assert "this host has no san" in refused


def test_a_guest_answers_its_probe_only_so_long_after_it_is_up() -> None:
    result = played(
        duration_s=60,
        pool=[{"name": "h1"}, {"name": "h2"}],
        vms=[
            {"name": "db", "host": "h1", "ready": "tcp:5432", "serves_after_s": 7},
            {"name": "app", "host": "h1", "priority": "highest", "after": "db running 60"},
        ],
        steps=[{"at_s": 3, "do": "power_off", "host": "h1"}],
        expect=[{"vm": "app", "state": "running", "host": "h2"}],
    )
    db, app = (float(really(result, f"{vm} on h2 starts")[0].split()[0]) for vm in ("db", "app"))
    assert 9.0 < app - db < 12.0, "two seconds of boot, then seven"


def test_random_pools_now_and_then_have_hosts_that_differ_and_vms_that_need_it() -> None:
    worlds = [draw(seed) for seed in range(1, 101)]
    differ = [one for one in worlds if any(host.offers for host in one.hosts)]
    assert 2 <= len(differ) <= 15
    needy = [vm for one in differ for vm in one.vms]
    assert any(vm.networks for vm in needy)
    assert any(vm.devices for vm in needy)
    assert any(vm.cpu_model for vm in needy)
