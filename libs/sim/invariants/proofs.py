"""Fence proofs: rules 2, 7 and 12, and what becomes of a device that lies."""

from __future__ import annotations

import re

from libs.events.base import Fact
from libs.events.hosts import HostFenced, HostFenceFailed, HostFenceRefuted, HostObeyed
from libs.events.words import HostConfirmedFailed
from libs.model import Incarnation, ProofMethod
from libs.sim.broker import Stored
from libs.sim.hosts import SimHost
from libs.sim.invariants.book import Book
from libs.sim.power import Outlet
from libs.sim.truth import Truth
from libs.sim.world import World

LEVEL = re.compile(r"level (\d+)\b")
SPOKE_S = 1.5
TOLD_S = 3.0
"""A host that was heard, or answered, for so long before a proof refutes it: the two readings span less."""


class Proofs:
    """Looks at every proof, every failed attempt and every word from beyond a proof."""

    def __init__(self, world: World, truth: Truth, book: Book) -> None:
        self._world, self._truth, self._book = world, truth, book
        self._vouched: set[tuple[Incarnation, str]] = set()
        """What operators said of which boot and incident."""
        self._unseen: dict[Incarnation, bool] = {}
        """At the fencer's last reading of a device that lied about this boot: was it silent on every channel?"""
        world.broker.on_fact.append(self._fact)
        for outlets in world.outlets.values():
            for outlet in outlets:
                outlet.on_lie.append(self._lied)

    def _fact(self, stored: Stored) -> None:
        fact: Fact = stored.fact
        match fact:
            case HostFenced():
                self._proof(fact)
            case HostObeyed():
                self._obeyed(fact)
            case HostConfirmedFailed():
                self._vouched.add((fact.at, fact.incident))
            case HostFenceFailed():
                self._missing(fact)
            case HostFenceRefuted():
                self._book.heard_again.add(fact.at)
                if fact.at not in self._book.fenced:
                    said = f"{fact.at} is said to speak after its proof and was never fenced"
                    self._book.broken("2", said)
            case _:
                return

    def _proof(self, fact: HostFenced) -> None:
        book, host = self._book, self._world.machines.hosts[fact.at.host]
        book.fenced[fact.at] = fact
        book.settled.add(fact.incident)
        if fact.incident not in book.failed_at:
            book.broken("7", f"{fact.at} is fenced without a verdict")
        if fact.proof.of != fact.at:
            book.broken("2", f"{fact.at} is said to be fenced by a proof of {fact.proof.of}")
        powered = fact.proof.method is ProofMethod.POWER_OFF
        if fact.proof.method is ProofMethod.OPERATOR:
            # whether the word is true is the operator's to answer for: a lie shows as a VM that runs twice
            if (fact.at, fact.incident) not in self._vouched:
                book.broken("2", f"{fact.at} is said to be fenced by an operator's word that nobody said")
        elif fact.proof.method is ProofMethod.WATCHDOG:
            return  # rule 4's: a host with power and without a kernel that runs is as good as off
        elif host.at == fact.at and host.power:
            method = fact.proof.method.value
            if powered and self._undoubted(host):
                book.lied.add(fact.at)
            else:
                book.broken("2", f"{fact.at} is said to be fenced ({method}) and has power")
        if powered and not self._read_twice(host):
            book.broken("2", f"{fact.at} is said to be off and was not read off twice, spaced")

    def _missing(self, fact: HostFenceFailed) -> None:
        """Each level was tried, and is named with what it lacks; or what is named is true of the attempt as a whole. Of
        an attempt that goes on each is named, too, and may have its turn yet."""
        if not all(one.strip() for one in fact.missing) or not fact.missing:
            self._book.broken("12", f"{fact.at} is not fenced and nothing is named as missing")
            return
        named = [LEVEL.match(one) for one in fact.missing]
        levels = {int(one[1]) for one in named if one is not None}
        if None in named:
            return
        since = self._book.failed_at.get(fact.incident, 0.0)
        for outlet in self._world.outlets[fact.at.host]:
            asked = [at for who, at in outlet.asked_at.items() if who.startswith("fencer")]
            if outlet.level not in levels:
                self._book.broken(
                    "12", f"{fact.at} is not fenced, and of level {outlet.level} nothing is said"
                )
            elif max(asked, default=-1.0) < since and not fact.under_way:
                self._book.broken("12", f"{fact.at} is not fenced, and level {outlet.level} was not tried")

    def _obeyed(self, fact: HostObeyed) -> None:
        """An isolated host's word that it has stopped these VMs, in the runs that it names. It may be told late: of one
        that was started there since it says nothing, and is no proof."""
        host = self._world.machines.present(fact.at)
        runs = {} if host is None else {domain.spec.uuid: domain.run for domain in host.active()}
        told = {report.uuid: report.run for report in fact.vms}
        for vm in fact.proof.vms:
            if vm not in runs:
                self._book.obeyed.add((fact.at, vm))
            elif runs[vm] <= told.get(vm, 0) or vm not in told:
                self._book.broken(
                    "1", f"VM {self._book.name(vm)} is said to be stopped on {fact.at} and runs"
                )

    def _undoubted(self, host: SimHost) -> bool:
        """Its device says off and lies, and on no channel was the host to be heard. This case alone is excused:
        no reading, no silence and no question could have told it from a host that is off. What counts is the moment
        of the last reading: a bus without a leader may keep the proof from being written for seconds, in which the
        host is heard again, and rule 2 asks for silence until the proof, not until it is told."""
        return self._unseen.get(host.at, False)

    def _lied(self, name: str, reader: str) -> None:
        if not reader.startswith("fencer"):
            return
        truth, at = self._truth, self._world.machines.hosts[name].at
        heard = truth.well_for(name) >= SPOKE_S or truth.answering_for(name) >= SPOKE_S
        self._unseen[at] = not heard and not self._slot_tells(name)

    def _slot_tells(self, name: str) -> bool:
        """It has written its slot for a while, and peers could have told: then the lie could have been seen."""
        slotted = bool(self._world.settings.datastores) and not self._world.machines.hosts[name].agentless
        return slotted and self._truth.slot_told_for(name) >= TOLD_S

    def _read_twice(self, host: SimHost) -> bool:
        """By every device of one of its levels."""
        outlets = self._world.outlets[host.name]
        return any(all(self._spaced(one) for one in outlet.feeds) for outlet in outlets)

    def _spaced(self, outlet: Outlet) -> bool:
        spacing_s = 0.8 * self._world.settings.fencing.status_spacing_s
        times = [at for at, reader in outlet.read_off if reader.startswith("fencer")]
        return any(later - first >= spacing_s for first in times for later in times)
