"""The keys of the bus's users: nkeys (Ed25519), a file each. The server knows the public halves alone."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from libs.config.yamlfile import BadInputError

SEED, PUBLIC = ".nk", ".pub"


class BadKeyError(BadInputError):
    """A file holds no key, or a user has none. Says which; never what is in it."""


@dataclass(frozen=True, slots=True)
class KeyRing:
    """A directory with `USER.nk` (the secret seed, mode 0600) and `USER.pub` for each user. A seed that was handed to
    whom it belongs may be deleted: the server's configuration needs the public halves."""

    directory: Path

    def seed(self, user: str) -> Path:
        return self.directory / f"{user}{SEED}"

    def users(self) -> list[str]:
        return sorted({path.stem for path in self.directory.glob(f"*{PUBLIC}")})

    def public(self, user: str) -> str:
        """Raises BadKeyError."""
        path = self.directory / f"{user}{PUBLIC}"
        try:
            found = path.read_text().strip()
        except OSError as error:
            raise BadKeyError(f"{path}: cannot be read: {error.strerror}") from error
        if len(found) != 56 or not found.startswith("U") or not found.isalnum():
            raise BadKeyError(f"{path}: is no public key of a user")
        return found

    def make(self, users: Iterable[str]) -> list[str]:
        """A key for each user that has none; returns these. Raises BadInputError."""
        made = [user for user in users if not (self.directory / f"{user}{PUBLIC}").exists()]
        for user in made:
            self.renew(user)
        return made

    def renew(self, user: str) -> None:
        """Another key for a user. Raises BadInputError."""
        from libs.access.nkey import UserKey, new_seed  # what it imports is downtime, and few make keys

        seed = new_seed()
        public = UserKey(seed).public
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_secret(self.seed(user), f"{seed}\n".encode())
            fresh = self.directory / f".{user}{PUBLIC}"
            fresh.write_text(public + "\n")
            fresh.replace(self.directory / f"{user}{PUBLIC}")
        except OSError as error:
            raise BadInputError(f"{self.directory}: {error.filename}: {error.strerror}") from error

    def remove(self, user: str) -> None:
        for suffix in (SEED, PUBLIC):
            (self.directory / f"{user}{suffix}").unlink(missing_ok=True)


def write_secret(path: Path, content: bytes) -> None:
    """Never readable by others, not for a moment; whoever reads meanwhile has the old one or the new one. Raises OSError."""
    fresh = path.with_name(f".{path.name}.new")
    fresh.unlink(missing_ok=True)
    handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(content)
    fresh.replace(path)
