"""Domain XML: what is kept as a VM's definition, its policy, the token of its run.

The policy lives in the domain's own metadata and travels with it:
`virsh metadata VM urn:rekindle:policy:1 --key rekindle --live --config --set '<policy protection="restart"/>'`
"""

from __future__ import annotations

import hashlib
import os
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError

from libs.model import VmDefinition, VmPolicy

POLICY_NS = "urn:rekindle:policy:1"
RUN_NS = "urn:rekindle:run:1"
OVERHEAD_MIB = 48
"""What QEMU occupies beside the memory of a small guest with one vCPU and no screen: 45 MiB were measured under TCG."""
VCPU_MIB, SCREEN_MIB = 8, 16
PAGES = 512
"""Page tables take 8 bytes for each 4 KiB page. These three as KubeVirt counts them for its QEMU."""

ET.register_namespace("rekindle", POLICY_NS)
ET.register_namespace("rekindle-run", RUN_NS)


class BadPolicyError(ValueError):
    """The policy in a domain's metadata cannot be read."""


def _metadata(root: ET.Element, namespace: str) -> ET.Element | None:
    metadata = root.find("metadata")
    if metadata is None:
        return None
    return next((child for child in metadata if child.tag.startswith(f"{{{namespace}}}")), None)


def policy_of(root: ET.Element, defaults: VmPolicy) -> VmPolicy:
    """The domain's own policy over the pool's defaults. Raises BadPolicyError."""
    element = _metadata(root, POLICY_NS)
    if element is None:
        return defaults
    known = set(VmPolicy.model_fields)
    unknown = sorted(set(element.attrib) - known)
    if unknown:
        raise BadPolicyError(f"unknown attribute {unknown[0]}; known are {', '.join(sorted(known))}")
    try:
        return VmPolicy.model_validate({**defaults.model_dump(), **element.attrib})
    except ValidationError as error:
        first = error.errors()[0]
        raise BadPolicyError(f"{first['loc'][0]}: {first['msg']}") from error


def token_of(root: ET.Element, *, active: bool = True) -> int:
    """The fencing token that this run was started with, or the last one; 0 where it was not started by us. While a
    start is under way its token is in the definition of a VM that has not begun to run: see `with_token`."""
    element = _metadata(root, RUN_NS)
    if element is None:
        return 0
    text = element.get("token", "") if active else element.get("before", element.get("token", ""))
    return int(text) if text.isdecimal() else 0


def size_of(root: ET.Element) -> tuple[int, int]:
    """MiB that it may come to occupy, overhead included, and vCPUs."""
    memory = root.find("memory")
    assert memory is not None
    assert memory.text is not None
    memory_mib, vcpus = (
        -(-int(memory.text) // 1024),
        int(root.findtext("vcpu", "1")),
    )  # libvirt always prints KiB
    screens = sum(1 for model in root.iterfind("devices/video/model") if model.get("type") != "none")
    return memory_mib + overhead_mib(memory_mib, vcpus, screens), vcpus


def overhead_mib(memory_mib: int, vcpus: int, screens: int = 0) -> int:
    """What a VM of this size occupies on a host beside its guest's memory, in MiB."""
    return OVERHEAD_MIB + VCPU_MIB * (vcpus - 1) + SCREEN_MIB * screens + memory_mib // PAGES


def datastores_of(root: ET.Element, places: Mapping[str, Path]) -> tuple[str, ...]:
    """On which datastores the disks of a domain lie, backing files included. `places` are the directories by name;
    where one lies in another, a disk is on the inner one. What is read once (a CD in its drive) is no disk; a volume of a
    libvirt pool, and what is reached over a network by QEMU itself, has no path to tell it by."""
    found: set[str] = set()
    for disk in root.iterfind("devices/disk"):
        if disk.get("device", "disk") not in ("disk", "lun"):
            continue
        for source in disk.iter("source"):
            path = source.get("file") or source.get("dev")
            if path is None:
                continue
            lies = Path(os.path.normpath(path))
            holding = [name for name, place in places.items() if lies.is_relative_to(place)]
            if holding:
                found.add(max(holding, key=lambda name: (len(places[name].parts), name)))
    return tuple(sorted(found))


def definition_of(uuid: str, name: str, inactive_xml: str, live_xml: str | None = None) -> VmDefinition:
    """The copy that goes to the bus: without the token, which belongs to one run, and with the policy that holds
    for the VM as it runs: what a person set with virsh and without --config must survive a failover."""
    root = ET.fromstring(inactive_xml)
    held = None if live_xml is None else _metadata(ET.fromstring(live_xml), POLICY_NS)
    if held is not None:
        _replace_policy(root, held)
    element, metadata = _metadata(root, RUN_NS), root.find("metadata")
    if element is not None and metadata is not None:
        metadata.remove(element)
    if metadata is not None and len(metadata) == 0:
        root.remove(metadata)  # an empty one is none
    xml = ET.tostring(root, encoding="unicode")
    digest = hashlib.sha256(ET.canonicalize(xml, strip_text=True).encode()).hexdigest()
    return VmDefinition(uuid=uuid, name=name, xml=xml, sha256=digest)


def with_token(definition: VmDefinition, token: int, before: int = 0) -> str:
    """The XML to start from, with the token in its metadata, and that of the run before: libvirt defines and starts
    in two calls, and a crash that is read between them belongs to the former run. `begun` takes it out again."""
    root = ET.fromstring(definition.xml)
    metadata = root.find("metadata")
    if metadata is None:
        metadata = ET.SubElement(root, "metadata")
    run = ET.SubElement(metadata, f"{{{RUN_NS}}}run")
    run.set("token", str(token))
    run.set("before", str(before))
    return ET.tostring(root, encoding="unicode")


def begun(token: int) -> str:
    """What stands in the metadata in the place of it, once the run has begun, or was refused."""
    return f'<run token="{token}"/>'


def with_policy(xml: str, policy: VmPolicy) -> str:
    """XML with this policy in its metadata, in the place of any other."""
    root = ET.fromstring(xml)
    element = ET.Element(f"{{{POLICY_NS}}}policy")
    for key, value in policy.model_dump(mode="json").items():
        if value != "":
            element.set(key, str(value))
    _replace_policy(root, element)
    return ET.tostring(root, encoding="unicode")


def _replace_policy(root: ET.Element, policy: ET.Element) -> None:
    metadata = root.find("metadata")
    if metadata is None:
        metadata = ET.SubElement(root, "metadata")
    old = _metadata(root, POLICY_NS)
    if old is not None:
        metadata.remove(old)
    metadata.append(policy)
