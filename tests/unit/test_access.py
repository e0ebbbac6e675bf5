"""Keys, logins and settings that say how the bus and libvirt are reached."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from libs.access.keys import BadKeyError, KeyRing
from libs.access.login import Login
from libs.access.nkey import UserKey, new_seed
from libs.access.rights import SERVICES, agent
from libs.config.settings import load_settings
from libs.config.yamlfile import BadInputError
from libs.events.facts import AnyFact
from libs.events.signals import (
    Heartbeat,
    InventorySeen,
    LeaseWritten,
    MarkAsked,
    MarkTold,
    Reply,
    Signal,
    fits,
)
from libs.model import Answer, Mark
from tests.unit.made import boot, inventory, lease

pytestmark = pytest.mark.fast


def test_a_key_is_what_nats_takes_for_one() -> None:
    """The pair of the documentation of NATS (nats-io/nkeys, README)."""
    key = UserKey("SUAMLK2ZNL35WSMW37E7UD4VZ7ELPKW7DHC3BWBSD2GCZ7IUQQXZIORRBU")
    assert key.public == "UCK5N7N66OBOINFXAYC2ACJQYFSOD4VYNU6APEJTAVFZB2SVHLKGEW7L"
    seed = new_seed()
    assert UserKey(seed).public.startswith("U")
    for wrong in (seed[:-1] + ("A" if seed[-1] != "A" else "B"), seed[:20], "", "not base32", key.public):
        with pytest.raises(ValueError, match=r"seed|base32|checksum"):
            UserKey(wrong)


def test_keys_are_made_once_and_a_wrong_file_is_named_without_what_is_in_it(tmp_path: Path) -> None:
    ring = KeyRing(tmp_path)
    assert ring.make(["a", "b"]) == ["a", "b"]
    public = ring.public("a")
    assert ring.make(["a", "c"]) == ["c"]
    assert ring.public("a") == public
    ring.renew("a")
    assert ring.public("a") != public
    ring.seed("b").write_text("hunter2")
    with pytest.raises(BadInputError) as wrong:
        Login("b", ring.seed("b")).user_key()
    assert str(ring.seed("b")) in str(wrong.value)
    assert "hunter2" not in str(wrong.value)
    with pytest.raises(BadKeyError):
        ring.public("nobody")


def pool(tmp_path: Path, host: str, more: str = "") -> Path:
    path = tmp_path / "pool.yaml"
    path.write_text(f"pool: p\nhosts: [{{name: h1, {host}}}]\n{more}")
    return path


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("qemu+tcp://h1/system", "in the clear"),
        ("qemu+ssh://root@h1/system?no_verify=1", "any peer"),
        ("qemu+tls://h1/system?pkipath=/x&no_verify=1", "any peer"),
        ("qemu+libssh2://h1/system?known_hosts_verify=ignore", "any peer"),
    ],
)
def test_a_libvirt_that_nobody_verifies_is_refused_unless_it_is_said(
    tmp_path: Path, uri: str, reason: str
) -> None:
    for field in ("uri", "peer_uri"):
        other = "uri: 'qemu+tls://h1/system', " if field == "peer_uri" else ""
        with pytest.raises(BadInputError, match=reason) as wrong:
            load_settings(pool(tmp_path, f"{other}{field}: '{uri}'"))
        assert field in str(wrong.value)
        load_settings(pool(tmp_path, f"{other}{field}: '{uri}', insecure: true"))


@pytest.mark.parametrize(
    "uri",
    ["qemu+ssh://root@h1/system", "qemu://h1/system", "qemu:///system", "qemu+tcp://127.0.0.1:1/system"],
)
def test_verified_peers_and_ones_own_machine_are_taken(tmp_path: Path, uri: str) -> None:
    assert load_settings(pool(tmp_path, f"uri: '{uri}'")).hosts[0].uri == uri


def test_half_a_certificate_is_refused(tmp_path: Path) -> None:
    for more, reason in (
        ("bus: {url: 'tls://m:4222', cert_file: /x, ca_file: /y}", "cert_key_file"),
        ("bus: {url: 'tls://m:4222', cert_file: /x, cert_key_file: /y}", "ca_file"),
    ):
        with pytest.raises(BadInputError, match=reason):
            load_settings(pool(tmp_path, "uri: 'qemu:///system'", more))


@pytest.mark.parametrize(
    ("topic", "signal", "taken"),
    [
        ("heartbeat.h1", Heartbeat(at=boot("h1"), agent="a", seq=1), True),
        ("heartbeat.h1", Heartbeat(at=boot("h2"), agent="a", seq=1), False),
        ("inventory.h1", InventorySeen(inventory=inventory(boot("h1"))), True),
        ("inventory.h1", InventorySeen(inventory=inventory(boot("h2"))), False),
        ("heartbeat.h1", InventorySeen(inventory=inventory(boot("h1"))), False),
        ("lease.a", LeaseWritten(lease=lease("a", boot("h1"))), True),
        ("lease.b", LeaseWritten(lease=lease("a", boot("h1"))), False),
        ("heartbeat.h1", LeaseWritten(lease=lease("a", boot("h1"))), False),
        ("stray.h2", LeaseWritten(lease=lease("a", boot("h1"))), True),
        ("ask.h1", Reply(about="h3", peer=boot("h1"), answer=Answer.UP), True),
        ("ask.h1", Reply(about="h3", peer=boot("h2"), answer=Answer.UP), False),
        ("mark_told", MarkTold(mark=Mark()), True),
        ("mark_asked", MarkAsked(), True),
        ("goodbye.h1", MarkAsked(), False),
    ],
)
def test_a_signal_counts_on_its_own_topic_and_about_its_own_host(
    topic: str, signal: Signal, taken: bool
) -> None:
    assert fits(topic, signal) is taken


def test_each_fact_may_be_told_by_somebody() -> None:
    """Where none may, the server refuses it in a pool with keys, and in no other."""
    roles = (*SERVICES, agent("h1"))
    told = {".".join(one.split(".")[:2]) for role in roles for one in role.tells}
    kinds = {fact.model_fields["kind"].default for fact in get_args(get_args(AnyFact)[0])}
    assert kinds - told == set()
    assert told - kinds == set()
