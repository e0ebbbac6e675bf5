"""What a pull may cost whoever comes after it."""

from __future__ import annotations

import pytest

from libs.jetstream.lease import RENEW_S, TERM_S
from libs.jetstream.puller import EXPIRES_S

pytestmark = pytest.mark.fast


def test_the_pull_of_a_process_that_stands_still_is_over_before_another_leads() -> None:
    """Its last pull was asked for at the latest as it stopped, its last renewal came RENEW_S before that at the earliest."""
    assert RENEW_S + EXPIRES_S <= TERM_S
