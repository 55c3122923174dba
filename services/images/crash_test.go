//go:build fault

package images

import (
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/gantryd/gantry/internal/fault"
	imagesv1 "github.com/gantryd/gantry/proto/gantry/images/v1"
)

// The environment of the process that is killed.
const (
	crashRoot   = "GANTRY_TEST_CRASH_ROOT"
	crashRef    = "GANTRY_TEST_CRASH_REF"
	crashDriver = "GANTRY_TEST_CRASH_DRIVER"
)

// crashChild is that process: it pulls an image, and removes it again.
func crashChild(t *testing.T) {
	t.Helper()
	w := &world{t: t, root: os.Getenv(crashRoot), users: map[string][]User{}}
	w.open()
	ref := os.Getenv(crashRef)
	if _, err := w.Pull(t.Context(), &imagesv1.PullRequest{Ref: ref, Snapshotter: os.Getenv(crashDriver)}, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Remove(t.Context(), ref, false); err != nil {
		t.Fatal(err)
	}
}

// TestCrash kills a daemon at every point of a pull and a removal, and finds everything in order in the next one.
func TestCrash(t *testing.T) {
	if os.Getenv(crashRoot) != "" {
		crashChild(t)
		return
	}
	if !fault.Enabled {
		t.Fatal("built without failpoints")
	}
	points := []string{
		"images.pull.claimed", "images.pull.prepared", "images.pull.written", "images.pull.unpacked", "images.remove.claimed", "images.blob.claimed",
		"snapshots.*", "meta.*",
	}
	for _, driver := range []string{"overlay", "native"} {
		for _, p := range points {
			for nth := 1; nth <= 40; nth++ {
				if !crash(t, driver, p, nth) {
					t.Logf("%s: killed %d times at %s", driver, nth-1, p)
					break // the journey does not pass it so often
				}
			}
		}
	}
}

// crash says whether the process came as far as to be killed.
func crash(t *testing.T, driver, point string, nth int) (killed bool) {
	t.Helper()
	w, f := newWorld(t, ""), newFake(t)
	f.image("app", layerOf(t, "a="+big(1, 300_000)), layerOf(t, "b=b", "l=>a"), layerOf(t, "c=c"))
	w.stop()
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestCrash$")
	cmd.Env = append(os.Environ(), crashRoot+"="+w.root, crashRef+"="+f.host+"/app", crashDriver+"="+driver, "GANTRY_FAULT="+point+"=kill:"+itoa(nth))
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if errors.As(err, &exit) && !strings.Contains(exit.Error(), "killed") || err != nil && exit == nil {
		t.Fatalf("%s %s:%d: %v: %s", driver, point, nth, err, out)
	}
	w.open()
	w.clean()
	img, _, perr := w.pull(f, "app", on(driver))
	if perr != nil {
		t.Fatalf("%s %s:%d: the next pull: %v", driver, point, nth, perr)
	}
	w.look(img, driver, func(root string) {
		if got := files(t, root); len(got) != 4 {
			t.Errorf("%s %s:%d: %q", driver, point, nth, got)
		}
	})
	w.clean()
	w.stop()
	return err != nil
}

func itoa(n int) string { return string([]byte{byte('0' + n/10), byte('0' + n%10)}) }
