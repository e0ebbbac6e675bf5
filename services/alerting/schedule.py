"""When a delivery is tried again, and what an endpoint's answer means. Pure; all times in seconds."""

from __future__ import annotations

import hashlib
from enum import StrEnum

FIRST_S, GROWTH, MOST_S = 1.0, 2.0, 900.0
DAY_S = 86_400.0
JITTER = 0.2
"""A pause is longer or shorter by up to so much of it, so that endpoints of one machine do not all come at once."""
REFUSED_TRIES = 5
"""What an endpoint refuses to take for its form is given up after so many tries, half a minute: it will not change."""
ASKED_MOST_S = 6 * 3600.0
"""No endpoint may ask for a longer pause than this by Retry-After."""
FAILING_TRIES = 8
"""After so many tries in vain, some four minutes, people are told."""


class Verdict(StrEnum):
    """What became of one try."""

    DELIVERED = "delivered"
    FAILED = "failed"
    REFUSED = "refused"
    GONE = "gone"


def judge(status: int) -> Verdict:
    """The meaning of an HTTP status. Source: Standard Webhooks 1.0, where 2xx is delivered and 410 gone for good. 400,
    413, 415 and 422 are of the message; all others may pass."""
    if 200 <= status < 300:
        return Verdict.DELIVERED
    if status == 410:
        return Verdict.GONE
    return Verdict.REFUSED if status in (400, 413, 415, 422) else Verdict.FAILED


def plain_pause_s(tries: int) -> float:
    """The pause after so many tries in vain, without its jitter."""
    return float(min(FIRST_S * GROWTH ** min(tries - 1, 20), MOST_S))


def pause_s(endpoint: str, event: str, tries: int, asked_s: float | None = None) -> float:
    """The pause after so many tries in vain. The jitter comes from what it is for, so that a step is a function of its
    input. `asked_s` is the endpoint's own Retry-After: the pause is never shorter."""
    drawn = hashlib.sha256(f"{endpoint}/{event}/{tries}".encode()).digest()
    share = int.from_bytes(drawn[:4]) / 2**32  # 0 to 1
    pause = plain_pause_s(tries) * (1 - JITTER + 2 * JITTER * share)
    return max(pause, min(asked_s or 0.0, ASKED_MOST_S))


def _day_of_tries() -> int:
    tries, past_s = 1, 0.0
    while past_s < DAY_S:
        past_s += plain_pause_s(tries)
        tries += 1
    return tries


TRIES = _day_of_tries()
"""Tries within a day, the last one after it."""


def given_up(tries: int, verdict: Verdict, age_s: float) -> bool:
    """Whether a delivery that was tried so often in vain is a dead letter. `age_s`: since the event was told, by wall
    clocks. An endpoint that has failed for a day goes on being tried at the longest pause, and each event behind the
    first has its own day."""
    if verdict is Verdict.REFUSED and tries >= REFUSED_TRIES:
        return True
    return tries >= TRIES and age_s >= DAY_S
