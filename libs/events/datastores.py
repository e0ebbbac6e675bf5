"""What becomes of datastores: lost on one host, failed for all, and back again."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from libs.events.base import Fact
from libs.model import Incarnation, Value, VmReport


class StoreWord(Value):
    """One host's own word on a datastore, as it was heard."""

    host: str
    age_s: float = Field(description="for how long it has taken no write there")
    said: str


class DatastoreFact(Fact):
    """About one datastore. Its number grows with every loss and failure of it, and its end bears the same."""

    datastore: str
    number: int = Field(ge=1)

    @property
    def about(self) -> str:
        return self.datastore

    @property
    def key(self) -> str:
        return f"{self.kind}/{self.datastore}/{self.number}"


class DatastoreLost(DatastoreFact):
    """One host cannot write there while most of the others can. `vms` ran there with a disk on it."""

    kind: Literal["datastore.lost"] = "datastore.lost"
    at: Incarnation
    well: int = Field(description="hosts that took writes all the time")
    asked: int = Field(description="hosts that are heard and have it, this one included")
    words: tuple[StoreWord, ...] = ()
    vms: tuple[VmReport, ...] = ()

    @property
    def incident(self) -> str:
        """What is opened for it."""
        return f"store-{self.datastore}-{self.number}"


class DatastoreFailed(DatastoreFact):
    """No majority of the hosts can write there: the storage's own failure. Nothing moves for it."""

    kind: Literal["datastore.failed"] = "datastore.failed"
    hosts: tuple[str, ...] = Field(description="who takes no writes there")
    asked: int
    words: tuple[StoreWord, ...] = ()


class DatastoreRecovered(DatastoreFact):
    """The loss or the failure of this number is over."""

    kind: Literal["datastore.recovered"] = "datastore.recovered"
    host: str = Field("", description="on which it was lost; empty where it had failed for all")
