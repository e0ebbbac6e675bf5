#!/bin/sh
# The host agent on hosts that a real systemd boots: `make systemd-test`. What it needs is systemd-nspawn and debootstrap, for these
# tests alone: that is why bootstrap.sh leaves them out. The hosts' files are kept in /var/tmp/rekindle-systemd (`rm -rf` it when
# nothing runs); nothing else is left behind.
set -eu
cd "$(dirname "$0")/.."
PATH=$PATH:/usr/sbin:/sbin

lacking=""
command -v systemd-nspawn >/dev/null 2>&1 || lacking="systemd-container"
command -v debootstrap >/dev/null 2>&1 || lacking="$lacking debootstrap"
if [ -n "$lacking" ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
	apt-get update >&2
	DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $lacking >&2
fi
REKINDLE_SYSTEMD=1 exec .venv/bin/python -m pytest tests/systemd -q "$@"
