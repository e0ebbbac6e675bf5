"""Random pools whose hosts are not alike: networks, devices and CPU models that some have and others have not."""

from __future__ import annotations

from random import Random
from typing import Any

SHARE = 0.06
"""Of pools."""
UNTOLD = 0.15
"""Share of hosts of which nobody can tell what they offer: each is tried, and libvirt refuses what it has not."""
NEEDY = 0.35
"""Share of VMs that ask for what their host has and others have not."""
DONGLE, CARD = "usb 1050:0407", "pci 10de:1eb8 0000:3b:00.0"
OLD, NEW = ["Haswell", "Broadwell"], ["Haswell", "Broadwell", "Skylake-Server"]


def offering(chance: Random, pool: dict[str, Any]) -> dict[str, Any]:
    """The pool, now and then with such hosts, and VMs that need them. Drawn by a stream of its own: what the other parts
    draw stays as it was."""
    if chance.random() >= SHARE:
        return pool
    hosts = [{**host, **_offers(chance)} for host in pool["hosts"]]
    has = {host["name"]: host for host in hosts}
    held: set[tuple[str, str]] = set()
    return {
        **pool,
        "hosts": hosts,
        "vms": [_needing(chance, vm, has[vm["host"]], held) for vm in pool["vms"]],
    }


def _offers(chance: Random) -> dict[str, Any]:
    if chance.random() < UNTOLD:
        return {}
    return {
        "networks": chance.choice((["lan"], ["lan"], ["lan", "dmz"], ["dmz"])),
        "devices": chance.choice(({}, {DONGLE: 1}, {DONGLE: 2}, {CARD: 1, DONGLE: 1})),
        "cpu_models": chance.choice((OLD, NEW, NEW)),
    }


def _needing(
    chance: Random, vm: dict[str, Any], host: dict[str, Any], held: set[tuple[str, str]]
) -> dict[str, Any]:
    """With needs that its host meets; one device is passed through to one VM."""
    needs: dict[str, Any] = {}
    for network in host.get("networks", ()):
        if chance.random() < NEEDY:
            needs["networks"] = [*needs.get("networks", ()), network]
    if "Skylake-Server" in host.get("cpu_models", ()) and chance.random() < NEEDY:
        needs["cpu_model"] = "Skylake-Server"
    for device in host.get("devices", ()):
        if (host["name"], device) not in held and chance.random() < NEEDY:
            held.add((host["name"], device))
            needs["devices"] = {**needs.get("devices", {}), device: 1}
    return {**vm, **needs}
