"""Which event an endpoint wants. Pure."""

from __future__ import annotations

import fnmatch
from typing import Any

from libs.config.webhooks import Webhook
from libs.events.facts import AnyFact
from libs.events.webhooks import WebhookFact, WebhookRetryOrdered
from services.alerting.texts import Severity


def wants(endpoint: Webhook, fact: AnyFact, severity: Severity) -> bool:
    """An event must pass all filters that are given. What is about the endpoint itself is not for it: its failure
    would cause the next."""
    if isinstance(fact, WebhookFact | WebhookRetryOrdered) and fact.endpoint == endpoint.name:
        return False
    if endpoint.events and not any(fnmatch.fnmatchcase(fact.kind, one) for one in endpoint.events):
        return False
    if endpoint.severities and severity.value not in endpoint.severities:
        return False
    if endpoint.hosts and not hosts_of(fact) & set(endpoint.hosts):
        return False
    return not endpoint.vms or bool(vms_of(fact) & set(endpoint.vms))


def hosts_of(fact: AnyFact) -> set[str]:
    """Hosts that a fact is about: its own, and those that it names."""
    found: set[str] = set()
    at = getattr(fact, "at", None)
    if at is not None:
        found.add(at.host)
    for field in ("host", "holder"):
        value = getattr(fact, field, None)
        if value:
            found.add(value if isinstance(value, str) else value.host)
    for field in ("hosts", "suspects"):
        found |= set(getattr(fact, field, ()))
    for start in getattr(fact, "starts", ()):
        found |= {start.to.host, start.origin.host}
    return found


def vms_of(fact: AnyFact) -> set[str]:
    """Names of VMs that a fact is about."""
    found: set[str] = set()
    if getattr(fact, "vm", None) is not None:
        found.add(getattr(fact, "name", ""))
    for field in ("vms", "starts", "waiting", "restarted", "given_up", "guests"):
        parts: Any = getattr(fact, field, ())
        found |= {part if isinstance(part, str) else part.name for part in parts}
    return found
