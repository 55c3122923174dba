package containers

import (
	"context"
	"fmt"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"

	"github.com/gantryd/gantry/internal/meta"
	"github.com/gantryd/gantry/internal/rpc"
	containersv1 "github.com/gantryd/gantry/proto/gantry/containers/v1"
	shimv1 "github.com/gantryd/gantry/proto/gantry/shim/v1"
	typesv1 "github.com/gantryd/gantry/proto/gantry/types/v1"
	"github.com/gantryd/gantry/services/containers/admit"
)

// want changes what users want of a container, and tells its keeper. change says whether it did.
func (s *Service) want(k *keeper, change func(*containersv1.Container) (bool, error)) (*containersv1.Container, error) {
	var after *containersv1.Container
	// Mostly there is nothing to write. The record is asked, not the keeper, who hears of a change just after
	// it is made: a container that everybody has seen ended would be taken for one that runs.
	err := s.DB.View(func(tx *meta.Tx) error {
		c, err := s.t.containers.Get(tx, k.id)
		if err != nil {
			return err
		}
		if changed, err := change(proto.CloneOf(c)); err == nil && !changed {
			after = c
		}
		return nil
	})
	if err == nil && after != nil {
		return after, nil
	}
	err = s.DB.Update(func(tx *meta.Tx) error {
		c, err := s.t.containers.Get(tx, k.id)
		if err != nil {
			return err
		}
		changed, err := change(c)
		if after = c; err != nil || !changed {
			return err
		}
		return s.t.containers.Put(tx, k.id, c)
	})
	if err != nil {
		return nil, err
	}
	k.publish(after)
	k.wakeUp()
	return after, nil
}

// Start makes running the wanted state and waits until it is, or cannot be. A container that runs is left alone.
func (s *Service) Start(ctx context.Context, ref string) (c *containersv1.Container, err error) {
	c, k, err := s.resolve(ctx, ref)
	if err != nil {
		return nil, wrap(err, "start container %s", ref)
	}
	defer func() { err = wrap(err, "start container %s", label(k.last())) }()
	c, err = s.want(k, func(c *containersv1.Container) (bool, error) {
		switch {
		case c.GetWanted() == containersv1.Wanted_WANTED_REMOVED:
			return false, fmt.Errorf("it is being removed: %w", errdefs.ErrFailedPrecondition)
		case c.GetStatus().GetPhase() == containersv1.Phase_PHASE_PAUSED:
			return false, fmt.Errorf("it is paused: resume it instead: %w", errdefs.ErrFailedPrecondition)
		case c.GetStatus().GetPhase() == containersv1.Phase_PHASE_STOPPING || !alive(c):
			if c.GetWanted() == containersv1.Wanted_WANTED_RUNNING && c.GetStatus().GetRun() < c.GetWantedRun() {
				return false, nil // somebody started it just now
			}
			c.WantedRun++
		case c.GetWanted() == containersv1.Wanted_WANTED_RUNNING:
			return false, nil
		}
		c.Wanted = containersv1.Wanted_WANTED_RUNNING
		return true, nil
	})
	if err != nil {
		return nil, err
	}
	due := c.GetWantedRun()
	return k.until(ctx, func(c *containersv1.Container, gone bool) (bool, error) {
		is := c.GetStatus()
		switch {
		case is.GetRun() >= due && is.GetStartFailed():
			return false, k.failure(is)
		case is.GetRun() >= due && is.GetPhase() != containersv1.Phase_PHASE_STARTING && is.GetPhase() != containersv1.Phase_PHASE_UNREACHABLE:
			return true, nil
		case gone:
			return false, fmt.Errorf("it was removed meanwhile: %w", errdefs.ErrNotFound)
		case c.GetWanted() != containersv1.Wanted_WANTED_RUNNING:
			return false, fmt.Errorf("it was stopped meanwhile: %w", errdefs.ErrFailedPrecondition)
		}
		return false, nil
	})
}

// Stop makes stopped the wanted state: a signal, a grace period, then SIGKILL. One that does not
// run is left alone. signal "" and grace nil mean what the container says.
func (s *Service) Stop(ctx context.Context, ref, signal string, grace *time.Duration) (c *containersv1.Container, err error) {
	c, k, err := s.resolve(ctx, ref)
	if err != nil {
		return nil, wrap(err, "stop container %s", ref)
	}
	defer func() { err = wrap(err, "stop container %s", label(k.last())) }()
	if grace != nil && *grace < 0 {
		return nil, invalid("grace %v: it cannot be negative", *grace)
	}
	by := uint32(0)
	if signal != "" {
		if by, err = admit.Signal(signal); err != nil {
			return nil, err
		}
	}
	if alive(c) || c.GetWanted() == containersv1.Wanted_WANTED_RUNNING { // else it would be meant for the next run
		k.patience(grace, by)
	}
	c, err = s.want(k, func(c *containersv1.Container) (bool, error) {
		if c.GetWanted() != containersv1.Wanted_WANTED_RUNNING {
			return false, nil
		}
		c.Wanted = containersv1.Wanted_WANTED_STOPPED
		return true, nil
	})
	if err != nil {
		return nil, err
	}
	k.interrupt(errStopped)
	k.wakeUp()
	run := c.GetStatus().GetRun()
	return k.until(ctx, func(c *containersv1.Container, gone bool) (bool, error) {
		switch {
		case gone || !alive(c) || c.GetStatus().GetRun() > run:
			return true, nil
		case c.GetWanted() == containersv1.Wanted_WANTED_RUNNING && c.GetStatus().GetPhase() != containersv1.Phase_PHASE_STOPPING:
			return false, fmt.Errorf("it was started again meanwhile: %w", errdefs.ErrFailedPrecondition)
		}
		return false, nil
	})
}

var (
	errStopped = fmt.Errorf("it was stopped before it had started: %w", errdefs.ErrFailedPrecondition)
	errRemoved = fmt.Errorf("it was removed before it had started: %w", errdefs.ErrFailedPrecondition)
)

// Kill sends one signal and changes no wanted state. Whoever kills for good (SIGKILL, or the signal
// that stops it) does not want it restarted by its policy.
func (s *Service) Kill(ctx context.Context, ref, name string) (err error) {
	c, k, err := s.resolve(ctx, ref)
	if err != nil {
		return wrap(err, "kill container %s", ref)
	}
	defer func() { err = wrap(err, "kill container %s", label(c)) }()
	if name == "" {
		name = "KILL"
	}
	sig, err := admit.Signal(name)
	if err != nil {
		return err
	}
	switch c.GetStatus().GetPhase() {
	case containersv1.Phase_PHASE_RUNNING, containersv1.Phase_PHASE_PAUSED, containersv1.Phase_PHASE_STOPPING, containersv1.Phase_PHASE_RESTARTING:
	case containersv1.Phase_PHASE_UNREACHABLE:
		return fmt.Errorf("its shim does not answer; rm -f ends it all the same: %w", errdefs.ErrUnavailable)
	default:
		return notRunning(c)
	}
	shim, err := k.shimNow(c)
	if err != nil {
		return err
	}
	last := sig == uint32(syscall.SIGKILL) || sig == k.stopSignal(c)
	ctx, cancel := context.WithTimeoutCause(ctx, shimTime, errShimTime)
	defer cancel()
	if _, err := shim.Kill(ctx, &shimv1.KillRequest{Signal: sig, Last: last}); err != nil {
		if err = rpc.FromTTRPC(err); errdefs.IsNotFound(err) { // it ended meanwhile
			return notRunning(c)
		}
		return err
	}
	return nil
}

func notRunning(c *containersv1.Container) error {
	is := c.GetStatus()
	switch is.GetPhase() {
	case containersv1.Phase_PHASE_PAUSED:
		return fmt.Errorf("it is paused: resume it first: %w", errdefs.ErrFailedPrecondition)
	case containersv1.Phase_PHASE_EXITED:
		return fmt.Errorf("it is not running (it exited with %d): %w", is.GetExit().GetCode(), errdefs.ErrFailedPrecondition)
	case containersv1.Phase_PHASE_UNREACHABLE:
		return fmt.Errorf("its shim does not answer: %w", errdefs.ErrUnavailable)
	case containersv1.Phase_PHASE_RESTARTING:
		return fmt.Errorf("it is between two runs: %w", errdefs.ErrFailedPrecondition)
	default:
		return fmt.Errorf("it is not running: %w", errdefs.ErrFailedPrecondition)
	}
}

// Pause freezes every process.
func (s *Service) Pause(ctx context.Context, ref string) error {
	return s.freeze(ctx, ref, "pause container %s", containersv1.Phase_PHASE_RUNNING, containersv1.Phase_PHASE_PAUSED, func(ctx context.Context, k shimv1.ShimService) error {
		_, err := k.Pause(ctx, &shimv1.PauseRequest{})
		return err
	})
}

// Resume thaws them.
func (s *Service) Resume(ctx context.Context, ref string) error {
	return s.freeze(ctx, ref, "resume container %s", containersv1.Phase_PHASE_PAUSED, containersv1.Phase_PHASE_RUNNING, func(ctx context.Context, k shimv1.ShimService) error {
		_, err := k.Resume(ctx, &shimv1.ResumeRequest{})
		return err
	})
}

func (s *Service) freeze(ctx context.Context, ref, verb string, from, to containersv1.Phase, do func(context.Context, shimv1.ShimService) error) (err error) {
	c, k, err := s.resolve(ctx, ref)
	if err != nil {
		return wrap(err, verb, ref)
	}
	defer func() { err = wrap(err, verb, label(c)) }()
	switch is := c.GetStatus().GetPhase(); {
	case is == to && to == containersv1.Phase_PHASE_PAUSED:
		return fmt.Errorf("it is paused already: %w", errdefs.ErrFailedPrecondition)
	case is == to:
		return fmt.Errorf("it is not paused: %w", errdefs.ErrFailedPrecondition)
	case is != from:
		return notRunning(c)
	}
	shim, err := k.shimNow(c)
	if err != nil {
		return err
	}
	short, cancel := context.WithTimeoutCause(ctx, shimTime, errShimTime)
	defer cancel()
	if err := do(short, shim); err != nil {
		return rpc.FromTTRPC(err)
	}
	_, err = k.until(ctx, func(c *containersv1.Container, gone bool) (bool, error) {
		return gone || c.GetStatus().GetPhase() != from, nil
	})
	return err
}

// Wait returns when the container next exits, or at once if it has. Of one that is gone it knows for an hour, by its id.
func (s *Service) Wait(ctx context.Context, ref string, until containersv1.WaitRequest_Until) (*typesv1.Exit, error) {
	c, k, err := s.resolve(ctx, ref)
	if errdefs.IsNotFound(err) {
		if e, found := s.exitOf(ref); found {
			return e, nil
		}
	}
	if err != nil {
		return nil, wrap(err, "wait for container %s", ref)
	}
	before := c.GetStatus().GetExit()
	c, err = k.until(ctx, func(c *containersv1.Container, gone bool) (bool, error) {
		if gone {
			return true, nil
		}
		switch until {
		case containersv1.WaitRequest_UNTIL_REMOVED:
			return false, nil
		case containersv1.WaitRequest_UNTIL_NEXT_EXIT:
			e := c.GetStatus().GetExit()
			return e != nil && !proto.Equal(e, before), nil
		case containersv1.WaitRequest_UNTIL_UNSPECIFIED:
		}
		return !alive(c), nil
	})
	if err != nil {
		return nil, wrap(err, "wait for container %s", label(k.last()))
	}
	if e := c.GetStatus().GetExit(); e != nil {
		return e, nil
	}
	return &typesv1.Exit{}, nil // it never ran
}

// exitOf is how a container that is gone exited.
func (s *Service) exitOf(id string) (e *typesv1.Exit, found bool) {
	err := s.DB.View(func(tx *meta.Tx) (err error) {
		e, err = s.t.exits.Get(tx, id)
		return err
	})
	return e, err == nil
}

// Remove deletes a container and what only it used. One that runs is refused without force.
func (s *Service) Remove(ctx context.Context, ref string, force, volumes bool) (err error) {
	c, k, err := s.resolve(ctx, ref)
	if err != nil {
		return wrap(err, "remove container %s", ref)
	}
	defer func() { err = wrap(err, "remove container %s", label(c)) }()
	k.removal(volumes)
	_, err = s.want(k, func(c *containersv1.Container) (bool, error) {
		if c.GetWanted() == containersv1.Wanted_WANTED_REMOVED {
			return false, nil
		}
		if alive(c) && !force {
			return false, fmt.Errorf("it is running: stop it first (gantry stop %[1]s), or remove it by force (gantry rm -f %[1]s): %[2]w", label(c), errdefs.ErrFailedPrecondition)
		}
		c.Wanted = containersv1.Wanted_WANTED_REMOVED
		return true, nil
	})
	if errdefs.IsNotFound(err) {
		return nil // it went meanwhile
	}
	if err != nil {
		return err
	}
	attempt := k.attempts()
	k.interrupt(errRemoved)
	k.wakeUp()
	_, err = k.until(ctx, func(_ *containersv1.Container, gone bool) (bool, error) {
		if err := k.unremovable(attempt); err != nil && !gone {
			return false, err
		}
		return gone, nil
	})
	return err
}
