package main

import (
	"time"

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
