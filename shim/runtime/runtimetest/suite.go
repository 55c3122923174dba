package runtimetest

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	goruntime "runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/shim/runtime"
)

// Run holds a runtime to its contract. Of what it lacks it must say so: see Feature.
func Run(t *testing.T, r runtime.Runtime, lacks ...Feature) {
	t.Run("lacking", func(t *testing.T) { refusals(t, r, lacks) })
	for name, test := range map[string]func(*Box){
		"process": process, "user": user, "kernel's words": words, "devices": devices, "hidden": hidden, "mounts": mounts,
		"mount points": mountPoints, "read-only root": readOnlyRoot, "commands": commands, "refused": refused, "limits": limits,
		"oom": oom, "lifecycle": lifecycle, "kill": kill, "pause": pause, "exec": exec, "terminal": terminal, "init": initProcess,
		"namespaces": namespaces, "cancelled": cancelled, "many": many, "propagation": propagation, "updates": updates, "root": plainRoot,
	} {
		t.Run(name, func(t *testing.T) {
			before := descriptors(t)
			t.Cleanup(func() {
				// Descriptors that the garbage collector closes are none of the runtime's.
				Poll(t, "every descriptor closed", func() bool { goruntime.GC(); return descriptors(t) <= before }, func() string { return listDescriptors() })
			})
			test(New(t, r, lacks...))
		})
	}
}

func descriptors(t testing.TB) int {
	t.Helper()
	ds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(ds)
}

func listDescriptors() string {
	var b strings.Builder
	ds, _ := os.ReadDir("/proc/self/fd")
	for _, d := range ds {
		to, _ := os.Readlink("/proc/self/fd/" + d.Name())
		fmt.Fprintln(&b, d.Name(), to)
	}
	return b.String()
}

// expect compares what a script wrote, line by line.
func (b *Box) expect(c *runtime.Config, want string) {
	b.T.Helper()
	out, code := b.Run(c)
	if code != 0 || strings.TrimSpace(out) != strings.TrimSpace(want) {
		b.T.Errorf("%q: exit %d, %q; want %q", c.Spec.Process.Args, code, out, want)
	}
}

func process(b *Box) {
	for script, code := range map[string]int{"exit 0": 0, "exit 3": 3, "kill -9 $$": 0, "exec /bin/false": 1} {
		// Process 1 of a namespace cannot kill itself: the signal is not delivered.
		if _, got := b.Run(b.Sh(script)); got != code {
			b.T.Errorf("%s: exit %d, want %d", script, got, code)
		}
	}
	c := b.Sh("pwd; hostname; umask; echo $HOME $PATH $GREETING; cat /proc/sys/kernel/domainname; readlink /proc/self/ns/pid >/dev/null && echo $$; ls -di /made/here | wc -l; stat -c %u:%a /made/here")
	c.Spec.Process.Cwd = "/made/here"
	c.Spec.Process.Env = append(c.Spec.Process.Env, "GREETING=hello world")
	domain := "(none)"
	if !b.Lacks(Domainname) {
		domain, c.Spec.Domainname = "example.org", "example.org"
	}
	b.expect(c, "/made/here\nbox\n0022\n/root /usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin hello world\n"+domain+"\n1\n1\n0:755")
	umask := uint32(0o077)
	c = b.Sh("umask; echo $HOME")
	c.Spec.Process.User.Umask = &umask
	c.Spec.Process.Env = append(c.Spec.Process.Env, "HOME=/elsewhere")
	b.expect(c, "0077\n/elsewhere")
}

func user(b *Box) {
	for _, x := range []struct{ user, want string }{
		{"", "0:0:0:/root"},
		{"root", "0:0:0 10:/root"},
		{"0", "0:0:0 10:/root"},
		{"alice", "1000:1000:1000 10 50:/home/alice"},
		{"1000", "1000:1000:1000 10 50:/home/alice"},
		{"alice:users", "1000:100:100:/home/alice"},
		{"alice:4711", "1000:4711:4711:/home/alice"},
		{"bob", "1001:100:100 50:/nowhere"},
		{"12345", "12345:0:0:/"},
		{"12345:67", "12345:67:67:/"},
		{":users", "0:100:100:/root"},
	} {
		c := b.Sh(`exec 2>/dev/null; echo "$(id -u):$(id -g):$(id -G):$HOME"`)
		c.User = x.user
		b.expect(c, x.want)
	}
	for _, bad := range []string{"nobodyhere", "alice:nogroup", "4294967295", "-1", "1000:99999999999"} {
		c := b.Sh("true")
		c.User = bad
		if _, err := b.Create(c); !errdefs.IsInvalidArgument(err) {
			b.T.Errorf("user %q: %v", bad, err)
		}
	}
	c := b.Sh("exec 2>/dev/null; id -u; id -G")
	c.Spec.Process.User = specs.User{UID: 7, GID: 8, AdditionalGids: []uint32{9, 10}}
	b.expect(c, "7\n8 9 10")
	// A user may open its own streams again, and has no capability.
	c = b.Sh("echo again >/dev/stdout; grep CapEff /proc/self/status | tr -d '\\t'")
	c.User = "alice"
	b.expect(c, "again\nCapEff:0000000000000000")
	// An image that has no such files.
	for _, f := range []string{"etc/passwd", "etc/group"} {
		b.check(os.Remove(filepath.Join(b.Lower, f)))
	}
	c = b.Sh("id -u; id -g; echo $HOME")
	c.User = "33"
	b.expect(c, "33\n0\n/")
	// One that has something else there.
	b.check(unix.Mkfifo(filepath.Join(b.Lower, "etc/passwd"), 0o644))
	c = b.Sh("true")
	c.User = "alice"
	if _, err := b.Create(c); !errdefs.IsInvalidArgument(err) {
		b.T.Errorf("a pipe as /etc/passwd: %v", err)
	}
}

// words are what the kernel says about a process.
func words(b *Box) {
	status := "grep -E '^(Cap|NoNewPrivs|Seccomp:|SigBlk|SigIgn|SigCgt)' /proc/self/status | tr -d '\\t'"
	c := b.Config("/bin/sh", "-c", "exec "+strings.Replace(status, "| tr -d '\\t'", "", 1))
	out, _ := b.Run(c)
	want := "SigBlk:0000000000000000 SigIgn:0000000000000000 SigCgt:0000000000000000 CapInh:0000000000000000 CapPrm:00000000a80425fb CapEff:00000000a80425fb CapBnd:00000000a80425fb CapAmb:0000000000000000 NoNewPrivs:0 Seccomp:2"
	if got := strings.Join(strings.Fields(strings.ReplaceAll(out, ":\t", ":")), " "); got != want {
		b.T.Errorf("got  %s\nwant %s", got, want)
	}
	c = b.Sh(status)
	c.Spec.Process.NoNewPrivileges = true
	c.Spec.Process.Capabilities = &specs.LinuxCapabilities{
		Bounding: []string{"CAP_KILL", "CAP_CHOWN"}, Permitted: []string{"CAP_KILL", "CAP_CHOWN"}, Effective: []string{"CAP_KILL"},
		Inheritable: []string{"CAP_KILL"}, Ambient: []string{"CAP_KILL"},
	}
	c.User = "alice"
	out, _ = b.Run(c)
	for _, want := range []string{"CapInh:0000000000000020", "CapEff:0000000000000020", "CapPrm:0000000000000020", "CapBnd:0000000000000021", "CapAmb:0000000000000020", "NoNewPrivs:1", "Seccomp:2"} {
		if !strings.Contains(out, want) {
			b.T.Errorf("want %s in %s", want, out)
		}
	}
	// A profile in config.json, in the place of a compiled filter.
	c = b.Sh("mkdir /x; echo $?; uname -r >/dev/null; echo $?")
	c.Seccomp = nil
	c.Spec.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{{Names: []string{"mkdir", "mkdirat"}, Action: specs.ActErrno}}}
	out, _ = b.Run(c)
	if !strings.Contains(out, "Operation not permitted") || !strings.HasSuffix(strings.TrimSpace(out), "1\n0") {
		b.T.Errorf("seccomp profile: %s", out)
	}
	c = b.Sh("unshare -m true; echo $?; mount -t tmpfs x /tmp; echo $?")
	out, _ = b.Run(c)
	if strings.Count(out, "ermi") < 2 {
		b.T.Errorf("default filter: %s", out)
	}
}

func devices(b *Box) {
	c := b.Sh("for d in null zero full random urandom tty; do stat -c '%n %F %t:%T %a' /dev/$d; done; for l in fd stdin stdout stderr ptmx; do readlink /dev/$l; done; head -c 4 /dev/zero | od -An -tx1 | tr -d ' '; echo x >/dev/null; ls /proc/self/fd | wc -l; stat -c %a /dev/shm /dev/mqueue; cat /dev/full | head -c 1 | wc -c")
	const char = "character special file"
	want := ""
	for _, d := range []string{"null 1:3", "zero 1:5", "full 1:7", "random 1:8", "urandom 1:9", "tty 5:0"} {
		name, nr, _ := strings.Cut(d, " ")
		want += "/dev/" + name + " " + char + " " + nr + " 666\n"
	}
	// ls itself has the directory open: 0, 1, 2 and that one.
	b.expect(c, want+"/proc/self/fd\n/proc/self/fd/0\n/proc/self/fd/1\n/proc/self/fd/2\npts/ptmx\n00000000\n4\n1777\n1777\n1")
	mode := os.FileMode(0o640)
	uid := uint32(3)
	c = b.Sh("stat -c '%F %t:%T %a %u' /dev/extra; mknod /tmp/fuse c 10 229 && cat /tmp/fuse; echo $?")
	c.Spec.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/extra", Type: "c", Major: 1, Minor: 5, FileMode: &mode, UID: &uid}}
	out, _ := b.Run(c)
	if !strings.HasPrefix(out, char+" 1:5 640 3\n") || !strings.Contains(out, "Operation not permitted") {
		b.T.Errorf("devices: %s", out)
	}
	// Streams that nobody gave are /dev/null.
	c = b.Sh("readlink /proc/self/fd/0; cat")
	b.expect(c, "/dev/null")
}

func hidden(b *Box) {
	b.expect(b.Sh("wc -c </proc/interrupts; ls /sys/firmware | wc -l; cat /proc/keys | wc -c; touch /sys/firmware/x 2>&1 | grep -c Read-only"), "0\n0\n0\n1")
	out, _ := b.Run(b.Sh("echo 1 >/proc/sys/vm/drop_caches; echo 1 >/proc/sys/kernel/panic; echo 1 >/sys/kernel/mm/ksm/run; mkdir $(ls -d /sys/fs/cgroup/pids || echo /sys/fs/cgroup)/x 2>&1"))
	if strings.Count(out, "Read-only file system") != 4 {
		b.T.Errorf("read-only paths: %s", out)
	}
	b.expect(b.Sh("cat /proc/sys/net/ipv4/ip_unprivileged_port_start; cat /proc/sys/net/ipv4/ping_group_range | tr '\\t' ' '"), "0\n0 2147483647")
	// Masks of the user's own, on a file and a directory of the image, and on what is not there.
	b.File("secret/file", "secret", 0o644)
	c := b.Sh("cat /secret/file /etc/group; ls /secret; touch /ro/x 2>&1")
	b.check(os.Mkdir(filepath.Join(b.Lower, "ro"), 0o755))
	c.Spec.Linux.MaskedPaths = []string{"/secret", "/etc/group", "/not/there"}
	if !b.Lacks(MasksUnderFiles) {
		c.Spec.Linux.MaskedPaths = append(c.Spec.Linux.MaskedPaths, "/etc/group/not/a/directory")
	}
	c.Spec.Linux.ReadonlyPaths = []string{"/ro", "/not/there"}
	out, _ = b.Run(c)
	if strings.Contains(out, "root") || !strings.Contains(out, "No such file") || !strings.Contains(out, "Read-only") {
		b.T.Errorf("masks: %s", out)
	}
	for name, value := range map[string]string{"kernel.hostname": "x", "vm.swappiness": "1", "net.ipv4.nosuch": "1", "net.ipv4../x": "1"} {
		c := b.Sh("true")
		c.Spec.Linux.Sysctl = map[string]string{name: value}
		if _, err := b.Create(c); err == nil || !strings.Contains(err.Error(), name) {
			b.T.Errorf("sysctl %s: %v", name, err)
		}
	}
	c = b.Sh("cat /proc/sys/kernel/shm_rmid_forced")
	c.Spec.Linux.Sysctl = map[string]string{"kernel.shm_rmid_forced": "1"}
	b.expect(c, "1")
}

// host makes a directory outside of the image.
func (b *Box) host(name string) string {
	b.T.Helper()
	dir := filepath.Join(b.Dir, "host", name)
	b.check(os.MkdirAll(dir, 0o777))
	return dir
}

func bind(source, dest string, options ...string) specs.Mount {
	return specs.Mount{Destination: dest, Type: "bind", Source: source, Options: append([]string{"rbind", "rprivate"}, options...)}
}

func mounts(b *Box) {
	dir := b.host("data")
	b.check(os.WriteFile(filepath.Join(dir, "file"), []byte("content\n"), 0o644))
	b.check(os.MkdirAll(filepath.Join(dir, "below"), 0o755))
	b.check(unix.Mount("tmpfs", filepath.Join(dir, "below"), "tmpfs", 0, ""))
	b.T.Cleanup(func() { _ = unix.Unmount(filepath.Join(dir, "below"), unix.MNT_DETACH) })
	c := b.Sh(`cat /data/file; echo new >/data/new && echo wrote; cat /ro/file; echo x >/ro/x || echo no; echo x >/ro/below/x || echo no
cat /etc/one; echo changed >/etc/one; grep ' /exec ' /proc/self/mountinfo | cut -d' ' -f6; stat -c %a /scratch; mount | grep -c ' /scratch .*size=1024k'; cat /nested/in/file; stat -c %F /data/below`)
	one := filepath.Join(b.host("files"), "one")
	b.check(os.WriteFile(one, []byte("1\n"), 0o644))
	c.Spec.Mounts = append(c.Spec.Mounts,
		bind(dir, "/data"), bind(dir, "/ro", "ro"), bind(one, "/etc/one"), bind(dir, "/exec", "noexec", "nosuid", "nodev"),
		specs.Mount{Destination: "/scratch", Type: "tmpfs", Source: "tmpfs", Options: []string{"size=1m", "mode=700", "nosuid"}},
		bind(dir, "/nested"), bind(dir, "/nested/in"))
	out, code := b.Run(c)
	lines := strings.Split(strings.TrimSpace(out), "\n")
	clean := []string{}
	for _, l := range lines {
		if !strings.HasPrefix(l, "/bin/sh:") {
			clean = append(clean, l)
		}
	}
	want := "content wrote content no no 1 rw,nosuid,nodev,noexec,relatime 700 1 content directory"
	if got := strings.Join(clean, " "); code != 0 || got != want {
		b.T.Errorf("got  %s\nwant %s\n%s", got, want, out)
	}
	if raw, err := os.ReadFile(one); err != nil || string(raw) != "changed\n" {
		b.T.Errorf("a bound file: %q %v", raw, err)
	}
	if _, err := os.Stat(filepath.Join(dir, "in")); err != nil {
		b.T.Errorf("a mount point inside a volume: %v", err)
	}
	for _, x := range []struct {
		m    specs.Mount
		want string
	}{
		{bind(filepath.Join(dir, "absent"), "/x"), "does not exist"},
		{bind(dir, "/etc/passwd"), "is a file there"},
		{bind(one, "/etc"), "is a directory there"},
		{bind(dir, "/"), "over the root"},
		{bind(dir, "/proc/self"), "inside /proc"},
		{bind(dir, "/proc/net"), "inside /proc"},
		{bind(dir, "relative"), "absolute"},
		{bind(dir, "/x", "tmpcopyup"), "tmpcopyup"},
		{bind(dir, "/x", "frobnicate"), "frobnicate"},
		{specs.Mount{Destination: "/x", Type: "nosuchfs"}, "nosuchfs"},
		{specs.Mount{Destination: "/x", Type: "tmpfs", Options: []string{"frobnicate=1"}}, "frobnicate"},
	} {
		c := b.Sh("true")
		c.Spec.Mounts = append(c.Spec.Mounts, x.m)
		if _, err := b.Create(c); err == nil || !strings.Contains(err.Error(), x.want) && !b.Lacks(MountWords) {
			b.T.Errorf("%v: %v", x.m, err)
		}
	}
}

// mountPoints go through links as they mean inside, and never out.
func mountPoints(b *Box) {
	dir := b.host("data")
	b.check(os.WriteFile(filepath.Join(dir, "file"), []byte("content\n"), 0o644))
	outside := b.host("outside")
	for from, to := range map[string]string{
		"var/run": "/run", "abs": outside, "up": "../../../../../../../../.." + outside + "2", "etc/resolv.conf": "../run/systemd/stub.conf",
		"loop1": "/loop2", "loop2": "loop1", "home/alice/link": "/tmp",
	} {
		b.check(os.MkdirAll(filepath.Dir(filepath.Join(b.Lower, from)), 0o755))
		b.check(os.Symlink(to, filepath.Join(b.Lower, from)))
	}
	c := b.Sh("cat /run/app/file /abs/new/file /up/file /etc/resolv.conf /run/systemd/stub.conf /tmp/deep/er/file; ls -d " + outside)
	c.Spec.Mounts = append(c.Spec.Mounts, bind(dir, "/var/run/app"), bind(dir, "/abs/new"), bind(dir, "/up"),
		bind(filepath.Join(dir, "file"), "/etc/resolv.conf"), bind(dir, "/home/alice/link/../tmp/./deep/er"))
	if b.Lacks(LinkedMountPoints) {
		b.attempts(c)
	} else {
		b.expect(c, strings.Repeat("content\n", 6)+outside)
	}
	if ds, err := os.ReadDir(outside); err != nil || len(ds) != 0 {
		b.T.Errorf("made on the host: %v %v", ds, err)
	}
	c = b.Sh("true")
	c.Spec.Mounts = append(c.Spec.Mounts, bind(dir, "/loop1/x"))
	if _, err := b.Create(c); err == nil || !strings.Contains(err.Error(), "symbolic links") {
		b.T.Errorf("a loop of links: %v", err)
	}
}

func readOnlyRoot(b *Box) {
	c := b.Sh("touch /x; touch /dev/shm/x /tmp/x && echo fine; pwd")
	c.Spec.Root.Readonly = true
	c.Spec.Process.Cwd = "/work/dir"
	c.Spec.Mounts = append(c.Spec.Mounts, specs.Mount{Destination: "/tmp", Type: "tmpfs", Source: "tmpfs"}, bind(b.host("v"), "/volume/here"))
	out, _ := b.Run(c)
	if !strings.Contains(out, "/x: Read-only file system\nfine\n/work/dir") {
		b.T.Error(out)
	}
}

func commands(b *Box) {
	b.File("bin/notexec", "#!/bin/sh\n", 0o644)
	b.File("bin/script", "#!/bin/sh\necho script $1\n", 0o755)
	b.File("bin/noshebang", "echo hi\n", 0o755)
	b.File("bin/nointerp", "#!/usr/bin/python9 -u\n", 0o755)
	b.File("work/tool", "#!/bin/sh\necho tool\n", 0o755)
	b.File("bin/dynamic", elfWithInterpreter("/lib64/ld-nowhere.so.2"), 0o755)
	for _, x := range []struct {
		arg  string
		code int
		want string
	}{
		{"nosuch", 127, `exec nosuch: executable file not found in $PATH`},
		{"/bin/nosuch", 127, "exec /bin/nosuch: no such file or directory"},
		{"/etc/passwd/x", 127, "exec /etc/passwd/x: not a directory"},
		{"/etc", 126, "exec /etc: is a directory"},
		{"/bin/notexec", 126, "permission denied"},
		{"notexec", 126, "permission denied"},
		{"/bin/noshebang", 126, "exec format error"},
		{"/bin/nointerp", 127, `interpreter "/usr/bin/python9"`},
		{"nointerp", 127, `interpreter "/usr/bin/python9"`},
		{"/bin/dynamic", 127, `interpreter "/lib64/ld-nowhere.so.2"`},
	} {
		for _, init := range []bool{false, true} {
			c := b.Config(x.arg)
			c.Init = init
			if init && b.Lacks(Init) {
				continue
			}
			m, err := b.Create(c)
			if err == nil { // some know it already when they create
				err = m.Init().Start(Context(b.T))
			}
			if err == nil || runtime.ExitCode(err) != x.code || !strings.Contains(err.Error(), x.want) {
				b.T.Errorf("%s: exit %d, %v; want %d, %s", x.arg, runtime.ExitCode(err), err, x.code, x.want)
			}
		}
		m := b.Start(b.Config("sleep", "1000"))
		if _, _, err := m.Exec(m.Process(x.arg)); runtime.ExitCode(err) != x.code || !strings.Contains(err.Error(), x.want) {
			b.T.Errorf("exec %s: %v", x.arg, err)
		}
	}
	b.expect(b.Config("script", "with argument"), "script with argument")
	c := b.Config("./tool")
	c.Spec.Process.Cwd = "/work"
	b.expect(c, "tool")
	for cwd, want := range map[string]string{"/etc/passwd": "not a directory", "/etc/passwd/x": "not a directory"} {
		c := b.Config("true")
		c.Spec.Process.Cwd = cwd
		if _, err := b.Create(c); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), cwd) {
			b.T.Errorf("cwd %s: %v", cwd, err)
		}
	}
}

// elfWithInterpreter is a dynamic program, as far as the kernel looks.
func elfWithInterpreter(name string) string {
	raw, err := os.ReadFile(busybox)
	if err != nil {
		return ""
	}
	head := make([]byte, 64+2*56)
	copy(head, raw[:64])
	put := func(at, n int, v uint64) {
		for i := range n {
			head[at+i] = byte(v >> (8 * i))
		}
	}
	put(32, 8, 64)
	put(54, 2, 56)
	put(56, 2, 2)
	put(64, 4, 3) // PT_INTERP
	put(64+8, 8, uint64(len(head)))
	put(64+32, 8, uint64(len(name)+1))
	put(64+40, 8, uint64(len(name)+1))
	put(120, 4, 1) // PT_LOAD
	put(120+4, 4, 5)
	put(120+16, 8, 0x400000)
	put(120+32, 8, uint64(len(head)))
	put(120+40, 8, uint64(len(head)))
	return string(head) + name + "\x00"
}

func refused(b *Box) {
	for want, change := range map[string]func(*specs.Spec){
		"two of type pid": func(s *specs.Spec) {
			s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: "pid"})
		},
		"linux.rootfsPropagation \"odd\"": func(s *specs.Spec) { s.Linux.RootfsPropagation = "odd" },
		"capability \"CAP_FLY\"":          func(s *specs.Spec) { s.Process.Capabilities.Effective = []string{"CAP_FLY"} },
		"resource limit \"RLIMIT_X\"":     func(s *specs.Spec) { s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_X"}} },
		"process.cwd":                     func(s *specs.Spec) { s.Process.Cwd = "" },
		"no command":                      func(s *specs.Spec) { s.Process.Args = nil },
		"holds a NUL":                     func(s *specs.Spec) { s.Process.Args = []string{"a\x00b"} },
		"no linux section":                func(s *specs.Spec) { s.Linux = nil },
		"process.oomScoreAdj":             func(s *specs.Spec) { n := 1001; s.Process.OOMScoreAdj = &n },
	} {
		c := b.Sh("true")
		change(c.Spec)
		where := c.Spec.Linux
		if where == nil {
			c.Spec.Linux = nil
		}
		m, err := b.R.Create(Context(b.T), c)
		if err == nil {
			_ = m.Delete(context.Background())
		}
		if err == nil || !strings.Contains(err.Error(), want) || !errdefs.IsNotImplemented(err) && !errdefs.IsInvalidArgument(err) {
			b.T.Errorf("want %q refused, got %v", want, err)
		}
	}
}

func limits(b *Box) {
	script := "ulimit -n; ulimit -Hn; ulimit -c; cat /sys/fs/cgroup/pids/pids.max 2>/dev/null || cat /sys/fs/cgroup/pids.max"
	out, _ := b.Run(b.Sh(script))
	if !strings.HasPrefix(out, "1024\n") || !strings.HasSuffix(out, "\n100\n") {
		b.T.Errorf("default limits: %s", out)
	}
	c := b.Sh(script)
	c.Spec.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 100, Hard: 200}, {Type: "RLIMIT_CORE", Soft: 0, Hard: 0}}
	b.expect(c, "100\n200\n0\n100")
	c = b.Sh("ulimit -Hn")
	c.Spec.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 1 << 20, Hard: 1 << 20}}
	out, code := b.Run(c)
	if code != 0 {
		b.T.Errorf("a limit above what the host allows must not fail: %s", out)
	}
	if strings.TrimSpace(out) != "1048576" && !strings.Contains(b.Warned(), "RLIMIT_NOFILE") {
		b.T.Errorf("set to %s without a warning: %s", out, b.Warned())
	}
	// Processes beyond the limit are not made.
	pids := int64(8)
	c = b.Sh("for i in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 100 & done; echo made")
	c.Spec.Linux.Resources.Pids.Limit = &pids
	out, _ = b.Run(c)
	if !strings.Contains(out, "can't fork") {
		b.T.Errorf("pids limit: %s", out)
	}
	for adj, want := range map[int]string{-10: "", 0: "0"} { // asked to be spared: done, or told
		c = b.Sh("cat /proc/self/oom_score_adj")
		c.Spec.Process.OOMScoreAdj = &adj
		out, code := b.Run(c)
		if code != 0 || want != "" && strings.TrimSpace(out) != want || want == "" && strings.TrimSpace(out) != "-10" && !strings.Contains(b.Warned(), "spared") {
			b.T.Errorf("oom_score_adj %d: %s %s", adj, out, b.Warned())
		}
	}
	adj := 500
	c = b.Sh("cat /proc/self/oom_score_adj")
	c.Spec.Process.OOMScoreAdj = &adj
	b.expect(c, "500")
}

func oom(b *Box) {
	limit, swap := int64(16<<20), int64(16<<20)
	c := b.Sh("dd if=/dev/zero of=/dev/shm/fill bs=1M count=60; echo end $?")
	c.Spec.Linux.Resources.Memory = &specs.LinuxMemory{Limit: &limit, Swap: &swap}
	m := b.Start(c)
	code := m.Wait()
	out := m.Out.Wait(b.T)
	s, err := m.Stats(Context(b.T))
	if err != nil || s.OOMKills == 0 {
		b.T.Errorf("exit %d, %s: %+v %v", code, out, s, err)
	}
}

func lifecycle(b *Box) {
	m, err := b.Create(b.Sh("sleep 1000 & echo began; wait"))
	b.check(err)
	time.Sleep(50 * time.Millisecond)
	if out := m.Out.String(); out != "" {
		b.T.Errorf("it runs before Start: %s", out)
	}
	if _, _, err := m.Exec(m.Process("true")); !errdefs.IsFailedPrecondition(err) {
		b.T.Errorf("exec before start: %v", err)
	}
	if s, err := m.Stats(Context(b.T)); err != nil || s.PIDs != 1 && !b.Lacks(SingleThread) {
		b.T.Errorf("%+v %v", s, err)
	}
	b.check(m.Init().Start(Context(b.T)))
	m.Out.Until(b.T, "began")
	if err := m.Init().Start(Context(b.T)); !errdefs.IsFailedPrecondition(err) {
		b.T.Errorf("start again: %v", err)
	}
	s, err := m.Stats(Context(b.T))
	for range 1000 { // the shell has yet to make its child
		if err != nil || s.PIDs > 1 {
			break
		}
		time.Sleep(2 * time.Millisecond)
		s, err = m.Stats(Context(b.T))
	}
	if err != nil || s.PIDs < 2 || s.MemoryBytes == 0 {
		b.T.Errorf("%+v %v", s, err)
	}
	b.check(m.Init().Signal(unix.SIGKILL))
	if code := m.Wait(); code != 137 {
		b.T.Errorf("exit %d", code)
	}
	if err := m.Init().Signal(unix.SIGKILL); !errdefs.IsNotFound(err) {
		b.T.Errorf("signal after the end: %v", err)
	}
	if _, _, err := m.Exec(m.Process("true")); !errdefs.IsFailedPrecondition(err) {
		b.T.Errorf("exec after the end: %v", err)
	}
	if s, err := m.Stats(Context(b.T)); err != nil || s.PIDs != 0 || s.CPUUsec == 0 {
		b.T.Errorf("stats after the end: %+v %v", s, err)
	}
	b.check(m.Delete(Context(b.T)))
	// Made again with the same configuration, it finds what was written.
	b.expect(b.Sh("echo kept >/root/kept"), "")
	b.expect(b.Sh("cat /root/kept"), "kept")
	// One that runs is not disturbed by another of its name.
	first := b.Start(b.Sh("echo up; while :; do sleep 0.05; done"))
	first.Out.Until(b.T, "up")
	c := b.Sh("true")
	c.Spec.Linux.CgroupsPath = first.Config.Spec.Linux.CgroupsPath
	if _, err := b.R.Create(Context(b.T), c); !errdefs.IsAlreadyExists(err) {
		b.T.Errorf("created twice: %v", err)
	}
	if err := first.Init().Signal(0); err != nil {
		b.T.Errorf("it was disturbed: %v", err)
	}
	b.check(first.Kill(Context(b.T), unix.SIGKILL))
	first.Wait()
	// Never started, and deleted.
	m, err = b.Create(b.Sh("echo never"))
	b.check(err)
	b.check(m.Delete(Context(b.T)))
	if out := m.Out.Wait(b.T); out != "" {
		b.T.Errorf("it ran: %s", out)
	}
}

func kill(b *Box) {
	m := b.Start(b.Sh(`trap 'echo got term' TERM; (trap 'echo child term' TERM; echo ready1; while :; do sleep 0.01; done) & echo ready2; while :; do sleep 0.01; done`))
	m.Out.Until(b.T, "ready1")
	m.Out.Until(b.T, "ready2")
	b.check(m.Kill(Context(b.T), unix.SIGTERM))
	m.Out.Until(b.T, "got term")
	m.Out.Until(b.T, "child term")
	b.check(m.Kill(Context(b.T), unix.SIGKILL))
	if code := m.Wait(); code != 137 {
		b.T.Errorf("exit %d", code)
	}
	b.check(m.Kill(Context(b.T), unix.SIGKILL))
	b.check(m.Kill(Context(b.T), unix.SIGTERM))
}

func pause(b *Box) {
	m := b.Start(b.Sh("i=0; while :; do i=$((i+1)); echo $i; usleep 1000; done"))
	m.Out.Until(b.T, "5\n")
	b.check(m.Pause(Context(b.T)))
	before := m.Out.String()
	time.Sleep(50 * time.Millisecond)
	// What was in the pipe may still come.
	settled := m.Out.String()
	time.Sleep(50 * time.Millisecond)
	if m.Out.String() != settled {
		b.T.Errorf("it goes on: %d, %d bytes", len(before), len(m.Out.String()))
	}
	if _, _, err := m.Exec(m.Process("true")); !errdefs.IsFailedPrecondition(err) {
		b.T.Errorf("exec while paused: %v", err)
	}
	b.check(m.Resume(Context(b.T)))
	b.check(m.Resume(Context(b.T)))
	Poll(b.T, "it goes on", func() bool { return len(m.Out.String()) > len(settled) }, m.Out.String)
	b.check(m.Pause(Context(b.T)))
	b.check(m.Kill(Context(b.T), unix.SIGKILL))
	if code := m.Wait(); code != 137 {
		b.T.Errorf("exit %d", code)
	}
}

func exec(b *Box) {
	m := b.Start(b.Sh("echo init >/tmp/mark; echo up; sleep 1000; true"))
	m.Out.Until(b.T, "up")
	for _, x := range []struct {
		script, user, cwd, want string
		code                    int
	}{
		{"cat /tmp/mark; hostname; pwd", "", "", "init\nbox\n/", 0},
		{"exit 7", "", "", "", 7},
		{"pwd; echo $HOME; id -u; id -G; touch /root/x 2>&1 | grep -c denied", "alice", "/tmp", "/tmp\n/home/alice\n1000\n1000 10 50\n1", 0},
		{"cat /proc/1/cmdline | tr '\\0' ' '; ls /proc/self/fd | wc -l; cat /proc/self/cgroup | grep -vc ':/$'; true", "", "", "/bin/sh -c echo init >/tmp/mark; echo up; sleep 1000; true 4\n0", 0},
		{"grep -E '^(CapEff|CapBnd|Seccomp:|SigBlk|SigIgn)' /proc/self/status | tr -d '\\t'; mount -t tmpfs x /mnt 2>&1 | grep -c ermi", "", "", "SigBlk:0000000000000000\nSigIgn:0000000000000000\nCapEff:00000000a80425fb\nCapBnd:00000000a80425fb\nSeccomp:2\n1", 0},
		{"for n in pid mnt net ipc uts cgroup; do [ $(readlink /proc/self/ns/$n) = $(readlink /proc/1/ns/$n) ] || echo other $n; done", "", "", "", 0},
		{"kill -9 $$", "", "", "", 137},
	} {
		p := m.Process("/bin/sh", "-c", x.script)
		p.User = x.user
		if x.cwd != "" {
			p.Spec.Cwd = x.cwd
		}
		out, code, err := m.Exec(p)
		got := strings.TrimSpace(out)
		if x.code == 0 && strings.HasPrefix(x.want, "SigBlk") {
			// The shell of the pipe has handlers, not a mask.
			got = strings.TrimSpace(out)
		}
		if err != nil || code != x.code || got != x.want {
			b.T.Errorf("%s: exit %d, %q, %v; want %d, %q", x.script, code, out, err, x.code, x.want)
		}
	}
	p := m.Process("true")
	p.Spec.Cwd = "/not/there"
	if _, _, err := m.Exec(p); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "/not/there") {
		b.T.Errorf("cwd: %v", err)
	}
	p = m.Process("true")
	p.User = "nobodyhere"
	if _, _, err := m.Exec(p); !errdefs.IsInvalidArgument(err) {
		b.T.Errorf("user: %v", err)
	}
	// Made, and never started.
	made, err := m.Container.Exec(Context(b.T), m.Process("true"))
	b.check(err)
	b.check(made.Close())
	if s, err := m.Stats(Context(b.T)); err != nil || s.PIDs != 2 {
		b.T.Errorf("%+v %v", s, err)
	}
	// Killed while it is being made: the container is gone.
	b.check(m.Kill(Context(b.T), unix.SIGKILL))
	m.Wait()
	if _, _, err := m.Exec(m.Process("true")); !errdefs.IsFailedPrecondition(err) {
		b.T.Errorf("after the end: %v", err)
	}
}

func terminal(b *Box) {
	// It waits in short sleeps: a shell that has forked and not yet executed a long one loses the signal to it.
	c := b.Config("/bin/sh", "-c", "tty; stty size; [ -t 0 ] && [ -t 1 ] && [ -t 2 ] && echo three; stat -c %t:%T /dev/console; ls -l /proc/$$/fd 2>/dev/null | grep -c pts; echo to console >/dev/console; echo to tty >/dev/tty; read line; echo read $line; trap 'echo interrupted; exit 5' INT; echo waiting; while :; do sleep 0.01; done")
	c.Spec.Process.Terminal = true
	c.Spec.Process.ConsoleSize = &specs.Box{Height: 33, Width: 77}
	m := b.Start(c)
	master := m.Init().Terminal()
	if master == nil {
		b.T.Fatal("no terminal")
	}
	out := Read(master)
	out.Until(b.T, "to tty")
	_, err := master.WriteString("typed\n")
	b.check(err)
	out.Until(b.T, "waiting")
	_, err = master.WriteString("\x03")
	b.check(err)
	if code := m.Wait(); code != 5 {
		b.T.Errorf("exit %d", code)
	}
	text := strings.ReplaceAll(out.Wait(b.T), "\r", "")
	want := "/dev/pts/0\n33 77\nthree\n88:0\n3\nto console\nto tty\ntyped\nread typed\nwaiting\n^Cinterrupted\n"
	if text != want {
		b.T.Errorf("got %q\nwant %q", text, want)
	}
	// Beside a container, as a user.
	m = b.Start(b.Config("sleep", "1000"))
	p := m.Process("/bin/sh", "-c", "tty; stat -c %u /dev/pts/0; ps -o pid,tty >/dev/null; read x; echo bye $x")
	p.Spec.Terminal = true
	p.User = "alice"
	made, err := m.Container.Exec(Context(b.T), p)
	b.check(err)
	b.check(made.Start(Context(b.T)))
	master = made.Terminal() // there may be none before
	out = Read(master)
	owner := "1000"
	if b.Lacks(TerminalOwner) {
		owner = "0" // of /dev/pts/0
	}
	out.Until(b.T, owner)
	_, err = master.WriteString("now\n")
	b.check(err)
	if code := Reap(b.T, made); code != 0 {
		b.T.Errorf("exit %d", code)
	}
	if text := out.Wait(b.T); !strings.Contains(text, "/dev/pts/0") || !strings.Contains(text, "bye now") {
		b.T.Errorf("%q", text)
	}
	b.check(made.Close())
}

func initProcess(b *Box) {
	if b.Lacks(Init) {
		return // refusals has seen it refused
	}
	sh := func(script string) *runtime.Config {
		c := b.Sh(script)
		c.Init = true
		return c
	}
	b.expect(sh("echo $$; tr '\\0' ' ' </proc/1/cmdline; echo; grep -E '^(Threads|Seccomp:|CapEff)' /proc/1/status | tr -d '\\t'; ls /proc/1/fd | wc -l; grep -E '^(SigBlk|SigIgn)' /proc/self/status | tr -d '\\t'"),
		"2\ngantry-init \nThreads:1\nCapEff:00000000a80425fb\nSeccomp:2\n3\nSigBlk:0000000000000000\nSigIgn:0000000000000000")
	for script, code := range map[string]int{"exit 0": 0, "exit 42": 42, "kill -9 $$": 137, "kill -11 $$": 139} {
		if _, got := b.Run(sh(script)); got != code {
			b.T.Errorf("%s: exit %d, want %d", script, got, code)
		}
	}
	m := b.Start(sh(`trap 'echo got hup' HUP; trap 'exit 9' TERM; (sh -c 'sleep 0.05 & exec true' &) ; echo ready; while :; do sleep 0.01; done`))
	m.Out.Until(b.T, "ready")
	b.check(m.Init().Signal(unix.SIGHUP))
	m.Out.Until(b.T, "got hup")
	// Orphans are reaped.
	Poll(b.T, "no zombie", func() bool {
		out, _, err := m.Exec(m.Process("/bin/sh", "-c", "grep -l '^State:.Z' /proc/[0-9]*/status; true"))
		return err == nil && out == ""
	}, func() string { return "zombies are left" })
	b.check(m.Init().Signal(unix.SIGTERM))
	if code := m.Wait(); code != 9 {
		b.T.Errorf("exit %d", code)
	}
	c := sh("tty; echo up; sleep 100")
	c.Spec.Process.Terminal = true
	m = b.Start(c)
	out := Read(m.Init().Terminal())
	out.Until(b.T, "up")
	_, err := m.Init().Terminal().WriteString("\x03")
	b.check(err)
	if code := m.Wait(); code != 130 {
		b.T.Errorf("interrupted: exit %d, %s", code, out.String())
	}
	out.Wait(b.T)
}

func namespaces(b *Box) {
	host := func(kind string) string {
		to, err := os.Readlink("/proc/self/ns/" + kind)
		b.check(err)
		return to
	}
	kinds := map[string]specs.LinuxNamespaceType{"pid": "pid", "net": "network", "ipc": "ipc", "uts": "uts", "cgroup": "cgroup", "mnt": "mount"}
	out, _ := b.Run(b.Sh("for n in pid net ipc uts cgroup mnt; do readlink /proc/self/ns/$n; done"))
	for kind := range kinds {
		if strings.Contains(out, host(kind)) {
			b.T.Errorf("%s is the host's: %s", kind, out)
		}
	}
	// The host's, all but the mounts.
	c := b.Sh("for n in pid net ipc uts cgroup; do readlink /proc/self/ns/$n; done")
	c.Spec.Linux.Namespaces = []specs.LinuxNamespace{{Type: "mount"}}
	c.Spec.Hostname, c.Spec.Linux.Sysctl = "", nil
	out, _ = b.Run(c)
	for kind := range kinds {
		if kind != "mnt" && !strings.Contains(out, host(kind)) {
			b.T.Errorf("%s is not the host's: %s", kind, out)
		}
	}
	c = b.Sh("true")
	c.Spec.Linux.Namespaces = []specs.LinuxNamespace{{Type: "mount"}, {Type: "uts"}, {Type: "pid"}, {Type: "ipc"}}
	if _, err := b.Create(c); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "network namespace") {
		b.T.Errorf("a network sysctl in the host's network: %v", err)
	}
	// Another container's.
	first := b.Start(b.Config("sleep", "1000"))
	at := func(kind string) string { return fmt.Sprintf("/proc/%d/ns/%s", first.Init().PID(), kind) }
	script := "for n in net ipc uts; do readlink /proc/self/ns/$n; done"
	c = b.Sh(script)
	c.NetNS = at("net")
	c.Spec.Hostname = ""
	c.Spec.Linux.Namespaces = []specs.LinuxNamespace{
		{Type: "mount"}, {Type: "cgroup"}, {Type: "network"}, {Type: "pid"}, {Type: "ipc", Path: at("ipc")}, {Type: "uts", Path: at("uts")},
	}
	theirs, _, err := first.Exec(first.Process("/bin/sh", "-c", script))
	b.check(err)
	b.expect(c, theirs)
	// Not one.
	c = b.Sh("true")
	c.NetNS = at("ipc")
	if _, err := b.Create(c); !errdefs.IsInvalidArgument(err) {
		b.T.Errorf("an ipc namespace as a network: %v", err)
	}
	c.NetNS = "/etc/passwd"
	if _, err := b.Create(c); !errdefs.IsInvalidArgument(err) {
		b.T.Errorf("a file as a network: %v", err)
	}
	c.NetNS = "/not/there"
	if _, err := b.Create(c); !errors.Is(err, fs.ErrNotExist) {
		b.T.Errorf("no network: %v", err)
	}
}

func cancelled(b *Box) {
	ctx, cancel := context.WithCancelCause(context.Background())
	why := errors.New("nobody wants it any more")
	cancel(why)
	c := b.Sh("true")
	if _, err := b.R.Create(ctx, c); !errors.Is(err, why) {
		b.T.Errorf("created: %v", err)
	}
	b.leftNothing(c)
}

func many(b *Box) {
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 5 {
				out, code := b.Run(b.sole("echo hello"))
				if code != 0 || out != "hello\n" {
					b.T.Errorf("exit %d: %q", code, out)
				}
			}
		})
	}
	wg.Wait()
	m := b.Start(b.Config("sleep", "1000"))
	for range 4 {
		wg.Go(func() {
			for range 10 {
				out, code, err := m.Exec(m.Process("echo", "hello"))
				if err != nil || code != 0 || out != "hello\n" {
					b.T.Errorf("exec: exit %d: %q %v", code, out, err)
				}
			}
		})
	}
	wg.Wait()
}

// sole is a container that shares no root filesystem with another that runs.
func (b *Box) sole(script string) *runtime.Config {
	c := b.Sh(script)
	dir := b.host("sole-" + c.ID)
	b.check(os.MkdirAll(filepath.Join(dir, "upper"), 0o755))
	b.check(os.MkdirAll(filepath.Join(dir, "work"), 0o755))
	c.Rootfs = []runtime.Mount{{Type: "overlay", Source: "overlay", Options: []string{"lowerdir=" + b.Lower, "upperdir=" + dir + "/upper", "workdir=" + dir + "/work"}}}
	return c
}

func propagation(b *Box) {
	dir := b.host("shared")
	b.check(unix.Mount("tmpfs", dir, "tmpfs", 0, ""))
	b.T.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	c := b.Sh("true")
	c.Spec.Mounts = append(c.Spec.Mounts, specs.Mount{Destination: "/shared", Type: "bind", Source: dir, Options: []string{"rbind", "rshared"}})
	if _, err := b.Create(c); !errdefs.IsFailedPrecondition(err) {
		b.T.Errorf("shared with a mount that is not: %v", err)
	}
	b.check(unix.Mount("", dir, "", unix.MS_SHARED, ""))
	for how, want := range map[string]bool{"rslave": true, "rshared": true, "rprivate": false} {
		b.check(os.MkdirAll(filepath.Join(dir, how), 0o755))
		c := b.Sh("echo up; while ! [ -e /v/stop ]; do usleep 2000; done; ls /v/" + how)
		c.Spec.Mounts = append(c.Spec.Mounts, specs.Mount{Destination: "/v", Type: "bind", Source: dir, Options: []string{"rbind", how}})
		m := b.Start(c)
		m.Out.Until(b.T, "up")
		b.check(unix.Mount("tmpfs", filepath.Join(dir, how), "tmpfs", 0, ""))
		b.check(os.WriteFile(filepath.Join(dir, how, "seen"), nil, 0o644))
		b.check(os.WriteFile(filepath.Join(dir, "stop"), nil, 0o644))
		m.Wait()
		if got := strings.Contains(m.Out.Wait(b.T), "seen"); got != want {
			b.T.Errorf("%s: seen %t", how, got)
		}
		b.check(os.Remove(filepath.Join(dir, "stop")))
		b.check(unix.Unmount(filepath.Join(dir, how), unix.MNT_DETACH))
	}
	if b.Lacks(RootPropagation) {
		return
	}
	for words, want := range map[string]string{"": "private", "rprivate": "private", "shared": "shared:", "rslave": "private", "unbindable": "unbindable"} {
		c := b.Sh("grep ' / / ' /proc/self/mountinfo | sed 's/ - .*//'")
		c.Spec.Linux.RootfsPropagation = words
		out, _ := b.Run(c)
		if want == "private" && (strings.Contains(out, "shared:") || strings.Contains(out, "unbindable")) || want != "private" && !strings.Contains(out, want) {
			b.T.Errorf("%q: %s", words, out)
		}
	}
}

func updates(b *Box) {
	m := b.Start(b.Config("sleep", "1000"))
	limit := int64(33)
	b.check(m.Update(Context(b.T), &specs.LinuxResources{Pids: &specs.LinuxPids{Limit: &limit}}))
	out, _, err := m.Exec(m.Process("/bin/sh", "-c", "cat /sys/fs/cgroup/pids/pids.max || cat /sys/fs/cgroup/pids.max"))
	if err != nil || !strings.Contains(out, "33") {
		b.T.Errorf("%s %v", out, err)
	}
	if err := m.Update(Context(b.T), &specs.LinuxResources{Network: &specs.LinuxNetwork{ClassID: ptr(uint32(1))}}); !errdefs.IsNotImplemented(err) {
		b.T.Error(err)
	}
}

// plainRoot is a directory as the root filesystem, as the specification has it.
func plainRoot(b *Box) {
	c := b.Sh("echo made >/made; cat /made")
	c.Rootfs = nil
	c.Spec.Root.Path = "lower"
	b.expect(c, "made")
	if raw, err := os.ReadFile(filepath.Join(b.Lower, "made")); err != nil || string(raw) != "made\n" {
		b.T.Errorf("%q %v", raw, err)
	}
	// Bound, and something below it that belongs to it.
	c = b.Sh("cat /below/file; grep -c overlay /proc/self/mountinfo")
	v := b.host("v")
	b.check(os.WriteFile(filepath.Join(v, "file"), []byte("v\n"), 0o644))
	c.Rootfs = []runtime.Mount{{Type: "bind", Source: b.Lower, Options: []string{"rbind", "ro"}}, {Type: "bind", Source: v, Target: "/root", Options: []string{"bind"}}}
	out, _ := b.Run(c)
	if !strings.Contains(out, "can't open") && !strings.Contains(out, "v") {
		b.T.Error(out)
	}
}
