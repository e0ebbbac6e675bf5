#!/bin/sh
# Installs the host agent as a systemd service on Debian, Ubuntu, RHEL and their like. As root, from a copy of this
# repository on the host; again for an update, or when the pool file has changed.
#
#   infra/systemd/install.sh --pool pool.yaml --bus-url-file bus_url [--bus-key-file KEY] [--bus-ca-file CA] [--host NAME] [--no-start]
#   infra/systemd/install.sh --pool pool.yaml --bus-dir DIR …     DIR of `rekindle bus hand-out`: bus_url, bus_key, ca.pem
#   infra/systemd/install.sh --remove
#
#   --bus-key-file  the key of this host's agent on the bus; --bus-ca-file: certificates by which the bus is known
#   --host NAME     what the pool file calls this host; by default the machine's name up to the first dot
#   --no-arrivals   leave out the hook by which libvirt asks before it takes a VM in by a migration (docs/adr/0011)
#   --no-start      install and enable, start nothing
#   --root DIR      put the files below DIR and touch nothing else: no packages, no user, no service manager (for images)
#
# It touches no VM, and stops none. Exit status 2 for bad input, 1 where the host does not do.
set -eu
here=$(cd "$(dirname "$0")/../.." && pwd)
uid=7400 # on all hosts the same: the slots on shared storage belong to it
pool="" bus="" key="" ca="" host=$(hostname | cut -d. -f1) start=yes root="" remove="" arrivals=yes

fail() {
	echo "install.sh: $2" >&2
	exit "$1"
}

while [ $# -gt 0 ]; do
	case $1 in
	--pool | --bus-url-file | --bus-key-file | --bus-ca-file | --bus-dir | --host | --root)
		[ $# -gt 1 ] || fail 2 "$1: a value is missing"
		case $1 in
		--pool) pool=$2 ;;
		--bus-url-file) bus=$2 ;;
		--bus-key-file) key=$2 ;;
		--bus-ca-file) ca=$2 ;;
		--bus-dir)
			bus=$2/bus_url key=$2/bus_key
			[ ! -e "$2/ca.pem" ] || ca=$2/ca.pem
			;;
		--host) host=$2 ;;
		--root) root=$2 ;;
		esac
		shift
		;;
	--no-arrivals) arrivals="" ;;
	--no-start) start="" ;;
	--remove) remove=yes ;;
	*) fail 2 "$1: not known; see the head of $0" ;;
	esac
	shift
done
[ -n "$root" ] || [ "$(id -u)" = 0 ] || fail 1 "it must be root that installs a service"

unit=rekindle-heartbeat.service
gate=rekindle-gate.service
hook=$root/etc/libvirt/hooks/qemu.d/rekindle-arrivals
if [ -n "$remove" ]; then
	# what was never enabled is no mistake: the files below are taken away all the same
	[ -n "$root" ] || systemctl disable --now $unit $gate 2>/dev/null || true
	rm -f "$hook" # libvirt looks for it anew at each call
	rm -rf "$root/etc/systemd/system/$gate" "$root/etc/systemd/system/$gate.d"
	rm -rf "$root/etc/systemd/system/$unit" "$root/etc/systemd/system/$unit.d" "$root/opt/rekindle" \
		"$root/usr/local/bin/rekindle" "$root/etc/udev/rules.d/70-rekindle.rules"
	[ -n "$root" ] || systemctl daemon-reload
	echo "install.sh: the agent is gone; /etc/rekindle and the user rekindle stay. Run rekindle remove-host for the host"
	exit 0
fi
[ -r "$pool" ] || fail 2 "--pool: ${pool:-nothing given}: cannot be read"
[ -r "$bus" ] || fail 2 "--bus-url-file: ${bus:-nothing given}: cannot be read"
[ -z "$key" ] || [ -r "$key" ] || fail 2 "--bus-key-file: $key: cannot be read"
[ -z "$ca" ] || [ -r "$ca" ] || fail 2 "--bus-ca-file: $ca: cannot be read"

packages() {
	. /etc/os-release
	case " $ID ${ID_LIKE:-} " in
	*" debian "* | *" ubuntu "*)
		export DEBIAN_FRONTEND=noninteractive
		apt-get update -q >&2
		apt-get install -y -q --no-install-recommends python3 python3-venv python3-libvirt acl >&2
		python=/usr/bin/python3
		suits || {
			apt-get install -y -q --no-install-recommends python3.11 python3.11-venv python3.11-dev gcc libc6-dev \
				pkg-config libvirt-dev >&2 || fail 1 "Python 3.11 or newer is needed, and this system has none"
			python=/usr/bin/python3.11
		}
		;;
	*" rhel "* | *" fedora "* | *" centos "*)
		dnf -q -y install python3 python3-libvirt acl >&2
		python=/usr/bin/python3
		suits || {
			# the binding of the distribution is for its own Python: it is built for this one. libvirt-devel is in CRB, whose
			# name differs (crb, codeready-builder-for-rhel-9-…); to enable one that is not there is an error
			crb=$(dnf -q repolist --all | awk '$1 ~ /^crb$|codeready.builder/ && $1 !~ /debug|source/ { print $1; exit }')
			dnf -q -y ${crb:+"--enablerepo=$crb"} install python3.11 python3.11-devel gcc pkgconf-pkg-config libvirt-devel >&2 ||
				fail 1 "Python 3.11 or newer is needed, and this system has none"
			python=/usr/bin/python3.11
		}
		;;
	*) fail 1 "$ID: neither Debian, Ubuntu nor a relative of RHEL" ;;
	esac
}

suits() {
	"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'
}

user() {
	getent group libvirt >/dev/null || fail 1 "there is no group libvirt: install libvirt first"
	getent group rekindle >/dev/null || groupadd --gid $uid rekindle
	getent passwd rekindle >/dev/null ||
		useradd --uid $uid --gid rekindle --home-dir /var/lib/rekindle --create-home --shell /usr/sbin/nologin rekindle
	[ "$(id -u rekindle)" = $uid ] ||
		echo "install.sh: rekindle has uid $(id -u rekindle) here: its slots on shared storage need the same on all hosts" >&2
	usermod -aG libvirt rekindle
}

program() {
	# a new directory beside the old one: an agent that runs meanwhile keeps its files
	to=$root/opt/rekindle
	rm -rf "$to.new"
	mkdir -p "$to.new/docs" "$root/usr/local/bin"
	cp -R "$here/libs" "$here/services" "$here/infra" "$to.new/"
	cp "$here"/docs/DEPLOYING.md "$here"/docs/OPERATING.md "$to.new/docs/"
	"$python" "$here/infra/docker/distinfo.py" "$here/pyproject.toml" "$to.new"
	find "$to.new" -name __pycache__ -prune -exec rm -rf {} +
	if [ -z "$root" ]; then
		"$python" -m venv --system-site-packages "$to.new/venv"
		awk -f "$here/infra/docker/lacking.awk" "$here/requirements.lock" >"$to.new/wanted"
		"$to.new/venv/bin/pip" install -q --disable-pip-version-check --require-hashes --no-deps -r "$to.new/wanted"
		if ! "$to.new/venv/bin/python" -c 'import libvirt' 2>/dev/null; then
			awk '/^[^ #]/ { taken = /^libvirt-python=/ } taken' "$here/requirements.lock" >"$to.new/binding"
			"$to.new/venv/bin/pip" install -q --disable-pip-version-check --require-hashes --no-deps -r "$to.new/binding"
		fi
		"$to.new/venv/bin/python" -m compileall -q "$to.new/libs" "$to.new/services"
	fi
	rm -rf "$to.old"
	[ ! -e "$to" ] || mv "$to" "$to.old"
	mv "$to.new" "$to"
	rm -rf "$to.old"
	install -m 0755 "$here/infra/docker/rekindle" "$root/usr/local/bin/rekindle"
}

settings() {
	install -d -m 0750 "$root/etc/rekindle"
	[ "$pool" -ef "$root/etc/rekindle/pool.yaml" ] || install -m 0640 "$pool" "$root/etc/rekindle/pool.yaml"
	[ "$bus" -ef "$root/etc/rekindle/bus_url" ] || install -m 0640 "$bus" "$root/etc/rekindle/bus_url"
	where="REKINDLE_BUS__URL_FILE=/etc/rekindle/bus_url"
	if [ -n "$key" ]; then
		[ "$key" -ef "$root/etc/rekindle/bus_key" ] || install -m 0640 "$key" "$root/etc/rekindle/bus_key"
		where="$where REKINDLE_BUS__KEY_FILE=/etc/rekindle/bus_key"
	fi
	if [ -n "$ca" ]; then
		[ "$ca" -ef "$root/etc/rekindle/ca.pem" ] || install -m 0644 "$ca" "$root/etc/rekindle/ca.pem"
		where="$where REKINDLE_BUS__CA_FILE=/etc/rekindle/ca.pem"
	fi
	[ -n "$root" ] || chown -R root:rekindle /etc/rekindle
	# the settings of the plane hold for its agents: one server has one replica of all, three have three
	replicas=$(tr -cd , <"$bus" | wc -c)
	directory=$root/etc/systemd/system
	mkdir -p "$directory/$unit.d" "$root/etc/udev/rules.d"
	install -m 0644 "$here/infra/systemd/$unit" "$directory/$unit"
	{
		about
		echo "Environment=$where REKINDLE_BUS__REPLICAS=$((replicas + 1))"
	} >"$directory/$unit.d/10-host.conf.new"
	# what it remembers of the plane's data, and the notes of the gate, which it takes away
	echo "StateDirectory=rekindle" >>"$directory/$unit.d/10-host.conf.new"
	about --udev >"$root/etc/udev/rules.d/70-rekindle.rules"
	mv "$directory/$unit.d/10-host.conf.new" "$directory/$unit.d/10-host.conf"
	mkdir -p "$directory/$gate.d"
	install -m 0644 "$here/infra/systemd/$gate" "$directory/$gate"
	printf '[Service]\nEnvironment=REKINDLE_AGENT_HOST=%s %s\n' "$host" "$where" \
		>"$directory/$gate.d/10-host.conf"
	chmod 0644 "$directory/$gate.d/10-host.conf" "$directory/$unit.d/10-host.conf" "$root/etc/udev/rules.d/70-rekindle.rules"
}

hooks() {
	[ -n "$arrivals" ] || { rm -f "$hook" && return; }
	mkdir -p "$(dirname "$hook")"
	# made aside, and with no right to be run: libvirt runs whatever in there may be
	about --arrivals /opt/rekindle/infra/systemd/arrivals.py "$(command -v "$python")" >"$to.hook"
	if [ -s "$to.hook" ]; then install -m 0755 "$to.hook" "$hook"; else rm -f "$hook"; fi
	rm -f "$to.hook"
	[ -z "$root" ] || return 0
	for daemon in libvirtd virtqemud; do
		# it reads which hooks there are when it starts, and on a reload, which touches no VM
		! systemctl -q is-active $daemon.service || systemctl reload $daemon.service ||
			echo "install.sh: $daemon must be restarted before it asks for VMs that are migrated to here" >&2
	done
}

about() {
	# a pool file that is wrong ends this here, with its reason, exit status 2
	(cd "$here" && REKINDLE_BUS__URL_FILE=/etc/rekindle/bus_url "${interpreter:-python3}" -m infra.systemd.dropin \
		"$root/etc/rekindle/pool.yaml" "$host" "$@")
}

storage() {
	# libvirt's own settings say which lock guards the disks; only root may read them (they may hold a VNC password)
	for file in /etc/libvirt/qemu.conf /etc/libvirt/qemu-lockd.conf /etc/libvirt/qemu-sanlock.conf; do
		[ ! -e "$file" ] || setfacl -m u:rekindle:r "$file" ||
			echo "install.sh: $file cannot be read by rekindle: rekindle doctor will not know the lock manager" >&2
	done
	about --stores | while read -r place; do
		if mkdir -p "$place" 2>/dev/null && chown rekindle:rekindle "$place" 2>/dev/null && chmod 0755 "$place"; then
			continue
		fi
		echo "install.sh: $place cannot be given to rekindle (root_squash?): on the storage, make it and chown it to $uid" >&2
	done
}

if [ -z "$root" ]; then
	packages
	user
else
	python=${REKINDLE_PYTHON:-python3}
fi
program
interpreter=$([ -n "$root" ] && echo "${REKINDLE_PYTHON:-python3}" || echo /opt/rekindle/venv/bin/python)
settings
hooks
if [ -z "$root" ]; then
	storage
	udevadm control --reload && udevadm trigger --subsystem-match=watchdog --subsystem-match=misc --subsystem-match=block
	systemctl daemon-reload
	systemctl enable -q $unit
	systemctl enable -q $gate # from the next boot on: libvirt runs already
	[ -z "$start" ] || systemctl restart $unit
fi
echo "install.sh: the agent of $host is installed${root:+ below $root}"
