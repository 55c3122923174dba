package runtimetest

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/internal/cgroup"
	"github.com/gantryd/gantry/shim/runtime"
)

// spec is a container that runs a script, with one thing changed.
func spec(script string, change func(*specs.Spec)) func(*Box) *runtime.Config {
	return func(b *Box) *runtime.Config {
		c := b.Sh(script)
		change(c.Spec)
		return c
	}
}

func hasNUMA() bool { return unix.Access("/proc/self/numa_maps", unix.R_OK) == nil }

var machine32 = map[string]string{"x86_64": "i686", "aarch64": "armv8l"}

var processFeatures = []feature{
	{name: "process.scheduler", ask: spec("awk '{ print $41, $19 }' /proc/self/stat", func(s *specs.Spec) {
		s.Process.Scheduler = &specs.Scheduler{Policy: specs.SchedBatch, Nice: 5, Flags: []specs.LinuxSchedulerFlag{specs.SchedFlagResetOnFork}}
	}), more: schedulers},
	{name: "process.ioPriority", ask: spec("ionice", func(s *specs.Spec) {
		s.Process.IOPriority = &specs.LinuxIOPriority{Class: specs.IOPRIO_CLASS_BE, Priority: 6}
	}), want: "best-effort: prio 6", more: ioPriorities},
	{name: "linux.personality", ask: spec("uname -m", func(s *specs.Spec) {
		s.Linux.Personality = &specs.LinuxPersonality{Domain: specs.PerLinux32}
	}), more: personalities},
	{name: "linux.memoryPolicy", here: hasNUMA, ask: memory("MPOL_BIND", "0"), want: "bind:0", more: memoryPolicies},
	{name: "process.execCPUAffinity", ask: spec("true", func(s *specs.Spec) {
		s.Process.ExecCPUAffinity = &specs.CPUAffinity{Initial: "0", Final: "0"}
	}), more: affinity},
	{name: "process.commandLine", here: nowhere, ask: spec("true", func(s *specs.Spec) { s.Process.CommandLine = "cmd.exe" })},
	{name: "process.user.username", here: nowhere, ask: spec("true", func(s *specs.Spec) { s.Process.User.Username = "alice" })},
	{name: "linux.cgroupsPath", ask: spec("true", func(s *specs.Spec) { s.Linux.CgroupsPath = "" }), more: defaultCgroup},
	{name: "tmpcopyup", ask: func(b *Box) *runtime.Config {
		c := b.Sh("true")
		c.Spec.Mounts = append(c.Spec.Mounts, specs.Mount{Destination: "/etc", Type: "tmpfs", Source: "tmpfs", Options: []string{"tmpcopyup"}})
		return c
	}, more: copyUps},
	{name: "rro", ask: func(b *Box) *runtime.Config {
		c := b.Sh("true")
		c.Spec.Mounts = append(c.Spec.Mounts, bind(b.host("v"), "/v", "rro"))
		return c
	}, more: attributesBelow},
	{name: "remount", ask: func(b *Box) *runtime.Config {
		c := b.Sh("true")
		c.Spec.Mounts = append(c.Spec.Mounts, specs.Mount{Destination: "/proc", Type: "proc", Options: []string{"remount", "ro"}})
		return c
	}, more: remounts},
	{name: "iversion", here: nowhere, ask: func(b *Box) *runtime.Config {
		c := b.Sh("true")
		c.Spec.Mounts = append(c.Spec.Mounts, specs.Mount{Destination: "/x", Type: "tmpfs", Options: []string{"iversion"}})
		return c
	}},
	{name: "silent", ask: func(b *Box) *runtime.Config {
		c := b.Sh("grep -c ' /x ' /proc/self/mountinfo")
		c.Spec.Mounts = append(c.Spec.Mounts, specs.Mount{Destination: "/x", Type: "tmpfs", Options: []string{"silent", "loud", "mand", "nomand", "noiversion", "async", "sync", "dirsync", "lazytime", "nolazytime", "defaults", "rnoexec"}})
		return c
	}, want: "1"},
}

func memory(mode specs.MemoryPolicyModeType, nodes string, flags ...specs.MemoryPolicyFlagType) func(*Box) *runtime.Config {
	return spec("cut -d' ' -f2 /proc/self/numa_maps | sort -u", func(s *specs.Spec) {
		s.Linux.MemoryPolicy = &specs.LinuxMemoryPolicy{Mode: mode, Nodes: nodes, Flags: flags}
	})
}

// mistakes are refused by name.
func (b *Box) mistakes(script string, by map[string]func(*specs.Spec)) {
	b.T.Helper()
	for name, change := range by {
		b.refuses(name, spec(script, change)(b))
	}
}

func schedulers(b *Box) {
	batch := func(s *specs.Spec) {
		s.Process.Scheduler = &specs.Scheduler{Policy: specs.SchedBatch, Nice: 5}
	}
	const show = "awk '{ print $41, $19 }' /proc/self/stat"
	b.expect(spec(show, batch)(b), "3 5")
	b.expect(spec(show, func(s *specs.Spec) { s.Process.Scheduler = &specs.Scheduler{Policy: specs.SchedOther, Nice: 11} })(b), "0 11")
	b.expect(spec("awk '{ print $41 }' /proc/self/stat", func(s *specs.Spec) { s.Process.Scheduler = &specs.Scheduler{Policy: specs.SchedIdle} })(b), "5")
	c := b.Config("sleep", "1000")
	batch(c.Spec)
	m := b.Start(c)
	if out, _, err := m.Exec(m.Process("/bin/sh", "-c", show)); err != nil || out != "3 5\n" {
		b.T.Errorf("exec: %s %v", out, err)
	}
	set := func(n specs.Scheduler) func(*specs.Spec) { return func(s *specs.Spec) { s.Process.Scheduler = &n } }
	b.mistakes("true", map[string]func(*specs.Spec){
		"process.scheduler.policy \"\"":        set(specs.Scheduler{}),
		"process.scheduler.policy SCHED_ISO":   set(specs.Scheduler{Policy: specs.SchedISO}),
		"process.scheduler.nice 20":            set(specs.Scheduler{Policy: specs.SchedOther, Nice: 20}),
		"process.scheduler.priority":           set(specs.Scheduler{Policy: specs.SchedOther, Priority: 3}),
		"process.scheduler.runtime":            set(specs.Scheduler{Policy: specs.SchedFIFO, Runtime: 3}),
		"process.scheduler.flags: \"FLUTTER\"": set(specs.Scheduler{Policy: specs.SchedOther, Flags: []specs.LinuxSchedulerFlag{"FLUTTER"}}),
	})
}

func ioPriorities(b *Box) {
	set := func(class specs.IOPriorityClass, n int) func(*specs.Spec) {
		return func(s *specs.Spec) { s.Process.IOPriority = &specs.LinuxIOPriority{Class: class, Priority: n} }
	}
	b.expect(spec("ionice", set(specs.IOPRIO_CLASS_IDLE, 0))(b), "idle")
	b.mistakes("true", map[string]func(*specs.Spec){
		"process.ioPriority.class \"\"": set("", 1),
		"process.ioPriority.priority 8": set(specs.IOPRIO_CLASS_BE, 8),
	})
}

func personalities(b *Box) {
	var u unix.Utsname
	b.check(unix.Uname(&u))
	own := unix.ByteSliceToString(u.Machine[:])
	set := func(p specs.LinuxPersonality) func(*specs.Spec) {
		return func(s *specs.Spec) { s.Linux.Personality = &p }
	}
	b.expect(spec("uname -m", set(specs.LinuxPersonality{Domain: specs.PerLinux32}))(b), machine32[own])
	b.expect(spec("uname -m", set(specs.LinuxPersonality{Domain: specs.PerLinux}))(b), own)
	c := spec("sleep 1000; true", set(specs.LinuxPersonality{Domain: specs.PerLinux32}))(b)
	m := b.Start(c)
	if out, _, err := m.Exec(m.Process("uname", "-m")); err != nil || strings.TrimSpace(out) != machine32[own] {
		b.T.Errorf("exec: %s %v", out, err)
	}
	b.mistakes("true", map[string]func(*specs.Spec){
		"linux.personality.domain \"BSD\"": set(specs.LinuxPersonality{Domain: "BSD"}),
		"linux.personality.flags":          set(specs.LinuxPersonality{Domain: specs.PerLinux, Flags: []specs.LinuxPersonalityFlag{"ADDR_NO_RANDOMIZE"}}),
	})
}

func memoryPolicies(b *Box) {
	b.expect(memory("MPOL_INTERLEAVE", "0-0", "MPOL_F_STATIC_NODES")(b), "interleave=static:0")
	b.expect(memory("MPOL_LOCAL", "")(b), "local")
	b.expect(memory("MPOL_DEFAULT", "")(b), "default")
	for want, c := range map[string]*runtime.Config{
		"linux.memoryPolicy.mode":           memory("MPOL_ODD", "0")(b),
		"linux.memoryPolicy.flags":          memory("MPOL_BIND", "0", "ODD")(b),
		"linux.memoryPolicy.nodes \"1-0\"":  memory("MPOL_BIND", "1-0")(b),
		"linux.memoryPolicy.nodes \"x\"":    memory("MPOL_BIND", "x")(b),
		"linux.memoryPolicy.nodes \"9999\"": memory("MPOL_BIND", "9999")(b),
	} {
		b.refuses(want, c)
	}
	if _, err := b.Create(memory("MPOL_BIND", "1023")(b)); err == nil || !strings.Contains(err.Error(), "linux.memoryPolicy") {
		b.T.Errorf("a node that is not there: %v", err)
	}
}

func affinity(b *Box) {
	const show = "grep Cpus_allowed_list /proc/self/status | cut -f2"
	c := b.Config("sleep", "1000")
	c.Spec.Process.ExecCPUAffinity = &specs.CPUAffinity{Final: "0"}
	m := b.Start(c)
	run := func(a *specs.CPUAffinity) (string, error) {
		x := m.Process("/bin/sh", "-c", show)
		x.Spec.ExecCPUAffinity = a
		out, _, err := m.Exec(x)
		return strings.TrimSpace(out), err
	}
	all, _, err := m.Exec(m.Process("/bin/sh", "-c", strings.Replace(show, "self", "1", 1)))
	b.check(err)
	if all == "0\n" {
		b.T.Skip("SKIPPED: this machine has one CPU")
	}
	if out, err := run(nil); err != nil || out != "0" {
		b.T.Errorf("as the container says: %s %v", out, err)
	}
	if out, err := run(&specs.CPUAffinity{Initial: "1"}); err != nil || out == "" {
		b.T.Errorf("%s %v", out, err)
	}
	if out, err := run(&specs.CPUAffinity{Initial: "0", Final: "1"}); err != nil || out != "1" {
		b.T.Errorf("as the process says: %s %v", out, err)
	}
	for want, a := range map[string]*specs.CPUAffinity{
		"process.execCPUAffinity.initial": {Initial: "1000"}, "process.execCPUAffinity.final": {Final: "1000"},
		"process.execCPUAffinity.final \"a\"": {Final: "a"},
	} {
		if _, err := run(a); err == nil || !strings.Contains(err.Error(), want) {
			b.T.Errorf("%s: %v", want, err)
		}
	}
	c = b.Config("true")
	c.Spec.Process.ExecCPUAffinity = &specs.CPUAffinity{Final: "0-"}
	b.refuses("process.execCPUAffinity.final", c)
}

func copyUps(b *Box) {
	b.File("up/file", "content", 0o640)
	b.File("up/dir/script", "#!/bin/sh\n", 0o755)
	at := func(name string) string { return filepath.Join(b.Lower, "up", name) }
	b.check(os.Symlink("file", at("link")))
	b.check(unix.Mkfifo(at("pipe"), 0o600))
	b.check(unix.Mknod(at("null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	b.check(os.Chmod(at("null"), 0o666))
	b.check(unix.Chmod(at("dir/script"), 0o4755))
	b.check(os.Chown(at("file"), 5, 6))
	b.check(os.Chown(at("dir"), 7, 8))
	b.check(os.Chown(b.Lower+"/up", 9, 10))
	b.check(os.Chmod(b.Lower+"/up", 0o751))
	caps := "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00" // cap_net_bind_service=ep
	b.check(unix.Setxattr(at("file"), "security.capability", []byte(caps), 0))
	stamp := unix.Timespec{Sec: 1e9}
	b.check(unix.UtimesNanoAt(unix.AT_FDCWD, at("file"), []unix.Timespec{stamp, stamp}, 0))
	script := `cd /up; stat -c '%n %F %a %u:%g' . * dir/*; cat file; stat -c %Y file; readlink link; echo x >new; stat -f -c %T .`
	with := func(dest string, options ...string) *runtime.Config {
		c := b.Sh(script)
		c.Spec.Mounts = append(c.Spec.Mounts, specs.Mount{Destination: dest, Type: "tmpfs", Source: "tmpfs", Options: append([]string{"tmpcopyup"}, options...)})
		return c
	}
	rest := "dir directory 755 7:8\nfile regular file 640 5:6\nlink symbolic link 777 0:0\nnull character special file 666 0:0\npipe fifo 600 0:0\ndir/script regular file 4755 0:0\ncontent1000000000\nfile\ntmpfs"
	b.expect(with("/up"), ". directory 751 9:10\n"+rest)
	b.expect(with("/up", "mode=700", "uid=3"), ". directory 700 3:0\n"+rest)
	c := with("/up")
	c.Spec.Process.Args[2] = "sleep 1000; true"
	m := b.Start(c)
	got := make([]byte, 64)
	if n, err := unix.Getxattr(fmt.Sprintf("/proc/%d/root/up/file", m.Init().PID()), "security.capability", got); err != nil || string(got[:n]) != caps {
		b.T.Errorf("the capabilities of a file: %q %v", got[:max(n, 0)], err)
	}
	if ds, err := os.ReadDir(b.Lower + "/up"); err != nil || len(ds) != 5 {
		b.T.Errorf("what is in the image changed: %v %v", ds, err)
	}
	// What was mounted there before, and what is not there at all.
	c = with("/up")
	v := b.host("up")
	b.check(os.WriteFile(filepath.Join(v, "mine"), nil, 0o644))
	c.Spec.Process.Args[2] = "ls /up /absent"
	c.Spec.Mounts = append([]specs.Mount{bind(v, "/up")}, c.Spec.Mounts...)
	c.Spec.Mounts = append(c.Spec.Mounts, specs.Mount{Destination: "/absent", Type: "tmpfs", Options: []string{"tmpcopyup"}})
	b.expect(c, "/absent:\n\n/up:\nmine")
	// A link of the container's leads nowhere else; a copy that has no room is told.
	b.check(os.Symlink(b.Dir, b.Lower+"/out"))
	if _, err := os.Stat(b.Dir + "/host"); err != nil {
		b.T.Fatal(err)
	}
	c = with("/out")
	c.Spec.Process.Args[2] = "ls -A /out | wc -l"
	b.expect(c, "0")
	b.File("up/big", strings.Repeat("x", 1<<20), 0o644)
	if _, err := b.Create(with("/up", "size=64k")); err == nil || !strings.Contains(err.Error(), "tmpcopyup") || !strings.Contains(err.Error(), "big") {
		b.T.Errorf("a copy that has no room: %v", err)
	}
	c = with("/up")
	c.Spec.Mounts[len(c.Spec.Mounts)-1].Type = "ramfs"
	b.refuses("tmpcopyup", c)
}

func attributesBelow(b *Box) {
	v := b.host("v")
	b.check(os.MkdirAll(filepath.Join(v, "below"), 0o755))
	b.check(unix.Mount("tmpfs", filepath.Join(v, "below"), "tmpfs", 0, ""))
	b.T.Cleanup(func() { _ = unix.Unmount(filepath.Join(v, "below"), unix.MNT_DETACH) })
	const seen = "rw,relatime"
	for words, want := range map[string][2]string{
		"rro":              {"ro,relatime", "ro,relatime"},
		"rro,rrw":          {seen, seen},
		"rnosuid":          {"rw,nosuid,relatime", "rw,nosuid,relatime"},
		"rnosuid,rsuid":    {seen, seen},
		"rnodev":           {"rw,nodev,relatime", "rw,nodev,relatime"},
		"rnodev,rdev":      {seen, seen},
		"rnoexec":          {"rw,noexec,relatime", "rw,noexec,relatime"},
		"rnoexec,rexec":    {seen, seen},
		"rnodiratime":      {"rw,nodiratime,relatime", "rw,nodiratime,relatime"},
		"rdiratime":        {seen, seen},
		"rnoatime":         {"rw,noatime", "rw,noatime"},
		"ratime":           {seen, seen},
		"rrelatime":        {seen, seen},
		"rnorelatime":      {"rw", "rw"},
		"rstrictatime":     {"rw", "rw"},
		"rnostrictatime":   {seen, seen},
		"rnosymfollow":     {"rw,relatime,nosymfollow", "rw,relatime,nosymfollow"},
		"rsymfollow":       {seen, seen},
		"nosuid,rro":       {"ro,nosuid,relatime", "ro,relatime"},
		"nodev,noexec,rrw": {"rw,nodev,noexec,relatime", seen},
	} {
		c := b.Sh(`for m in /v /v/below; do grep " $m " /proc/self/mountinfo | cut -d' ' -f6; done`)
		c.Spec.Mounts = append(c.Spec.Mounts, bind(v, "/v", strings.Split(words, ",")...))
		out, _ := b.Run(c)
		if got := strings.Fields(out); len(got) != 2 || got[0] != want[0] || got[1] != want[1] {
			b.T.Errorf("%s: %q, want %q", words, got, want)
		}
	}
}

func remounts(b *Box) {
	c := b.Sh(`for m in /proc /v /dev/shm; do grep " $m " /proc/self/mountinfo | cut -d' ' -f6; done`)
	c.Spec.Linux.ReadonlyPaths, c.Spec.Linux.MaskedPaths = nil, nil
	c.Spec.Mounts = append(c.Spec.Mounts, bind(b.host("v"), "/v", "nosuid"),
		specs.Mount{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"remount", "ro", "nosuid", "exec"}},
		specs.Mount{Destination: "/v", Options: []string{"bind", "remount", "ro", "suid"}},
		specs.Mount{Destination: "/dev/shm", Type: "tmpfs", Options: []string{"remount", "rnosymfollow"}})
	b.expect(c, "ro,nosuid,nodev,relatime\nro,relatime\nrw,nosuid,nodev,noexec,relatime,nosymfollow")
	for want, m := range map[string]specs.Mount{
		"nothing is mounted": {Destination: "/home", Type: "tmpfs", Options: []string{"remount", "ro"}},
		"size=1m":            {Destination: "/dev/shm", Type: "tmpfs", Options: []string{"remount", "size=1m"}},
	} {
		c := b.Sh("true")
		c.Spec.Mounts = append(c.Spec.Mounts, m)
		if _, err := b.Create(c); err == nil || !strings.Contains(err.Error(), want) || !errdefs.IsInvalidArgument(err) && !errdefs.IsNotImplemented(err) {
			b.T.Errorf("%s: %v", want, err)
		}
	}
}

// defaultCgroup: a container that names no cgroup has one by its own name, and a relative path begins
// at the top.
func defaultCgroup(b *Box) {
	c := b.Sh("echo up; sleep 1000; true")
	without(c, specs.CgroupNamespace)
	c.Spec.Linux.CgroupsPath = ""
	c.ID = "gantry-runtimetest-" + c.ID
	m := b.Start(c)
	m.Out.Until(b.T, "up")
	out, _, err := m.Exec(m.Process("/bin/sh", "-c", "cut -d: -f3 /proc/1/cgroup | sort -u"))
	if err != nil || out != "/"+c.ID+"\n" {
		b.T.Errorf("%s %v", out, err)
	}
	b.check(m.Delete(Context(b.T)))
	g, err := cgroup.Open("/" + c.ID)
	b.check(err)
	if g.Exists() {
		b.T.Error("its cgroup is left")
	}
	c = b.Sh("cut -d: -f3 /proc/self/cgroup | sort -u")
	without(c, specs.CgroupNamespace)
	c.Spec.Linux.CgroupsPath = strings.TrimPrefix(c.Spec.Linux.CgroupsPath, "/")
	want := "/" + c.Spec.Linux.CgroupsPath
	out, _ = b.Run(c)
	if out != want+"\n" {
		b.T.Errorf("%q, want %q", out, want)
	}
}
