// Package snapshotters is the contract between gantryd and a storage driver.
//
// Every method is idempotent by key and ends by the context's deadline.
package snapshotters

import (
	"context"
	"iter"

	"github.com/gantryd/gantry/plugins"
)

// Rebase is the capability of a driver whose Commit takes the parent: layers are then
// prepared on nothing, unpacked side by side, and hung on one another when committed.
const Rebase = "rebase"

// Options is what may be asked of a new snapshot.
type Options struct {
	MaxBytes int64             // capability "quota"; 0: no limit
	Labels   map[string]string // remembered and given back by Stat and All
	Volatile bool              // may be lost with the machine's power: no fsync is owed
}

// Info describes a snapshot.
type Info struct {
	Key, Parent string
	Committed   bool
	ReadOnly    bool  // made by View
	Bytes       int64 // without its parents; -1: not known. All leaves it -1; Stat counts.
	Inodes      int64 // likewise
	Labels      map[string]string
}

// Snapshotter makes filesystems from filesystems.
//
// A key is the caller's, is unique among the snapshots of a driver whatever their kind, and may
// hold any byte but NUL and '/'. Errors are of containerd/errdefs: NotFound for a key or parent that is not there,
// FailedPrecondition for one of the wrong kind (a parent that is not committed, a
// commit of a view, a removal of what others stand on), AlreadyExists for a key that is held with
// other parameters.
type Snapshotter interface {
	// Prepare makes a writable snapshot of parent ("" is empty) and says how to mount it.
	// Called again with the same key and parent it gives the same answer.
	Prepare(ctx context.Context, key, parent string, o Options) ([]plugins.Mount, error)
	// View makes a read-only one.
	View(ctx context.Context, key, parent string, o Options) ([]plugins.Mount, error)
	// Mounts repeats the answer of Prepare or View. The first mount is of type overlay or bind
	// and its target is "".
	Mounts(ctx context.Context, key string) ([]plugins.Mount, error)
	// Commit freezes the writable snapshot key under name, durably: what was written to it
	// survives a power cut once Commit has returned. A driver with the capability Rebase hangs it on parent;
	// others refuse a parent that is not the one of Prepare. If name is committed
	// already, with that parent, Commit drops key and succeeds.
	Commit(ctx context.Context, key, name, parent string) error
	// Remove forgets a snapshot. Forgetting what is not there succeeds; it is refused
	// with FailedPrecondition while another stands on it.
	Remove(ctx context.Context, key string) error
	// Stat describes one.
	Stat(ctx context.Context, key string) (Info, error)
	// All ranges over every snapshot the driver holds, known to the daemon or not.
	All(ctx context.Context) iter.Seq2[Info, error]
}
