"""Heartbeat slots on a shared datastore: two blocks a host, one that it writes and one that is written to it.

Direct and synchronous, so that a reader sees what is on the datastore and not what a cache holds; in threads of the
datastore's own with a deadline each, so that one that stalls hangs neither the agent nor another datastore. A slot is
a small file in a directory of ours, or a place of the host's own on a block device.
"""

from __future__ import annotations

import errno
import json
import mmap
import os
import stat
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import structlog
from pydantic import ValidationError

from libs.config.entries import Datastore
from libs.config.settings import Settings
from libs.core.ports import UnavailableError
from libs.model import Value
from libs.promises import SlotBeat, SlotOrder
from libs.storage.mounts import Mounted
from libs.threads import HostThreads

BLOCK = 4096
SLOT = 2 * BLOCK
MAGIC = b"RKSLOT1\n"
HEAD = len(MAGIC) + 8
THREADS = 2  # one hangs in our own write, one in another's reading; who waits for a thread is told it in time
M = TypeVar("M", bound=Value)
log = structlog.get_logger()


def encode(value: Value) -> bytes:
    """One block. Raises ValueError where it does not fit."""
    body = value.model_dump_json().encode()
    if HEAD + len(body) > BLOCK:
        raise ValueError(f"{len(body)} bytes do not fit into a block of {BLOCK}")
    head = MAGIC + zlib.crc32(body).to_bytes(4) + len(body).to_bytes(4)
    return (head + body).ljust(BLOCK, b"\0")


def decode(block: bytes, model: type[M]) -> M | None:
    """What a block holds; None where it is empty, torn, or of another version: evidence of nothing."""
    length = int.from_bytes(block[HEAD - 4 : HEAD])
    body = block[HEAD : HEAD + length]
    if not block.startswith(MAGIC) or zlib.crc32(body).to_bytes(4) != block[HEAD - 8 : HEAD - 4]:
        return None
    try:
        return model.model_validate(json.loads(body))
    except (ValidationError, ValueError):
        return None


@dataclass(frozen=True, slots=True)
class Place:
    """Where one host's slot lies."""

    path: Path
    offset: int = 0
    made: bool = True
    """A file of ours, which we may make; a block device is there or it is not."""


class SlotFiles:
    """Slots of one datastore. Raises UnavailableError where it does not answer in time or refuses."""

    def __init__(
        self, name: str, places: dict[str, Place], timeout_s: float, mounted: Mounted | None = None
    ) -> None:
        self.name, self._places, self._timeout_s = name, places, timeout_s
        self._mounted = mounted
        self._threads = HostThreads(f"slot-{name}", THREADS)
        self._direct = os.O_DIRECT

    async def beat(self, beat: SlotBeat) -> SlotOrder | None:
        """Write the host's own beat, and read what was ordered to it."""
        block, place = encode(beat), self._place(beat.host)

        def work() -> SlotOrder | None:
            return decode(self._io(place, write=block, read_at=BLOCK), SlotOrder)

        order: SlotOrder | None = await self._call(work)
        return order

    async def read(self, host: str) -> SlotBeat | None:
        """The latest beat of a host; None where it has written none."""
        place = self._place(host)

        def work() -> SlotBeat | None:
            try:
                return decode(self._io(place, read_at=0), SlotBeat)
            except FileNotFoundError:
                return None  # it never wrote here

        beat: SlotBeat | None = await self._call(work)
        return beat

    async def order(self, host: str, order: SlotOrder) -> None:
        """Write an order to a host."""
        block, place = encode(order), self._place(host)
        await self._call(lambda: self._io(place, write=block, write_at=BLOCK))

    def _place(self, host: str) -> Place:
        place = self._places.get(host)
        if place is None:
            raise UnavailableError(f"{self.name}: {host} has no slot there")
        return place

    async def _call(self, work: Any) -> Any:
        try:
            return await self._threads.call(work, self._timeout_s)
        except TimeoutError as error:
            raise UnavailableError(f"{self.name}: no answer in {self._timeout_s} s") from error
        except OSError as error:
            raise UnavailableError(f"{self.name}: {error.strerror or error}") from error

    def _io(
        self, place: Place, *, write: bytes | None = None, write_at: int = 0, read_at: int | None = None
    ) -> bytes:
        """One write, one reading, or both, through one open file."""
        if self._mounted is not None and (lacking := self._mounted.lacking()):
            raise OSError(errno.ENODEV, lacking)
        if write is not None and place.made:
            place.path.parent.mkdir(mode=0o700, exist_ok=True)
        mode = (os.O_RDWR | (os.O_CREAT if place.made else 0)) if write is not None else os.O_RDONLY
        with mmap.mmap(-1, BLOCK) as buffer:  # aligned, as direct I/O wants it
            file = self._open(place.path, mode)
            try:
                if write is not None:
                    if not place.made:
                        _ours(file, place.offset + write_at, buffer)
                    buffer[:] = write
                    os.pwritev(file, [buffer], place.offset + write_at)
                if read_at is None:
                    return b""
                count = os.preadv(file, [buffer], place.offset + read_at)
                return bytes(buffer[:count])
            finally:
                os.close(file)

    def _open(self, path: Path, mode: int) -> int:
        try:
            return os.open(path, mode | self._direct | os.O_DSYNC | os.O_CLOEXEC, 0o600)
        except OSError as error:
            if error.errno != errno.EINVAL or not self._direct:
                raise
        self._direct = 0
        log.warning(
            "this datastore's file system has no direct I/O, its cache is believed", datastore=self.name
        )
        return os.open(path, mode | os.O_DSYNC | os.O_CLOEXEC, 0o600)


def _ours(file: int, offset: int, buffer: mmap.mmap) -> None:
    """Raises OSError where a block of a device holds something that is not ours: it is never overwritten."""
    os.preadv(file, [buffer], offset)
    if any(buffer[: len(MAGIC)]) and buffer[: len(MAGIC)] != MAGIC:
        raise OSError(errno.EEXIST, f"the block at {offset} holds something that is not ours")


def slots_of(settings: Settings, host: str | None = None) -> dict[str, SlotFiles]:
    """The slots of each datastore that this host reaches; of all where none is named."""
    found = {}
    for store in settings.datastores if host is None else settings.datastores_of(host):
        members = store.hosts or tuple(entry.name for entry in settings.hosts)
        places = {name: _place(settings, store, name) for name in members}
        mounted = None if store.block else Mounted(store.path, store.mount_point)
        found[store.name] = SlotFiles(store.name, places, settings.heartbeats.slot_timeout_s, mounted)
    return found


def _place(settings: Settings, store: Datastore, host: str) -> Place:
    if not store.block:
        return Place(store.path / f".rekindle-{settings.pool}" / f"{host}.slot")
    number = settings.host(host).slot
    assert number is not None, "the settings see to it"
    return Place(store.path, number * SLOT, made=False)


def is_device(path: Path) -> bool:
    """True where this is a block device."""
    return stat.S_ISBLK(path.stat().st_mode)
