package test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestRootIsAsked: without root most tests cannot run, and a run that left them out would be green.
func TestRootIsAsked(t *testing.T) {
	raw, err := os.ReadFile("../Makefile")
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "gantry-make") // unlike t.TempDir, where somebody else can be let in
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "Makefile"), raw, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, target := range []string{"test", "unit", "e2e", "crash", "vm", "bench"} {
		args := []string{"make", "--no-print-directory", "-C", dir, target}
		if os.Geteuid() == 0 {
			args = append([]string{"setpriv", "--reuid=65534", "--clear-groups"}, args...)
		}
		out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
		if first, _, _ := strings.Cut(string(out), "\n"); err == nil || !strings.Contains(first, `"make `+target+`"`) || !strings.Contains(first, "run it as root") {
			t.Errorf("make %s without root: %v\n%s", target, err, out)
		}
	}
}
