package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gantryd/gantry/test/harness"
)

// oneOf prints the first of some files that is there: what cgroup v1 and v2 call the same.
func oneOf(files ...string) []string {
	return []string{"sh", "-c", "for f in " + strings.Join(files, " ") + "; do [ -e /sys/fs/cgroup/$f ] && exec cat /sys/fs/cgroup/$f; done; echo none of them"}
}

// TestFlags is docker's flags, and what a process sees of them.
func TestFlags(t *testing.T) {
	t.Parallel()
	m := harness.New(t)
	image := m.Busybox()
	profile := filepath.Join(m.Dir, "profile.json")
	if err := os.WriteFile(profile, []byte(`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO","errnoRet":38}]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	own := func(kind string) string {
		link, err := os.Readlink("/proc/self/ns/" + kind)
		if err != nil {
			t.Fatal(err)
		}
		return link
	}
	bounding := func() string {
		raw, err := os.ReadFile("/proc/self/status")
		if err != nil {
			t.Fatal(err)
		}
		_, after, _ := strings.Cut(string(raw), "CapBnd:\t")
		return after[:16]
	}
	status := func(what string) []string { return []string{"grep", what + ":", "/proc/self/status"} }
	ns := func(kind string) []string { return []string{"readlink", "/proc/self/ns/" + kind} }
	for _, c := range []struct {
		name  string
		flags string
		args  []string
		code  int
		want  string // exactly, but for surrounding space; "~" in front: contained
	}{
		{"cap-add", "--cap-add NET_ADMIN", status("CapEff"), 0, "CapEff:\t00000000a80435fb"},
		{"cap-drop", "--cap-drop net_raw --cap-drop CAP_MKNOD", status("CapBnd"), 0, "CapBnd:\t00000000a00405fb"},
		{"cap-drop all", "--cap-drop ALL", status("CapBnd"), 0, "CapBnd:\t0000000000000000"},
		{"cap-drop all but one", "--cap-drop ALL --cap-add CHOWN", status("CapEff"), 0, "CapEff:\t0000000000000001"},
		{"cap-add all", "--cap-add ALL", status("CapEff"), 0, "~CapEff:\t" + bounding()},
		{"no such capability", "--cap-add FLY", []string{"true"}, 125, "~no such capability"},
		{"privileged capabilities", "--privileged", status("CapEff"), 0, "~CapEff:\t" + bounding()},
		{"privileged without a filter", "--privileged", status("Seccomp"), 0, "~Seccomp:\t0"},
		{"privileged devices", "--privileged", []string{"sh", "-c", "mknod /tmp/n c 1 11 && ls /dev/null /dev/full"}, 0, "~/dev/full\n/dev/null"},
		{"privileged sys", "--privileged", []string{"sh", "-c", "grep -c ' /sys sysfs rw' /proc/mounts; grep -c ' /proc/[a-z]' /proc/mounts"}, 1, "~1\n0"},
		{"privileged cgroup", "--privileged", []string{"sh", "-c", "d=/sys/fs/cgroup; [ -d $d/pids ] && d=$d/pids; mkdir $d/mine && rmdir $d/mine && echo made"}, 0, "~made"},
		{"privileged and less", "--privileged --cap-drop NET_RAW", []string{"true"}, 125, "~add ALL and drop"},
		{"seccomp unconfined", "--security-opt seccomp=unconfined", status("Seccomp"), 0, "Seccomp:\t0"},
		{"seccomp profile", "--security-opt seccomp=" + profile, []string{"sh", "-c", "mkdir /made 2>&1; grep Seccomp: /proc/self/status"}, 0, "~not implemented"},
		{"systempaths", "--security-opt systempaths=unconfined", []string{"sh", "-c", "grep -c ' /proc/[a-z]' /proc/mounts"}, 1, "0"},
		{"apparmor unconfined", "--security-opt apparmor=unconfined", []string{"true"}, 0, ""},
		{"label", "--security-opt label=disable", []string{"true"}, 0, ""},
		{"device", "--device /dev/full:/dev/mine", []string{"sh", "-c", "echo x > /dev/mine"}, 1, "~No space left"},
		{"device to read", "--cap-add SYSLOG --device /dev/kmsg:/dev/mine:r", []string{"sh", "-c", ": < /dev/mine && echo read; : > /dev/mine"}, 1, "~read\nsh: can't create /dev/mine: Operation not permitted"},
		{"no device", "--device /dev/no-such-device", []string{"true"}, 125, "~no such device"},
		{"device rule", "--device-cgroup-rule", []string{"sh", "-c", "mknod /tmp/k c 1 11 && : < /tmp/k && echo read"}, 0, "read"},
		{"no device rule", "--cap-add SYSLOG", []string{"sh", "-c", "mknod /tmp/k c 1 11 && : < /tmp/k"}, 1, "~Operation not permitted"},
		{"groups", "--group-add 44 --group-add 29", []string{"id", "-G"}, 0, "0 29 44"},
		{"oom score", "--oom-score-adj 321", []string{"cat", "/proc/self/oom_score_adj"}, 0, "321"},
		{"read-only with tmpfs", "--read-only --tmpfs /run", []string{"sh", "-c", "touch /run/x && touch /x"}, 1, "~Read-only"},
		{"shm size", "--shm-size 1m", []string{"sh", "-c", "df -k /dev/shm | tail -1 | tr -s ' ' | cut -d' ' -f2"}, 0, "1024"},
		{"sysctl", "--sysctl net.ipv4.ip_unprivileged_port_start=7 --sysctl kernel.msgmax=9000", []string{"cat", "/proc/sys/net/ipv4/ip_unprivileged_port_start", "/proc/sys/kernel/msgmax"}, 0, "7\n9000"},
		{"sysctl of the host", "--sysctl kernel.pid_max=7", []string{"true"}, 125, "~it is the host's"},
		{"sysctl of the host's network", "--network host --sysctl net.core.somaxconn=7", []string{"true"}, 125, "~take one of them away"},
		{"pid host", "--pid host", ns("pid"), 0, own("pid")},
		{"pid host and init", "--pid host --init", []string{"true"}, 125, "~process 1"},
		{"ipc host", "--ipc host", ns("ipc"), 0, own("ipc")},
		{"ipc none", "--ipc none", []string{"ls", "/dev/shm"}, 1, "~No such file"},
		{"uts host", "--uts host", ns("uts"), 0, own("uts")},
		{"cgroupns host", "--cgroupns host", ns("cgroup"), 0, own("cgroup")},
		{"userns host", "--userns host", ns("user"), 0, own("user")},
		{"memory and swap", "-m 64m --memory-swap 96m", oneOf("memory/memory.memsw.limit_in_bytes", "memory.swap.max", "memory/memory.limit_in_bytes"), 0, "~"},
		{"memory reservation", "--memory-reservation 32m", oneOf("memory/memory.soft_limit_in_bytes", "memory.low"), 0, "33554432"},
		{"cpu shares", "-c 512", oneOf("cpu/cpu.shares", "cpu.weight"), 0, "~"},
		{"cpu quota", "--cpu-period 50000 --cpu-quota 20000", oneOf("cpu/cpu.cfs_quota_us", "cpu.max"), 0, "~20000"},
		{"cpuset", "--cpuset-cpus 0", []string{"grep", "Cpus_allowed_list", "/proc/self/status"}, 0, "Cpus_allowed_list:\t0"},
		{"no such processor", "--cpuset-cpus 8000", []string{"true"}, 125, "~this host has"},
		{"apparmor", "--security-opt apparmor=no-such-profile", []string{"true"}, 125, "~AppArmor"},
	} {
		t.Run(c.name, func(t *testing.T) {
			flags := strings.Fields(c.flags)
			if c.flags == "--device-cgroup-rule" {
				flags = append(flags, "c 1:11 rwm", "--cap-add", "SYSLOG")
			}
			args := append(append(append([]string{"run", "--rm"}, flags...), image), c.args...)
			r := m.Try(args...)
			got := strings.TrimSpace(r.All())
			want, contained := strings.CutPrefix(c.want, "~")
			if r.Code != c.code || contained && !strings.Contains(got, want) || !contained && got != want {
				t.Errorf("gantry %s: exit %d, want %d\n got %q\nwant %q", strings.Join(args, " "), r.Code, c.code, got, want)
			}
		})
	}
}

// TestPrivilegedExec gives one command more than its container has.
func TestPrivilegedExec(t *testing.T) {
	t.Parallel()
	m := harness.New(t)
	m.Must("run", "-d", "--name", "c", "--cap-drop", "ALL", m.Busybox(), "sleep", "1000")
	if got := m.Must("exec", "c", "grep", "CapEff:", "/proc/self/status"); got != "CapEff:\t0000000000000000" {
		t.Errorf("%q", got)
	}
	if got := m.Must("exec", "--privileged", "c", "sh", "-c", "grep CapEff: /proc/self/status"); got == "CapEff:\t0000000000000000" {
		t.Errorf("%q", got)
	}
}

// TestShare has containers share networks, memory and names.
func TestShare(t *testing.T) {
	t.Parallel()
	m := harness.New(t)
	image := m.Busybox()
	m.Must("run", "-d", "--name", "first", "-h", "one", "--ipc", "shareable", image, "sh", "-c", "echo first > /dev/shm/word; exec sleep 1000")
	m.Must("create", "--name", "private", image, "sleep", "1000")
	address := m.Must("inspect", "-f", "{{.NetworkSettings.IPAddress}}", "first")
	run := func(args ...string) string { return m.Must(append([]string{"run", "--rm"}, args...)...) }
	if got := run("--network", "container:first", image, "sh", "-c", "hostname; ip -4 -o addr show eth0; cat /etc/hosts"); !strings.HasPrefix(got, "one\n") || !strings.Contains(got, address+"/") || !strings.Contains(got, address+"\tone") {
		t.Errorf("network: %q, want %s", got, address)
	}
	if got := run("--uts", "container:first", image, "hostname"); got != "one" {
		t.Errorf("uts: %q", got)
	}
	ipc := m.Must("exec", "first", "readlink", "/proc/self/ns/ipc")
	if got := run("--ipc", "container:first", image, "sh", "-c", "cat /dev/shm/word; readlink /proc/self/ns/ipc; echo second > /dev/shm/word"); got != "first\n"+ipc {
		t.Errorf("ipc: %q", got)
	}
	if got := m.Must("exec", "first", "cat", "/dev/shm/word"); got != "second" {
		t.Errorf("what the second wrote: %q", got)
	}
	pid := m.Must("exec", "first", "readlink", "/proc/self/ns/pid")
	if got := run("--pid", "container:first", image, "sh", "-c", `readlink /proc/self/ns/pid; tr '\0' ' ' < /proc/1/cmdline`); strings.TrimSpace(got) != pid+"\nsleep 1000" {
		t.Errorf("pid: %q, want %s and its process 1", got, pid)
	}
	m.Fails(2, "--ipc shareable", "create", "--ipc", "container:private", image)
	m.Fails(3, "nobody", "create", "--network", "container:nobody", image)
	m.Fails(125, "it does not run: start it first", "run", "--network", "container:private", image)

	// Who joined goes on when its namespaces' owner ends, and cannot be started again without it.
	m.Must("run", "-d", "--name", "second", "--network", "container:first", "--ipc", "container:first", image, "sleep", "1000")
	if mode := m.Must("inspect", "-f", "{{.HostConfig.NetworkMode}} {{.HostConfig.IpcMode}}", "second"); mode != strings.Repeat(" container:"+m.Must("inspect", "-f", "{{.Id}}", "first"), 2)[1:] {
		t.Errorf("modes %q", mode)
	}
	m.Restart()
	m.Must("rm", "-f", "first")
	if got := m.Must("exec", "second", "cat", "/dev/shm/word"); got != "second" {
		t.Errorf("what was shared is gone: %q", got)
	}
	m.Must("stop", "-t", "0", "second")
	m.Fails(5, "it was removed: make this container anew", "start", "second")
	m.Must("rm", "second", "private")
	m.Must("system", "check")
}

// TestDescribedDevice gives a device by its vendor's description.
func TestDescribedDevice(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for name, text := range map[string]string{
		"gantryd.toml": "cdi_dirs = [\"" + dir + "\"]\n",
		"vendor.yaml": "cdiVersion: 0.6.0\nkind: nvidia.com/gpu\ndevices:\n- name: all\n  containerEdits:\n    env: [THING=yes]\n    deviceNodes:\n    - {path: /dev/thing, hostPath: /dev/full}\n" +
			"    mounts:\n    - {hostPath: /etc/passwd, containerPath: /opt/thing, options: [ro, bind]}\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	m := harness.New(t, harness.Flags("--config", filepath.Join(dir, "gantryd.toml")))
	image := m.Busybox()
	for _, flags := range [][]string{{"--gpus", "all"}, {"--device", "nvidia.com/gpu=all"}} {
		r := m.Try(append(append([]string{"run", "--rm"}, flags...), image, "sh", "-c", "echo $THING; wc -l < /opt/thing; echo x > /dev/thing")...)
		if r.Code != 1 || !strings.HasPrefix(r.All(), "yes\n") || !strings.Contains(r.All(), "No space left") {
			t.Errorf("%v: exit %d, %q", flags, r.Code, r.All())
		}
	}
	m.Fails(125, "known: nvidia.com/gpu=all", "run", "--rm", "--device", "nvidia.com/gpu=7", image)
}

// TestCgroupParent counts a container under another cgroup, and finds it there when its shim is gone.
func TestCgroupParent(t *testing.T) {
	t.Parallel()
	m := harness.New(t)
	parent := "/" + m.Instance + "-batch"
	t.Cleanup(func() { // as with docker, a directory that was made for it stays
		for _, pattern := range []string{"/sys/fs/cgroup" + parent, "/sys/fs/cgroup/*" + parent} {
			dirs, err := filepath.Glob(pattern)
			if err != nil {
				t.Error(err)
			}
			for _, dir := range dirs {
				if err := os.Remove(dir); err != nil {
					t.Error(err)
				}
			}
		}
	})
	id := m.Must("run", "-d", "--name", "c", "--cgroup-parent", parent, m.Busybox(), "sleep", "1000")
	pid := m.Must("inspect", "-f", "{{.State.Pid}}", "c")
	if got := m.Sh("cat /proc/%s/cgroup", pid); !strings.Contains(got, parent+"/"+id) {
		t.Errorf("%q", got)
	}
	shim := m.Sh("awk '/^PPid/ {print $2}' /proc/%s/status", pid)
	m.Sh("kill -9 %s", shim)
	harness.Eventually(t, 10*time.Second, "what was left is ended", func() bool {
		_, err := os.Stat("/proc/" + pid)
		return os.IsNotExist(err) && m.Must("inspect", "-f", "{{.State.Status}}", "c") == "exited"
	})
	m.Must("system", "check")
}

// TestShareElsewhere is the same where another program makes the containers, and what it is told of limits later.
func TestShareElsewhere(t *testing.T) {
	eachRuntime(t, func(t *testing.T, m *harness.Machine, name string) {
		image := m.Busybox()
		m.Must("run", "-d", "--runtime", name, "--name", "first", "-h", "one", "--ipc", "shareable", "-m", "64m", image, "sh", "-c", "echo first > /dev/shm/word; exec sleep 1000")
		for flag, args := range map[string][]string{
			"--network": {"readlink", "/proc/self/ns/net"}, "--uts": {"hostname"}, "--pid": {"readlink", "/proc/self/ns/pid"}, "--ipc": {"cat", "/dev/shm/word"},
		} {
			want := m.Must(append([]string{"exec", "first"}, args...)...)
			if got := m.Must(append([]string{"run", "--rm", "--runtime", name, flag, "container:first", image}, args...)...); got != want || want == "" {
				t.Errorf("%s: %q, want %q", flag, got, want)
			}
		}
		memory := append([]string{"exec", "first"}, oneOf("memory/memory.limit_in_bytes", "memory.max")...)
		m.Must("update", "-m", "32m", "first")
		if got := m.Must(memory...); got != "33554432" {
			t.Errorf("memory %s", got)
		}
		m.Must("update", "-m", "0", "first")
		if got := m.Must(memory...); len(got) < 15 && got != "max" {
			t.Errorf("memory %s after the limit was taken away", got)
		}
		if r := m.Try("run", "--rm", "--runtime", name, "--privileged", image, "grep", "Seccomp:", "/proc/self/status"); r.Code != 0 || r.Out != "Seccomp:\t0\n" {
			t.Errorf("privileged: exit %d, %q %s", r.Code, r.Out, r.Err)
		}
	})
}
