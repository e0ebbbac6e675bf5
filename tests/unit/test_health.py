"""/healthz, /readyz and /metrics: what a lag is, which reasons there are, and what is answered to whom."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any, cast

import pytest

from libs import healthserver
from libs.config.health import HealthPorts, HealthSettings
from libs.core.clock import SystemClock
from libs.core.ports import Bus, Lease
from libs.events.signals import Heartbeat
from libs.health import BusState, Condition, LoopLag, Readiness, document
from libs.healthserver import Endpoint, HealthAddressError
from libs.model import Incarnation
from services.cli.app import SERVICES

pytestmark = pytest.mark.fast

# -- the lag


def ticking(*late_s: float, window_s: float = 10.0) -> tuple[LoopLag, float]:
    """A timer of every second that ran so late each time, and the time of its last run."""
    lag, now = LoopLag(window_s, 100.0), 100.0
    for late in late_s:
        now = lag.due_at + late
        lag.ran(now, now + 1.0)
    return lag, now


def test_a_timer_that_runs_when_it_is_due_shows_no_lag() -> None:
    lag, now = ticking(0.0, 0.0, 0.0)
    assert lag.worst_s(now) == 0.0


def test_the_worst_lag_counts_until_the_window_is_over() -> None:
    lag, now = ticking(0.0, 3.0, 0.2)
    assert lag.worst_s(now) == pytest.approx(3.0)
    at = now - 1.2  # when it ran 3 s late
    while now < at + 9.5:
        now = lag.due_at
        lag.ran(now, now + 1.0)
        assert lag.worst_s(now) == pytest.approx(3.0 if now <= at + 10.0 else 0.2), now - at
    assert lag.worst_s(at + 10.01) == pytest.approx(0.2)
    assert lag.worst_s(at + 11.3) < 0.2


def test_what_is_overdue_counts_before_the_timer_has_run() -> None:
    lag, now = ticking(0.0)
    assert lag.worst_s(now + 1.0) == 0.0, "it is due at this moment"
    assert lag.worst_s(now + 4.0) == pytest.approx(3.0)


def test_what_is_kept_of_lags_is_bounded_by_the_window() -> None:
    lag, now = ticking(*(1.0 - number / 1000 for number in range(1000)))
    assert len(lag._late) <= 11
    assert lag.worst_s(now) < 0.02


# -- the reasons


@pytest.mark.parametrize("leading", [True, False, None])
def test_whoever_runs_and_hears_the_bus_is_well_leading_or_not(leading: bool | None) -> None:
    condition = Condition(loop_lag_s=1.0, bus=BusState.CONNECTED, leading=leading)
    assert condition.reasons(HealthSettings()) == []
    assert document("detector", 7, condition, []) == {
        "status": "ok",
        "service": "detector",
        "pid": 7,
        "loop_lag_s": 1.0,
        "bus": "connected",
        "leading": leading,
    }


@pytest.mark.parametrize(
    ("lag_s", "bus", "named"),
    [
        (1.001, BusState.CONNECTED, ["loop"]),
        (0.0, BusState.LOST, ["bus"]),
        (0.0, BusState.WAITING, ["bus"]),
        (3.2, BusState.LOST, ["loop", "bus"]),
    ],
)
def test_each_reason_is_named(lag_s: float, bus: BusState, named: list[str]) -> None:
    condition = Condition(lag_s, bus, None)
    reasons = condition.reasons(HealthSettings())
    assert [reason.split(":")[0] for reason in reasons] == named
    told = document("fencer", 7, condition, reasons)
    assert (told["status"], told["reasons"]) == ("failing", reasons)


def test_every_service_can_have_a_port() -> None:
    assert set(HealthPorts.model_fields) == set(SERVICES)


# -- the endpoint


class FakeBus:
    connected = True


class FakeLease:
    def unseen_s(self) -> float:
        return 1.5

    def held(self) -> bool:
        return False


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def endpoint(port: int, **more: Any) -> Endpoint:
    settings = HealthSettings.model_validate({"ports": {"detector": port}, **more})
    return Endpoint(
        "detector", settings, SystemClock(), cast(Bus, FakeBus()), cast("list[Lease]", [FakeLease()])
    )


@pytest.fixture
async def port() -> AsyncIterator[int]:
    found = free_port()
    async with endpoint(found).served():
        yield found


async def said(port: int, request: bytes) -> tuple[int | None, bytes]:
    """Status and body of the answer to these bytes; None where there was none."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    try:
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    except ConnectionResetError:
        head, body = b"", b""
    writer.close()
    return (int(head.split()[1]) if head else None), body


async def test_a_healthy_standby_answers_200(port: int) -> None:
    status, body = await said(port, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
    told = json.loads(body)
    assert (status, told["status"], told["bus"], told["leading"]) == (200, "ok", "connected", False)
    assert told["loop_lag_s"] < 1.0


# -- whether it could do its work


WELL = Readiness(Condition(0.01, BusState.CONNECTED, False), 0.001, 1.0, 0.4)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({}, []),
        ({"round_trip_s": 0.7}, ["round trip"]),
        ({"round_trip_s": None}, ["round trip"]),
        ({"leader_seen_s": 7.0}, ["leadership"]),
        ({"leader_seen_s": None}, []),
        ({"evidence_age_s": 20.0}, ["evidence"]),
        ({"evidence_age_s": None}, ["evidence"]),
        ({"trusted": False}, ["state"]),
        ({"leader_seen_s": 7.0, "round_trip_s": None}, ["round trip", "leadership"]),
        ({"condition": Condition(2.0, BusState.LOST, False), "round_trip_s": None}, ["loop", "bus"]),
    ],
)
def test_each_reason_not_to_be_ready_is_named(change: dict[str, Any], named: list[str]) -> None:
    reasons = replace(WELL, **change).reasons("detector", HealthSettings())
    assert [reason.split(":")[0] for reason in reasons] == named


def test_alerting_hears_no_host_and_needs_none() -> None:
    assert replace(WELL, evidence_age_s=None).reasons("alerting", HealthSettings()) == []


async def test_a_standby_that_sees_a_leader_and_hears_hosts_is_ready(port: int) -> None:
    status, body = await said(port, b"GET /readyz HTTP/1.1\r\n\r\n")
    told = json.loads(body)
    assert (status, told["status"]) == (503, "degraded"), "no host was heard yet, and no server answers"
    assert [reason.split(":")[0] for reason in told["reasons"]] == ["round trip", "evidence"]
    assert told["leader_seen_s"] == 1.5


async def test_ready_and_measured() -> None:
    async def answered() -> None:
        return None

    found = endpoint(port := free_port())
    found.ping = answered
    async with found.served():
        assert found.measures is not None
        found.measures.heard(
            Heartbeat(at=Incarnation(host="h1", boot="b"), agent="l", seq=1), time.monotonic()
        )
        status, body = await said(port, b"GET /readyz HTTP/1.1\r\n\r\n")
        told = json.loads(body)
        assert (status, told["status"], told["leading"]) == (200, "ready", False)
        assert told["round_trip_s"] < 0.5
        assert told["evidence_age_s"] < 15
        status, body = await said(port, b"GET /metrics HTTP/1.1\r\nAccept-Encoding: gzip\r\n\r\n")
        assert status == 200
        lines = body.decode().splitlines()
        assert 'rekindle_ready{service="detector"} 1.0' in lines
        assert 'rekindle_leading{service="detector"} 0.0' in lines
        assert "rekindle_heartbeats_total 1.0" in lines
        assert any(line.startswith("process_cpu_seconds_total ") for line in lines)


# -- what is no question


@pytest.mark.parametrize(
    "line",
    [
        "GET / HTTP/1.1",
        "GET /healthz/ HTTP/1.1",
        "POST /healthz HTTP/1.1",
        "HEAD /healthz HTTP/1.1",
        "GET /healthz",
        "",
        "\x00\xff",
    ],
)
async def test_anything_else_is_not_found(port: int, line: str) -> None:
    assert await said(port, f"{line}\r\n\r\n".encode("latin-1")) == (404, b"")


async def test_what_is_too_long_or_too_slow_or_breaks_off_gets_no_answer(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(healthserver, "REQUEST_S", 0.2)
    assert await said(port, b"GET /healthz HTTP/1.1\r\n" + b"x" * 20_000) == (None, b"")
    began = time.monotonic()
    assert await said(port, b"GET /healthz HTTP/1.1\r\n") == (None, b"")
    assert 0.1 < time.monotonic() - began < 2.0
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.close()
    status, _ = await said(port, b"GET /healthz HTTP/1.1\r\n\r\n")
    assert status == 200, "and whoever asks rightly is answered still"


async def test_a_port_that_is_taken_is_said_with_field_and_reason(port: int) -> None:
    with pytest.raises(HealthAddressError, match=rf"health\.ports\.detector: 127\.0\.0\.1:{port}: .*in use"):
        async with endpoint(port).served():
            pass


async def test_an_address_that_is_not_ours_is_said() -> None:
    with pytest.raises(HealthAddressError, match=r"health\.ports\.detector: 192\.0\.2\.1"):
        async with endpoint(free_port(), address="192.0.2.1", token_file="/none").served():
            pass


async def test_after_its_end_nobody_listens() -> None:
    port = free_port()
    async with endpoint(port).served():
        pass
    with pytest.raises(ConnectionRefusedError):
        await said(port, b"GET /healthz HTTP/1.1\r\n\r\n")


async def test_without_a_port_nothing_is_served() -> None:
    async with Endpoint("fencer", HealthSettings(), SystemClock()).served():
        assert not [one for one in asyncio.all_tasks() if one is not asyncio.current_task()]
