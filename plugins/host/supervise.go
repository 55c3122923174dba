package host

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/gantryd/gantry/plugins"
	systemv1 "github.com/gantryd/gantry/proto/gantry/system/v1"
)

const (
	firstBackoff = 100 * time.Millisecond
	lastBackoff  = time.Minute
	// flap is how long a process must live after it was ready for its death to be a first one again.
	flap = time.Second
	// flapPause bounds the pause before a process that was ready, and died soon, is started again: one that is
	// killed from outside is back before its callers lose patience, and one that crashes at each call does not
	// take a processor for itself.
	flapPause = 200 * time.Millisecond
)

// supervised is one plugin: a handle for callers, and the goroutine that keeps a process behind it.
type supervised struct {
	id    ID
	host  *Host
	log   *slog.Logger
	turns turns // one for each call under way

	kick     chan struct{} // Restart was asked for
	suspects chan *process // somebody waits long for an answer of it
	hung     chan *process // calls to it ran out of time, too many in a row

	// The host's mu guards these two.
	wanted, supervised bool

	mu        sync.Mutex
	state     systemv1.Plugin_State
	proc      *process      // while ready
	changed   chan struct{} // closed, and replaced, when anything here changes
	attempts  uint64        // to start a process
	err       error         // of the last one, until one succeeds
	info      *plugins.Info // what it last said of itself
	deaths    uint32
	timeouts  int // in a row
	isStopped bool
}

func newSupervised(h *Host, id ID) *supervised {
	return &supervised{
		id: id, host: h, log: h.o.Log.With("plugin", id.String()),
		turns: turns{limit: int(h.calls.Load()), room: h.o.Limits.Waiting},
		kick:  make(chan struct{}, 1), suspects: make(chan *process, 1), hung: make(chan *process, 1),
		changed: make(chan struct{}),
	}
}

// change changes the state under the lock and tells everybody who waits.
func (s *supervised) change(fn func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fn()
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *supervised) stop() {
	s.change(func() { s.isStopped, s.proc, s.state = true, nil, systemv1.Plugin_STATE_UNSPECIFIED })
}

// run keeps a process until ctx ends.
func (s *supervised) run(ctx context.Context) {
	fails, flaps := 0, 0
	for ctx.Err() == nil {
		s.change(func() {
			s.state = systemv1.Plugin_STATE_STARTING
			s.attempts++
		})
		p, err := s.start(ctx)
		switch {
		case ctx.Err() != nil && err != nil:
		case err != nil:
			fails++
			if s.rest(ctx, err, fails) {
				fails = 0
			}
		default:
			fails = 0
			if lived := s.keep(ctx, p); lived >= flap {
				flaps = 0
			} else if flaps++; flaps > 1 {
				s.pause(ctx, min(backoff(flaps-1), flapPause))
			}
		}
	}
	s.stop()
}

// start finds the process again that lingered, or launches one.
func (s *supervised) start(ctx context.Context) (*process, error) {
	began := time.Now()
	if p := s.reattach(ctx); p != nil {
		s.log.Info("plugin found again", "pid", p.pid, "version", p.info.Version, "took", time.Since(began))
		return p, nil
	}
	p, err := s.launch(ctx)
	if err != nil {
		return nil, err
	}
	s.log.Info("plugin ready", "pid", p.pid, "version", p.info.Version, "protocol", p.protocol, "took", time.Since(began))
	return p, nil
}

// backoff is the wait before start n+1 after n have failed: none, 0.1 s, and doubling to a minute.
func backoff(n int) time.Duration {
	d := firstBackoff
	for ; n > 2 && d < lastBackoff; n-- {
		d *= 2
	}
	switch {
	case n < 2:
		return 0
	case d > lastBackoff:
		return lastBackoff
	}
	return d
}

// rest waits until it is time to start again, and reports whether somebody asked for it.
func (s *supervised) rest(ctx context.Context, err error, fails int) (asked bool) {
	s.log.Warn("plugin does not start", "err", err.Error(), "attempts", fails)
	lasting := isPermanent(err)
	if !lasting && fails < s.host.o.Limits.Deaths {
		s.change(func() { s.state, s.err = systemv1.Plugin_STATE_BACKOFF, err })
		return s.pause(ctx, backoff(fails))
	}
	if !lasting {
		err = fmt.Errorf("it has failed to start %d times in a row: %w", fails, err)
	}
	s.log.Error("plugin has failed", "err", err.Error())
	s.change(func() { s.state, s.err = systemv1.Plugin_STATE_FAILED, err })
	select {
	case <-s.kick:
		return true
	case <-ctx.Done():
		return false
	}
}

// pause waits for d, or until somebody asks for a restart.
func (s *supervised) pause(ctx context.Context, d time.Duration) (asked bool) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-s.kick:
		return true
	case <-ctx.Done():
	}
	return false
}

// keep offers p to callers until it dies or must go, and returns how long it lived.
func (s *supervised) keep(ctx context.Context, p *process) time.Duration {
	s.change(func() {
		s.state, s.proc, s.err, s.timeouts = systemv1.Plugin_STATE_READY, p, nil, 0
		s.info = &p.info
	})
	listening, deaf := context.WithCancelCause(context.WithoutCancel(ctx))
	p.deaf = func() { deaf(errEnding) }
	p.draining.Go(func() { p.drain(listening) })
	why := s.watch(ctx, p)
	s.change(func() {
		s.proc = nil
		if s.state = systemv1.Plugin_STATE_BACKOFF; ctx.Err() != nil {
			s.isStopped = true
		}
	})
	switch why {
	case died:
		words := p.lastWords()
		s.log.Warn("plugin died", "pid", p.pid, "exit", words)
		s.change(func() {
			s.deaths++
			s.err = errors.New("the plugin died: " + words)
		})
		p.bury()
	case hangs:
		s.log.Warn("plugin hangs and is replaced", "pid", p.pid)
		s.change(func() {
			s.deaths++
			s.err = errors.New("the plugin hung and was killed")
		})
		p.kill()
		p.bury()
	case replaced:
		p.end()
		s.forget()
		return flap // asked for: nothing to be careful about
	case ending:
		if p.info.Lingers {
			p.leave()
			return flap
		}
		p.end()
	}
	if p.info.Lingers {
		s.forget()
	}
	return time.Since(p.startedAt)
}

// why a process is not kept.
type why int

const (
	died why = iota
	hangs
	replaced
	ending
)

// watch waits until something happens to p.
func (s *supervised) watch(ctx context.Context, p *process) why {
	for {
		select {
		case <-p.dead:
			return died
		case <-s.kick:
			return replaced
		case <-ctx.Done():
			return ending
		case q := <-s.hung:
			if q == p {
				return hangs
			}
		case q := <-s.suspects:
			if q == p && !s.alive(ctx, p) {
				return hangs
			}
		}
	}
}

// alive asks p who it is, which takes no time, unless it hangs as a whole.
func (s *supervised) alive(ctx context.Context, p *process) bool {
	ctx, cancel := context.WithTimeoutCause(ctx, s.host.o.Limits.Hang, errLimit)
	defer cancel()
	asked := make(chan error, 1)
	go func() {
		_, err := plugins.NewClient(p.conn, s.host.o.Version).Info(ctx)
		asked <- err
	}()
	select {
	case err := <-asked:
		return !errors.Is(err, context.DeadlineExceeded)
	case <-p.dead: // watch will see it
		cancel()
		<-asked
		return true
	}
}

// suspectLater has p asked whether it lives, every time a call has waited long, until the call stops it.
func (s *supervised) suspectLater(p *process) (stop func()) {
	every := s.host.o.Limits.Hang
	var done atomic.Bool
	var t atomic.Pointer[time.Timer]
	t.Store(time.AfterFunc(every, func() {
		if done.Load() {
			return
		}
		select {
		case s.suspects <- p:
		default:
		}
		if t := t.Load(); t != nil {
			t.Reset(every) // once too often, if the call ends now
		}
	}))
	return func() {
		done.Store(true)
		t.Load().Stop()
	}
}

// answered: the plugin does its work.
func (s *supervised) answered() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.timeouts = 0
}

// timedOut: a call to p ran out of time.
func (s *supervised) timedOut(p *process) {
	s.mu.Lock()
	s.timeouts++
	many := s.timeouts >= s.host.o.Limits.Hangs && s.proc == p
	s.mu.Unlock()
	if many {
		select {
		case s.hung <- p:
		default:
		}
	}
}

// ready waits for a process other than gone. Its errors have a status.
func (s *supervised) ready(ctx context.Context, gone *process) (*process, error) {
	for {
		s.mu.Lock()
		p, state, err, stopped, changed := s.proc, s.state, s.err, s.isStopped, s.changed
		s.mu.Unlock()
		switch {
		case stopped:
			return nil, status.Error(codes.Unavailable, errEnding.Error())
		case state == systemv1.Plugin_STATE_READY && p != nil && p != gone && !p.isDead():
			return p, nil
		case state == systemv1.Plugin_STATE_FAILED:
			return nil, status.Errorf(codes.Unavailable, "the plugin has failed: %s; mend it and run: gantry plugin restart %s", oneLine(err.Error()), s.id)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.Canceled) {
				return nil, status.FromContextError(ctx.Err()).Err()
			}
			if err == nil {
				err = errStarting
			}
			return nil, status.Error(codes.Unavailable, "the plugin is not up in time: "+oneLine(err.Error()))
		}
	}
}

// about waits for what the plugin says of itself.
func (s *supervised) about(ctx context.Context) (plugins.Info, error) {
	if i, ok := s.known(); ok {
		return i, nil
	}
	s.host.want(s)
	p, err := s.ready(ctx, nil)
	if err != nil {
		return plugins.Info{}, fmt.Errorf("driver %s: %w", s.id.Name, errgrpc.ToNative(err))
	}
	return p.info, nil
}

// known is what it last said.
func (s *supervised) known() (plugins.Info, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.info == nil {
		return plugins.Info{}, false
	}
	return *s.info, true
}

// replace asks for a new process and waits until it is ready.
func (s *supervised) replace(ctx context.Context) error {
	s.mu.Lock()
	before, supervised := s.attempts, s.state != systemv1.Plugin_STATE_UNSPECIFIED
	s.mu.Unlock()
	s.host.want(s)
	if supervised {
		select {
		case s.kick <- struct{}{}:
		default: // somebody else has asked, which does for both
		}
	}
	for {
		s.mu.Lock()
		state, err, attempts, stopped, changed := s.state, s.err, s.attempts, s.isStopped, s.changed
		s.mu.Unlock()
		switch {
		case stopped:
			return fmt.Errorf("%s: %w: %w", s.id, errEnding, errdefs.ErrUnavailable)
		case attempts > before && state == systemv1.Plugin_STATE_READY:
			return nil
		case attempts > before && (state == systemv1.Plugin_STATE_FAILED || state == systemv1.Plugin_STATE_BACKOFF):
			return fmt.Errorf("%s: %w: %w", s.id, err, errdefs.ErrUnavailable)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("%s: %w", s.id, context.Cause(ctx))
		}
	}
}

// describe says how the plugin does.
func (s *supervised) describe() *systemv1.Plugin {
	calls, _ := s.turns.counts()
	out := &systemv1.Plugin{Family: string(s.id.Family), Name: s.id.Name, Log: s.dirs().log, Calls: uint32(calls)} //nolint:gosec // bounded
	if x, err := s.host.find(s.id); err == nil {
		out.Path = x.Path
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	out.State, out.Crashes = s.state, s.deaths
	if s.info != nil {
		out.Version, out.Capabilities = s.info.Version, s.info.Capabilities
	}
	if s.err != nil {
		out.LastError = s.err.Error()
	}
	if p := s.proc; p != nil {
		out.Pid, out.Protocol, out.StartedAt = uint32(p.pid), uint32(p.protocol), timestamppb.New(p.startedAt) //nolint:gosec // a pid
	}
	return out
}
