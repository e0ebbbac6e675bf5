"""The two flavours of the lab's guest, as far as they can be told without booting one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from infra.lab import agentguest, bareguest, initramfs, netguest
from infra.lab.guest import COMMAND_LINE, UP_LINE, Flavour, Guest, ensure_bare_guest
from infra.lab.vm import LabVm, VmGround, domain_xml
from libs.wants import wants_of

pytestmark = pytest.mark.fast


def _xml(vm: LabVm) -> str:
    ground = VmGround(Guest(Path("/k"), Path("/i")), "/usr/bin/qemu", "qemu", "none")
    return domain_xml(vm, ground, Path("/d"), Path("/c"))


def test_a_plain_vm_has_nothing_that_an_agent_needs() -> None:
    xml = _xml(LabVm("a"))
    assert f"<cmdline>{COMMAND_LINE}</cmdline>" in xml
    assert "<on_crash>destroy</on_crash>" in xml
    assert not any(word in xml for word in ("channel", "panic model", "watchdog", "interface"))
    assert not any(word in initramfs.INIT for word in ("qemu-ga", "devmem", "@"))


def test_a_vm_with_an_agent_has_its_channel_a_panic_device_and_a_watchdog() -> None:
    xml = _xml(LabVm("a", guest_agent=True, on_crash="preserve"))
    assert f"<cmdline>{COMMAND_LINE} unknown_nmi_panic</cmdline>" in xml
    assert "<on_crash>preserve</on_crash>" in xml
    assert "name='org.qemu.guest_agent.0'" in xml
    assert "<panic model='isa'/>" in xml
    assert "<watchdog model='i6300esb' action='none'>" in xml
    assert agentguest.INIT.index("qemu-ga") < agentguest.INIT.index("REKINDLE-GUEST-UP")
    assert "@" not in agentguest.INIT


def test_a_vm_that_is_asked_over_the_network_has_a_card_an_address_and_something_to_serve() -> None:
    vm = LabVm(
        "a", networks=("lan", "san"), address="198.18.0.128/24", serves="8080/health", serves_after_s=4
    )
    ground = VmGround(Guest(Path("/k"), Path("/i")), "/usr/bin/qemu", "qemu", "none")
    xml = domain_xml(vm, ground, Path("/d"), Path("/c"), mac="02:00:00:00:00:80")
    words = "rekindle.address=198.18.0.128/24 rekindle.serve=8080/health rekindle.after=4"
    assert f"<cmdline>{COMMAND_LINE} {words}</cmdline>" in xml
    assert wants_of(xml).networks == ("lan", "san")
    assert xml.count("<mac address='02:00:00:00:00:80'/>") == 1
    with pytest.raises(ValueError, match="VM a: an address is of a guest with Linux"):
        LabVm("a", networks=("lan",), address="198.18.0.128/24", serves="80/", bare=True)


def test_guests_without_a_network_are_what_they_were_and_each_other_flavour_is_kept_beside() -> None:
    assert (Flavour().recipe, Flavour(agent=True).recipe) == (
        (initramfs.INIT, initramfs.MODULES),
        (agentguest.INIT, (*initramfs.MODULES, *agentguest.MODULES)),
    )
    both = Flavour(agent=True, net=True)
    script, modules = both.recipe
    assert script.index("qemu-ga") < script.index("httpd") < script.index(UP_LINE)
    assert {*netguest.MODULES, *agentguest.MODULES} < set(modules)
    flavours = [Flavour(agent, net).folder for agent in (False, True) for net in (False, True)]
    assert len(set(flavours)) == len(flavours)


def test_each_flavour_needs_its_memory() -> None:
    assert LabVm("a", memory_mib=80).memory_mib == 80
    with pytest.raises(ValueError, match="VM a: memory_mib 80, the guest needs 88"):
        LabVm("a", memory_mib=80, guest_agent=True)


def test_a_bare_vm_has_a_program_for_a_kernel_and_nothing_else(tmp_path: Path) -> None:
    guest = ensure_bare_guest(tmp_path)
    assert guest.kernel.read_bytes() == bareguest.kernel()
    ground = VmGround(guest, "/usr/bin/qemu", "qemu", "none")
    xml = domain_xml(LabVm("a", bare=True), ground, Path("/d"), Path("/c"))
    assert f"<kernel>{guest.kernel}</kernel>" in xml
    assert "initrd" not in xml
    assert "cmdline" not in xml
    with pytest.raises(ValueError, match="VM a: a bare guest has no agent"):
        LabVm("a", guest_agent=True, bare=True)


def test_the_bare_guest_is_what_its_source_says(tmp_path: Path) -> None:
    source, built = Path(bareguest.__file__).with_suffix(".s"), tmp_path / "guest.o"
    linked, code = tmp_path / "guest", tmp_path / "code"
    subprocess.run(["as", "--32", str(source), "-o", str(built)], check=True)
    at = [f"-Ttext={bareguest.ENTRY:#x}", "--entry=_start"]
    subprocess.run(["ld", "-m", "elf_i386", *at, str(built), "-o", str(linked)], check=True)
    subprocess.run(["objcopy", "-O", "binary", "-j", ".text", str(linked), str(code)], check=True)
    assert code.read_bytes() == bareguest.CODE
    assert UP_LINE.encode() in bareguest.CODE


def test_a_program_brings_its_loader_and_libraries() -> None:
    loader, *others = agentguest.libraries(Path(sys.executable).resolve())
    assert loader.name.startswith("ld-linux")
    assert any(path.name.startswith("libc.so") for path in others)
    assert all(path.exists() for path in others)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        agentguest.libraries(Path("/nowhere"))


def test_programs_are_packed_at_their_places(tmp_path: Path) -> None:
    for name in ("busybox", "tool"):
        (tmp_path / name).write_bytes(name.encode() * 3)
    plain = initramfs.pack(tmp_path / "busybox", tmp_path, wanted=())
    more = initramfs.pack(tmp_path / "busybox", tmp_path, wanted=(), programs={"lib64/x": tmp_path / "tool"})
    assert b"lib64" not in plain
    assert b"lib64/x\0" in more
    assert b"tooltooltool" in more
