// Package volume is the contract between gantryd and a volume backend.
//
// Every method is idempotent by the volume's id and ends by the context's deadline.
package volume

import (
	"context"
	"iter"

	"github.com/gantryd/gantry/plugins"
)

// Volume is a volume as its backend sees it.
type Volume struct {
	ID, Name string
	Options  map[string]string
	Handle   plugins.Handle
}

// Backend holds storage that outlives containers.
type Backend interface {
	// Create makes a volume.
	Create(ctx context.Context, v Volume) (plugins.Handle, error)
	// Delete destroys it. Destroying what is not there succeeds, handle or no handle.
	Delete(ctx context.Context, v Volume) error
	// Mount makes v usable by user (a container id) and says how to mount it.
	Mount(ctx context.Context, v Volume, user string) (plugins.Mount, error)
	// Unmount ends that use.
	Unmount(ctx context.Context, v Volume, user string) error
	// All ranges over the ids of every volume the backend holds, known to the daemon or not.
	All(ctx context.Context) iter.Seq2[string, error]
}
