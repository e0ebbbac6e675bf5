"""Alerting put together, the same in both worlds."""

from __future__ import annotations

from libs.core.shell import Shell
from libs.core.wiring import Perform, Ports, Wiring
from services.alerting.decide import REQUESTS, Alerting, AlertingState
from services.alerting.texts import TEXTS


def shell(ports: Ports, perform: Perform) -> Shell[AlertingState]:
    """`perform` writes to the log and posts to the webhook."""
    alerts = ports.settings.alerts
    wiring = Wiring(
        service=ports.service,
        bus=ports.bus,
        clock=ports.clock,
        store=ports.store("state"),
        lease=ports.lease(),
        kinds=tuple(TEXTS),
        perform=perform,
        requests=REQUESTS,
        parallel_acts=8,
    )
    return Shell(Alerting(alerts.webhook_url is not None, alerts.webhook_timeout_s), wiring)
