"""What the observer makes of what it sees: who was active where and when, and for how long twice. No I/O here."""

from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass
class Track:
    """One VM on one host, without a break: monotonic times of the first and the last sighting."""

    host: str
    first: float
    last: float


def doubled_s(tracks: list[Track]) -> float:
    """Seconds in which at least two hosts had the VM, from first to last sighting only: nothing is guessed."""
    edges = sorted(
        [(track.first, 1, track.host) for track in tracks]
        + [(track.last, -1, track.host) for track in tracks],
        key=lambda edge: (edge[0], -edge[1]),
    )
    running: dict[str, int] = {}
    total, since = 0.0, 0.0
    for at, change, host in edges:
        if len(running) > 1:
            total += at - since
        since = at
        running[host] = running.get(host, 0) + change
        if not running[host]:
            del running[host]
    return total


@dataclass
class Ledger:
    """All tracks of one way of looking (domain lists, or processes)."""

    open: dict[tuple[str, str], Track] = field(default_factory=dict)
    tracks: dict[str, list[Track]] = field(default_factory=dict)
    sightings: dict[str, int] = field(default_factory=dict)

    def see(self, host: str, vms: Iterable[str], at: float, asked: float | None = None) -> None:
        """The VMs that this host has at `at`; its others ended with their last sighting. Of an answer that took its time
        it is known only that each was there after it was `asked` for."""
        present = set(vms)
        for vm in present:
            track = self.open.get((vm, host))
            if track is None:
                track = self.open[vm, host] = Track(host, at, at)
                self.tracks.setdefault(vm, []).append(track)
            track.last = max(track.last, at if asked is None else asked)
            if any(
                other.host != host and known == vm and other.last >= track.first and track.last >= other.first
                for (known, _), other in self.open.items()
            ):
                self.sightings[vm] = self.sightings.get(vm, 0) + 1
        self.lose(host, keep=present)

    def lose(self, host: str, keep: Iterable[str] = ()) -> None:
        """Nothing is known of this host (or only of `keep`): its tracks end where they were last seen."""
        kept = set(keep)
        for vm, where in list(self.open):
            if where == host and vm not in kept:
                del self.open[vm, where]

    def doubled(self) -> dict[str, float]:
        """Seconds of double running for each VM ever seen."""
        return {vm: doubled_s(tracks) for vm, tracks in self.tracks.items()}


@dataclass
class Rate:
    """How often something was looked at: only whole seconds of an unbroken connection count for the lowest."""

    samples: int = 0
    seconds: float = 0.0
    lowest_hz: float | None = None
    max_gap_s: float = 0.0
    _last: float | None = None
    _window: float = 0.0
    _count: int = 0

    def hit(self, at: float) -> None:
        """One sample at the monotonic time `at`."""
        self.samples += 1
        if self._last is None:
            self._window, self._count = at, 0
        else:
            self.seconds += at - self._last
            self.max_gap_s = max(self.max_gap_s, at - self._last)
            self._count += 1
            if at - self._window >= 1.0:
                rate = self._count / (at - self._window)
                self.lowest_hz = rate if self.lowest_hz is None else min(self.lowest_hz, rate)
                self._window, self._count = at, 0
        self._last = at

    def interrupt(self) -> None:
        """The connection is gone: the time until the next sample is nobody's gap."""
        self._last = None

    def report(self) -> dict[str, float | int | None]:
        mean = round((self.samples - 1) / self.seconds, 1) if self.seconds > 0 else None
        lowest = None if self.lowest_hz is None else round(self.lowest_hz, 1)
        gap = round(self.max_gap_s, 3)
        return {"samples": self.samples, "mean_hz": mean, "lowest_hz": lowest, "max_gap_s": gap}
