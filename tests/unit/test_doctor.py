"""What the doctor concludes: each code where its reason is there, and none of them where all is in order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from libs.config.entries import FenceDevice
from libs.doctor.codes import CODES, About, Severity
from libs.doctor.seen import (
    Answers,
    CertificateSeen,
    ClockSeen,
    Cpu,
    Fencing,
    HostOnBus,
    HostSeen,
    MachineAnswer,
    ServerSeen,
    StoragePool,
)
from libs.doctor.trust import unverified_options
from libs.model import DiskLocks, PowerState, Protection, VmPolicy, VmState
from libs.wants import Disk, Kind
from tests.unit.ailing import MACHINE, NFS, Pool, domain, fencing, healthy, host
from tests.unit.made import vm

pytestmark = pytest.mark.fast
ON, OFF, UNKNOWN = PowerState.ON, PowerState.OFF, PowerState.UNKNOWN
LOCAL, LUN = Disk(Kind.PATH, "/var/a.raw"), Disk(Kind.BLOCK, "/dev/vg/a")
LOCKD = DiskLocks(manager="lockd", automatic=True, space="/nfs/locks")
CPU = "<cpu><model>EPYC</model></cpu>"


def but(**more: Any) -> Callable[[HostSeen], HostSeen]:
    return lambda one: replace(one, **more)


def answers(**more: Any) -> Callable[[HostSeen], HostSeen]:
    return lambda one: replace(one, answers=replace(one.answers, **more))


def raw(pool: Pool, index: int, **more: Any) -> Pool:
    """The same with other fields of one host in the pool file."""
    hosts = [one.model_dump(exclude_defaults=True) for one in pool.settings.hosts]
    hosts[index] = {**hosts[index], **more}
    return pool.with_file(hosts=hosts)


def alone() -> Pool:
    pool = healthy()
    hosts = [pool.settings.hosts[0].model_dump(exclude_defaults=True)]
    return replace(pool.with_file(hosts=hosts), seen=replace(pool.seen, hosts=pool.seen.hosts[:1]))


def locked(pool: Pool, locks: DiskLocks = LOCKD) -> Pool:
    """Each host's agent has told of a lock manager, and none of its disks is leased by its definition."""
    for name in ("h1", "h2", "h3"):
        pool = pool.with_host(name, but(locks=locks))
    return pool


def also_on_h2(**more: Any) -> Pool:
    return healthy().with_host("h2", but(domains=(domain(**more),)))


REDFISH = {
    "agent": "fence_redfish",
    "options": {"systems_uri": "/redfish/v1/Systems/1", "ssl_insecure": True},
}


def greeted(*servers: ServerSeen) -> Pool:
    return replace(healthy(), seen=replace(healthy().seen, servers=servers))


def certified(days_left: float | None) -> Pool:
    one = CertificateSeen("bus.ca_file", days_left, "2026-12-01")
    return replace(healthy(), seen=replace(healthy().seen, certificates=(one,)))


CASES: dict[str, Callable[[], Pool]] = {
    "runs-twice": also_on_h2,
    "no-other-host": alone,
    "disk-local": lambda: healthy().with_wants(disks=(LOCAL,)),
    "disk-unproven": lambda: healthy().with_wants(disks=(LUN,)),
    "iso-local": lambda: healthy().with_wants(media=(LOCAL,)).with_hosts(answers(files={LOCAL.place: False})),
    "iso-unproven": lambda: healthy().with_wants(media=(LOCAL,)),
    "host-file-local": lambda: (
        healthy().with_wants(files=(("kernel", "/boot/k"),)).with_hosts(answers(files={"/boot/k": False}))
    ),
    "host-file-unproven": lambda: healthy().with_wants(files=(("kernel", "/boot/k"),)),
    "nvram-local": lambda: healthy().with_wants(nvram="/var/lib/libvirt/qemu/nvram/a_VARS.fd"),
    "tpm-local": lambda: healthy().with_wants(tpm="/var/lib/libvirt/swtpm/uuid-a"),
    "host-device": lambda: healthy().with_wants(host_devices=("pci 0000:01:00.0",)),
    "vhost-user": lambda: healthy().with_wants(vhost_user=("interface over /run/vhost",)),
    "machine-missing": lambda: (
        healthy().with_hosts(answers(machines={MACHINE: MachineAnswer(False, "no pc-q35-7.2")}))
    ),
    "machine-unproven": lambda: healthy().with_hosts(but(answers=Answers())),
    "cpu-missing": lambda: (
        healthy().with_wants(cpu=CPU).with_hosts(answers(cpus={(MACHINE, CPU): (False, "no svm")}))
    ),
    "cpu-unproven": lambda: healthy().with_wants(cpu=CPU),
    "cpu-differs": lambda: (
        healthy().with_wants(host_cpu="host-passthrough").with_host("h2", but(cpu=Cpu("x86_64", "AMD", "EPYC")))
    ),
    "network-missing": lambda: healthy().with_hosts(but(networks=frozenset())),
    "network-unproven": lambda: healthy().with_wants(links=("br0",)).with_hosts(but(links=None)),
    "secret-missing": lambda: healthy().with_wants(secrets=("ceph",)).with_hosts(but(secrets=frozenset())),
    "secret-unproven": lambda: healthy().with_wants(secrets=("ceph",)).with_hosts(but(secrets=None)),
    "name-taken": lambda: (
        healthy().with_hosts(but(domains=(domain(uuid="another", state=VmState.STOPPED),)))
    ),
    "fits-nowhere": lambda: healthy().with_vm(memory_mib=4001),
    "no-host-suits": lambda: (
        healthy().with_host("h2", but(networks=frozenset())).with_host("h3", but(memory_mib=1000))
    ),
    "some-hosts-only": lambda: healthy().with_host("h2", but(networks=frozenset())),
    "definition-missing": lambda: healthy().with_bus(definitions=frozenset()),
    "disk-unlocked": lambda: locked(healthy().with_wants(shareable=("vda",))),
    "policy-unreadable": lambda: healthy().with_vm(bad_policy="unknown attribute"),
    "autostart": lambda: healthy().with_vm(autostart=True),
    "managed-save": lambda: healthy().with_vm(managed_save=True, state=VmState.STOPPED),
    "transient": lambda: healthy().with_vm(persistent=False),
    "host-unreachable": lambda: healthy().with_host("h3", lambda h3: HostSeen("h3", error="refused")),
    "host-cloned": lambda: healthy().with_host("h3", but(uuid="machine-h2")),
    "fence-none": lambda: raw(healthy(), 0, fencing=[]),
    "fence-unusable": lambda: healthy().with_fencing("h1", Fencing(bad="fence_x is not installed")),
    "fence-unreadable": lambda: healthy().with_fencing("h1", fencing(UNKNOWN, UNKNOWN)),
    "fence-contradicts": lambda: healthy().with_fencing("h1", fencing(ON, OFF)),
    "fence-same-device": lambda: raw(healthy(), 1, fencing=healthy().settings.hosts[0].fencing),
    "fence-level-broken": lambda: healthy().with_fencing("h1", fencing(UNKNOWN, ON)),
    "fence-bmc-only": lambda: healthy().with_fencing("h1", fencing(ON)),
    "fence-one-level": lambda: healthy().with_fencing("h1", fencing(ON)),
    "fence-unverified": lambda: raw(healthy(), 0, fencing=[REDFISH]),
    "libvirt-unverified": lambda: raw(healthy(), 1, uri="qemu+tls://h2/system?no_verify=1", insecure=True),
    "lock-manager-none": lambda: healthy().with_host("h2", but(locks=DiskLocks())),
    "arrivals-unasked": lambda: healthy().with_word("h2", HostOnBus("healthy", asks=False)),
    "clock-off": lambda: healthy().with_word("h2", HostOnBus("healthy", clock=ClockSeen(-61.3, 0.01))),
    "fence-watchdog-only": lambda: raw(healthy(), 0, fencing=(), watchdog={"timeout_s": 10}),
    "watchdog-unarmed": lambda: raw(healthy(), 0, watchdog={"timeout_s": 10}),
    "agent-none": lambda: raw(healthy(), 2, agent=False),
    "agent-not-heard": lambda: healthy().with_word("h2", HostOnBus("agent_down")),
    "host-not-healthy": lambda: healthy().with_word("h2", HostOnBus("suspect")),
    "host-closed": lambda: healthy().with_word("h2", HostOnBus("healthy", "maintenance")),
    "libvirt-old": lambda: healthy().with_host("h2", but(libvirt=8_000_000)),
    "not-asked": lambda: healthy().with_host("h2", but(unasked=(("networks", "no such call"),))),
    "not-n-plus-one": lambda: (
        healthy().with_hosts(but(domains=(domain("b", memory_mib=3500, policy=VmPolicy(protection="none")),)))
    ),
    "lock-managers-differ": lambda: locked(healthy()).with_host(
        "h3", but(locks=LOCKD.model_copy(update={"space": "/elsewhere"}))
    ),
    "locks-local": lambda: locked(healthy(), LOCKD.model_copy(update={"space": "/var/lib/libvirt/sanlock"})),
    "lock-manager-unknown": lambda: healthy().with_wants(leased=False),
    "versions-differ": lambda: healthy().with_host("h2", but(hypervisor=8_000_000)),
    "clock-unknown": healthy,
    "bus-in-the-clear": lambda: greeted(ServerSeen("10.0.0.1:4222", True, False, False)),
    "certificate-ended": lambda: certified(-0.5),
    "certificate-ends-soon": lambda: certified(29.9),
    "certificate-unread": lambda: certified(None),
    "plane-not-reached": lambda: healthy().with_bus(error="refused", hosts={}),
    "role-vacant": lambda: healthy().with_bus(vacant=("fencer",)),
}  # fmt: skip


def test_every_code_is_tested() -> None:
    assert set(CASES) == set(CODES)


@pytest.mark.parametrize("code", CASES)
def test_a_reason_is_told_with_its_subject_what_was_seen_and_what_to_do(code: str) -> None:
    found = [finding for finding in CASES[code]().told().findings if finding.code == code]
    assert found
    for one in found:
        assert one.seen
        assert one.do == CODES[code].do
        assert one.subject in {About.POOL: "p", About.VM: "a"}.get(one.about, ("h1", "h2", "h3"))
    assert len({(one.subject, one.host, one.seen) for one in found}) == len(found)


def test_a_pool_in_order_has_nothing_but_what_nobody_can_tell() -> None:
    told = healthy().told()
    assert [finding.code for finding in told.findings] == ["clock-unknown"]
    assert told.passed
    assert [(one.vm, one.restartable, one.reasons) for one in told.vms] == [("a", True, ())]
    assert "clock-unknown" not in alone().codes(), "a single clock differs from none"


@pytest.mark.parametrize("code", [code for code in CASES if CODES[code].severity is Severity.ERROR])
def test_an_error_fails_and_anything_less_passes(code: str) -> None:
    assert not CASES[code]().told().passed


@pytest.mark.parametrize("code", [code for code in CASES if CODES[code].severity is not Severity.ERROR])
def test_what_is_less_than_an_error_passes(code: str) -> None:
    told = CASES[code]().told()
    errors = {finding.code for finding in told.findings if finding.severity is Severity.ERROR}
    assert errors == ({"host-unreachable"} if code == "host-unreachable" else set())
    assert told.passed


def test_the_worst_is_told_first_and_the_figures_add_up() -> None:
    pool = healthy().with_wants(disks=(LOCAL,)).with_host("h3", lambda h3: HostSeen("h3", error="refused"))
    told = pool.with_word("h3", HostOnBus("failed", vms=(vm("b"), vm("c", VmState.STOPPED)))).told()
    ranks = [finding.severity.rank for finding in told.findings]
    assert ranks == sorted(ranks)
    assert [(one.vm, one.restartable, one.reasons) for one in told.vms] == [
        ("B", None, ("host-unreachable",)),
        ("a", False, ("disk-local",)),
    ]
    sums = told.summary
    assert (sums.vms_protected, sums.vms_restartable, sums.vms_not_restartable, sums.vms_not_seen) == (
        2,
        0,
        1,
        1,
    )
    assert sums.hosts_unreachable == 1
    assert sums.errors + sums.warnings + sums.infos == len(told.findings)
    assert told.model_dump(by_alias=True)["schema"] == "rekindle.doctor.v1"


# -- what is no reason


QUIET: dict[str, tuple[str, Callable[[], Pool]]] = {
    "a VM that nobody protects": (
        "disk-local",
        lambda: healthy().with_vm(
            wants=replace(domain().wants, disks=(LOCAL,)), policy=VmPolicy(protection=Protection.NONE)
        ),
    ),
    "a VM that is shut off": (
        "disk-local",
        lambda: healthy().with_vm(wants=replace(domain().wants, disks=(LOCAL,)), state=VmState.STOPPED),
    ),
    "a copy of the VM that is shut off on another host": (
        "runs-twice", lambda: also_on_h2(state=VmState.STOPPED)),
    "a VM that is on its way to another host": ("runs-twice", lambda: also_on_h2(moving=True)),
    "a disk that one other host has": (
        "disk-local",
        lambda: healthy().with_file(datastores=[{**NFS, "hosts": ["h1", "h2"]}]),
    ),
    "a medium that another host has at the same path": (
        "iso-unproven",
        lambda: healthy().with_wants(media=(LOCAL,)).with_host("h3", answers(files={LOCAL.place: True})),
    ),
    "firmware that another host offers itself": (
        "host-file-unproven",
        lambda: healthy().with_wants(firmware="/usr/share/OVMF.fd").with_host(
            "h3", answers(machines={MACHINE: MachineAnswer(True, "", frozenset({"/usr/share/OVMF.fd"}))})
        ),
    ),
    "variables and TPM on the datastore": (
        "nvram-local", lambda: healthy().with_wants(nvram="/nfs/a.fd", tpm="/nfs/tpm/a")),
    "the host's own CPU where all hosts have the same": (
        "cpu-differs", lambda: healthy().with_wants(host_cpu="host-passthrough")),
    "one machine type that one other host has": (
        "machine-missing",
        lambda: healthy().with_host("h2", answers(machines={MACHINE: MachineAnswer(False, "no")})),
    ),
    "one power supply of two that reads off": (
        "fence-contradicts",
        lambda: healthy().with_fencing(
            "h1", Fencing((*fencing(ON, ON).devices, replace(fencing(ON, OFF).devices[1])))
        ),
    ),
    "a secret that one other host has": (
        "secret-missing", lambda: healthy().with_wants(secrets=("ceph",)).with_host("h2", but(secrets=frozenset()))),
    "devices that differ in a secret alone": (
        "fence-same-device",
        lambda: healthy().with_file(hosts=[
            {"name": name, "uri": "qemu:///system", "fencing": [
                {"agent": "fence_x", "options": {"user": "a"}, "secrets": {"ip": {"env": name}}}
            ]}
            for name in ("h1", "h2", "h3")
        ]),
    ),
    "a host that is off and reads off": (
        "fence-contradicts",
        lambda: healthy().with_fencing("h3", fencing(OFF, OFF)).with_host(
            "h3", lambda h3: HostSeen("h3", error="refused")
        ),
    ),
    "hosts whose drivers tell no UUID": (
        "host-cloned", lambda: healthy().with_hosts(but(uuid=None), "h1", "h2", "h3")),
    "no plane, and so no copies": (
        "definition-missing",
        lambda: healthy().with_bus(error="refused", hosts={}, definitions=frozenset()),
    ),
    "a bus in the clear that nobody else reaches": (
        "bus-in-the-clear", lambda: greeted(ServerSeen("127.0.0.1:4222", False, False, False))),
    "a bus that asks for TLS": (
        "bus-in-the-clear", lambda: greeted(ServerSeen("10.0.0.1:4222", True, True, True))),
    "an embedded bus that encrypts by itself": (
        "bus-in-the-clear", lambda: healthy().with_file(bus={"listen": "10.0.0.1"})),
    "a certificate that holds for another month": ("certificate-ends-soon", lambda: certified(30.0)),
    "a VM that fits nowhere is told of itself": (
        "not-n-plus-one", lambda: healthy().with_vm(memory_mib=4001)),
}  # fmt: skip


@pytest.mark.parametrize("case", QUIET)
def test_what_is_no_reason_is_not_told(case: str) -> None:
    code, pool = QUIET[case]
    assert code in CODES
    assert code not in pool().codes()


def test_a_vm_on_its_way_is_counted_once_and_judged_where_it_runs() -> None:
    told = also_on_h2(moving=True, state=VmState.PAUSED).told()
    assert [(one.vm, one.host) for one in told.vms] == [("a", "h1")]
    assert told.passed


# -- disks


def pool_of(kind: str, source: str = "nas:/a", target: str = "/mnt/a") -> StoragePool:
    return StoragePool("images", kind, target, source)


VOLUME, MOUNTED = Disk(Kind.VOLUME, "a.raw", "images"), Disk(Kind.PATH, "/mnt/a/a.raw")


@pytest.mark.parametrize(
    ("disk", "mine", "theirs", "listed", "code"),
    [
        (MOUNTED, pool_of("netfs"), pool_of("netfs"), None, ""),
        (MOUNTED, pool_of("netfs"), pool_of("netfs", "nas:/b"), None, "disk-unproven"),
        (MOUNTED, pool_of("dir", ""), pool_of("dir", ""), True, "disk-unproven"),
        (MOUNTED, pool_of("dir", ""), pool_of("dir", ""), False, "disk-local"),
        (MOUNTED, None, None, None, "disk-unproven"),
        (LUN, None, None, None, "disk-unproven"),
        (VOLUME, pool_of("rbd", target=""), pool_of("rbd", target=""), None, ""),
        (VOLUME, pool_of("rbd", target=""), pool_of("rbd", "other", ""), None, "disk-local"),
        (VOLUME, pool_of("netfs"), None, None, "disk-local"),
        (VOLUME, pool_of("dir", ""), pool_of("dir", "", "/b"), None, "disk-local"),
        (VOLUME, pool_of("dir", ""), pool_of("dir", ""), None, "disk-unproven"),
        (VOLUME, pool_of("dir", "", "/nfs"), pool_of("dir", "", "/nfs"), None, ""),
        (VOLUME, None, pool_of("dir"), None, "disk-unproven"),
        (VOLUME, pool_of("logical", "", ""), pool_of("logical", "", ""), None, "disk-unproven"),
    ],
)
def test_a_disk_is_shared_by_its_datastore_or_by_a_storage_pool_of_one_source(
    disk: Disk, mine: StoragePool | None, theirs: StoragePool | None, listed: bool | None, code: str
) -> None:
    pool = healthy().with_wants(disks=(disk,))
    if disk.pool == "" or (mine is not None and mine.target != "/nfs"):
        pool = replace(pool.with_file(datastores=[]), seen=pool.seen)
    pool = pool.with_host("h1", but(pools=() if mine is None else (mine,)))
    pool = pool.with_hosts(but(pools=() if theirs is None else (theirs,)))
    files = {} if listed is None else {MOUNTED.place: listed}
    found = {one for one in pool.with_hosts(answers(files=files)).codes() if one.startswith("disk")}
    assert found == ({code} if code else set())


def test_the_innermost_datastore_counts() -> None:
    stores = [NFS, {"name": "own", "path": "/nfs/own", "hosts": ["h1"]}]
    pool = healthy().with_file(datastores=stores)
    assert pool.told().passed
    told = pool.with_wants(disks=(Disk(Kind.PATH, "/nfs/own/a.raw"),)).told()
    assert [finding.seen for finding in told.findings if finding.code == "disk-local"] == [
        "/nfs/own/a.raw: h2, h3: it does not have datastore own"
    ]


# -- fencing and room


def test_a_level_that_cannot_be_read_is_no_error_while_another_works() -> None:
    assert "fence-unreadable" not in healthy().with_fencing("h1", fencing(UNKNOWN, ON)).codes()
    told = healthy().with_fencing("h1", fencing(UNKNOWN, UNKNOWN)).told()
    assert [one.seen for one in told.findings if one.code == "fence-unreadable"] == [
        "level 1: said 0", "level 2: said 1"
    ]  # fmt: skip
    assert told.vms[0].reasons == ("fence-unreadable",), "its host's fault is in its way"


def test_room_is_proven_for_the_loss_of_each_host_and_told_with_figures() -> None:
    filler = domain("b", memory_mib=3500, policy=VmPolicy(protection=Protection.NONE))
    pool = healthy().with_host("h2", but(domains=(filler,)))
    assert "not-n-plus-one" not in pool.codes(), "h3 takes it"
    told = pool.with_host("h3", but(domains=(replace(filler, name="c", uuid="uuid-c"),))).told()
    assert [one.seen for one in told.findings if one.code == "not-n-plus-one"] == [
        (
            "without h1: 1000 MiB of 1 protected VMs to place, 1000 MiB free elsewhere; no room for a: "
            "500 MiB and 0 vCPUs short on h3, the roomiest of 2"
        )
    ]


def test_a_host_that_takes_no_new_vms_is_no_place_to_go() -> None:
    pool = healthy().with_word("h2", HostOnBus("healthy", "maintenance"))
    assert pool.told().passed
    told = pool.with_host("h3", lambda h3: HostSeen("h3", error="refused")).told()
    assert [one.seen for one in told.findings if one.code == "no-other-host"] == [
        "h2: maintenance; h3: does not answer"
    ]
    assert host("h9").memory_mib == 4512


# -- locks and clocks


def test_a_lock_manager_that_its_agent_tells_of_is_not_unknown() -> None:
    pool = healthy().with_wants(leased=False)
    assert "lock-manager-unknown" in pool.codes()
    assert not {one for one in locked(pool).codes() if one.startswith(("lock", "disk"))}
    by_agent = pool.with_word("h1", HostOnBus("healthy", locks=LOCKD))
    assert "lock-manager-unknown" not in by_agent.codes(), "told over the bus, it is known as well"


def test_a_lock_manager_without_automatic_leases_guards_what_names_one() -> None:
    by_hand = LOCKD.model_copy(update={"automatic": False})
    pool = locked(healthy().with_wants(leased=False), by_hand)
    assert [one.seen for one in pool.told().findings if one.code == "disk-unlocked"] == [
        "lockd of h1 locks only leases that a definition names, and it names none"
    ]
    assert "disk-unlocked" not in locked(healthy(), by_hand).codes()


def test_a_clock_is_off_only_by_more_than_the_question_took() -> None:
    asked = ClockSeen.read(sent_s=100.0, told_s=103.0, heard_s=104.0)
    assert (asked.ahead_s, asked.within_s) == (1.0, 2.0), "it may as well be right"
    for clock, off in ((asked, False), (ClockSeen(1.2, 0.1), True), (ClockSeen(0.9, 0.0), False)):
        codes = healthy().with_word("h2", HostOnBus("healthy", clock=clock)).codes()
        assert ("clock-off" in codes) is off
    told = healthy().with_word("h2", HostOnBus("healthy", clock=asked)).told()
    assert [one.seen for one in told.findings if one.code == "clock-unknown"] == [
        "the clocks of 2 hosts: h1, h3"
    ]


# -- who is known


@pytest.mark.parametrize(
    ("agent", "options", "reason"),
    [
        ("fence_redfish", {"ssl-insecure": "1"}, "ssl_insecure takes any certificate"),
        ("fence_ilo4_ssh", {"ssh_options": "-o StrictHostKeyChecking=no"}, "any host key"),
        ("fence_apc", {"notls": True}, "SSL 3.0"),
        ("fence_vmware_rest", {"ssl": "off"}, "ssl is off"),
        ("fence_ipmilan", {"lanplus": False}, "IPMI 1.5"),
        ("fence_ipmilan", {"lanplus": True, "cipher": 0}, "cipher 0 asks for no password"),
        ("fence_apc_snmp", {"snmp_version": "2c"}, "community"),
        ("fence_apc_snmp", {"snmp_version": 3, "snmp_sec_level": "authNoPriv"}, "no encryption"),
        ("fence_ipmilan", {"lanplus": True, "cipher": 3}, ""),
        ("fence_ipmilan", {"ip": "10.0.0.1"}, ""),
        ("fence_redfish", {"ssl": True, "ssl_secure": "yes", "ssl_insecure": "no"}, ""),
        ("fence_apc_snmp", {"snmp_version": "3", "snmp_sec_level": "authPriv"}, ""),
    ],
)
def test_a_device_is_unverified_by_what_its_options_say(
    agent: str, options: dict[str, str | int | bool], reason: str
) -> None:
    more = {"systems_uri": "/redfish/v1/Systems/1"} if agent == "fence_redfish" else {}
    found = list(unverified_options(FenceDevice(agent=agent, options={**more, **options})))
    assert len(found) == (1 if reason else 0), found
    assert not reason or reason in found[0]


def test_a_peers_uri_is_looked_at_as_well_and_each_is_named() -> None:
    pool = raw(
        healthy(), 0, uri="qemu+tcp://h1/system", peer_uri="qemu+ssh://h1/system?no_verify=1", insecure=True
    )
    assert [(one.subject, one.seen) for one in pool.told().findings if one.code == "libvirt-unverified"] == [
        ("h1", "peer_uri: no_verify takes any peer"),
        ("h1", "uri: qemu+tcp:// is in the clear and knows no peer"),
    ]


def test_an_embedded_bus_that_is_to_speak_in_the_clear_is_told_of_before_it_runs() -> None:
    pool = healthy().with_file(bus={"listen": "10.0.0.1", "tls": False})
    assert [one.seen for one in pool.told().findings if one.code == "bus-in-the-clear"] == [
        "bus.tls is false, and bus.listen is 10.0.0.1"
    ]
