"""What a simulated VM's definition says, and what a host lacks of it."""

from __future__ import annotations

import functools
import hashlib
import xml.etree.ElementTree as ET
from collections import Counter
from dataclasses import replace
from xml.sax.saxutils import quoteattr

from libs.model import VmDefinition, VmPolicy
from libs.needs import Asked, asked_of
from libs.scenario.pool import ScenarioVm
from libs.sim.hosts import SimHost, VmSpec
from libs.virt.definition import policy_of, with_policy


def address_of(spec: VmSpec) -> str:
    """Of its guest, which it has wherever it runs."""
    return f"guest-of-{spec.uuid}"


def spec_of(vm: ScenarioVm, uuid: str, datastore: str) -> VmSpec:
    """A VM of a scenario file."""
    nics = (
        f"<interface type='network'><source network={quoteattr(name)}/></interface>" for name in vm.networks
    )
    held = (_hostdev(name) * count for name, count in vm.devices.items())
    model = f"<cpu mode='custom' match='exact'><model>{vm.cpu_model}</model></cpu>" if vm.cpu_model else ""
    return VmSpec(
        uuid,
        vm.name,
        vm.memory_mib,
        vm.vcpus,
        vm.policy,
        vm.agent,
        datastore,
        devices="".join((*nics, *held)),
        cpu=model,
        serves_after_s=vm.serves_after_s,
    )


def _hostdev(name: str) -> str:
    """A device by the name that inventories give it (libs/model.py:Offers)."""
    kind, *_, where = name.split()
    if kind == "mdev":
        source = f"<address uuid='{where}'/>"
    elif kind == "usb":
        vendor, product = where.split(":")
        source = f"<vendor id='0x{vendor}'/><product id='0x{product}'/>"
    else:
        domain, bus, rest = where.split(":")
        slot, function = rest.split(".")
        source = f"<address domain='0x{domain}' bus='0x{bus}' slot='0x{slot}' function='0x{function}'/>"
    return f"<hostdev mode='subsystem' type='{kind}'><source>{source}</source></hostdev>"


@functools.lru_cache(maxsize=1024)
def definition(spec: VmSpec) -> VmDefinition:
    """The copy of a VM's definition: with its policy, and opaque to all but the hypervisor."""
    of = f" type='kvm'><name>{spec.name}</name>{spec.cpu}<devices>{spec.devices}</devices>"
    inside = of if spec.cpu or spec.devices else f"><name>{spec.name}</name>"
    xml = with_policy(f"<domain{inside}</domain>", spec.policy)
    digest = hashlib.sha256(xml.encode()).hexdigest()
    return VmDefinition(uuid=spec.uuid, name=spec.name, xml=xml, sha256=digest)


def defined(spec: VmSpec, copy: VmDefinition) -> VmSpec:
    """The VM as its definition describes it: started from an old copy, it has its old policy."""
    policy = policy_of(ET.fromstring(copy.xml), VmPolicy())
    return spec if policy == spec.policy else replace(spec, policy=policy)


def lacking(host: SimHost, copy: VmDefinition) -> str:
    """What the definition names and this host does not have, or has given to another VM, as far as its libvirt tells."""
    asked, has = asked_of(copy.xml), host.offers
    if asked is None or has is None:
        return ""
    named = (
        (asked.networks, has.networks),
        (_lacking_devices(host, asked, copy.uuid), None if has.devices is None else ()),
        ([asked.cpu_model] if asked.cpu_model else [], has.cpu_models),
    )
    return next((one for wanted, had in named if had is not None for one in wanted if one not in had), "")


def _lacking_devices(host: SimHost, asked: Asked, vm: str) -> list[str]:
    """One that is passed through to a VM is not there for any other."""
    if not asked.devices:
        return []
    left = Counter[str]()
    for name, count in ((host.offers and host.offers.devices) or {}).items():
        left[f"{name.split()[0]} {name.split()[-1]}"] += count
    for domain in host.active():
        held = asked_of(definition(domain.spec).xml) if domain.spec.uuid != vm else None
        left.subtract(held.devices if held is not None else ())
    return [name for name, count in Counter(asked.devices).items() if left[name] < count]


def suits(host: SimHost, spec: VmSpec) -> bool:
    """Whatever others hold, the host has what the VM asks for by name. False of one with a device, which is no matter of
    room."""
    asked = asked_of(definition(spec).xml)
    return asked is not None and not asked.devices and not lacking(host, definition(spec))
