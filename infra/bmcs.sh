#!/bin/sh
# Real fence agents against BMC emulators: `make bmcs`. What they need is 120 MB of system packages and a virtual
# environment of its own, for these tests alone: that is why bootstrap.sh leaves it out.
set -eu
cd "$(dirname "$0")/.."
tools=${REKINDLE_BMC_TOOLS:-.venv/bmcs}

PATH=$PATH:/usr/sbin:/sbin
for program in fence_ipmilan fence_redfish ipmitool ipmi_sim openssl; do
	if ! command -v "$program" >/dev/null 2>&1; then
		install="apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
fence-agents ipmitool openipmi openssl"
		if [ "$(id -u)" != 0 ]; then
			echo "rekindle: $program is lacking; run this line once, as root: $install" >&2
			exit 1
		fi
		sh -c "$install" >&2
		break
	fi
done
if [ ! -x "$tools/bin/sushy-emulator" ]; then
	python3 -m venv "$tools"
	"$tools/bin/pip" install --quiet --disable-pip-version-check sushy-tools==2.2.0 >&2
fi
PATH=$PATH:$(cd "$tools/bin" && pwd) exec .venv/bin/python -m pytest tests/integration/test_bmcs.py tests/lab/test_fence_stories.py -q "$@"
