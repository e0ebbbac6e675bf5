"""docs/schemas has the formats of planning as the code has them (REKINDLE_UPDATE_GOLDEN=1 writes them anew)."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from pydantic import BaseModel

from libs.planning.documents import AdmitTold, CapacityTold, PlanTold
from libs.planning.snapshot import Snapshot

DOCS = Path(__file__).parents[2] / "docs" / "schemas"
FORMATS: dict[str, type[BaseModel]] = {
    "snapshot": Snapshot,
    "plan": PlanTold,
    "capacity": CapacityTold,
    "admit": AdmitTold,
}
pytestmark = pytest.mark.fast


@pytest.mark.parametrize("name", list(FORMATS))
def test_the_published_schema_is_that_of_the_code(name: str) -> None:
    mode = "validation" if name == "snapshot" else "serialization"
    wanted = json.dumps(FORMATS[name].model_json_schema(by_alias=True, mode=mode), indent=2) + "\n"  # type: ignore[arg-type]
    path = DOCS / f"rekindle.{name}.v1.json"
    if os.environ.get("REKINDLE_UPDATE_GOLDEN"):
        path.write_text(wanted)
    assert path.read_text() == wanted
