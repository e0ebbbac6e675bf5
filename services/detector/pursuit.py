"""A host in doubt: asked after round by round, and judged by what comes back."""

from __future__ import annotations

from dataclasses import dataclass

from libs.config.settings import Detection
from libs.core.decider import Act, Effect, Publish, Step
from libs.core.evolve import replace
from libs.events.hosts import HostAgentDown, HostIsolated, HostRecovered, HostUndecided
from libs.model import HostState, PowerState
from services.detector import evidence as gather
from services.detector import storms
from services.detector.asks import Answered
from services.detector.moves import failed_fact, judged, move, running
from services.detector.sight import Sight
from services.detector.state import DetectorState, HostRecord, Suspicion
from services.detector.verdict import Rule, judge

State = DetectorState


@dataclass(frozen=True, slots=True)
class Pursuit:
    """What the detector does about a host that is silent. Fields as the detector's own."""

    hosts: tuple[str, ...]
    witnesses: tuple[str, ...]
    """Who of them has an agent, and so looks from a place of its own."""
    settings: Detection
    slot_interval_s: float
    domains: dict[str, str]

    def sight(self, now: float) -> Sight:
        """What is to be seen of the others at this moment."""
        return Sight(self.witnesses, self.settings, self.domains, now)

    def pursue(self, state: State, record: HostRecord, sight: Sight) -> Step[State]:
        """Ask a round where one is due, then judge."""
        now = sight.now
        view = state.view(record.host)
        suspicion = view.suspicion or Suspicion(since=max(now, state.listening_since), ask_at=now)
        acts: tuple[Act, ...] = ()
        if now >= suspicion.ask_at:
            peers = sight.order(state, record.host)
            suspicion, acts = gather.next_round(suspicion, record, peers, self.settings, now)
        if sight.company(state, record.host) or storms.released(state, record.host):
            suspicion = replace(suspicion, alone_since=None)
        else:
            since = now if suspicion.alone_since is None else suspicion.alone_since
            suspicion = replace(suspicion, alone_at=now, alone_since=since)
        view = replace(view, suspicion=suspicion)
        state = replace(state, views=state.views.insert(record.host, view))
        step = self._judge(state, record, sight)
        if not step.effects:
            step = self._undecided(state, record, now)
        return Step(step.state, (*acts, *step.effects))

    def answered(self, state: State, event: Answered, now: float) -> Step[State]:
        record, view = state.record(event.host), state.view(event.host)
        if view.suspicion is None or record.number != event.number:
            return Step(state)  # an answer about a suspicion that is over
        assert record.at is not None
        suspicion = gather.answered(view.suspicion, event, record.at, now)
        news = event.power is PowerState.OFF or suspicion.alive_at == now
        state = replace(state, views=state.views.insert(event.host, replace(view, suspicion=suspicion)))
        return self._judge(state, record, self.sight(now)) if news else Step(state)

    def _judge(self, state: State, record: HostRecord, sight: Sight) -> Step[State]:
        now = sight.now
        if now < state.judge_from or record.at is None:
            return Step(state)
        known = sight.apart(state)
        found = gather.evidence(
            state, record.host, self.settings, self.slot_interval_s, self.domains, known, now
        )
        rule = judge(found, self.settings)
        if rule is None or rule.verdict is record.state:
            return Step(state)
        stands = rule.stands(found) or rule.verdict is not HostState.FAILED
        if not stands and storms.holds(state, self.hosts, record.host, self.settings.storm_settle_s, now):
            return Step(state)
        view = state.view(record.host)
        kept = gather.as_kept(view.suspicion, found, view.last_word, now)
        match rule.verdict:
            case HostState.AGENT_DOWN:
                reached = view.suspicion.reached_since if view.suspicion is not None else None
                again_s = now - (now if reached is None else reached)
                if record.state is HostState.ISOLATED and again_s < 2 * self.settings.suspect_after_s:
                    return Step(state)  # its network is back, and its agent needs a moment to find the bus
                if found.silent_s < self.settings.suspect_after_s:
                    return Step(state)  # asked after early, on a hint: it may only be connecting anew
                return self._agent_down(state, record, rule, kept)
            case HostState.ISOLATED:
                return self._isolated(state, record, rule, kept)
            case _:
                return self._fail(state, judged(record, HostState.FAILED), rule, kept)

    def _undecided(self, state: State, record: HostRecord, now: float) -> Step[State]:
        """Tell once a suspicion that it waits: nothing is heard of this host, for as long as silence alone needs for a
        verdict, nor of any other. Whoever is named in a storm that is held was told of with it."""
        suspicion = state.view(record.host).suspicion
        waits = record.state in (HostState.SUSPECT, HostState.AGENT_DOWN) and record.undecided < record.number
        if not waits or now < state.judge_from or suspicion is None or suspicion.alone_since is None:
            return Step(state)
        if state.storm is not None and record.host in state.storm.suspects:
            return Step(state)
        since = max(suspicion.alone_since, suspicion.alive_at or suspicion.alone_since)
        if record.at is None or now - since < self.settings.confirm_silence_s:
            return Step(state)
        fact = HostUndecided(
            at=record.at,
            number=record.number,
            silent_s=round(gather.silent_s(state, record.host, now), 3),
            rule="no other host is heard, for confirm_silence_s",
            cause=f"host.suspected/{record.at.host}/{record.at.boot}/{record.number}",
        )
        return move(state, record.model_copy(update={"undecided": record.number}), fact)

    def _agent_down(self, state: State, record: HostRecord, rule: Rule, kept: gather.Kept) -> Step[State]:
        assert record.at is not None
        before: tuple[Effect, ...] = ()
        if record.state is HostState.ISOLATED:  # a network reaches it again: nothing is to be stopped there
            over = HostRecovered(
                at=record.at, incident=record.incident, epoch=record.epoch, rule="answers on a network"
            )
            before = (Publish(record.host, over),)
        down = record.model_copy(update={"state": HostState.AGENT_DOWN})
        fact = HostAgentDown(at=record.at, number=record.number, evidence=kept, rule=rule.name)
        step = move(state, down, fact)
        return Step(step.state, (*before, *step.effects))

    def _isolated(self, state: State, record: HostRecord, rule: Rule, kept: gather.Kept) -> Step[State]:
        record = judged(record, HostState.ISOLATED)
        assert record.at is not None
        fact = HostIsolated(
            at=record.at,
            incident=record.incident,
            epoch=record.epoch,
            evidence=kept,
            vms=running(state, record),
            rule=rule.name,
            cause=f"host.suspected/{record.at.host}/{record.at.boot}/{record.number}",
        )
        return move(state, record, fact)

    def _fail(self, state: State, record: HostRecord, rule: Rule, kept: gather.Kept) -> Step[State]:
        fact = failed_fact(state, record, rule.name, kept, None)
        view = replace(state.view(record.host), suspicion=None)
        return move(replace(state, views=state.views.insert(record.host, view)), record, fact)
