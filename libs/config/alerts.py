"""Who is told of what: endpoints of other systems, people, Alertmanagers, and who brings capacity."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import Field, PositiveFloat

from libs.config.entries import Section
from libs.config.incoming import Incoming
from libs.config.notify import Alertmanager, Channel, refuse_unreadable
from libs.config.scaleout import ScaleOut
from libs.config.serving import HttpServer
from libs.config.webhooks import Webhook, refuse_unusable, shown_in
from libs.config.yamlfile import did_you_mean


class Alerts(Section):
    webhook_url: str | None = Field(None, pattern=r"^https?://.+")
    webhook_timeout_s: PositiveFloat = 5.0
    webhooks: tuple[Webhook, ...] = ()
    channels: tuple[Channel, ...] = ()
    alertmanagers: tuple[Alertmanager, ...] = ()
    scale_out: ScaleOut | None = None
    incoming: Incoming | None = None
    http: HttpServer = HttpServer()
    repeat_s: PositiveFloat = Field(14400.0, description="an alert that nobody minds is told again so often")
    digest_s: PositiveFloat = Field(
        30.0, description="what comes within so long after a notice waits for a digest"
    )
    runbooks: str = Field("docs/ALERTS.md", description="page to which the links in notices lead")

    def listens(self) -> list[tuple[str, str]]:
        """By the setting that names it each address of the HTTP endpoint."""
        callbacks = None if self.scale_out is None else self.scale_out.callbacks
        incoming = None if self.incoming is None else self.incoming.listen
        found = [] if callbacks is None else [("alerts.scale_out.callbacks.listen", callbacks.listen)]
        return found if incoming is None else [*found, ("alerts.incoming.listen", incoming)]

    def fit(self, hosts: Sequence[str]) -> None:
        """Raises ValueError where two have the same name, a filter names a host that the pool has not, or others would be
        answered in the clear."""
        for where, listen in self.listens():
            self.http.fit(listen, where)
        told = [one.name for one in self.channels] + [one.name for one in self.alertmanagers]
        for name in told:
            if told.count(name) > 1:
                raise ValueError(f"alerts: two channels or alertmanagers are called {name}")
        names = [one.name for one in self.webhooks]
        for index, webhook in enumerate(self.webhooks):
            where = f"alerts.webhooks.{index}"
            if names.count(webhook.name) > 1:
                raise ValueError(f"{where}: two webhooks are called {webhook.name}")
            for host in webhook.hosts:
                if host not in hosts:
                    raise ValueError(f"{where}.hosts: no host is called {host}{did_you_mean(host, hosts)}")


def refuse_files(alerts: Alerts, path: Path) -> None:
    """Read whatever these need from other files: keys, addresses, authorities. Raises BadInputError naming the pool
    file, line, field and reason, never a content."""
    refuse_unusable(alerts.webhooks, path)
    refuse_unreadable(alerts.channels, alerts.alertmanagers, path)
    with shown_in(path):
        alerts.http.tls("alerts.http")
    if alerts.incoming is not None:
        with shown_in(path):
            alerts.incoming.keys("alerts.incoming")
            alerts.incoming.bearers("alerts.incoming")
    if alerts.scale_out is not None and alerts.scale_out.callbacks is not None:
        with shown_in(path):
            alerts.scale_out.callbacks.keys("alerts.scale_out.callbacks")
