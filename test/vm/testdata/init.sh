#!/bin/busybox sh
# Process 1 of the test machine: mounts, loads, works, reports each check in a line, powers off.
export PATH=/bin:/usr/bin
if [ ! -e /switched ]; then
	# The first root is the kernel's own and cannot be exchanged by pivot_root(2); every real machine has another.
	mkdir /new
	mount -t tmpfs -o size=800m tmpfs /new
	for d in *; do
		[ "$d" = new ] || cp -a "/$d" /new/
	done
	touch /new/switched
	exec switch_root /new /init
fi
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs -o mode=755 tmpfs /run
mount -t tmpfs -o size=700m tmpfs /var
mount -t tmpfs tmpfs /tmp
sh /load
if [ @CGROUPS@ = v2 ]; then
	mount -t cgroup2 cgroup2 /sys/fs/cgroup
else
	mount -t tmpfs -o mode=755 cgroup /sys/fs/cgroup
	for c in cpu,cpuacct cpuset memory devices freezer blkio pids; do
		mkdir "/sys/fs/cgroup/$c"
		mount -t cgroup -o "$c" cgroup "/sys/fs/cgroup/$c"
	done
fi
ip link set lo up

ok() { echo "VM ok $1"; }
fail() { echo "VM FAIL $1: $2"; }
# check NAME WANT COMMAND...: the command prints WANT.
check() {
	name=$1 want=$2
	shift 2
	got=$("$@" 2>&1)
	code=$?
	if [ "$got" = "$want" ]; then ok "$name"; else fail "$name" "exit $code, want '$want', got '$got'"; fi
}
# code NAME WANT COMMAND...: the command ends with WANT.
code() {
	name=$1 want=$2
	shift 2
	got=$("$@" 2>&1)
	code=$?
	if [ "$code" = "$want" ]; then ok "$name"; else fail "$name" "exit $code, want $want: $got"; fi
}
wait_for() { # NAME COMMAND...
	name=$1
	shift
	i=0
	until "$@" >/dev/null 2>&1; do
		i=$((i + 1))
		if [ $i -gt 300 ]; then
			fail "$name" "not in time"
			return
		fi
		sleep 0.2
	done
	ok "$name"
}
start() { gantryd >>/tmp/gantryd.log 2>&1 & }

docker-registry serve /registry/config.yml >/tmp/registry.log 2>&1 &
start
wait_for "daemon answers" gantry info
check "cgroups" "@CGROUPS@" gantry system info -f '{{.Cgroups}}'
wait_for "hello" gantry run --rm hello
wait_for "pull" gantry pull -q 127.0.0.1:5000/busybox
image=127.0.0.1:5000/busybox
check "two layers" "layer" gantry run --rm $image cat /second
if [ @CGROUPS@ = v2 ]; then
	check "memory limit" 67108864 gantry run --rm -m 64m $image cat /sys/fs/cgroup/memory.max
	check "pids limit" 33 gantry run --rm --pids-limit 33 $image cat /sys/fs/cgroup/pids.max
	check "cpu limit" "50000 100000" gantry run --rm --cpus 0.5 $image cat /sys/fs/cgroup/cpu.max
else
	check "memory limit" 67108864 gantry run --rm -m 64m $image cat /sys/fs/cgroup/memory/memory.limit_in_bytes
	check "pids limit" 33 gantry run --rm --pids-limit 33 $image cat /sys/fs/cgroup/pids/pids.max
	check "cpu limit" 50000 gantry run --rm --cpus 0.5 $image cat /sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us
fi
code "devices" 0 gantry run --rm $image sh -c 'mknod /tmp/disk b 7 0 && ! head -c1 /tmp/disk 2>/dev/null && head -c1 /dev/zero >/dev/null'
code "cgroup is read-only" 1 gantry run --rm $image sh -c 'mkdir /sys/fs/cgroup/x || mkdir /sys/fs/cgroup/memory/x'
code "out of memory" 137 gantry run --rm -m 16m $image sh -c 'x=0123456789abcdef; while :; do x=$x$x; done'
code "exit code" 42 gantry run --rm $image sh -c 'exit 42'
code "not found" 127 gantry run --rm $image nothing
check "seccomp" "Seccomp:	2" gantry run --rm $image grep Seccomp: /proc/self/status
gantry run -d --name web -p 8080:80 $image sh -c 'mkdir /www; echo page > /www/index.html; exec httpd -f -p 80 -h /www' >/dev/null
wait_for "published" wget -qO- http://127.0.0.1:8080/
check "exec" "7" gantry exec web sh -c 'echo 7'
gantry pause web >/dev/null
check "paused" "paused" gantry inspect -f '{{.State.Status}}' web
gantry unpause web >/dev/null
kill -9 "$(pidof gantryd)"
start
wait_for "daemon answers again" gantry info
check "running after kill -9" "running" gantry inspect -f '{{.State.Status}}' web
check "exec after kill -9" "8" gantry exec web sh -c 'echo 8'
code "stop" 0 gantry stop -t 1 web
code "remove" 0 gantry rm web
check "system check" "" gantry system check
kill "$(pidof gantryd)"
i=0
while pidof gantryd >/dev/null && [ $i -lt 100 ]; do
	i=$((i + 1))
	sleep 0.2
done
check "no link left" "lo" sh -c 'ls /sys/class/net | grep -v bonding_masters'
check "no cgroup left" "" sh -c 'find /sys/fs/cgroup -maxdepth 2 -name "gantry*"'
check "no mount left" "" grep gantry /proc/mounts
tail -n 40 /tmp/gantryd.log
echo "VM done"
poweroff -f
