"""docs/DETECTION.md says what the code does: its tables are written from it (REKINDLE_UPDATE_GOLDEN=1)."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from libs.config import profiles
from libs.config.settings import PROFILES, Settings
from services.detector import verdict

DOCS = Path(__file__).parents[2] / "docs" / "DETECTION.md"
pytestmark = pytest.mark.fast


@pytest.mark.parametrize(
    ("name", "fresh"), [("rules", verdict.as_table()), ("profiles", profiles.as_table())]
)
def test_the_docs_have_the_table(name: str, fresh: str) -> None:
    text = DOCS.read_text()
    pattern = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
    assert re.search(pattern, text, re.DOTALL), f"no place for {name}"
    wanted = re.sub(pattern, lambda found: f"{found[1]}{fresh}\n{found[2]}", text, flags=re.DOTALL)
    if os.environ.get("REKINDLE_UPDATE_GOLDEN"):
        DOCS.write_text(wanted)
    assert DOCS.read_text() == wanted


@pytest.mark.parametrize("profile", sorted(PROFILES))
def test_what_the_file_says_wins_over_the_profile(profile: str) -> None:
    hosts = [{"name": "h1", "uri": "qemu:///system"}]
    said = {"profile": profile, "hosts": hosts, "detection": {"confirm_silence_s": 33.0}}
    settings = Settings.model_validate(said)
    assert settings.detection.confirm_silence_s == 33.0
    below = PROFILES[profile].get("detection", {}).get("suspect_after_s", 1.5)
    assert settings.detection.suspect_after_s == below


def test_the_default_profile_changes_nothing() -> None:
    hosts = [{"name": "h1", "uri": "qemu:///system"}]
    assert Settings.model_validate({"hosts": hosts}) == Settings.model_validate(
        {"hosts": hosts, "profile": "balanced"}
    )


def test_a_profile_that_there_is_not_is_refused() -> None:
    with pytest.raises(ValueError, match="'fast', 'balanced' or 'careful'"):
        Settings.model_validate({"hosts": [{"name": "h1", "uri": "qemu:///system"}], "profile": "brave"})
