"""The kernel inside a distribution's bzImage, to be booted as it is (PVH): a guest under TCG would spend a fifth of its
boot on unpacking it."""

import ctypes
import lzma
import struct
import zlib

_LZ4_LEGACY, _LZ4_BLOCK = b"\x02\x21\x4c\x18", 8 << 20
_NOTES, _PHYS32_ENTRY = 4, 18  # PT_NOTE, and the note that says where QEMU enters a kernel without a wrapping


def uncompressed(bzimage: bytes) -> bytes | None:
    """The ELF kernel in a bzImage (Linux, Documentation/arch/x86/boot.rst); None where it is packed in a way that this
    machine cannot unpack, or cannot be entered without its wrapping."""
    try:
        if bzimage[0x202:0x206] != b"HdrS":
            return None
        offset, length = struct.unpack_from("<II", bzimage, 0x248)
        start = (bzimage[0x1F1] + 1) * 512 + offset
        kernel = _unpack(bzimage[start : start + length])
        return kernel if kernel is not None and _enterable(kernel) else None
    except (struct.error, IndexError, OSError, EOFError, lzma.LZMAError, zlib.error):
        return None


def _unpack(payload: bytes) -> bytes | None:
    """What the last four bytes of a payload say is its length once unpacked."""
    (size,) = struct.unpack_from("<I", payload, len(payload) - 4)
    if payload.startswith(b"\x1f\x8b"):
        found = zlib.decompressobj(wbits=31).decompress(payload)
    elif payload.startswith(b"\xfd7zXZ\0"):
        found = lzma.LZMADecompressor().decompress(payload)
    elif payload.startswith(_LZ4_LEGACY):
        found = _lz4(payload[len(_LZ4_LEGACY) :], size)
    else:
        return None
    return found if len(found) == size else None


def _lz4(blocks: bytes, size: int) -> bytes:
    """Legacy frames. The library comes with every Debian and Ubuntu (apt and systemd need it). Raises OSError."""
    library = ctypes.CDLL("liblz4.so.1")
    room = ctypes.create_string_buffer(_LZ4_BLOCK)
    found, at = bytearray(), 0
    while len(found) < size:
        (length,) = struct.unpack_from("<I", blocks, at)
        at += 4
        got = library.LZ4_decompress_safe(blocks[at : at + length], room, length, _LZ4_BLOCK)
        if got <= 0:
            raise OSError("a damaged LZ4 block")
        found += room.raw[:got]
        at += length
    return bytes(found)


def _enterable(kernel: bytes) -> bool:
    """Whether a 64-bit ELF file has the note that says where it is entered (PVH)."""
    if kernel[:5] != b"\x7fELF\x02":
        return False
    (table,) = struct.unpack_from("<Q", kernel, 32)
    size, count = struct.unpack_from("<HH", kernel, 54)
    for index in range(count):
        kind, _, offset, _, _, length = struct.unpack_from("<IIQQQQ", kernel, table + index * size)
        if kind == _NOTES and _noted(kernel[offset : offset + length]):
            return True
    return False


def _noted(notes: bytes) -> bool:
    at = 0
    while at + 12 <= len(notes):
        name_size, value_size, kind = struct.unpack_from("<III", notes, at)
        name = notes[at + 12 : at + 12 + name_size]
        if kind == _PHYS32_ENTRY and name == b"Xen\0":
            return True
        at += 12 + (name_size + 3) // 4 * 4 + (value_size + 3) // 4 * 4
    return False
