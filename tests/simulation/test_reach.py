"""The whole chain, simulated: what hosts offer and VMs need goes from libvirt over the agents to placement, and to whoever is asked
for a host that would do."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from libs.events.failovers import CapacityExhausted
from libs.model import Offers
from libs.sim import run as played
from libs.sim.run import Result
from libs.sim.world import World, vm_uuid
from tests.simulation.test_stories import played as story
from tests.simulation.test_stories import told

NIC = "<interface type='bridge'><source bridge='{bridge}'/></interface>"
GPU = "<hostdev mode='subsystem' type='pci'><source><address bus='0x3b'/></source></hostdev>"
HAS: dict[str, Any] = {"networks": ("br0",), "devices": {}, "cpu_models": ("Nehalem",), "arch": "x86_64"}


def outfitted(
    monkeypatch: pytest.MonkeyPatch, offers: dict[str, Offers], devices: str = "", cpu: str = ""
) -> list[World]:
    """The hosts of the next world offer this, and each of its VMs has this in its definition. That world, once it is."""
    worlds: list[World] = []

    class Outfitted(World):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            worlds.append(self)
            for name, has in offers.items():
                self.machines.hosts[name].offers = has
            for vm in self.scenario.vms:
                spec = self.machines.specs[vm_uuid(vm.name)]
                self.machines.specs[spec.uuid] = replace(spec, devices=devices, cpu=cpu)

    monkeypatch.setattr(played, "World", Outfitted)
    return worlds


def fails(*expected: dict[str, Any], duration_s: int = 60) -> Result:
    """h1 loses its power, on which two VMs run."""
    return story(
        hosts=3,
        duration_s=duration_s,
        vms=[{"name": name, "host": "h1"} for name in ("a", "b")],
        steps=[{"at_s": 15, "do": "power_off", "host": "h1"}],
        expect=list(expected),
    )


@pytest.mark.parametrize("suits", ["h2", "h3"])
@pytest.mark.parametrize(
    ("devices", "cpu", "lacks"),
    [
        (NIC.format(bridge="br0"), "", {"networks": ("br1",)}),
        ("", "<cpu><model>Nehalem</model></cpu>", {"cpu_models": ("Conroe",)}),
    ],
)
def test_vms_of_a_failed_host_start_at_once_where_what_they_need_is(
    monkeypatch: pytest.MonkeyPatch, devices: str, cpu: str, lacks: dict[str, Any], suits: str
) -> None:
    other = "h3" if suits == "h2" else "h2"
    outfitted(
        monkeypatch,
        {"h1": Offers(**HAS), suits: Offers(**HAS), other: Offers(**{**HAS, **lacks})},
        devices,
        cpu,
    )
    there = [{"vm": vm, "state": "running", "host": suits} for vm in ("a", "b")]
    result = fails(*there)
    assert told(result, "vm.restart_failed") == []


def test_a_host_that_does_not_tell_is_tried_and_another_takes_over_where_it_refuses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As before hosts told what they offer: the start tells."""
    blind = {**HAS, "networks": None}
    outfitted(monkeypatch, {"h1": Offers(**HAS), "h2": Offers(**HAS)}, NIC.format(bridge="br0"))
    fails({"vm": "a", "state": "running"}, {"vm": "b", "state": "running"})
    outfitted(monkeypatch, {name: Offers(**blind) for name in ("h1", "h2", "h3")}, NIC.format(bridge="br0"))
    fails({"vm": "a", "state": "running"}, {"vm": "b", "state": "running"})


def test_a_device_that_no_other_host_has_is_asked_for_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = {**HAS, "devices": {"pci 10de:1eb8 0000:3b:00.0": 1}}
    worlds = outfitted(monkeypatch, {"h1": Offers(**gpu), "h2": Offers(**HAS), "h3": Offers(**HAS)}, GPU)
    result = fails({"event": "capacity.exhausted", "by_s": 30}, {"vm": "a", "state": "waiting"})
    assert told(result, "vm.restart_failed") == [], "nothing was started where something else may lie there"
    [asked] = [one.fact for one in worlds[0].broker.facts if isinstance(one.fact, CapacityExhausted)]
    assert [one.devices for one in asked.waiting] == [{"pci 10de:1eb8 0000:3b:00.0": 1}] * 2
