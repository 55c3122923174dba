// Package supervise starts shims, finds them again, and buries them.
//
//	supervise.go  what a shim is to the daemon
//	spawn.go      start one; slots.go start some ahead
//	find.go       recognise one: boot id, pid, start time, socket and nonce, or it is nobody
//	bury.go       end what is left of one; shm.go memory in its directory that others share
//	client.go     talk to one; io.go pass bytes to and from its processes
//
// A shim outlives the daemon. Whatever is known about one is in its bundle and in the kernel; this
// package remembers nothing but those that are for no container yet, which do not.
package supervise

import (
	"context"
	"log/slog"
	"os"
	"sync"

	"github.com/containerd/log"

	"github.com/gantryd/gantry/internal/frame"
	shimv1 "github.com/gantryd/gantry/proto/gantry/shim/v1"
	typesv1 "github.com/gantryd/gantry/proto/gantry/types/v1"
)

// Shim is one live shim. Its calls return errors with a class of errdefs: Unavailable when the
// connection is gone, a context's own error when that ended first, else what the shim said.
// State and Wait may be called without a deadline: should the caller leave, the shim is not left
// waiting for ever.
type Shim interface {
	shimv1.ShimService
	// IO joins a process's streams; it never slows the process down. With replay, what the shim
	// still remembers comes first, without a gap or a repetition. ctx bounds the joining only.
	IO(ctx context.Context, process string, replay bool) (IO, error)
	// Gone is closed when the connection is lost.
	Gone() <-chan struct{}
}

// IO is one client's place at a process's streams. Send waits while the process does not read. The
// last Recv before io.EOF is the exit; if the shim goes first, Recv is Unavailable. Send, Recv and
// Close may be called at the same time.
type IO interface {
	Send(in *typesv1.ProcessInput) error
	Recv() (*typesv1.ProcessOutput, error)
	Close() error
}

// Watch joins a process's streams as one who only looks: that it leaves is not the end of the
// process's input, even if that ends with its first client.
func Watch(ctx context.Context, s Shim, process string, replay bool) (IO, error) {
	if c, ok := s.(*client); ok {
		return c.join(ctx, frame.Greeting{Process: process, Replay: replay, NoStdin: true})
	}
	return s.IO(ctx, process, replay)
}

// Whole joins a process's streams as one who must not miss anything: the process waits while this
// client does not read. Join before the process is started, to get all of it.
func Whole(ctx context.Context, s Shim, process string, noStdin bool) (IO, error) {
	if c, ok := s.(*client); ok {
		return c.join(ctx, frame.Greeting{Process: process, Replay: true, NoStdin: noStdin, Whole: true})
	}
	return s.IO(ctx, process, true)
}

// Options is where a Supervisor finds things.
type Options struct {
	Binary   string       // gantry-shim
	Instance string       // the daemon's name for what is its own in the kernel: cgroups are /<instance>/<container id>
	Slots    int          // how many shims are kept started ahead once the first was needed
	Log      *slog.Logger // nil means the default
}

// Supervisor starts shims and finds them again.
type Supervisor struct {
	o     Options
	log   *slog.Logger
	slots slots

	mu     sync.Mutex
	binary *os.File // a read-only mount of Options.Binary
}

// New returns a Supervisor. Close it.
func New(o Options) *Supervisor {
	s := &Supervisor{o: o, log: o.Log}
	if s.log == nil {
		s.log = slog.Default()
	}
	s.slots.want, s.slots.start = o.Slots, s.startAhead
	s.slots.fail = func(err error) { s.log.Warn("containers start slower", "err", err) }
	// ttrpc's client writes "received message on inactive stream" to stderr when an answer comes
	// after its caller has left, which is what long polls do; all that matters it returns.
	_ = log.SetLevel(log.PanicLevel.String())
	return s
}
