"""Reads what the observer wrote."""

import json
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class VmChange:
    """A VM became active or inactive on a host. `source`: `domains` (the host's list) or `processes`."""

    at: datetime
    mono: float
    vm: str
    name: str
    host: str
    active: bool
    source: str


@dataclass(frozen=True)
class GuestUp:
    """A guest printed its up line; `count` is the number of its boots that came up."""

    at: datetime
    mono: float
    name: str
    count: int


@dataclass(frozen=True)
class HostSeen:
    """A host's libvirt began or ceased to answer."""

    at: datetime
    mono: float
    host: str
    reachable: bool


@dataclass(frozen=True)
class Summary:
    """The observer's figures so far (`final`: at its end).

    `double_s`: seconds in which a VM was on two hosts at once, summed over VMs. `sightings`: how often a VM was seen
    twice; above zero with `double_s` 0 when it lasted shorter than one sample. `vms`, `hosts`, `processes`: as
    written (per VM `domains_s` and `processes_s`; rates with `samples`, `mean_hz`, `lowest_hz`, `max_gap_s`).
    """

    at: datetime
    final: bool
    elapsed_s: float
    cpu_s: float
    double_s: float
    sightings: int
    vms: dict[str, dict[str, Any]]
    hosts: dict[str, dict[str, Any]]
    processes: dict[str, Any]


@dataclass
class Observations:
    """All that one file holds, each kind in the order of time."""

    vms: list[VmChange] = field(default_factory=list)
    guests: list[GuestUp] = field(default_factory=list)
    agents: list[GuestUp] = field(default_factory=list)
    """Guests that are about to start their agent: none answers before."""
    hosts: list[HostSeen] = field(default_factory=list)
    summary: Summary | None = None


def read_observations(path: Path) -> Observations:
    """Everything observed so far; `summary` is the latest one. Raises FileNotFoundError, ValueError."""
    found = Observations()
    with open(path) as file:
        for raw in file:
            if not raw.endswith("\n"):
                break  # being written
            line = json.loads(raw)
            kind, at = line.pop("kind"), datetime.fromisoformat(line.pop("at"))
            if kind == "vm":
                found.vms.append(VmChange(at, **line))
            elif kind == "guest_up":
                found.guests.append(GuestUp(at, **line))
            elif kind == "agent_begins":
                found.agents.append(GuestUp(at, **line))
            elif kind == "host":
                found.hosts.append(HostSeen(at, **line))
            elif kind == "summary":
                line.pop("mono")
                found.summary = Summary(at, **line)
    found.vms.sort(key=lambda change: change.mono)
    return found
