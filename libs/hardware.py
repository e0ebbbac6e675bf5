"""By what one machine is told from another that has a copy of its disk: the name, the machine id and all keys are copied
with a disk, network cards and the board are not."""

from __future__ import annotations

import hashlib
from pathlib import Path

SYS = Path("/sys/class")
CARDS = 4
PERMANENT = "0"
"""How the kernel says that an address came with the card (`addr_assign_type`), and was not set or drawn."""


def hardware(sys: Path = SYS) -> str:
    """Short marks of this machine's board and network cards, in order, with spaces between; empty where none can be read.
    The board's (`dmi/id/product_uuid`) is root's to read. Raises nothing."""
    cards = sorted(filter(None, (_card(place) for place in _listed(sys / "net"))))
    board = _read(sys / "dmi/id/product_uuid")
    return " ".join(_mark(one) for one in (*([board] if board else []), *cards[:CARDS]))


def other_machine(known: str, found: str) -> bool:
    """True where both machines can be told, and they have nothing in common: a board or a card that was replaced leaves
    the others."""
    return bool(known) and bool(found) and not set(known.split()) & set(found.split())


def _card(place: Path) -> str:
    """The address of a network card; empty for bridges, bonds and the like, which have no device."""
    if not (place / "device").exists() or _read(place / "addr_assign_type") != PERMANENT:
        return ""
    return _read(place / "address")


def _listed(place: Path) -> list[Path]:
    try:
        return sorted(place.iterdir())
    except OSError:
        return []


def _read(place: Path) -> str:
    try:
        return place.read_text().strip().lower()
    except (OSError, ValueError):
        return ""


def _mark(what: str) -> str:
    return hashlib.sha256(what.encode()).hexdigest()[:6]
