"""Alerting put together, the same in both worlds."""

from __future__ import annotations

from libs.config.scaleout import ScaleOut
from libs.core.ports import Lease
from libs.core.shell import Shell
from libs.core.wiring import Perform, Ports, Wiring
from services.alerting import letters, notices, scaleout
from services.alerting.courier import Courier, CourierState
from services.alerting.decide import REQUESTS, Alerting, AlertingState
from services.alerting.standing import MARKS, Standing
from services.alerting.state import StandingState
from services.alerting.texts import TEXTS


def shell(ports: Ports, perform: Perform, lease: Lease | None = None) -> Shell[AlertingState]:
    """`perform` writes to the log and posts to the webhook. `lease`: of the role, where another shell has it, too."""
    alerts = ports.settings.alerts
    wiring = Wiring(
        service=ports.service,
        bus=ports.bus,
        clock=ports.clock,
        meter=ports.meter,
        store=ports.store("state"),
        lease=lease or ports.lease(),
        kinds=tuple(TEXTS),
        perform=perform,
        requests=REQUESTS,
        parallel_acts=8,
    )
    decider = Alerting(alerts.webhook_url is not None, alerts.webhook_timeout_s, overdue=True)
    return Shell(decider, wiring)


def courier(ports: Ports, perform: Perform, lease: Lease) -> Shell[CourierState]:
    """Deliveries to the configured endpoints. It keeps its records beside those of alerting, under the same lease; each
    fact that it hears is to it a bell."""
    endpoints = ports.settings.alerts.webhooks
    wiring = Wiring(
        service="webhooks",
        bus=ports.bus,
        clock=ports.clock,
        meter=ports.meter,
        store=ports.store("state"),
        lease=lease,
        kinds=tuple(TEXTS),
        perform=perform,
        requests=letters.REQUESTS,
        parallel_acts=4 * len(endpoints) + 8,
    )
    return Shell(Courier(endpoints), wiring)


def standing(ports: Ports, perform: Perform, lease: Lease) -> Shell[StandingState]:
    """The keeper of alerts, under the same lease; each fact that it hears is to it a bell."""
    alerts = ports.settings.alerts
    wiring = Wiring(
        service="alerts",
        bus=ports.bus,
        clock=ports.clock,
        meter=ports.meter,
        store=ports.store("state"),
        lease=lease,
        kinds=tuple(TEXTS),
        perform=perform,
        requests=notices.REQUESTS,
        marks=MARKS,
        parallel_acts=2 * len(alerts.channels) + 2 * len(alerts.alertmanagers) + 4,
    )
    return Shell(Standing(alerts), wiring)


def asking(ports: Ports, perform: Perform, lease: Lease, settings: ScaleOut) -> Shell[scaleout.ScaleOutState]:
    """Requests for capacity, under the same lease; each fact that it hears is to it a bell."""
    wiring = Wiring(
        service="scaleout",
        bus=ports.bus,
        clock=ports.clock,
        meter=ports.meter,
        store=ports.store("state"),
        lease=lease,
        kinds=scaleout.KINDS,
        perform=perform,
        requests=scaleout.REQUESTS,
        marks=(scaleout.PLACE,),
        parallel_acts=4,
    )
    return Shell(scaleout.Asking(settings), wiring)
