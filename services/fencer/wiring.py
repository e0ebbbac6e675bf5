"""The fencer put together, the same in both worlds."""

from __future__ import annotations

from libs.config.settings import Settings
from libs.core.ports import Hypervisors
from libs.core.shell import Shell
from libs.core.wiring import Ports, Wiring
from libs.operator import Operator
from libs.poolview import PoolView
from libs.power.devices import FenceDevices
from services.fencer.act import Hands
from services.fencer.paths import HEARD_S, Paths
from services.fencer.presume import Presume
from services.fencer.reservehands import Admit, ReserveHands, admit_here
from services.fencer.standby import BY, KINDS, Keeping
from services.fencer.state import OPEN, REQUESTS, FenceRecord, FencerState
from services.fencer.testing import Times
from services.fencer.watcher import Watcher
from services.fencer.watchful import Watchful

SLOT_SPACING = 1.2
"""Intervals between two readings of a slot: a host that works has written in between."""


PEERS_AT_ONCE = 64
"""Questions about hosts with a watchdog, beside the fences: neither may wait for the other."""


def gauges(state: FencerState) -> dict[tuple[str, ...], float]:
    """See libs/measures.py."""
    fences = [one for one in state.records.values() if isinstance(one, FenceRecord)]
    return {("rekindle_fences_open",): float(sum(one.phase in OPEN for one in fences))}


def _keeping(settings: Settings, power: FenceDevices) -> Keeping:
    """How hosts on standby are kept."""
    kept = [host for host in settings.hosts if host.standby and host.fencing]
    sizes = {
        host.name: None if host.memory_mib is None else host.memory_mib - host.memory_reserved_mib
        for host in kept
    }
    return Keeping(
        settings.standby,
        sizes if settings.standby is not None else {},
        {host.name: power.on_deadline_s(host.name) for host in kept},
        {host.name: power.deadline_s(host.name) for host in kept},
    )


def _decider(settings: Settings, power: FenceDevices, watched: tuple[str, ...]) -> Watchful:
    armed = [host.name for host in settings.hosts if host.fencing]
    return Watchful(
        settings.fencing,
        {host.name: power.deadline_s(host.name) for host in settings.hosts},
        {host: power.read_deadline_s(host) + HEARD_S for host in armed},
        Times(
            {host: power.test_deadline_s(host) for host in armed},
            {host: power.on_deadline_s(host) for host in armed},
        ),
        reserve=_keeping(settings, power),
        watched=watched,
        how=Presume(settings.fencing.watchdog_margin_s, settings.detection.ask_timeout_s),
    )


def _hands(ports: Ports, power: FenceDevices, hypervisors: Hypervisors, admit: Admit) -> Hands:
    settings = ports.settings
    view = PoolView(settings, ports.store)
    return Hands(
        power,
        ports.bus,
        hypervisors,
        ports.clock,
        witness_s=settings.fencing.status_spacing_s,
        peers=[host.name for host in settings.hosts if host.agent and not host.standby],
        ask_timeout_s=settings.detection.ask_timeout_s,
        slot_spacing_s=SLOT_SPACING * settings.heartbeats.slot_interval_s if settings.datastores else None,
        watcher=Watcher(ports.bus, ports.store("watchdogs")),
        paths=Paths(power, ports.bus, ports.clock, view),
        reserve=ReserveHands(power, hypervisors, Operator(view, ports.bus, ports.clock, BY), admit),
    )


def shell(
    ports: Ports, power: FenceDevices, hypervisors: Hypervisors, admit: Admit = admit_here
) -> Shell[FencerState]:
    """`admit`: where it is computed whether a host may leave the pool."""
    settings = ports.settings
    watched = tuple(host.name for host in settings.hosts if host.watchdog is not None)
    wiring = Wiring(
        service=ports.service,
        bus=ports.bus,
        clock=ports.clock,
        meter=ports.meter,
        gauges=gauges,
        store=ports.store("state"),
        lease=ports.lease(),
        guard=ports.guard(),
        kinds=(
            "host.failed",
            "host.isolated",
            "host.joined",
            "host.recovered",
            "host.confirmed_failed",
            "host.fence_test_ordered",
            *(KINDS if settings.standby is not None else ()),
        ),
        perform=_hands(ports, power, hypervisors, admit).perform,
        requests=REQUESTS,
        # each host's attempt and word on it at once: what is bounded is the calls of agents (fencing.parallel_max), and
        # an alert that waited for the end of others' attempts would come late
        parallel_acts=3 * len(settings.hosts) + 16 + PEERS_AT_ONCE * bool(watched),
        signals=tuple(f"heartbeat.{host}" for host in watched),
        notices_pauses=bool(watched),
    )
    return Shell(_decider(settings, power, watched), wiring)
