"""What is posted to an endpoint that does not read CloudEvents: a form with parts of the event put in. Pure.

In a text `${data.request}` is that part of the event as text; an object `{"$event": "data.needs"}` is that part as it is.
"""

from __future__ import annotations

import json
import re
from typing import Any

PART = re.compile(r"\$\{([A-Za-z0-9_.]+)\}")
WHOLE = "$event"


def shaped(form: Any, event: dict[str, Any]) -> Any:
    """The form, filled. A part that the event does not have is nothing: "" in a text, else null."""
    match form:
        case str():
            return PART.sub(lambda found: _text(_part(event, found[1])), form)
        case {"$event": str(path)} if len(form) == 1:
            return _part(event, path)
        case dict():
            return {name: shaped(value, event) for name, value in form.items()}
        case list():
            return [shaped(value, event) for value in form]
        case _:
            return form


def _part(event: dict[str, Any], path: str) -> Any:
    found: Any = event
    for name in path.split("."):
        if not isinstance(found, dict):
            return None
        found = found.get(name)
    return found


def _text(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
