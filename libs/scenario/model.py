"""`rekindle.scenario.v1`: one file, two worlds. The simulator and the lab run the same steps."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, PositiveFloat, PositiveInt, ValidationError, model_validator

from libs.planning.snapshot import PoolPolicy
from libs.scenario.pool import Part, ScenarioDatastore, ScenarioHost, ScenarioVm
from libs.scenario.workflow import Workflow

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
        "fence_test",
        "confirm_absent",
        "break_fencing",
        "mend_fencing",
        "hang_libvirt",
        "resume_libvirt",
    ]
)
VM_STEPS = frozenset(
    [
        "crash_vm",
        "hang_guest",
        "shutdown_guest",
        "destroy_vm",
        "start_vm",
        "save_vm",
        "start_copy",
        "migrate_vm",
        "fail_start",
        "fail_stop",
        "guest_silent",
        "guest_panic",
        "guest_io_error",
        "guest_watchdog",
        "protect",
        "unprotect",
    ]
)
SERVICE_STEPS = frozenset(["kill_service", "pause_service", "resume_service"])
STORAGE_STEPS = frozenset(["stall_storage", "restore_storage"])
"""On one host, or everywhere where none is named."""
POOL_STEPS = frozenset(["release_storm", "restore_state"])
"""On the pool as a whole."""
WEATHER_STEPS = frozenset(["delay", "loss"])
"""Of the network, or of what `how` says instead."""
OTHER_STEPS = frozenset(["partition", "heal", "kill_bus", "start_bus", "add_host", "step_clock"])
STEPS = HOST_STEPS | VM_STEPS | STORAGE_STEPS | SERVICE_STEPS | POOL_STEPS | WEATHER_STEPS | OTHER_STEPS
TAKES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(HOST_STEPS, ("host",)),
    **dict.fromkeys(VM_STEPS, ("vm",)),
    **dict.fromkeys(("power_off", "crash", "hang", "reboot"), ("host", "how")),
    "fence_test": ("host", "how"),
    "enter_maintenance": ("host", "how"),
    "kill_agent": ("host", "count"),
    "break_fencing": ("host", "method", "how"),
    "mend_fencing": ("host", "method"),
    "step_clock": ("host", "service", "replica", "seconds"),
    "start_vm": ("vm", "host"),
    "start_copy": ("vm", "host"),
    "migrate_vm": ("vm", "host", "seconds", "how"),
    "fail_start": ("vm", "host", "count"),
    "fail_stop": ("vm", "host", "count"),
    "kill_service": ("service", "replica", "count", "seconds"),
    "pause_service": ("service", "replica", "seconds"),
    "resume_service": ("service", "replica"),
    "stall_storage": ("host", "datastore", "how"),
    "restore_storage": ("host", "datastore"),
    "release_storm": (),
    "restore_state": ("seconds",),
    "confirm_absent": ("host",),
    "partition": ("groups", "how"),
    "heal": (),
    "loss": ("how", "percent", "host"),
    "delay": ("how", "percent", "seconds", "host"),
    "kill_bus": ("node",),
    "start_bus": ("node",),
    "add_host": ("host",),
}
"""Which fields each step takes beside `at_s`, `do` and `once`; any other would mean nothing."""
ON_A_HOST = frozenset(["add_host", "start_copy", "migrate_vm"])
"""Beside the steps of hosts, those that need one: a new one, or where a person starts a VM or migrates it to."""
WAYS = {
    **dict.fromkeys(("power_off", "crash", "hang"), ("for_good",)),
    "reboot": ("fast", "for_good"),
    "fence_test": ("force", "drain"),
    "enter_maintenance": ("drain",),
    "migrate_vm": ("override",),
}
"""Of `how`, where the worlds do not differ. `for_good`: a random world's end does not mend it. `override`: the host that
takes it in asks nobody."""
SERVICES = ("heartbeat", "detector", "fencer", "placement", "executor", "alerting")


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
    method: str | None = Field(None, description="of break_fencing: a method, or the name of one device")
    how: str | None = None
    count: PositiveInt | None = None
    seconds: float | None = None
    percent: float | None = Field(None, ge=0, le=100)
    once: str | None = Field(
        None, description="an event: not before it was told since the step above, however long that takes"
    )

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.host is None and (self.do in HOST_STEPS or self.do in ON_A_HOST):
            raise ValueError(f"{self.do} needs a host")
        if self.do == "add_host":
            _whole_host(self.host)
        elif self.host is not None and not isinstance(self.host, str):
            raise ValueError(f"host: {self.do} takes the name of a host")
        if self.do in VM_STEPS and self.vm is None:
            raise ValueError(f"{self.do} needs a vm")
        if self.do == "step_clock" and (self.host is None) is (self.service is None):
            raise ValueError(
                "step_clock needs a host; or service: plane, and the replica whose machine it is"
            )
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
        if self.do == "step_clock" and self.service is not None:
            return f"m{self.replica}"
        if self.do in WEATHER_STEPS:
            return " of ".join(filter(None, (self.how or "network", self.host)))
        return str(self.vm or self.service or self.host or self.node)


EXPECTED = {
    "event": ("subject", "by_s"),
    "never": ("subject",),
    "vm": ("state", "host", "host_not", "by_s"),
    "host": ("state", "fenced"),
    "order": (),
}
"""What an expectation can be about, and what can be expected of that."""
VM_STATES = ("running", "stopped", "waiting")


class Expectation(Part):
    """One thing that must be true: of a VM or a host in the end (or from `by_s` on), of an event, or of the order of starts."""

    vm: str | None = None
    state: str | None = None
    host: str | None = None
    host_not: str | None = None
    fenced: bool | None = None
    event: str | None = None
    never: str | None = None
    subject: str | None = None
    order: tuple[str, ...] | None = Field(
        None,
        min_length=2,
        description="VMs whose first starts since the scenario began were seen on the hypervisors in this order",
    )
    by_s: float | None = Field(None, ge=0)

    @model_validator(mode="after")
    def _meaningful(self) -> Self:
        about = self.about
        if about is None:
            raise ValueError("an expectation is about a vm, a host, an event, a never or an order")
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
    policy: PoolPolicy = Field(
        PoolPolicy(),
        description="the pool's, as in a snapshot: what its capacity is held against; no run depends on it",
    )
    settings: dict[str, Any] = Field({}, description="parts of the pool file, for this run")
    management: Management = Management()
    workflow: Workflow | None = None
    hosts: tuple[ScenarioHost, ...] = Field(min_length=1)
    datastores: tuple[ScenarioDatastore, ...] = ()
    lock_manager: Literal["lockd"] | None = Field(
        None, description="guards the disks on each host; without one the lab's disks are shareable"
    )
    vms: tuple[ScenarioVm, ...] = ()
    steps: tuple[StepEntry, ...] = ()
    expect: tuple[Expectation, ...] = ()

    @property
    def members(self) -> tuple[ScenarioHost, ...]:
        """All hosts, those included that a step adds."""
        added = (ScenarioHost.model_validate(step.host) for step in self.steps if step.do == "add_host")
        return (*self.hosts, *added)

    @property
    def networks(self) -> tuple[str, ...]:
        """All that the file names."""
        of_hosts = (host.networks or () for host in self.members)
        return tuple(
            sorted({name for names in (*of_hosts, *(vm.networks for vm in self.vms)) for name in names})
        )

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
        off = [host.name for host in self.hosts if host.standby]
        for vm in self.vms:
            if vm.host not in hosts:
                raise ValueError(f"vms: {vm.name}: there is no host {vm.host}")
            if vm.host in off:
                raise ValueError(f"vms: {vm.name}: host {vm.host} is off at first (standby)")
        if self.workflow is not None and self.workflow.brings not in off:
            raise ValueError(f"workflow: brings {self.workflow.brings}, which is no host with standby: true")
        return self
