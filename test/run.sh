#!/usr/bin/env bash
# "make run" and "make stop": a daemon of this tree's own, beside whatever else the machine runs.
# GANTRY_RUN_DIR is its directory; GANTRY_RUN_SECONDS is what it gets to answer, and to end.
set -euo pipefail
verb=$1 bin=$2
dir=$(realpath -m "${GANTRY_RUN_DIR:-/var/tmp/gantry-run}")
limit=${GANTRY_RUN_SECONDS:-60}
export GANTRY_HOST=unix://$dir/state/gantry.sock
gantry=$bin/gantry
pidfile=$dir/gantryd.pid

die() {
	printf '%s\n' "$@" >&2
	exit 1
}

[ "$(id -u)" = 0 ] || die "gantry needs root to make containers: run \"sudo make $([ "$verb" = start ] && echo run || echo stop)\""

# The number in the file may be another process's by now: its command line says whose it is.
alive() {
	local pid
	pid=$(cat "$pidfile" 2>/dev/null) && [ -n "$pid" ] &&
		{ tr '\0' ' ' <"/proc/$pid/cmdline"; } 2>/dev/null | grep -qF -- "--root $dir/root "
}

launch() {
	local end=$((SECONDS + limit))
	mkdir -p "$dir/root" "$dir/state"
	chmod 0711 "$dir"
	# A daemon that was killed holds its lock until the last of its threads has gone.
	flock -w "$limit" "$dir/state/lock" true || die "another gantryd runs on $dir, and not by \"make run\": end it first"
	setsid "$bin/gantryd" --root "$dir/root" --state "$dir/state" --listen "$GANTRY_HOST" \
		>>"$dir/gantryd.log" 2>&1 </dev/null &
	local pid=$!
	echo $pid >"$pidfile"
	until timeout "$limit" "$gantry" info >/dev/null 2>&1; do
		kill -0 $pid 2>/dev/null || die "gantryd ended at once; it said:" "$(tail -n 20 "$dir/gantryd.log")"
		[ $SECONDS -lt $end ] || die "gantryd (pid $pid) does not answer within $limit s; see $dir/gantryd.log"
		sleep 0.1
	done
}

start() {
	alive || launch
	"$gantry" run --rm hello
	cat <<-END

		The daemon goes on (pid $(cat "$pidfile"), log $dir/gantryd.log). Talk to it:
		  export GANTRY_HOST=$GANTRY_HOST PATH=$bin:\$PATH
		  gantry info
		"make run" starts it again if it died; it finds its containers. "make stop" ends it, removes
		what it made and leaves the host as it was.
	END
}

# leftovers names what of this daemon's the kernel still holds. Shims and drivers are known by
# their standard error, which is a file below state.
leftovers() {
	local instance fd
	instance=gantry-$(printf %s "$dir/root" | sha256sum | cut -c1-8) # as daemon/config.go makes it
	awk -v below="$dir/" 'index($5, below) == 1 { print "  mount " $5 }' /proc/self/mountinfo
	find /sys/fs/cgroup -maxdepth 2 -type d -name "$instance" -printf '  cgroup %p\n'
	for fd in /proc/[0-9]*/fd/2; do
		case $(readlink "$fd") in
		"$dir"/state/*) echo "  process $(cut -d/ -f3 <<<"$fd"): $(tr '\0' ' ' <"${fd%/fd/2}/cmdline")" ;;
		esac
	done
}

stop() {
	# Containers outlive their daemon, and its store is the only record of what is theirs in the
	# kernel: a daemon that died comes back to take it away.
	alive || [ ! -e "$dir/root/gantry.db" ] || launch
	if alive; then
		local pid ids end
		pid=$(cat "$pidfile")
		ids=$(timeout "$limit" "$gantry" ps -aq --no-trunc) ||
			die "gantryd (pid $pid) does not answer, so nothing was removed; see $dir/gantryd.log, and if it hangs: kill -9 $pid, and make stop again"
		# shellcheck disable=SC2086 # ids are hexadecimal, one a word
		[ -z "$ids" ] || "$gantry" rm -f $ids >/dev/null
		kill "$pid"
		end=$((SECONDS + limit))
		while kill -0 "$pid" 2>/dev/null; do
			[ $SECONDS -lt $end ] ||
				die "gantryd (pid $pid) has not ended within $limit s of SIGTERM, so $dir stays; see $dir/gantryd.log, and if it hangs: kill -9 $pid, and make stop again"
			sleep 0.1
		done
	fi
	local left
	left=$(leftovers)
	[ -z "$left" ] || die "this is left, so $dir stays:" "$left"
	rm -rf --one-file-system "$dir"
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
