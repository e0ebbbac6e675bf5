"""A kernel is taken out of its wrapping only where it can be entered without it."""

from __future__ import annotations

import gzip
import lzma
import struct

import pytest

from infra.lab.vmlinux import uncompressed

pytestmark = pytest.mark.fast
ENTRY, OTHER = 18, 6


def kernel(note: int) -> bytes:
    """A 64-bit ELF file with one segment of notes; the first of them is somebody else's, with a name to be padded."""
    stranger = struct.pack("<III", 6, 3, ENTRY) + b"Linux\0\0\0" + b"abc\0"
    notes = stranger + struct.pack("<III", 4, 8, note) + b"Xen\0" + bytes(8)
    head = bytearray(64)
    head[:5] = b"\x7fELF\x02"
    struct.pack_into("<Q", head, 32, 64)
    struct.pack_into("<HH", head, 54, 56, 1)
    return bytes(head) + struct.pack("<IIQQQQQQ", 4, 0, 120, 0, 0, len(notes), len(notes), 4) + notes


def wrapped(payload: bytes, size: int) -> bytes:
    """As the kernel's build does it: four sectors of set-up, then code that unpacks, then the payload."""
    whole = payload + struct.pack("<I", size)
    image = bytearray(5 * 512) + b"unpacker" + whole
    image[0x1F1] = 4
    image[0x202:0x206] = b"HdrS"
    struct.pack_into("<II", image, 0x248, len(b"unpacker"), len(whole))
    return bytes(image)


@pytest.mark.parametrize("pack", [lambda data: gzip.compress(data)[:-4], lzma.compress], ids=["gzip", "xz"])
def test_a_kernel_is_unwrapped(pack: object) -> None:
    inside = kernel(ENTRY)
    assert callable(pack)
    assert uncompressed(wrapped(pack(inside), len(inside))) == inside


@pytest.mark.parametrize(
    "image",
    [
        wrapped(lzma.compress(kernel(OTHER)), len(kernel(OTHER))),
        wrapped(lzma.compress(b"no ELF"), 6),
        wrapped(lzma.compress(kernel(ENTRY)), 9),
        wrapped(lzma.compress(kernel(ENTRY))[:40], len(kernel(ENTRY))),
        wrapped(b"\x28\xb5\x2f\xfd" + bytes(60), 60),
        wrapped(b"\x02\x21\x4c\x18" + struct.pack("<I", 9) + bytes(9), 100),
        b"no kernel",
        bytes(9000),
    ],
    ids=["no entry", "no ELF", "wrong size", "cut off", "unknown packing", "damaged", "short", "no header"],
)
def test_what_cannot_be_entered_or_unpacked_stays_as_it_is(image: bytes) -> None:
    assert uncompressed(image) is None
