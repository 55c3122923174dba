// Package overlay is the storage driver on the kernel's overlayfs: a snapshot is one directory of
// what differs from its parent, and mounting stacks them. Layers may be unpacked side by side and
// hung on one another when they are committed (capability "rebase").
//
// It mounts nothing itself but a probe that is attached nowhere: who asked for a snapshot mounts it where it is needed.
//
// Source: Documentation/filesystems/overlayfs.rst of the kernel, which also says what the options below are for.
package overlay

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/plugins"
	"github.com/gantryd/gantry/snapshotters"
	"github.com/gantryd/gantry/snapshotters/shelf"
)

// Name is how the driver is asked for.
const Name = "overlay"

// Version is the driver's own.
const Version = "1.0"

var (
	_ snapshotters.Snapshotter = (*Driver)(nil)
	_ plugins.Plugin           = (*Driver)(nil)
)

// Options is the driver's section of the configuration.
type Options struct {
	// Volatile false keeps the mount option of that name away from snapshots that ask for it, so that
	// unmounting them writes their files to the disk. Default true.
	Volatile *bool `json:"volatile"`
}

// Driver implements snapshotters.Snapshotter and plugins.Plugin.
type Driver struct {
	rebase bool          // in the initial user namespace, where trusted.* attributes can be written
	turn   chan struct{} // held by who configures

	mu     sync.Mutex
	config plugins.Config
	ready  *state
}

// state is what Configure found out. It does not change.
type state struct {
	shelf    *shelf.Shelf
	options  []string // of every overlay mount
	volatile bool     // the kernel takes "volatile", and it is wanted
}

// New returns a driver that has still to be configured.
func New() *Driver {
	return &Driver{rebase: initialUserNamespace(), turn: make(chan struct{}, 1)}
}

// Info says what the driver is. In a user namespace it cannot rebase: who unpacks there cannot write
// whiteouts in the form that this driver would mount.
func (d *Driver) Info(context.Context) (plugins.Info, error) {
	i := plugins.Info{Family: plugins.Snapshotter, Name: Name, Version: Version}
	if d.rebase {
		i.Capabilities = append(i.Capabilities, snapshotters.Rebase)
	}
	return i, nil
}

// Configure opens the root, and refuses one whose file system cannot carry an overlay. The same
// configuration again is no error.
func (d *Driver) Configure(ctx context.Context, c plugins.Config) error {
	var o Options
	if len(bytes.TrimSpace(c.Options)) > 0 {
		dec := json.NewDecoder(bytes.NewReader(c.Options))
		dec.DisallowUnknownFields()
		if err := dec.Decode(&o); err != nil {
			return fmt.Errorf("configure %s: options: %s: %w", Name, err.Error(), errdefs.ErrInvalidArgument)
		}
	}
	if !filepath.IsAbs(c.Root) || strings.ContainsAny(c.Root, `:,\`) {
		return fmt.Errorf("configure %s: root %q must be an absolute path without colon, comma and backslash, which separate mount options: %w",
			Name, c.Root, errdefs.ErrInvalidArgument)
	}
	select {
	case d.turn <- struct{}{}:
		defer func() { <-d.turn }()
	case <-ctx.Done():
		return fmt.Errorf("configure %s: another call does: %w", Name, shelf.Ended(ctx))
	}
	if done, err := d.configured(c); done || err != nil {
		return err
	}
	s, err := configure(ctx, c.Root, o)
	if err != nil {
		return fmt.Errorf("configure %s: %w", Name, err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.config, d.ready = c, s
	return nil
}

// configured says whether the driver has this configuration already, and refuses another one.
func (d *Driver) configured(c plugins.Config) (bool, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.ready == nil:
		return false, nil
	case d.config.Root == c.Root && bytes.Equal(d.config.Options, c.Options):
		return true, nil
	}
	return false, fmt.Errorf("configure %s: it is configured already, for %s: %w", Name, d.config.Root, errdefs.ErrFailedPrecondition)
}

func configure(ctx context.Context, root string, o Options) (*state, error) {
	sh, err := shelf.Open(ctx, root, Name, slog.Default())
	if err != nil {
		return nil, err
	}
	p, err := probe(root)
	if err != nil {
		return nil, errors.Join(err, sh.Close())
	}
	return &state{shelf: sh, options: p.options, volatile: p.volatile && (o.Volatile == nil || *o.Volatile)}, nil
}

// Close waits for calls under way and lets go of the root. Snapshots stay.
func (d *Driver) Close() error {
	d.mu.Lock()
	s := d.ready
	d.ready = nil
	d.mu.Unlock()
	if s == nil {
		return nil
	}
	return s.shelf.Close()
}

// state returns what Configure found.
func (d *Driver) state() (*state, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.ready == nil {
		return nil, fmt.Errorf("driver %s has no configuration yet: %w", Name, errdefs.ErrUnavailable)
	}
	return d.ready, nil
}

// Prepare makes a writable snapshot.
func (d *Driver) Prepare(ctx context.Context, key, parent string, o snapshotters.Options) ([]plugins.Mount, error) {
	m, err := d.make(ctx, shelf.Record{Kind: shelf.Active, Key: key, Parent: parent, Labels: o.Labels}, o)
	return m, shelf.Fail("prepare", key, err)
}

// View makes a read-only one.
func (d *Driver) View(ctx context.Context, key, parent string, o snapshotters.Options) ([]plugins.Mount, error) {
	m, err := d.make(ctx, shelf.Record{Kind: shelf.View, Key: key, Parent: parent, Labels: o.Labels}, snapshotters.Options{})
	return m, shelf.Fail("view", key, err)
}

func (d *Driver) make(ctx context.Context, r shelf.Record, o snapshotters.Options) ([]plugins.Mount, error) {
	s, err := d.state()
	if err != nil {
		return nil, err
	}
	if o.MaxBytes > 0 {
		return nil, fmt.Errorf("driver %s cannot limit bytes: %w", Name, errdefs.ErrNotImplemented)
	}
	fresh := false
	sn, parents, err := s.shelf.Make(ctx, r, o.Volatile, func(_ context.Context, sn shelf.Snapshot, parents []shelf.Snapshot) error {
		fresh = true
		return s.fill(sn, parents)
	})
	if err != nil {
		return nil, err
	}
	if !fresh {
		if err := s.remount(sn); err != nil {
			return nil, err
		}
	}
	return s.mounts(sn, parents), nil
}

// fill gives a new snapshot's top directory the looks of its parent's, which it will hide, and makes the
// directory overlayfs works in.
func (s *state) fill(sn shelf.Snapshot, parents []shelf.Snapshot) error {
	if len(parents) == 0 {
		return unix.Chmod(s.shelf.FS(sn), 0o755) // whatever the umask
	}
	if sn.Kind == shelf.View {
		return nil // its own directory is not mounted
	}
	if err := unix.Mkdir(s.shelf.Work(sn), 0o700); err != nil {
		return fmt.Errorf("mkdir %s: %w", s.shelf.Work(sn), err)
	}
	return copyLooks(s.shelf.FS(parents[0]), s.shelf.FS(sn))
}

// Mounts repeats the answer of Prepare or View.
func (d *Driver) Mounts(_ context.Context, key string) ([]plugins.Mount, error) {
	m, err := d.repeat(key)
	return m, shelf.Fail("mount", key, err)
}

func (d *Driver) repeat(key string) ([]plugins.Mount, error) {
	s, err := d.state()
	if err != nil {
		return nil, err
	}
	if err := snapshotters.CheckKey(key); err != nil {
		return nil, err
	}
	sn, parents, err := s.shelf.Get(key)
	if err != nil {
		return nil, err
	}
	if sn.Kind == shelf.Committed {
		return nil, fmt.Errorf("it is committed: prepare or view another on it: %w", errdefs.ErrFailedPrecondition)
	}
	if err := s.remount(sn); err != nil {
		return nil, err
	}
	return s.mounts(sn, parents), nil
}

// remount makes a snapshot that may have been mounted before fit to be mounted again.
//
// A volatile mount leaves a mark, work/work/incompat/volatile, so that what a power cut spoiled is
// not taken for whole; the kernel refuses to mount while it is there. Within one boot nothing was
// spoiled; after it Alive refuses.
func (s *state) remount(sn shelf.Snapshot) error {
	if !sn.Volatile() {
		return nil
	}
	if err := s.shelf.Alive(sn); err != nil {
		return err
	}
	return os.RemoveAll(s.shelf.Work(sn) + "/work/incompat/volatile")
}

// mounts says how to mount sn on parents.
func (s *state) mounts(sn shelf.Snapshot, parents []shelf.Snapshot) []plugins.Mount {
	mode := "rw"
	if sn.Kind == shelf.View {
		mode = "ro"
	}
	switch {
	case len(parents) == 0:
		return []plugins.Mount{{Type: "bind", Source: s.shelf.FS(sn), Options: []string{"bind", mode}}}
	case sn.Kind == shelf.View && len(parents) == 1:
		return []plugins.Mount{{Type: "bind", Source: s.shelf.FS(parents[0]), Options: []string{"bind", mode}}}
	}
	var lower strings.Builder
	for i, p := range parents {
		if i == 0 {
			lower.WriteString("lowerdir=")
		} else {
			lower.WriteByte(':')
		}
		lower.WriteString(s.shelf.FS(p))
	}
	opts := append(make([]string, 0, 8), mode, lower.String())
	if sn.Kind == shelf.Active {
		opts = append(opts, "upperdir="+s.shelf.FS(sn), "workdir="+s.shelf.Work(sn))
		if sn.Volatile() && s.volatile {
			opts = append(opts, "volatile")
		}
	}
	return []plugins.Mount{{Type: "overlay", Source: "overlay", Options: slices.Concat(opts, s.options)}}
}

// Commit freezes a writable snapshot.
func (d *Driver) Commit(ctx context.Context, key, name, parent string) error {
	s, err := d.state()
	if err == nil {
		err = s.shelf.Commit(ctx, key, name, parent, d.rebase, s.settle)
	}
	return shelf.Fail("commit", key, err)
}

// settle makes a layer fit for its parents.
func (s *state) settle(ctx context.Context, sn shelf.Snapshot, parents []shelf.Snapshot) error {
	if sn.Parent != "" {
		return nil // written by overlayfs
	}
	below := make([]string, len(parents))
	for i, p := range parents {
		below[i] = s.shelf.FS(p)
	}
	return adapt(ctx, s.shelf.FS(sn), below)
}

// Remove forgets a snapshot.
func (d *Driver) Remove(ctx context.Context, key string) error {
	s, err := d.state()
	if err == nil {
		err = s.shelf.Remove(ctx, key)
	}
	return shelf.Fail("remove", key, err)
}

// Stat describes one.
func (d *Driver) Stat(ctx context.Context, key string) (snapshotters.Info, error) {
	s, err := d.state()
	if err != nil {
		return snapshotters.Info{}, shelf.Fail("stat", key, err)
	}
	i, err := s.shelf.Stat(ctx, key)
	return i, shelf.Fail("stat", key, err)
}

// All ranges over every snapshot.
func (d *Driver) All(ctx context.Context) iter.Seq2[snapshotters.Info, error] {
	return func(yield func(snapshotters.Info, error) bool) {
		s, err := d.state()
		if err != nil {
			yield(snapshotters.Info{}, fmt.Errorf("list snapshots: %w", err))
			return
		}
		s.shelf.Infos(ctx)(yield)
	}
}
