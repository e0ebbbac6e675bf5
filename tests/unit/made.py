"""Small values for tests: hosts, VMs, facts, with everything that does not matter filled in."""

from __future__ import annotations

from typing import Any

from libs.core.decider import Act, Effect, Publish, Records, Send
from libs.events.facts import AnyFact
from libs.events.hosts import HostFailed, HostFenced
from libs.events.signals import Heartbeat, InventorySeen
from libs.model import (
    FenceProof,
    Incarnation,
    Inventory,
    LeaseState,
    ProofMethod,
    RunLease,
    StopReason,
    VmPolicy,
    VmReport,
    VmState,
)


def boot(host: str, number: int = 1) -> Incarnation:
    """One boot of a host."""
    return Incarnation(host=host, boot=f"{host}boot{number}")


def beat(host: str, number: int = 1) -> Heartbeat:
    return Heartbeat(at=boot(host, number), agent="life", seq=1)


def vm(uuid: str, state: VmState = VmState.RUNNING, **more: Any) -> VmReport:
    """One VM as its host reports it; its name is its uuid in capitals."""
    values: dict[str, Any] = {"memory_mib": 100, "vcpus": 1, "run": 1, **more}
    return VmReport(uuid=uuid, name=uuid.upper(), state=state, **values)


def crashed(uuid: str, **more: Any) -> VmReport:
    return vm(uuid, VmState.STOPPED, stop_reason=StopReason.CRASHED, **more)


def inventory(
    at: Incarnation,
    *vms: VmReport,
    memory_mib: int = 1000,
    rev: int = 1,
    agent: str = "life",
    cpus: int = 8,
    condemned: tuple[str, ...] = (),
) -> Inventory:
    return Inventory(
        at=at, agent=agent, rev=rev, memory_mib=memory_mib, cpus=cpus, vms=vms, condemned=condemned
    )


def seen(at: Incarnation, *vms: VmReport, **more: Any) -> InventorySeen:
    return InventorySeen(inventory=inventory(at, *vms, **more))


def lease(
    uuid: str, holder: Incarnation, state: LeaseState = LeaseState.RUNNING, *, token: int = 1, **more: Any
) -> RunLease:
    values: dict[str, Any] = {"memory_mib": 100, "vcpus": 1, "seq": token, **more}
    return RunLease(vm=uuid, name=uuid.upper(), token=token, holder=holder, state=state, **values)


def proof(of: Incarnation, method: ProofMethod = ProofMethod.POWER_OFF) -> FenceProof:
    return FenceProof(of=of, method=method, detail="read off twice")


def failed(at: Incarnation, *vms: VmReport, epoch: int = 1, proof: FenceProof | None = None) -> HostFailed:
    return HostFailed(at=at, incident=f"{at.host}-{epoch}", epoch=epoch, vms=vms, proof=proof)


def fenced(at: Incarnation, *vms: VmReport, epoch: int = 1) -> HostFenced:
    return HostFenced(at=at, incident=f"{at.host}-{epoch}", epoch=epoch, proof=proof(at), vms=vms)


def policy(**values: Any) -> VmPolicy:
    return VmPolicy(**values)


def facts(effects: tuple[Effect, ...]) -> list[AnyFact]:
    """What is published, in order."""
    return [effect.fact for effect in effects if isinstance(effect, Publish)]


def kinds(effects: tuple[Effect, ...]) -> list[str]:
    return [fact.kind for fact in facts(effects)]


def requests(effects: tuple[Effect, ...]) -> list[Any]:
    """What is to be done, in order."""
    return [effect.request for effect in effects if isinstance(effect, Act)]


def sent(effects: tuple[Effect, ...]) -> list[Any]:
    return [effect.signal for effect in effects if isinstance(effect, Send)]


def stored(records: Records) -> Records:
    """The records as another process would read them."""
    for name, record in records.items():
        records = records.insert(name, type(record).model_validate_json(record.model_dump_json()))
    return records
