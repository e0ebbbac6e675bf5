"""What was decided in a run, made comparable: the same file must give the same verdicts in every world.

Kept are the verdicts on hosts and on the pool, in their order, and those that are one host's or one VM's own affair, in
theirs: two hosts that are cut off at once may be found so in either order. Left out is what depends on luck and
changes nothing: suspicion, that it waits, and its end, an agent_down that ended by itself (noticed, not believed),
`host.joined` (a boot announces itself; whether before or after the old one's proof is a race), plans (which host was
chosen, how often one was made), times, and the order between VMs, which start side by side.
"""

from __future__ import annotations

from dataclasses import dataclass

from libs.scenario.outcome import Outcome, TimelineEntry

RULED = frozenset({"host.failed", "host.fenced"})
"""Verdicts whose rule is part of them: by which evidence, by which proof."""
OF_HOSTS = RULED | {
    "host.agent_down",
    "host.recovered",
    "host.refuted",
    "host.fence_failed",
    "datastore.lost",
    "datastore.failed",
    "datastore.recovered",
    "storm.held",
    "storm.released",
    "capacity.exhausted",
    "capacity.relieved",
}
OF_ONE_HOST = frozenset(
    {
        "host.isolated",
        "host.obeyed",
        "host.fence_refuted",
        "host.grey",
        "host.draining",
        "host.quarantined",
    }
)
OF_VMS = frozenset(
    {
        "vm.failed",
        "vm.unhealthy",
        "vm.restarted",
        "vm.restart_failed",
        "vm.start_uncertain",
        "vm.given_up",
        "vm.evict_failed",
        "vm.still_held",
        "vm.moved",
        "vm.waited_in_vain",
        "vm.move_failed",
        "vm.order_uncertain",
        "vm.preempted",
        "vm.preempt_failed",
        "vm.stopped_by_gate",
        "vm.stop_failed",
        "vm.stop_settled",
    }
)


@dataclass(frozen=True, slots=True)
class Verdicts:
    """Of one run. Two runs went the same way when these are equal."""

    hosts: tuple[str, ...]
    """`event subject rule`, in the order in which they were published."""
    alone: dict[str, tuple[str, ...]]
    """A host's own, in their order."""
    vms: dict[str, tuple[str, ...]]
    """A VM's own, in their order."""
    left: dict[str, tuple[str, int]]
    """In which state each VM was left, and how often it became active."""
    hosts_left: dict[str, tuple[str, bool]]
    """In which state each host was left, and whether it was fenced."""


def verdicts(outcome: Outcome) -> Verdicts:
    """The verdicts of a run, from its outcome document."""
    said: list[TimelineEntry] = []
    last: dict[str, str] = {}
    for entry in outcome.timeline:
        if entry.event not in OF_HOSTS:
            continue
        # refuted is the end of a verdict only after agent_down, else the end of a mere suspicion
        if entry.event == "host.refuted" and last.get(entry.subject) != "host.agent_down":
            continue
        if last.get(entry.subject) != entry.event:  # the same again is no news
            said.append(entry)
        last[entry.subject] = entry.event
        if entry.event == "host.refuted":
            # an agent that was slow for a moment, on a busy machine say: an alert that cleared itself, no verdict
            said = [one for one in said if one not in (entry, _before(said, entry))]
    return Verdicts(
        hosts=tuple(_told(entry) for entry in said),
        alone={name: _own(outcome, name, OF_ONE_HOST) for name in outcome.hosts},
        vms={name: _own(outcome, name, OF_VMS) for name in outcome.vms},
        left={name: (vm.state, vm.starts) for name, vm in outcome.vms.items()},
        hosts_left={name: (host.state, host.fenced) for name, host in outcome.hosts.items()},
    )


def _own(outcome: Outcome, name: str, kinds: frozenset[str]) -> tuple[str, ...]:
    return tuple(e.event for e in outcome.timeline if e.subject == name and e.event in kinds)


def _before(said: list[TimelineEntry], refuted: TimelineEntry) -> TimelineEntry | None:
    """The agent_down that this ended."""
    own = (one for one in reversed(said) if one.subject == refuted.subject and one is not refuted)
    return next((one for one in own if one.event == "host.agent_down"), None)


def _told(entry: TimelineEntry) -> str:
    # the subject of capacity facts is the incident, whose name has the boot in it
    subject = "pool" if entry.event.startswith(("capacity.", "storm.")) else entry.subject
    return " ".join(filter(None, (entry.event, subject, entry.detail if entry.event in RULED else "")))
