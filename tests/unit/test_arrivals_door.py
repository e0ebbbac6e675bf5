"""The agent's socket, and the hook of libvirt's that asks there before a host takes a VM in (ADR 11)."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from infra.systemd import arrivals as client
from libs.config.settings import load_settings
from libs.model import Protection, VmPolicy, VmReport, VmState
from libs.virt.door import LibvirtDoor, arriving

pytestmark = pytest.mark.fast
XML = b"""<domain type='kvm'><name>db</name><uuid>6f7b1f0e-5f3b-4f0d-9d38-3b1f7a1c9e55</uuid>
<memory unit='KiB'>131072</memory><vcpu>2</vcpu>%s</domain>"""
POLICY = b"<metadata><r:policy xmlns:r='urn:rekindle:policy:1' protection='%s'/></metadata>"


@asynccontextmanager
async def door(tmp_path: Path, said: Callable[[VmReport], str | None]) -> AsyncIterator[Path]:
    """A socket at which an agent says so; None: it says nothing."""
    path = tmp_path / "a.sock"
    one = LibvirtDoor(path, tmp_path / "hook", VmPolicy())

    def knocked(ask: str, report: VmReport) -> None:
        word = said(report)
        if word is not None:
            one.answer(ask, word)

    await one.open(knocked)
    try:
        yield path
    finally:
        await one.close()


async def hooked(socket: Path, xml: bytes = XML % b"") -> tuple[int, str, str]:
    """The script as libvirt's hook runs it."""
    command = [sys.executable, "-I", client.__file__, str(socket), str(socket.parent / "allowed"), "db"]
    done = await asyncio.to_thread(
        subprocess.run, command, input=xml, capture_output=True, timeout=20, check=False
    )
    return done.returncode, done.stdout.decode(), done.stderr.decode()


async def test_the_hook_lets_in_what_the_agent_lets_in_and_says_why_not(tmp_path: Path) -> None:
    heard: list[VmReport] = []

    def said(report: VmReport) -> str:
        heard.append(report)
        return "" if len(heard) == 1 else "it is being\nstarted on h3"

    async with door(tmp_path, said) as path:
        assert path.stat().st_mode & 0o777 == 0o600
        assert await hooked(path) == (0, "", "")
        code, out, why = await hooked(path)
    assert (code, out) == (1, "")
    assert why.startswith("Rekindle does not let db in: it is being started on h3. ")
    assert f"touch {tmp_path / 'allowed'} here" in why
    assert (heard[0].name, heard[0].state, heard[0].vcpus) == ("db", VmState.PAUSED, 2)
    assert not path.exists()


async def test_without_an_agent_only_what_nobody_protects_comes_in_or_what_a_person_lets_in(
    tmp_path: Path,
) -> None:
    path = tmp_path / "a.sock"
    code, _, why = await hooked(path)
    assert code == 1
    assert "the Rekindle agent of this host does not answer (No such file or directory)" in why
    assert (await hooked(path, XML % (POLICY % b"restart")))[0] == 1
    assert (await hooked(path, b"<domain"))[0] == 1
    assert await hooked(path, XML % (POLICY % b"none")) == (0, "", "")
    (tmp_path / "allowed").touch()
    assert await hooked(path) == (0, "", "")


async def test_an_agent_that_says_nothing_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "ANSWER_S", 0.2)
    async with door(tmp_path, lambda report: None) as path:
        why = await asyncio.to_thread(client.refusal, str(path), tmp_path / "allowed", XML % b"")
    assert why == "the Rekindle agent of this host does not answer (timed out)"


@pytest.mark.parametrize("xml", [b"", b"<domain/>", XML.replace(b"6f7b", b"xxxx") % b""])
async def test_what_is_no_domain_is_refused(tmp_path: Path, xml: bytes) -> None:
    async with door(tmp_path, lambda report: "") as path:
        code, _, why = await hooked(path, xml)
    assert code == 1
    assert "Rekindle does not let db in: " in why


def test_a_policy_counts_as_everywhere() -> None:
    assert arriving(XML % (POLICY % b"none"), VmPolicy()).policy.protection is Protection.NONE
    assert arriving(XML % b"", VmPolicy(protection=Protection.NONE)).policy.protection is Protection.NONE
    assert arriving(XML % (POLICY % b"nonsense"), VmPolicy()).policy == VmPolicy()


def test_whether_the_hook_is_there_is_seen_or_not_known(tmp_path: Path) -> None:
    hook = tmp_path / "hook"
    one = LibvirtDoor(tmp_path / "a.sock", hook, VmPolicy())
    assert one.asks() is False
    hook.touch(0o644)
    assert one.asks() is False
    hook.chmod(0o755)
    assert one.asks() is True
    assert LibvirtDoor(tmp_path / "a.sock", hook / "below", VmPolicy()).asks() is None


def test_a_pool_file_says_where_or_that_nobody_asks(tmp_path: Path) -> None:
    path = tmp_path / "pool.yaml"
    path.write_text(
        "pool: p\nhosts: [{name: a, uri: 'qemu:///system'}, {name: b, uri: 'qemu:///system', arrivals: null}]\n"
    )
    first, second = load_settings(path).hosts
    assert str(first.arrivals) == "/run/rekindle/arrivals.sock"
    assert second.arrivals is None
