"""What the lab refuses of a scenario's pool before anything starts: it would have to leave it out."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

from infra.lab import agentguest, network, stores
from infra.lab.vm import MIN_MEMORY_MIB
from libs.readiness import target_of
from libs.scenario.model import Scenario
from libs.scenario.pool import ScenarioHost, ScenarioVm
from libs.virt.definition import overhead_mib

NETWORKS = "they need root, and a machine on which bridges can be made"
_PLAIN = re.compile(r"[A-Za-z0-9._/-]*")
Place = tuple[int | str, ...]
Wrong = tuple[Place, str]
"""A place in the file, and what is wrong there."""


def refusals(scenario: Scenario) -> Iterator[Wrong]:
    """All of it, in the order in which it is told."""
    for index, vm in enumerate(scenario.vms):
        yield from _of_vm(("vms", index), vm)
    added = (
        (("steps", n, "host"), step.host) for n, step in enumerate(scenario.steps) if step.do == "add_host"
    )
    places: list[tuple[Place, ScenarioHost]] = [(("hosts", n), host) for n, host in enumerate(scenario.hosts)]
    places += [(place, ScenarioHost.model_validate(host)) for place, host in added]
    for place, host in places:
        yield from _of_host(place, host)
    lacking = stores.why_not() if scenario.datastores else None
    if lacking is not None:
        yield ("datastores",), f"they {lacking}"


def _of_vm(place: Place, vm: ScenarioVm) -> Iterator[Wrong]:
    guest_mib = agentguest.MIN_MEMORY_MIB if vm.agent else MIN_MEMORY_MIB
    beside = overhead_mib(guest_mib, vm.vcpus)
    if vm.memory_mib - beside < guest_mib:
        what = f"{vm.memory_mib} MiB; a VM of the lab{' with an agent' if vm.agent else ''}"
        said = f"{what} occupies {guest_mib + beside} at least, its hypervisor's {beside} included"
        yield (*place, "memory_mib"), said
    if vm.devices:
        yield (*place, "devices"), "the lab has none to pass through: possible in the simulator only"
    if vm.cpu_model is not None:
        yield (
            (*place, "cpu_model"),
            "the hosts of one machine have one processor: possible in the simulator only",
        )
    if vm.networks and not possible():
        yield (*place, "networks"), NETWORKS
    target = target_of(vm.ready)
    if target is not None and target.host:
        yield (*place, "ready"), "the lab gives its guests their addresses: leave the address out"
    elif target is not None and not vm.networks:
        yield (*place, "ready"), "a guest of the lab is probed over a network: name one in networks"
    elif target is not None and not _PLAIN.fullmatch(target.path):
        yield (
            (*place, "ready"),
            "the lab's guests have pages of plain names only: letters, digits, - . _ and /",
        )


def _of_host(place: Place, host: ScenarioHost) -> Iterator[Wrong]:
    for level, entry in enumerate(host.fencing):
        if entry.coarse_s is not None:
            field = (*place, "fencing", level, "coarse_s")
            yield field, "a watchdog that takes steps is possible in the simulator only"
    if host.devices is not None:
        yield (*place, "devices"), "the lab has none to pass through: possible in the simulator only"
    if host.cpu_models is not None:
        said = "the hosts of one machine have one processor: possible in the simulator only"
        yield (*place, "cpu_models"), said
    if host.networks and not possible():
        yield (*place, "networks"), NETWORKS


def possible() -> bool:
    """Whether hosts of a lab can have networks here."""
    return os.getuid() == 0 and network.works()
