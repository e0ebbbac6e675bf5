"""The policies of VMs in their own metadata: read, made into rules of a snapshot, and contradictions dropped by name."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from typing import Any

import pytest

from libs.config.settings import Settings
from libs.liveshot import assembled
from libs.model import Offers, VmNeeds, VmPolicy
from libs.planning.policies import after_of, groups_of, labels_of, without_circles
from libs.planning.snapshot import Dependency, SnapshotVm
from libs.virt.definition import BadPolicyError, policy_of, with_policy
from tests.unit.made import boot, inventory, vm

pytestmark = pytest.mark.fast


def policy(attributes: str) -> VmPolicy:
    text = f'<domain><metadata><r:policy xmlns:r="urn:rekindle:policy:1" {attributes}/></metadata></domain>'
    return policy_of(ET.fromstring(text), VmPolicy())


def machine(name: str, **more: Any) -> SnapshotVm:
    return SnapshotVm(name=name, memory_mib=1, vcpus=1, **more)


def test_a_policy_in_metadata_says_what_a_snapshot_says_of_a_vm() -> None:
    read = policy(
        'requires_labels="rack=r1,disk=ssd" after="db1; cache agent 30" '
        'anti_affinity="db,all:rack:soft" start_delay_s="2.5"'
    )
    assert labels_of(read.requires_labels) == {"rack": "r1", "disk": "ssd"}
    assert labels_of(read.prefers_labels) == {}
    assert after_of(read.after) == [
        Dependency(vm="db1"),
        Dependency(vm="cache", ready="agent", wait_s=30.0),
    ]
    assert read.start_delay_s == 2.5
    assert policy_of(ET.fromstring(with_policy("<domain/>", read)), VmPolicy()) == read


@pytest.mark.parametrize(
    "attributes",
    [
        'requires_labels="rack"',
        'affinity="a:b:c"',
        'anti_affinity="a:b:soft:d"',
        'after="db1 soon"',
        'after="db1 agent long"',
        'after="web tcp://10.0.0.1:80"',
        'start_delay_s="-1"',
    ],
)
def test_a_policy_that_says_nothing_sensible_is_not_read(attributes: str) -> None:
    with pytest.raises(BadPolicyError, match=attributes.split("=")[0]):
        policy(attributes)


def test_groups_are_made_of_all_who_name_them() -> None:
    policies = {
        "a": VmPolicy(anti_affinity="db,all:rack:soft"),
        "b": VmPolicy(anti_affinity="db:host", affinity="web"),
        "c": VmPolicy(affinity="web"),
    }
    ruled = groups_of(policies, [machine(name) for name in "abc"])
    assert ruled.dropped == ()
    assert [(one.name, one.strict, one.vms) for one in ruled.groups] == [
        ("anti_affinity all over rack", False, ("a",)),
        ("anti_affinity db over host", True, ("a", "b")),
        ("affinity web over host", True, ("b", "c")),
    ]


def test_of_rules_that_contradict_each_other_the_weakest_is_dropped_by_name() -> None:
    policies = {name: VmPolicy(anti_affinity="db:rack", affinity="near") for name in "ab"}
    ruled = groups_of(policies, [machine(name) for name in "ab"])
    assert [one.name for one in ruled.groups] == ["anti_affinity db over rack"]
    [(rule, why)] = ruled.dropped
    assert rule == "affinity near over host"
    assert why == "a and b must be apart, and strict affinity keeps them together"


def test_the_last_of_a_circle_waits_for_nobody() -> None:
    circle = [
        machine("a", after=["b"]),
        machine("b", after=["c"]),
        machine("c", after=["a"]),
        machine("d", after=["c"]),
    ]
    left, dropped = without_circles(circle)
    assert {one.name: [other.vm for other in one.after] for one in left} == {
        "a": ["b"],
        "b": ["c"],
        "c": [],
        "d": ["c"],
    }
    assert dropped == [("after of c", "a circle: a after b after c after a")]


def test_the_live_pool_is_exported_as_it_is_held_to_be() -> None:
    settings = Settings.model_validate(
        {
            "pool": "p",
            "hosts": [
                {"name": name, "uri": "test:///default", "labels": {"rack": "r1"}}
                for name in ("h1", "h2", "h3", "h4")
            ],
            "datastores": [{"name": "nfs", "path": "/nfs", "hosts": ["h1", "h2"]}],
        }
    )
    inventories = {
        "h1": inventory(
            boot("h1"),
            vm("u1", datastores=("nfs",), policy=VmPolicy(anti_affinity="db", after="U2; gone")),
            vm("u2", policy=VmPolicy(anti_affinity="db")),
        ),
        "h2": inventory(boot("h2")),
        "h3": inventory(boot("h3"), vm("u3")),
    }
    bare = {"maintenance": False, "quarantined": False, "drain": ""}
    hosts = [
        {"host": "h1", "state": "healthy", **bare},
        {"host": "h2", "state": "healthy", **bare, "maintenance": True},
        {"host": "h3", "state": "fenced", **bare},
        {"host": "h4", "state": "unknown", **bare},
    ]
    rows = [
        {"vm": "U1", "uuid": "u1", "host": "h1", "state": "running"},
        {"vm": "U2", "uuid": "u2", "host": "h1", "state": "running"},
        {"vm": "U3", "uuid": "u3", "host": "h3", "state": "waiting"},
    ]
    shot, told = assembled(settings, hosts, inventories, rows)
    assert [(one.name, one.state.value, one.storage) for one in shot.hosts] == [
        ("h1", "online", ("nfs",)),
        ("h2", "maintenance", ("nfs",)),
        ("h3", "failed", ()),
    ]
    assert [(one.name, one.host, one.state, one.storage) for one in shot.vms] == [
        ("U1", "h1", "running", ("nfs",)),
        ("U2", "h1", "running", None),
        ("U3", None, "stopped", None),
    ]
    assert [one.vm for one in shot.vms[0].after] == ["U2"]
    assert [(one.name, one.vms) for one in shot.groups] == [("anti_affinity db over host", ("U1", "U2"))]
    assert told == [
        "host h4 has not been heard: left out",
        "after of U1 is dropped: there is no VM gone",
    ]


def test_the_live_pool_is_exported_with_what_hosts_offer_and_vms_need() -> None:
    """So that planning commands on the live pool say what placement would."""
    gpu = "pci 10de:1eb8 0000:3b:00.0"
    settings = Settings.model_validate(
        {"pool": "p", "hosts": [{"name": name, "uri": "test:///default"} for name in ("h1", "h2", "h3")]}
    )
    needs = VmNeeds(networks=("br0",), devices={gpu: 1}, cpu_model="Haswell", host_cpu=False)
    has = Offers(networks=("br0", "lan"), devices={gpu: 1}, cpu_models=("Haswell",))
    inventories = {
        "h1": inventory(boot("h1"), vm("a", needs=needs), vm("b")).model_copy(update={"offers": has}),
        "h2": inventory(boot("h2")),
        "h3": inventory(boot("h3")).model_copy(update={"offers": Offers(networks=(), devices={})}),
    }
    bare = {"maintenance": False, "quarantined": False, "drain": "", "state": "healthy"}
    rows = [{"vm": uuid.upper(), "uuid": uuid, "host": "h1", "state": "running"} for uuid in ("a", "b")]
    shot, told = assembled(settings, [{"host": name, **bare} for name in inventories], inventories, rows)
    assert [(one.networks, one.devices, one.cpu_models) for one in shot.hosts] == [
        (("br0", "lan"), {gpu: 1}, ("Haswell",)),
        (None, {gpu: 1}, None),
        ((), {}, None),
    ]
    assert [(one.networks, one.devices, one.cpu_model) for one in shot.vms] == [
        (("br0",), {gpu: 1}, "Haswell"),
        (None, {}, None),
    ]
    assert told == ["the devices of h2 are not known: it counts as if it had all that VMs have"]
