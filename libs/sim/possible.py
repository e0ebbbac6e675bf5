"""Which steps the simulated world can do in which form: what else a file asks for is refused before anything starts."""

from __future__ import annotations

from libs.scenario.model import Scenario, StepEntry
from libs.sim.network import BUS
from libs.sim.power import HOWS

MANAGEMENT, STORAGE = "management", "storage"
"""Beside the hosts and the bus, what a partition can name: the management machines, and all datastores."""
WEATHER = ("network", "bus", "libvirt", "readings", "garbage", "guests")


def problem(scenario: Scenario, step: StepEntry) -> tuple[str, str] | None:
    """What makes a step impossible here: field and reason; None where nothing does."""
    hosts = {host.name for host in scenario.hosts}
    replicas = scenario.management.replicas
    if step.do in ("kill_service", "pause_service", "resume_service"):
        if step.service == "heartbeat":
            return "service", f"{step.do} is for services of the plane; for agents there is kill_agent"
        if step.service == "plane" and step.do != "kill_service":
            return "service", f"{step.do} is for one service; the whole plane can only be killed"
        if step.replica >= replicas:
            return "replica", f"there are {replicas} replicas, counted from 0"
    if step.do == "step_clock" and step.service is not None:
        if step.service != "plane":
            return "service", "services of one replica share their machine's clock: service is plane"
        if step.replica >= replicas:
            return "replica", f"there are {replicas} replicas, counted from 0"
    if step.do in ("kill_bus", "start_bus") and step.node > 2:
        return "node", "the simulated bus has nodes 0, 1 and 2"
    if step.do == "stall_storage" and step.how not in (None, "killable"):
        return "how", "what hangs on a stalled datastore dies when that is back, or is killable"
    if step.do == "break_fencing" and step.method == "watchdog" and step.how != "dead":
        return "how", "a watchdog can only be dead: it cannot be armed, and one that runs goes on"
    if step.do == "break_fencing" and step.how not in HOWS:
        return "how", f"a device can be broken by {', '.join(HOWS)}"
    if step.do in ("delay", "loss") and step.how not in (None, *WEATHER):
        return "how", f"{step.do} is of {', '.join(WEATHER)}"
    if step.do in ("loss", "delay") and step.host is not None and (step.do, step.how) != ("delay", "libvirt"):
        return "host", f"{step.do} of {step.how or 'network'} is of all hosts in the simulator"
    if step.do in ("loss", "delay") and step.percent is None and step.seconds is None:
        return "percent", f"{step.do} needs percent or seconds"
    if step.do == "partition":
        machines = {*hosts, BUS, MANAGEMENT, STORAGE, *(f"m{n}" for n in range(replicas))}
        if step.how is not None and any(STORAGE in group for group in step.groups or ()):
            return "groups", "hosts are cut off from storage both ways: leave out how"
        for group in step.groups or ():
            for name in group:
                if name not in machines:
                    return "groups", f"there is no machine {name}"
        if step.how not in (None, "one_way", "minority"):
            return "how", "a partition is whole, or one_way, or of a minority"
        if step.how == "minority" and not all(
            n in machines - hosts - {BUS} for n in (step.groups or ((),))[0]
        ):
            return "groups", "a minority is of management machines: m0, m1, ..."
    return None
