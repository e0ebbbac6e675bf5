"""What services count for Prometheus, and that the dashboard and the alert rules name nothing else."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from libs.core.clock import SystemClock
from libs.core.decider import Expired, Outcome, Publish, Request, Send
from libs.events.failovers import FailoverPlanned
from libs.events.hosts import HostFailed, HostSuspected
from libs.events.signals import Heartbeat
from libs.events.vms import VmRestarted
from libs.measures import ACTS, METRICS, Measures
from libs.model import Incarnation
from services.alerting.letters import Post as Posting
from services.alerting.letters import Resend
from services.executor.orders import StartVm
from services.fencer.state import Fence, Fenced

pytestmark = pytest.mark.fast
REPOSITORY = Path(__file__).parents[2]
RULES = REPOSITORY / "infra/prometheus/rules.yml"
DASHBOARD = REPOSITORY / "infra/grafana/rekindle.json"
DOCS = REPOSITORY / "docs/METRICS.md"
AT = Incarnation(host="h1", boot="boot0001")
SUFFIXES = re.compile(r"_(bucket|sum|count)$")


def shown(measures: Measures) -> dict[tuple[str, str], float]:
    """By name and labels what a scrape shows."""
    return {
        (sample.name, ",".join(value for name, value in sample.labels.items() if name != "le")): sample.value
        for family in text_string_to_metric_families(measures.text().decode())
        for sample in family.samples
        if not sample.name.endswith("_bucket")
    }


def expressions() -> list[str]:
    rules = yaml.safe_load(RULES.read_text())
    panels = json.loads(DASHBOARD.read_text())["panels"]
    return [
        *(rule["expr"] for group in rules["groups"] for rule in group["rules"]),
        *(target["expr"] for panel in panels for target in panel.get("targets", ())),
    ]


def test_heartbeats_are_counted_and_the_last_is_remembered() -> None:
    measures = Measures(SystemClock())
    for seq in range(3):
        measures.heard(Heartbeat(at=AT, agent="life", seq=seq), 100.0 + seq)
    assert shown(measures)["rekindle_heartbeats_total", ""] == 3
    assert measures.evidence_at == 102.0


def test_a_recovery_counts_from_the_hosts_last_sign_of_life_and_not_twice_for_a_fact_told_twice() -> None:
    measures = Measures(SystemClock())
    suspected = HostSuspected(at=AT, number=1, silent_s=1.5)
    measures.heard(suspected, 11.5)
    measures.heard(suspected, 14.0)  # delivered again
    measures.heard(HostFailed(at=AT, incident="h1-boot0001-1", epoch=1, suspicion=1), 12.0)
    restarted: dict[str, Any] = {
        "vm": "u1", "name": "a", "at": AT, "incident": "h1-boot0001-1", "start_key": "k", "token": 2,
    }  # fmt: skip
    measures.heard(VmRestarted.model_validate(restarted), 14.0)
    measures.heard(VmRestarted.model_validate({**restarted, "incident": "crash-of-another"}), 14.0)
    told = shown(measures)
    assert told["rekindle_recovery_seconds_count", ""] == 1
    assert told["rekindle_recovery_seconds_sum", ""] == pytest.approx(4.0)


def test_acts_are_counted_by_how_they_ended() -> None:
    measures = Measures(SystemClock())
    request = Fence(key="k", deadline_s=5, at=AT, incident="i")
    measures.acted(request, Fenced(key="k", incident="i", missing=("no device",)), 0.5)
    measures.acted(request, Expired(key="k", request="fence", reason="no end"), 5.0)
    told = shown(measures)
    assert told["rekindle_fence_attempts_total", "unproven"] == 1
    assert told["rekindle_fence_attempts_total", "expired"] == 1
    assert told["rekindle_fence_seconds_sum", "expired"] == 5.0
    measures.acted(Request(kind="look", key="k", deadline_s=1), Outcome(key="k"), 0.1)  # nobody counts it


def test_the_kinds_of_acts_that_are_counted_are_those_of_the_services() -> None:
    kinds = {one.model_fields["kind"].default for one in (Fence, StartVm, Posting, Resend)}
    assert kinds == set(ACTS)
    for counted, timed in ACTS.values():
        assert counted in METRICS
        assert not timed or timed in METRICS


def test_what_a_leader_does_is_counted_from_its_effects() -> None:
    measures = Measures(SystemClock())
    planned = FailoverPlanned(incident="i", revision=1)
    measures.stepped([Publish("i", planned), Send("x", Heartbeat(at=AT, agent="l", seq=1))], 0.02)
    measures.told(HostSuspected(at=AT, number=1, silent_s=1.5))
    told = shown(measures)
    assert told["rekindle_plan_seconds_sum", ""] == pytest.approx(0.02)
    assert told["rekindle_heartbeats_sent_total", ""] == 1
    assert told["rekindle_suspicions_total", ""] == 1
    assert told["rekindle_facts_total", "host.suspected"] == 1


def test_gauges_are_read_when_somebody_looks() -> None:
    measures, waiting = Measures(SystemClock()), [2.0]
    measures.gauges(lambda: {("rekindle_vms_waiting",): waiting[0], ("rekindle_hosts", "failed"): 1.0})
    waiting[0] = 3.0
    told = shown(measures)
    assert (told["rekindle_vms_waiting", ""], told["rekindle_hosts", "failed"]) == (3.0, 1.0)


def test_every_metric_that_a_rule_or_the_dashboard_names_is_one_of_ours() -> None:
    named = {name for one in expressions() for name in re.findall(r"\brekindle_\w+", one)}
    assert named
    assert {SUFFIXES.sub("", name) for name in named} <= set(METRICS)


def test_the_dashboard_shows_every_metric() -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    text = " ".join(target["expr"] for panel in panels for target in panel.get("targets", ()))
    missing = [name for name in METRICS if name not in text]
    assert not missing
    assert len({panel["id"] for panel in panels}) == len(panels)


def test_labels_that_are_chosen_by_are_those_of_the_metric() -> None:
    for expression in expressions():
        for name, labels in re.findall(r"\b(rekindle_\w+)\{([^}]*)\}", expression):
            for label in re.findall(r"(\w+)\s*[=!]", labels):
                assert label in METRICS[SUFFIXES.sub("", name)].labels, expression


def test_every_alert_has_a_severity_a_summary_and_a_word_on_what_to_do() -> None:
    for group in yaml.safe_load(RULES.read_text())["groups"]:
        for rule in group["rules"]:
            assert rule["labels"]["severity"] in ("warning", "critical"), rule["alert"]
            assert rule["annotations"].keys() == {"summary", "description"}, rule["alert"]


def table() -> str:
    rows = [
        f"| `{name}` | {shape.type} | {', '.join(f'`{one}`' for one in shape.labels)} | {shape.help} |"
        for name, shape in METRICS.items()
    ]
    return "\n".join(["| name | type | labels | |", "|---|---|---|---|", *rows])


def test_the_docs_list_every_metric() -> None:
    text = DOCS.read_text()
    before, rest = text.split("<!-- metrics -->\n")
    _, after = rest.split("\n<!-- /metrics -->")
    wanted = f"{before}<!-- metrics -->\n{table()}\n<!-- /metrics -->{after}"
    if os.environ.get("REKINDLE_UPDATE_GOLDEN"):
        DOCS.write_text(wanted)
    assert DOCS.read_text() == wanted, "REKINDLE_UPDATE_GOLDEN=1 pytest tests/unit/test_measures.py"
