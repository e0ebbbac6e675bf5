"""What a host's libvirt starts by itself at boot, as files: the links of autostart, and the list of libvirt-guests.

What is held back is first noted, in a file a VM, and then taken away. The notes lie among the agent's own data: libvirt's
directories are root's alone, as the gate is, and the agent is not. Whoever is killed between any two steps leaves
nothing lost: a VM is in its place, or noted, or both, and the next gate decides anew. Needs no libvirt.
"""

from __future__ import annotations

import os
import xml.etree.ElementTree as ET
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import structlog
from pydantic import ValidationError

from libs.config.entries import HostEntry
from libs.model import HeldVm, VmPolicy
from libs.virt.definition import BadPolicyError, policy_of

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class BootStart:
    """A VM that libvirt or libvirt-guests would start, or that an earlier gate holds back; and its policy."""

    vm: HeldVm
    policy: VmPolicy


class Autostart:
    """The files of one host; `notes` is a directory of its own. Every method raises OSError where they cannot be read
    or changed."""

    def __init__(self, links: Path, resume_list: Path, notes: Path) -> None:
        self._links, self._list, self._notes = links, resume_list, notes

    def wanted(self, defaults: VmPolicy) -> list[BootStart]:
        """All that would start at this boot, and what an earlier gate holds back."""
        noted = {one.uuid: one for one in self.held()}
        listed = {uuid for _, uuids in self._listed() for uuid in uuids}
        links: dict[str, str] = {}
        for name in _names(self._links):
            path = self._links / name
            if (
                name.endswith(".xml")
                and path.is_symlink()
                and (read := _definition(path, defaults)) is not None
            ):
                links[read[0].uuid] = os.readlink(path)
        found = []
        for vm, policy in _all(self._links.parent, defaults) if noted or listed or links else ():
            before = noted.get(vm.uuid, vm)
            link, resumed = links.get(vm.uuid, before.link), before.resumed or vm.uuid in listed
            if link or resumed:
                known = vm.model_copy(update={"link": link, "resumed": resumed})
                found.append(BootStart(known, policy))
        return sorted(found, key=lambda one: one.vm.uuid)

    def hold(self, vm: HeldVm) -> None:
        """Keep it from whoever would start it. Nothing changes where it is kept already."""
        self._notes.mkdir(parents=True, exist_ok=True)
        self._hand_over()
        _write(self._notes / f"{vm.uuid}.json", vm.model_dump_json() + "\n")
        (self._links / f"{vm.name}.xml").unlink(missing_ok=True)
        self._strike(vm.uuid)

    def let(self, vm: HeldVm) -> None:
        """It may start: a link that an earlier gate took away is there again. Its note is left to the agent."""
        if self._notes.exists():
            self._hand_over()
        link = self._links / f"{vm.name}.xml"
        if vm.link and not link.is_symlink():
            self._links.mkdir(exist_ok=True)
            link.symlink_to(vm.link)

    def _hand_over(self) -> None:
        """The agent, whose data these are, takes the notes away. The outer directory first: the inner one goes to its owner."""
        for made in (self._notes.parent, self._notes):
            owner = made.parent.stat()
            os.chown(made, owner.st_uid, owner.st_gid)

    def held(self) -> list[HeldVm]:
        """What is noted."""
        found = []
        for name in _names(self._notes):
            if not name.endswith(".json"):
                continue
            try:
                found.append(HeldVm.model_validate_json((self._notes / name).read_text()))
            except ValidationError as error:
                log.error("note on a VM that was held back is unreadable", file=name, reason=str(error)[:200])
        return found

    def forget(self, vm: HeldVm) -> None:
        """It is held back no more."""
        (self._notes / f"{vm.uuid}.json").unlink(missing_ok=True)

    def _listed(self) -> list[tuple[str, list[str]]]:
        """By URI, as libvirt-guests wrote it."""
        try:
            lines = self._list.read_text().splitlines()
        except FileNotFoundError:
            return []
        parted = [line.split() for line in lines if line.strip()]
        return [(words[0], words[1:]) for words in parted]

    def _strike(self, uuid: str) -> None:
        listed = self._listed()
        if not any(uuid in uuids for _, uuids in listed):
            return
        left = [(uri, [one for one in uuids if one != uuid]) for uri, uuids in listed]
        text = "".join(f"{uri} {' '.join(uuids)}\n" for uri, uuids in left if uuids)
        _write(self._list, text)


def autostart_of(entry: HostEntry, data_dir: Path) -> Autostart:
    """Of a host, on it."""
    return Autostart(entry.autostart, entry.resume_list, data_dir / "held" / entry.name)


def _write(path: Path, text: str) -> None:
    """Whole or not at all, and so that it lasts should the power be cut now."""
    draft = path.with_name(f"{path.name}.rekindle")
    with draft.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.chmod(0o644)
    draft.replace(path)
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _names(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except FileNotFoundError:
        return []


def _definition(path: Path, defaults: VmPolicy) -> tuple[HeldVm, VmPolicy] | None:
    """The VM and its policy; None of what libvirt could not start either. A policy that cannot be read is the pool's, as
    for the agent."""
    try:
        root = ET.parse(path).getroot()
    except FileNotFoundError:
        return None
    except ET.ParseError as error:
        log.warning("definition unreadable, left to libvirt", file=str(path), reason=str(error))
        return None
    uuid, name = root.findtext("uuid"), root.findtext("name")
    if root.tag != "domain" or not uuid or not name:
        return None
    try:
        policy = policy_of(root, defaults)
    except BadPolicyError as error:
        log.error("policy unreadable, the pool's defaults hold", vm=name, reason=str(error))
        policy = defaults
    return HeldVm(uuid=uuid.strip(), name=name.strip()), policy


def _all(folder: Path, defaults: VmPolicy) -> Iterable[tuple[HeldVm, VmPolicy]]:
    for name in _names(folder):
        if name.endswith(".xml"):
            read = _definition(folder / name, defaults)
            if read is not None:
                yield read
