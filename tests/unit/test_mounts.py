"""A directory that takes writes is not the datastore where nothing is mounted."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from libs.core.ports import UnavailableError
from libs.promises import SlotBeat
from libs.storage.mounts import Mounted, expected
from libs.storage.slots import Place, SlotFiles

pytestmark = pytest.mark.fast
FSTAB = """
# /etc/fstab
UUID=1 / ext4 defaults 0 1
nas:/vms /srv/vms nfs defaults 0 0
nas:/old /srv/vms/old nfs noauto 0 0
nas:/iso /srv/with\\040space nfs defaults 0 0
UUID=2 none swap sw 0 0
/dev/sdb1
"""
BEAT = SlotBeat(host="h1", boot="b", seq=1)


@pytest.mark.parametrize(
    ("path", "point"),
    [
        ("/srv/vms", "/srv/vms"),
        ("/srv/vms/pool", "/srv/vms"),
        ("/srv/vms/old/pool", "/srv/vms/old"),
        ("/srv/with space", "/srv/with space"),
        ("/srv/vmsx", None),
        ("/home", None),
    ],
)
def test_what_must_be_mounted_for_a_path_by_fstab(path: str, point: str | None) -> None:
    assert expected(Path(path), FSTAB) == (None if point is None else Path(point))


async def test_what_fstab_mounts_and_nobody_has_takes_no_write_and_tells_nothing(tmp_path: Path) -> None:
    store, fstab = tmp_path / "vms", tmp_path / "fstab"
    store.mkdir()
    fstab.write_text(f"nas:/vms {store} nfs defaults 0 0\n")
    place = {"h1": Place(store / ".rekindle-p" / "h1.slot")}
    slots = SlotFiles("nfs", place, 2.0, Mounted(store, fstab=fstab))
    with pytest.raises(UnavailableError, match=f"nfs: nothing is mounted on {store}"):
        await slots.beat(BEAT)
    with pytest.raises(UnavailableError, match="nothing is mounted"):
        await slots.read("h1")
    assert list(store.iterdir()) == []
    fstab.unlink()
    assert await slots.beat(BEAT) is None
    assert await slots.read("h1") == BEAT


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    store = tmp_path / "vms"
    store.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(store)]
    if os.getuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("a mount needs root")
    yield store
    if os.path.ismount(store):
        subprocess.run(["umount", str(store)], check=True)


async def test_s18_a_datastore_that_was_unmounted_takes_no_more_writes(mounted: Path) -> None:
    slots = SlotFiles("nfs", {"h1": Place(mounted / "p" / "h1.slot")}, 2.0, Mounted(mounted))
    assert await slots.beat(BEAT) is None
    subprocess.run(["umount", str(mounted)], check=True)
    with pytest.raises(UnavailableError, match=f"nothing is mounted on {mounted} any more"):
        await slots.beat(BEAT)
    assert list(mounted.iterdir()) == []
