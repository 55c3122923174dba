// Package volume is the contract between gantryd and a volume backend.
//
// Every method is idempotent by the volume's id and ends by the context's deadline.
package volume

import (
	"context"
	"fmt"
	"iter"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/plugins"
)

// Usage is the capability of a backend that is also a Counter.
const Usage = "usage"

// MaxID is the longest id, in bytes.
const MaxID = 128

// Volume is a volume as its backend sees it.
type Volume struct {
	ID, Name string
	Options  map[string]string
	Handle   plugins.Handle // none the first time, or after a crash: find the volume by its id
}

// Created is what Create made.
type Created struct {
	Handle plugins.Handle
	Path   string // of its content on this host, if it has one; for people
}

// Backend holds storage that outlives containers.
//
// Errors are of containerd/errdefs: InvalidArgument for an id that may not be ([CheckID]) and for options
// that mean nothing, NotFound from Mount for a volume that is not there, AlreadyExists from Create for one that is there
// with other options, DataLoss for one that is there but cannot be used.
type Backend interface {
	// Create makes a volume, durably. Called again with the same options it gives the same answer and
	// leaves the content alone.
	Create(ctx context.Context, v Volume) (Created, error)
	// Delete destroys it with its content. Destroying what is not there succeeds, handle or no handle. It is
	// refused with FailedPrecondition while somebody uses it, where the backend can tell.
	Delete(ctx context.Context, v Volume) error
	// Mount makes v usable by user (a container id) and says how to mount it; the mount's target is "".
	// Called again for the same user it gives the same answer.
	Mount(ctx context.Context, v Volume, user string) (plugins.Mount, error)
	// Unmount ends that use. Ending one that is not, or a use of what is not there, succeeds.
	Unmount(ctx context.Context, v Volume, user string) error
	// All ranges over the ids of every volume the backend holds, known to the daemon or not, and those half
	// made or half deleted. An error ends it.
	All(ctx context.Context) iter.Seq2[string, error]
}

// Space is what something takes on disk.
type Space struct{ Bytes, Inodes int64 }

// Counter is the capability "usage".
type Counter interface {
	// Usage counts what v takes, a hard link once. What is not there is NotFound.
	Usage(ctx context.Context, v Volume) (Space, error)
}

// CheckID says whether id may be the id of a volume: 1 to MaxID of a-z, A-Z, 0-9, '_', '.' and '-', the first a letter or
// digit. Ids are parts of paths. The error is of class InvalidArgument.
func CheckID(id string) error {
	if id == "" || len(id) > MaxID || strings.IndexFunc(id, func(r rune) bool { return !idRune(r) }) >= 0 || strings.ContainsRune("_.-", rune(id[0])) {
		return fmt.Errorf("volume id %.*q: want 1 to %d of a-z, A-Z, 0-9, '_', '.', '-', a letter or digit first: %w", MaxID, id, MaxID, errdefs.ErrInvalidArgument)
	}
	return nil
}

func idRune(r rune) bool {
	return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("_.-", r)
}
