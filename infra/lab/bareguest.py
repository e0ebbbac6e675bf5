"""The guest's third flavour: no operating system, up in 0.2 s of CPU where Linux takes 3 under TCG.

A failover asks nothing of what a guest runs, so a test of one may do without. It is a program of 223 bytes that QEMU
enters as it would a kernel (PVH): it says that it is up, sleeps, and obeys its power button. `CODE` is made of
bareguest.s; tests/unit/test_lab_guest.py assembles that anew and compares.
"""

import base64
import struct

ENTRY = 0x100000
_ROOM = 0x21000  # the program, its interrupt table and its stack
_PHYS32_ENTRY = 18  # XEN_ELFNOTE_PHYS32_ENTRY

CODE = base64.b64decode(
    "+rwAABIADwEVwAAQAOoUABAACAC4EAAAAI7YjsCO0L8AABEAuQABAAC4nQAQAInDJf//AAANAAAIAIHjAAD//4HLAI4AAKuTq5Pi+g8BHcYAEAC+"
    "zAAQAKyEwHQWiMS6/QMAAOyoIHT7uvgDAACI4O7r5boCBgAAuAABAABm7/v0+roABgAAZu32xAF08boEBgAAuAAgAABm7/Tr/VCwIOag5iBYz2aQ"
    "AAAAAAAAAAD//wAAAJrPAP//AAAAks8AFwCoABAA/wcAABEAUkVLSU5ETEUtR1VFU1QtVVAKAA=="
)


def kernel() -> bytes:
    """An ELF file that QEMU's -kernel takes."""
    note = struct.pack("<III4sQ", 4, 8, _PHYS32_ENTRY, b"Xen\0", ENTRY)
    notes_at = 64 + 2 * 56
    code_at = (notes_at + len(note) + 15) // 16 * 16
    head = b"\x7fELF\x02\x01\x01".ljust(16, b"\0") + struct.pack(
        "<HHIQQQIHHHHHH", 2, 62, 1, ENTRY, 64, 0, 0, 64, 56, 2, 0, 0, 0
    )
    load = struct.pack("<IIQQQQQQ", 1, 7, code_at, ENTRY, ENTRY, len(CODE), _ROOM, 16)
    noted = struct.pack("<IIQQQQQQ", 4, 4, notes_at, 0, 0, len(note), len(note), 4)
    return (head + load + noted + note).ljust(code_at, b"\0") + CODE
