"""`rekindle.scenario.v1`: one file, two worlds. The simulator and the lab run the same steps."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from libs.config.entries import Name
from libs.model import GuestFailure, Isolation, Priority, Protection, VmPolicy
from libs.planning.snapshot import PoolPolicy

HOST_STEPS = frozenset(
    [
        "power_off",
        "power_on",
        "reboot",
        "crash",
        "hang",
        "kill_agent",
        "start_agent",
        "remove_host",
        "enter_maintenance",
        "exit_maintenance",
        "readmit",
        "confirm_failed",
        "break_fencing",
        "mend_fencing",
        "step_clock",
    ]
)
VM_STEPS = frozenset(
    [
        "crash_vm",
        "hang_guest",
        "shutdown_guest",
        "destroy_vm",
        "save_vm",
        "fail_start",
        "fail_stop",
        "guest_silent",
        "guest_panic",
        "guest_io_error",
        "protect",
        "unprotect",
    ]
)
SERVICE_STEPS = frozenset(["kill_service", "pause_service", "resume_service"])
STORAGE_STEPS = frozenset(["stall_storage", "restore_storage"])
"""On one host, or everywhere where none is named."""
POOL_STEPS = frozenset(["release_storm"])
"""On the pool as a whole."""
WEATHER_STEPS = frozenset(["delay", "loss"])
"""Of the network, or of what `how` says instead."""
OTHER_STEPS = frozenset(["partition", "heal", "kill_bus", "start_bus", "add_host"])
STEPS = HOST_STEPS | VM_STEPS | STORAGE_STEPS | SERVICE_STEPS | POOL_STEPS | WEATHER_STEPS | OTHER_STEPS
TAKES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(HOST_STEPS, ("host",)),
    **dict.fromkeys(VM_STEPS, ("vm",)),
    **dict.fromkeys(("power_off", "crash", "hang", "reboot"), ("host", "how")),
    "kill_agent": ("host", "count"),
    "break_fencing": ("host", "method", "how"),
    "mend_fencing": ("host", "method"),
    "step_clock": ("host", "seconds"),
    "fail_start": ("vm", "host", "count"),
    "fail_stop": ("vm", "host", "count"),
    "kill_service": ("service", "replica", "count", "seconds"),
    "pause_service": ("service", "replica", "seconds"),
    "resume_service": ("service", "replica"),
    "stall_storage": ("host", "datastore", "how"),
    "restore_storage": ("host", "datastore"),
    "release_storm": (),
    "partition": ("groups", "how"),
    "heal": (),
    "loss": ("how", "percent", "host"),
    "delay": ("how", "percent", "seconds", "host"),
    "kill_bus": ("node",),
    "start_bus": ("node",),
    "add_host": ("host",),
}
"""Which fields each step takes beside `at_s` and `do`; any other would mean nothing."""
WAYS = {
    **dict.fromkeys(("power_off", "crash", "hang"), ("for_good",)),
    "reboot": ("fast", "for_good"),
}
"""Of `how`, where the worlds do not differ. `for_good`: a random world's end does not mend it."""
SERVICES = ("heartbeat", "detector", "fencer", "placement", "executor", "alerting")


class Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FencingEntry(Part):
    method: Literal["power", "watchdog"]
    level: int = Field(1, ge=1, le=9)
    timeout_s: PositiveFloat | None = None


class ScenarioHost(Part):
    name: Name
    memory_mib: PositiveInt = 4096
    cpus: PositiveInt = 4
    memory_reserved_mib: int = Field(0, ge=0)
    labels: dict[str, str] = {}
    fencing: tuple[FencingEntry, ...] = (FencingEntry(method="power", level=1),)


class ScenarioDatastore(Part):
    name: Name
    hosts: tuple[str, ...] | None = Field(None, description="the hosts that have it; all where none is named")


class ScenarioVm(Part):
    name: Name
    host: str
    datastore: str | None = Field(
        None, description="where its disk lies; on storage that never stalls where absent"
    )
    memory_mib: int = Field(128, ge=1)
    vcpus: PositiveInt = 1
    protection: Protection = Protection.RESTART
    priority: Priority = Priority.MEDIUM
    order: int = Field(0, ge=0)
    isolation: Isolation = Isolation.LEAVE
    on_guest_failure: GuestFailure = GuestFailure.RESTART
    agent: bool = Field(False, description="its guest runs a guest agent")
    autostart: bool = Field(False, description="its host starts it at boot, as libvirt's autostart does")

    @property
    def policy(self) -> VmPolicy:
        """As it stands in the VM's own metadata."""
        return VmPolicy(
            protection=self.protection,
            priority=self.priority,
            order=self.order,
            isolation=self.isolation,
            on_guest_failure=self.on_guest_failure,
        )


def _known_step(value: str) -> str:
    if value not in STEPS:
        raise ValueError(f"{value!r} is no step; there are {', '.join(sorted(STEPS))}")
    return value


def _whole_host(value: Any) -> None:
    if not isinstance(value, dict):
        raise ValueError(  # noqa: TRY004  pydantic tells a ValueError with its place in the file
            "host: add_host takes a whole host entry, such as {name: h4, memory_mib: 4096, cpus: 4}"
        )
    try:
        ScenarioHost.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(step) for step in ("host", *first["loc"]))
        raise ValueError(f"{where}: {first['msg']}") from error


class StepEntry(Part):
    """One step. Which fields it takes follows from `do`."""

    at_s: float = Field(ge=0)
    do: Annotated[str, AfterValidator(_known_step)]
    host: Any = None
    vm: str | None = None
    datastore: str | None = Field(None, description="of stall_storage and restore_storage; all where absent")
    service: (
        Literal["heartbeat", "detector", "fencer", "placement", "executor", "alerting", "plane"] | None
    ) = None
    replica: int = Field(0, ge=0)
    node: int = Field(0, ge=0)
    groups: tuple[tuple[str, ...], ...] | None = None
    method: Literal["power", "watchdog"] | None = None
    how: str | None = None
    count: PositiveInt | None = None
    seconds: float | None = None
    percent: float | None = Field(None, ge=0, le=100)

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.host is None and (self.do in HOST_STEPS or self.do == "add_host"):
            raise ValueError(f"{self.do} needs a host")
        if self.do == "add_host":
            _whole_host(self.host)
        elif self.host is not None and not isinstance(self.host, str):
            raise ValueError(f"host: {self.do} takes the name of a host")
        if self.do in VM_STEPS and self.vm is None:
            raise ValueError(f"{self.do} needs a vm")
        if self.do in SERVICE_STEPS and self.service is None:
            raise ValueError(f"{self.do} needs a service")
        if self.do == "partition" and (self.groups is None or len(self.groups) < 2):
            raise ValueError("partition needs at least two groups")
        return self

    @property
    def subject(self) -> str:
        """What the step is done to, for people."""
        if self.do in STORAGE_STEPS and self.host is None:
            return "everywhere"
        if self.do in POOL_STEPS:
            return "the pool"
        if self.do == "add_host":
            return str(self.host["name"])
        if self.do == "partition":
            between = " > " if self.how == "one_way" else " | "
            return between.join("+".join(group) for group in self.groups or ())
        if self.do == "heal":
            return "everywhere"
        if self.do in WEATHER_STEPS:
            return " of ".join(filter(None, (self.how or "network", self.host)))
        return str(self.vm or self.service or self.host or self.node)


EXPECTED = {
    "event": ("subject", "by_s"),
    "never": ("subject",),
    "vm": ("state", "host", "host_not", "by_s"),
    "host": ("state", "fenced"),
}
"""What an expectation can be about, and what can be expected of that."""
VM_STATES = ("running", "stopped", "waiting")


class Expectation(Part):
    """One thing that must be true: of a VM or a host in the end (or from `by_s` on), or of an event."""

    vm: str | None = None
    state: str | None = None
    host: str | None = None
    host_not: str | None = None
    fenced: bool | None = None
    event: str | None = None
    never: str | None = None
    subject: str | None = None
    by_s: float | None = Field(None, ge=0)

    @model_validator(mode="after")
    def _meaningful(self) -> Self:
        about = self.about
        if about is None:
            raise ValueError("an expectation is about a vm, a host, an event or a never")
        for field in sorted(self.model_fields_set - {about, *EXPECTED[about]}):
            if getattr(self, field) is not None:
                raise ValueError(f"{field}: means nothing beside {about}")
        if about in ("vm", "host") and all(getattr(self, field) is None for field in EXPECTED[about]):
            raise ValueError(f"nothing is expected of the {about}: {', '.join(EXPECTED[about])}")
        return self

    @property
    def about(self) -> str | None:
        """Which of its fields names what this is about."""
        return next((field for field in EXPECTED if getattr(self, field) is not None), None)


class Management(Part):
    replicas: PositiveInt = 1


class Scenario(Part):
    """The whole file."""

    format: Literal["rekindle.scenario.v1"] = Field(alias="schema")
    name: str = Field(min_length=1)
    duration_s: PositiveFloat = 120.0
    seed: int = 0
    healed: bool = Field(
        False,
        description="the last step healed the world, so all must come right by the end; the lab takes no notice",
    )
    policy: PoolPolicy = PoolPolicy()
    settings: dict[str, Any] = Field({}, description="parts of the pool file, for this run")
    management: Management = Management()
    hosts: tuple[ScenarioHost, ...] = Field(min_length=1)
    datastores: tuple[ScenarioDatastore, ...] = ()
    vms: tuple[ScenarioVm, ...] = ()
    steps: tuple[StepEntry, ...] = ()
    expect: tuple[Expectation, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        hosts = [host.name for host in self.hosts]
        added = [step.host["name"] for step in self.steps if step.do == "add_host"]
        vms = [vm.name for vm in self.vms]
        datastores = [one.name for one in self.datastores]
        for kind, names in (("hosts", hosts + added), ("vms", vms), ("datastores", datastores)):
            twice = [name for name in names if names.count(name) > 1]
            if twice:
                raise ValueError(f"{kind}: {twice[0]} is given twice")
        for vm in self.vms:
            if vm.host not in hosts:
                raise ValueError(f"vms: {vm.name}: there is no host {vm.host}")
        return self
