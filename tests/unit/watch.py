"""The detector as tests have it: hosts that beat, fall silent and are asked, as seconds pass."""

from __future__ import annotations

from typing import Any

from libs.config.settings import Detection
from libs.core.decider import Input, Step
from libs.events.signals import Heartbeat, SlotSeen
from libs.model import Answer, HostState, Incarnation, PowerState
from libs.promises import SlotBeat
from services.detector.asks import Answered
from services.detector.decide import Detector
from services.detector.state import DetectorState
from tests.unit.made import (
    beat,
    facts,
    kinds,
    requests,
    sent,
    stored,
)

S = HostState
DEFAULT = Detection()


class Watch:
    """A detector, driven by hand: time, heartbeats, answers; all facts it ever published."""

    def __init__(self, *hosts: str, now: float = 1000.0, interval_s: float = 0.5, **more: Any) -> None:
        self.decider = Detector(
            hosts=hosts,
            settings=Detection(**more),
            beat_interval_s=interval_s,
        )
        self.now = now
        self.state: DetectorState = self.decider.initial(now)
        self.told: list[Any] = []
        self.asked: list[Any] = []
        self.silent: set[str] = set()
        self.deafened = False
        """The detector's own canaries do not come back to it."""

    def take(self, step: Step[DetectorState]) -> list[str]:
        self.state = step.state
        self.told += facts(step.effects)
        self.asked += requests(step.effects)
        told = kinds(step.effects)
        for signal in [] if self.deafened else sent(step.effects):
            told += self.hear(signal)
        return told

    def hear(self, event: Input) -> list[str]:
        return self.take(self.decider.step(self.state, event, self.now))

    def resume(self, records: Any) -> list[str]:
        return self.take(self.decider.resume(self.state, records, self.now))

    def beat_of(self, at: Incarnation) -> Heartbeat:
        return Heartbeat(at=at, agent="life", seq=1)

    def until(self, at: float) -> list[str]:
        """Let time pass; hosts that are not silent go on beating. What was told meanwhile."""
        told: list[str] = []
        beats = self.now
        while self.now < at:
            self.now = min(at, self.decider.wake_at(self.state) or at)
            if self.now >= beats:
                beats = self.now + self.decider.beat_interval_s
                for host in self.decider.hosts:
                    known = self.state.record(host).at
                    if host not in self.silent and known is not None:
                        told += self.hear(self.beat_of(known))
            told += self.take(self.decider.step(self.state, None, self.now))
        return told

    def after(self, seconds: float) -> list[str]:
        return self.until(self.now + seconds)

    def joined(self) -> Watch:
        for host in self.decider.hosts:
            self.hear(beat(host))
        return self

    def gone(self, *hosts: str) -> Watch:
        """These fall silent, and are suspected."""
        self.silent |= set(hosts)
        self.after(1.7)
        return self

    def answer(self, host: str, channel: str, answer: Answer = Answer.UNKNOWN, **more: Any) -> list[str]:
        number = self.state.record(host).number
        return self.hear(Answered(key="a", host=host, number=number, channel=channel, answer=answer, **more))

    def nobody_sees(self, host: str, *peers: str, slot: int | None = 7) -> list[str]:
        """All channels say silent, the peers too; its slot shows the same write each time, if there is one."""
        told = self.answer(host, "power", power=PowerState.UNKNOWN)
        told += self.answer(host, "libvirt", Answer.SILENT)
        slots = () if slot is None else (self.slot(host, slot),)
        for peer in peers:
            told += self.answer(host, f"peer:{peer}", Answer.SILENT, slots=slots)
        return told

    def slot(self, host: str, seq: int, store: str = "nfs") -> SlotSeen:
        """What a peer reads in the slot of the host's present boot."""
        at = self.state.record(host).at
        assert at is not None
        return SlotSeen(datastore=store, beat=SlotBeat(host=host, boot=at.boot, seq=seq))

    def is_(self, host: str) -> HostState:
        return self.state.record(host).state


def pool(*hosts: str, **more: Any) -> Watch:
    return Watch(*(hosts or ("h1", "h2", "h3", "h4", "h5")), **more).joined()


def records_of(watch: Watch) -> Any:
    return stored(watch.state.records)
