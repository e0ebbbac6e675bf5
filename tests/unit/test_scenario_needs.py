"""What a scenario file says that hosts offer and VMs need: what it may name, what the lab can have, and what it is told."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from infra.lab import libvirtconf, refusals
from infra.lab.cuts import Cuts
from infra.lab.lab import LabError, LabHost
from infra.lab.labvms import findable, lab_vm
from infra.lab.spec import LabNetwork, LabSpec, check_hosts
from infra.lab.spec import load as load_lab
from infra.lab.steps import load as load_for_lab
from libs.config.yamlfile import BadInputError
from libs.model import Offers
from libs.needs import asked_of
from libs.scenario.files import load_scenario
from libs.scenario.pool import ScenarioVm
from libs.sim.definitions import definition, spec_of

pytestmark = pytest.mark.fast

GPU, DONGLE = "pci 10de:1eb8 0000:3b:00.0", "usb 1050:0407"
SLICE = "mdev nvidia-63 4b20d080-1b54-4048-85b3-a6a62d165c01"
GOOD = f"""\
schema: rekindle.scenario.v1
name: a file
duration_s: 20
hosts:
  - {{name: h1, networks: [lan, san], devices: {{{GPU!r}: 1, {DONGLE}: 2}}, cpu_models: [Haswell]}}
  - {{name: h2}}
vms:
  - {{name: a, host: h1, networks: [san], devices: {{{DONGLE}: 2}}, cpu_model: Haswell}}
  - {{name: b, host: h2, networks: [dmz]}}
"""
NETS = """\
schema: rekindle.scenario.v1
name: a file
hosts: [{name: h1, networks: [lan]}, {name: h2}]
vms:
  - {name: a, host: h1, networks: [lan], ready: "http:8080/health"}
"""


def _file(folder: Path, text: str) -> Path:
    path = folder / "scenario.yaml"
    path.write_text(text)
    return path


def test_a_host_offers_what_the_file_says_and_of_one_that_says_nothing_nobody_knows(tmp_path: Path) -> None:
    scenario = load_scenario(_file(tmp_path, GOOD))
    h1, h2 = scenario.hosts
    told = {"networks": ("lan", "san"), "devices": {GPU: 1, DONGLE: 2}, "cpu_models": ("Haswell",)}
    assert h1.offers == Offers.model_validate({**told, "arch": "x86_64"})
    assert h2.offers is None
    assert scenario.networks == ("dmz", "lan", "san")


def test_what_a_vm_needs_stands_in_its_definition_as_libvirt_would_say_it() -> None:
    needs = {"networks": ["lan"], "devices": {GPU: 1, SLICE: 1, DONGLE: 2}, "cpu_model": "Haswell"}
    vm = ScenarioVm.model_validate({"name": "a", "host": "h1", **needs})
    asked = asked_of(definition(spec_of(vm, "uuid", "")).xml)
    assert asked is not None
    home = Offers(devices={GPU: 1, SLICE: 1, DONGLE: 2}, arch="x86_64")
    known = asked.of(home)
    assert (known.networks, known.devices) == (("lan",), {GPU: 1, SLICE: 1, DONGLE: 2})
    assert known.cpu_model == "Haswell"


@pytest.mark.parametrize(
    ("right", "wrong", "says"),
    [
        ("networks: [san]", "networks: [dmz]", "line 8: vms.0.networks: host h1 has no network dmz"),
        (
            f"{{{DONGLE}: 2}}, cpu_model",
            f"{{{DONGLE}: 3}}, cpu_model",
            "vms.0.devices: host h1 has 2 usb 1050:0407, and",
        ),
        (
            f"{{{DONGLE}: 2}}, cpu_model",
            f"{{{SLICE}: 1}}, cpu_model",
            f"vms.0.devices: host h1 has no {SLICE}",
        ),
        ("networks: [dmz]", f"devices: {{{DONGLE}: 1}}", "line 9: vms.1.devices: host h2 has no usb"),
        ("cpu_model: Haswell", "cpu_model: Zen", "vms.0.cpu_model: host h1 has no CPU model Zen"),
        ("0000:3b:00.0': 1", "0000:3b:00.0': 2", "is one device, at one address, not 2"),
        (f"{DONGLE}: 2}}, cpu_models", "gpu: 2}, cpu_models", "'gpu' is no device as inventories name them"),
        ("networks: [lan, san]", "networks: [LAN!]", "hosts.0.networks.0: "),
        ("networks: [dmz]", "serves_after_s: 3", "nothing is probed, say with ready what is"),
    ],
)
def test_what_a_host_has_not_is_refused_by_line_and_field(
    tmp_path: Path, right: str, wrong: str, says: str
) -> None:
    assert right in GOOD
    with pytest.raises(BadInputError) as refused:
        load_scenario(_file(tmp_path, GOOD.replace(right, wrong, 1)))
    assert says in str(refused.value)


@pytest.mark.parametrize(
    ("right", "wrong", "says"),
    [
        (
            "networks: [lan]}, {name: h2}",
            "networks: [lan], devices: {}}",
            "hosts.0.devices: the lab has none",
        ),
        ("{name: h2}", "{name: h2, cpu_models: [Zen]}", "hosts.1.cpu_models: the hosts of one machine"),
        ("ready:", "cpu_model: Zen, ready:", "line 5: vms.0.cpu_model: the hosts of one machine"),
        ("networks: [lan], ready", "ready", "vms.0.ready: a guest of the lab is probed over a network"),
        ("http:8080", "http:10.0.0.7:8080", "vms.0.ready: the lab gives its guests their addresses"),
        ("/health", "/a?b=$c", "vms.0.ready: the lab's guests have pages of plain names only"),
    ],
)
def test_the_lab_refuses_by_name_what_it_cannot_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, right: str, wrong: str, says: str
) -> None:
    monkeypatch.setattr(refusals, "possible", lambda: True)
    assert load_for_lab(_file(tmp_path, NETS))
    assert right in NETS
    with pytest.raises(BadInputError) as refused:
        load_for_lab(_file(tmp_path, NETS.replace(right, wrong, 1)))
    assert says in str(refused.value)


def test_a_host_that_a_step_adds_is_refused_as_any_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refusals, "possible", lambda: True)
    step = "steps: [{at_s: 1, do: add_host, host: {name: h3, devices: {}}}]\n"
    with pytest.raises(BadInputError, match=r"steps\.0\.host\.devices: the lab has none"):
        load_for_lab(_file(tmp_path, NETS + step))


def test_the_lab_refuses_networks_where_it_can_have_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refusals, "possible", lambda: False)
    with pytest.raises(BadInputError, match=r"line 5: vms\.0\.networks: they need root"):
        load_for_lab(_file(tmp_path, NETS))


def test_only_a_guest_that_is_probed_has_an_address_and_linux() -> None:
    probed = ScenarioVm(name="a", host="h1", networks=("lan",), ready="http:8080/health", serves_after_s=4)
    vm = lab_vm(probed, "198.18.0.128/24", bare=True)
    assert (vm.bare, vm.serves, vm.serves_after_s) == (False, "8080/health", 4.0)
    plain = lab_vm(ScenarioVm(name="a", host="h1", networks=("lan",)), bare=True)
    assert (plain.bare, plain.networks, plain.address) == (True, ("lan",), "")
    assert 'ready="http:198.18.0.128:8080/health"' in vm.metadata
    assert lab_vm(probed.model_copy(update={"ready": "tcp:5432"}), "x").serves == "5432/"
    with_agent = probed.model_copy(update={"agent": True})
    assert findable(with_agent, "198.18.0.128/24") == with_agent, "libvirt tells it"


def _spec(root: Path) -> LabSpec:
    network = LabNetwork("rk00000000", "198.18.0.1", 24, {"h1": "198.18.0.10", "h2": "198.18.0.11"})
    hosts = (LabHost("h1", networks=("lan", "san")), LabHost("h2"))
    return LabSpec(root, True, hosts, Path("/tmp/c"), network)


def test_a_host_with_networks_has_a_bridge_and_libvirt_networks_on_it_and_others_have_neither(
    tmp_path: Path,
) -> None:
    spec = _spec(tmp_path)
    for host in ("h1", "h2"):
        libvirtconf.write(spec, spec.host(host))
    folder = spec.host("h1").etc / "qemu" / "networks"
    assert sorted(path.name for path in folder.glob("*.xml")) == ["lan.xml", "san.xml"]
    assert sorted(path.name for path in (folder / "autostart").iterdir()) == ["lan.xml", "san.xml"]
    assert "<bridge name='br0'/>" in (folder / "lan.xml").read_text()
    assert not (spec.host("h2").etc / "qemu" / "networks").exists()
    assert (spec.device("h1"), spec.device("h2")) == ("br0", "eth0")


def test_what_comes_from_a_cut_link_is_dropped_on_the_device_that_has_the_address() -> None:
    cuts = Cuts(deaf_to=frozenset({"198.18.0.1"}))
    assert cuts.rules("br0") == {"pref 50 from 198.18.0.1 iif br0 blackhole"}


def test_a_lab_keeps_its_networks_and_guests_have_addresses_of_their_own() -> None:
    with TemporaryDirectory(prefix="rkl-") as root:  # a lab's directory is short
        spec = _spec(Path(root))
        spec.save()
        assert load_lab(spec.root).hosts == spec.hosts
        assert "networks" not in json.loads(spec.paths.spec.read_text())["hosts"][1]
    assert spec.network is not None
    assert (spec.network.guest(0), spec.network.guest(126)) == ("198.18.0.128", "198.18.0.254")
    with pytest.raises(LabError, match="guest 127"):
        spec.network.guest(127)
    with pytest.raises(LabError, match="network 'a b' of h1"):
        check_hosts([LabHost("h1", networks=("a b",))])
