"""The least rights of each user of the bus: one table, from which the server's configuration and docs/THREATS.md are made.

Said in the words of the code (topics, facts, consumers, buckets); `libs/access/subjects.py` makes subjects of them. What a
service comes to need stands here, or the server refuses it: tests/integration/test_rights.py runs each line
against a real server, and each run of the lab fails where a server has refused something.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

MARKS_HEARD = ("mark", "mark_told")
OWNER = "owner"
"""May do all in the pool's account: `rekindle backup` and `restore`. Nobody who runs has its key."""
NOTICES = "system"
"""The user of the system account that hears whose connection ended; it sees nothing of the pool."""


@dataclass(frozen=True, slots=True)
class Role:
    """What one user may do. `*` in a topic or key stands for one word, a `>` at its end for all that follow."""

    name: str
    what: str
    """For people."""
    sends: tuple[str, ...] = ()
    """Signals, by topic."""
    hears: tuple[str, ...] = ()
    asks: tuple[str, ...] = ()
    answers: tuple[str, ...] = ()
    tells: tuple[str, ...] = ()
    """Facts, by kind; with a third word only about that host or VM."""
    consumes: tuple[str, ...] = ()
    """Durable consumers of the stream of facts, by name."""
    follows: bool = False
    """Reads the stream of facts from any place in it."""
    gets: tuple[str, ...] = ()
    """Buckets of which it reads single rows."""
    scans: tuple[str, ...] = ()
    """Buckets that it reads whole."""
    writes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Keys by bucket."""
    creates: bool = False
    """Makes the pool's stream and buckets where there are none."""
    subscribers: bool = False
    """Makes and removes the places of outside subscribers."""


DETECTOR = Role(
    "detector",
    "judges whether hosts live; asks BMCs and libvirt",
    sends=("canary.*", "inventory.*", "mark_asked"),
    hears=("canary.*", "heartbeat.*", "inventory.*", "goodbye.*", *MARKS_HEARD),
    asks=("ask.*",),
    tells=(
        "datastore.failed",
        "datastore.lost",
        "datastore.recovered",
        "detector.degraded",
        "host.agent_down",
        "host.failed",
        "host.fence_refuted",
        "host.fenced",
        "host.grey",
        "host.identity_doubted",
        "host.isolated",
        "host.joined",
        "host.quarantined",
        "host.readmitted",
        "host.recovered",
        "host.refuted",
        "host.suspected",
        "host.undecided",
        "host.unknown",
        "host.vms_known",
        "host.vms_unknown",
        "message.unreadable",
        "storm.held",
        "storm.released",
        "vm.failed",
        "vm.unhealthy",
    ),
    consumes=("detector",),
    gets=("inventory", "leaders", "marks", "state"),
    scans=("inventory", "state"),
    writes={"inventory": ("*",), "leaders": ("detector",), "state": ("detector.>",)},
)

FENCER = Role(
    "fencer",
    "fences hosts; has the keys of BMCs",
    sends=("heard.*", "mark_asked"),
    hears=("heartbeat.*", *MARKS_HEARD),
    asks=("ask.*",),
    tells=(
        "fence_path.broken",
        "fence_path.mended",
        "host.fence_failed",
        "host.fence_tested",
        "host.fenced",
        # hosts on standby are taken in and out of the pool by the words that an operator would say
        "host.maintenance_entered",
        "host.maintenance_exited",
        "host.obeyed",
        "host.removed",
        "message.unreadable",
        "standby.failed",
        "standby.leaving",
        "standby.switched_off",
        "standby.switched_on",
    ),
    consumes=("fencer",),
    gets=("leaders", "marks", "state", "watchdogs"),
    scans=("inventory", "leaders", "leases", "state", "watchdogs"),
    writes={"leaders": ("fencer",), "state": ("fencer.>",), "watchdogs": ("*",)},
)

PLACEMENT = Role(
    "placement",
    "plans who is started where",
    sends=("mark_asked",),
    hears=("heartbeat.*", "inventory.*", "lease.*", *MARKS_HEARD),
    tells=(
        "capacity.exhausted",
        "capacity.overcommitted",
        "capacity.relieved",
        "capacity.restored",
        "failover.completed",
        "failover.planned",
        "host.drain_ended",
        "host.drain_planned",
        "host.drain_stuck",
        "host.drained",
        "host.draining",
        "message.unreadable",
        "policy.contradicted",
        "vm.evict_failed",
        "vm.failed",
        "vm.given_up",
        "vm.health_restored",
        "vm.still_held",
        "vm.unhealthy",
    ),
    consumes=("placement",),
    gets=("inventory", "leaders", "leases", "marks", "state"),
    scans=("inventory", "leases", "state"),
    writes={"leaders": ("placement",), "state": ("placement.>",)},
)

EXECUTOR = Role(
    "executor",
    "starts and stops VMs; keeps the run leases and the mark",
    sends=("lease.*", "let_in.*", "mark", "mark_asked", "stray.*"),
    hears=("arriving.*", "heartbeat.*", "inventory.*", "lease.*", *MARKS_HEARD),
    tells=(
        "message.unreadable",
        "state.reconciled",
        "state.restored",
        "vm.move_failed",
        "vm.moved",
        "vm.order_uncertain",
        "vm.preempt_failed",
        "vm.preempted",
        "vm.restart_failed",
        "vm.restarted",
        "vm.runs_twice",
        "vm.start_uncertain",
        "vm.unseen",
        "vm.waited_in_vain",
    ),
    consumes=("executor",),
    gets=("definitions", "leaders", "leases", "marks", "state"),
    scans=("leases", "state"),
    # all of `state`: what an old copy of it owes is struck out by who restores it
    writes={
        "definitions": ("*.*",),
        "leaders": ("executor",),
        "leases": ("*",),
        "marks": ("mark",),
        "state": (">",),
    },
    creates=True,
)

ALERTING = Role(
    "alerting",
    "tells people and other systems, and hears them; has the keys of webhooks",
    answers=("in.*.*",),
    tells=(
        "callback.refused",
        "message.unreadable",
        "outside.told",
        "scaleout.answered",
        "scaleout.closed",
        "scaleout.escalated",
        "scaleout.requested",
        "scaleout.updated",
        "service.overdue",
        "webhook.dead_lettered",
        "webhook.disabled",
        "webhook.failing",
        "webhook.recovered",
    ),
    consumes=("alerting", "alerts", "scaleout", "webhooks"),
    follows=True,
    gets=("leaders", "state"),
    scans=("state",),
    writes={
        "leaders": ("alerting",),
        "state": ("alerting.>", "alerts.>", "callbacks.>", "scaleout.>", "webhooks.>"),
    },
)

AGENT_VM_FACTS = ("vm.stop_failed", "vm.stop_settled", "vm.stopped_by_gate")
AGENTLESS_HEARS = ("heard.*", "mark", "mark_asked", "stray.*")
AGENT_HEARS = (*AGENTLESS_HEARS, "let_in.*")
"""Nothing asks before a host without an agent takes a VM in."""

AGENTLESS = Role(
    "heartbeat",
    "watches hosts without an agent over their libvirt, and speaks for them",
    sends=("goodbye.*", "heartbeat.*", "inventory.*", "mark_told"),
    hears=AGENTLESS_HEARS,
    answers=("ask.*",),
    tells=("host.watchdog_unarmed", *AGENT_VM_FACTS),
    gets=("inventory", "leases", "marks", "state", "watchdogs"),
    writes={
        "definitions": ("*.*",),
        "inventory": ("*",),
        "state": ("watched.*",),
        "watchdogs": ("*",),
    },
)

OPERATOR = Role(
    "operator",
    "the command line: reads all, and says an operator's words",
    hears=("canary.*",),
    asks=("ask.*",),
    tells=(
        "alert.acknowledged",
        "alert.silenced",
        "alert.unsilenced",
        "host.confirmed_failed",
        "host.fence_test_ordered",
        "host.maintenance_entered",
        "host.maintenance_exited",
        "host.readmit_ordered",
        "host.removed",
        "scaleout.updated",
        "storm.release_ordered",
        "webhook.retry_ordered",
    ),
    follows=True,
    gets=("definitions", "inventory", "leaders", "leases", "marks", "state", "watchdogs"),
    scans=("definitions", "inventory", "leaders", "leases", "state", "watchdogs"),
    writes={"marks": ("mark",)},
    creates=True,
    subscribers=True,
)

SERVICES = (DETECTOR, FENCER, PLACEMENT, EXECUTOR, ALERTING, AGENTLESS, OPERATOR)
"""Users of the pool's own account."""
BY_NAME = {role.name: role for role in SERVICES}


def agent(host: str) -> Role:
    """The agent of one host: in an account of its own, into which it sees no more than this."""
    return Role(
        agent_user(host),
        "the agent of one host",
        sends=(
            f"arriving.{host}",
            f"goodbye.{host}",
            f"heartbeat.{host}",
            f"inventory.{host}",
            "mark_told",
        ),
        hears=(f"heard.{host}", f"let_in.{host}", "mark", "mark_asked", f"stray.{host}"),
        answers=(f"ask.{host}",),
        tells=(f"host.watchdog_unarmed.{host}", *AGENT_VM_FACTS),
        gets=("inventory", "leases", "marks", "watchdogs"),
        writes={"definitions": (f"*.{host}",), "inventory": (host,), "watchdogs": (host,)},
    )


def agent_user(host: str) -> str:
    return f"agent-{host}"
