"""What is answered over HTTP to other machines, and by which certificate."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from libs.config.entries import Section
from libs.config.health import loopback
from libs.config.yamlfile import BadInputError
from libs.servertls import ServerTls


class HttpServer(Section):
    """TLS of alerting's own HTTP endpoint: answers to scale-out requests, and what other systems tell."""

    cert_file: Path | None = Field(None, description="with it it is answered over TLS")
    cert_key_file: Path | None = Field(None, description="its key; a secret")
    in_the_clear: bool = Field(
        False, description="others may reach it without TLS; where a proxy before it encrypts"
    )

    @model_validator(mode="after")
    def _both(self) -> Self:
        if (self.cert_file is None) != (self.cert_key_file is None):
            raise ValueError("give both of cert_file and cert_key_file, or neither")
        if self.cert_file is not None and self.in_the_clear:
            raise ValueError("cert_file is given, so it is not in_the_clear: give one of them")
        return self

    def fit(self, listen: str, where: str) -> None:
        """Raises ValueError where it would be answered in the clear to others, and nobody said so."""
        host = listen.rpartition(":")[0]
        if self.cert_file is None and not self.in_the_clear and not loopback(host):
            raise ValueError(
                f"{where}: {listen} is reached by others, who would read tokens and answers on the way: give "
                "alerts.http.cert_file and cert_key_file (`rekindle pki issue`), an address of loopback, or "
                "alerts.http.in_the_clear where a proxy before it encrypts"
            )

    def tls(self, where: str) -> ServerTls | None:
        """As the files are now; None where it is answered in the clear. Raises BadInputError where they are no pair that can
        be used."""
        if self.cert_file is None:
            return None
        found = ServerTls(self.cert_file, self.cert_key_file)
        try:
            found.look()
        except OSError as error:
            raise BadInputError(f"{where}.cert_file: {self.cert_file}: cannot be used: {error}") from error
        return found
