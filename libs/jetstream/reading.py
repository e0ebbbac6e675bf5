"""Signals as they come over the bus, read into their models."""

from __future__ import annotations

import hashlib
import weakref

import structlog
from pydantic import ValidationError

from libs.events.signals import SIGNAL, InventorySeen, Signal, fits
from libs.model import Inventory

log = structlog.get_logger()
REPEATED = "inventory."
KEPT = 65_536
"""Topics of which it is known what was said there last: more than any pool has hosts."""


def read(subject: str, data: bytes) -> Signal | None:
    """None where no version of ours said that: evidence of nothing."""
    try:
        return SIGNAL.validate_json(data)
    except ValidationError as error:
        log.warning("unreadable signal", subject=subject, reason=str(error)[:300])
        return None


class Reader:
    """Reads what comes on some topics. An inventory is most often what it was, to the byte: it is read once, for as long as
    anybody keeps it."""

    def __init__(self, prefix: str) -> None:
        """`prefix`: of the pool's subjects."""
        self._prefix = prefix
        self._said: dict[str, tuple[bytes, weakref.ref[Inventory]]] = {}

    def fitting(self, subject: str, data: bytes) -> Signal | None:
        """None where it cannot be read, or is not what its topic is for."""
        topic = subject.removeprefix(self._prefix)
        if topic.startswith(REPEATED):
            return self._repeated(subject, topic, data)
        return self._anew(subject, topic, data)

    def _repeated(self, subject: str, topic: str, data: bytes) -> Signal | None:
        digest = hashlib.sha256(data).digest()
        before, kept = self._said.get(topic, (b"", None))
        inventory = kept() if kept is not None and before == digest else None
        if inventory is not None:
            return InventorySeen(inventory=inventory)
        signal = self._anew(subject, topic, data)
        if isinstance(signal, InventorySeen):
            if len(self._said) >= KEPT:
                self._said.clear()
            self._said[topic] = digest, weakref.ref(signal.inventory)
        return signal

    def _anew(self, subject: str, topic: str, data: bytes) -> Signal | None:
        signal = read(subject, data)
        if signal is not None and not fits(topic, signal):
            log.warning("signal on a topic that is not its own", subject=subject, signal=signal.kind)
            return None
        return signal
