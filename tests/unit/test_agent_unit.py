"""The host agent as a systemd unit: what it may, and what the pool file adds to that."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from infra.systemd.dropin import drop_in, slot_directories, udev_rules
from libs.config.settings import load_settings
from tests.compose.files import ROOT

pytestmark = pytest.mark.fast
UNIT = ROOT / "infra/systemd/rekindle-heartbeat.service"
GATE = ROOT / "infra/systemd/rekindle-gate.service"
INSTALL = ROOT / "infra/systemd/install.sh"
POOL = """\
pool: rack-a
datastores:
  - {name: nfs, path: "/srv/nfs a%"}
  - {name: lun, path: /dev/mapper/rekindle, block: true, hosts: [kvm1]}
  - {name: other, path: /srv/other, hosts: [kvm2]}
hosts:
  - {name: kvm1, uri: "qemu+ssh://root@kvm1/system", agent: true, slot: 0}
  - {name: kvm2, uri: "qemu+ssh://root@kvm2/system", agent: true}
"""


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    path = tmp_path / "pool.yaml"
    path.write_text(POOL)
    return path


def lines(unit: str) -> set[str]:
    return {line for line in unit.splitlines() if line and not line.startswith("#")}


def test_the_unit_alone_may_write_nowhere_and_has_no_device_and_no_capability() -> None:
    assert {
        *("User=rekindle", "SupplementaryGroups=libvirt", "CapabilityBoundingSet=", "NoNewPrivileges=yes"),
        *("ProtectSystem=strict", "PrivateDevices=yes", "DevicePolicy=closed", "Restart=always"),
    } <= lines(UNIT.read_text())
    assert not re.search(r"^(ReadWritePaths|DeviceAllow|DynamicUser)=", UNIT.read_text(), re.MULTILINE)


def test_a_host_with_directories_alone_gets_these_and_no_device(pool: Path) -> None:
    found = lines(drop_in(load_settings(pool), "kvm2", pool))
    assert found == {
        *("[Service]", "Environment=REKINDLE_AGENT_HOST=kvm2"),
        *('ReadWritePaths="-/srv/nfs a%%"', 'ReadWritePaths="-/srv/other"'),
    }
    assert lines(udev_rules(load_settings(pool), "kvm2", pool)) == set()


def test_a_host_with_a_lun_gets_that_device_and_no_other(pool: Path) -> None:
    found = lines(drop_in(load_settings(pool), "kvm1", pool))
    assert found == {
        *("[Service]", "Environment=REKINDLE_AGENT_HOST=kvm1", 'ReadWritePaths="-/srv/nfs a%%"'),
        *("PrivateDevices=no", 'DeviceAllow="/dev/mapper/rekindle" rw'),
    }
    rule = 'SUBSYSTEM=="block", ENV{DM_NAME}=="rekindle", GROUP="rekindle", MODE="0660"'
    assert lines(udev_rules(load_settings(pool), "kvm1", pool)) == {rule}


def test_a_host_with_a_watchdog_gets_it_and_a_simulated_one_is_no_device(pool: Path) -> None:
    text = POOL.replace("name: kvm2,", "name: kvm2, watchdog: {timeout_s: 10},")
    pool.write_text(text)
    found = lines(drop_in(load_settings(pool), "kvm2", pool))
    assert {"PrivateDevices=no", 'DeviceAllow="/dev/watchdog" rw'} <= found
    assert 'SUBSYSTEM=="watchdog", GROUP="rekindle", MODE="0660"' in lines(
        udev_rules(load_settings(pool), "kvm2", pool)
    )
    pool.write_text(text.replace("timeout_s: 10", "timeout_s: 10, device: /run/dog.sock"))
    assert not [one for one in lines(drop_in(load_settings(pool), "kvm2", pool)) if "Device" in one]


def test_no_directory_for_slots_is_made_where_the_datastore_is_not_mounted(
    tmp_path: Path, pool: Path
) -> None:
    fstab = tmp_path / "fstab"
    fstab.write_text("nas:/b /srv/other nfs defaults 0 0\n")
    found = dict(slot_directories(load_settings(pool), "kvm2", fstab))
    assert found == {
        Path("/srv/nfs a%/.rekindle-rack-a"): "",
        Path("/srv/other/.rekindle-rack-a"): "nothing is mounted on /srv/other",
    }


def install(root: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [str(INSTALL), "--root", str(root), *words]
    environment = {**os.environ, "REKINDLE_PYTHON": sys.executable}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)


@pytest.fixture
def bus(tmp_path: Path) -> Path:
    path = tmp_path / "bus_url"
    path.write_text("nats://a:b@10.0.0.1:4222,nats://a:b@10.0.0.2:4222,nats://a:b@10.0.0.3:4222\n")
    return path


@pytest.mark.long
def test_it_is_laid_out_whole_and_taken_away_again(tmp_path: Path, pool: Path, bus: Path) -> None:
    root = tmp_path / "root"
    for _ in range(2):  # again is an update
        done = install(root, "--pool", str(pool), "--bus-url-file", str(bus), "--host", "kvm2")
        assert done.returncode == 0, done.stderr
    units = root / "etc/systemd/system"
    assert (units / UNIT.name).read_text() == UNIT.read_text()
    drop = (units / f"{UNIT.name}.d/10-host.conf").read_text()
    assert "Environment=REKINDLE_AGENT_HOST=kvm2" in drop
    assert "REKINDLE_BUS__URL_FILE=/etc/rekindle/bus_url REKINDLE_BUS__REPLICAS=3" in drop
    assert "StateDirectory=rekindle" in drop
    assert "nats://" not in drop
    assert (units / GATE.name).read_text() == GATE.read_text()
    before_libvirt = (units / f"{GATE.name}.d/10-host.conf").read_text()
    assert "REKINDLE_AGENT_HOST=kvm2 REKINDLE_BUS__URL_FILE=/etc/rekindle/bus_url" in before_libvirt
    hook = root / "etc/libvirt/hooks/qemu.d/rekindle-arrivals"
    assert os.access(hook, os.X_OK)
    words = hook.read_text().splitlines()[-1].split()
    assert words[-4:] == [
        *("/opt/rekindle/infra/systemd/arrivals.py", "/run/rekindle/arrivals.sock"),
        *("/run/rekindle/arrivals-allowed", '"$1"'),
    ]
    assert (root / words[-4].lstrip("/")).exists()
    for name in ("pool.yaml", "bus_url"):
        assert (root / "etc/rekindle" / name).stat().st_mode & 0o007 == 0
    assert (root / "opt/rekindle/services/heartbeat/__main__.py").exists()
    assert os.access(root / "usr/local/bin/rekindle", os.X_OK)
    assert install(root, "--remove").returncode == 0
    left = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}
    assert left == {"etc/rekindle/pool.yaml", "etc/rekindle/bus_url"}


@pytest.mark.long
def test_the_hook_is_left_out_and_taken_away_where_libvirt_is_to_ask_nobody(
    tmp_path: Path, pool: Path, bus: Path
) -> None:
    root = tmp_path / "root"
    hook = root / "etc/libvirt/hooks/qemu.d/rekindle-arrivals"
    words = ("--pool", str(pool), "--bus-url-file", str(bus), "--host", "kvm2")
    assert install(root, *words).returncode == 0
    (hook.parent / "other").touch()
    assert install(root, *words, "--no-arrivals").returncode == 0
    assert not hook.exists()
    assert install(root, *words).returncode == 0
    assert hook.exists()
    pool.write_text(POOL.replace("name: kvm2,", "name: kvm2, arrivals: null,"))
    assert install(root, *words).returncode == 0
    assert [path.name for path in hook.parent.iterdir()] == ["other"], "not ours"


@pytest.mark.long
def test_what_a_host_was_handed_out_is_laid_where_the_agent_and_the_gate_look(
    tmp_path: Path, pool: Path, bus: Path
) -> None:
    given, root = tmp_path / "given", tmp_path / "root"
    given.mkdir()
    (given / "bus_url").write_text("tls://10.0.0.1:4222\n")
    (given / "bus_key").write_text("SU-secret\n")
    (given / "ca.pem").write_text("certificate\n")
    done = install(root, "--pool", str(pool), "--bus-dir", str(given), "--host", "kvm2")
    assert done.returncode == 0, done.stderr
    assert "SU-secret" not in done.stdout + done.stderr
    for name in (UNIT.name, GATE.name):
        drop = (root / f"etc/systemd/system/{name}.d/10-host.conf").read_text()
        assert (
            "REKINDLE_BUS__KEY_FILE=/etc/rekindle/bus_key REKINDLE_BUS__CA_FILE=/etc/rekindle/ca.pem" in drop
        )
        assert "SU-secret" not in drop
    assert (root / "etc/rekindle/bus_key").stat().st_mode & 0o777 == 0o640
    wrong = install(root, "--pool", str(pool), "--bus-url-file", str(bus), "--bus-key-file", "/none")
    assert (wrong.returncode, "--bus-key-file" in wrong.stderr) == (2, True)


@pytest.mark.long
@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ([], "--pool"),
        (["--pool", "{pool}"], "--bus-url-file"),
        (["--pool", "{pool}", "--bus-url-file", "{bus}", "--host", "kvm9"], "no host is called kvm9"),
        (["--pol", "{pool}"], "--pol: not known"),
        (["--pool"], "a value is missing"),
    ],
)
def test_a_wrong_word_is_named(tmp_path: Path, pool: Path, bus: Path, words: list[str], reason: str) -> None:
    given = [word.format(pool=pool, bus=bus) for word in words]
    done = install(tmp_path / "root", *given)
    assert done.returncode == 2
    assert reason in done.stderr


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze here")
def test_systemd_takes_the_unit_and_finds_little_exposed(tmp_path: Path, pool: Path) -> None:
    settings = load_settings(pool)
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace("/usr/local/bin/rekindle", "/bin/true"))
    for host, most in (("kvm2", 20), ("kvm1", 25)):  # tenths; with a device of the machine's a little more
        place = tmp_path / f"{UNIT.name}.d"
        place.mkdir(exist_ok=True)
        (place / "10-host.conf").write_text(drop_in(settings, host, pool))
        done = subprocess.run(
            ["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stderr) == (0, "")
        judged = subprocess.run(
            ["systemd-analyze", "security", "--offline=true", f"--threshold={most}", str(unit)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert judged.returncode == 0, judged.stdout[-300:]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze here")
def test_systemd_takes_the_gate_which_is_done_before_any_daemon_of_libvirt_begins(tmp_path: Path) -> None:
    unit = tmp_path / GATE.name
    unit.write_text(GATE.read_text().replace("/usr/local/bin/rekindle", "/bin/true"))
    done = subprocess.run(
        ["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert {
        *("Before=libvirtd.service virtqemud.service libvirt-guests.service", "Type=oneshot"),
        *("RemainAfterExit=yes", "WantedBy=multi-user.target libvirtd.service virtqemud.service"),
    } <= lines(GATE.read_text())
