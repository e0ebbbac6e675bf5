"""A host without an agent, as it is reached from outside: over a connection that leads to whatever boot answers."""

from __future__ import annotations

from libs.core.ports import UnavailableError
from libs.model import Answer, Incarnation
from libs.sim.virt import SimHypervisor


class SimReached(SimHypervisor):
    """It opens itself again, as a connection of libs/virt/host.py does."""

    @property
    def _at(self) -> Incarnation:
        return self._virt.machines.hosts[self.name].at

    @_at.setter
    def _at(self, at: Incarnation) -> None:
        """The boot that it led to at first."""

    async def probe(self, timeout_s: float) -> tuple[Answer, str]:
        """One round trip."""
        try:
            await self.call("ping", lambda host: None, timeout_s)
        except UnavailableError as error:
            return Answer.SILENT, str(error)
        return Answer.UP, "libvirt answers"

    async def up_s(self) -> float:
        """See libs.virt.host."""
        return await self.call("processor time", self._virt.age_s)
