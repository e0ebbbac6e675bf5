#!/bin/sh
# docker-compose.yml run for real: `make compose-test`. What it needs is a Docker Engine and debootstrap, for these tests
# alone: that is why bootstrap.sh leaves them out. No image is pulled: the base is made by debootstrap, the server's of
# the binary in .venv. Images and layers are kept in /var/tmp/rekindle-compose (`rm -rf` it when nothing runs).
set -eu
cd "$(dirname "$0")/.."
tools=$PWD/.venv/compose
PATH=$PATH:/usr/sbin:/sbin

if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
	lacking=""
	command -v dockerd >/dev/null 2>&1 || lacking="docker.io"
	command -v debootstrap >/dev/null 2>&1 || lacking="$lacking debootstrap"
	# how Docker has a container ask it for the names of others
	command -v iptables >/dev/null 2>&1 || lacking="$lacking iptables"
	if [ -n "$lacking" ]; then
		# installed, but no daemon of the machine's is started: the tests have their own
		policy=/usr/sbin/policy-rc.d
		[ -e $policy ] && policy="" || { printf '#!/bin/sh\nexit 101\n' >$policy && chmod +x $policy; }
		trap '[ -z "$policy" ] || rm -f "$policy"' EXIT
		apt-get update >&2
		DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $lacking >&2
		[ -z "$policy" ] || rm -f "$policy"
		trap - EXIT
	fi
	# Compose 2 is a plugin of the command `docker`. Debian 12 has version 1 only, which nobody
	# maintains any more: the plugin is taken out of Debian 13's package, which is one program that needs libc alone.
	if ! docker compose version >/dev/null 2>&1 && [ ! -x "$tools/cli-plugins/docker-compose" ]; then
		work=$(mktemp -d)
		mkdir -p "$work/parts" "$work/lists/partial" "$work/cache/archives/partial" "$tools/cli-plugins"
		[ -n "${mirror:-}" ] || mirror=$(sed -n 's/^URIs: *\(http[^ ]*\/debian\)\/*$/\1/p; s/^deb *\(\[[^]]*\] *\)*\(http[^ ]*\/debian\)\/* .*/\2/p' \
			/etc/apt/sources.list /etc/apt/sources.list.d/* 2>/dev/null | head -1)
		printf 'Types: deb\nURIs: %s\nSuites: trixie\nComponents: main\nSigned-By: %s\n' \
			"${mirror:?no Debian mirror is named in /etc/apt: set mirror=}" /usr/share/keyrings/debian-archive-keyring.gpg >"$work/parts/t.sources"
		apt="apt-get -q -o Dir::Etc::sourcelist=/dev/null -o Dir::Etc::sourceparts=$work/parts -o Dir::State::lists=$work/lists \
-o Dir::Cache=$work/cache -o APT::Sandbox::User=root"
		# without the plugin the tests say so, and are skipped
		(cd "$work" && $apt update >&2 && $apt download docker-compose >&2 && dpkg-deb -x docker-compose_*.deb tree) &&
			install -m 0755 "$(find "$work/tree" -type f -name docker-compose -perm -u+x | head -1)" "$tools/cli-plugins/" || true
		rm -rf "$work"
	fi
fi
if [ -x "$tools/cli-plugins/docker-compose" ]; then
	export DOCKER_CONFIG=$tools
fi
REKINDLE_COMPOSE=1 exec .venv/bin/python -m pytest tests/compose -q "$@"
