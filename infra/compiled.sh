#!/bin/sh
# The test modules compiled with their rewritten assertions, where those of a directory of tests, $1, are not yet: each worker of a
# first run would compile every one of them for itself, and all at once. The rest of the arguments says which pytest is to collect.
# What cannot be collected is told by the run that follows, so nothing is said here.
cd "$(dirname "$0")/.."
kind=$1
shift
ls "tests/$kind/__pycache__"/test_* >/dev/null 2>&1 || .venv/bin/pytest tests -q --collect-only "$@" >/dev/null 2>&1 || true
