"""Blocking calls in threads of their own: a host that hangs hurts no other, and no second call to itself."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from libs.core.ports import UnavailableError
from libs.model import Answer, VmPolicy
from libs.threads import HostThreads
from libs.virt.host import HUNG_MOST, LibvirtHost
from tests.waiting import eventually

pytestmark = pytest.mark.fast


async def test_a_hanging_call_ends_at_its_deadline_and_others_are_quick() -> None:
    hang = threading.Event()
    sick, well = HostThreads("sick", 2), HostThreads("well", 2)
    began = time.monotonic()
    hanging = [asyncio.create_task(sick.call(hang.wait, 0.3)) for _ in range(2)]
    assert await well.call(lambda: 5, 1.0) == 5
    assert time.monotonic() - began < 0.25
    results = await asyncio.gather(*hanging, return_exceptions=True)
    assert [type(result) for result in results] == [TimeoutError, TimeoutError]
    hang.set()


async def test_a_call_never_waits_behind_another_while_there_may_be_a_thread_for_it() -> None:
    threads = HostThreads("h", 8)
    await threads.call(lambda: None, 1.0)  # now one thread is idle
    hang = threading.Event()
    slow = asyncio.create_task(threads.call(hang.wait, 5.0))
    quick = [asyncio.create_task(threads.call(lambda: None, 1.0)) for _ in range(5)]
    await asyncio.gather(*quick)
    hang.set()
    await slow


async def test_what_waited_for_a_thread_beyond_its_deadline_is_not_run_late() -> None:
    threads, hang, ran = HostThreads("h", 1), threading.Event(), list[int]()
    began = threading.Event()

    def work() -> None:
        began.set()
        hang.wait()

    slow = asyncio.create_task(threads.call(work, 5.0))
    await eventually(began.is_set, "the only thread is taken")
    with pytest.raises(TimeoutError):
        await threads.call(lambda: ran.append(1), 0.1)
    hang.set()
    await slow
    await threads.call(lambda: ran.append(2), 1.0)
    assert ran == [2]


async def test_no_more_threads_than_allowed_and_errors_come_back() -> None:
    threads, most, now, lock = HostThreads("h", 3), 0, 0, threading.Lock()

    def work() -> None:
        nonlocal most, now
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.01)
        with lock:
            now -= 1

    await asyncio.gather(*(threads.call(work, 5.0) for _ in range(30)))
    assert most == 3

    def fail() -> None:
        raise KeyError("oops")

    with pytest.raises(KeyError):
        await threads.call(fail, 1.0)
    await eventually(lambda: now == 0, "all at rest")


async def test_a_host_that_hangs_for_days_costs_a_bounded_number_of_threads_and_recovers() -> None:
    host = LibvirtHost("h", "test:///default", VmPolicy(), time.monotonic)
    assert await host.probe(5.0) == (Answer.UP, "libvirt answers")
    before, release = threading.active_count(), threading.Event()
    for _ in range(60):
        with pytest.raises(UnavailableError):
            await host.call("hangs", lambda _: release.wait(30), 0.02)
    assert threading.active_count() - before <= HUNG_MOST + 8
    assert (await host.probe(0.5))[0] is Answer.SILENT, "there is no network to ask its kernel over"
    release.set()
    await eventually(lambda: threading.active_count() <= before, "the hung threads end with their calls")
    assert (await host.probe(5.0))[0] is Answer.UP
