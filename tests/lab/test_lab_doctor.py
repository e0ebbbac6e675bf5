"""`rekindle doctor` on real libvirt and real QEMU: what it can tell there, and a VM on a disk that only one host has."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator

import pytest
import yaml

from infra.lab import procs
from infra.lab.lab import FENCE_AGENT, Lab, LabHost, LabVm
from tests.lab.roots import REPOSITORY, Roots

pytestmark = pytest.mark.lab
HOSTS = ("h1", "h2")


@pytest.fixture
def lab(roots: Roots) -> Iterator[Lab]:
    """Two hosts, with the VM `well` on the shared directory and `tied` on a disk of h1's own."""
    lab = Lab.create([LabHost(name) for name in HOSTS], roots.new())
    lab.up(observe=False)
    try:
        yield lab
    finally:
        lab.down()
    assert procs.of_lab(lab.root) == []


def test_a_vm_on_a_local_disk_fails_and_one_on_shared_storage_passes(lab: Lab) -> None:
    own = lab.root / "own-of-h1"
    own.mkdir()
    lab.define_vm(LabVm("well", bare=True), "h1")
    lab.define_vm(LabVm("tied", bare=True, disk=own / "tied.raw"), "h1")
    pool = lab.root / "doctor.yaml"
    document = {
        "pool": "lab",
        "data_dir": str(lab.root / "data"),
        "datastores": [{"name": "shared", "path": str(lab.shared)}],
        "hosts": [
            {
                "name": name,
                "uri": lab.uri(name),
                "fencing": [{"agent": str(FENCE_AGENT), "options": {"socket": str(lab.power_socket(name))}}],
            }
            for name in HOSTS
        ],
    }
    pool.write_text(yaml.safe_dump(document))
    command = [sys.executable, "-m", "services.cli", "doctor", "--json", "--config", str(pool)]

    def told(status: int) -> dict[str, dict[str, object]]:
        done = subprocess.run(
            command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == status, done.stdout + done.stderr
        found = json.loads(done.stdout)
        assert {host["host"]: host["reachable"] for host in found["hosts"]} == dict.fromkeys(HOSTS, True)
        return {
            "errors": {
                one["code"]: one["subject"] for one in found["findings"] if one["severity"] == "error"
            },
            "vms": {vm["vm"]: vm["restartable"] for vm in found["vms"]},
            "codes": {one["code"]: one["seen"] for one in found["findings"]},
        }

    seen = told(1)
    assert seen["errors"] == {"disk-local": "tied"}
    assert seen["vms"] == {"tied": False, "well": True}
    assert not {"machine-unproven", "machine-missing", "host-cloned", "not-asked"} & set(seen["codes"]), (
        "real hosts tell what machines they can run, and who they are"
    )
    lab.destroy_vm("tied")
    seen = told(0)
    assert (seen["errors"], seen["vms"]) == ({}, {"well": True})
