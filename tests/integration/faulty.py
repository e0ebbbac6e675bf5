"""`python -m tests.integration.faulty FAULT service detector …`: a real service that goes wrong when it hears a heartbeat of an
agent called like the fault."""

from __future__ import annotations

import sys
import time
from typing import Any

from libs.events.signals import Heartbeat
from libs.virt.hosts import LibvirtHosts
from services.cli.__main__ import main
from services.detector.decide import Detector

BLOCKED_S = 30.0


def _wrong(fault: str, owner: Any, method: str, go: Any) -> None:
    well = getattr(owner, method)

    def wrong(self: Any, *arguments: Any) -> Any:
        for one in arguments:
            if isinstance(one, Heartbeat) and one.agent == fault:
                go()
        return well(self, *arguments)

    setattr(owner, method, wrong)


def _raise() -> None:
    raise RuntimeError("as the test wants it")


FAULTS = {
    "blocks": lambda: _wrong("blocks", Detector, "_step", lambda: time.sleep(BLOCKED_S)),
    "decider-raises": lambda: _wrong("decider-raises", Detector, "_step", _raise),
    "callback-raises": lambda: _wrong("callback-raises", LibvirtHosts, "heard", _raise),
}

if __name__ == "__main__":
    FAULTS[sys.argv.pop(1)]()
    main()
