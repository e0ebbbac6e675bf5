"""Domain XML: the copy that is kept, the policy that travels in it, the token of one run."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from libs.model import Priority, Protection, VmPolicy
from libs.virt.definition import (
    OVERHEAD_MIB,
    POLICY_NS,
    BadPolicyError,
    datastores_of,
    definition_of,
    policy_of,
    size_of,
    token_of,
    with_policy,
    with_token,
)

pytestmark = pytest.mark.fast

PLAIN = (
    "<domain type='kvm'><name>a</name><memory unit='KiB'>131073</memory><vcpu current='1'>4</vcpu></domain>"
)
OTHER = """<domain type='kvm'><name>a</name>
  <metadata><app:x xmlns:app="urn:app" keep="me"><app:y/></app:x></metadata>
  <memory>1024</memory><devices><emulator>/usr/bin/qemu</emulator></devices></domain>"""


def policy_xml(attributes: str, tag: str = "policy") -> ET.Element:
    element = f'<r:{tag} xmlns:r="{POLICY_NS}" {attributes}/>'
    return ET.fromstring(f"<domain><metadata>{element}</metadata></domain>")


def test_without_a_policy_of_its_own_the_pools_defaults_hold() -> None:
    defaults = VmPolicy(protection=Protection.BEST_EFFORT, order=7)
    assert policy_of(ET.fromstring(PLAIN), defaults) == defaults
    assert policy_of(ET.fromstring(OTHER), defaults) == defaults


def test_its_own_policy_lies_over_the_defaults_field_by_field() -> None:
    defaults = VmPolicy(protection=Protection.BEST_EFFORT, order=7)
    found = policy_of(policy_xml('priority="highest"'), defaults)
    assert found == VmPolicy(protection=Protection.BEST_EFFORT, priority=Priority.HIGHEST, order=7)


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ('priority="urgent"', "priority"),
        ('protect="restart"', "unknown attribute protect"),
        ('order="-1"', "order"),
        ('order="soon"', "order"),
        ('protection=""', "protection"),
    ],
)
def test_a_policy_that_cannot_be_read_says_why(attributes: str, reason: str) -> None:
    with pytest.raises(BadPolicyError, match=reason):
        policy_of(policy_xml(attributes), VmPolicy())


@pytest.mark.parametrize("xml", [PLAIN, OTHER])
def test_a_policy_is_written_once_and_read_back_and_spares_what_others_wrote(xml: str) -> None:
    first = VmPolicy(priority=Priority.LOW, order=3)
    second = VmPolicy(protection=Protection.NONE)
    text = with_policy(with_policy(xml, first), second)
    root = ET.fromstring(text)
    assert policy_of(root, VmPolicy()) == second
    assert text.count("policy") == text.count("policy ") or text.count("<rekindle:policy") == 1
    assert (root.find("metadata/{urn:app}x") is not None) is ("urn:app" in xml)


@pytest.mark.parametrize("xml", [PLAIN, OTHER])
def test_a_token_belongs_to_one_run_and_not_to_the_copy(xml: str) -> None:
    kept = definition_of("u", "a", xml)
    running = with_token(kept, 7)
    assert token_of(ET.fromstring(running)) == 7
    assert token_of(ET.fromstring(kept.xml)) == 0
    # what runs with a token is the same definition as before: it is not copied anew at every start
    again = definition_of("u", "a", running)
    assert again.sha256 == kept.sha256
    assert token_of(ET.fromstring(with_token(again, 8))) == 8


def test_a_vm_that_is_defined_and_has_not_begun_to_run_has_the_token_of_the_run_before() -> None:
    defined = ET.fromstring(with_token(definition_of("u", "a", PLAIN), 8, before=7))
    assert token_of(defined, active=False) == 7
    assert token_of(defined, active=True) == 8
    again = ET.fromstring(
        with_token(definition_of("u", "a", PLAIN), 9, before=token_of(defined, active=False))
    )
    assert token_of(again, active=False) == 7, "two starts whose end nobody knows are no runs"


def test_a_copy_is_the_same_whatever_its_spaces_and_another_where_it_differs() -> None:
    spaced = OTHER.replace("><", ">\n   <")
    assert definition_of("u", "a", OTHER).sha256 == definition_of("u", "a", spaced).sha256
    changed = OTHER.replace("1024", "2048")
    assert definition_of("u", "a", OTHER).sha256 != definition_of("u", "a", changed).sha256


@pytest.mark.parametrize("value", ["", "x", "-1", "1.5"])
def test_a_token_that_is_none_is_none(value: str) -> None:
    kept = definition_of("u", "a", PLAIN)
    assert token_of(ET.fromstring(with_token(kept, 0).replace('token="0"', f'token="{value}"'))) == 0


def test_its_size_is_what_it_may_come_to_occupy() -> None:
    assert size_of(ET.fromstring(PLAIN)) == (129 + OVERHEAD_MIB + 3 * 8, 4)
    assert size_of(ET.fromstring(OTHER)) == (1 + OVERHEAD_MIB, 1)
    large = PLAIN.replace("<vcpu", "<devices><video><model type='virtio'/></video></devices><vcpu", 1)
    large = re.sub(r"<memory[^<]*</memory>", f"<memory unit='KiB'>{64 << 20}</memory>", large)
    assert size_of(ET.fromstring(large)) == (65536 + OVERHEAD_MIB + 3 * 8 + 16 + 128, 4)


def test_a_copy_has_the_policy_that_holds_as_the_vm_runs() -> None:
    config = with_policy(OTHER, VmPolicy(protection=Protection.NONE))
    live = with_policy(OTHER, VmPolicy(protection=Protection.RESTART))
    copy = definition_of("u", "a", config, live)
    assert policy_of(ET.fromstring(copy.xml), VmPolicy()).protection is Protection.RESTART
    assert copy.xml.count("policy:1") == 1
    next_start = definition_of("u", "a", config, OTHER)
    assert policy_of(ET.fromstring(next_start.xml), VmPolicy()).protection is Protection.NONE


PLACES = {"nfs": Path("/vms/nfs"), "fast": Path("/vms/nfs/fast"), "san": Path("/san")}


@pytest.mark.parametrize(
    ("disks", "found"),
    [
        ("<disk type='file'><source file='/vms/nfs/a.raw'/></disk>", ("nfs",)),
        ("<disk type='file' device='disk'><source file='/vms/nfs/../nfs//a.raw'/></disk>", ("nfs",)),
        ("<disk type='block' device='lun'><source dev='/san/a'/></disk>", ("san",)),
        ("<disk type='file'><source file='/vms/nfs/fast/a.raw'/></disk>", ("fast",)),
        ("<disk type='file'><source file='/vms/nfs2/a.raw'/></disk>", ()),
        ("<disk type='file' device='cdrom'><source file='/san/boot.iso'/></disk>", ()),
        ("<disk type='file' device='disk'/>", ()),
        ("<disk type='network'><source protocol='rbd' name='pool/a'/></disk>", ()),
        ("<disk type='volume'><source pool='nfs' volume='a'/></disk>", ()),
        (
            "<disk><source file='/san/a.qcow2'/><backingStore><source file='/vms/nfs/b.raw'/></backingStore></disk>",
            ("nfs", "san"),
        ),
        ("", ()),
    ],
)
def test_on_which_datastores_a_domain_lies(disks: str, found: tuple[str, ...]) -> None:
    root = ET.fromstring(f"<domain><devices>{disks}</devices></domain>")
    assert datastores_of(root, PLACES) == found
    assert datastores_of(root, {}) == ()
