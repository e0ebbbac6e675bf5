"""Hosts that fail again and again: kept out of the pool until an operator or a quiet time lets them in.

A quarantined host is watched and protected as any other; it only gets no new VMs, which is placement's to do.

Times are of the monotonic clock of the management machine, as those of placement's crash budget: they outlive a
restart of the detector, not the machine's clock. After a reboot of it, or on another machine, times that lie ahead
are of a clock that is no more: such failures are not counted, and the quiet time of a host in quarantine begins
anew. Times that seem to lie behind count as they stand; a quarantine may begin or end too soon by that, which is
what an operator's look is for, and nothing but where new VMs go depends on it.
"""

from __future__ import annotations

from libs.config.settings import Detection
from libs.core.decider import Effect, Publish, Records, Step
from libs.core.evolve import replace
from libs.events.hosts import HostFailed, HostQuarantined, HostReadmitted
from libs.events.words import HostReadmitOrdered
from libs.model import HostState
from services.detector.state import DetectorState, HostRecord

State = DetectorState
LOOK_S = 1.0
"""How often it is looked whether a quiet time is over."""


def counted(step: Step[State], settings: Detection, now: float) -> Step[State]:
    """Count the verdicts among what a step says, a reboot that was noticed included."""
    state = step.state
    effects: list[Effect] = []
    for effect in step.effects:
        effects.append(effect)
        if not isinstance(effect, Publish) or not isinstance(effect.fact, HostFailed):
            continue
        if effect.fact.expected:
            continue  # it was switched off on purpose
        if effect.fact.proof is not None and effect.fact.proof.guessed:
            continue  # a host without an agent got another name, perhaps for no more than our own restart
        record = state.record(effect.fact.at.host)
        since = now - settings.failures_window_s
        failures = (*(at for at in record.failures if since < at <= now), now)[-settings.failures_max :]
        update: dict[str, object] = {"failures": failures}
        if not record.quarantine and len(failures) >= settings.failures_max:
            update["quarantine"] = effect.fact.epoch
            quarantined = HostQuarantined(
                host=record.host,
                number=effect.fact.epoch,
                failed_ago_s=tuple(round(now - at, 1) for at in failures),
                window_s=settings.failures_window_s,
                quiet_s=settings.quarantine_s,
                cause=effect.fact.key,
                rule="failures_max verdicts within failures_window_s",
            )
            # right behind the verdict: before it can be said that the host is back
            effects.append(Publish(record.host, quarantined))
        state = _kept(state, record.model_copy(update=update))
    return step if state is step.state else Step(state, tuple(effects))


def resumed(records: Records, now: float) -> Records:
    """Records that another life of the detector has kept, by a clock that may have begun anew."""
    for record in list(records.values()):
        if not isinstance(record, HostRecord) or all(at <= now for at in record.failures):
            continue
        failures = tuple(at for at in record.failures if at <= now)
        if record.quarantine:
            failures = (*failures, now)
        records = records.insert(record.host, record.model_copy(update={"failures": failures}))
    return records


def quiet(state: State, hosts: tuple[str, ...], settings: Detection, now: float) -> Step[State]:
    """Readmit who has been in quarantine for `quarantine_s` without failing."""
    effects: tuple[Effect, ...] = ()
    for host in hosts:
        record = state.records.get(host)
        if not isinstance(record, HostRecord) or not record.quarantine or record.twins:
            continue  # one whose identity is in doubt waits for an operator
        if now - max(record.failures, default=now) >= settings.quarantine_s:
            step = _readmitted(state, record, HostReadmitted(
                host=host, number=record.quarantine, rule="quarantine_s without a failure"
            ))  # fmt: skip
            state, effects = step.state, (*effects, *step.effects)
    return Step(state, effects)


def ordered(state: State, word: HostReadmitOrdered) -> Step[State]:
    """An operator lets a host in. A word on another quarantine than the present one is void."""
    record = state.record(word.host)
    if not record.quarantine or record.quarantine != word.number:
        return Step(state)
    fact = HostReadmitted(
        host=word.host, number=word.number, by=word.by, cause=word.key, rule="an operator's word"
    )
    return _readmitted(state, record, fact)


def _readmitted(state: State, record: HostRecord, fact: HostReadmitted) -> Step[State]:
    """Its failures are forgotten: the next one is the first."""
    kept = record.model_copy(update={"quarantine": 0, "failures": (), "twins": ()})
    if record.twins and record.state is HostState.FENCED:
        kept = kept.model_copy(
            update={"hardware": ""}
        )  # the machine before is over: another may have its name
    return Step(_kept(state, kept), (Publish(record.host, fact),))


def _kept(state: State, record: HostRecord) -> State:
    return replace(state, records=state.records.insert(record.host, record))
