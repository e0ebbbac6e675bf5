#!/bin/bash
# Types and import contracts, which have one thread each, beside the fast tests: `make check`.
set -u
cd "$(dirname "$0")/.."
told=$(mktemp -d)
.venv/bin/mypy >"$told/types" 2>&1 &
types=$!
.venv/bin/lint-imports --no-cache >"$told/imports" 2>&1 &
imports=$!
trap 'kill "$types" "$imports" 2>/dev/null; rm -rf "$told"' EXIT
trap 'exit 130' INT TERM

infra/compiled.sh unit -m 'fast and not long'
.venv/bin/pytest tests -q -m 'fast and not long' -n 3 --dist worksteal
failed=$?
wait "$types" || failed=1
wait "$imports" || failed=1
cat "$told/types"
tail -n 12 "$told/imports"
exit "$failed"
