package containers

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	containersv1 "github.com/gantryd/gantry/proto/gantry/containers/v1"
)

// TestFullDisk fills the disk under a running container and lets it exit: once there is room, the
// exit is written and everything is let go of.
func TestFullDisk(t *testing.T) {
	root := t.TempDir()
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", "size=8m", "gantry-test", root).CombinedOutput(); err != nil {
		t.Skipf("no tmpfs can be mounted here: %v: %s", err, out)
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", root).CombinedOutput(); err != nil {
			t.Errorf("umount: %v: %s", err, out)
		}
	})
	w := newWorldIn(t, root)
	_, shim := w.run("web", nil)
	fill := filepath.Join(w.root, "fill")
	if err := os.WriteFile(fill, make([]byte, 16<<20), 0o600); err == nil {
		t.Fatal("the disk is not full")
	}
	shim.ends(6)
	time.Sleep(50 * time.Millisecond) // it may or may not find room in pages that it has
	if err := os.Remove(fill); err != nil {
		t.Fatal(err)
	}
	if c := w.eventually("web", inPhase(containersv1.Phase_PHASE_EXITED)); c.GetStatus().GetExit().GetCode() != 6 {
		t.Errorf("%v", c.GetStatus())
	}
	if _, err := w.Start(t.Context(), "web"); err != nil {
		t.Error(err)
	}
	if err := w.Service.Remove(t.Context(), "web", true, false); err != nil {
		t.Error(err)
	}
	w.clean()
}
