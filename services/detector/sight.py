"""What one moment shows of all other hosts, to whoever is pursued then.

Found when it is first asked for, and once for all suspects of a tick: when a rack of a pool of 10,000 falls silent, a walk over all
hosts for each of its hosts would take longer than the verdict may.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from libs.config.settings import Detection
from libs.model import HostState
from services.detector.evidence import lives, order
from services.detector.state import DetectorState

ENOUGH = 2
"""Votes of so many failure domains are asked for where peers live in as many (verdict.py); and of two hosts that live one is
another than the suspect."""


@dataclass(slots=True)
class Sight:
    """Of one moment. `witnesses` look from a place of their own; `domains` are the failure domains of those that have one
    named."""

    witnesses: tuple[str, ...]
    settings: Detection
    domains: Mapping[str, str]
    now: float
    _peers: tuple[str, ...] | None = None
    _orders: dict[str | None, list[str]] = field(default_factory=dict)
    """By the failure domain of who is asked about; None where none is named."""
    _apart: int | None = None
    _living: list[str] | None = None

    def peers(self, state: DetectorState) -> tuple[str, ...]:
        """Who is well and was heard just now: only these are asked and counted."""
        if self._peers is None:
            self._peers = tuple(peer for peer in self.witnesses if self._is_peer(state, peer))
        return self._peers

    def order(self, state: DetectorState, host: str) -> list[str]:
        """Peers in the order in which they are asked about a host that is no peer itself."""
        key = self.domains.get(host)  # all that are domains of their own have no neighbours
        if key not in self._orders:
            self._orders[key] = order(host, self.peers(state), self.domains)
        return self._orders[key]

    def apart(self, state: DetectorState) -> int:
        """In how many failure domains they live, counted no further than it matters."""
        if self._apart is None:
            found: set[str] = set()
            for peer in self.witnesses:
                if self._is_peer(state, peer):
                    found.add(self.domains.get(peer, peer))
                    if len(found) == ENOUGH:
                        break
            self._apart = len(found)
        return self._apart

    def company(self, state: DetectorState, host: str) -> bool:
        """Some other host spoke, or showed that it lives, just now. Where none does, the one that is cut off may be us
        (DESIGN §4 rule 6): a server of the bus on our own machine goes on returning our canary."""
        if self._living is not None and self._other_lives(state, host):
            return True
        if self._living is None or len(self._living) == ENOUGH:  # not known yet, or they live no more
            self._living = []
            for other, view in state.views.items():
                if lives(view, self.settings, self.now):
                    self._living.append(other)
                    if len(self._living) == ENOUGH:
                        break
        return self._other_lives(state, host)

    def looked_at(self, before: DetectorState, after: DetectorState, host: str) -> None:
        """A look has changed what is held of this host: it may be a peer no more, or one by now."""
        if self._is_peer(before, host) is not self._is_peer(after, host):
            self._peers = self._apart = None
            self._orders.clear()

    def _other_lives(self, state: DetectorState, host: str) -> bool:
        return any(
            one != host and lives(state.view(one), self.settings, self.now) for one in self._living or ()
        )

    def _is_peer(self, state: DetectorState, host: str) -> bool:
        heard_at = state.view(host).heard_at
        fresh = heard_at is not None and self.now - heard_at < self.settings.suspect_after_s
        return fresh and state.record(host).state is HostState.HEALTHY
