"""The pool file of a simulated pool: what its services are configured with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from libs.config.settings import Settings
from libs.config.yamlfile import BadInputError
from libs.scenario.model import Scenario
from libs.scenario.pool import ScenarioHost
from libs.sim.storage import SHARED

FENCE_TIMEOUT_S = 4.0
"""Of one call of a fence device of which the scenario does not say it."""


def settings_of(hosts: Sequence[ScenarioHost], scenario: Scenario) -> Settings:
    """The pool file of a simulated pool. Raises BadInputError for fencing or settings that it cannot have."""
    entries = []
    for host in hosts:
        fencing = [
            {
                "agent": "sim",
                "name": entry.name,
                "level": entry.level,
                "timeout_s": entry.timeout_s or FENCE_TIMEOUT_S,
            }
            for entry in host.fencing
            if entry.method == "power"
        ]
        entries.append(
            {
                "name": host.name,
                "uri": f"qemu+tcp://{host.name}/system",
                "insecure": True,
                "agent": host.agent,
                "standby": host.standby,
                "memory_mib": host.memory_mib,
                "memory_reserved_mib": host.memory_reserved_mib,
                "cpus": host.cpus,
                "labels": host.labels,
                "probe": f"{host.name}:7946" if host.agent else None,
                "fencing": fencing,
                "watchdog": host.watchdog,
            }
        )
    stores = [{"name": one.name, "path": f"/{one.name}", "hosts": one.hosts} for one in scenario.datastores]
    # most scenarios are about a pool that is full on purpose; one about capacity asks for it in its own settings
    shared: dict[str, Any] = {
        "datastores": stores or [{"name": SHARED, "path": f"/{SHARED}"}],
        "placement": {"failures_to_tolerate": 0},
    }
    # a drill every five minutes shows nothing in a run of two; a scenario that is about it asks for it
    drill = {"fencing": {"drill_every_s": 0, **scenario.settings.get("fencing", {})}}
    pool: dict[str, Any] = {"pool": "sim", **shared, **scenario.settings, **drill, "hosts": entries}
    try:
        return Settings.model_validate(pool)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BadInputError(f"settings.{where}: {first['msg']}") from error
