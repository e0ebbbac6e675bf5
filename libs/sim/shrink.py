"""The shortest version of a failing world that still breaks the same rule."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from libs.scenario.model import Scenario
from libs.scenario.outcome import Violation
from libs.sim.drawing import Step
from libs.sim.random_world import compose, parts

TRIES_MOST = 300
Fails = Callable[[Scenario], Violation | None]
"""The violation of the rule in question that a scenario shows, or None."""


def shrink(scenario: Scenario, fails: Fails) -> tuple[Scenario, int]:
    """Drop faults, VMs, hosts and replicas, one after another, as long as it still fails; and say how many
    versions were tried."""
    best, tries = scenario, 0
    shorter = True
    while shorter and tries < TRIES_MOST:
        shorter = False
        for candidate in _shorter(best):
            tries += 1
            if tries > TRIES_MOST:
                break
            if fails(candidate) is not None:
                best, shorter = candidate, True
                break
    return best, tries


def _shorter(scenario: Scenario) -> Iterator[Scenario]:
    """Versions that are one thing shorter, the biggest things first."""
    body, faults = parts(scenario)
    half = len(faults) // 2
    if half > 1:
        yield compose(body, faults[half:])
        yield compose(body, faults[:half])
    for index in range(len(faults)):
        yield compose(body, faults[:index] + faults[index + 1 :])
    for vm in body.get("vms", []):
        yield from _without(body, faults, vms={vm["name"]})
    if len(body["hosts"]) > 1:
        for host in reversed(body["hosts"]):
            gone = {vm["name"] for vm in body.get("vms", []) if vm["host"] == host["name"]}
            yield from _without(body, faults, vms=gone, hosts={host["name"]})
    if body.get("management", {}).get("replicas", 1) > 1:
        alone = [fault for fault in faults if not fault.get("replica")]
        if not any("m1" in str(fault.get("groups", "")) for fault in alone):
            yield compose({**body, "management": {"replicas": 1}}, alone)


def _without(
    body: dict[str, Any], faults: list[Step], *, vms: set[str], hosts: set[str] | None = None
) -> Iterator[Scenario]:
    """The world without these VMs and hosts, and without what is done to them."""
    hosts = hosts or set()
    kept = [fault for fault in faults if fault.get("vm") not in vms and fault.get("host") not in hosts]
    left: list[Step] = []
    for fault in kept:
        if "groups" not in fault:
            left.append(fault)
            continue
        groups = [[name for name in group if name not in hosts] for group in fault["groups"]]
        if all(groups):
            left.append({**fault, "groups": groups})
    stores = [
        {**store, "hosts": [host for host in store["hosts"] if host not in hosts]}
        if store.get("hosts")
        else store
        for store in body.get("datastores", [])
    ]
    remain = [host for host in body["hosts"] if host["name"] not in hosts]
    if not any(host.get("standby") for host in remain):  # what is said of such hosts would be of none
        settings = {name: part for name, part in body.get("settings", {}).items() if name != "standby"}
        body = {**body, "settings": settings}
    yield compose(
        {
            **body,
            "datastores": stores,
            "hosts": remain,
            "vms": [vm for vm in body.get("vms", []) if vm["name"] not in vms],
        },
        left,
    )
