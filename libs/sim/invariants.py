"""The rules of DESIGN §4, held against the world's own truth after every change. Not one asks the services."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from libs.events.facts import (
    FailoverPlanned,
    HostFailed,
    HostFenced,
    HostFenceFailed,
    HostRecovered,
    HostSuspected,
    PlannedStart,
    StormHeld,
    StormReleased,
    VmGivenUp,
    VmRestarted,
    VmRestartFailed,
)
from libs.model import Incarnation, LeaseState, ProofMethod, RunLease
from libs.scenario.outcome import Violation
from libs.sim.broker import Stored
from libs.sim.loop import Process
from libs.sim.machines import Domain, Os, SimHost, Spell
from libs.sim.truth import Truth
from libs.sim.world import World

WELL_S = 6.0
"""A host that was well for so long is not to be held failed."""
NEW_BOOT_S = 45.0
"""A fence attempt that began against the former boot may still reach a host so young."""
LEASE_OLD_S = 3.0
SUSPECT_OLD_S = 0.3
PROVEN_RULES = ("power-off", "rebooted")


class Invariants:
    """Collects violations; `violated` is called at each."""

    def __init__(self, world: World, truth: Truth, violated: Callable[[Violation], None]) -> None:
        self._world, self._truth, self._violated = world, truth, violated
        self.zero = 0.0
        self.failed: dict[Incarnation, HostFailed] = {}
        self.failed_at: dict[str, float] = {}
        self.fenced: dict[Incarnation, HostFenced] = {}
        self.settled: set[str] = set()
        """Incidents that are fenced or stood down."""
        self.given_up: set[str] = set()
        self.storm = False
        self.suspects: dict[str, float] = {}
        """Hosts that the stored records hold silent, and since when."""
        self._storms: dict[str, str] = {}
        """Verdicts that were written while more were silent than believable: incident and who."""
        self.leases: dict[str, list[tuple[float, RunLease]]] = {}
        self.orders: dict[str, PlannedStart] = {}
        self.ended: set[str] = set()
        self._start_failed: set[str] = set()
        world.broker.on_fact.append(self._fact)
        world.broker.on_row.append(self._row)
        world.machines.on_change.append(self._changed)
        world.virt.on_start.append(self._start)
        world.on_announce.append(self._announced)
        for outlets in world.outlets.values():
            for outlet in outlets:
                outlet.on_off.append(self._off)

    def broken(self, rule: str, detail: str) -> None:
        at_s = round(self._world.loop.time() - self.zero, 3)
        self._violated(Violation(rule=rule, at_s=at_s, detail=detail))

    def _name(self, vm: str) -> str:
        return self._world.machines.specs[vm].name

    # -- what runs where

    def _ungated(self, spell: Spell) -> bool:
        """It started by itself at boot, and the boot gate has not been passed yet: rule 5 deals with it."""
        return spell.autostarted and self._world.machines.hosts[spell.at.host].announced != spell.at.boot

    def _changed(self, host: SimHost, domain: Domain, began: bool) -> None:
        if not began:
            return
        vm = domain.spec.uuid
        now = [spell for spell in self._world.machines.spells[vm] if spell.ended is None]
        twice = [spell for spell in now if not self._ungated(spell)]
        if len(twice) > 1:
            where = ", ".join(f"{spell.at} (token {spell.token})" for spell in twice)
            self.broken("1", f"VM {domain.spec.name} runs twice: {where}")
        used = sum(one.spec.memory_mib for one in host.active())
        usable = host.memory_mib - host.memory_reserved_mib
        if used > usable and not now[-1].autostarted:
            self.broken("capacity", f"{host.name}: {used} MiB of {usable} MiB in use with {domain.spec.name}")

    def _start(self, host: SimHost, vm: str, token: int) -> None:
        """A start call reached a host: the lease is ours, and the former holder is proven harmless."""
        history = [lease for _, lease in self.leases.get(vm, [])]
        name = self._name(vm)
        if not history or history[-1].token < token:
            self.broken("1", f"VM {name} is started on {host.name} with token {token}, which no lease has")
            return
        lease = history[-1]
        if lease.token > token:
            self.broken(
                "1", f"VM {name} is started on {host.name} with token {token}, lease has {lease.token}"
            )
        elif lease.holder != host.at:
            self.broken("1", f"VM {name} is started on {host.at}, its lease names {lease.holder}")
        elif lease.state is LeaseState.STOPPED:
            self.broken("on_purpose", f"VM {name} was stopped on purpose and is started on {host.name}")
        former = next((one for one in reversed(history) if one.token < token), None)
        if former is not None and former.holder != host.at and former.holder not in self.fenced:
            there = self._world.machines.present(former.holder)
            active = there is not None and vm in {domain.spec.uuid for domain in there.active()}
            if active or (there is None and former.state is not LeaseState.FAILED):
                said = f"{former.holder} is neither fenced nor says that it is stopped"
                self.broken("1", f"VM {name} is started on {host.at}; {said}")
        self._stopped_on_purpose(host, vm, name)

    def _stopped_on_purpose(self, host: SimHost, vm: str, name: str) -> None:
        down = self._world.stopped_on_purpose.get(vm)
        if down is None or not down.seen:
            return
        # its own host lives and has said so all the time: nobody can have missed why it stopped
        since = self._truth.well_since.get(down.host)
        if since is not None and since < down.at:
            self.broken("on_purpose", f"VM {name} was shut down on purpose and is started on {host.name}")

    def _announced(self, host: SimHost) -> None:
        """The first heartbeat of a boot: its gate is passed."""
        now = self._world.loop.time()
        for domain in host.active():
            vm, name = domain.spec.uuid, domain.spec.name
            elsewhere = [other.name for other in self._world.machines.running(vm) if other is not host]
            if elsewhere:
                self.broken("5", f"{host.at} is announced while its VM {name} runs on {elsewhere[0]}, too")
            known = self.leases.get(vm, [])
            if known and known[-1][1].holder != host.at and now - known[-1][0] > LEASE_OLD_S:
                self.broken(
                    "5", f"{host.at} is announced with VM {name}, whose lease {known[-1][1].holder} has"
                )

    def _off(self, name: str) -> None:
        host = self._world.machines.hosts[name]
        if not host.power or host.at in self.failed:
            return
        young = self._world.loop.time() - host.booted_at < NEW_BOOT_S or host.os is Os.BOOTING
        if host.boots > 1 and young:
            return
        self.broken("7", f"{host.at} is switched off without a verdict on it")

    # -- leases

    def _row(self, bucket: str, key: str, value: bytes | None, process: Process | None) -> None:
        if bucket == "state" and key.startswith("detector.") and value is not None:
            self._record(key.removeprefix("detector."), json.loads(value)["record"])
        if bucket != "leases":
            return
        if value is None:
            self.broken("1", f"the run lease of VM {self._name(key)} was deleted")
            return
        lease = RunLease.model_validate_json(value)
        known = self.leases.setdefault(key, [])
        if known:
            before = known[-1][1]
            if lease.token < before.token or (lease.holder != before.holder and lease.token == before.token):
                was = f"token {before.token} of {before.holder}"
                self.broken(
                    "1", f"lease of VM {lease.name}: {was} became token {lease.token} of {lease.holder}"
                )
        known.append((self._world.loop.time(), lease))
        there = self._world.machines.present(lease.holder)
        domain = there.domains.get(key) if there is not None else None
        if lease.state in (LeaseState.FAILED, LeaseState.STOPPED) and domain and domain.state.active:
            self.broken("3", f"lease of VM {lease.name} says {lease.state.value}, it runs on {lease.holder}")

    def _record(self, host: str, record: dict[str, Any] | None) -> None:
        """A host's state is written before it is told."""
        now = self._world.loop.time()
        if record is None or record["state"] not in ("suspect", "failed"):
            self.suspects.pop(host, None)
            return
        others = sorted(
            name for name, at in self.suspects.items() if name != host and now - at > SUSPECT_OLD_S
        )
        believable = storm_limit(len(self._world.machines.hosts))
        if record["state"] == "failed" and len(others) + 1 > believable:
            self._storms.setdefault(record["incident"], ", ".join([host, *others]))
        self.suspects.setdefault(host, now)

    # -- facts

    def _fact(self, stored: Stored) -> None:
        fact = stored.fact
        match fact:
            case HostSuspected():
                well_s = self._truth.well_for(fact.at.host)
                if well_s > WELL_S:
                    self.broken("6", f"{fact.at} is suspected; it has been well for {well_s:.1f} s")
            case HostRecovered():
                self.settled.add(fact.incident)
            case HostFailed():
                self._verdict(fact, stored.at)
            case HostFenced():
                self._proof(fact)
            case HostFenceFailed():
                if not fact.missing:
                    self.broken("12", f"{fact.at} is not fenced and nothing is named as missing")
            case StormHeld():
                self.storm = True
            case StormReleased():
                self.storm = False
            case FailoverPlanned():
                self._planned(fact)
            case VmRestarted():
                self._restarted(fact)
            case VmRestartFailed():
                self.ended.add(fact.start_key)
                self._start_failed.add(fact.vm)
            case VmGivenUp():
                self.given_up.add(fact.vm)
            case _:
                return

    def _verdict(self, fact: HostFailed, now: float) -> None:
        host = self._world.machines.hosts[fact.at.host]
        known = self.failed.get(fact.at)
        if known is not None and known.incident not in self.settled:
            self.broken("8", f"two verdicts on {fact.at}: {known.incident} and {fact.incident}")
        same = host.at == fact.at
        if fact.rule == "rebooted" and same:
            self.broken("6", f"{fact.at} is held to have rebooted and has not")
        elif same and self._truth.well_for(host.name) > WELL_S:
            well_s = self._truth.well_for(host.name)
            self.broken("6", f"{fact.at} is held failed ({fact.rule}); it has been well for {well_s:.1f} s")
        elif same and fact.rule not in PROVEN_RULES and self._truth.answering_for(host.name) > WELL_S:
            self.broken("6", f"{fact.at} is held failed ({fact.rule}); its libvirt answers all the time")
        if fact.rule not in PROVEN_RULES and fact.incident in self._storms:
            silent = self._storms[fact.incident]
            self.broken("7", f"{fact.at} is held failed ({fact.rule}) in a storm of {silent}")
        self.failed[fact.at] = fact
        self.failed_at[fact.incident] = now

    def _proof(self, fact: HostFenced) -> None:
        self.fenced[fact.at] = fact
        self.settled.add(fact.incident)
        if fact.incident not in self.failed_at:
            self.broken("7", f"{fact.at} is fenced without a verdict")
        host = self._world.machines.hosts[fact.at.host]
        if host.at == fact.at and host.power:
            self.broken("2", f"{fact.at} is said to be fenced ({fact.proof.method.value}) and has power")
        if fact.proof.method is ProofMethod.POWER_OFF and not self._read_twice(host):
            self.broken("2", f"{fact.at} is said to be off and was not read off twice, spaced")

    def _read_twice(self, host: SimHost) -> bool:
        spacing_s = 0.8 * self._world.settings.fencing.status_spacing_s
        for outlet in self._world.outlets[host.name]:
            times = [at for at, reader in outlet.read_off if reader.startswith("fencer")]
            if any(later - first >= spacing_s for first in times for later in times):
                return True
        return False

    def _planned(self, fact: FailoverPlanned) -> None:
        for start in fact.starts:
            known = self.orders.setdefault(start.key, start)
            if known.to != start.to:
                self.broken("8", f"one order {start.key} to {known.to} and to {start.to}")
        for waiting in fact.waiting:
            if not waiting.reason.startswith("no_room") or waiting.vm in self._start_failed:
                continue
            rank = self._world.machines.specs[waiting.vm].policy.priority.rank
            for start in fact.starts:
                took = start.memory_mib >= waiting.memory_mib and start.vcpus >= waiting.vcpus
                lower = start.priority_rank > rank
                if took and lower and start.policy.protection is self._protection(waiting.vm):
                    self.broken("priority", f"VM {waiting.name} waits, {start.name} took room before it")

    def _protection(self, vm: str) -> object:
        return self._world.machines.specs[vm].policy.protection

    def _restarted(self, fact: VmRestarted) -> None:
        self.ended.add(fact.start_key)
        spells = self._world.machines.spells.get(fact.vm, [])
        if not any(spell.at == fact.at and spell.token == fact.token for spell in spells):
            self.broken(
                "10", f"VM {fact.name} is said to run on {fact.at} with token {fact.token}; it never did"
            )


def storm_limit(hosts: int) -> int:
    """DESIGN §4 rule 7, in the words of the rule: said here again, so that the services' own is checked."""
    if hosts < 3:
        return 1
    return (hosts - 1) // 2 if hosts <= 5 else max(2, hosts // 4)
