package rpc

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"github.com/containerd/errdefs"
)

const (
	// retryTime is how long Retry tries at most.
	retryTime = 10 * time.Second
	// retryFirst and retryLast bound the pauses between.
	retryFirst, retryLast = 2 * time.Millisecond, 100 * time.Millisecond
)

// Retry calls fn until it does not fail for somebody in the way (Aborted, or an error that calls
// itself Temporary), at most until ctx's deadline or ten seconds, and returns its last error: that
// one names who was in the way. fn must leave nothing behind when it fails so. The interceptor
// does this for unary calls; streaming ones call it around what begins an operation.
func Retry(ctx context.Context, fn func(context.Context) error) error {
	until := time.Now().Add(retryTime)
	if d, ok := ctx.Deadline(); ok && d.Before(until) {
		until = d
	}
	for pause := retryFirst; ; pause = min(2*pause, retryLast) {
		err := fn(ctx)
		if err == nil || !passing(err) {
			return err
		}
		wait := pause/2 + rand.N(pause) //nolint:gosec // it only keeps callers apart
		// leave the time to answer: an error that names the other is worth more than silence
		if time.Until(until) < 2*wait {
			return err
		}
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return err
		}
	}
}

// passing reports whether an error may go away by itself soon.
func passing(err error) bool {
	if errdefs.IsAborted(err) {
		return true
	}
	var t interface{ Temporary() bool }
	return errors.As(err, &t) && t.Temporary() && errdefs.IsResourceExhausted(err)
}
