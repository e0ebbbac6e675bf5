"""The one settings tree: a pool file (YAML) and, over it, environment variables.

`REKINDLE_DETECTION__SUSPECT_AFTER_S=2` overrides `detection.suspect_after_s`. Every duration is in seconds
and says so in its name; every size is in MiB. Relations between settings are checked here, once.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import (
    Field,
    PositiveFloat,
    ValidationError,
    model_validator,
)

from libs.access.keys import KeyRing
from libs.access.login import Login
from libs.access.rights import NOTICES
from libs.config import relations
from libs.config.alerts import Alerts
from libs.config.bus import BusSettings
from libs.config.entries import Datastore, HostEntry, Name, Section
from libs.config.environment import blamed, read_environment
from libs.config.health import HealthSettings
from libs.config.standby import Standby
from libs.config.yamlfile import BadInputError, load
from libs.model import VmPolicy


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
    watchdog_margin_s: float = Field(
        2.0, ge=1.0, description="beyond the bound that a host promises, before it is presumed fenced by it"
    )
    level_deadline_s: PositiveFloat | None = Field(
        None, description="for one level; without it what its calls may take, see docs/OPERATING.md"
    )
    next_level_after_s: float | None = Field(
        10.0, ge=0, description="a level without a proof goes on beside the next; null: one after the other"
    )
    alert_after_s: PositiveFloat = Field(
        45.0, le=60.0, description="after the verdict, an alert names what is missing, attempt over or not"
    )
    drill_every_s: float = Field(
        300.0, ge=0, description="each fence device's power status is read so often; 0: never"
    )
    parallel_max: int = Field(
        16, ge=1, le=1000, description="calls of fence agents at once, in the fencer and in the detector each"
    )


class Restart(Section):
    parallel_per_host: int = Field(
        8,
        ge=1,
        description="starts at once of one host, at most: how many it is depends on how long they take",
    )
    parallel_per_datastore: int = Field(16, ge=1, description="and on one datastore, at most")
    parallel: int = Field(32, ge=1, description="and in all")
    start_timeout_s: PositiveFloat = 30.0
    parallel_moves: int = Field(4, ge=1, description="live migrations that make room, at once in all")
    parallel_moves_per_host: int = Field(2, ge=1, description="and of one host, coming and going")
    move_timeout_s: PositiveFloat = Field(120.0, description="a live migration is given up after so long")
    retry_first_s: PositiveFloat = 1.0
    retry_max_s: PositiveFloat = 60.0
    crash_budget: int = Field(3, ge=0, description="restarts in place of one VM within crash_window_s")
    crash_window_s: PositiveFloat = 3600.0


class PlacementSettings(Section):
    failures_to_tolerate: int = Field(
        1,
        ge=0,
        le=16,
        description="hosts that may be lost with room for every `restart` VM; 0: not watched, and no plan kept ready",
    )
    cpu_overcommit: PositiveFloat = Field(4.0, le=64, description="vCPUs for each CPU of a host")
    memory_overcommit: PositiveFloat = Field(1.0, le=4)
    migrations: bool = Field(True, description="healthy VMs may be moved while they run, to make room")
    preemption: bool = Field(
        False, description="VMs that matter less may be stopped to make room for `restart` VMs"
    )


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
    placement: PlacementSettings = PlacementSettings()
    standby: Standby | None = None
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
        relations.check(self)
        return self

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

    @property
    def embedded(self) -> bool:
        """The bus is the server that `rekindle up` runs."""
        return self.bus.url is None and self.bus.url_file is None

    def login(self, user: str) -> Login:
        """As whom a process comes to the bus that is this user there. Of an embedded server the keys lie in its
        directory, where it has run once with this version."""
        bus = self.bus
        key, ca = bus.key_file, bus.ca_file
        if key is None and self.embedded:
            key = _there(KeyRing(self.nats_directory() / "keys").seed(user))
        if ca is None and self.embedded:
            ca = _there(self.nats_directory() / "tls" / "ca.pem") if self._encrypted() else None
        return Login(user, key, ca, bus.cert_file, bus.cert_key_file)

    def _encrypted(self) -> bool:
        """The embedded server's own word in the address that it left."""
        try:
            return (self.nats_directory() / "url").read_text().startswith("tls://")
        except OSError:
            return False

    def system_login(self) -> Login:
        """The same for the user of the system account."""
        found = self.login(NOTICES)
        return found if self.embedded else replace(found, key=self.bus.system_key_file)

    def system_servers(self) -> list[str]:
        """Addresses of the bus for a user of its system account; none where there is no such user."""
        path = self.bus.system_url_file or (self.nats_directory() / "system_url" if self.embedded else None)
        if path is None:
            return [] if self.bus.system_key_file is None else self.servers()
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


def _there(path: Path) -> Path | None:
    """None where it is not, or where that cannot be seen."""
    try:
        return path if path.exists() else None
    except OSError:
        return None


def load_settings(path: Path) -> Settings:
    """Read the pool file. Raises BadInputError."""
    tree, variables = read_environment(os.environ, Settings.model_fields)
    try:
        return load(path, Settings, tree)
    except BadInputError as error:
        if not variables or not isinstance(error.__cause__, ValidationError):
            raise
        raise BadInputError(blamed(str(error), error.__cause__, variables)) from error
