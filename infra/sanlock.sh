#!/bin/sh
# The lock of the disks by a real sanlock: `make sanlock`. Its packages are unpacked for these tests alone and not
# installed: installed, they would start a daemon on this machine.
set -eu
cd "$(dirname "$0")/.."
tools=${REKINDLE_SANLOCK:-.venv/sanlock}

if [ ! -x "$tools/usr/sbin/sanlock" ]; then
	rm -rf "$tools" "$tools.new"
	mkdir -p "$tools.new"
	(
		cd "$tools.new"
		# libvirt loads none but its own release's
		own=$(dpkg-query -W -f '${source:Version}' libvirt-daemon)
		apt-get download "libvirt-sanlock=$own" sanlock libsanlock1 libsanlock-client1 libaio1 >/dev/null ||
			apt-get download libvirt-sanlock sanlock libsanlock1 libsanlock-client1 libaio1 >/dev/null
		for package in ./*.deb; do
			dpkg-deb -x "$package" .
		done
		rm ./*.deb
	)
	mv "$tools.new" "$tools"
fi
tools=$(cd "$tools" && pwd)
libraries=$(dirname "$(find "$tools/usr/lib" -name 'libsanlock_client.so.1')")
export PATH="$PATH:$tools/usr/sbin" LD_LIBRARY_PATH="$libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
export LIBVIRT_LOCK_MANAGER_PLUGIN_DIR="$libraries/libvirt/lock-driver"
exec .venv/bin/python -m pytest tests/lab/test_disk_lock.py -k sanlock -q "$@"
