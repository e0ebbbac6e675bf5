"""How a service tells how it is."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, PositiveFloat, model_validator

from libs.config.entries import Section

Port = Annotated[int, Field(ge=1, le=65535)]


class HealthPorts(Section):
    """By service the TCP port of its /healthz; none where none is given."""

    alerting: Port | None = None
    detector: Port | None = None
    executor: Port | None = None
    fencer: Port | None = None
    heartbeat: Port | None = None
    placement: Port | None = None

    @model_validator(mode="after")
    def _each_another(self) -> Self:
        taken: dict[int, str] = {}
        for service, port in self:
            if port is None:
                continue
            if port in taken:
                raise ValueError(f"{taken[port]} and {service} have the same port, {port}")
            taken[port] = service
        return self

    def of(self, service: str) -> int | None:
        """The port of a service; None where it has none."""
        port: int | None = getattr(self, service)
        return port


class HealthSettings(Section):
    """`GET /healthz`, `/readyz` and `/metrics` of each service that has a port."""

    address: str = Field("127.0.0.1", min_length=1, description="IP address or name on which it is answered")
    ports: HealthPorts = HealthPorts()
    token_file: Path | None = Field(
        None, description="who asks must bear this token; needed unless it is answered on loopback alone"
    )
    cert_file: Path | None = Field(None, description="with it it is answered over TLS")
    cert_key_file: Path | None = Field(None, description="its key; a secret")
    lag_max_s: PositiveFloat = Field(1.0, description="a lag of the event loop above it is failing")
    lag_window_s: PositiveFloat = Field(10.0, le=3600, description="for so long after it")
    round_trip_max_s: PositiveFloat = Field(0.5, le=1.0, description="a bus that is further away is degraded")
    leaderless_max_s: PositiveFloat = Field(
        6.0, description="so long without seeing that its role is led is degraded"
    )
    evidence_max_s: PositiveFloat = Field(
        15.0, description="so long without a word of any host is degraded, of a service that hears them"
    )

    @model_validator(mode="after")
    def _not_for_everybody(self) -> Self:
        if (self.cert_file is None) != (self.cert_key_file is None):
            raise ValueError("give both of cert_file and cert_key_file, or neither")
        if self.token_file is None and any(port for _, port in self.ports) and not loopback(self.address):
            raise ValueError(
                f"address {self.address} is reached by others: give token_file, or an address of loopback"
            )
        return self


def loopback(address: str) -> bool:
    """Whether an IP address or a name is this machine's own."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"
