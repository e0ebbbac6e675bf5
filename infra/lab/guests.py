"""What can be done to the inside of a guest that has QEMU's guest agent (`LabVm(guest_agent=True)`)."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import libvirt
import libvirt_qemu

from infra.lab import procs
from infra.lab.agentguest import STARVE
from infra.lab.handle import Handle
from infra.lab.spec import LabError

_ANSWER_S, _PING_S = 5, 1
"""Whole seconds for which libvirt waits for an agent: one that answers, and one that perhaps does not."""
_DONE_S = 20.0
_BUSYBOX = "/bin/busybox"


def _ask(domain: Any, command: str, timeout_s: int, **arguments: Any) -> Any:
    """What the agent returns. Raises libvirt.libvirtError."""
    request = json.dumps({"execute": command, "arguments": arguments})
    return json.loads(libvirt_qemu.qemuAgentCommand(domain, request, timeout_s, 0))["return"]


def _answers(domain: Any) -> bool:
    """Whether the agent answers a ping. Raises libvirt.libvirtError where there is no guest to be asked."""
    try:
        _ask(domain, "guest-ping", _PING_S)
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_AGENT_UNRESPONSIVE:
            return False
        raise
    return True


class GuestHandle(Handle):
    """Guests with an agent. Every method raises LabError for a VM that has none or is not on exactly one host, and
    libvirt.libvirtError."""

    @contextmanager
    def _guest(self, name: str) -> Iterator[Any]:
        with self.connect(self._only_host_of(name)) as connection:
            domain = connection.lookupByName(name)
            if "org.qemu.guest_agent.0" not in domain.XMLDesc():
                raise LabError(f"VM {name} has no guest agent: LabVm(guest_agent=True) has")
            yield domain

    def agent_answers(self, name: str) -> bool:
        """Whether the guest agent of a VM answers libvirt within a second."""
        with self._guest(name) as domain:
            return _answers(domain)

    def hang_guest_agent(self, name: str) -> None:
        """The agent in the guest answers no more from when this returns; the guest lives on."""
        # It stops after it has told us that it will: an answer that does not come would cost libvirt's whole wait.
        stop = f"{_BUSYBOX} usleep 100000; {_BUSYBOX} killall -STOP qemu-ga"
        with self._guest(name) as domain:
            _ask(domain, "guest-exec", _ANSWER_S, path=_BUSYBOX, arg=["sh", "-c", stop])
            procs.wait_for(lambda: not _answers(domain), _DONE_S, f"end of the answers of {name}'s agent")

    def starve_watchdog(self, name: str) -> None:
        """The guest feeds its watchdog no more, which bites WATCHDOG_S after the last time. Its agent must answer."""
        with self._guest(name) as domain:
            started = _ask(domain, "guest-exec", _ANSWER_S, path=_BUSYBOX, arg=["touch", STARVE])

            def done() -> bool:
                return bool(_ask(domain, "guest-exec-status", _ANSWER_S, pid=started["pid"])["exited"])

            procs.wait_for(done, _DONE_S, f"the guest of {name} to starve its watchdog")

    def panic_guest(self, name: str) -> None:
        """The guest's kernel panics, and libvirt does what the VM's `on_crash` says. Its agent may hang."""
        with self._guest(name) as domain:
            domain.injectNMI()
