"""What every service is given by whoever wires it: a process's main over real adapters, or the simulator."""

from __future__ import annotations

from typing import Protocol

from libs.config.settings import Settings
from libs.core.ports import Bus, Clock, Lease, Store


class Ports(Protocol):
    """The ports of one process of one service."""

    @property
    def settings(self) -> Settings: ...

    @property
    def service(self) -> str: ...

    @property
    def me(self) -> str:
        """Names this process among all that ever run the service."""

    @property
    def bus(self) -> Bus: ...

    @property
    def clock(self) -> Clock: ...

    def store(self, bucket: str) -> Store:
        """One bucket of the pool."""

    def lease(self) -> Lease:
        """The leadership of this service's role, renewed while the process runs."""
