"""JSON Schemas of everything that others read: one a CloudEvent type, one a document format.

They describe what a reader must be ready for: a field that was added later has a default and is not required, since
events of an older version lie in the stream for 30 days. JSON Schema 2020-12, as pydantic makes it.
"""

from __future__ import annotations

import functools
from typing import Any, Literal

from pydantic import BaseModel, create_model

from libs.doctor.findings import Diagnosis
from libs.events.base import Fact
from libs.events.envelope import Envelope
from libs.events.facts import KINDS
from libs.planning.documents import AdmitTold, CapacityTold, PlanTold
from libs.planning.snapshot import Snapshot
from libs.scenario.model import Scenario
from libs.scenario.outcome import Outcome

DIALECT = "https://json-schema.org/draft/2020-12/schema"
DOCUMENTS: dict[str, type[BaseModel]] = {
    "rekindle.admit.v1": AdmitTold,
    "rekindle.capacity.v1": CapacityTold,
    "rekindle.doctor.v1": Diagnosis,
    "rekindle.outcome.v1": Outcome,
    "rekindle.plan.v1": PlanTold,
    "rekindle.scenario.v1": Scenario,
    "rekindle.snapshot.v1": Snapshot,
}
"""Document formats by the name that stands in their `schema`. A new one is added here."""


def type_of(kind: str) -> str:
    """The CloudEvent type of a kind of fact."""
    return f"rekindle.{kind}.v{KINDS[kind].VERSION}"


@functools.cache
def event_model(kind: str) -> type[Envelope]:
    """The envelope around one kind of fact, as a model of its own."""
    fact = KINDS[kind]
    name = f"{fact.__name__}Event"
    fields: dict[str, Any] = {"type": (Literal[type_of(kind)], ...), "data": (fact, ...)}
    return create_model(name, __base__=Envelope, __doc__=_doc(fact), **fields)


def event_schema(kind: str) -> dict[str, Any]:
    """The JSON Schema of one CloudEvent type."""
    return _published(type_of(kind), event_model(kind).model_json_schema(mode="validation"))


def schemas() -> dict[str, dict[str, Any]]:
    """Every published schema by its name."""
    found = {type_of(kind): event_schema(kind) for kind in KINDS}
    for name, model in DOCUMENTS.items():
        found[name] = _published(name, model.model_json_schema(by_alias=True, mode="validation"))
    return dict(sorted(found.items()))


def _published(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"$schema": DIALECT, "$id": f"urn:rekindle:schema:{name}", **schema}


def _doc(fact: type[Fact]) -> str:
    return (fact.__doc__ or "").strip()
