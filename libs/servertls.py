"""The certificate that a server of ours shows: read anew when its file is replaced, so that nobody starts again for it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

if TYPE_CHECKING:  # what it imports is downtime of who needs none of it
    import ssl

LOOK_S = 1.0
log = structlog.get_logger()


@dataclass(slots=True)
class ServerTls:
    """A certificate and its key. `context` is for the server, and stays the same."""

    certificate: Path
    key: Path | None
    context: ssl.SSLContext | None = field(init=False, default=None)
    _written: tuple[int, int] | None = field(init=False, default=None)
    """When certificate and key were written that are shown, in nanoseconds."""

    def look(self) -> None:
        """Connections that begin from now on are shown what lies there. Raises OSError where that is no pair that can be
        used: then what was shown is shown on."""
        found = (self.certificate.stat().st_mtime_ns, (self.key or self.certificate).stat().st_mtime_ns)
        if found == self._written:
            return
        # a half of a pair, while it is being replaced, would leave a context that is in use without a key
        fresh = _context(self.certificate, self.key)
        if self.context is None:
            self.context = fresh
        else:
            self.context.load_cert_chain(self.certificate, self.key)
        self._written = found

    async def follow(self) -> None:
        """Look each second, for ever; why what lies there cannot be used is logged once."""
        said = ""
        while True:
            await asyncio.sleep(LOOK_S)
            before, reason = self._written, ""
            try:
                self.look()
            except OSError as error:
                reason = str(error)
            if reason not in ("", said):
                log.warning("certificate not taken over", file=str(self.certificate), reason=reason)
            elif self._written != before:
                log.info("certificate taken over", file=str(self.certificate))
            said = reason


def _context(certificate: Path, key: Path | None) -> ssl.SSLContext:
    """For TLS 1.2 and newer. Raises OSError, of which ssl.SSLError is one."""
    import ssl

    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    made.load_cert_chain(certificate, key)
    return made
