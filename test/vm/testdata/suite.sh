#!/bin/busybox sh
# Process 1 of the machine that runs the runtime's suite: mounts, loads, runs it, powers off.
export PATH=/bin:/usr/bin
if [ ! -e /switched ]; then
	# The first root is the kernel's own and cannot be exchanged by pivot_root(2).
	mkdir /new
	mount -t tmpfs -o size=500m tmpfs /new
	for d in *; do
		[ "$d" = new ] || cp -a "/$d" /new/
	done
	touch /new/switched
	exec switch_root /new /init
fi
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t securityfs securityfs /sys/kernel/security
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm /data
mount -t devpts devpts /dev/pts
mount -t tmpfs -o mode=755 tmpfs /run
mount -t tmpfs tmpfs /tmp
sh /load
mount -t cgroup2 cgroup2 /sys/fs/cgroup
apparmor_parser -K -r /profile || echo "VM FAIL no profile is loaded"
ip link set lo up
# Here a filesystem can be mounted with mapped ids, which this kernel's tmpfs cannot.
mount -t ext4 /dev/vda /data || echo "VM FAIL no disk"
export TMPDIR=/data
cd /data || exit
if /usr/bin/native.test -test.v -test.timeout 20m -test.run '^(TestSuite|TestFeatures|TestJoinedProcesses|TestProcfsFromInside)$' >/tmp/log 2>&1; then
	echo "VM ok suite"
fi
grep -E '^ *(---|[a-z_]+\.go:)' /tmp/log | sed 's/^ *--- PASS: \(.*\) (.*/VM ok \1/; s/^ *--- FAIL: \(.*\) (.*/VM FAIL \1/; s/^ *--- SKIP: \(.*\) (.*/VM skipped \1/'
grep -q '^ok\|^PASS' /tmp/log || cat /tmp/log
[ -z "$(find /sys/fs/cgroup -maxdepth 2 -name 'gantry-runtimetest*')" ] && echo "VM ok no cgroup left"
echo "VM done"
poweroff -f
