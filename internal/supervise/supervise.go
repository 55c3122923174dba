// Package supervise starts shims, finds them again, and buries them.
package supervise

import (
	"context"
	"log/slog"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/internal/bundle"
	shimv1 "github.com/gantryd/gantry/proto/gantry/shim/v1"
	typesv1 "github.com/gantryd/gantry/proto/gantry/types/v1"
)

// Shim is one live shim.
type Shim interface {
	shimv1.ShimService
	// IO joins a process's streams; it never slows the process down.
	IO(ctx context.Context, process string, replay bool) (IO, error)
	// Gone is closed when the connection is lost.
	Gone() <-chan struct{}
}

// IO is one client's place at a process's streams. The last Recv before io.EOF is the exit.
type IO interface {
	Send(in *typesv1.ProcessInput) error
	Recv() (*typesv1.ProcessOutput, error)
	Close() error
}

// Options is where a Supervisor finds things.
type Options struct {
	Binary   string       // gantry-shim
	Instance string       // the daemon's name for what is its own in the kernel: cgroups are /<instance>/<container id>
	Log      *slog.Logger // nil means the default
}

// Supervisor starts shims and finds them again.
type Supervisor struct{ o Options }

// New returns a Supervisor.
func New(o Options) *Supervisor { return &Supervisor{o} }

// Spawn starts a shim in dir and waits for its Booted.
func (s *Supervisor) Spawn(ctx context.Context, dir bundle.Dir, boot *shimv1.Boot) (Shim, error) {
	return nil, errdefs.ErrNotImplemented
}

// Find reconnects to the shim of dir. It is errdefs.ErrNotFound if boot id, pid,
// start time, socket and nonce do not all agree; then nobody is signalled.
func (s *Supervisor) Find(ctx context.Context, dir bundle.Dir) (Shim, error) {
	return nil, errdefs.ErrNotImplemented
}

// Bury ends whatever is left of the container of dir and says how it ended.
func (s *Supervisor) Bury(ctx context.Context, dir bundle.Dir) (bundle.Exit, error) {
	return bundle.Exit{}, errdefs.ErrNotImplemented
}
