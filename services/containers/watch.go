package containers

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/gantryd/gantry/internal/bundle"
	"github.com/gantryd/gantry/internal/rpc"
	"github.com/gantryd/gantry/internal/sentence"
	"github.com/gantryd/gantry/internal/supervise"
	containersv1 "github.com/gantryd/gantry/proto/gantry/containers/v1"
	shimv1 "github.com/gantryd/gantry/proto/gantry/shim/v1"
	typesv1 "github.com/gantryd/gantry/proto/gantry/types/v1"
	"github.com/gantryd/gantry/services/containers/admit"
)

// watch follows one shim's state. Its goroutine ends when the shim is final, is gone, or is let go.
type watch struct {
	shim   supervise.Shim
	states chan *shimv1.StateResponse // of one place: only the newest counts
	lost   chan struct{}              // closed when the connection is gone
	cancel context.CancelCauseFunc
	done   chan struct{}
}

var errLetGo = fmt.Errorf("nobody watches this shim any more: %w", context.Canceled)

// adopt makes shim the one that is watched and called.
func (k *keeper) adopt(shim supervise.Shim) {
	k.unwatch()
	ctx, cancel := context.WithCancelCause(k.s.ctx)
	k.w = &watch{shim: shim, states: make(chan *shimv1.StateResponse, 1), lost: make(chan struct{}), cancel: cancel, done: make(chan struct{})}
	go k.w.follow(ctx)
	k.show(shim)
}

func (k *keeper) show(shim supervise.Shim) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.shim = shim
}

// unwatch lets go of the shim, which lives on.
func (k *keeper) unwatch() {
	k.show(nil)
	if k.w != nil {
		k.w.cancel(errLetGo)
		<-k.w.done
		k.w = nil
	}
}

// stateTries is how often a shim whose connection stands may fail to answer.
const stateTries = 20

func (w *watch) follow(ctx context.Context) {
	defer close(w.done)
	var seen uint64
	for failed := 0; ctx.Err() == nil; {
		st, err := w.shim.State(ctx, &shimv1.StateRequest{Seen: seen})
		if err == nil {
			failed, seen = 0, st.GetChange()
			select { // what nobody has looked at yet is old
			case <-w.states:
			default:
			}
			w.states <- st
			if st.GetPhase() == shimv1.Phase_PHASE_EXITED {
				return
			}
			continue
		}
		if failed++; failed > stateTries {
			close(w.lost)
			return
		}
		select {
		case <-w.shim.Gone():
			close(w.lost)
			return
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
		}
	}
}

// watchOn waits for the next thing to happen to a container that runs.
func (k *keeper) watchOn(ctx context.Context, c *containersv1.Container) {
	if k.w == nil {
		k.find(ctx, c)
		return
	}
	select {
	case <-k.wake:
	case st := <-k.w.states:
		k.observe(ctx, st)
	case <-k.w.lost:
		k.find(ctx, c)
	case <-ctx.Done():
	}
}

// observe copies what a shim says into the status. It reports whether that was the end.
func (k *keeper) observe(ctx context.Context, st *shimv1.StateResponse) bool {
	if st.GetPhase() == shimv1.Phase_PHASE_EXITED {
		exit := st.GetExit()
		if exit == nil {
			exit = &typesv1.Exit{At: now(), Run: st.GetRun()}
		}
		k.finish(ctx, exit, st)
		return true
	}
	stopping := k.last().GetStatus().GetPhase() == containersv1.Phase_PHASE_STOPPING
	_ = k.update(func(is *containersv1.Status) {
		switch st.GetPhase() {
		case shimv1.Phase_PHASE_RUNNING:
			is.Phase = containersv1.Phase_PHASE_RUNNING
		case shimv1.Phase_PHASE_PAUSED:
			is.Phase = containersv1.Phase_PHASE_PAUSED
		case shimv1.Phase_PHASE_WAITING:
			is.Phase = containersv1.Phase_PHASE_RESTARTING
		default: // created, or being created: whoever does that says what came of it
		}
		if stopping {
			is.Phase = containersv1.Phase_PHASE_STOPPING
		}
		copyRun(is, st)
	})
	return false
}

// copyRun copies the counters of a shim into a status.
func copyRun(is *containersv1.Status, st *shimv1.StateResponse) {
	if st.GetRun() > is.GetRuns() {
		is.Restarts += uint32(st.GetRun() - is.GetRuns()) //nolint:gosec // both count processes
		is.Runs, is.StartedAt = st.GetRun(), st.GetStartedAt()
	}
	is.Pid = st.GetPid()
	if e := st.GetExit(); e != nil && e.GetRun() != is.GetExit().GetRun() {
		is.Exit = e
	}
	is.Message = st.GetMessage()
}

// update writes the status if change changes it. Most callers can do nothing about it if it cannot be written.
func (k *keeper) update(change func(is *containersv1.Status)) error {
	is := proto.CloneOf(k.last().GetStatus())
	if change(is); proto.Equal(is, k.last().GetStatus()) {
		return nil
	}
	err := k.status(change)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		k.s.log.Error("a status cannot be written", "container", k.id, "err", err)
	}
	return err
}

// find looks for the shim of a container that should have one.
func (k *keeper) find(ctx context.Context, c *containersv1.Container) {
	k.unwatch()
	shim, err := k.seek(ctx)
	switch {
	case ctx.Err() != nil:
	case err == nil:
		k.adopt(shim) //nolint:contextcheck // before anybody is told that it runs; it is watched for longer than this takes
		if c.GetStatus().GetPhase() == containersv1.Phase_PHASE_UNREACHABLE {
			_ = k.update(func(is *containersv1.Status) { is.Phase, is.Message = containersv1.Phase_PHASE_RUNNING, "" })
		}
	case errdefs.IsNotFound(err):
		k.bury(ctx, false)
	default:
		k.unreachable()
	}
}

func (k *keeper) unreachable() {
	_ = k.update(func(is *containersv1.Status) {
		is.Phase, is.Message = containersv1.Phase_PHASE_UNREACHABLE, "its shim does not answer"
	})
}

// seek asks for the shim until it answers, is certainly gone, or had time enough. One that is just
// dying refuses connections for a moment before it is dead.
func (k *keeper) seek(ctx context.Context) (supervise.Shim, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, k.s.times.find, fmt.Errorf("no answer within %v: %w", k.s.times.find, context.DeadlineExceeded))
	defer cancel()
	for pause := time.Millisecond; ; pause = min(2*pause, 100*time.Millisecond) {
		shim, err := k.s.Shims.Find(ctx, k.s.state(k.id))
		if err == nil || errdefs.IsNotFound(err) {
			return shim, err
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return nil, err
		}
	}
}

// bury ends what is left of a container whose shim is gone.
func (k *keeper) bury(ctx context.Context, rebooted bool) {
	ctx, cancel := rpc.Detached(ctx, releaseTime)
	defer cancel()
	k.unwatch()
	exit, err := k.s.Shims.Bury(ctx, k.s.state(k.id))
	if err != nil {
		_ = k.update(func(is *containersv1.Status) {
			is.Phase, is.Message = containersv1.Phase_PHASE_UNREACHABLE, "its shim is gone, and what it left cannot be ended: "+sentence.Of(err)
		})
		return
	}
	k.finish(ctx, k.ended(exit, rebooted), nil)
}

// ended is how a container ended whose shim is not there to say: as it is written, if it is.
func (k *keeper) ended(x bundle.Exit, rebooted bool) *typesv1.Exit {
	is := k.last().GetStatus()
	if !x.At.IsZero() && x.Reason != reasonLost && x.Run >= is.GetRuns() {
		return written(x)
	}
	e := &typesv1.Exit{Code: 137, At: now(), Reason: reasonLost, Run: is.GetRuns(), StartedAt: is.GetStartedAt(), Signal: 9}
	if rebooted {
		e.Code, e.Reason, e.Signal = 255, reasonRebooted, 0
	}
	return e
}

// written is an exit as a bundle keeps it.
func written(x bundle.Exit) *typesv1.Exit {
	e := &typesv1.Exit{Code: x.Code, At: timestamppb.New(x.At), Reason: x.Reason, Run: x.Run, Signal: x.Signal}
	if !x.StartedAt.IsZero() {
		e.StartedAt = timestamppb.New(x.StartedAt)
	}
	return e
}

// terminate stops a container: a signal, patience, SIGKILL, and at last the grave.
func (k *keeper) terminate(ctx context.Context, c *containersv1.Container) error {
	began := time.Now()
	if k.w == nil {
		k.find(ctx, c)
		if k.w == nil {
			return k.terminateBlind(ctx)
		}
	}
	if !k.answers(ctx) { // it hangs: signals would wait with it
		k.unwatch()
		k.unreachable()
		return k.terminateBlind(ctx)
	}
	paused := c.GetStatus().GetPhase() == containersv1.Phase_PHASE_PAUSED
	_ = k.update(func(is *containersv1.Status) { is.Phase = containersv1.Phase_PHASE_STOPPING })
	killed, sent := k.hurry() == 0, k.stopSignal(c)
	k.signal(ctx, killed, paused)
	timer := time.NewTimer(max(0, k.wait(killed)))
	defer timer.Stop()
	for {
		select {
		case st := <-k.w.states:
			if k.observe(ctx, st) {
				return nil
			}
		case <-k.w.lost:
			k.find(ctx, k.last())
			return nil
		case <-k.wake:
			if killed {
				continue
			}
			timer.Reset(max(0, k.hurry()-time.Since(began)))
			if other := k.stopSignal(c); other != sent { // somebody asks it in another way
				sent = other
				k.signal(ctx, false, paused)
			}
		case <-timer.C:
			if killed {
				k.s.log.Warn("a shim does not end its container", "container", k.id)
				k.bury(ctx, false)
				return nil
			}
			killed = true
			k.signal(ctx, true, paused)
			timer.Reset(killTime)
		case <-ctx.Done():
			return nil
		}
	}
}

// answers reports whether the shim does, in time. One whose connection is gone is somebody else's to find.
func (k *keeper) answers(ctx context.Context) bool {
	ctx, cancel := context.WithTimeoutCause(ctx, k.s.times.find, errShimTime)
	defer cancel()
	_, err := k.w.shim.Hello(ctx, &shimv1.HelloRequest{})
	return err == nil || !errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil
}

// wait is how long to wait after the first signal.
func (k *keeper) wait(killed bool) time.Duration {
	if killed {
		return killTime
	}
	return k.hurry()
}

// terminateBlind ends a container whose shim does not answer: after its grace it is buried, for
// there is nobody to pass on a signal.
func (k *keeper) terminateBlind(ctx context.Context) error {
	for began := time.Now(); alive(k.last()) && ctx.Err() == nil; {
		left := k.hurry() - time.Since(began)
		if left <= 0 {
			k.bury(ctx, false)
			return nil
		}
		k.pause(ctx, min(left, time.Second))
		if k.find(ctx, k.last()); k.w != nil {
			return nil // it answers after all
		}
	}
	return nil
}

// hurry is how long a container may take to stop.
func (k *keeper) hurry() time.Duration {
	c := k.last()
	k.mu.Lock()
	defer k.mu.Unlock()
	switch {
	case c.GetWanted() == containersv1.Wanted_WANTED_REMOVED:
		return 0
	case k.grace != nil:
		return *k.grace
	case c.GetSpec().GetStopGrace() != nil:
		return c.GetSpec().GetStopGrace().AsDuration()
	}
	return defaultGrace
}

// signal tells the process to end. What a shim does not take now, its state will show.
func (k *keeper) signal(ctx context.Context, kill, paused bool) {
	ctx, cancel := context.WithTimeoutCause(ctx, shimTime, errShimTime)
	defer cancel()
	req := &shimv1.KillRequest{Signal: k.stopSignal(k.last()), Last: true}
	if kill {
		req.Signal, req.All = 9, true
	}
	_, err := k.w.shim.Kill(ctx, req)
	if err == nil && paused {
		_, err = k.w.shim.Resume(ctx, &shimv1.ResumeRequest{})
	}
	if err = rpc.FromTTRPC(err); err != nil && !errdefs.IsNotFound(err) && !errdefs.IsFailedPrecondition(err) {
		k.s.log.Warn("a signal did not reach a container", "container", k.id, "signal", req.GetSignal(), "err", err)
	}
}

func (k *keeper) stopSignal(c *containersv1.Container) uint32 {
	k.mu.Lock()
	by := k.by
	k.mu.Unlock()
	if by != 0 {
		return by
	}
	sig, err := admit.StopSignal(c.GetSpec().GetStopSignal(), c.GetOrigin().GetConfig().GetStopSignal())
	if err != nil {
		return 15 // an image may name what there is not
	}
	return sig
}
