"""What happened, told from the facts alone: one report a failover. Used by the command line and the lab."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from pydantic import BaseModel, ConfigDict

from libs.events.base import Fact
from libs.events.datastores import DatastoreLost
from libs.events.envelope import Envelope
from libs.events.failovers import FailoverCompleted, FailoverPlanned
from libs.events.guests import VmHealthRestored
from libs.events.hosts import HostFailed, HostFenced, HostSuspected
from libs.events.vms import VmFailed, VmRestarted, VmRestartFailed


class VmStory(BaseModel):
    """One VM of one failover."""

    model_config = ConfigDict(frozen=True)

    vm: str
    name: str
    origin: str
    to: str = ""
    state: str = "planned"
    reason: str = ""
    start_called: datetime | None = None
    seen_running: datetime | None = None


class FailoverStory(BaseModel):
    """One incident. Times are wall time; None where it has not come to that."""

    model_config = ConfigDict(frozen=True)

    incident: str
    host: str
    rule: str = ""
    suspected: datetime | None = None
    confirmed: datetime | None = None
    fenced: datetime | None = None
    proof: str = ""
    planned: datetime | None = None
    first_start: datetime | None = None
    all_running: datetime | None = None
    completed: datetime | None = None
    vms: dict[str, VmStory] = {}


def failovers(envelopes: Iterable[Envelope]) -> list[FailoverStory]:
    """Fold facts, in the order of the stream, into one story an incident."""
    stories: dict[str, FailoverStory] = {}
    suspected: dict[str, datetime] = {}
    lost: dict[str, FailoverStory] = {}

    def change(incident: str, **update: object) -> None:
        stories[incident] = stories[incident].model_copy(update=update)

    for envelope in envelopes:
        fact: Fact = envelope.data
        time = envelope.time
        match fact:
            case HostSuspected():
                suspected[fact.key] = time
            case HostFailed():
                stories[fact.incident] = FailoverStory(
                    incident=fact.incident,
                    host=fact.at.host,
                    rule=fact.rule,
                    suspected=suspected.get(fact.cause),
                    confirmed=time,
                )
            case VmFailed():
                stories[fact.incident] = FailoverStory(
                    incident=fact.incident, host=fact.at.host, rule=fact.rule, confirmed=time
                )
            case DatastoreLost():  # a story only once something moves for it
                lost[fact.incident] = FailoverStory(
                    incident=fact.incident, host=fact.at.host, rule=fact.rule, confirmed=time
                )
            case HostFenced() if fact.incident in stories:
                change(fact.incident, fenced=time, proof=fact.proof.method.value)
            case FailoverPlanned():
                if fact.incident not in stories:
                    unheard = FailoverStory(incident=fact.incident, host="")
                    stories[fact.incident] = lost.get(fact.incident, unheard)
                change(fact.incident, vms=_planned(stories[fact.incident], fact))
                if stories[fact.incident].planned is None:
                    change(fact.incident, planned=time)
            case VmRestarted() | VmRestartFailed() if fact.incident in stories:
                story = _ended(stories[fact.incident], fact, time)
                stories[fact.incident] = story
            case FailoverCompleted() | VmHealthRestored() if fact.incident in stories:
                change(fact.incident, completed=time)
            case _:
                continue
    return list(stories.values())


def _planned(story: FailoverStory, fact: FailoverPlanned) -> dict[str, VmStory]:
    vms = dict(story.vms)
    for start in fact.starts:
        vms[start.vm] = VmStory(
            vm=start.vm, name=start.name, origin=start.origin.host, to=start.to.host, state="planned"
        )
    for waiting in fact.waiting:
        old = vms.get(waiting.vm)
        vms[waiting.vm] = VmStory(
            vm=waiting.vm,
            name=waiting.name,
            origin=old.origin if old else story.host,
            state="waiting",
            reason=waiting.reason,
        )
    return vms


def _ended(story: FailoverStory, fact: VmRestarted | VmRestartFailed, time: datetime) -> FailoverStory:
    old = story.vms.get(fact.vm)
    if old is None:
        return story
    if isinstance(fact, VmRestartFailed):
        vm = old.model_copy(update={"state": "failed", "reason": fact.reason})
        return story.model_copy(update={"vms": {**story.vms, fact.vm: vm}})
    called = datetime.fromisoformat(fact.called_at) if fact.called_at else time
    vm = old.model_copy(
        update={"state": "running", "start_called": called, "seen_running": time, "to": fact.at.host}
    )
    vms = {**story.vms, fact.vm: vm}
    update: dict[str, object] = {"vms": vms}
    if story.first_start is None or called < story.first_start:
        update["first_start"] = called
    if all(one.state == "running" for one in vms.values()):
        update["all_running"] = max(one.seen_running for one in vms.values() if one.seen_running)
    return story.model_copy(update=update)
