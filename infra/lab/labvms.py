"""A scenario's VMs as the lab has them."""

from __future__ import annotations

from infra.lab.lab import LabVm
from infra.lab.plane import policy_metadata
from libs.readiness import target_of
from libs.scenario.pool import ScenarioVm
from libs.virt.definition import OVERHEAD_MIB, overhead_mib


def findable(vm: ScenarioVm, address: str) -> ScenarioVm:
    """One that is probed, at this address with its prefix: the policy names it, unless its guest agent does."""
    if not address or vm.agent:
        return vm
    return vm.model_copy(update={"ready": vm.ready.replace(":", f":{address.partition('/')[0]}:", 1)})


def lab_vm(vm: ScenarioVm, address: str = "", *, bare: bool = False) -> LabVm:
    """What a VM occupies, as the scenario says it, includes its hypervisor's overhead. One that panics keeps its QEMU, as
    the simulator's do: to restart it takes an eviction, while libvirt itself turns the other sort into a crash. One that is
    probed has an `address` and Linux, to answer from."""
    target = target_of(vm.ready)
    return LabVm(
        vm.name,
        vm.memory_mib - overhead_mib(vm.memory_mib - OVERHEAD_MIB, vm.vcpus),
        vm.vcpus,
        metadata=policy_metadata(findable(vm, address)),
        datastore=vm.datastore or "",
        guest_agent=vm.agent,
        on_crash="preserve",
        bare=bare and not vm.agent and not address,
        networks=vm.networks,
        address=address,
        serves=f"{target.port}{target.path or '/'}" if target is not None else "",
        serves_after_s=vm.serves_after_s,
    )
