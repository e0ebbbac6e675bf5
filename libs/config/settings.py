"""The one settings tree: a pool file (YAML) and, over it, environment variables.

`REKINDLE_DETECTION__SUSPECT_AFTER_S=2` overrides `detection.suspect_after_s`. Every duration is in seconds
and says so in its name; every size is in MiB. Relations between settings are checked here, once.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    PositiveFloat,
    ValidationError,
    model_validator,
)

from libs.config.entries import Datastore, HostEntry, Name, Section
from libs.config.environment import blamed, read_environment
from libs.config.yamlfile import BadInputError, load
from libs.model import VmPolicy


class BusSettings(Section):
    """Where NATS is. Without url an embedded server is started."""

    url: str | None = Field(None, description="nats://[token@]host:port, several separated by commas")
    url_file: Path | None = Field(None, description="the same in a file, as it holds a secret")
    system_url_file: Path | None = Field(
        None,
        description="a user of an outside server's system account: to hear at once whose connection ended",
    )
    listen: str = Field("127.0.0.1", description="address of the embedded server")
    port: int = Field(0, ge=0, le=65535, description="0: a free one, chosen once")
    replicas: Literal[1, 3, 5] = 1

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if self.url is not None and self.url_file is not None:
            raise ValueError("give either url or url_file: both say where the bus is")
        if self.url is None and self.url_file is None and self.replicas > 1:
            raise ValueError(
                f"replicas is {self.replicas}, and the embedded server is one: give url or url_file of a cluster"
            )
        return self


class Heartbeats(Section):
    interval_s: PositiveFloat = 0.5
    inventory_every_s: PositiveFloat = Field(5.0, description="a full inventory at least this often")
    slot_interval_s: PositiveFloat = Field(0.5, description="between two writes of a host's storage slots")
    slot_timeout_s: PositiveFloat = Field(2.0, description="a datastore that takes longer stalls")


class Detection(Section):
    """From silence to verdict. See docs/DETECTION.md for the formula and the cost of both directions of each."""

    suspect_after_s: PositiveFloat = Field(1.5, description="silence that starts questions; only asks")
    ask_every_s: PositiveFloat = 1.0
    ask_timeout_s: PositiveFloat = 0.9
    votes_min: int = Field(2, ge=1, description="peers that must say that they cannot see the suspect")
    domain_label: str = Field("rack", description="hosts with the same value of this label fail together")
    confirm_witnessed_s: PositiveFloat = Field(2.5, description="silence on all channels, with enough votes")
    confirm_silence_s: PositiveFloat = Field(8.0, description="the same without enough votes")
    confirm_hung_s: PositiveFloat = Field(
        30.0, description="the same while its kernel still answers; no less than confirm_silence_s"
    )
    quiet_after_start_s: float = Field(60.0, ge=0, description="after a start, for hosts not heard since")
    deaf_period_s: PositiveFloat = Field(2.0, description="no verdict for so long after we were deaf")
    kdump_listen: str | None = Field(
        None,
        pattern=r"^[^\s:]+:\d{1,5}$",
        description="host:port on which fence_kdump_send of the hosts' crash kernels is heard, such as 0.0.0.0:7410",
    )
    storm_settle_s: float = Field(
        1.0, ge=0, description="no verdict by witnesses for so long after another host fell silent"
    )
    datastore_lost_s: PositiveFloat = Field(
        15.0, description="without a write, until a datastore is lost on a host, or has failed for all"
    )
    failures_max: int = Field(3, ge=1, description="verdicts within failures_window_s that quarantine a host")
    failures_window_s: PositiveFloat = 3600.0
    quarantine_s: PositiveFloat = Field(
        86400.0, description="without a failure, until it is let in by itself"
    )

    @property
    def hung_s(self) -> float:
        """confirm_hung_s as it holds: where a kernel answers there is more doubt than in silence, never less."""
        return max(self.confirm_hung_s, self.confirm_silence_s)


class Guests(Section):
    """How guests are watched, and what it means when all of a host fail at once."""

    ping_every_s: PositiveFloat = Field(
        5.0, description="each guest agent that is connected is asked so often"
    )
    silent_after_s: PositiveFloat = Field(30.0, description="without an answer, after it has answered once")
    grey: Literal["alert", "drain"] = Field(
        "alert", description="what is done about a host of failing guests"
    )
    grey_min: int = Field(2, ge=2, description="guests of known health that must all be failing")


class FencingSettings(Section):
    status_spacing_s: float = Field(0.5, gt=0, description="between the two readings of off")
    retry_first_s: PositiveFloat = 1.0
    retry_max_s: PositiveFloat = 30.0
    parallel_max: int = Field(
        16, ge=1, le=1000, description="calls of fence agents at once, in the fencer and in the detector each"
    )


class Restart(Section):
    parallel_per_host: int = Field(4, ge=1)
    parallel: int = Field(16, ge=1)
    start_timeout_s: PositiveFloat = 30.0
    retry_first_s: PositiveFloat = 1.0
    retry_max_s: PositiveFloat = 60.0
    crash_budget: int = Field(3, ge=0, description="restarts in place of one VM within crash_window_s")
    crash_window_s: PositiveFloat = 3600.0


class Alerts(Section):
    webhook_url: str | None = Field(None, pattern=r"^https?://.+")
    webhook_timeout_s: PositiveFloat = 5.0


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
    """`GET /healthz` of each service that has a port."""

    address: str = Field("127.0.0.1", min_length=1, description="IP address or name on which it is answered")
    ports: HealthPorts = HealthPorts()
    lag_max_s: PositiveFloat = Field(1.0, description="a lag of the event loop above it is failing")
    lag_window_s: PositiveFloat = Field(10.0, le=3600, description="for so long after it")


class Logging(Section):
    level: Literal["debug", "info", "warning", "error"] = "info"
    form: Literal["auto", "json", "text"] = "auto"


PROFILES: dict[str, dict[str, dict[str, float]]] = {
    "fast": {
        "heartbeats": {"interval_s": 0.25, "slot_interval_s": 0.25},
        "detection": {
            "suspect_after_s": 0.8,
            "ask_every_s": 0.6,
            "ask_timeout_s": 0.5,
            "confirm_witnessed_s": 1.5,
            "confirm_silence_s": 5.0,
            "confirm_hung_s": 20.0,
            "datastore_lost_s": 8.0,
        },
        "fencing": {"status_spacing_s": 0.3},
    },
    "balanced": {},
    "careful": {
        "heartbeats": {"interval_s": 1.0, "slot_interval_s": 1.0},
        "detection": {
            "suspect_after_s": 4.0,
            "ask_every_s": 1.5,
            "ask_timeout_s": 1.4,
            "confirm_witnessed_s": 6.0,
            "confirm_silence_s": 16.0,
            "confirm_hung_s": 60.0,
            "deaf_period_s": 4.0,
            "datastore_lost_s": 30.0,
        },
        "fencing": {"status_spacing_s": 1.0},
    },
}
"""What a profile sets where the pool file does not: `balanced` is the defaults as they stand in the sections."""


class Settings(Section):
    """Everything about one pool."""

    pool: Name = "pool"
    profile: Literal["fast", "balanced", "careful"] = Field(
        "balanced", description="how fast a silent host is judged: sets heartbeats, detection, fencing"
    )
    data_dir: Path = Path("/var/lib/rekindle")
    hosts: tuple[HostEntry, ...] = Field(min_length=1)
    datastores: tuple[Datastore, ...] = ()
    bus: BusSettings = BusSettings()
    heartbeats: Heartbeats = Heartbeats()
    detection: Detection = Detection()
    guests: Guests = Guests()
    fencing: FencingSettings = FencingSettings()
    restart: Restart = Restart()
    vm_defaults: VmPolicy = VmPolicy()
    alerts: Alerts = Alerts()
    health: HealthSettings = HealthSettings()
    logging: Logging = Logging()

    @model_validator(mode="before")
    @classmethod
    def _profile(cls, data: Any) -> Any:
        """Lay the profile's values below what the file says itself."""
        values = PROFILES.get(data.get("profile", "balanced")) if isinstance(data, dict) else None
        for section, below in (values or {}).items():
            given = data.get(section)
            if given is None or isinstance(given, dict):
                data = {**data, section: {**below, **(given or {})}}
        return data

    @model_validator(mode="after")
    def _relations(self) -> Self:
        names = [host.name for host in self.hosts]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"hosts: two hosts are called {name}")
        self._datastores_fit(names)
        beat, detect = self.heartbeats.interval_s, self.detection
        if detect.suspect_after_s < 3 * beat:
            raise ValueError(
                f"detection.suspect_after_s ({detect.suspect_after_s} s) is shorter than three heartbeats "
                f"(3 x heartbeats.interval_s = {3 * beat} s): one lost packet would be a suspicion"
            )
        if detect.confirm_silence_s < detect.confirm_witnessed_s:
            raise ValueError(
                f"detection.confirm_silence_s ({detect.confirm_silence_s} s) is shorter than "
                f"confirm_witnessed_s ({detect.confirm_witnessed_s} s): less evidence must wait longer"
            )
        if detect.confirm_witnessed_s < detect.ask_timeout_s:
            raise ValueError(
                f"detection.confirm_witnessed_s ({detect.confirm_witnessed_s} s) is shorter than "
                f"ask_timeout_s ({detect.ask_timeout_s} s): nobody could answer in time"
            )
        if detect.ask_every_s < detect.ask_timeout_s:
            raise ValueError(
                f"detection.ask_timeout_s ({detect.ask_timeout_s} s) is longer than ask_every_s "
                f"({detect.ask_every_s} s): the next question would come before the answer to this one"
            )
        for name, first_s, max_s in (
            ("fencing", self.fencing.retry_first_s, self.fencing.retry_max_s),
            ("restart", self.restart.retry_first_s, self.restart.retry_max_s),
        ):
            if first_s > max_s:
                raise ValueError(
                    f"{name}.retry_first_s ({first_s} s) is longer than retry_max_s ({max_s} s): waits grow from "
                    "the one to the other"
                )
        slot = self.heartbeats.slot_interval_s
        if self.datastores and detect.confirm_witnessed_s < 2 * slot:
            raise ValueError(
                f"detection.confirm_witnessed_s ({detect.confirm_witnessed_s} s) is shorter than two writes of a "
                f"storage slot (2 x heartbeats.slot_interval_s = {2 * slot} s): none could be seen to stand still"
            )
        write_s = slot + self.heartbeats.slot_timeout_s
        if self.datastores and detect.datastore_lost_s < 3 * write_s:
            raise ValueError(
                f"detection.datastore_lost_s ({detect.datastore_lost_s} s) is shorter than three slow writes of a "
                f"slot (3 x (heartbeats.slot_interval_s + slot_timeout_s) = {3 * write_s:g} s): a datastore that "
                "stalls for a moment would be lost"
            )
        if self.guests.silent_after_s < 3 * self.guests.ping_every_s:
            raise ValueError(
                f"guests.silent_after_s ({self.guests.silent_after_s} s) is shorter than three pings "
                f"(3 x guests.ping_every_s = {3 * self.guests.ping_every_s} s): a guest that is busy for a "
                "moment would be restarted"
            )
        return self

    def _datastores_fit(self, hosts: list[str]) -> None:
        stores = [store.name for store in self.datastores]
        for index, store in enumerate(self.datastores):
            where = f"datastores.{index}"
            if stores.count(store.name) > 1:
                raise ValueError(f"{where}: two datastores are called {store.name}")
            for host in store.hosts or ():
                if host not in hosts:
                    raise ValueError(f"{where}.hosts: no host is called {host}")
            if not store.block:
                continue
            places = [self.host(host).slot for host in store.hosts or hosts]
            if None in places or len(set(places)) < len(places):
                raise ValueError(
                    f"{where}: on a block device each host needs a place of its own: hosts.N.slot, each another"
                )

    def host(self, name: str) -> HostEntry:
        """The entry of one host. Raises BadInputError where the pool has none of this name."""
        for host in self.hosts:
            if host.name == name:
                return host
        raise BadInputError(
            f"hosts: no host is called {name}; there are {', '.join(h.name for h in self.hosts)}"
        )

    def datastores_of(self, host: str) -> tuple[Datastore, ...]:
        """The datastores that a host has."""
        return tuple(one for one in self.datastores if one.hosts is None or host in one.hosts)

    def nats_directory(self) -> Path:
        return self.data_dir / "nats"

    def system_servers(self) -> list[str]:
        """Addresses of the bus for a user of its system account; none where there is no such user."""
        outside = self.bus.url is not None or self.bus.url_file is not None
        path = self.bus.system_url_file or (None if outside else self.nats_directory() / "system_url")
        if path is None:
            return []
        try:
            return [part.strip() for part in path.read_text().split(",")]
        except OSError as error:
            raise BadInputError(f"bus.system_url_file: {path}: cannot be read: {error.strerror}") from error

    def servers(self) -> list[str]:
        """Addresses of the bus. Raises BadInputError where the embedded server has never been started."""
        if self.bus.url is not None:
            return [part.strip() for part in self.bus.url.split(",")]
        path = self.bus.url_file or self.nats_directory() / "url"
        try:
            return [part.strip() for part in path.read_text().split(",")]
        except OSError as error:
            raise BadInputError(
                f"{path}: the address of the bus cannot be read ({error.strerror}): is `rekindle up` running, "
                "with the same pool file and as this user?"
            ) from error


def load_settings(path: Path) -> Settings:
    """Read the pool file. Raises BadInputError."""
    tree, variables = read_environment(os.environ, Settings.model_fields)
    try:
        return load(path, Settings, tree)
    except BadInputError as error:
        if not variables or not isinstance(error.__cause__, ValidationError):
            raise
        raise BadInputError(blamed(str(error), error.__cause__, variables)) from error
