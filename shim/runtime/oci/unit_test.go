package oci

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/shim/runtime"
	"github.com/gantryd/gantry/shim/runtime/runtimetest"
)

// script is a runtime whose program is a shell script.
func script(t *testing.T, text string) *Runtime {
	t.Helper()
	dir := t.TempDir()
	path := filepath.Join(dir, "program")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text), 0o755); err != nil {
		t.Fatal(err)
	}
	r, err := New(Options{Path: path, Args: []string{"--own"}, State: filepath.Join(dir, "state")})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestKnowledge(t *testing.T) {
	for name, tc := range map[string]struct {
		script string
		want   knowledge
	}{
		"features": {
			`[ "$2" = features ] && echo '{"ociVersionMax":"1.2.0+dev","mountOptions":["ro","rro"],"linux":{"namespaces":["pid","time"]}}'`,
			knowledge{version{1, 2, 0}, map[string]bool{"pid": true, "time": true}, true, true},
		},
		"crun of Debian 12": {
			`[ "$2" = --version ] && printf 'crun version 1.8.1\ncommit: f8a0\nspec: 1.0.0\n+SYSTEMD\n'`,
			knowledge{oldest, nil, true, true},
		},
		"an old crun": {`[ "$2" = --version ] && printf 'crun version 1.3\nspec: 1.0.0\n'`, knowledge{oldest, nil, false, true}},
		"runsc":       {`[ "$2" = --version ] && printf 'runsc version release-2024\nspec: 1.1.0-rc.1\n'`, knowledge{version{1, 1, 0}, nil, false, true}},
		"silence":     {`exit 0`, knowledge{oldest, nil, false, false}},
		"no word":     {`[ "$2" = --version ] && echo hello`, knowledge{oldest, nil, false, false}},
	} {
		k, err := script(t, tc.script).knows(runtimetest.Context(t))
		if err != nil || fmt.Sprint(*k) != fmt.Sprint(tc.want) {
			t.Errorf("%s: %v %v, want %v", name, k, err, tc.want)
		}
	}
	if _, err := script(t, "exit 3").knows(runtimetest.Context(t)); err == nil || !strings.Contains(err.Error(), "does not answer --version") {
		t.Error(err)
	}
	r := script(t, "")
	if err := os.Remove(r.o.Path); err != nil {
		t.Fatal(err)
	}
	if _, err := r.knows(runtimetest.Context(t)); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("a program that is gone: %v", err)
	}
}

// TestWords: what programs say is a class, and about the command or not.
func TestWords(t *testing.T) {
	for _, tc := range []struct {
		msg     string
		class   error
		command bool
	}{
		{"executable file `nosuch` not found in $PATH: No such file or directory", errdefs.ErrNotFound, true},
		{"open executable: Permission denied", errdefs.ErrPermissionDenied, true},
		{`runc create failed: unable to start container process: exec: "nosuch": executable file not found in $PATH`, errdefs.ErrNotFound, true},
		{`runc create failed: unable to start container process: exec: "/x": stat /x: no such file or directory`, errdefs.ErrNotFound, true},
		{`exec failed: unable to start container process: exec: "/etc": is a directory`, errdefs.ErrPermissionDenied, true},
		{`exec failed: unable to start container process: exec: "/x": permission denied`, errdefs.ErrPermissionDenied, true},
		{"container `x` does not exist", errdefs.ErrNotFound, false},
		{"container does not exist", errdefs.ErrNotFound, false},
		{"container with id exists: container x already exists", errdefs.ErrAlreadyExists, false},
		{"cannot exec in a stopped container", errdefs.ErrFailedPrecondition, false},
		{"mount `x` to `y`: Not a directory", errdefs.ErrUnknown, false},
	} {
		raw, err := json.Marshal(map[string]string{"level": "error", "msg": tc.msg})
		if err != nil {
			t.Fatal(err)
		}
		r := script(t, `while [ "$1" != --log ]; do shift; done; cat >"$2" <<'EOF'`+"\n"+`{"level":"warning","msg":"before"}`+"\n"+string(raw)+"\n"+`{"level":"info","msg":"after"}`+"\nEOF\nexit 1\n")
		c := &container{r: r, id: "x", dir: t.TempDir(), root: -1}
		err = c.blame(r.run(runtimetest.Context(t), c.call(nil, "create")), &specs.Process{Args: []string{"command"}, Cwd: "/", Env: []string{"PATH=/bin"}})
		var command *runtime.CommandError
		if !errors.Is(err, tc.class) || errors.As(err, &command) != tc.command || !strings.Contains(err.Error(), "program: ") {
			t.Errorf("%s: %v", tc.msg, err)
		}
	}
}

// TestHangs: a program that does not end is ended with the call.
func TestHangs(t *testing.T) {
	r := script(t, "echo $$ >pid; exec sleep 1000")
	ctx, cancel := context.WithCancelCause(t.Context())
	dir, why := t.TempDir(), errors.New("nobody wants it any more")
	go func() {
		runtimetest.Poll(t, "it runs", func() bool { pid, err := readPID(filepath.Join(dir, "pid")); return err == nil && pid > 1 }, func() string { return "" })
		cancel(why)
	}()
	began := time.Now()
	if err := r.run(ctx, &call{dir: dir, args: []string{"create"}}); !errors.Is(err, why) || time.Since(began) > 20*time.Second {
		t.Errorf("after %v: %v", time.Since(began), err)
	}
	pid, err := readPID(filepath.Join(dir, "pid"))
	if err != nil || unix.Kill(pid, 0) == nil {
		t.Errorf("process %d lives: %v", pid, err)
	}
}

// TestArguments: those of the configuration come before the verb, and state is kept where it goes away.
func TestArguments(t *testing.T) {
	dir := t.TempDir()
	r := script(t, `echo "$@" >args; env >env`)
	c := &container{r: r, id: "x", dir: dir}
	if err := r.run(runtimetest.Context(t), c.call(nil, "kill", "x")); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(filepath.Join(dir, "args"))
	if got, want := string(raw), "--own --root "+dir+"/keep --log "+dir+"/log.1 --log-format json kill x\n"; err != nil || got != want {
		t.Errorf("%q %v, want %q", got, err, want)
	}
	if raw, _ := os.ReadFile(filepath.Join(dir, "env")); strings.Contains(string(raw), "HOME=") {
		t.Errorf("it has this process's environment: %s", raw)
	}
}

func TestRefused(t *testing.T) {
	old, new11 := &knowledge{spec: oldest}, &knowledge{spec: version{1, 1, 0}, recursive: true, personality: true}
	idle := int64(1)
	for want, change := range map[string]func(*specs.Spec){
		"domainname":        func(s *specs.Spec) { s.Domainname = "x" },
		"linux.timeOffsets": func(s *specs.Spec) { s.Linux.TimeOffsets = map[string]specs.LinuxTimeOffset{"boottime": {}} },
		"a time namespace": func(s *specs.Spec) {
			s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: "time"})
		},
		"mounts[0].uidMappings":      func(s *specs.Spec) { s.Mounts[0].UIDMappings = []specs.LinuxIDMapping{{Size: 1}} },
		"mount option rro":           func(s *specs.Spec) { s.Mounts[0].Options = []string{"rbind", "rro"} },
		"linux.resources.cpu.idle":   func(s *specs.Spec) { s.Linux.Resources = &specs.LinuxResources{CPU: &specs.LinuxCPU{Idle: &idle}} },
		"process.scheduler":          func(s *specs.Spec) { s.Process.Scheduler = &specs.Scheduler{} },
		"process.ioPriority":         func(s *specs.Spec) { s.Process.IOPriority = &specs.LinuxIOPriority{} },
		"linux.seccomp.listenerPath": func(s *specs.Spec) { s.Linux.Seccomp = &specs.LinuxSeccomp{ListenerPath: "/x"} },
		"-linux.memoryPolicy":        func(s *specs.Spec) { s.Linux.MemoryPolicy = &specs.LinuxMemoryPolicy{} },
		"-linux.netDevices":          func(s *specs.Spec) { s.Linux.NetDevices = map[string]specs.LinuxNetDevice{"eth9": {}} },
		"-process.execCPUAffinity":   func(s *specs.Spec) { s.Process.ExecCPUAffinity = &specs.CPUAffinity{} },
		"-process.commandLine":       func(s *specs.Spec) { s.Process.CommandLine = "x" },
		"linux.personality":          func(s *specs.Spec) { s.Linux.Personality = &specs.LinuxPersonality{Domain: specs.PerLinux32} },
		"-linux.personality": func(s *specs.Spec) {
			s.Linux.Personality = &specs.LinuxPersonality{Domain: specs.PerLinux32, Flags: []specs.LinuxPersonalityFlag{"X"}}
		},
		"-process.user.username": func(s *specs.Spec) { s.Process.User.Username = "x" },
		"-linux.intelRdt":        func(s *specs.Spec) { s.Linux.IntelRdt = &specs.LinuxIntelRdt{} },
		"-linux.resources.rdma": func(s *specs.Spec) {
			s.Linux.Resources = &specs.LinuxResources{Rdma: map[string]specs.LinuxRdma{"x": {}}}
		},
		"-linux.resources.memory.kernel": func(s *specs.Spec) {
			s.Linux.Resources = &specs.LinuxResources{Memory: &specs.LinuxMemory{Kernel: &idle}} //nolint:staticcheck // deprecated, and refused for that
		}, //nolint:staticcheck // refused
		"-linux.resources.memory.useHierarchy": func(s *specs.Spec) {
			yes := true
			s.Linux.Resources = &specs.LinuxResources{Memory: &specs.LinuxMemory{UseHierarchy: &yes}}
		},
		"-linux.namespaces: to join a mount":             func(s *specs.Spec) { s.Linux.Namespaces[0].Path = "/proc/self/ns/mnt" },
		"-linux.namespaces: a container without a mount": func(s *specs.Spec) { s.Linux.Namespaces = nil },
	} {
		spec := func() *runtime.Config {
			return &runtime.Config{Spec: &specs.Spec{
				Root: &specs.Root{Path: "x"}, Process: &specs.Process{Args: []string{"x"}, Cwd: "/"}, Mounts: []specs.Mount{{Destination: "/x", Type: "bind", Source: "/"}},
				Linux: &specs.Linux{CgroupsPath: "/x", Namespaces: []specs.LinuxNamespace{{Type: "mount"}, {Type: "uts"}}},
			}}
		}
		if err := new11.supported("x", spec()); err != nil {
			t.Fatal(err)
		}
		c := spec()
		change(c.Spec)
		word, never := strings.CutPrefix(want, "-")
		if err := old.supported("x", c); !errdefs.IsNotImplemented(err) || !strings.Contains(err.Error(), "runtime x does not do "+word) {
			t.Errorf("%s: %v", word, err)
		}
		if err := new11.supported("x", c); (err != nil) != never {
			t.Errorf("%s, of who knows it: %v", word, err)
		}
	}
}

// TestUserInside: who is meant is read in the container's files, wherever links in them lead to.
func TestUserInside(t *testing.T) {
	b := runtimetest.New(t, newRuntime(t, "crun"), lacks...)
	outside := filepath.Join(b.Dir, "passwd")
	if err := os.WriteFile(outside, []byte("evil:x:4242:4242::/:/bin/sh\n"), 0o644); err != nil { //nolint:gosec // as /etc/passwd
		t.Fatal(err)
	}
	for _, to := range []string{outside, "../../../../../../../.." + outside, "/proc/self/root" + outside} {
		if err := errors.Join(os.RemoveAll(filepath.Join(b.Lower, "etc/passwd")), os.Symlink(to, filepath.Join(b.Lower, "etc/passwd"))); err != nil {
			t.Fatal(err)
		}
		c := b.Config("true")
		c.User = "evil"
		if _, err := b.Create(c); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "evil") {
			t.Errorf("%s: %v", to, err)
		}
	}
}

// TestMountsStay: the host's mounts are the same after containers were made, though a program sees others.
func TestMountsStay(t *testing.T) {
	r := newRuntime(t, "crun")
	list := func() (ours string) {
		raw, err := os.ReadFile("/proc/self/mountinfo")
		if err != nil {
			t.Fatal(err)
		}
		for l := range strings.Lines(string(raw)) { // others on this machine mount as well
			if strings.Contains(l, r.o.State) || strings.Contains(l, " /sys/") {
				ours += l
			}
		}
		return ours
	}
	// Whoever mounts in a shared mount mounts on the host, in whatever namespace.
	if err := os.MkdirAll(r.o.State, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", r.o.State, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(r.o.State, unix.MNT_DETACH) })
	if err := unix.Mount("", r.o.State, "", unix.MS_SHARED, ""); err != nil {
		t.Fatal(err)
	}
	before := list()
	b := runtimetest.New(t, r, lacks...)
	m := b.Start(b.Config("sleep", "1000"))
	if list() != before {
		t.Errorf("before:\n%s\nnow:\n%s", before, list())
	}
	if err := m.Kill(runtimetest.Context(t), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	m.Wait()
	if err := m.Delete(runtimetest.Context(t)); err != nil {
		t.Fatal(err)
	}
	if list() != before {
		t.Errorf("before:\n%s\nnow:\n%s", before, list())
	}
	if ds, err := os.ReadDir(r.o.State); err != nil || len(ds) != 0 {
		t.Errorf("left in its directory: %v %v", ds, err)
	}
}
