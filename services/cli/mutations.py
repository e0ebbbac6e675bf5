"""Deliberate faults in the production code, applied in the simulator only: is each of them caught?

A mutation replaces one function of one service or library while a block runs. The one that survives shows
that the simulated world is too kind, or that the rule it breaks is not checked. What each puts in place stands in
the modules beside this one, a subject a module.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

from services.cli import (
    faults,
    fencefaults,
    guestfaults,
    leasefaults,
    planfaults,
    storefaults,
    watchdogfaults,
)

Patch = tuple[Any, str, Any]


@dataclass(frozen=True, slots=True)
class Mutation:
    name: str
    says: str
    patches: Callable[[], list[Patch]]
    crashes: bool = False
    """It shows by an error that the production code raises. Of any other an error is its own: it broke nothing."""

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """The mutated code runs inside this block."""
        with contextlib.ExitStack() as stack:
            for owner, attribute, instead in self.patches():
                stack.enter_context(mock.patch.object(owner, attribute, instead))
            yield


MUTATIONS: tuple[Mutation, ...] = (
    Mutation("fence skipped", "a proof is written and no device is asked", fencefaults.fence_skipped),
    Mutation(
        "fence command believed",
        "the device's success is the proof; nothing is read",
        fencefaults.command_believed,
    ),
    Mutation("one reading of off", "the second, spaced reading is left out", fencefaults.one_reading),
    Mutation("unknown power is off", "a device that does not answer reads off", fencefaults.unknown_is_off),
    Mutation("fenced only once", "a failed attempt is not repeated", fencefaults.fence_once),
    Mutation("last level skipped", "only the first fence level is tried", fencefaults.last_level_skipped),
    Mutation("lease not checked", "every start takes the lease", leasefaults.lease_not_checked),
    Mutation("token stays", "a new holder keeps the former one's token", leasefaults.token_stays),
    Mutation(
        "proof of any boot",
        "a proof counts for the host, not for the incarnation",
        leasefaults.proof_of_any_boot,
    ),
    Mutation(
        "unknown is stopped",
        "libvirt's silence after a start means that it does not run",
        leasefaults.unknown_is_stopped,
    ),
    Mutation(
        "uncertain is failed",
        "a start under way on a silent target is planned elsewhere",
        leasefaults.uncertain_is_failed,
    ),
    Mutation(
        "uncertain forgotten",
        "a start of unknown outcome is never asked after",
        leasefaults.uncertain_forgotten,
    ),
    Mutation(
        "debts forgotten", "owed effects are not performed again after a crash", planfaults.debts_forgotten
    ),
    Mutation(
        "acknowledge before persist",
        "a fact is acknowledged before its step is written",
        planfaults.ack_first,
    ),
    Mutation(
        "no retry of publications",
        "a fact that is not stored at once is given up",
        planfaults.no_publish_retry,
    ),
    Mutation("blind writes", "no compare-and-set, and every replica leads", planfaults.blind_writes),
    Mutation(
        "nobody minds who leads",
        "every replica decides, though one alone holds the role",
        planfaults.nobody_minds_who_leads,
    ),
    Mutation("storm guard off", "any number of suspects is believed", fencefaults.storm_guard_off),
    Mutation(
        "release forgets its names",
        "an operator's release of a storm is one for all hosts",
        faults.release_forgets_its_names,
    ),
    Mutation("canary ignored", "who does not hear itself goes on suspecting", faults.canary_ignored),
    Mutation("quarantine ignored", "a quarantined host gets new VMs", faults.quarantine_ignored),
    Mutation(
        "deaf observer believed",
        "evidence is kept over a pause or a lost connection",
        fencefaults.deaf_believed,
    ),
    Mutation("silence is proof", "silence alone is a verdict", fencefaults.silence_is_proof),
    Mutation(
        "timed by the wall", "deciders are given the time of the wall clock", planfaults.timed_by_the_wall
    ),
    Mutation("new boot is the old", "a reboot goes unnoticed", fencefaults.new_boot_is_old),
    Mutation("boot gate off", "a returning host keeps what it started by itself", fencefaults.gate_off),
    Mutation("not held back", "libvirt starts at boot what is leased elsewhere", fencefaults.not_held_back),
    Mutation(
        "never given back", "what was held back at boot has lost its autostart", fencefaults.never_given_back
    ),
    Mutation("second copy unnoticed", "a VM that runs twice goes on so", faults.stray_unnoticed),
    Mutation("let in unnoted", "what people migrate is let in unasked", faults.let_in_unnoted),
    Mutation("purpose ignored", "what was shut down on purpose is restarted", leasefaults.on_purpose_ignored),
    Mutation(
        "promised room forgotten",
        "what is leased or planned occupies nothing",
        planfaults.promised_room_forgotten,
    ),
    Mutation("priority inverted", "the least important are placed first", planfaults.priority_inverted),
    Mutation(
        "each incident for itself",
        "what is more important and waits in another incident is not known",
        planfaults.each_incident_for_itself,
    ),
    Mutation("waits without a reason", "no reason is stated", planfaults.waits_without_a_reason),
    Mutation("new room unnoticed", "what waits is not planned when room comes", planfaults.room_unnoticed),
    Mutation("failed start dropped", "a start that failed is not planned again", planfaults.waiting_dropped),
    Mutation("reclaim off", "what was planned to a host fenced since stays planned", planfaults.reclaim_off),
    Mutation("lie believed", "a fence device's word outweighs the host's own", faults.lie_believed),
    Mutation(
        "libvirt not asked", "a host whose agent alone is down may be proven off", faults.libvirt_not_asked
    ),
    Mutation("refutation untold", "a fenced host that speaks raises no alert", faults.refutation_untold),
    Mutation("no quiet minute", "a new plane suspects whom it never heard", faults.no_quiet_minute),
    Mutation(
        "bus lost, VMs stopped",
        "an agent that cannot reach the bus stops its VMs",
        faults.bus_lost_vms_stopped,
    ),
    Mutation(
        "gate waits for ever", "a stop that fails for good keeps its host out", faults.gate_waits_for_ever
    ),
    Mutation(
        "failed stop untold", "a VM that cannot be stopped is told to nobody", faults.failed_stop_untold
    ),
    Mutation(
        "condemned elsewhere", "what could not be stopped is started elsewhere", faults.condemned_elsewhere
    ),
    Mutation("gate tried once", "a stop that fails keeps its host out of the pool", faults.gate_tried_once),
    Mutation(
        "unknown at the gate",
        "what libvirt cannot tell of is held to be stopped",
        faults.gate_takes_unknown_for_stopped,
    ),
    Mutation("every beat kept", "the detector's memory grows with each heartbeat", faults.every_beat_kept),
    Mutation("evict skipped", "a VM whose QEMU lives is taken for stopped", guestfaults.evict_skipped),
    Mutation(
        "evict adopted as purpose", "our own stop is taken for a person's will", guestfaults.evict_adopted
    ),
    Mutation("agentless judged", "a guest that cannot be asked is silent", guestfaults.agentless_judged),
    Mutation("busy is silent", "one ping without an answer is silence", guestfaults.busy_is_silent),
    Mutation("grey unseen", "guests of a grey host are restarted there", guestfaults.grey_unseen),
    Mutation(
        "failed eviction dropped",
        "what could not be stopped once stays as it is",
        guestfaults.failed_eviction_dropped,
    ),
    Mutation("peers not asked", "a host's own word on its datastore is enough", storefaults.peers_not_asked),
    Mutation(
        "loss unnoticed", "a datastore that hangs on one host is told to nobody", storefaults.loss_unnoticed
    ),
    Mutation("reach ignored", "who reaches a datastore is nothing to a plan", storefaults.reach_ignored),
    Mutation(
        "watchdog margin forgotten",
        "a host is presumed fenced once its time-out alone has passed",
        watchdogfaults.margin_forgotten,
    ),
    Mutation(
        "own time-out assumed",
        "what the pool file asks a watchdog for counts, not what its host advertises",
        watchdogfaults.own_time_out_assumed,
    ),
    Mutation("fed unheard", "a host feeds its watchdog while nobody hears it", watchdogfaults.fed_unheard),
    Mutation(
        "one peer is enough",
        "one peer that sees a host, or does not, is all",
        watchdogfaults.one_peer_is_enough,
    ),
    Mutation(
        "fed by the bus alone",
        "neither slots nor peers keep a host alive without the plane",
        watchdogfaults.fed_by_the_bus_alone,
    ),
    Mutation(
        "promise forgotten",
        "an agent that is started anew feeds nothing before the bus has told what it promised",
        watchdogfaults.promise_forgotten,
    ),
    Mutation(
        "one VM in two incidents",
        "a crash after a restart is both's",
        faults.one_vm_in_two_incidents,
        crashes=True,
    ),
)
