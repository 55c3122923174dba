package escape

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/gantryd/gantry/internal/insecure"
	shimruntime "github.com/gantryd/gantry/shim/runtime"
	"github.com/gantryd/gantry/shim/runtime/runtimetest"
)

// joining is a container in another's process namespace.
func joining(b *runtimetest.Box, first *runtimetest.Made, script string) *shimruntime.Config {
	c := b.Sh(script)
	for i, n := range c.Spec.Linux.Namespaces {
		if n.Type == specs.PIDNamespace {
			c.Spec.Linux.Namespaces[i].Path = fmt.Sprintf("/proc/%d/ns/pid", first.Init().PID())
		}
	}
	return c
}

// others runs a script in the container for every process but the first and itself.
func others(t *testing.T, m *runtimetest.Made, script string) string {
	t.Helper()
	out, _, err := m.Exec(m.Process("/bin/sh", "-c", `for p in /proc/[0-9]*; do n=${p#/proc/}; [ $n = 1 ] || [ $n = $$ ] || { `+script+`; }; done; true`))
	must(t, err)
	return out
}

// TestJoinedProcesses (CVE-2016-9962): while a container is made that shares another's processes, the
// other, which may look into every process that it sees, sees none that has anything of the host's.
func TestJoinedProcesses(t *testing.T) {
	b := box(t)
	first := b.Start(tracing(b.Config("sleep", "1000")))
	stands(t, func(t *testing.T) string {
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
		out := others(t, first, `ls -d $p/root`+b.Dir+` 2>/dev/null; ls $p/fd | wc -l`)
		must(t, os.WriteFile(goOn, nil, 0o644))
		if said := <-done; said != "fine\n" {
			t.Error(said)
		}
		return out
	}, insecure.Early)
	// What is made but not started is seen, as the container's own (see TestVisitor).
	if _, err := b.Create(joining(b, first, "true")); err != nil {
		t.Fatal(err)
	}
	if out := others(t, first, `ls $p/fd | tr '\n' ' '; ls -d $p/root`+b.Dir); !strings.HasPrefix(out, "0 1 2 3") || !strings.Contains(out, "No such file") {
		t.Errorf("before its start: %q", out)
	}
}
