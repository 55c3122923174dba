package native

import (
	"os"
	osexec "os/exec"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

// TestUnsealedIsRefused: no runtime is made in a process whose executable a container could write.
func TestUnsealedIsRefused(t *testing.T) {
	if os.Getenv(unsealedTest) != "" {
		if _, err := New(); !errdefs.IsFailedPrecondition(err) {
			t.Errorf("made: %v", err)
		}
		return
	}
	cmd := osexec.Command(os.Getenv(testExe), "-test.run", "^TestUnsealedIsRefused$", "-test.v")
	cmd.Env = append(os.Environ(), unsealedTest+"=1")
	if raw, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(raw), "PASS") {
		t.Errorf("%v\n%s", err, raw)
	}
}
