"""NATS' form of Ed25519 keys: base32 of a prefix, the key and its CRC16, as in github.com/nats-io/nkeys.

The library `nkeys` does the same; it and what it stands on come as source alone, and the image builds nothing.
"""

from __future__ import annotations

import base64
import binascii

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

SEED, USER = 18 << 3, 20 << 3
"""Prefixes: S of a seed, U of a user."""
RAW = 32


def new_seed() -> str:
    """The seed of another user's key: a secret."""
    raw = Ed25519PrivateKey.generate().private_bytes_raw()
    head = bytes([SEED | (USER >> 5), (USER & 31) << 3])
    return _encoded(head + raw)


class UserKey:
    """A user's key. Raises ValueError for what is no seed of one."""

    def __init__(self, seed: str) -> None:
        found = _decoded(seed)
        if len(found) != 2 + RAW or found[0] & 0xF8 != SEED or (found[0] & 7) << 5 | found[1] >> 3 != USER:
            raise ValueError("no seed of a user's key")
        self._key = Ed25519PrivateKey.from_private_bytes(found[2:])

    @property
    def public(self) -> str:
        raw = self._key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        return _encoded(bytes([USER]) + raw)

    def sign(self, nonce: str) -> bytes:
        """As the server wants it, in answer to its nonce."""
        return base64.b64encode(self._key.sign(nonce.encode()))


def _encoded(body: bytes) -> str:
    checked = body + binascii.crc_hqx(body, 0).to_bytes(2, "little")
    return base64.b32encode(checked).decode().rstrip("=")


def _decoded(text: str) -> bytes:
    try:
        found = base64.b32decode(text + "=" * (-len(text) % 8))
    except (binascii.Error, ValueError) as error:
        raise ValueError("not base32") from error
    if len(found) < 4 or binascii.crc_hqx(found[:-2], 0).to_bytes(2, "little") != found[-2:]:
        raise ValueError("its checksum is wrong")
    if _encoded(found[:-2]) != text.rstrip("="):  # bits beyond the last byte: nobody wrote it so
        raise ValueError("not base32 as it is written")
    return found[:-2]
