#!/bin/sh
# The documents for others, read by the tools of those who define them: `make contract-tools`. The AsyncAPI parser comes from
# npm, Alertmanager and amtool from Debian's package; both are for these checks alone, so bootstrap.sh leaves them out.
set -eu
cd "$(dirname "$0")/.."
tools=$(pwd)/.venv/contract

if ! command -v npm >/dev/null 2>&1; then
	echo "rekindle: npm is lacking: install Node.js" >&2
	exit 1
fi
if [ ! -d "$tools/node_modules/@asyncapi/parser" ]; then
	mkdir -p "$tools"
	npm install --prefix "$tools" --no-audit --no-fund --ignore-scripts --silent @asyncapi/parser@3.6.6 >&2
fi
node infra/contract/asyncapi.mjs "$tools" docs/schemas/asyncapi.json
for program in prometheus-alertmanager amtool; do
	if ! command -v "$program" >/dev/null 2>&1; then
		install="apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
prometheus-alertmanager"
		if [ "$(id -u)" != 0 ]; then
			echo "rekindle: $program is lacking; run this line once, as root: $install" >&2
			exit 1
		fi
		sh -c "$install" >&2
		break
	fi
done
exec .venv/bin/python -m pytest tests/integration/test_alerts.py tests/integration/test_incoming.py -q -k real "$@"
