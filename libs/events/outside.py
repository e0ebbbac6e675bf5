"""What other systems tell of a host or of the pool: a fact of theirs, never a verdict."""

from __future__ import annotations

import hashlib
from typing import Literal

from pydantic import Field

from libs.events.base import Fact


class OutsideTold(Fact):
    """Somebody outside says something, and what that means by the rules of the pool file: it is noted; the host is closed
    to new VMs (`drain`); or it is asked after at once (`mark_suspect`)."""

    kind: Literal["outside.told"] = "outside.told"
    source: str = Field(
        min_length=1, max_length=63, description="who: a user of the bus, `events`, or `alertmanager`"
    )
    id: str = Field(
        min_length=1, max_length=200, description="names it within its source: again it is the same"
    )
    name: str = Field(min_length=1, max_length=100)
    host: str = Field(
        "", description="of the pool; empty: it is about none, or about one that the pool does not have"
    )
    severity: str = Field("", max_length=40)
    state: Literal["firing", "resolved"] = "firing"
    text: str = Field("", max_length=500)
    action: Literal["note", "drain", "mark_suspect"] = "note"

    @property
    def about(self) -> str:
        return self.host or "pool"

    @property
    def key(self) -> str:
        return f"{self.kind}/{hashlib.sha256(f'{self.source}/{self.id}'.encode()).hexdigest()[:32]}"
