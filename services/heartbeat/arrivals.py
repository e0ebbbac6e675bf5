"""VMs that this host's libvirt is about to take in by a migration, pure. ADR 11.

Libvirt waits for our word (infra/systemd/arrivals.py asks for it, as a hook of libvirt's). We say yes only once the executor
says that the VM's lease names this boot: whoever may start the VM asks here first from then on. Until libvirt shows the VM
itself, our inventory shows it as libvirt will in a moment: paused, and on its way in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from rpds import HashTrieMap

from libs.core.decider import Act, Effect, Send
from libs.core.evolve import replace
from libs.events.signals import Arriving, LetIn
from libs.leases import arrives
from libs.model import Inventory, Protection, StopReason, VmReport, VmState
from services.heartbeat.orders import AnswerArrival, ArrivalAsked

ANSWER_S = 4.0
"""The hook waits a little longer: then it is our reason that the person reads."""
AGAIN_S = 0.5
SHOWN_S = 30.0
"""Libvirt shows what it takes in once its hooks have agreed, mostly in less than a second."""
UNHEARD = f"the management plane has not answered in {ANSWER_S:g} s: it does not run, or this host is cut off"
EARLY = "this host's agent has only just begun: try again in a moment"


@dataclass(frozen=True, slots=True)
class Coming:
    """One VM, and the request of libvirt's by which it comes."""

    report: VmReport
    ask: str
    found: StopReason
    """Why it was stopped here before."""
    since: float
    again_at: float
    answered: bool = False


Comings: TypeAlias = "HashTrieMap[str, Coming]"  # a string: rpds classes are not subscriptable at run time


def begun(
    comings: Comings, asked: ArrivalAsked, told: Inventory | None, now: float
) -> tuple[Comings, list[Effect]]:
    """Libvirt asks. What nobody protects needs nobody's word: nothing of ours starts it, wherever it runs."""
    report = asked.report
    if report.policy.protection is Protection.NONE:
        return comings, [answer(asked.key)]
    if told is None:
        return comings, [answer(asked.key, EARLY)]
    effects: list[Effect] = []
    before = comings.get(report.uuid)
    if before is not None and not before.answered:
        effects.append(answer(before.ask, "it was asked once more"))
    known = told.vm(report.uuid)
    found = StopReason.NONE if known is None else known.stop_reason
    # libvirt counts runs from 1: by 0 it is told from what runs
    shown = report.model_copy(update={"state": VmState.PAUSED, "migrated": True, "run": 0})
    coming = Coming(shown, asked.key, found, since=now, again_at=now)
    return comings.insert(report.uuid, coming), effects


def answer(ask: str, refused: str = "") -> Act:
    return Act(None, AnswerArrival(key=f"arrival/{ask}", deadline_s=1.0, ask=ask, refused=refused))


def due(comings: Comings, told: Inventory, now: float) -> tuple[Comings, list[Effect]]:
    """Ask the executor, again and again; and give it up in time."""
    effects: list[Effect] = []
    for vm, coming in sorted(comings.items()):
        if coming.answered:
            continue
        if now >= coming.since + ANSWER_S:
            comings = comings.discard(vm)
            effects.append(answer(coming.ask, UNHEARD))
        elif now >= coming.again_at:
            comings = comings.insert(vm, replace(coming, again_at=now + AGAIN_S))
            inventory = told.model_copy(update={"offers": None})
            signal = Arriving(ask=coming.ask, vm=vm, found=coming.found, inventory=inventory)
            effects.append(Send(f"arriving.{told.at.host}", signal))
    return comings, effects


def wake_at(comings: Comings) -> float | None:
    waits = [one for one in comings.values() if not one.answered]
    return min((min(one.again_at, one.since + ANSWER_S) for one in waits), default=None)


def told(comings: Comings, word: LetIn, now: float) -> tuple[Comings, list[Effect]]:
    """The executor's word on one of them."""
    for vm, coming in comings.items():
        if coming.ask == word.ask and not coming.answered:
            if word.refused:
                return comings.discard(vm), [answer(word.ask, word.refused)]
            return comings.insert(vm, replace(coming, since=now, answered=True)), [answer(word.ask)]
    return comings, []


def recalled(earlier: Sequence[VmReport], now: float) -> Comings:
    """What an earlier life of this agent has let in on this boot, or was about to: libvirt may not show it yet."""
    comings: Comings = HashTrieMap()
    for report in filter(is_coming, earlier):
        comings = comings.insert(report.uuid, Coming(report, "", StopReason.NONE, now, now, answered=True))
    return comings


def is_coming(report: VmReport) -> bool:
    """It is shown by us, not by libvirt."""
    return arrives(report) and not report.run


def by_libvirt(told: Inventory | None) -> tuple[VmReport, ...]:
    """What was told, without what we alone have shown: of that nothing has vanished or ended here."""
    return () if told is None else tuple(one for one in told.vms if not is_coming(one))


def awaited(comings: Comings, reports: Sequence[VmReport], now: float) -> Comings:
    """Without those that libvirt shows itself by now, and those that have not come in time."""
    shown = {report.uuid for report in reports if report.state is not VmState.STOPPED}
    return HashTrieMap(
        {
            vm: one
            for vm, one in comings.items()
            if not one.answered or (vm not in shown and now < one.since + SHOWN_S)
        }
    )


def shown(comings: Comings, reports: tuple[VmReport, ...]) -> tuple[VmReport, ...]:
    """What is told: with those that come."""
    by_vm = {report.uuid: report for report in reports}
    for vm, coming in comings.items():
        known = by_vm.get(vm)
        if known is None or known.state is VmState.STOPPED:
            by_vm[vm] = coming.report
    return tuple(by_vm[vm] for vm in sorted(by_vm)) if comings else reports
