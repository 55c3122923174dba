// Package shelf keeps a storage driver's snapshots on disk: what there is, what stands on what, and
// where it lies. A driver adds how a directory is filled and mounted.
//
//	<root>/            0700: what containers own must not be reached around them
//	├── lock           held by the process that serves this root
//	├── format         "<driver> 1"
//	├── ids            ids below this number may have been used
//	├── s/<id>/        one snapshot
//	│   ├── record     what it is; a directory without one was never finished
//	│   ├── fs/        its files
//	│   └── work/      the driver's, while it is writable
//	└── trash/<id>/    removed, its space on the way back
//
// A snapshot is there if and only if its record is. Making one writes the record last, committing
// replaces the record, removing renames the directory away: each is one step of the file system, so a process may be killed
// anywhere and the next one finds the old state or the new. Ids say nothing, are short (the mount
// options of a hundred layers must fit in a page) and are never used twice, so that a stale path cannot come to
// mean another's files.
//
// The index in memory is read from the records by Open and never knows more than they do.
package shelf

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Names inside a root.
const (
	lockName   = "lock"
	formatName = "format"
	shelfName  = "s"
	trashName  = "trash"
)

// maxDepth bounds the walk from a snapshot to its lowest parent: a longer chain can only be a ring,
// and a ring only damage. The kernel stacks at most 500 layers (OVL_MAX_STACK).
const maxDepth = 4096

// lockPause is how often a lock that another process holds is tried again.
const lockPause = 10 * time.Millisecond

// Shelf is an open root. Its methods may be called at the same time.
type Shelf struct {
	root  string
	boot  string
	lock  *os.File
	shelf *os.File // the directory s, to make its entries durable
	log   *slog.Logger
	step  func(string) // tests die here

	ids     ids
	sweeper sweeper
	waits   sync.WaitGroup // syncs that outlived their callers

	mu      sync.Mutex
	closed  bool
	entries map[string]*entry        // by key
	busy    map[string]chan struct{} // keys being changed; closed when done
}

// entry is a snapshot and who stands on it.
type entry struct {
	Snapshot
	children int
	going    bool // being removed: nothing new may stand on it
}

// Open takes the root of the driver called name, makes it if need be, sweeps what a killed
// process left half made, and reads what there is. It waits, as long as ctx allows, for another
// process to let go of the root; then the error is Unavailable.
func Open(ctx context.Context, root, name string, log *slog.Logger) (*Shelf, error) {
	return open(ctx, root, name, log, func(string) {})
}

func open(ctx context.Context, root, name string, log *slog.Logger, step func(string)) (_ *Shelf, err error) {
	root, err = filepath.Abs(root)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", root, err)
	}
	s := &Shelf{root: root, log: log, step: step, entries: map[string]*entry{}, busy: map[string]chan struct{}{}}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.shut())
		}
	}()
	for _, d := range []string{root, s.path(shelfName), s.path(trashName)} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, fmt.Errorf("open %s: %w", root, err)
		}
	}
	if err := os.Chmod(root, 0o700); err != nil {
		return nil, fmt.Errorf("open %s: %w", root, err)
	}
	if err := s.take(ctx); err != nil {
		return nil, fmt.Errorf("open %s: %w", root, err)
	}
	if err := s.format(name); err != nil {
		return nil, fmt.Errorf("open %s: %w", root, err)
	}
	raw, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", root, err)
	}
	s.boot = strings.TrimSpace(string(raw))
	if s.shelf, err = os.Open(s.path(shelfName)); err != nil {
		return nil, fmt.Errorf("open %s: %w", root, err)
	}
	spread(s.shelf)
	if err := s.load(); err != nil { //nolint:contextcheck // opening ends with its own work, not with a caller
		return nil, fmt.Errorf("open %s: %w", root, err)
	}
	s.sweeper.start(s.path(trashName), log) //nolint:contextcheck // it outlives the call
	return s, nil
}

// spread asks ext4 to put every directory made in dir into another block group (chattr(1), T).
//
// By default they share their parent's, and ext4 passes over inodes that were deleted in the last minutes one by
// one: where thousands of snapshots come and go, making a directory there was measured to take 2 ms instead of 0.08.
// Other file systems refuse, and need not be asked.
func spread(dir *os.File) {
	const topDir = 0x00020000 // FS_TOPDIR_FL, linux/fs.h
	flags, err := unix.IoctlGetInt(int(dir.Fd()), unix.FS_IOC_GETFLAGS)
	if err != nil || flags&topDir != 0 {
		return
	}
	_ = unix.IoctlSetPointerInt(int(dir.Fd()), unix.FS_IOC_SETFLAGS, flags|topDir) // slower without, not wrong
}

// take locks the root.
func (s *Shelf) take(ctx context.Context) error {
	f, err := os.OpenFile(s.path(lockName), os.O_RDWR|os.O_CREATE|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			s.lock = f
			return nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			return errors.Join(fmt.Errorf("lock: %w", err), f.Close())
		}
		select {
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("another process serves this directory (%s): %w", context.Cause(ctx).Error(), errdefs.ErrUnavailable), f.Close())
		case <-time.After(lockPause):
		}
	}
}

// format writes, or compares, what this root is.
func (s *Shelf) format(name string) error {
	want := name + " 1\n"
	got, err := os.ReadFile(s.path(formatName))
	if errors.Is(err, fs.ErrNotExist) {
		return writeDurable(s.root, formatName, []byte(want), s.step)
	}
	if err == nil && string(got) != want {
		return fmt.Errorf("it was made as %q, this is %q: give this driver another directory: %w",
			strings.TrimSpace(string(got)), strings.TrimSpace(want), errdefs.ErrFailedPrecondition)
	}
	return err
}

// Close stops the sweeper, waits for what is under way, and lets go of the root.
// Snapshots stay as they are.
func (s *Shelf) Close() error {
	s.mu.Lock()
	s.closed = true
	wait := slices.Collect(maps.Values(s.busy))
	s.mu.Unlock()
	for _, c := range wait {
		<-c
	}
	s.waits.Wait()
	return s.shut()
}

func (s *Shelf) shut() error {
	s.sweeper.stop()
	var errs []error
	for _, f := range []*os.File{s.shelf, s.lock} { // the lock last
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	s.shelf, s.lock = nil, nil
	return errors.Join(errs...)
}

func (s *Shelf) path(elem ...string) string {
	return filepath.Join(append([]string{s.root}, elem...)...)
}

// Root is the directory everything lies in.
func (s *Shelf) Root() string { return s.root }

// FS is the directory of a snapshot's files.
func (s *Shelf) FS(sn Snapshot) string { return s.root + "/s/" + sn.ID + "/fs" }

// Work is the driver's own directory beside them; Commit throws it away.
func (s *Shelf) Work(sn Snapshot) string { return s.root + "/s/" + sn.ID + "/work" }

// Get returns a snapshot and its parents, the nearest first.
func (s *Shelf) Get(key string) (Snapshot, []Snapshot, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e, ok := s.entries[key]
	if !ok || e.going {
		return Snapshot{}, nil, fmt.Errorf("snapshot %q is not there: %w", key, errdefs.ErrNotFound)
	}
	parents, err := s.chain(e.Parent)
	if err != nil {
		return Snapshot{}, nil, fmt.Errorf("snapshot %q lost what it stands on: %s: %w", key, err.Error(), errdefs.ErrDataLoss)
	}
	return e.Snapshot, parents, nil
}

// All ranges over the snapshots, parents before children of the same age, by key.
func (s *Shelf) All() iter.Seq[Snapshot] {
	s.mu.Lock()
	all := make([]Snapshot, 0, len(s.entries))
	for _, e := range s.entries {
		if !e.going {
			all = append(all, e.Snapshot)
		}
	}
	s.mu.Unlock()
	slices.SortFunc(all, func(a, b Snapshot) int { return strings.Compare(a.Key, b.Key) })
	return slices.Values(all)
}

// chain returns parent and what it stands on. mu is held.
func (s *Shelf) chain(parent string) ([]Snapshot, error) {
	var out []Snapshot
	for parent != "" {
		e, ok := s.entries[parent]
		switch {
		case !ok || e.going:
			return nil, fmt.Errorf("parent %q is not there: %w", parent, errdefs.ErrNotFound)
		case e.Kind != Committed:
			return nil, fmt.Errorf("parent %q is not committed: %w", parent, errdefs.ErrFailedPrecondition)
		case len(out) == maxDepth:
			return nil, fmt.Errorf("parent %q stands on more than %d others: %w", out[0].Key, maxDepth, errdefs.ErrDataLoss)
		}
		out = append(out, e.Snapshot)
		parent = e.Parent
	}
	return out, nil
}

// hold waits until nobody else changes any of keys, and holds them until release is called. A call whose time is over, or
// whose caller has hung up, gets nothing even if nobody is in its way: the caller may have tried again, succeeded and gone on
// to remove what this call would make once more.
func (s *Shelf) hold(ctx context.Context, keys ...string) (release func(), err error) {
	mine := make(chan struct{})
	for {
		if ctx.Err() != nil {
			return nil, fmt.Errorf("change snapshot %.80q: %w", keys[0], Ended(ctx))
		}
		s.mu.Lock()
		if s.closed {
			s.mu.Unlock()
			return nil, fmt.Errorf("the driver is shutting down: %w", errdefs.ErrUnavailable)
		}
		var wait chan struct{}
		for _, k := range keys {
			if c, ok := s.busy[k]; ok {
				wait = c
			}
		}
		if wait == nil {
			for _, k := range keys {
				s.busy[k] = mine
			}
			s.mu.Unlock()
			return func() {
				s.mu.Lock()
				for _, k := range keys {
					delete(s.busy, k)
				}
				s.mu.Unlock()
				close(mine)
			}, nil
		}
		s.mu.Unlock()
		select {
		case <-wait:
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for another call about snapshot %.80q: %w", keys[0], Ended(ctx))
		}
	}
}

// lean adds n to the count of those who stand on key. mu is held.
func (s *Shelf) lean(key string, n int) {
	if e, ok := s.entries[key]; ok {
		e.children += n
	}
}

// Ended is why ctx is over: its cause, in a class that crosses the wire.
func Ended(ctx context.Context) error {
	err, cause := ctx.Err(), context.Cause(ctx)
	if errors.Is(cause, err) {
		return cause
	}
	return fmt.Errorf("%w: %w", cause, err)
}

// Fail says which verb failed on which snapshot, and gives an error of the kernel's a class.
func Fail(verb, key string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		err = fmt.Errorf("%w: %w", err, errdefs.ErrResourceExhausted)
	case errdefs.Resolve(err) == errdefs.ErrUnknown: //nolint:errorlint // Resolve answers with the class itself
		err = fmt.Errorf("%w: %w", err, errdefs.ErrInternal)
	}
	return fmt.Errorf("%s snapshot %.80q: %w", verb, key, err)
}
