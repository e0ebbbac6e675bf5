"""Which boot an agentless host is held to be in, by what libvirt shows of it over a gap."""

from __future__ import annotations

import pytest

from libs.core.ports import Row, UnavailableError
from libs.model import Answer, Incarnation, Inventory, VmReport, VmState
from services.heartbeat.agentless import AGE, Age, AgeDocument, Watched, begun_name, boot_name
from tests.unit.made import vm

pytestmark = pytest.mark.fast
BEFORE = Incarnation(host="h1", boot="the-boot-before")


class Host:
    """Shows one VM that runs under the id 1, and for how long its kernel has run."""

    name = "h1"

    def __init__(self, up_s: float | None, *, run: int = 1) -> None:
        self._up_s, self._run = up_s, run

    async def reports(self) -> list[VmReport]:
        return [vm("a", VmState.RUNNING, run=self._run)]

    async def probe(self, timeout_s: float) -> tuple[Answer, str]:
        return Answer.UP, "libvirt answers"

    async def up_s(self) -> float:
        if self._up_s is None:
            raise UnavailableError("not supported by the connection driver")
        return self._up_s


class Kept:
    """One bucket."""

    def __init__(self, rows: dict[str, bytes]) -> None:
        self.rows = rows

    async def get(self, key: str) -> Row | None:
        return Row(key, self.rows[key], 1) if key in self.rows else None

    async def put(self, key: str, value: bytes, expected: int | None) -> int:
        self.rows[key] = value
        return 1

    async def delete(self, key: str, expected: int | None) -> None:
        del self.rows[key]

    async def scan(self, prefix: str) -> list[Row]:
        return [Row(key, value, 1) for key, value in self.rows.items() if key.startswith(prefix)]


def watched(host: Host, known_s: float | None, *, of: str = BEFORE.boot) -> Watched:
    """It ran VM a under the id 1 when it was last heard, and had been up for so long."""
    inventory = Inventory(
        at=BEFORE, agent="life", rev=1, memory_mib=1024, memory_reserved_mib=0, cpus=1, vms=(vm("a", run=1),)
    )
    ages = {}
    if known_s is not None:
        ages[AGE + "h1"] = AgeDocument(record=Age(boot=of, up_s=known_s)).model_dump_json().encode()
    return Watched(host, Kept({"h1": inventory.model_dump_json().encode()}), Kept(ages), lambda: "another")


@pytest.mark.parametrize(
    ("host", "known_s", "boot"),
    [
        (Host(3600.0), 3500.0, BEFORE.boot),
        (Host(30.0), 3500.0, "another"),  # its ids began anew, and autostart gave a the one that it had
        (Host(3499.5), 3500.0, BEFORE.boot),
        (Host(3600.0, run=2), 3500.0, "another"),
        (Host(30.0), None, BEFORE.boot),  # of an earlier version: nothing was noted
        (Host(None), 3500.0, BEFORE.boot),
    ],
    ids=[
        "it goes on",
        "its kernel is younger",
        "it counts a little less",
        "another run",
        "nothing is known",
        "its libvirt cannot tell",
    ],
)
async def test_a_boot_goes_on_with_a_run_that_does_unless_its_kernel_is_younger(
    host: Host, known_s: float | None, boot: str
) -> None:
    assert (await watched(host, known_s).until_up()).boot == boot


async def test_only_a_younger_kernel_shows_that_the_boot_before_is_over() -> None:
    """Another name for all else says so itself, and both know what the host was called before."""
    for host, guessed in ((Host(30.0), False), (Host(3600.0, run=2), True)):
        one = watched(host, 3500.0)
        one.named, one.begun = boot_name, begun_name
        at = await one.until_up()
        assert (at.outside, at.guessed) == (True, guessed)
        assert one.former == (BEFORE.boot,)


@pytest.mark.parametrize(
    ("up_s", "passed_s", "machine", "goes_on"),
    [
        (70.0, 60.0, "m", True),
        (62.0, 60.0, "m", True),  # its processor was taken from it for a while
        (40.0, 60.0, "m", False),  # older than noted, and yet another: it had run for 10 s then
        (40.0, 60.0, "another", True),  # by another clock nobody can tell
        (40.0, 60.0, "", True),
    ],
)
async def test_a_kernel_that_is_older_than_noted_may_be_another_all_the_same(
    up_s: float, passed_s: float, machine: str, goes_on: bool
) -> None:
    one = watched(Host(up_s), 10.0)
    assert isinstance(one.ages, Kept)
    noted = Age(boot=BEFORE.boot, up_s=10.0, at=5000.0, machine=machine)
    one.ages.rows[AGE + "h1"] = AgeDocument(record=noted).model_dump_json().encode()
    one.named, one.begun, one.clock, one.machine = boot_name, begun_name, lambda: 5000.0 + passed_s, "m"
    at = await one.until_up()
    assert (at == BEFORE) is goes_on
    assert goes_on or at.guessed, "by two clocks that no one compares: that proves nothing"


@pytest.mark.parametrize(("up_s", "goes_on"), [((10.0, 10.0), True), ((10.0, 11.0), False)])
async def test_a_counter_that_stands_still_tells_nothing(up_s: tuple[float, float], goes_on: bool) -> None:
    """As that of libvirt's test driver, of which another boot was made whenever its watch stood still for six seconds."""

    class Counter(Host):
        def __init__(self) -> None:
            super().__init__(None)
            self.told = iter(up_s)

        async def up_s(self) -> float:
            return next(self.told)

    noted = Age(boot=BEFORE.boot, up_s=10.0, at=5000.0, machine="m")
    for again in (False, True):
        one = watched(Counter(), 10.0)
        one.clock, one.machine = lambda: 5060.0, "m"
        assert isinstance(one.ages, Kept)
        if again:
            one.seen = noted
            assert await one._goes_on(BEFORE) is goes_on
        else:
            one.ages.rows[AGE + "h1"] = AgeDocument(record=noted).model_dump_json().encode()
            assert (await one.until_up() == BEFORE) is goes_on


async def test_a_boot_that_ends_as_soon_as_it_has_its_name_is_told_from_the_next() -> None:
    one = watched(Host(90.0), None)
    at = await one.until_up()
    one.host = Host(30.0)
    assert not await one._goes_on(at)


async def test_an_age_that_is_not_told_once_is_asked_for_again() -> None:
    host = Host(30.0)
    tell, answers = host.up_s, iter((False, False, True))

    async def up_s() -> float:
        if not next(answers):
            raise UnavailableError("no answer")
        return await tell()

    host.up_s = up_s  # type: ignore[method-assign]
    assert (await watched(host, 3500.0).until_up()).boot == "another"


async def test_the_age_of_another_boot_says_nothing() -> None:
    assert (await watched(Host(30.0), 3500.0, of="some-other-boot").until_up()) == BEFORE


async def test_while_it_answers_its_age_is_noted() -> None:
    one = watched(Host(77.0), None)
    assert await one._goes_on(BEFORE)
    assert isinstance(one.ages, Kept)
    noted = AgeDocument.model_validate_json(one.ages.rows[AGE + "h1"]).record
    assert noted == Age(boot=BEFORE.boot, up_s=77.0)


async def test_a_kernel_that_is_younger_of_a_sudden_is_another_boot() -> None:
    one = watched(Host(3600.0), None)
    assert await one._goes_on(BEFORE)
    one.host = Host(3.0)
    assert not await one._goes_on(BEFORE)
    assert one.seen == Age(boot=BEFORE.boot, up_s=3600.0), (
        "by which it is not taken for the boot before, either"
    )
