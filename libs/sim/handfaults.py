"""What people do to VMs with virsh, at the worst moment. See misfortunes.py."""

from __future__ import annotations

from libs.sim.drawing import Draw, Step
from libs.sim.hostfaults import power_off


def by_hand(draw: Draw) -> list[Step]:
    """A person migrates a VM, once or to and fro, or starts it beside itself; and a host may fail just then."""
    # where not all hosts have all datastores, those that do
    hosts = [host for host in draw.hosts if all(host in has for has in draw.stores.values())]
    if not draw.vms or len(hosts) < 2:
        return power_off(draw)
    vm, chance = draw.chance.choice(draw.vms), draw.chance
    if chance.random() < 0.4:
        steps: list[Step] = [{**draw.when(), "do": "start_copy", "vm": vm, "host": chance.choice(hosts)}]
    else:
        apart_s = chance.uniform(0.5, 2.5)
        steps = [
            {
                "at_s": round(draw.at_s + number * apart_s, 3),
                "do": "migrate_vm",
                "vm": vm,
                "host": chance.choice(hosts),
                "seconds": 0.4,
            }
            for number in range(chance.choice((1, 1, 2, 3)))
        ]
    return steps if chance.random() < 0.5 else [*steps, *power_off(draw)]
