"""As whom a process comes to the bus, and by what it knows the server. Files are read anew at each connection, so that
keys and certificates can be replaced while it runs."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from libs.access.subjects import AGENT_API, API, inbox
from libs.config.yamlfile import BadInputError

if TYPE_CHECKING:
    from libs.access.nkey import UserKey

AGENT = "agent-"


@dataclass(frozen=True, slots=True)
class Login:
    """One user of the bus. Without a `key` the address holds a password, or nothing."""

    user: str = ""
    key: Path | None = None
    """The file of its seed."""
    ca: Path | None = None
    """Certificates by which the server is known; with it nothing is said before the connection is encrypted."""
    certificate: Path | None = None
    """Its own, with `certificate_key`, where the server asks for one."""
    certificate_key: Path | None = None

    @property
    def prefix(self) -> str:
        """Of JetStream's calls."""
        return AGENT_API if self.key is not None and self.user.startswith(AGENT) else API

    @property
    def inbox(self) -> str:
        """Where replies come; "" where any place would do."""
        return "" if self.key is None else inbox(self.user)

    def user_key(self) -> UserKey:
        """As the file is now. Raises BadInputError."""
        from libs.access.nkey import UserKey  # what it imports is downtime of who has none

        assert self.key is not None
        try:
            found = self.key.read_text().strip()
        except OSError as error:
            raise BadInputError(
                f"{self.key}: the key of the bus's user cannot be read: {error.strerror}"
            ) from error
        try:
            return UserKey(found)
        except ValueError as error:
            raise BadInputError(f"{self.key}: holds no key of a user of the bus: {error}") from error

    def tls(self) -> ssl.SSLContext | None:
        """As the files are now. None without a CA. Raises BadInputError."""
        if self.ca is None:
            return None
        path = self.ca
        try:
            context = ssl.create_default_context(cafile=str(path))
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            if self.certificate is not None:
                path = self.certificate
                context.load_cert_chain(self.certificate, self.certificate_key)
        except (OSError, ssl.SSLError) as error:
            raise BadInputError(f"{path}: cannot be used for TLS: {error}") from error
        return context


NOBODY = Login()
