#!/bin/sh
# The test modules compiled with their rewritten assertions, where none is yet: each worker of a first run would compile
# every one of them for itself, and all at once. What cannot be collected is told by the run that follows, so nothing is said here.
cd "$(dirname "$0")/.."
[ -d tests/unit/__pycache__ ] || .venv/bin/pytest tests -q --collect-only >/dev/null 2>&1 || true
