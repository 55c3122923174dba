#!/usr/bin/env bash
# "make run" and "make stop": a daemon of this tree's own, beside whatever else the machine runs.
set -euo pipefail
verb=$1 bin=$2
dir=${GANTRY_RUN_DIR:-/var/tmp/gantry-run}
export GANTRY_HOST=unix://$dir/state/gantry.sock
gantry=$bin/gantry
pidfile=$dir/gantryd.pid

if [ "$(id -u)" != 0 ]; then
	echo "gantry needs root to make containers: run \"sudo make $( [ "$verb" = start ] && echo run || echo stop )\"" >&2
	exit 1
fi

alive() { [ -s "$pidfile" ] && kill -0 "$(cat "$pidfile")" 2>/dev/null && grep -q gantryd "/proc/$(cat "$pidfile")/comm"; }

start() {
	if ! alive; then
		mkdir -p "$dir/root" "$dir/state"
		chmod 0711 "$dir"
		setsid "$bin/gantryd" --root "$dir/root" --state "$dir/state" --listen "$GANTRY_HOST" \
			>"$dir/gantryd.log" 2>&1 </dev/null &
		echo $! >"$pidfile"
		for _ in $(seq 100); do
			"$gantry" info >/dev/null 2>&1 && break
			alive || {
				echo "gantryd ended at once; it said:" >&2
				cat "$dir/gantryd.log" >&2
				exit 1
			}
			sleep 0.1
		done
	fi
	"$gantry" run --rm hello
	cat <<-END

		The daemon goes on (pid $(cat "$pidfile"), log $dir/gantryd.log). Talk to it:
		  export GANTRY_HOST=$GANTRY_HOST PATH=$bin:\$PATH
		  gantry info
		"make stop" ends it, removes what it made and leaves the host as it was.
	END
}

stop() {
	if alive; then
		local ids
		ids=$("$gantry" ps -aq --no-trunc || true)
		# shellcheck disable=SC2086 # ids are hexadecimal, one a word
		[ -z "$ids" ] || "$gantry" rm -f $ids >/dev/null
		local pid
		pid=$(cat "$pidfile")
		kill "$pid"
		for _ in $(seq 200); do
			kill -0 "$pid" 2>/dev/null || break
			sleep 0.1
		done
	fi
	rm -rf "$dir"
	echo "stopped; nothing is left"
}

case $verb in
start) start ;;
stop) stop ;;
*)
	echo "run.sh: $verb: start and stop are known" >&2
	exit 2
	;;
esac
