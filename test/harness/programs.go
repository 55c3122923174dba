package harness

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
)

var (
	mu    sync.Mutex
	built = map[string]string{}
)

// Top is the folder of the module.
func Top() string {
	_, file, _, _ := runtime.Caller(0)
	return filepath.Join(filepath.Dir(file), "..", "..")
}

// Programs builds gantry, gantryd, gantry-shim and gantry-plugin with build tags, once in a
// run, and returns their directory. Built anew, so that no test ever runs yesterday's programs.
func Programs(t testing.TB, tags string) string {
	t.Helper()
	mu.Lock()
	defer mu.Unlock()
	if dir, ok := built[tags]; ok {
		return dir
	}
	dir, err := os.MkdirTemp("", "gantry-bin-")
	if err != nil {
		t.Fatal(err)
	}
	for name, pkg := range map[string]string{
		"gantry": "./ctl", "gantryd": "./daemon", "gantry-shim": "./shim", "gantry-plugin": "./plugins/builtin",
	} {
		cmd := exec.Command("go", "build", "-trimpath", "-tags", "grpcnotrace,"+tags, "-ldflags", "-s -w", "-o", filepath.Join(dir, name), pkg)
		cmd.Dir = Top()
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if name == "gantry-shim" { // as the Makefile has it
			cmd.Env = append(cmd.Env, "GOEXPERIMENT=nogreenteagc")
		}
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("build %s: %v\n%s", name, err, out)
		}
	}
	built[tags] = dir
	return dir
}

// Main runs a package's tests and removes what they built.
func Main(m *testing.M) int {
	defer func() {
		for _, dir := range built {
			_ = os.RemoveAll(dir)
		}
	}()
	return m.Run()
}
