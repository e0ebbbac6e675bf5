"""Where the bus is, and as whom a process comes to it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from libs.config.entries import Section


class BusSettings(Section):
    """Where NATS is. Without url an embedded server is started."""

    url: str | None = Field(None, description="nats://[token@]host:port, several separated by commas")
    url_file: Path | None = Field(None, description="the same in a file, as it holds a secret")
    system_url_file: Path | None = Field(
        None,
        description="a user of an outside server's system account: to hear at once whose connection ended",
    )
    key_file: Path | None = Field(
        None, description="key of this process's user on the bus (`rekindle bus keys`); a secret"
    )
    system_key_file: Path | None = Field(None, description="the same for the user of the system account")
    ca_file: Path | None = Field(
        None, description="certificates by which the bus is known; nothing is said to it without TLS then"
    )
    cert_file: Path | None = Field(
        None, description="this process's own certificate, where the bus asks for one"
    )
    cert_key_file: Path | None = Field(None, description="its key; a secret")
    listen: str = Field("127.0.0.1", description="address of the embedded server")
    port: int = Field(0, ge=0, le=65535, description="0: a free one, chosen once")
    names: tuple[str, ...] = Field(
        (), description="host names and addresses beside listen by which others reach the embedded server"
    )
    tls: bool = Field(
        True,
        description="the embedded server encrypts unless it listens on loopback; false: only to upgrade its agents",
    )
    replicas: Literal[1, 3, 5] = 1

    @field_validator("listen")
    @classmethod
    def _an_address(cls, value: str) -> str:
        if not value or ":" in value or "/" in value:
            raise ValueError(f"{value!r} is no IPv4 address or name of this machine; its port is bus.port")
        return value

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if self.url is not None and self.url_file is not None:
            raise ValueError("give either url or url_file: both say where the bus is")
        if self.url is None and self.url_file is None and self.replicas > 1:
            raise ValueError(
                f"replicas is {self.replicas}, and the embedded server is one: give url or url_file of a cluster"
            )
        if (self.cert_file is None) != (self.cert_key_file is None):
            raise ValueError("give both of cert_file and cert_key_file, or neither")
        if self.cert_file is not None and self.ca_file is None:
            raise ValueError("cert_file needs ca_file: without it nothing is encrypted")
        return self
