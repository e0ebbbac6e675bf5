"""Scenario files: read, and held against themselves. What a file names must be there, and must mean something."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from libs.config.settings import Settings
from libs.config.yamlfile import BadInputError, did_you_mean, line_of, load, read, reason_of
from libs.events.base import HostFact, NumberedFact, PoolFact, RevisedFact, VmFact
from libs.events.datastores import DatastoreFact
from libs.events.facts import KINDS
from libs.planning.snapshot import PoolPolicy
from libs.scenario.model import TAKES, VM_STATES, WAYS, Expectation, Scenario, StepEntry
from libs.scenario.outcome import HOST_STATES
from libs.scenario.pool import ScenarioHost

METHODS = ("power", "watchdog")
"""Of fencing: no device may be called so."""
SHARED = "shared"
"""The datastore of all hosts, in both worlds, where a file names none."""
Wrong = tuple[tuple[int | str, ...], str]
"""A place in the file, and what is wrong there."""


def _wrong_datastore(scenario: Scenario) -> Wrong | None:
    """The first place that names a datastore, or a host of one, that there is not: its field, and why."""
    hosts = {host.name for host in scenario.hosts}
    hosts |= {str(step.host["name"]) for step in scenario.steps if step.do == "add_host"}
    hosts_of: dict[str, set[str]] = {}
    for index, store in enumerate(scenario.datastores):
        unknown = sorted(set(store.hosts or ()) - hosts)
        if unknown:
            return ("datastores", index, "hosts"), f"there is no host {unknown[0]}"
        hosts_of[store.name] = hosts if store.hosts is None else set(store.hosts)
    places = [(("vms", index), vm.datastore, vm.host) for index, vm in enumerate(scenario.vms)]
    places += [(("steps", index), step.datastore, step.host) for index, step in enumerate(scenario.steps)]
    for at, name, host in places:
        if name is not None and name not in hosts_of:
            return (*at, "datastore"), f"there is no datastore {name}"
        if name is not None and isinstance(host, str) and host in hosts and host not in hosts_of[name]:
            return (*at, "datastore"), f"host {host} has no datastore {name}"
    return None


def _wrong_policy(scenario: Scenario) -> Wrong | None:
    """An overcommit by which nobody plans yet: a file that asks for it would be played without. How many failures are
    to be tolerated is a target for capacity and admission; a failover restarts whatever finds room, whatever it is."""
    usual = PoolPolicy()
    for field in sorted(scenario.policy.model_fields_set - {"failures_to_tolerate"}):
        if getattr(scenario.policy, field) != getattr(usual, field):
            said = "no service plans by it yet, in neither world: leave it out"
            return ("policy", field), f"{said}, or say {getattr(usual, field):g}"
    return None


def _wrong_devices(scenario: Scenario) -> Wrong | None:
    """The first host whose fence devices cannot be told apart by their names."""
    places: list[tuple[tuple[int | str, ...], ScenarioHost]]
    places = [(("hosts", index), host) for index, host in enumerate(scenario.hosts)]
    places += [
        (("steps", index, "host"), ScenarioHost.model_validate(step.host))
        for index, step in enumerate(scenario.steps)
        if step.do == "add_host"
    ]
    for place, host in places:
        names = [entry.name for entry in host.fencing if entry.name is not None]
        twice = [name for name in names if names.count(name) > 1 or name in METHODS]
        if twice:
            return (*place, "fencing"), f"{twice[0]} names more than one of its fence devices"
    return None


def _wrong_needs(scenario: Scenario) -> Wrong | None:
    """The first VM that asks for what its own host has not: it could not run there. A device is called as its own host
    calls it, so that one has to say it."""
    hosts = {host.name: host for host in scenario.hosts}
    held: Counter[tuple[str, str]] = Counter()
    for index, vm in enumerate(scenario.vms):
        host, at = hosts[vm.host], ("vms", index)
        for network in vm.networks:
            if host.networks is not None and network not in host.networks:
                return (*at, "networks"), f"host {host.name} has no network {network}"
        if vm.cpu_model and host.cpu_models is not None and vm.cpu_model not in host.cpu_models:
            return (*at, "cpu_model"), f"host {host.name} has no CPU model {vm.cpu_model}"
        for device, count in vm.devices.items():
            held[host.name, device] += count
            there = (host.devices or {}).get(device, 0)
            if held[host.name, device] > there:
                said = f"host {host.name} has {there or 'no'} {device}"
                return (*at, "devices"), said + (", and more are held" if there else "")
    return None


def _ways(host: ScenarioHost) -> set[str]:
    """What a step may call the fencing of a host: its methods, and the names of its devices."""
    return {word for entry in host.fencing for word in (entry.method, entry.name) if word is not None}


def _wrong_settings(scenario: Scenario) -> Wrong | None:
    """The first mistake in the parts of a pool file that a scenario gives."""
    if "hosts" in scenario.settings:
        return ("settings", "hosts"), "the hosts of a scenario are those of its own hosts"
    stores = [one.name for one in scenario.datastores] or [SHARED]
    pool = {
        "datastores": [{"name": name, "path": f"/{name}"} for name in stores],
        **scenario.settings,
        "hosts": [_entry(host) for host in scenario.hosts],
    }
    try:
        Settings.model_validate(pool)
    except ValidationError as error:
        first = error.errors()[0]
        reason = reason_of(first, Settings)
        if first["loc"]:
            return ("settings", *first["loc"]), reason
        # a rule between several settings says itself which it is about
        named = re.match(r"[a-z_]+(\.[a-z_0-9]+)*(?=[ :])", reason)
        path = named[0].split(".") if named else [""]
        known = path[0] in Settings.model_fields
        return ("settings", *(int(part) if part.isdigit() else part for part in path if known)), reason
    return None


def _entry(host: ScenarioHost) -> dict[str, Any]:
    """As far as settings depend on it."""
    armed = any(one.method == "power" for one in host.fencing)
    fencing = [{"agent": "sim"}] if armed else []
    return {"name": host.name, "uri": "test:///default", "standby": host.standby, "fencing": fencing}


def misgiven(step: StepEntry) -> tuple[str, str] | None:
    """A field of a step that means nothing, or whose value does not: field and why."""
    if step.once is not None and step.once not in KINDS:
        return "once", f"there is no event {step.once}{did_you_mean(step.once, KINDS)}"
    given = {
        name for name in step.model_fields_set - {"at_s", "do", "once"} if getattr(step, name) is not None
    }
    taken = TAKES[step.do]
    strange = sorted(given - set(taken))
    if strange:
        return strange[0], f"means nothing for {step.do}, which takes {', '.join(taken) or 'no fields'}"
    ways = WAYS.get(step.do)
    if ways is not None and step.how not in (None, *ways):
        return "how", f"{step.do} is {' or '.join(ways)}, not {step.how}"
    if step.seconds is not None and step.seconds < 0 and step.do != "step_clock":
        return "seconds", f"{step.seconds:g} s is less than nothing"
    if step.do == "kill_service":
        plane = step.service == "plane"
        if step.seconds is not None and not plane:
            return "seconds", "only the whole plane is away for a time: a service is started again at once"
        if step.count is not None and plane:
            return "count", "the calls of a whole plane are not counted"
    return _wrong_groups(step.groups) if step.groups is not None else None


def _wrong_groups(groups: tuple[tuple[str, ...], ...]) -> tuple[str, str] | None:
    if not all(groups):
        return "groups", "a group is empty: there is nothing to cut it off from"
    names = [name for group in groups for name in group]
    twice = [name for name in names if names.count(name) > 1]
    return ("groups", f"{twice[0]} is given twice: it cannot be cut off from itself") if twice else None


def _wrong_expectation(scenario: Scenario, one: Expectation, hosts: set[str]) -> tuple[str, str] | None:
    """What an expectation names that there is not, so that it would never be met, or always: field and why."""
    vms = {vm.name for vm in scenario.vms}
    for field, known, kind in (("vm", vms, "VM"), ("host", hosts, "host"), ("host_not", hosts, "host")):
        name = getattr(one, field)
        if name is not None and name not in known:
            return field, f"there is no {kind} {name}{did_you_mean(name, known)}"
    for name in one.order or ():
        if name not in vms:
            return "order", f"there is no VM {name}{did_you_mean(name, vms)}"
        if one.order is not None and one.order.count(name) > 1:
            return "order", f"{name} is given twice"
    if one.state is not None:
        who, states = ("VM", VM_STATES) if one.vm is not None else ("host", HOST_STATES.values())
        if one.state not in states:
            said = ", ".join(sorted(set(states)))
            return (
                "state",
                f"{one.state!r} is no state of a {who}{did_you_mean(one.state, states)}; there are {said}",
            )
    if one.vm is not None and one.by_s is not None and one.state != "running":
        return "by_s", "of a VM it is the time until it runs, with state: running"
    event = one.event if one.event is not None else one.never
    if event is None:
        return None
    if event not in KINDS:
        field = "event" if one.event is not None else "never"
        return field, f"there is no event {event}{did_you_mean(event, KINDS)}"
    return None if one.subject is None else _wrong_subject(scenario, event, one.subject, hosts)


def _wrong_subject(scenario: Scenario, event: str, subject: str, hosts: set[str]) -> tuple[str, str] | None:
    fact = KINDS[event]
    if issubclass(fact, RevisedFact):
        return "subject", f"{event} is about an incident, whose name is made in the run: leave subject out"
    if issubclass(fact, PoolFact):
        kind, known = "pool", {"pool"}
    elif issubclass(fact, VmFact):
        kind, known = "VM", {vm.name for vm in scenario.vms}
    elif issubclass(fact, DatastoreFact):
        kind, known = "datastore", {one.name for one in scenario.datastores} or {SHARED}
    else:
        assert issubclass(fact, HostFact | NumberedFact)
        kind, known = "host", hosts
    if subject in known:
        return None
    return (
        "subject",
        f"{event} is about a {kind}, and there is no {kind} {subject}{did_you_mean(subject, known)}",
    )


Problem = Callable[[Scenario, StepEntry], tuple[str, str] | None]


def load_scenario(
    path: Path, possible: Collection[str] | None = None, problem: Problem | None = None
) -> Scenario:
    """Read and check a file. `possible` are the steps that the world at hand can do, `problem` names field and
    reason of a step that it cannot do in this form; such are refused before anything starts. Raises
    BadInputError with file, line, field and reason."""
    scenario = load(path, Scenario)
    _, node = read(path)

    def refuse(field: tuple[int | str, ...], reason: str) -> BadInputError:
        line = line_of(node, field)
        where = ".".join(str(part) for part in field)
        return BadInputError(f"{path}: " + (f"line {line}: " if line else "") + f"{where}: {reason}")

    for look in (_wrong_policy, _wrong_datastore, _wrong_devices, _wrong_settings, _wrong_needs):
        misfit = look(scenario)
        if misfit is not None:
            raise refuse(*misfit)
    hosts = {host.name for host in scenario.hosts}
    methods = {host.name: _ways(host) for host in scenario.hosts}
    vms = {vm.name for vm in scenario.vms}
    last = 0.0
    for index, step in enumerate(scenario.steps):
        at = ("steps", index)
        if possible is not None and step.do not in possible:
            raise refuse(
                (*at, "do"), f"{step.do} is not possible here yet; possible are {', '.join(sorted(possible))}"
            )
        wrong = (problem(scenario, step) if problem is not None else None) or misgiven(step)
        if wrong is not None:
            raise refuse((*at, wrong[0]), wrong[1])
        if step.at_s < last:
            raise refuse((*at, "at_s"), f"{step.at_s} s lies before the step above ({last} s)")
        if step.at_s > scenario.duration_s:
            raise refuse((*at, "at_s"), f"{step.at_s} s lies after the end ({scenario.duration_s} s)")
        last = step.at_s
        if step.do == "add_host":
            added = ScenarioHost.model_validate(step.host)
            hosts.add(added.name)
            methods[added.name] = _ways(added)
        elif step.host not in (None, *hosts):
            raise refuse((*at, "host"), f"there is no host {step.host}")
        elif step.method is not None and step.method not in methods[str(step.host)]:
            raise refuse((*at, "method"), f"{step.host} has no fencing by {step.method}")
        if step.vm is not None and step.vm not in vms:
            raise refuse((*at, "vm"), f"there is no VM {step.vm}")
    for index, one in enumerate(scenario.expect):
        unfit = _wrong_expectation(scenario, one, hosts)
        if unfit is not None:
            raise refuse(("expect", index, unfit[0]), unfit[1])
    return scenario
