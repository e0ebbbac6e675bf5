#!/bin/sh
# The alert rules by Prometheus's own tool: what they say, and that they fire where they should.
set -eu
cd "$(dirname "$0")"
if ! command -v promtool >/dev/null 2>&1; then
    echo "promtool is missing: it is in the Debian package prometheus" >&2
    exit 1
fi
promtool check rules rules.yml
promtool test rules rules_test.yml
