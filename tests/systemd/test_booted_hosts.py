"""The host agent on hosts that a real systemd boots, with a real libvirtd: `make systemd-test`.

Two hosts, installed as docs/DEPLOYING.md says, and the plane beside them. The tests go on one after the other: each leaves both
hosts on, with an agent that the pool hears.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from tests.systemd import machine as machines
from tests.systemd.machine import DATA, Machine, bare, run, until
from tests.systemd.pool import SHARED, Pool, began, define, install, running, thrown_away

WITHOUT = "" if os.environ.get("REKINDLE_SYSTEMD") else "it takes minutes: run `make systemd-test`"
pytestmark = [pytest.mark.timeout(900), pytest.mark.skipif(bool(WITHOUT), reason=WITHOUT)]
UNIT, GATE = "rekindle-heartbeat.service", "rekindle-gate.service"
HOOK = "/etc/libvirt/hooks/qemu.d/rekindle-arrivals"
ALLOWED = "/run/rekindle/arrivals-allowed"
HEARD_S, JUDGED_S = 20.0, 40.0
SLOTS = f"{SHARED}/.rekindle-rack-a"
OWN = {"/dev/mqueue", "/dev/shm", "/run/rekindle", SLOTS, "/tmp", "/var/tmp"}
STATE = "/var/lib/rekindle"
PLAIN = {f"/dev/{name}" for name in ("full", "null", "pts/ptmx", "random", "urandom", "zero")}
SECRETS = (
    "/etc/shadow",
    "/root/fence.key",
    "/etc/fence.key",
    "/home/person/open",
    "/proc/1/environ",
    "/etc/rekindle/bus_key",
    "/etc/libvirt/qemu.conf",
)


@dataclass(slots=True)
class Pair:
    pool: Pool
    hosts: dict[str, Machine]

    def __getitem__(self, name: str) -> Machine:
        return self.hosts[name]

    def heard(self, name: str) -> None:
        """Its agent runs, and the pool has joined it."""
        until(lambda: self.pool.host(name)["state"] == "healthy", HEARD_S, f"{name} is healthy")

    def told(self, kind: str, host: str, after: int, within_s: float = JUDGED_S) -> dict[str, Any]:
        """A fact about a host that came later."""
        found: list[dict[str, Any]] = []

        def there() -> bool:
            found[:] = [
                one["data"]
                for one in self.pool.facts(after)
                if one["data"]["kind"] == kind and one["data"]["at"]["host"] == host
            ]
            return bool(found)

        until(there, within_s, f"{kind} of {host} is told")
        return found[0]


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    """Two hosts that are booted and installed, one after the other; with what the installer said in `told`."""
    reason = machines.reasons_against()
    if reason:
        pytest.skip(f"no host can be booted here: {reason}")
    base = bare()
    place = Path(tempfile.mkdtemp(prefix="run-", dir=DATA))
    place.chmod(0o755)
    pool = Pool(place)
    hosts: dict[str, Machine] = {}
    try:
        pool.lay_out()
        hosts |= {name: pool.machine(name, base) for name in pool.names}
        pool.start()
        for name, host in hosts.items():
            host.boot()
            said = install(host, "--pool", "pool.yaml", "--bus-dir", f"for-{name}")
            assert f"the agent of {name} is installed" in said
            assert "must be restarted" not in said, "libvirtd has read which hooks there are"
        yield Pair(pool, hosts)
    finally:
        for host in hosts.values():
            host.cut()
        pool.stop()
        thrown_away(place)


def agent_of(host: Machine) -> int:
    return int(host.shown(UNIT, "MainPID")["MainPID"])


def test_installed_the_agent_runs_and_the_pool_hears_the_host_and_its_vms(pair: Pair) -> None:
    for name, host in pair.hosts.items():
        assert host.shown(UNIT, "ActiveState", "UnitFileState", "NRestarts") == {
            "ActiveState": "active",
            "UnitFileState": "enabled",
            "NRestarts": "0",
        }
        gate = {"ActiveState": "inactive", "UnitFileState": "enabled"}
        assert host.shown(GATE, *gate) == gate, "libvirt runs already: nothing is to be held back"
        pair.heard(name)
    define(pair["k1"], "vm1", autostart=True)
    define(pair["k1"], "free", protection="none", autostart=True, start=False)
    until(lambda: pair.pool.vm("vm1").get("host") == "k1", HEARD_S, "vm1 is in the inventory of k1")
    until(lambda: pair.pool.vm("vm1")["lease"] == "running on k1", HEARD_S, "vm1 is leased to k1")


def test_killed_it_is_started_again_at_once_and_no_vm_is_touched(pair: Pair) -> None:
    host, after = pair["k1"], pair.pool.last()
    before, began_before = agent_of(host), began(host, "vm1")
    host.do("kill", "-9", str(before))
    took = until(lambda: agent_of(host) not in (0, before), 10, "it is started again")
    assert host.shown(UNIT, "NRestarts") == {"NRestarts": "1"}
    pair.told("host.refuted", "k1", after)
    pair.heard("k1")
    assert "host.failed" not in {fact["data"]["kind"] for fact in pair.pool.facts(after)}
    assert (running(host), began(host, "vm1")) == ({"vm1"}, began_before)
    print(f"\nkilled: another agent after {took:.1f} s")  # noqa: T201


def test_restarted_it_says_goodbye_and_nobody_suspects_the_host(pair: Pair) -> None:
    host, after, before = pair["k1"], pair.pool.last(), agent_of(pair["k1"])
    host.do("systemctl", "restart", UNIT)
    until(lambda: host.journal(UNIT).count("service runs") >= 3, HEARD_S, "its third life has begun")
    assert agent_of(host) != before
    pair.heard("k1")
    assert [fact["data"]["kind"] for fact in pair.pool.facts(after)] == []


def test_stopped_it_has_said_goodbye_and_is_missed_only_after_its_grace(pair: Pair) -> None:
    """Killed, it was missed after half a second."""
    host, after = pair["k1"], pair.pool.last()
    host.do("systemctl", "stop", UNIT)
    assert "service stopped" in host.journal(UNIT)
    assert pair.told("host.suspected", "k1", after)["silent_s"] >= 10
    pair.told("host.agent_down", "k1", after)
    assert running(host) == {"vm1"}
    host.do("systemctl", "start", UNIT)
    pair.told("host.refuted", "k1", after)
    pair.heard("k1")


CARELESS = (
    "mkdir -p -m 777 /etc/open /usr/open /var/open /var/lib/open /opt/open /srv/open /boot/open; mkdir -p -m 755 /home/person; "
    "echo secret >/home/person/open"
)
"""What file permissions alone would let anybody write to, and read."""
CONTROL = ("User=rekindle", "ProtectSystem=strict", "ProtectControlGroups=yes")


def of_container(host: Machine) -> set[str]:
    """Directories below /run that any unit may write to here, as strict as it may be: on some kernels nspawn's /run stays as
    it is (by systemd 252 on Linux 6.18 it does)."""
    words = [word for each in CONTROL for word in ("-p", each)]
    done = host.ask("systemd-run", "-q", "--wait", *words, "touch", "/run/lock/.control")
    host.do("rm", "-f", "/run/lock/.control")
    return {"/run/lock"} if done.returncode == 0 else set()


def probed(host: Machine, source: Path) -> dict[str, Any]:
    """What a process may that is started by the agent's unit in the agent's place."""
    (source / "probe.py").write_text((Path(__file__).parent / "probe.py").read_text())
    units = "/etc/systemd/system"
    host.sh(
        f"cp {units}/{UNIT} {units}/probe.service; rm -rf {units}/probe.service.d; cp -r {units}/{UNIT}.d {units}/probe.service.d\n"
        "printf '[Service]\\nType=oneshot\\nRestart=no\\nExecStart=\\nExecStart=/usr/bin/python3 -I %s/probe.py %s\\n' "
        f"{SHARED} '{' '.join(SECRETS)}' >{units}/probe.service.d/20-probe.conf\n"
        f"{CARELESS}; umask 077; echo secret >/root/fence.key; echo secret >/etc/fence.key\n"
        "systemctl daemon-reload; systemctl start probe"
    )
    lines = [line for line in host.journal("probe").splitlines() if line.startswith("{")]
    return dict(json.loads(lines[-1]))


def test_it_may_do_what_its_unit_says_and_nothing_else(pair: Pair) -> None:
    host = pair["k1"]
    found = probed(host, pair.pool.shared)
    none = ["0000000000000000"]
    assert found["status"]["Uid"] == ["7400"] * 4
    assert {key: found["status"][key] for key in ("CapPrm", "CapEff", "CapBnd")} == dict.fromkeys(
        ("CapPrm", "CapEff", "CapBnd"), none
    )
    assert (found["status"]["NoNewPrivs"], found["status"]["Seccomp"]) == (["1"], ["2"])
    assert set(found["folders"]) >= OWN
    others = {folder for folder in found["folders"] if not folder.startswith(STATE)} - OWN
    assert others <= of_container(host), "written where it must not"
    allowed = (STATE, SLOTS, "/run/rekindle", "/tmp", "/var/tmp", "/dev/shm")
    assert [path for path in found["files"] if not path.startswith(allowed)] == []
    assert set(found["secrets"]) == {"/etc/rekindle/bus_key", "/etc/libvirt/qemu.conf"}, (
        "its own, and by the ACL"
    )
    assert set(found["devices"]) == PLAIN
    assert found["calls"] == []
    assert found["a network socket"]
    assert found["processes"] == [7400], "of others it sees none"
    # the agent itself, as the kernel has it
    status = host.do("cat", f"/proc/{agent_of(host)}/status")
    for line in ("Uid:\t7400\t7400", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"):
        assert line in status
    host.do("systemd-analyze", "security", "--no-pager", "--threshold=15", UNIT)
    host.do("systemd-analyze", "security", "--no-pager", "--threshold=30", GATE)


def test_only_who_is_in_libvirts_group_reaches_libvirt_and_the_agents_socket_is_its_own(pair: Pair) -> None:
    host = pair["k1"]
    stranger = ("setpriv", "--reuid", "nobody", "--regid", "nogroup", "--clear-groups")
    assert host.ask(*stranger, "virsh", "-c", "qemu:///system", "list").returncode != 0
    assert host.do("stat", "-c", "%U %a", "/run/rekindle", "/run/rekindle/arrivals.sock").splitlines() == [
        "rekindle 755",
        "rekindle 600",
    ]


def test_a_host_whose_power_was_cut_does_not_start_again_what_runs_elsewhere_by_now(pair: Pair) -> None:
    host, other = pair["k1"], pair["k2"]
    host.do("virsh", "start", "free")
    until(lambda: pair.pool.vm("free")["lease"] == "running on k1", HEARD_S, "free is leased to this boot")
    begun, after = {name: began(host, name) for name in ("vm1", "free")}, pair.pool.last()
    host.cut()
    pair.told("host.failed", "k1", after)
    pair.pool.do("confirm-failed", "k1", "--yes-i-checked", "k1")
    until(lambda: "vm1" in running(other), JUDGED_S, "vm1 runs on k2")
    took = host.boot()
    print(f"\nbooted in {took:.1f} s")  # noqa: T201
    assert "vm1 is held back: its lease" in host.journal(GATE)
    ended = host.shown(GATE, "ActiveState", "Result", "ExecMainExitTimestampMonotonic")
    assert (ended["ActiveState"], ended["Result"]) == ("active", "success")
    libvirt = host.shown("libvirtd.service", "ExecMainStartTimestampMonotonic")
    assert int(ended["ExecMainExitTimestampMonotonic"]) < int(libvirt["ExecMainStartTimestampMonotonic"])
    until(lambda: "free" in running(host), HEARD_S, "what nobody protects is started by libvirt")
    pair.told("host.joined", "k1", after)
    pair.heard("k1")

    def given_back() -> bool:
        linked = "vm1" in host.do("virsh", "list", "--all", "--autostart", "--name").split()
        return linked and not host.sh(f"find {STATE}/held -name '*.json'").split()

    until(given_back, HEARD_S, "its autostart is on again, and the note is gone")
    host.do("virsh", "autostart", "--disable", "vm1")
    host.do("systemctl", "restart", UNIT)
    pair.heard("k1")
    assert running(host) == {"free"}
    assert running(other) == {"vm1"}
    assert (began(host, "vm1"), began(host, "free")) == (begun["vm1"], begun["free"] + 1)
    assert "vm1" not in host.do("virsh", "list", "--all", "--autostart", "--name").split(), (
        "a person's word stays"
    )


def migrated(pair: Pair, vm: str, source: str, target: str) -> str:
    """What virsh says against it; "" where it was done."""
    line = f"qemu+unix:///system?socket={SHARED}/{target}.sock"
    done = pair[source].ask("virsh", "migrate", "--live", "--unsafe", vm, line, "tcp://127.0.0.1")
    return done.stderr if done.returncode else ""


@pytest.mark.parametrize(
    ("source", "target"),
    [
        pytest.param("k2", "k1", id="a libvirtd booted with the hook"),
        pytest.param("k1", "k2", id="one that was reloaded"),
    ],
)
def test_libvirt_asks_the_agent_before_it_takes_a_vm_in(pair: Pair, source: str, target: str) -> None:
    there = pair[target]
    there.do("systemctl", "stop", UNIT)
    said = migrated(pair, "vm1", source, target)
    assert f"{HOOK} vm1 migrate begin -" in said
    assert "Rekindle does not let vm1 in: the Rekindle agent of this host does not answer" in said
    assert (running(pair[source]) & {"vm1"}, running(there) & {"vm1"}) == ({"vm1"}, set())
    there.do("systemctl", "start", UNIT)
    until(lambda: "leading" in there.journal(UNIT).rpartition("Started")[2], HEARD_S, "its agent runs")
    pair.heard(target)
    said = migrated(pair, "vm1", source, target)
    assert (said, running(there) & {"vm1"}, running(pair[source]) & {"vm1"}) == ("", {"vm1"}, set())
    until(lambda: pair.pool.vm("vm1")["lease"] == f"running on {target}", HEARD_S, "its lease follows")
    # as a person may have it who knows better, whatever the agent says
    there.do("systemctl", "stop", UNIT)
    there.do("touch", ALLOWED)  # the directory outlives the agent
    there.do("rm", ALLOWED)
    there.do("systemctl", "start", UNIT)
    pair.heard(target)


WAITING = """\
mkdir -p /etc/systemd/system/libvirt-guests.service.d
printf '[Unit]\\nAfter=libvirtd.service\\n' >/etc/systemd/system/libvirt-guests.service.d/order.conf
printf 'ON_SHUTDOWN=shutdown\\nSHUTDOWN_TIMEOUT=6\\n' >/etc/default/libvirt-guests
systemctl daemon-reload
"""
"""libvirt-guests, as docs/DEPLOYING.md would have it on Debian 12; for a guest that never obeys, 6 s."""


def test_a_host_that_is_shut_down_says_so_and_is_judged_once_its_guests_were_waited_for(pair: Pair) -> None:
    """Its last word is that it goes down: no grace, and no long silence either, before its VMs are looked after. But while libvirt
    is there yet, which shuts its guests down, nobody takes its power away."""
    host, after = pair["k1"], pair.pool.last()
    assert running(host) != set()
    host.sh(WAITING)
    host.switch_off()
    assert pair.told("host.suspected", "k1", after)["silent_s"] < 5
    assert pair.told("host.failed", "k1", after)["rule"] == "last-word"
    fact = next(one for one in pair.pool.facts(after) if one["data"]["kind"] == "host.failed")
    host.boot()
    of_guests = ("journalctl", "-b", "-1", "-u", "libvirt-guests", "-o", "short-unix", "--no-pager")
    lines = host.do(*of_guests).splitlines()
    assert "failed to complete in time" in "".join(lines), "they were waited for to the end"
    ended = float(next(line.split()[0] for line in lines if "Stopped libvirt-guests" in line))
    judged = datetime.fromisoformat(fact["time"]).timestamp()
    print(f"\njudged {judged - ended:.1f} s after its guests were waited for")  # noqa: T201
    assert judged > ended
    pair.told("host.joined", "k1", after)
    pair.heard("k1")


def test_a_device_with_slots_is_given_to_the_agent_by_udev_and_no_other_is(pair: Pair) -> None:
    host, pool = pair["k1"], pair.pool
    images = [pool.place / name for name in ("lun.img", "other.img")]
    loops: list[str] = []
    try:
        for image in images:
            with image.open("wb") as file:
                file.truncate(64 << 20)
            loops.append(run("losetup", "--find", "--show", str(image)).strip())
        for loop in loops:
            number = os.stat(loop).st_rdev
            host.do("mknod", "-m", "600", loop, "b", str(os.major(number)), str(os.minor(number)))
        pool.more["k1"] = "    slot: 3\n"
        pool.datastores += f"  - {{name: lun, path: {loops[0]}, block: true, hosts: [k1]}}\n"
        pool.write()
        install(host, "--pool", "pool.yaml", "--bus-dir", "for-k1")
        group = ("stat", "-c", "%U:%G %a", loops[0])
        until(
            lambda: host.do(*group).strip() == "root:rekindle 660",
            10,
            "udev has given the device to the agent",
        )
        until(lambda: b'"host":"k1"' in images[0].read_bytes(), HEARD_S, "the agent writes its slot")
        assert set(probed(host, pool.shared)["devices"]) & set(loops) == {loops[0]}
        pair.heard("k1")
    finally:
        for loop in loops:
            run("losetup", "--detach", loop)


def test_taken_away_nothing_of_it_runs_and_no_vm_is_touched(pair: Pair) -> None:
    host = pair["k2"]
    define(host, "vm2")
    begun = began(host, "vm2")
    said = host.sh("cd /root/rekindle; infra/systemd/install.sh --remove")
    assert "the agent is gone" in said
    left = host.sh(
        "systemctl list-unit-files --no-legend 'rekindle*' || true; ls -d /opt/rekindle /etc/libvirt/hooks/qemu.d/* || true; pgrep -u rekindle || true"
    )
    assert left.split() == []
    assert (running(host) & {"vm2"}, began(host, "vm2")) == ({"vm2"}, begun)
    assert host.do("id", "-u", "rekindle") == "7400\n", "its slots stay its own"
