"""The AsyncAPI 3 document of a pool's events: one channel and one operation a kind, seen from Rekindle (it sends)."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from libs.contract.documents import event_model, type_of
from libs.events.envelope import CONTENT_TYPE
from libs.events.facts import KINDS
from libs.events.threads import PAIRS

PARAMETERS = {
    "pool": {"description": "name of the pool, as in its pool file"},
    "about": {
        "description": "the host, VM, incident or datastore that it is about; `pool` for the pool as a whole"
    },
}


def asyncapi() -> dict[str, Any]:
    """The document. Schemas are its components, each named as its class."""
    components: dict[str, Any] = {}
    messages: dict[str, Any] = {}
    channels: dict[str, Any] = {}
    operations: dict[str, Any] = {}
    for kind in KINDS:
        name, model = type_of(kind), event_model(kind)
        schema = model.model_json_schema(ref_template="#/components/schemas/{model}", mode="validation")
        components |= schema.pop("$defs", {})
        components[model.__name__] = schema
        messages[name] = _message(kind, model.__name__)
        channels[kind] = {
            "address": f"rekindle.{{pool}}.event.{kind}.{{about}}",
            "messages": {name: {"$ref": f"#/components/messages/{name}"}},
            "parameters": PARAMETERS,
            "servers": [{"$ref": "#/servers/nats"}],
        }
        operations[f"send.{kind}"] = {
            "action": "send",
            "channel": {"$ref": f"#/channels/{kind}"},
            "messages": [{"$ref": f"#/channels/{kind}/messages/{name}"}],
        }
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Rekindle events",
            "version": version("rekindle"),
            "description": "Facts about a pool, each a CloudEvent 1.0 in structured JSON, kept for 30 days in the "
            "JetStream stream rekindle_{pool}_events. An id is told again where delivery was uncertain: drop "
            "what you have seen. Expect kinds, fields and words that are not listed yet.",
        },
        "defaultContentType": CONTENT_TYPE,
        "servers": {"nats": {"host": "localhost:4222", "protocol": "nats", "description": "the pool's bus"}},
        "channels": channels,
        "operations": operations,
        "components": {"schemas": dict(sorted(components.items())), "messages": messages},
    }


def _message(kind: str, model: str) -> dict[str, Any]:
    ends = [end for begin, ends in PAIRS if begin == kind for end in ends]
    begins = [begin for begin, ends in PAIRS if kind in ends]
    told = [(f"ended by {', '.join(ends)}" if ends else ""), (f"ends {', '.join(begins)}" if begins else "")]
    pair = "; ".join(part for part in told if part)
    summary = " ".join((KINDS[kind].__doc__ or "").split())
    return {
        "name": type_of(kind),
        "title": kind,
        "summary": f"{summary} ({pair}; by the same `incident`)" if pair else summary,
        "contentType": CONTENT_TYPE,
        "correlationId": {"location": "$message.payload#/incident"},
        "headers": {
            "type": "object",
            "properties": {
                "Nats-Msg-Id": {"type": "string", "description": "the event's id"},
                "traceparent": {"type": "string", "description": "W3C Trace Context"},
            },
        },
        "payload": {"$ref": f"#/components/schemas/{model}"},
    }
