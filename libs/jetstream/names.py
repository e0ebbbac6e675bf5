"""What the stream and the buckets of a pool are called on the server."""

from __future__ import annotations

from dataclasses import dataclass

BUCKETS = ("state", "leases", "inventory", "definitions", "leaders", "watchdogs", "marks")


@dataclass(frozen=True, slots=True)
class Names:
    """What things of one pool are called on the server."""

    pool: str

    @property
    def prefix(self) -> str:
        return f"rekindle.{self.pool}"

    @property
    def events(self) -> str:
        return f"rekindle_{self.pool}_events"

    def bucket(self, name: str) -> str:
        """The bucket's name; its stream is `KV_` plus this."""
        return f"rekindle_{self.pool}_{name}"
