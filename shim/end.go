package main

import (
	"context"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/gantryd/gantry/internal/bundle"
	shimv1 "github.com/gantryd/gantry/proto/gantry/shim/v1"
	typesv1 "github.com/gantryd/gantry/proto/gantry/types/v1"
	"github.com/gantryd/gantry/shim/runtime"
)

// reasonStart is why there was no process.
const reasonStart = "start-failed"

// unstarted is the exit of a run that came to nothing.
func (s *shim) unstarted(err error) *typesv1.Exit {
	x := &typesv1.Exit{Code: 128, Reason: reasonStart, At: timestamppb.Now()}
	switch code := runtime.ExitCode(err); code {
	case 126, 127:
		x.Code = uint32(code) //nolint:gosec // one of two
	}
	return x
}

// over is the end of a run: what it wrote is read, how it ended is recorded, and then it is told.
func (s *shim) over(x *typesv1.Exit, message string) {
	ctx, cancel := bounded(context.Background())
	defer cancel()
	s.mu.Lock()
	x.Run = s.run
	shared := s.shared
	s.mu.Unlock()
	if shared {
		if err := s.killAll(ctx, unix.SIGKILL); err != nil {
			s.log.Error("processes that outlived init were not killed", "err", err)
		}
	}
	s.afterExecs()
	s.init.drain(false)
	if s.init.perhapsOOM(x) && s.oomKills(ctx) > 0 {
		x.Reason = reasonOOM
	}
	s.record(x)
	ran := time.Duration(0)
	if began := s.init.since(); !began.IsZero() {
		ran = x.GetAt().AsTime().Sub(began)
	}
	s.init.drop()
	s.mu.Lock()
	defer s.mu.Unlock()
	if again(s.boot.GetRestart(), x.GetCode(), s.restarts, s.stopped) {
		s.delay = backoff(s.delay, ran)
		s.setLocked(func() { s.phase, s.exit, s.message = shimv1.Phase_PHASE_WAITING, x, message })
		s.timer = time.AfterFunc(s.delay, s.rerun)
		return
	}
	s.finalLocked(x, message)
}

// finalLocked is called with mu held, once, when init will not run again.
func (s *shim) finalLocked(x *typesv1.Exit, message string) {
	s.init.end(x)
	s.setLocked(func() { s.phase, s.exit, s.message = shimv1.Phase_PHASE_EXITED, x, message })
}

// record writes an exit where a power cut does not reach it. If that is not possible the exit is
// told nevertheless: a daemon that lives writes it down itself.
func (s *shim) record(x *typesv1.Exit) {
	err := s.exits.append(bundle.Exit{
		Code: x.GetCode(), At: x.GetAt().AsTime(), StartedAt: startedAt(x), Reason: x.GetReason(), Run: x.GetRun(), Signal: x.GetSignal(),
	})
	if err != nil {
		s.log.Error("an exit was not recorded", "run", x.GetRun(), "code", x.GetCode(), "err", err)
	}
}

// exits is the record of exits, opened when it can be.
type exits struct {
	dir bundle.Dir

	mu sync.Mutex
	f  *bundle.Exits
}

func (e *exits) open() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.openLocked()
}

func (e *exits) openLocked() (err error) {
	if e.f == nil {
		e.f, err = e.dir.OpenExits()
	}
	return err
}

func (e *exits) append(x bundle.Exit) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := e.openLocked(); err != nil {
		return err
	}
	return e.f.Append(x)
}

func startedAt(x *typesv1.Exit) time.Time {
	if x.GetStartedAt() == nil {
		return time.Time{}
	}
	return x.GetStartedAt().AsTime()
}

func (s *shim) oomKills(ctx context.Context) uint64 {
	c, err := s.made()
	if err != nil {
		return 0
	}
	st, err := c.Stats(ctx)
	if err != nil {
		s.log.Warn("whether memory ran out is not known", "err", err)
	}
	return st.OOMKills
}

// afterExecs waits, for a bounded time, until the ends of the other processes are told: they ended
// before, or with, init.
func (s *shim) afterExecs() {
	s.mu.Lock()
	var running []*process
	for _, p := range s.execs {
		if p.ended() == nil {
			running = append(running, p)
		}
	}
	s.mu.Unlock()
	t := time.NewTimer(drainTime)
	defer t.Stop()
	for _, p := range running {
		if p.since().IsZero() {
			s.abandon(p)
		}
		select {
		case <-p.done:
		case <-t.C:
			return
		}
	}
}
