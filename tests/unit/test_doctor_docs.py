"""docs/DOCTOR.md has the table of codes as the code has it (REKINDLE_UPDATE_GOLDEN=1 writes it anew)."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from libs.doctor.codes import TABLE, as_table

DOCS = Path(__file__).parents[2] / "docs" / "DOCTOR.md"
pytestmark = pytest.mark.fast


def test_the_docs_have_the_table() -> None:
    text = DOCS.read_text()
    pattern = r"(<!-- codes -->\n).*?(<!-- /codes -->)"
    assert re.search(pattern, text, re.DOTALL)
    wanted = re.sub(pattern, lambda found: f"{found[1]}{as_table()}\n{found[2]}", text, flags=re.DOTALL)
    if os.environ.get("REKINDLE_UPDATE_GOLDEN"):
        DOCS.write_text(wanted)
    assert DOCS.read_text() == wanted


def test_a_code_is_a_name_for_scripts_and_there_once() -> None:
    codes = [one.code for one in TABLE]
    assert len(set(codes)) == len(codes)
    assert all(re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", code) for code in codes)
    assert not [one.code for one in TABLE if "|" in one.means + one.do], "it would end a cell of the table"
