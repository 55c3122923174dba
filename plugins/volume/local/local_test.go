package local

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/plugins"
	"github.com/gantryd/gantry/plugins/volume"
	"github.com/gantryd/gantry/plugins/volume/volumetest"
)

func open(t *testing.T, root string) *Driver {
	t.Helper()
	d := New()
	if err := d.Configure(t.Context(), plugins.Config{Root: root}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

func TestSuite(t *testing.T) {
	volumetest.Run(t, func(t *testing.T, root string) volume.Backend { return open(t, root) })
}

// names are what is in root, without the lock.
func names(t *testing.T, root string) []string {
	t.Helper()
	entries, err := os.ReadDir(root)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		if e.Name() != ".lock" {
			out = append(out, e.Name())
		}
	}
	return out
}

func TestCrashesAreFinished(t *testing.T) {
	root := t.TempDir()
	for _, p := range []string{".new-half/data", ".gone-ABC/data/deep/deeper", "ours/data"} {
		if err := os.MkdirAll(filepath.Join(root, p), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(root, "ours", recordName), []byte(`{"id":"ours","name":"x"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	d := open(t, root)
	d.sweeping.Wait()
	if got := names(t, root); !slices.Equal(got, []string{"ours"}) {
		t.Errorf("left: %q", got)
	}
}

func TestDeletedContentGoes(t *testing.T) {
	root := t.TempDir()
	d := open(t, root)
	c, err := d.Create(t.Context(), volume.Volume{ID: "a", Name: "a"})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(c.Path, "x", "y"), 0o700); err != nil {
		t.Fatal(err)
	}
	// A link in a volume must not lead a deletion out of it.
	outside := t.TempDir()
	if err := errors.Join(os.WriteFile(filepath.Join(outside, "kept"), nil, 0o600), os.Symlink(outside, filepath.Join(c.Path, "x", "out"))); err != nil {
		t.Fatal(err)
	}
	if err := d.Delete(t.Context(), volume.Volume{ID: "a", Name: "a"}); err != nil {
		t.Fatal(err)
	}
	d.sweeping.Wait()
	if got := names(t, root); len(got) != 0 {
		t.Errorf("left: %q", got)
	}
	if _, err := os.Stat(filepath.Join(outside, "kept")); err != nil {
		t.Error(err)
	}
}

func TestWhatIsNotOursStays(t *testing.T) {
	root := t.TempDir()
	d := open(t, root)
	if err := os.MkdirAll(filepath.Join(root, "theirs", "data"), 0o700); err != nil {
		t.Fatal(err)
	}
	v := volume.Volume{ID: "theirs", Name: "theirs"}
	if err := d.Delete(t.Context(), v); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("delete: got %v, want FailedPrecondition", err)
	}
	if _, err := d.Create(t.Context(), v); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("create: got %v, want FailedPrecondition", err)
	}
	for id := range d.All(t.Context()) {
		t.Errorf("all: got %q", id)
	}
	if _, err := os.Stat(filepath.Join(root, "theirs", "data")); err != nil {
		t.Error(err)
	}
}

func TestUnreadableRecord(t *testing.T) {
	root := t.TempDir()
	d := open(t, root)
	v := volume.Volume{ID: "a", Name: "a"}
	if _, err := d.Create(t.Context(), v); err != nil {
		t.Fatal(err)
	}
	for _, raw := range []string{"", "{", `{"id":"other"}`} {
		if err := os.WriteFile(filepath.Join(root, "a", recordName), []byte(raw), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := d.Mount(t.Context(), v, "u"); !errdefs.IsDataLoss(err) {
			t.Errorf("mount with record %q: got %v, want DataLoss", raw, err)
		}
	}
	if err := d.Delete(t.Context(), v); err != nil {
		t.Errorf("delete: %v", err)
	}
}

func TestOneProcessARoot(t *testing.T) {
	root := t.TempDir()
	first := open(t, root)
	ctx, cancel := context.WithTimeoutCause(t.Context(), 50*time.Millisecond, errors.New("enough"))
	defer cancel()
	if err := New().Configure(ctx, plugins.Config{Root: root}); !errdefs.IsUnavailable(err) {
		t.Errorf("got %v, want Unavailable", err)
	}
	waited := make(chan error, 1)
	second := New()
	go func() { waited <- second.Configure(t.Context(), plugins.Config{Root: root}) }()
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(<-waited, second.Close()); err != nil {
		t.Errorf("after the first has closed: %v", err)
	}
}

func TestConfigure(t *testing.T) {
	root := t.TempDir()
	d := open(t, root)
	if err := d.Configure(t.Context(), plugins.Config{Root: root}); err != nil {
		t.Errorf("again: %v", err)
	}
	if err := d.Configure(t.Context(), plugins.Config{Root: t.TempDir()}); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("elsewhere: got %v, want FailedPrecondition", err)
	}
	for _, c := range []plugins.Config{{Root: "x"}, {Root: root, Options: json.RawMessage(`{"no":1}`)}, {Root: root, Options: json.RawMessage(`[`)}} {
		if err := New().Configure(t.Context(), c); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%+v: got %v, want InvalidArgument", c, err)
		}
	}
}

func TestBeforeConfigure(t *testing.T) {
	if _, err := New().Create(t.Context(), volume.Volume{ID: "a", Name: "a"}); !errdefs.IsUnavailable(err) {
		t.Errorf("got %v, want Unavailable", err)
	}
}

// TestStaleCallsDoNothing: a call that waited for its turn until its caller had gone does not act.
func TestStaleCallsDoNothing(t *testing.T) {
	d := open(t, t.TempDir())
	v := volume.Volume{ID: "a", Name: "a"}
	ctx, cancel := context.WithCancelCause(t.Context())
	done := make(chan error, 1)
	d.mu.Lock()
	go func() {
		_, err := d.Create(ctx, v)
		done <- err
	}()
	cancel(errors.New("the connection broke"))
	d.mu.Unlock()
	if err := <-done; err == nil {
		t.Error("the volume was made")
	}
	for id := range d.All(t.Context()) {
		t.Errorf("left: %q", id)
	}
}
