#!/bin/sh
# Makes what docker-compose.yml needs and no repository may hold: secrets/ and .env, in the directory of the compose file.
#
#   infra/docker/init.sh                                    one machine
#   infra/docker/init.sh demo                               one machine, and three hosts in containers
#   infra/docker/init.sh cluster NAME=ADDRESS NAME=ADDRESS NAME=ADDRESS
#                                                           for three nodes: a directory to copy to each, below nodes/
#
# What is there already stays as it is. Run it after pool.yaml is written, and again when a host comes or goes: keys are made
# for each host with an agent. Keys and certificates are made by `rekindle`, of .venv, of $REKINDLE_COMMAND, or of the image,
# which is built where there is none; nothing else needs a network. Exit status 2 for bad input.
set -eu
umask 077
cd "$(dirname "$0")/../.."

fail() {
	echo "init.sh: $1" >&2
	exit 2
}

rekindle() {
	# the command, with this directory in its place
	if [ -n "${REKINDLE_COMMAND:-}" ]; then
		"$REKINDLE_COMMAND" "$@"
	elif [ -x .venv/bin/rekindle ]; then
		.venv/bin/rekindle "$@"
	else
		docker run --rm --network none --user "$(id -u):$(id -g)" -v "$PWD:/here" ${outside:-} -w /here \
			"${REKINDLE_IMAGE:-rekindle:local}" "$@"
	fi
}

image() {
	# the image of the services, for whom the secrets will belong to, where keys can be made by nothing else
	[ -z "${REKINDLE_COMMAND:-}" ] && [ ! -x .venv/bin/rekindle ] || return 0
	command -v docker >/dev/null 2>&1 || fail "there is neither Docker nor a .venv to make keys with"
	docker image inspect "${REKINDLE_IMAGE:-rekindle:local}" >/dev/null 2>&1 || {
		echo "init.sh: building the image first, which makes the keys" >&2
		REKINDLE_UID=$uid REKINDLE_GID=$gid docker compose -f docker-compose.yml build detector >&2
	}
}

random() {
	# letters and digits alone, so that it stands in NATS' configuration as it is
	LC_ALL=C tr -dc A-Za-z0-9 </dev/urandom | head -c 40
}

# Containers run as this user and group, to which the secrets belong. Root gives them away; anybody else keeps them.
if [ "$(id -u)" = 0 ]; then
	uid=${REKINDLE_UID:-7400} gid=${REKINDLE_GID:-7400}
else
	uid=$(id -u) gid=$(id -g)
fi

give() {
	[ "$(id -u)" != 0 ] || chown -R "$uid:$gid" "$1"
}

urls() {
	# urls HOST...: one URL a server, separated by commas
	_all=""
	for _host in "$@"; do
		_all="$_all${_all:+,}tls://$_host:4222"
	done
	echo "$_all"
}

certificate() {
	# certificate DIRECTORY FILE NAME...: for a server of these names; one that is there stays. The authority is the bus's own;
	# its key stays here, and is needed by nobody who runs. So does a copy of the certificate: `rekindle pki show` says when
	# it ends, and `renew` what it is for
	_to=$1 _as=$2
	shift 2
	mkdir -p "$_to/tls" "$_to/ca"
	if [ ! -e "$_to/tls/nats.pem" ]; then
		_names=""
		for _one in "$@"; do
			_names="$_names --name $_one"
		done
		rekindle pki issue "$_as" --init --dir secrets/authority $_names >/dev/null
		cp "secrets/authority/$_as.pem" "$_to/tls/nats.pem"
		mv "secrets/authority/$_as.key" "$_to/tls/nats.key"
	fi
	cp secrets/authority/ca.pem "$_to/tls/ca.pem"
	cp secrets/authority/ca.pem "$_to/ca/ca.pem"
}

known() {
	# known POOL: keys of all users, and what the server is told of them
	[ -r "$1" ] || fail "$1: write the pool file first: each host with an agent gets a key"
	[ ! -e secrets/bus_system_url ] ||
		fail "secrets/ is of an earlier version, with passwords: move it away, and give the agents what is made anew"
	image
	case $1 in
	/*) outside="-v $1:$1:ro" ;; # the container sees no more than this directory
	esac
	mkdir -p secrets
	rekindle bus config --config "$1" --keys secrets/keys --certificate nats >secrets/.bus_users
	# written into the file that is there: the server's container has that one
	cat secrets/.bus_users >secrets/bus_users
	rm secrets/.bus_users
}

one() {
	# one POOL: the secrets of a plane whose bus is the container `nats`
	mkdir -p secrets/fence secrets/alerts secrets/ssh secrets/pki
	known "$1"
	certificate secrets nats nats localhost 127.0.0.1 ${REKINDLE_BUS_NAMES:-}
	[ -e secrets/bus_url ] || urls nats >secrets/bus_url
	give secrets
}

settings() {
	# settings FILE LINE...: never over what a person wrote
	file=$1
	shift
	if [ -e "$file" ]; then
		echo "init.sh: $file is there already and stays as it is; it would have been:" >&2
		printf '    %s\n' "$@" >&2
	else
		printf '%s\n' "$@" >"$file"
	fi
}

cluster() {
	[ $# = 3 ] || fail "cluster: three nodes are needed, each as NAME=ADDRESS"
	names="" addresses=""
	for node in "$@"; do
		case $node in
		[A-Za-z0-9]*=?*) ;;
		*) fail "cluster: $node: each node is NAME=ADDRESS" ;;
		esac
		names="$names ${node%%=*}" addresses="$addresses ${node#*=}"
	done
	[ "$(printf '%s\n' $names | sort -u | wc -l)" = 3 ] || fail "cluster: two nodes have the same name"
	[ "$(printf '%s\n' $addresses | sort -u | wc -l)" = 3 ] || fail "cluster: two nodes have the same address"
	[ ! -e nodes ] || fail "nodes/ is there already: its servers and their clients know each other by its secrets"
	known "${REKINDLE_POOL:-pool.yaml}"
	between=$(random) routes=""
	for address in $addresses; do
		routes="$routes${routes:+, }\"nats-route://route:$between@$address:6222\""
	done
	for node in "$@"; do
		name=${node%%=*} address=${node#*=}
		to=nodes/$name
		mkdir -p "$to/secrets/fence" "$to/secrets/alerts" "$to/secrets/ssh" "$to/secrets/pki"
		cp secrets/bus_users "$to/secrets/bus_users"
		certificate "$to/secrets" "$name" "$address" "$name" localhost 127.0.0.1
		# of agents' keys no node has any: each goes to its host
		mkdir -p "$to/secrets/keys"
		for key in secrets/keys/*.nk; do
			case $key in
			*/agent-* | */owner.nk) ;;
			*) cp "$key" "$to/secrets/keys/" ;;
			esac
		done
		# each client begins with the server of its own node, and knows the others
		others=""
		for other in $addresses; do
			[ "$other" = "$address" ] || others="$others $other"
		done
		urls "$address" $others >"$to/secrets/bus_url"
		cat >"$to/secrets/bus_routes" <<-END
			cluster {
			    name: "rekindle"
			    listen: "0.0.0.0:6222"
			    authorization { user: "route", password: "$between", timeout: 5 }
			    tls {
			        cert_file: "/etc/rekindle/tls/nats.pem", key_file: "/etc/rekindle/tls/nats.key"
			        ca_file: "/etc/rekindle/tls/ca.pem", verify: true, timeout: 5
			    }
			    routes: [ $routes ]
			}
		END
		settings "$to/.env" "COMPOSE_FILE=docker-compose.yml:infra/docker/cluster.yml" "REKINDLE_UID=$uid" \
			"REKINDLE_GID=$gid" "REKINDLE_NODE=$name" "REKINDLE_NODE_ADDRESS=$address" "REKINDLE_BUS_ADDRESS=$address"
		give "$to/secrets"
	done
	give secrets
	echo "init.sh: copy nodes/NAME/secrets and nodes/NAME/.env beside docker-compose.yml of each node (docs/DEPLOYING.md)"
}

case ${1:-one} in
one)
	one "${REKINDLE_POOL:-pool.yaml}"
	settings .env "REKINDLE_UID=$uid" "REKINDLE_GID=$gid"
	;;
demo)
	one infra/docker/demo/pool.yaml
	settings .env "COMPOSE_FILE=docker-compose.yml:infra/docker/demo.yml" "COMPOSE_PROFILES=demo" \
		"REKINDLE_UID=$uid" "REKINDLE_GID=$gid" "REKINDLE_POOL=./infra/docker/demo/pool.yaml"
	;;
cluster)
	shift
	cluster "$@"
	;;
*) fail "$1: give nothing, demo, or cluster NAME=ADDRESS NAME=ADDRESS NAME=ADDRESS" ;;
esac
