// Package snapshotters is the contract between gantryd and a storage driver, and its wire.
//
// Every method is idempotent by key and ends by the context's deadline. A call that finds its context ended does nothing: it
// may have waited for another, and its caller be further by now.
//
// # Layers and whiteouts
//
// Whoever unpacks a layer does it in one of two ways; the driver's capabilities say which.
//
// With [Rebase]: Prepare the layer on nothing (parent ""), which is answered by one writable
// directory, write the layer into it in overlay form, and hang it on its parent with Commit.
// Overlay form is what the kernel's overlayfs keeps in an upper directory
// (Documentation/filesystems/overlayfs.rst): a file removed from a parent is a character device
// 0/0 of its name, and a directory that hides its namesakes below bears the attribute
// trusted.overlay.opaque=y. A directory the unpacker had to make though the layer does not
// describe it (also the top one) bears the attribute [Inherit]; Commit gives it the owner, mode,
// times and attributes that directory has in the parent.
//
// Without it: Prepare the layer on its parent, mount what is answered, and apply the layer to the
// mounted filesystem: a whiteout removes.
package snapshotters

import (
	"context"
	"fmt"
	"iter"
	"strings"
	"unicode/utf8"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/plugins"
)

// Rebase is the capability of a driver whose Commit takes the parent: layers are then
// prepared on nothing, unpacked side by side in overlay form, and hung on one another when
// committed.
const Rebase = "rebase"

// Inherit is the extended attribute, of any value, of a directory in a layer that the layer itself does
// not describe. Only drivers with the capability [Rebase] look for it, and only in a
// snapshot prepared on nothing; Commit takes it off.
const Inherit = "trusted.gantry.inherit"

// MaxKey is the longest key, in bytes.
const MaxKey = 1024

// Options is what may be asked of a new snapshot. They take no part in whether two snapshots are the same.
type Options struct {
	MaxBytes int64             // capability "quota"; 0: no limit. Drivers without it answer NotImplemented
	Labels   map[string]string // remembered and given back by Stat and All, and kept by Commit
	// Volatile snapshots need not outlive the boot they were made in: no fsync is owed before they are
	// committed. In a later boot Mounts and Commit may answer DataLoss; Remove works.
	Volatile bool
}

// Info describes a snapshot.
type Info struct {
	Key, Parent string
	Committed   bool
	ReadOnly    bool  // made by View
	Bytes       int64 // on disk, without its parents, a hard link counted once; -1: not known. Stat counts; All says what is known without.
	Inodes      int64 // likewise
	Labels      map[string]string
}

// Snapshotter makes filesystems from filesystems.
//
// A key is the caller's and is unique among the snapshots of a driver whatever their kind;
// [CheckKey] says what it may be. Errors are of containerd/errdefs: InvalidArgument for a key that may
// not be, NotFound for a key or parent that is not there, FailedPrecondition for one of the
// wrong kind (a parent that is not committed, a commit of a view, a removal of what others stand
// on), AlreadyExists for a key that is held with another parent or kind, DataLoss for what is there but cannot be used.
type Snapshotter interface {
	// Prepare makes a writable snapshot of parent ("" is empty) and says how to mount it.
	// Called again with the same key and parent it gives the same answer.
	Prepare(ctx context.Context, key, parent string, o Options) ([]plugins.Mount, error)
	// View makes a read-only one. Of o it takes the labels.
	View(ctx context.Context, key, parent string, o Options) ([]plugins.Mount, error)
	// Mounts repeats the answer of Prepare or View; a committed snapshot has none and is refused with
	// FailedPrecondition. There is at least one mount; the first is of type overlay or bind and its target is "".
	// An overlay may have more lower directories than fit in the one page mount(2) takes: give them to fsconfig(2) one by one.
	Mounts(ctx context.Context, key string) ([]plugins.Mount, error)
	// Commit freezes the writable snapshot key under name, durably: what was written to it
	// survives a power cut once Commit has returned. It should not be mounted any more.
	// Parent "" keeps the parent of Prepare. A driver with the capability Rebase hangs what was prepared on
	// nothing on parent; anything else that is not the parent of Prepare is refused with FailedPrecondition. If name is committed
	// already, with that parent, Commit drops key, should it still be there, and succeeds.
	Commit(ctx context.Context, key, name, parent string) error
	// Remove forgets a snapshot. Forgetting what is not there succeeds; it is refused
	// with FailedPrecondition while another stands on it.
	Remove(ctx context.Context, key string) error
	// Stat describes one.
	Stat(ctx context.Context, key string) (Info, error)
	// All ranges over every snapshot the driver holds, known to the daemon or not. An error ends it.
	All(ctx context.Context) iter.Seq2[Info, error]
}

// CheckKey says whether key may be the key or name of a snapshot: 1 to MaxKey bytes of UTF-8
// without NUL or '/'. The error is of class InvalidArgument.
func CheckKey(key string) error {
	switch {
	case key == "":
		return fmt.Errorf("a snapshot's key is empty: %w", errdefs.ErrInvalidArgument)
	case len(key) > MaxKey:
		return fmt.Errorf("snapshot key %.32q… has %d bytes, at most %d are allowed: %w", key, len(key), MaxKey, errdefs.ErrInvalidArgument)
	case strings.ContainsAny(key, "\x00/"):
		return fmt.Errorf("snapshot key %q holds a NUL or a slash: %w", key, errdefs.ErrInvalidArgument)
	case !utf8.ValidString(key):
		return fmt.Errorf("snapshot key %q is not UTF-8: %w", key, errdefs.ErrInvalidArgument)
	}
	return nil
}
