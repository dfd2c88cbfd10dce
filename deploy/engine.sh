# shellcheck shell=bash
# Private Docker engines and registries for the demo, the tests and the benchmark. To be sourced:
#
#   engine_need [engine]        a docker client, dockerd, a registry, htpasswd, nginx and faketime are there ("engine": the
#                               first two)
#   engine_up DIR               a private engine under DIR; exports DOCKER_HOST and DOCKER_CONFIG
#   engine_or_private DIR       the engine that answers already, else a private one under DIR
#   registry_up DIR             two registries under DIR: one wants a login, one is open; exports the REGISTRY_* below
#   engine_down DIR             ends what runs under DIR and removes DIR
#   engine_at_exit COMMAND...   runs COMMAND when the script ends, however it ends; the last added runs first
#
# Nothing outside DIR is touched: sockets, images, containerd, client settings and logs are all below it. Each engine
# has a network bridge of its own, which goes with it; no firewall rule and no kernel setting is changed.
# Whatever was brought up is taken down when the script ends, be it by an error or by Ctrl-C.

readonly ENGINE_WAIT_SECONDS=60 # how long an engine or a registry may take to answer
readonly ENGINE_STOP_SECONDS=20 # how long it may take to stop before it is killed
ENGINE_EXIT_COMMANDS=()

engine_fail() {
	printf '%s: %s\n' "${0##*/}" "$*" >&2
	return 1
}

# ---- what runs when the script ends ---------------------------------------------------------------------------

engine_at_exit() {
	if [ ${#ENGINE_EXIT_COMMANDS[@]} -eq 0 ]; then
		trap engine_run_exit_commands EXIT
		trap 'exit 129' HUP
		trap 'exit 130' INT
		trap 'exit 143' TERM
	fi
	ENGINE_EXIT_COMMANDS+=("$(printf '%q ' "$@")")
}

engine_run_exit_commands() {
	local status=$? i
	trap '' HUP INT TERM # a second Ctrl-C must not leave half of it behind
	for ((i = ${#ENGINE_EXIT_COMMANDS[@]} - 1; i >= 0; i--)); do
		eval "${ENGINE_EXIT_COMMANDS[i]}" || true
	done
	ENGINE_EXIT_COMMANDS=()
	exit "$status"
}

# ---- what must be installed -----------------------------------------------------------------------------------

engine_find() { # COMMAND: its path, also where root's directories are not on the PATH
	PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin command -v "$1"
}

engine_need() {
	local tools=(docker dockerd ip) tool missing=() packages=()
	[ "${1:-}" = engine ] || tools+=(docker-registry htpasswd nginx faketime)
	for tool in "${tools[@]}"; do
		engine_find "$tool" >/dev/null || missing+=("$tool")
	done
	[ "$(id -u)" -eq 0 ] || engine_fail "needs root: a private Docker engine cannot be started by $(id -un)" || return
	[ ${#missing[@]} -gt 0 ] || return 0

	[ -x "$(engine_find apt-get || true)" ] || engine_fail "not installed: ${missing[*]}" || return
	for tool in "${missing[@]}"; do
		case $tool in
		docker | dockerd) packages+=(docker.io) ;;
		ip) packages+=(iproute2) ;;
		htpasswd) packages+=(apache2-utils) ;;
		nginx) packages+=(nginx-light) ;;
		*) packages+=("$tool") ;;
		esac
	done
	echo "installing ${packages[*]}" >&2
	engine_install "${packages[@]}" || engine_fail "could not install ${packages[*]}, needed for: ${missing[*]}" || return
	# Newer Debian releases keep the client in a package of its own.
	engine_find docker >/dev/null || engine_install docker-cli || true
	for tool in "${missing[@]}"; do
		engine_find "$tool" >/dev/null || engine_fail "still not installed after apt-get install: $tool" || return
	done
}

engine_install() { # PACKAGE...: without starting the services that they bring
	local policy=/usr/sbin/policy-rc.d ours='' log status=0
	log=$(mktemp)
	if [ ! -e $policy ]; then
		engine_at_exit rm -f $policy # in case of a Ctrl-C meanwhile
		printf '#!/bin/sh\nexit 101\n' >$policy
		chmod +x $policy
		ours=yes
	fi
	{
		DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" ||
			{ apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@"; }
	} >"$log" 2>&1 </dev/null || {
		status=$?
		tail -n 5 "$log" >&2
	}
	rm -f "$log"
	[ -z "$ours" ] || rm -f $policy
	return "$status"
}

# ---- processes ------------------------------------------------------------------------------------------------

# Apart from our terminal, so that Ctrl-C ends them in our order; the pid is written before the program runs.
engine_spawn() { # PIDFILE LOG COMMAND...
	local pidfile=$1 log=$2
	shift 2
	# shellcheck disable=SC2016 # expanded by the inner shell
	setsid bash -c 'echo $$ >"$1"; shift; exec "$@"' - "$pidfile" "$@" >"$log" 2>&1 </dev/null &
	while [ ! -s "$pidfile" ]; do kill -0 $! 2>/dev/null || return; done
}

engine_alive() { # PIDFILE
	local pid state
	pid=$(cat "$1" 2>/dev/null) && [ -n "$pid" ] && state=$(sed 's/.*) //' "/proc/$pid/stat" 2>/dev/null) || return 1
	[ "${state%% *}" != Z ]
}

engine_until() { # SECONDS COMMAND...: asks again until COMMAND succeeds
	local deadline=$((SECONDS + $1))
	shift
	until "$@" >/dev/null 2>&1; do
		[ $SECONDS -lt $deadline ] || return 1
		sleep 0.05
	done
}

engine_stop_process() { # PIDFILE
	engine_alive "$1" || return 0
	kill -TERM "$(cat "$1")" 2>/dev/null || true
	engine_until $ENGINE_STOP_SECONDS engine_gone "$1" || kill -KILL "$(cat "$1")" 2>/dev/null || true
}

engine_gone() { ! engine_alive "$1"; }

# Processes of a killed engine: its containerd, shims (DIR is in their command line) and the shims' children.
engine_kill_leftovers() { # DIR
	local pids pid found
	pids=$(pgrep -f -- "$1/exec/" || true)
	for pid in $pids; do
		found=$(pgrep -P "$pid" || true)
		# shellcheck disable=SC2086 # a list of pids
		kill -KILL $found "$pid" 2>/dev/null || true
	done
}

# ---- engines --------------------------------------------------------------------------------------------------

engine_up() {
	engine_at_exit engine_down "$1"
	engine_start "$1" || return
	unset DOCKER_CONTEXT DOCKER_TLS_VERIFY DOCKER_CERT_PATH DOCKER_API_VERSION
	export DOCKER_HOST=unix://$1/docker.sock DOCKER_CONFIG=$1/client
}

# The same without clearing up at exit: whoever calls it answers for engine_down. Starts a stopped engine again, too.
engine_start() { # DIR [ARGUMENT OF dockerd...]
	local dir=$1 bridge reason
	shift
	[ ${#dir} -le 60 ] || engine_fail "too long for a socket's directory: $dir" || return
	mkdir -p "$dir/client"
	: >"$dir/.engine"
	engine_gone "$dir/dockerd.pid" || engine_fail "an engine runs already in $dir" || return
	# What a killed engine left: its containerd died with it, but where pid 1 reaps nobody both still look alive.
	rm -f "$dir/docker.sock" "$dir/docker.pid" "$dir/dockerd.pid"
	engine_alive "$dir/exec/containerd/containerd.pid" || rm -f "$dir/exec/containerd/containerd.pid"
	[ -e /sys/class/net/docker_gwbridge ] || : >"$dir/.may-make-docker_gwbridge"

	bridge=$(engine_bridge "$dir")
	if [ "$bridge" = none ] && [ -e /sys/class/net/docker0 ]; then
		# An engine told to have no bridge removes docker0, whosever it is.
		engine_fail "cannot make a network bridge, and without one the new engine would remove another's docker0"
		return
	fi
	engine_spawn "$dir/dockerd.pid" "$dir/dockerd.log" "$(engine_find dockerd)" -H "unix://$dir/docker.sock" \
		--data-root "$dir/data" --exec-root "$dir/exec" --pidfile "$dir/docker.pid" \
		--bridge="$bridge" --iptables=false --ip-forward=false --ip-masq=false "$@"
	engine_until $ENGINE_WAIT_SECONDS engine_answers_or_ended "$dir" || true
	engine_answers "$dir" || {
		engine_stop_process "$dir/dockerd.pid"
		reason=$(grep -E 'level=(fatal|error)|failed to start' "$dir/dockerd.log" | tail -n 1 || true)
		engine_fail "no Docker engine could be started: ${reason:-$(tail -n 1 "$dir/dockerd.log")}"
	}
}

# Prints the name of a bridge of this engine's own, so that it cannot meet another's; "none" where none can be made.
engine_bridge() { # DIR
	local name ip
	name=$(cat "$1/bridge" 2>/dev/null || echo "xtm$(od -An -N4 -tx4 /dev/urandom | tr -d ' \n')")
	if [ ! -e "/sys/class/net/$name" ]; then
		ip=$(engine_find ip) && "$ip" link add "$name" type bridge 2>/dev/null && echo "$name" >"$1/bridge" || name=none
	fi
	echo "$name"
}

engine_answers() { # DIR
	env -u DOCKER_CONTEXT -u DOCKER_TLS_VERIFY docker -H "unix://$1/docker.sock" version >/dev/null 2>&1
}

engine_answers_or_ended() { engine_answers "$1" || engine_gone "$1/dockerd.pid"; }

engine_or_private() {
	if engine_find docker >/dev/null && timeout 10 docker version >/dev/null 2>&1; then
		return 0
	fi
	engine_need engine && engine_up "$1"
}

engine_down() {
	local dir=$1 mounted link
	[ -e "$dir/.engine" ] || return 0
	# A private engine that a killed test left behind lies below: it goes first.
	for link in "$dir"/private/*/.engine; do
		[ ! -e "$link" ] || engine_down "${link%/.engine}"
	done
	if engine_alive "$dir/dockerd.pid"; then
		engine_empty "$dir" >/dev/null 2>&1 || true
	fi
	for link in "$dir"/*.pid; do
		[ "$link" = "$dir/docker.pid" ] || [ ! -e "$link" ] || engine_stop_process "$link"
	done
	engine_kill_leftovers "$dir"
	while read -r mounted; do
		umount -l "$mounted" 2>/dev/null || true
	done < <(awk -v under="$dir/" 'index($2, under) == 1 { print $2 }' /proc/mounts | sort -r)
	engine_remove_bridges "$dir"
	rm -rf --one-file-system "$dir"
}

engine_remove_bridges() { # DIR: its own, those of its networks, and Swarm's if no other engine may use that
	local ip link
	ip=$(engine_find ip) || return 0
	link=$(cat "$1/bridge" 2>/dev/null || true)
	if [ -n "$link" ]; then "$ip" link delete "$link" 2>/dev/null || true; fi
	for link in /sys/class/net/br-*; do
		link=${link##*/}
		if grep -aqsF "\"$link\"" "$1/data/network/files/local-kv.db"; then "$ip" link delete "$link" || true; fi
	done
	if [ -e "$1/.may-make-docker_gwbridge" ] && ! pgrep -x dockerd >/dev/null; then
		"$ip" link delete docker_gwbridge 2>/dev/null || true
	fi
}

engine_empty() { # DIR: containers and networks go while the engine that made them still runs
	local docker=(timeout 30 env -u DOCKER_CONTEXT docker -H "unix://$1/docker.sock")
	[ ! -e "$1/data/swarm/docker-state.json" ] || "${docker[@]}" swarm leave --force
	"${docker[@]}" ps -aq | xargs -r "${docker[@]}" rm -f
	"${docker[@]}" network ls -q --filter type=custom | xargs -r "${docker[@]}" network rm
}

# ---- registries -----------------------------------------------------------------------------------------------

# REGISTRY (wants a login as REGISTRY_USER with REGISTRY_PASSWORD) and REGISTRY_OPEN (wants none), both HOST:PORT on
# the loopback, which every engine may use without TLS.
registry_up() {
	local dir=$1
	mkdir -p "$dir"
	: >"$dir/.engine"
	engine_at_exit engine_down "$dir"
	REGISTRY_USER=reader REGISTRY_PASSWORD=$(od -An -N12 -tx1 /dev/urandom | tr -d ' \n')
	htpasswd -Bbn "$REGISTRY_USER" "$REGISTRY_PASSWORD" >"$dir/htpasswd"
	registry_start "$dir" login "auth: {htpasswd: {realm: fixture, path: $dir/htpasswd}}" || return
	REGISTRY=$REGISTRY_ADDRESS
	registry_start "$dir" open '' || return
	REGISTRY_OPEN=$REGISTRY_ADDRESS
	export REGISTRY REGISTRY_OPEN REGISTRY_USER REGISTRY_PASSWORD
}

# Port 0 lets the kernel choose, so that two runs never meet; the log tells which it was.
registry_start() { # DIR NAME AUTH: sets REGISTRY_ADDRESS
	local dir=$1 name=$2
	cat >"$dir/$name.yaml" <<-YAML
		version: 0.1
		log: {level: info, accesslog: {disabled: true}}
		storage: {filesystem: {rootdirectory: $dir/$name}, delete: {enabled: true}}
		http: {addr: "127.0.0.1:0"}
		$3
	YAML
	engine_spawn "$dir/$name.pid" "$dir/$name.log" "$(engine_find docker-registry)" serve "$dir/$name.yaml"
	engine_until $ENGINE_WAIT_SECONDS grep -q 'listening on 127' "$dir/$name.log" ||
		engine_fail "the registry did not start: $(tail -n 1 "$dir/$name.log")" || return
	REGISTRY_ADDRESS=$(grep -o 'listening on 127[0-9.:]*' "$dir/$name.log" | head -n 1)
	REGISTRY_ADDRESS=${REGISTRY_ADDRESS##* }
}
