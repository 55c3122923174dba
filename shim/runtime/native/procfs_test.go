package native

import (
	"fmt"
	"os"
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
