// Package local is the volume backend "local": a volume is a directory on this host, and mounting binds it.
//
// Under its root:
//
//	<id>/volume.json   what Create was told; a directory without it is not ours
//	<id>/data/         the content
//	.new-<id>/         half made: swept when the backend starts
//	.gone-<random>/    deleted by name, being deleted in fact: finished when the backend starts
//
// Making and deleting are one rename each, so a crash leaves nothing that looks like a volume and is none.
package local

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/plugins"
	"github.com/gantryd/gantry/plugins/volume"
)

// Name is how the driver is asked for.
const Name = "local"

// Version is the driver's own.
const Version = "1.0"

const (
	newPrefix  = ".new-"
	gonePrefix = ".gone-"
	recordName = "volume.json"
	dataName   = "data"
	lockEvery  = 10 * time.Millisecond // how often we look whether the last process has let go of the root
)

var (
	_ volume.Backend = (*Driver)(nil)
	_ volume.Counter = (*Driver)(nil)
	_ plugins.Plugin = (*Driver)(nil)
)

// Driver implements volume.Backend, volume.Counter and plugins.Plugin.
type Driver struct {
	sweeping sync.WaitGroup
	stopped  context.Context //nolint:containedctx // of the sweeps; Close ends it
	stop     context.CancelCauseFunc

	mu     sync.Mutex // one change of names at a time; never held while content is deleted
	config plugins.Config
	root   *os.Root // nil before Configure and after Close
	lock   *os.File
}

// record is volume.json.
type record struct {
	ID      string            `json:"id"`
	Name    string            `json:"name"`
	Options map[string]string `json:"options,omitempty"`
}

// New returns a driver that has still to be configured.
func New() *Driver {
	d := &Driver{}
	d.stopped, d.stop = context.WithCancelCause(context.Background())
	return d
}

// Info says what this is.
func (d *Driver) Info(context.Context) (plugins.Info, error) {
	return plugins.Info{Family: plugins.Volume, Name: Name, Version: Version, Capabilities: []string{volume.Usage}}, nil
}

// Configure opens the root, waits until no other process has it, and goes on with what a crash left half done. It takes no
// options. The same configuration again is no error.
func (d *Driver) Configure(ctx context.Context, c plugins.Config) error {
	if err := c.Decode(&struct{}{}); err != nil {
		return fmt.Errorf("configure %s: %w", Name, err)
	}
	if !filepath.IsAbs(c.Root) {
		return fmt.Errorf("configure %s: root %q must be an absolute path: %w", Name, c.Root, errdefs.ErrInvalidArgument)
	}
	if done, err := d.configured(c); done || err != nil {
		return err
	}
	root, err := os.OpenRoot(c.Root)
	if err != nil {
		return fmt.Errorf("configure %s: %w", Name, err)
	}
	lock, err := lockRoot(ctx, c.Root)
	if err != nil {
		return fmt.Errorf("configure %s: %w", Name, errors.Join(err, root.Close()))
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.root, d.lock, d.config = root, lock, c
	entries, err := fs.ReadDir(root.FS(), ".")
	if err != nil {
		return fmt.Errorf("configure %s: %w", Name, err)
	}
	for _, e := range entries {
		if n := e.Name(); strings.HasPrefix(n, newPrefix) || strings.HasPrefix(n, gonePrefix) {
			d.sweep(root, n)
		}
	}
	return nil
}

// configured reports whether the driver has been configured like this, and refuses another configuration.
func (d *Driver) configured(c plugins.Config) (bool, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.root != nil && d.config.Root != c.Root {
		return false, fmt.Errorf("configure %s: it is configured already, for %s: %w", Name, d.config.Root, errdefs.ErrFailedPrecondition)
	}
	return d.root != nil, nil
}

// lockRoot keeps two processes from working in one root: the last daemon's may still be ending.
func lockRoot(ctx context.Context, root string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(root, ".lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	tick := time.NewTicker(lockEvery)
	defer tick.Stop()
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return f, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, errors.Join(fmt.Errorf("lock %s: %w", root, err), f.Close())
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil, errors.Join(fmt.Errorf("another process works in %s: %w", root, errdefs.ErrUnavailable), f.Close())
		}
	}
}

// Close lets go of the root, and of content that is still being deleted.
func (d *Driver) Close() error {
	d.mu.Lock()
	root, lock := d.root, d.lock
	d.root, d.lock = nil, nil
	d.mu.Unlock()
	d.stop(errors.New("the backend is closed"))
	d.sweeping.Wait()
	if root == nil {
		return nil
	}
	return errors.Join(root.Close(), lock.Close())
}

// sweep deletes what has no name any more. It may take long, so nobody waits for it.
func (d *Driver) sweep(root *os.Root, name string) {
	d.sweeping.Go(func() {
		if err := removeTree(d.stopped, root, name); err != nil && d.stopped.Err() == nil {
			slog.Warn("volume's content stays", "path", filepath.Join(root.Name(), name), "err", err.Error())
		}
	})
}

// removeTree is RemoveAll that can be ended between two files.
func removeTree(ctx context.Context, root *os.Root, name string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	f, err := root.Open(name)
	if err == nil {
		for {
			entries, rerr := f.ReadDir(256)
			for _, e := range entries {
				if e.IsDir() {
					err = errors.Join(err, removeTree(ctx, root, filepath.Join(name, e.Name())))
				} else if ctx.Err() == nil {
					err = errors.Join(err, ignoreGone(root.Remove(filepath.Join(name, e.Name()))))
				}
			}
			if rerr != nil || len(entries) == 0 || ctx.Err() != nil {
				break
			}
		}
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		return ignoreGone(err)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return ignoreGone(root.Remove(name))
}

func ignoreGone(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// opened is the root, once configured. d.mu is held.
func (d *Driver) opened() (*os.Root, error) {
	if d.root == nil {
		return nil, fmt.Errorf("driver %s has no configuration: %w", Name, errdefs.ErrUnavailable)
	}
	return d.root, nil
}

// turn is opened for who is about to change something. A call whose caller has gone must not act any more: it may have
// waited for the lock while a second try, and what came after it, went ahead. d.mu is held.
func (d *Driver) turn(ctx context.Context) (*os.Root, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	return d.opened()
}

// Create makes a volume.
func (d *Driver) Create(ctx context.Context, v volume.Volume) (volume.Created, error) {
	if err := volume.CheckID(v.ID); err != nil {
		return volume.Created{}, err
	}
	for o := range v.Options {
		return volume.Created{}, fmt.Errorf("create volume %s: the backend %s has no option %q: %w", v.Name, Name, o, errdefs.ErrInvalidArgument)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	root, err := d.turn(ctx)
	if err != nil {
		return volume.Created{}, fmt.Errorf("create volume %s: %w", v.Name, err)
	}
	switch r, err := read(root, v.ID); {
	case err == nil && !maps.Equal(r.Options, v.Options):
		return volume.Created{}, fmt.Errorf("create volume %s: it is there, with other options: %w", v.Name, errdefs.ErrAlreadyExists)
	case err == nil:
		return d.created(v.ID), nil
	case !errdefs.IsNotFound(err):
		return volume.Created{}, fmt.Errorf("create volume %s: %w", v.Name, err)
	}
	if err := place(root, record{ID: v.ID, Name: v.Name, Options: v.Options}); err != nil {
		return volume.Created{}, fmt.Errorf("create volume %s: %w", v.Name, err)
	}
	return d.created(v.ID), nil
}

func (d *Driver) created(id string) volume.Created {
	return volume.Created{Path: filepath.Join(d.config.Root, id, dataName)}
}

// place makes a volume beside its place, and moves it there when it is on the disk.
func place(root *os.Root, r record) error {
	tmp := newPrefix + r.ID
	raw, err := json.Marshal(r)
	if err != nil {
		return err
	}
	err = errors.Join(root.RemoveAll(tmp), root.Mkdir(tmp, 0o711), root.Mkdir(filepath.Join(tmp, dataName), 0o755))
	if err != nil {
		return err
	}
	err = root.Chmod(filepath.Join(tmp, dataName), 0o755) // whatever the umask is
	f, cerr := root.OpenFile(filepath.Join(tmp, recordName), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err = errors.Join(err, cerr); err != nil {
		return err
	}
	_, err = f.Write(raw)
	err = errors.Join(err, f.Sync(), f.Close(), syncDir(root, tmp))
	if err != nil {
		return err
	}
	return errors.Join(root.Rename(tmp, r.ID), syncDir(root, "."))
}

func syncDir(root *os.Root, name string) error {
	f, err := root.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// read says what is at id: a volume, nothing (NotFound), something that is not ours (FailedPrecondition), or a
// volume whose record cannot be read (DataLoss).
func read(root *os.Root, id string) (record, error) {
	raw, err := root.ReadFile(filepath.Join(id, recordName))
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := root.Lstat(id); err == nil {
			return record{}, fmt.Errorf("%s was not made by this backend: %w", filepath.Join(root.Name(), id), errdefs.ErrFailedPrecondition)
		}
		return record{}, fmt.Errorf("no such volume: %w", errdefs.ErrNotFound)
	} else if err != nil {
		return record{}, err
	}
	var r record
	dec := json.NewDecoder(bytes.NewReader(raw))
	if err := dec.Decode(&r); err != nil || r.ID != id {
		return record{}, fmt.Errorf("%s cannot be read: %w", filepath.Join(root.Name(), id, recordName), errdefs.ErrDataLoss)
	}
	return r, nil
}

// Delete destroys a volume. Its name is gone, durably, when Delete returns; its content follows.
func (d *Driver) Delete(ctx context.Context, v volume.Volume) error {
	if err := volume.CheckID(v.ID); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	root, err := d.turn(ctx)
	if err != nil {
		return fmt.Errorf("delete volume %s: %w", v.Name, err)
	}
	switch _, err := read(root, v.ID); {
	case errdefs.IsNotFound(err):
		return nil
	case err != nil && !errdefs.IsDataLoss(err): // what is lost may go
		return fmt.Errorf("delete volume %s: %w", v.Name, err)
	}
	gone := gonePrefix + rand.Text()
	if err := root.Rename(v.ID, gone); err != nil {
		return fmt.Errorf("delete volume %s: %w", v.Name, err)
	}
	if err := syncDir(root, "."); err != nil {
		return fmt.Errorf("delete volume %s: %w", v.Name, err)
	}
	d.sweep(root, gone)
	return nil
}

// Mount says how to bind the volume's directory. The backend keeps no account of users.
func (d *Driver) Mount(_ context.Context, v volume.Volume, _ string) (plugins.Mount, error) {
	if err := volume.CheckID(v.ID); err != nil {
		return plugins.Mount{}, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	root, err := d.opened()
	if err != nil {
		return plugins.Mount{}, err
	}
	if _, err := read(root, v.ID); err != nil {
		return plugins.Mount{}, fmt.Errorf("mount volume %s: %w", v.Name, err)
	}
	data := filepath.Join(v.ID, dataName)
	if st, err := root.Lstat(data); err != nil || !st.IsDir() {
		return plugins.Mount{}, fmt.Errorf("mount volume %s: %s is no directory: %w", v.Name, filepath.Join(d.config.Root, data), errdefs.ErrDataLoss)
	}
	return plugins.Mount{Type: "bind", Source: filepath.Join(d.config.Root, data), Options: []string{"rbind", "rw"}}, nil
}

// Unmount has nothing to undo.
func (d *Driver) Unmount(_ context.Context, v volume.Volume, _ string) error {
	return volume.CheckID(v.ID)
}

// All ranges over the volumes.
func (d *Driver) All(ctx context.Context) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		d.mu.Lock()
		root, err := d.opened()
		var entries []fs.DirEntry
		if err == nil {
			entries, err = fs.ReadDir(root.FS(), ".")
		}
		d.mu.Unlock()
		if err != nil {
			yield("", fmt.Errorf("list volumes: %w", err))
			return
		}
		for _, e := range entries {
			if ctx.Err() != nil {
				yield("", fmt.Errorf("list volumes: %w", context.Cause(ctx)))
				return
			}
			if !e.IsDir() || volume.CheckID(e.Name()) != nil {
				continue
			}
			if _, err := read(root, e.Name()); err != nil && !errdefs.IsDataLoss(err) {
				continue // not ours, or gone meanwhile
			}
			if !yield(e.Name(), nil) {
				return
			}
		}
	}
}

// Usage counts what the content takes on the disk, a hard link once.
func (d *Driver) Usage(ctx context.Context, v volume.Volume) (volume.Space, error) {
	if err := volume.CheckID(v.ID); err != nil {
		return volume.Space{}, err
	}
	d.mu.Lock()
	root, err := d.opened()
	if err == nil {
		_, err = read(root, v.ID)
	}
	d.mu.Unlock()
	if err != nil {
		return volume.Space{}, fmt.Errorf("count volume %s: %w", v.Name, err)
	}
	type inode struct{ dev, ino uint64 }
	seen := map[inode]struct{}{}
	var out volume.Space
	err = fs.WalkDir(root.FS(), v.ID+"/"+dataName, func(path string, _ fs.DirEntry, err error) error {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			return ignoreGone(err) // who uses it may change it meanwhile
		}
		var st unix.Stat_t
		if err := unix.Lstat(filepath.Join(root.Name(), path), &st); err != nil {
			return ignoreGone(err)
		}
		if k := (inode{st.Dev, st.Ino}); st.Nlink < 2 || st.Mode&unix.S_IFMT == unix.S_IFDIR {
			out.Bytes, out.Inodes = out.Bytes+st.Blocks*512, out.Inodes+1
		} else if _, ok := seen[k]; !ok {
			seen[k] = struct{}{}
			out.Bytes, out.Inodes = out.Bytes+st.Blocks*512, out.Inodes+1
		}
		return nil
	})
	if err != nil {
		return volume.Space{}, fmt.Errorf("count volume %s: %w", v.Name, err)
	}
	return out, nil
}
