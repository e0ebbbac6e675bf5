"""Two that say they are one: a boot under two names, a name under two boots that both live, or a name on two machines, of
which the known one may be silent. Nothing is stopped or deleted on such a word, and the name gets no new VMs until an operator has looked (S17).

That a new boot speaks proves its former one over: a host that rebooted does not speak from the old one any more. Where that
one speaks on, for longer than a message can be late, they are two machines. Until then it is the executor that starts
nothing: it hears that boot, too.
"""

from __future__ import annotations

from libs.config.settings import Detection
from libs.core.decider import Publish, Step
from libs.core.evolve import replace
from libs.events.hosts import HostIdentityDoubted, HostQuarantined
from libs.events.signals import Heartbeat
from libs.hardware import other_machine as differs
from libs.model import Incarnation
from services.detector.state import DetectorState, HostRecord, HostView, Twin

State = DetectorState
TWIN_S = 5.0
"""What a boot said before it ended reaches us for so long: who is heard for longer lives. As decide.ECHO_S."""
KEPT = 4
TWO_NAMES = "one boot under two names"
TWO_BOOTS = "one name under two boots that both live"
OTHER_MACHINE = "one name on two machines"


def heard(state: State, beat: Heartbeat, settings: Detection, now: float) -> Step[State] | None:
    """None where this heartbeat is one as any other. Otherwise it says nothing of its host."""
    at = beat.at
    record = state.record(at.host)
    other = state.boots.get(at.boot)
    if other is not None and other != at.host:
        return _doubted(state, state.record(other), at, TWO_NAMES, settings)
    if record.twins and str(at) in record.twins:
        return Step(state)
    if at.boot not in record.former:
        return other_machine(state, record, at, beat.hardware, settings)
    view = state.view(at.host)
    if record.at is None or view.heard_at is None or now - view.heard_at >= settings.suspect_after_s:
        return Step(state)  # nobody else speaks in this name now
    twin = view.twin if view.twin is not None and view.twin.at == at else Twin(at, now)
    if now - twin.since < TWIN_S:
        return Step(_seen(state, view, at.host, twin))  # an echo of the boot that is over, it may be
    return _doubted(_seen(state, view, at.host, None), record, at, TWO_BOOTS, settings)


def other_machine(
    state: State, record: HostRecord, at: Incarnation, hardware: str, settings: Detection
) -> Step[State] | None:
    """None where this boot may be the next one of the same machine. A copy of its disk in another machine, or its name given to
    one, says nothing of the machine that is known: that one may be silent and run its VMs all the same. Its boot is
    taken once the known one is over by a proof, and an operator has said that it may (`readmit`)."""
    if record.at is None or record.at.boot == at.boot or not differs(record.hardware, hardware):
        return None
    return _doubted(state, record, at, OTHER_MACHINE, settings)


def _seen(state: State, view: HostView, host: str, twin: Twin | None) -> State:
    return replace(state, views=state.views.insert(host, replace(view, twin=twin)))


def _doubted(
    state: State, record: HostRecord, at: Incarnation, rule: str, settings: Detection
) -> Step[State]:
    """Tell it once, and close the host that is known by this boot or name to new VMs."""
    assert record.at is not None
    if str(at) in record.twins:
        return Step(state)
    epoch = record.epoch + 1
    update: dict[str, object] = {"twins": (*record.twins, str(at))[-KEPT:], "epoch": epoch}
    doubted = HostIdentityDoubted(at=at, known=record.at, number=epoch, rule=rule)
    effects = [Publish(record.host, doubted)]
    if not record.quarantine:
        update["quarantine"] = epoch
        closed = HostQuarantined(
            host=record.host,
            number=epoch,
            failed_ago_s=(),
            window_s=settings.failures_window_s,
            quiet_s=settings.quarantine_s,
            cause=doubted.key,
            rule=rule,
        )
        effects.append(Publish(record.host, closed))
    record = record.model_copy(update=update)
    return Step(replace(state, records=state.records.insert(record.host, record)), tuple(effects))
