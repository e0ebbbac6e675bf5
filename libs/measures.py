"""What a service counts for Prometheus: by its shell, from what was heard, decided and done. No decider knows of it.

Every name is in METRICS, from which docs/METRICS.md is written; the dashboard and the alert rules below infra/ may name no
other (tests/unit/test_measures.py). Counts are of one process and begin at 0 with it, as Prometheus expects: over the replicas of a
service they are summed. What is a state of the pool (`rekindle_hosts`, `rekindle_vms_waiting`, …) is told by the leader alone.

Imported only where a service has a port: the library costs a start 50 ms, which is downtime after a crash.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from libs.core.decider import Effect, Input, Outcome, Publish, Request, Send
from libs.core.ports import Clock
from libs.core.wiring import Gauges
from libs.events.base import Fact
from libs.events.failovers import FailoverPlanned
from libs.events.hosts import HostFailed, HostSuspected
from libs.events.signals import Heartbeat, InventorySeen
from libs.events.vms import VmRestarted

SHORT_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
LONG_S = (0.1, 0.25, 0.5, 1, 1.5, 2, 3, 4, 6, 8, 12, 20, 30, 60, 120, 300)
INCIDENTS_KEPT = 1024


@dataclass(frozen=True, slots=True)
class Shape:
    """One metric. `type` is Prometheus's; a counter's name ends with `_total`, as it is told."""

    type: str
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


OWN = ("service",)
"""Of gauges that every service has."""
METRICS: dict[str, Shape] = {
    "rekindle_leading": Shape("gauge", "1 where this process holds the role of its service", OWN),
    "rekindle_bus_connected": Shape("gauge", "1 while this process has a connection to the bus", OWN),
    "rekindle_loop_lag_seconds": Shape(
        "gauge", "The worst lag of its event loop within health.lag_window_s", OWN
    ),
    "rekindle_bus_round_trip_seconds": Shape("gauge", "To its server of the bus and back, at this look", OWN),
    "rekindle_leader_seen_seconds": Shape(
        "gauge", "Since it last saw that somebody leads its service; 0 where it leads itself", OWN
    ),
    "rekindle_ready": Shape("gauge", "1 where /readyz is 200", OWN),
    "rekindle_evidence_age_seconds": Shape(
        "gauge", "Since the last heartbeat or inventory of any host; of services that hear them", OWN
    ),
    "rekindle_resubscribed_total": Shape(
        "counter", "Subscriptions and consumers of the bus that its self-check found lost and mended"
    ),
    "rekindle_heartbeats_total": Shape("counter", "Heartbeats of hosts that it heard"),
    "rekindle_heartbeats_sent_total": Shape("counter", "Heartbeats that an agent sent"),
    "rekindle_inventories_total": Shape("counter", "Inventories of hosts that it heard"),
    "rekindle_facts_total": Shape("counter", "Facts that it told, stored in the stream", ("kind",)),
    "rekindle_suspicions_total": Shape("counter", "Hosts that it suspected"),
    "rekindle_verdicts_total": Shape(
        "counter", "What became of suspicions: failed, isolated, agent_down, refuted, undecided", ("verdict",)
    ),
    "rekindle_fence_attempts_total": Shape(
        "counter", "Attempts at a fencing, over all levels: proven, unproven or expired", ("result",)
    ),
    "rekindle_fence_seconds": Shape("histogram", "How long an attempt took", ("result",), LONG_S),
    "rekindle_plan_seconds": Shape(
        "histogram", "Processor and wall time of the step that planned a failover", (), SHORT_S
    ),
    "rekindle_starts_total": Shape(
        "counter", "Tries at a start: started, not_started, uncertain or expired", ("result",)
    ),
    "rekindle_start_seconds": Shape("histogram", "How long a try took", ("result",), LONG_S),
    "rekindle_recovery_seconds": Shape(
        "histogram",
        "RTO: from a host's last sign of life until a VM of it was seen running elsewhere, one a VM; of failures "
        "that this process heard from the suspicion on",
        (),
        LONG_S,
    ),
    "rekindle_webhook_deliveries_total": Shape(
        "counter", "Tries at a delivery, by what became of it", ("endpoint", "result")
    ),
    "rekindle_hosts": Shape("gauge", "Hosts of the pool, by what the detector holds of them", ("state",)),
    "rekindle_vms_waiting": Shape("gauge", "VMs of failures that wait for room, or for their next try"),
    "rekindle_vms_planned": Shape("gauge", "VMs of failures whose start is planned and not seen"),
    "rekindle_failures_tolerated": Shape(
        "gauge", "How many hosts may fail with room for every VM, guaranteed; absent where none is asked for"
    ),
    "rekindle_failures_to_tolerate": Shape("gauge", "How many are to be tolerated"),
    "rekindle_starts_queued": Shape("gauge", "Starts that the executor has taken up and not ended"),
    "rekindle_fences_open": Shape("gauge", "Verdicts whose host is not proven harmless yet"),
}
ACTS: dict[str, tuple[str, str]] = {
    "fence": ("rekindle_fence_attempts_total", "rekindle_fence_seconds"),
    "start_vm": ("rekindle_starts_total", "rekindle_start_seconds"),
    "post": ("rekindle_webhook_deliveries_total", ""),
    "resend": ("rekindle_webhook_deliveries_total", ""),
}
"""By kind of act what counts it, and what takes its time."""
VERDICTS = {
    f"host.{verdict}": verdict for verdict in ("failed", "isolated", "agent_down", "refuted", "undecided")
}


@dataclass(slots=True)
class _Occurred:
    """Since when hosts have been silent, as far as this process heard it; the newest incidents only."""

    silent: dict[str, tuple[int, float]] = field(default_factory=dict)
    """By host the number of its latest suspicion, and its last sign of life."""
    incidents: OrderedDict[str, float] = field(default_factory=OrderedDict)

    def heard(self, event: Input, now: float) -> float | None:
        """Of a VM that runs again: since when its host had been silent."""
        match event:
            case HostSuspected(at=at, number=number, silent_s=silent_s):
                if self.silent.get(at.host, (-1, 0.0))[0] != number:
                    self.silent[at.host] = number, now - silent_s
            case HostFailed(at=at, incident=incident) if incident not in self.incidents:
                self.incidents[incident] = self.silent.pop(at.host, (0, now))[1]
                if len(self.incidents) > INCIDENTS_KEPT:
                    self.incidents.popitem(last=False)
            case VmRestarted(incident=incident) if incident in self.incidents:
                return now - self.incidents[incident]
        return None


class Measures(Collector):
    """The metrics of one process. Raises KeyError for a name that is not in METRICS."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.registry = CollectorRegistry()
        self._made: dict[str, Counter | Histogram] = {}
        self._gauges: list[Gauges] = []
        self._occurred = _Occurred()
        self.evidence_at: float | None = None
        """When a host was heard last, by `clock`."""
        ProcessCollector(registry=self.registry)
        self.registry.register(self)
        self._heartbeats, self._inventories = (
            self._counter(f"rekindle_{what}_total") for what in ("heartbeats", "inventories")
        )

    # -- told by a shell (libs/core/wiring.py:Meter)

    def heard(self, event: Input, now: float) -> None:
        """Called for each input, in its order: the cheapest first, since it is by far the most frequent."""
        if isinstance(event, Heartbeat):
            self._heartbeats.inc()
            self.evidence_at = now
        elif isinstance(event, InventorySeen):
            self._inventories.inc()
            self.evidence_at = now
        elif isinstance(event, Fact):
            took_s = self._occurred.heard(event, now)
            if took_s is not None:
                self._histogram("rekindle_recovery_seconds").observe(took_s)

    def stepped(self, effects: Sequence[Effect], took_s: float) -> None:
        for effect in effects:
            if isinstance(effect, Send) and isinstance(effect.signal, Heartbeat):
                self._counter("rekindle_heartbeats_sent_total").inc()
            elif isinstance(effect, Publish) and isinstance(effect.fact, FailoverPlanned):
                self._histogram("rekindle_plan_seconds").observe(took_s)

    def told(self, fact: Fact) -> None:
        self._counter("rekindle_facts_total").labels(kind=fact.kind).inc()
        if isinstance(fact, HostSuspected):
            self._counter("rekindle_suspicions_total").inc()
        elif fact.kind in VERDICTS:
            self._counter("rekindle_verdicts_total").labels(verdict=VERDICTS[fact.kind]).inc()

    def acted(self, request: Request, outcome: Outcome, took_s: float) -> None:
        if request.kind not in ACTS:
            return
        counted, timed = ACTS[request.kind]
        labels = {
            label: outcome.ended if label == "result" else str(getattr(request, label))
            for label in METRICS[counted].labels
        }
        self._counter(counted).labels(**labels).inc()
        if timed:
            self._histogram(timed).labels(**labels).observe(took_s)

    def gauges(self, read: Gauges) -> None:
        """Ask for these each time that somebody looks."""
        self._gauges.append(read)

    # -- told by the bus

    def resubscribed(self) -> None:
        """Something that was to be heard was lost, and is heard again."""
        self._counter("rekindle_resubscribed_total").inc()

    # -- for who looks

    def count(self, name: str) -> int:
        """A counter without labels, so far."""
        return int(self._counter(name)._value.get())

    def text(self) -> bytes:
        """All, in Prometheus's text format."""
        return generate_latest(self.registry)

    def collect(self) -> Iterable[Metric]:
        """Gauges, read when somebody looks."""
        found: dict[str, GaugeMetricFamily] = {}
        for read in self._gauges:
            for (name, *labels), value in read().items():
                shape = METRICS[name]
                family = found.setdefault(name, GaugeMetricFamily(name, shape.help, labels=shape.labels))
                family.add_metric(labels, value)
        return found.values()

    def _counter(self, name: str) -> Counter:
        made = self._made.get(name)
        if made is None:
            shape = METRICS[name]
            assert shape.type == "counter", name
            made = self._made[name] = Counter(name, shape.help, shape.labels, registry=self.registry)
        assert isinstance(made, Counter)
        return made

    def _histogram(self, name: str) -> Histogram:
        made = self._made.get(name)
        if made is None:
            shape = METRICS[name]
            made = self._made[name] = Histogram(
                name, shape.help, shape.labels, registry=self.registry, buckets=shape.buckets
            )
        assert isinstance(made, Histogram)
        return made
