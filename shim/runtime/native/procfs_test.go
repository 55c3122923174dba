package native

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/shim/runtime"
	"github.com/gantryd/gantry/shim/runtime/runtimetest"
)

// joining is a container in another's process namespace.
func joining(b *runtimetest.Box, first *runtimetest.Made, script string) *runtime.Config {
	c := b.Sh(script)
	for i, n := range c.Spec.Linux.Namespaces {
		if n.Type == specs.PIDNamespace {
			c.Spec.Linux.Namespaces[i].Path = fmt.Sprintf("/proc/%d/ns/pid", first.Init().PID())
		}
	}
	return c
}

// TestJoinedProcesses (CVE-2016-9962): while a container is made that shares another's processes, the
// other, which may look into every process that it sees, sees none that has anything of the host's.
func TestJoinedProcesses(t *testing.T) {
	b := runtimetest.New(t, newRuntime(t))
	first := b.Start(ptracing(b.Config("sleep", "1000")))
	seen := func() string {
		ready, goOn := filepath.Join(b.Dir, "ready"), filepath.Join(b.Dir, "go")
		_, _ = os.Remove(ready), os.Remove(goOn)
		c := joining(b, first, "echo fine")
		c.Spec.Hooks = &specs.Hooks{CreateRuntime: []specs.Hook{{Path: "/bin/sh", Env: []string{"PATH=/bin:/usr/bin"}, Args: []string{
			"sh", "-c", "touch " + ready + "; while ! [ -e " + goOn + " ]; do sleep 0.01; done",
		}}}}
		done := make(chan string, 1)
		go func() {
			m, err := b.Create(c)
			if err != nil {
				done <- err.Error()
				return
			}
			if err := m.Init().Start(runtimetest.Context(t)); err != nil {
				done <- err.Error()
				return
			}
			m.Wait()
			done <- m.Out.Wait(t)
		}()
		runtimetest.Poll(t, "the hook runs", func() bool { _, err := os.Stat(ready); return err == nil || len(done) > 0 }, func() string { return "" })
		out := peek(t, first, `ls -d $p/root`+b.Dir+` 2>/dev/null; ls $p/fd | wc -l`)
		if err := os.WriteFile(goOn, nil, 0o644); err != nil {
			t.Fatal(err)
		}
		if said := <-done; said != "fine\n" {
			t.Error(said)
		}
		return out
	}
	if out := seen(); out != "" {
		t.Errorf("seen of it: %q", out)
	}
	without(t, func() { insecure.early = true }, func() {
		if out := seen(); !strings.Contains(out, b.Dir) {
			t.Errorf("the guard guards nothing: %q", out)
		}
	})
	// What is made but not started is seen, as the container's own (see TestVisitor).
	if _, err := b.Create(joining(b, first, "true")); err != nil {
		t.Fatal(err)
	}
	if out := peek(t, first, `ls $p/fd | tr '\n' ' '; ls -d $p/root`+b.Dir); !strings.HasPrefix(out, "0 1 2 3") || !strings.Contains(out, "No such file") {
		t.Errorf("before its start: %q", out)
	}
}

// TestProcfsFromInside: on kernels that do not take a process namespace by descriptor.
func TestProcfsFromInside(t *testing.T) {
	b := runtimetest.New(t, newRuntime(t))
	first := b.Start(b.Config("sleep", "1000"))
	before := oldProcfs.Load()
	defer oldProcfs.Store(before)
	oldProcfs.Store(true)
	out, code := b.Run(joining(b, first, `tr '\0' ' ' </proc/1/cmdline; echo; [ -d /proc/$$ ] && echo itself; cat /proc/sys/net/ipv4/ip_unprivileged_port_start`))
	if code != 0 || out != "sleep 1000 \nitself\n0\n" {
		t.Errorf("exit %d: %q", code, out)
	}
	pidns, err := unix.Open(fmt.Sprintf("/proc/%d/ns/pid", first.Init().PID()), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pidns) //nolint:errcheck // it was only named
	if _, err := procfsFromInside(pidns, options{data: []string{"frobnicate"}}); err == nil || !strings.Contains(err.Error(), "mount procfs") {
		t.Errorf("an option that it does not have: %v", err)
	}
	if pids, err := os.ReadDir(fmt.Sprintf("/proc/%d/root/proc", first.Init().PID())); err != nil || len(pids) == 0 {
		t.Error(err)
	}
}
