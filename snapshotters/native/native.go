// Package native is the storage driver that works on anything: a snapshot is a whole copy of its parent,
// and mounting binds it. Where the file system shares blocks between files (xfs, btrfs) a copy costs only names.
package native

import (
	"bytes"
	"context"
	"fmt"
	"iter"
	"log/slog"
	"path/filepath"
	"sync"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/plugins"
	"github.com/gantryd/gantry/snapshotters"
	"github.com/gantryd/gantry/snapshotters/shelf"
)

// Name is how the driver is asked for.
const Name = "native"

// Version is the driver's own.
const Version = "1.0"

var (
	_ snapshotters.Snapshotter = (*Driver)(nil)
	_ plugins.Plugin           = (*Driver)(nil)
)

// Driver implements snapshotters.Snapshotter and plugins.Plugin.
type Driver struct {
	turn chan struct{} // held by who configures

	mu    sync.Mutex
	root  string
	shelf *shelf.Shelf
}

// New returns a driver that has still to be configured.
func New() *Driver { return &Driver{turn: make(chan struct{}, 1)} }

// Info says what the driver is.
func (d *Driver) Info(context.Context) (plugins.Info, error) {
	return plugins.Info{Family: plugins.Snapshotter, Name: Name, Version: Version}, nil
}

// Configure opens the root. It takes no options. The same configuration again is no error.
func (d *Driver) Configure(ctx context.Context, c plugins.Config) error {
	switch o := string(bytes.TrimSpace(c.Options)); {
	case o != "" && o != "{}" && o != "null":
		return fmt.Errorf("configure %s: it has no options: %w", Name, errdefs.ErrInvalidArgument)
	case !filepath.IsAbs(c.Root):
		return fmt.Errorf("configure %s: root %q must be an absolute path: %w", Name, c.Root, errdefs.ErrInvalidArgument)
	}
	select {
	case d.turn <- struct{}{}:
		defer func() { <-d.turn }()
	case <-ctx.Done():
		return fmt.Errorf("configure %s: another call does: %w", Name, shelf.Ended(ctx))
	}
	if done, err := d.configured(c.Root); done || err != nil {
		return err
	}
	s, err := shelf.Open(ctx, c.Root, Name, slog.Default())
	if err != nil {
		return fmt.Errorf("configure %s: %w", Name, err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.root, d.shelf = c.Root, s
	return nil
}

// configured says whether the driver serves this root already, and refuses another one.
func (d *Driver) configured(root string) (bool, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.shelf == nil:
		return false, nil
	case d.root == root:
		return true, nil
	}
	return false, fmt.Errorf("configure %s: it is configured already, for %s: %w", Name, d.root, errdefs.ErrFailedPrecondition)
}

// Close waits for calls under way and lets go of the root. Snapshots stay.
func (d *Driver) Close() error {
	d.mu.Lock()
	s := d.shelf
	d.shelf = nil
	d.mu.Unlock()
	if s == nil {
		return nil
	}
	return s.Close()
}

func (d *Driver) open() (*shelf.Shelf, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.shelf == nil {
		return nil, fmt.Errorf("driver %s has no configuration yet: %w", Name, errdefs.ErrUnavailable)
	}
	return d.shelf, nil
}

// Prepare makes a writable snapshot: a copy of its parent.
func (d *Driver) Prepare(ctx context.Context, key, parent string, o snapshotters.Options) ([]plugins.Mount, error) {
	m, err := d.make(ctx, shelf.Record{Kind: shelf.Active, Key: key, Parent: parent, Labels: o.Labels}, o)
	return m, shelf.Fail("prepare", key, err)
}

// View makes a read-only one: the parent itself.
func (d *Driver) View(ctx context.Context, key, parent string, o snapshotters.Options) ([]plugins.Mount, error) {
	m, err := d.make(ctx, shelf.Record{Kind: shelf.View, Key: key, Parent: parent, Labels: o.Labels}, snapshotters.Options{})
	return m, shelf.Fail("view", key, err)
}

func (d *Driver) make(ctx context.Context, r shelf.Record, o snapshotters.Options) ([]plugins.Mount, error) {
	s, err := d.open()
	if err != nil {
		return nil, err
	}
	if o.MaxBytes > 0 {
		return nil, fmt.Errorf("driver %s cannot limit bytes: %w", Name, errdefs.ErrNotImplemented)
	}
	fresh := false
	sn, parents, err := s.Make(ctx, r, o.Volatile, func(ctx context.Context, sn shelf.Snapshot, parents []shelf.Snapshot) error {
		fresh = true
		switch {
		case len(parents) == 0:
			return unix.Chmod(s.FS(sn), 0o755) // whatever the umask
		case sn.Kind == shelf.View:
			return nil
		}
		if err := copyTree(ctx, s.FS(parents[0]), s.FS(sn)); err != nil || sn.Volatile() {
			return err
		}
		return s.Sync(ctx, s.FS(sn))
	})
	if err != nil {
		return nil, err
	}
	if !fresh {
		if err := s.Alive(sn); err != nil {
			return nil, err
		}
	}
	return mounts(s, sn, parents), nil
}

func mounts(s *shelf.Shelf, sn shelf.Snapshot, parents []shelf.Snapshot) []plugins.Mount {
	dir, mode := s.FS(sn), "rw"
	if sn.Kind == shelf.View {
		mode = "ro"
		if len(parents) > 0 {
			dir = s.FS(parents[0])
		}
	}
	return []plugins.Mount{{Type: "bind", Source: dir, Options: []string{"bind", mode}}}
}

// Mounts repeats the answer of Prepare or View.
func (d *Driver) Mounts(_ context.Context, key string) ([]plugins.Mount, error) {
	m, err := d.repeat(key)
	return m, shelf.Fail("mount", key, err)
}

func (d *Driver) repeat(key string) ([]plugins.Mount, error) {
	s, err := d.open()
	if err != nil {
		return nil, err
	}
	if err := snapshotters.CheckKey(key); err != nil {
		return nil, err
	}
	sn, parents, err := s.Get(key)
	if err != nil {
		return nil, err
	}
	if sn.Kind == shelf.Committed {
		return nil, fmt.Errorf("it is committed: prepare or view another on it: %w", errdefs.ErrFailedPrecondition)
	}
	return mounts(s, sn, parents), s.Alive(sn)
}

// Commit freezes a writable snapshot.
func (d *Driver) Commit(ctx context.Context, key, name, parent string) error {
	s, err := d.open()
	if err == nil {
		err = s.Commit(ctx, key, name, parent, false, nil)
	}
	return shelf.Fail("commit", key, err)
}

// Remove forgets a snapshot.
func (d *Driver) Remove(ctx context.Context, key string) error {
	s, err := d.open()
	if err == nil {
		err = s.Remove(ctx, key)
	}
	return shelf.Fail("remove", key, err)
}

// Stat describes one. Of a copy all of it counts: nothing is known of what its parent shares with it.
func (d *Driver) Stat(ctx context.Context, key string) (snapshotters.Info, error) {
	s, err := d.open()
	if err != nil {
		return snapshotters.Info{}, shelf.Fail("stat", key, err)
	}
	i, err := s.Stat(ctx, key)
	return i, shelf.Fail("stat", key, err)
}

// All ranges over every snapshot.
func (d *Driver) All(ctx context.Context) iter.Seq2[snapshotters.Info, error] {
	return func(yield func(snapshotters.Info, error) bool) {
		s, err := d.open()
		if err != nil {
			yield(snapshotters.Info{}, fmt.Errorf("list snapshots: %w", err))
			return
		}
		s.Infos(ctx)(yield)
	}
}
