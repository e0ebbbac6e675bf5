"""Warm connections of a big pool are spread over time, and none waits for those that do not answer."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest

from libs.config.entries import HostEntry
from libs.core.ports import UnavailableError
from libs.events.signals import Heartbeat
from libs.model import VmPolicy
from libs.virt import hosts
from libs.virt.hosts import AT_ONCE, UNANSWERED_MOST, LibvirtHosts
from tests.unit.made import boot

pytestmark = pytest.mark.fast


class Time:
    """A round is a second, and takes none. Stands for the module asyncio where the rounds are made."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(0)  # who is asked answers
        self.now += seconds

    def __getattr__(self, name: str) -> Any:
        return getattr(asyncio, name)


class Asked:
    """Libvirt of all hosts: notes who is asked, and at which round."""

    def __init__(self, time: Time, silent: set[str]) -> None:
        self.time, self.silent = time, silent
        self.rounds, self.times = Counter[float](), Counter[str]()

    def of(self, name: str) -> Any:
        asked = self

        class One:
            async def ping(self, _: float) -> None:
                asked.rounds[asked.time.now] += 1
                asked.times[name] += 1
                if name in asked.silent:
                    raise UnavailableError("refused")

        return One()


def heard(names: list[str], asked: Asked, monkeypatch: pytest.MonkeyPatch) -> LibvirtHosts:
    """Hosts of which each has just been heard."""
    entries = [HostEntry(name=name, uri="test:///default") for name in names]
    found = LibvirtHosts(entries, VmPolicy(), None, asked.time)  # type: ignore[arg-type]  # no bus is asked
    found._hosts = {name: asked.of(name) for name in names}
    monkeypatch.setattr(hosts, "asyncio", asked.time)
    again(found, names)
    return found


def again(found: LibvirtHosts, names: list[str]) -> None:
    for name in names:
        found.heard(Heartbeat(at=boot(name), agent="a", seq=1))


async def until(asked: Asked, found: LibvirtHosts, names: list[str], end: float) -> None:
    """All are heard at each round, until so many seconds have gone by."""
    running = asyncio.create_task(found.run(30.0))
    while asked.time.now < end:
        again(found, names)
        await asyncio.sleep(0)
    running.cancel()


async def test_no_more_are_asked_at_one_round_than_twice_the_share_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked, names = Asked(Time(), set()), [f"h{index}" for index in range(600)]
    await until(asked, heard(names, asked, monkeypatch), names, 90.0)
    assert max(asked.rounds.values()) == 2 * 600 // 30
    assert set(asked.times) == set(names)
    assert set(asked.times.values()) <= {3, 4}, "each as often as it is due"


async def test_hosts_that_never_answer_take_no_others_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"h{index}" for index in range(3 * AT_ONCE)]
    asked = Asked(Time(), set(names[: 2 * AT_ONCE]))
    await until(asked, heard(names, asked, monkeypatch), names, 10.0)
    assert set(asked.times) == set(names)
    assert all(asked.times[name] > 2 for name in asked.silent)


@pytest.mark.long
async def test_however_many_do_not_answer_no_more_threads_than_that_wait_for_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each question has a thread of its own: thousands of them took the processor from what was heard."""
    names = [f"h{number}" for number in range(5000)]
    asked = Asked(Time(), set())
    waiting, most = 0, 0

    class Hanging:
        async def ping(self, _: float) -> None:
            nonlocal waiting, most
            waiting += 1
            most = max(most, waiting)
            for _ in range(4):  # rounds
                await asyncio.sleep(0)
            waiting -= 1
            raise UnavailableError("no answer")

    found = heard(names, asked, monkeypatch)
    found._hosts = {name: Hanging() for name in names}  # type: ignore[misc]
    await until(asked, found, names, 40.0)
    assert most == UNANSWERED_MOST
