package oci

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/shim/runtime/runtimetest"
)

func TestMain(m *testing.M) {
	// What the program leaves behind must be this process's to reap, as it is a shim's.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// newRuntime is a program of this machine's as a runtime.
func newRuntime(t testing.TB, name string) *Runtime {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Fatalf("%v: install it with test/setup.sh", err)
	}
	r, err := New(Options{Name: name, Path: path, State: filepath.Join(t.TempDir(), "oci"), Guard: func(run func()) { run(); reapStages() }})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// reapStages reaps what runc leaves of itself: a process that has made the first one of a container, and
// ends. In a shim the reaper does.
func reapStages() {
	lists, _ := filepath.Glob("/proc/self/task/*/children")
	for _, l := range lists {
		raw, _ := os.ReadFile(l)
		for _, pid := range strings.Fields(string(raw)) {
			stat, _ := os.ReadFile("/proc/" + pid + "/stat")
			if n, err := strconv.Atoi(pid); err == nil && strings.Contains(string(stat), "(runc:[1:CHILD]) ") {
				_, _ = unix.Wait4(n, nil, 0, nil)
			}
		}
	}
}

// lacks is what no program has, or none says.
var lacks = []runtimetest.Feature{
	runtimetest.CompiledFilter, runtimetest.Init, runtimetest.Domainname, runtimetest.MasksUnderFiles, runtimetest.LinkedMountPoints,
	runtimetest.MountWords,
}

func TestSuite(t *testing.T) {
	for name, more := range map[string][]runtimetest.Feature{
		"crun": {runtimetest.TerminalOwner},
		"runc": {runtimetest.RootPropagation, runtimetest.SingleThread},
	} {
		t.Run(name, func(t *testing.T) { runtimetest.Run(t, newRuntime(t, name), append(more, lacks...)...) })
	}
}
