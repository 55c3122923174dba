package main

import (
	"context"
	"time"

	"github.com/gantryd/gantry/internal/sentence"
	shimv1 "github.com/gantryd/gantry/proto/gantry/shim/v1"
)

const (
	backoffFirst = 100 * time.Millisecond
	backoffMost  = time.Minute
	// backoffCalm is how long a run must last for the next one to follow quickly again.
	backoffCalm = 10 * time.Second
)

// again reports whether a run that ended with code is followed by another. restarts counts those
// that the policy began; stopped: the user wanted it to end.
func again(p *shimv1.Restart, code, restarts uint32, stopped bool) bool {
	switch {
	case p == nil || stopped:
		return false
	case !p.GetAlways() && (!p.GetOnFailure() || code == 0):
		return false
	}
	return p.GetMaxAttempts() == 0 || restarts < p.GetMaxAttempts()
}

// backoff is how long to wait before the next run; last is how long it was before the run that
// lasted for ran.
func backoff(last, ran time.Duration) time.Duration {
	if last == 0 || ran >= backoffCalm {
		return backoffFirst
	}
	return min(2*last, backoffMost)
}

// rerun begins the next run, because the policy says so.
func (s *shim) rerun() {
	s.op.Lock()
	defer s.op.Unlock()
	ctx, cancel := bounded(context.Background())
	defer cancel()
	if !s.waiting() {
		return
	}
	err := s.unmake(ctx)
	if err == nil {
		err = s.make(ctx)
	}
	s.mu.Lock()
	if s.phase != shimv1.Phase_PHASE_WAITING || s.stopped {
		x, message := s.exit, s.message
		if err == nil {
			s.init.drop()
		}
		s.finalLocked(x, message)
		s.mu.Unlock()
		return
	}
	s.run++
	s.restarts++
	s.mu.Unlock()
	if err == nil {
		_, err = s.launch(ctx)
	}
	if err != nil {
		s.log.Warn("the container could not be started again", "err", err)
		s.over(s.unstarted(err), sentence.Of(err))
		return
	}
	s.mu.Lock()
	stopped, sig := s.stopped, s.stopSig
	s.mu.Unlock()
	if stopped { // between the last look and the start
		_ = s.init.signal(sig)
	}
}

// waiting reports whether a next run is due. If the user stopped it meanwhile, there is none.
func (s *shim) waiting() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.phase != shimv1.Phase_PHASE_WAITING {
		return false
	}
	if s.stopped {
		s.finalLocked(s.exit, s.message)
		return false
	}
	s.timer = nil // too late to stop it
	return true
}
