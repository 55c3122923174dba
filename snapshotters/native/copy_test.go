package native

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/plugins"
	"github.com/gantryd/gantry/snapshotters"
)

// TestHoles: a file that takes no space takes none when it is copied.
func TestHoles(t *testing.T) {
	from, to := t.TempDir(), t.TempDir()
	f, err := os.Create(from + "/f")
	if err != nil {
		t.Fatal(err)
	}
	const size = 64 << 20
	if _, err := f.WriteAt([]byte("middle"), size/2); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Truncate(size), f.Close(), os.WriteFile(from+"/all hole", nil, 0o600), os.Truncate(from+"/all hole", size)); err != nil {
		t.Fatal(err)
	}
	if err := copyTree(t.Context(), from, to); err != nil {
		t.Fatal(err)
	}
	for _, n := range []string{"f", "all hole"} {
		var st unix.Stat_t
		if err := unix.Lstat(filepath.Join(to, n), &st); err != nil || st.Size != size || st.Blocks*512 > 1<<20 {
			t.Errorf("%s: size %d, blocks %d, %v", n, st.Size, st.Blocks, err)
		}
	}
	got, err := os.ReadFile(to + "/f")
	if err != nil {
		t.Fatal(err)
	}
	want := make([]byte, size)
	copy(want[size/2:], "middle")
	if !bytes.Equal(got, want) {
		t.Error("the content differs")
	}
}

// TestByHand copies as where the kernel copies nothing between two file systems.
func TestByHand(t *testing.T) {
	dir := t.TempDir()
	want := bytes.Repeat([]byte("0123456789"), 250_001) // more than one buffer, and a rest
	if err := os.WriteFile(dir+"/in", want, 0o600); err != nil {
		t.Fatal(err)
	}
	in, err := os.Open(dir + "/in")
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := os.Create(dir + "/out")
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	c := copier{ctx: t.Context(), buf: make([]byte, 1<<20)}
	for off := int64(0); off < int64(len(want)); {
		n, err := c.byHand(int(in.Fd()), int(out.Fd()), off, int64(len(want)))
		if err != nil || n == 0 {
			t.Fatal(n, err)
		}
		off += int64(n)
	}
	if got, err := os.ReadFile(dir + "/out"); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if n, err := c.byHand(int(in.Fd()), int(out.Fd()), int64(len(want)), int64(len(want))+1); n != 0 || err != nil {
		t.Errorf("past the end: %d, %v", n, err)
	}
}

// TestCancelled: a copy ends with its context, and leaves nothing.
func TestCancelled(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: owners need root")
	}
	d := New()
	if err := d.Configure(t.Context(), plugins.Config{Root: t.TempDir() + "/root"}); err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	m, err := d.Prepare(t.Context(), "k", "", snapshotters.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(m[0].Source+"/f", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := d.Commit(t.Context(), "k", "base", ""); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("never mind"))
	if _, err := d.Prepare(ctx, "c", "base", snapshotters.Options{}); !errors.Is(err, context.Canceled) {
		t.Errorf("prepare: %v", err)
	}
	if _, err := d.Mounts(t.Context(), "c"); !errdefs.IsNotFound(err) {
		t.Errorf("half a copy: %v", err)
	}
	if _, err := d.Prepare(t.Context(), "c", "base", snapshotters.Options{}); err != nil {
		t.Error(err)
	}
}
