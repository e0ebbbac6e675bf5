"""The published contract: up to date, compatible with what was released, and true of what is really sent."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from libs.contract.__main__ import ELSEWHERE, PLACE, RELEASED, published
from libs.contract.asyncapi import asyncapi
from libs.contract.compatible import breaks
from libs.contract.documents import event_schema, schemas
from libs.events.envelope import wrap
from libs.events.facts import KINDS
from libs.events.hosts import HostSuspected
from libs.events.threads import PAIRS, incident_of, traceparent
from libs.sim.run import run
from libs.sim.telling import envelopes
from libs.sim.world import World
from services.cli.simplane import PLANE
from services.cli.simulate import load
from tests.unit.made import boot, failed, fenced

pytestmark = pytest.mark.fast
ROOT = Path(__file__).parents[2]
ZERO = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)


def test_the_published_schemas_are_what_the_code_says() -> None:
    mine = [path for path in (ROOT / PLACE).glob("*.json") if path.stem not in ELSEWHERE]
    found = {path.name: path.read_text() for path in mine if path.name != RELEASED}
    assert found == published(), "make them anew with `make schemas`"


def test_no_change_since_the_last_release_breaks_a_reader() -> None:
    released = json.loads((ROOT / PLACE / RELEASED).read_text())
    assert breaks(released, schemas()) == []


def _drop_field(schema: dict[str, Any]) -> None:
    del schema["properties"]["silent_s"]


def _rename_type(schema: dict[str, Any]) -> None:
    schema["properties"]["silent_s"]["type"] = "string"


def _widen(schema: dict[str, Any]) -> None:
    schema["properties"]["silent_s"] = {"anyOf": [{"type": "number"}, {"type": "null"}]}


def _require(schema: dict[str, Any]) -> None:
    schema["properties"]["mood"] = {"type": "string"}
    schema["required"].append("mood")


def _narrow(schema: dict[str, Any]) -> None:
    schema["properties"]["silent_s"]["minimum"] = 1


def _forget(schema: dict[str, Any]) -> None:
    schema["required"].remove("silent_s")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (_drop_field, "data.silent_s: it is gone"),
        (_rename_type, "data.silent_s: its type was number and is string"),
        (_widen, "data.silent_s: its type was number and is null or number"),
        (_require, "data.mood: it is new and required"),
        (_narrow, "data.silent_s: minimum was None and is 1, which is narrower"),
        (_forget, "data.silent_s: it was always there and need not be any more"),
    ],
)
def test_what_breaks_a_reader_is_named(change: Callable[[dict[str, Any]], None], told: str) -> None:
    before = event_schema("host.suspected")
    after = copy.deepcopy(before)
    change(after["$defs"]["HostSuspected"])
    assert breaks({"s": before}, {"s": after}) == [f"s: {told}"]


def test_new_fields_new_words_and_new_kinds_break_nobody() -> None:
    before = event_schema("host.refuted")
    after = copy.deepcopy(before)
    after["$defs"]["HostRefuted"]["properties"]["mood"] = {"type": "string", "default": ""}
    after["$defs"]["HostState"]["enum"].append("sleepy")
    assert breaks({"s": before}, {"s": after, "t": {}}) == []
    after["$defs"]["HostState"]["enum"].remove("failed")
    assert breaks({"s": before}, {"s": after}) == ["s: data.was: failed is no value of it any more"]
    assert breaks({"s": before}, {}) == ["s: it is not published any more"]


def test_the_asyncapi_document_is_one_by_its_own_schema_and_tells_all_kinds() -> None:
    document = asyncapi()
    official = json.loads((ROOT / "tests" / "vendor" / "asyncapi-3.0.0.json").read_text())
    jsonschema.Draft7Validator(official).validate(document)
    assert set(document["channels"]) == set(KINDS)
    wrong = copy.deepcopy(document)
    wrong["operations"]["send.host.failed"]["action"] = "shout"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft7Validator(official).validate(wrong)


def test_every_reference_of_the_asyncapi_document_leads_somewhere() -> None:
    document = asyncapi()

    def look(node: Any) -> None:
        if isinstance(node, dict):
            if isinstance(node.get("$ref"), str):
                at: Any = document
                for step in node["$ref"].removeprefix("#/").split("/"):
                    at = at[step]
            for one in node.values():
                look(one)
        elif isinstance(node, list):
            for one in node:
                look(one)

    look(document)


STORIES = (
    "golden/no_room_then_a_host",
    "golden/storm_released",
    "golden/vm_crashes",
    "golden/storage_stalled",
    "golden/grey_host_drained",
    "golden/maintenance",
)


DRAIN_ENDED_BY_A_PERSON = "host.maintenance_exited/h1/1"
"""In grey_host_drained: the word for the end of a maintenance ends a drain, too, which no word had begun."""


@pytest.mark.long
@pytest.mark.parametrize("name", STORIES)
def test_what_is_told_in_a_story_fits_its_schema_and_ends_name_the_incident_they_end(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    scenario, worlds = load(ROOT / "tests" / f"{name}.yaml"), []

    def made(*parts: Any) -> World:
        worlds.append(World(*parts))
        return worlds[-1]

    monkeypatch.setattr("libs.sim.run.World", made)
    run(scenario, scenario.seed, PLANE, stop_at_first=False)
    told = envelopes(worlds[0].broker.facts)
    checks = {
        kind: jsonschema.Draft202012Validator(event_schema(kind)) for kind in {e.data.kind for e in told}
    }
    open_: set[tuple[str, str | None]] = set()
    for envelope in told:
        checks[envelope.data.kind].validate(envelope.model_dump(mode="json"))
        begins = [begin for begin, ends in PAIRS if envelope.data.kind in ends]
        joins = envelope.data.kind == "host.joined" and not getattr(
            envelope.data, "unknown", 0
        )  # ends nothing
        if begins and not joins and envelope.id != DRAIN_ENDED_BY_A_PERSON:
            assert any((begin, envelope.incident) in open_ for begin in begins), envelope.id
        open_.add((envelope.data.kind, envelope.incident))
    assert any(kind == begin for kind, _ in open_ for begin, _ in PAIRS)


def test_an_incident_is_one_trace_and_a_repeat_the_same_span() -> None:
    one, other = failed(boot("h1")), fenced(boot("h1"))
    parts = [traceparent("p", fact).split("-") for fact in (one, other, one)]
    assert [len(part) for part in parts[0]] == [2, 32, 16, 2]
    assert parts[0] == parts[2]
    assert parts[0][1] == parts[1][1]
    assert parts[0][2] != parts[1][2]
    assert traceparent("q", one).split("-")[1] != parts[0][1], "another pool is another trace"
    assert incident_of(one) == incident_of(other) == "h1-1"
    envelope = wrap(one, pool="p", service="s", wall=ZERO)
    assert (envelope.incident, envelope.traceparent) == ("h1-1", traceparent("p", one))


def test_pairs_name_kinds_that_there_are() -> None:
    assert {kind for begin, ends in PAIRS for kind in (begin, *ends)} <= set(KINDS)
    assert incident_of(HostSuspected(at=boot("h1"), number=3, silent_s=1.5)) == "suspicion-h1-h1boot1-3"
