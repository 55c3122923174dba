package runtimetest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/shim/runtime"
)

var hookFeatures = []feature{
	{name: "hooks", ask: func(b *Box) *runtime.Config {
		c := b.Sh("true")
		c.Spec.Hooks = &specs.Hooks{Poststop: []specs.Hook{{Path: "/bin/true"}}}
		return c
	}, more: hooks},
	{name: "hooks (that fail)", ask: func(b *Box) *runtime.Config {
		c := b.Sh("true")
		c.Spec.Hooks = &specs.Hooks{CreateRuntime: []specs.Hook{{Path: "/bin/false"}}}
		return c
	}, more: failingHooks},
	{name: "hooks.createContainer", ask: func(b *Box) *runtime.Config {
		c := b.Sh("true")
		c.Spec.Hooks = &specs.Hooks{CreateContainer: []specs.Hook{{Path: "/bin/true"}}}
		return c
	}, more: hooksInside},
}

// lists are the hooks of each kind, in the order of their moments.
func lists(h *specs.Hooks) (names []string, by map[string]*[]specs.Hook) {
	names = []string{"prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"}
	return names, map[string]*[]specs.Hook{
		"prestart": &h.Prestart, "createRuntime": &h.CreateRuntime, "createContainer": &h.CreateContainer, //nolint:staticcheck // deprecated, and done
		"startContainer": &h.StartContainer, "poststart": &h.Poststart, "poststop": &h.Poststop,
	}
}

func shell(script string) specs.Hook {
	return specs.Hook{Path: "/bin/sh", Args: []string{"sh", "-c", script}, Env: []string{"PATH=/bin:/usr/bin", "GREETING=hello"}}
}

// hooked is a container with two hooks of every kind, which write to /v in the container, a directory
// of the host's, that they were called, as whom, and what they were told.
func (b *Box) hooked() (c *runtime.Config, log string) {
	v := b.host("hooks")
	rootfs := filepath.Join(b.Dir, "rootfs")
	b.check(os.MkdirAll(rootfs, 0o755))
	log = filepath.Join(v, "log")
	c = b.Sh("echo main >>/v/log; sleep 1000; true")
	c.Spec.Root.Path = "rootfs"
	c.Spec.Annotations = map[string]string{"key": "value"}
	c.Spec.Mounts = append(c.Spec.Mounts, bind(v, "/v"))
	c.Spec.Hooks = &specs.Hooks{}
	names, by := lists(c.Spec.Hooks)
	for _, name := range names {
		at := v
		if name == "startContainer" {
			at = "/v"
		}
		for i := range 2 {
			*by[name] = append(*by[name], shell(fmt.Sprintf(
				`d=%[1]s; echo %[2]s%[3]d >>$d/log; cat >$d/%[2]s; { echo $GREETING $0; env | grep -c .; pwd; for n in mnt pid net ipc uts; do readlink /proc/self/ns/$n; done; ls /proc/self/fd | tr '\n' ' '; } >$d/%[2]s.seen; ls -d %[4]s/bin/busybox >$d/%[2]s.root 2>/dev/null; true`, at, name, i, rootfs)))
		}
	}
	return c, log
}

// hooks of every kind are called in order, twice each, are told the state, and run where they should.
func hooks(b *Box) {
	c, log := b.hooked()
	read := func(name string) string {
		raw, err := os.ReadFile(filepath.Join(filepath.Dir(log), name))
		b.check(err)
		return string(raw)
	}
	m, err := b.Create(c)
	b.check(err)
	if got, want := read("log"), "prestart0\nprestart1\ncreateRuntime0\ncreateRuntime1\ncreateContainer0\ncreateContainer1\n"; got != want {
		b.T.Errorf("created: %q, want %q", got, want)
	}
	b.check(m.Init().Start(Context(b.T)))
	Poll(b.T, "main", func() bool { return strings.Contains(read("log"), "main") }, func() string { return read("log") })
	got := read("log") // main and poststart may come in any order
	if !strings.Contains(got, "startContainer0\nstartContainer1\n") || !strings.Contains(strings.Replace(got, "main\n", "", 1), "poststart0\npoststart1\n") || strings.Index(got, "main") < strings.Index(got, "startContainer1") {
		b.T.Errorf("started: %q", got)
	}
	theirs := map[string]string{}
	for _, n := range []string{"mnt", "pid", "net", "ipc", "uts"} {
		if theirs[n], err = os.Readlink(m.ns(n)); err != nil {
			b.T.Fatal(err)
		}
	}
	b.check(m.Init().Signal(unix.SIGKILL))
	m.Wait()
	if strings.Contains(read("log"), "poststop") {
		b.T.Error("poststop before delete")
	}
	b.check(m.Delete(Context(b.T)))
	b.check(m.Delete(Context(b.T)))
	if got := read("log"); strings.Count(got, "poststop") != 2 || !strings.HasSuffix(got, "poststop0\npoststop1\n") {
		b.T.Errorf("deleted: %q", got)
	}
	names, _ := lists(c.Spec.Hooks)
	for _, name := range names {
		b.told(c, name, read(name), m.Init().PID())
		seen := strings.Split(read(name+".seen"), "\n")
		inside := name == "createContainer" || name == "startContainer"
		dir := b.Dir
		if inside {
			dir = "/"
		}
		// PATH, GREETING, and what a shell adds.
		if seen[0] != "hello sh" || len(seen[1]) != 1 || seen[1] > "5" || seen[2] != dir || strings.TrimSpace(seen[8]) != "0 1 2 3" {
			b.T.Errorf("%s: %q", name, seen)
		}
		for i, n := range []string{"mnt", "pid", "net", "ipc", "uts"} {
			if (seen[3+i] == theirs[n]) != inside {
				b.T.Errorf("%s: %s is %s, the container's %s", name, n, seen[3+i], theirs[n])
			}
		}
		if root := read(name + ".root"); (root != "") != (name == "createContainer") {
			b.T.Errorf("%s: the root filesystem is seen at root.path: %q", name, root)
		}
	}
}

// told checks the state that a hook got.
func (b *Box) told(c *runtime.Config, name, raw string, pid int) {
	b.T.Helper()
	var s specs.State
	b.check(json.Unmarshal([]byte(raw), &s))
	want := specs.State{Version: c.Spec.Version, ID: c.ID, Bundle: b.Dir, Status: "creating", Pid: pid}
	switch name {
	case "createContainer":
		want.Pid = 1
	case "startContainer":
		want.Pid, want.Status = 1, "created"
	case "poststart":
		want.Status = "running"
	case "poststop":
		want.Pid, want.Status = 0, "stopped"
	}
	if s.Annotations["key"] != "value" {
		b.T.Errorf("%s: annotations %v", name, s.Annotations)
	}
	s.Annotations = nil
	if fmt.Sprint(s) != fmt.Sprint(want) {
		b.T.Errorf("%s is told %+v, want %+v", name, s, want)
	}
}

// failingHooks end the container, and what comes after them does not happen, but for poststop.
func failingHooks(b *Box) {
	for _, name := range []string{"prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"} {
		c, log := b.hooked()
		b.check(os.RemoveAll(log))
		_, by := lists(c.Spec.Hooks)
		(*by[name])[0] = shell("echo because >&2; exit 3")
		why := name + `[0] (/bin/sh): exit status 3`
		m, err := b.Create(c)
		if err == nil {
			err = m.Init().Start(Context(b.T))
			if err == nil {
				b.check(m.Init().Signal(unix.SIGKILL))
				m.Wait()
			}
			b.check(m.Delete(Context(b.T)))
		}
		raw, rerr := os.ReadFile(log)
		if rerr != nil && !errors.Is(rerr, os.ErrNotExist) {
			b.T.Fatal(rerr)
		}
		got := string(raw)
		if name == "poststop" {
			if err != nil || !strings.HasSuffix(got, "poststop1\n") || !strings.Contains(b.Warned(), why) {
				b.T.Errorf("poststop fails: %v, %q, warned %q", err, got, b.Warned())
			}
			continue
		}
		if err == nil || !strings.Contains(err.Error(), why) || !strings.Contains(err.Error(), "because") {
			b.T.Errorf("%s fails: %v", name, err)
		}
		if strings.Contains(got, name+"1") || !strings.HasSuffix(got, "poststop0\npoststop1\n") || strings.Contains(got, "main") && name != "poststart" {
			b.T.Errorf("%s fails, and there is called: %q", name, got)
		}
	}
	one := func(h specs.Hook) error {
		c := b.Sh("true")
		c.Spec.Hooks = &specs.Hooks{CreateRuntime: []specs.Hook{h}}
		_, err := b.Create(c)
		return err
	}
	second := 1
	began := time.Now()
	sleep := fmt.Sprintf("sleep %d", 1_000_000+time.Now().UnixNano()%1_000_000_000) // nobody else's
	slow := shell(sleep + " & " + sleep + "; true")
	slow.Timeout = &second
	if err := one(slow); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "longer than the 1 s") || time.Since(began) > 20*time.Second {
		b.T.Errorf("a slow hook: %v after %v", err, time.Since(began))
	}
	Poll(b.T, "what a slow hook started is ended", func() bool { return !running(sleep) }, func() string { return "it runs" })
	if err := one(specs.Hook{Path: "/not/there"}); !errors.Is(err, unix.ENOENT) {
		b.T.Errorf("a hook that is not there: %v", err)
	}
	if err := one(shell("kill -9 $$")); err == nil || !strings.Contains(err.Error(), "SIGKILL") {
		b.T.Errorf("a hook that is killed: %v", err)
	}
	none := 0
	for want, h := range map[string]specs.Hook{"hooks.createRuntime[0].path": {Path: "true"}, "hooks.createRuntime[0].timeout": {Path: "/bin/true", Timeout: &none}} {
		if err := one(h); err == nil || !strings.Contains(err.Error(), want) {
			b.T.Errorf("%s: %v", want, err)
		}
	}
}

// hooksInside may change what the container will see; and those of the container's own are its process.
func hooksInside(b *Box) {
	for _, user := range []bool{false, true} {
		b.check(os.MkdirAll(filepath.Join(b.Dir, "rootfs"), 0o755))
		c := b.Sh("cat /run/made; cat /tmp/started")
		c.User = "alice"
		if user {
			b.inUser(c)
		}
		c.Spec.Root.Path = filepath.Join(b.Dir, "rootfs")
		c.Spec.Hooks = &specs.Hooks{
			CreateContainer: []specs.Hook{shell("d=" + b.Dir + "/rootfs; mkdir -p $d/run && mount -t tmpfs x $d/run && echo mounted >$d/run/made")},
			StartContainer:  []specs.Hook{shell("{ id -u; grep -E '^(CapEff|Seccomp:)' /proc/self/status | tr -d '\\t'; cat /proc/self/cgroup | grep -vc ':/$'; } >/tmp/started 2>&1; true")},
		}
		b.expect(c, "mounted\n1000\nCapEff:0000000000000000\nSeccomp:2\n0")
		if _, err := os.Stat(filepath.Join(b.Dir, "rootfs/run")); err == nil {
			b.T.Error("what the hook did is seen on the host")
		}
		b.check(os.RemoveAll(filepath.Join(b.Upper, "tmp/started")))
		b.check(os.RemoveAll(filepath.Join(b.Upper, "run")))
	}
	c := b.Sh("true")
	c.Spec.Hooks = &specs.Hooks{CreateContainer: []specs.Hook{{Path: "/bin/true"}}}
	b.refuses("root.path", c)
}

// running reports whether a process of this machine has this command line.
func running(command string) bool {
	want := strings.ReplaceAll(command, " ", "\x00") + "\x00"
	all, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, f := range all {
		if raw, err := os.ReadFile(f); err == nil && string(raw) == want {
			return true
		}
	}
	return false
}
