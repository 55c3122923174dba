package containers

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/internal/fault"
	"github.com/gantryd/gantry/internal/meta"
	"github.com/gantryd/gantry/internal/ocispec"
	"github.com/gantryd/gantry/internal/rpc"
	"github.com/gantryd/gantry/internal/supervise"
	containersv1 "github.com/gantryd/gantry/proto/gantry/containers/v1"
	shimv1 "github.com/gantryd/gantry/proto/gantry/shim/v1"
	storev1 "github.com/gantryd/gantry/proto/gantry/store/v1"
	typesv1 "github.com/gantryd/gantry/proto/gantry/types/v1"
)

// finish writes how a container ended, at once, for those who wait; then lets go of what the run
// held. st is the shim's last word, if it had one.
func (k *keeper) finish(ctx context.Context, exit *typesv1.Exit, st *shimv1.StateResponse) {
	var op *meta.Op
	forget := false
	write := func(is *containersv1.Status) {
		if st != nil {
			copyRun(is, st)
		}
		is.Phase, is.Pid, is.Exit, is.Message = containersv1.Phase_PHASE_EXITED, 0, exit, st.GetMessage()
		is.Ports, is.Addresses = nil, nil
	}
	var after *containersv1.Container
	err := k.s.DB.Update(func(tx *meta.Tx) (err error) {
		if after, err = k.put(tx, write); err != nil {
			return err
		}
		do, _ := Next(after)
		forget = do == Forget
		op, err = tx.Begin(releaseVerb(forget), k.drops(tx, after, forget, true)...)
		return err
	})
	k.held = true
	k.calm()
	if err == nil {
		k.publish(after)
		fault.Point("containers.finish.claimed")
		err = k.letGo(ctx, op, after, forget)
	} else if err = k.status(write); errdefs.IsNotFound(err) { // somebody is at it: the exit is written, the rest comes
		return
	} else if err != nil { // a full disk, say: the shim has written it down, and goes on saying so
		k.unwritten = func(ctx context.Context) { k.finish(ctx, exit, st) }
	}
	if err != nil && k.s.ctx.Err() == nil {
		k.s.log.Warn("an exit cannot be written, or what a container held cannot be let go of yet", "container", k.id, "err", err)
	}
}

func releaseVerb(forget bool) string {
	if forget {
		return "container.remove"
	}
	return "container.release"
}

// calm forgets the patience of the last stop.
func (k *keeper) calm() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.grace, k.by = nil, 0
}

// drops is what goes: with the run, and with the container. It is undone last first, so that the
// record goes last.
func (k *keeper) drops(tx *meta.Tx, c *containersv1.Container, forget, held bool) []*storev1.Claim {
	var claims []*storev1.Claim
	if forget {
		claims = append(claims, claim(meta.Drop, kindContainer, "", k.id), claim(meta.Drop, kindSnapshot, c.GetOrigin().GetSnapshotter(), k.id))
	} else {
		claims = append(claims, claim(meta.Use, kindContainer, "", k.id))
	}
	if held && ocispec.OwnNetwork(c.GetSpec()) {
		claims = append(append(claims, claim(meta.Drop, kindNetNS, "", k.id)), k.s.Networks.Drops(tx, k.id)...)
	}
	if held {
		claims = append(claims, claim(meta.Drop, kindShim, "", k.id))
	}
	if held || forget {
		claims = append(claims, k.s.Volumes.DropClaims(tx, c, forget)...)
	}
	return claims
}

// release lets go of what an ended run holds.
func (k *keeper) release(ctx context.Context, c *containersv1.Container) error {
	return k.drop(ctx, c, false)
}

// forget drops what the container holds, and the record.
func (k *keeper) forget(ctx context.Context, c *containersv1.Container) error {
	err := k.drop(ctx, c, true)
	k.tried(err)
	return err
}

func (k *keeper) drop(ctx context.Context, c *containersv1.Container, forget bool) error {
	var op *meta.Op
	short, cancel := k.s.waiting(ctx)
	defer cancel()
	if err := rpc.Retry(short, func(context.Context) error {
		return k.s.DB.Update(func(tx *meta.Tx) (err error) {
			op, err = tx.Begin(releaseVerb(forget), k.drops(tx, c, forget, k.held)...)
			return err
		})
	}); err != nil {
		return err
	}
	return k.letGo(ctx, op, c, forget)
}

// letGo drops what op claims. What fails is tried once more by the operation's undoing, and then by the journal.
func (k *keeper) letGo(ctx context.Context, op *meta.Op, c *containersv1.Container, forget bool) error {
	err := k.dropAll(ctx, op, c, forget)
	if !k.s.DB.Left(op.ID()) {
		k.held = false
	}
	if forget && !k.recorded() {
		k.over()
		return nil
	}
	return err
}

func (k *keeper) recorded() (has bool) {
	err := k.s.DB.View(func(tx *meta.Tx) error {
		has = k.s.t.containers.Has(tx, k.id)
		return nil
	})
	return has || err != nil
}

func (k *keeper) dropAll(ctx context.Context, op *meta.Op, c *containersv1.Container, forget bool) (err error) {
	ctx, cancel := rpc.Detached(ctx, releaseTime)
	defer cancel()
	defer func() { k.s.untidyIf(op, err) }()
	defer op.End(ctx, &err)
	var snapshot error
	var wg sync.WaitGroup
	if forget { // nobody is left who could write to it: all processes are dead, whether or not their shim is
		wg.Go(func() { snapshot = k.s.Snapshots.Remove(ctx, op, c.GetOrigin().GetSnapshotter(), k.id) })
	}
	err = k.dropRun(ctx, op, c)
	wg.Wait()
	if err = errors.Join(err, snapshot); err != nil {
		return err
	}
	fault.Point("containers.release.dropped")
	if !forget {
		return op.Commit(nil)
	}
	if hasVolumes(c) {
		if err := k.s.Volumes.Release(ctx, op, c, k.alsoVolumes() || c.GetSpec().GetRemoveOnExit()); err != nil {
			return err
		}
	}
	if err := os.RemoveAll(k.s.dir(k.id)); err != nil {
		return err
	}
	fault.Point("containers.remove.dropped")
	return op.Commit(func(tx *meta.Tx) error { return k.s.t.drop(tx, k.id, &k.s.exits) })
}

func (k *keeper) alsoVolumes() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.volumes
}

// dropRun ends the shim, and leaves networks and volumes meanwhile.
func (k *keeper) dropRun(ctx context.Context, op *meta.Op, c *containersv1.Container) error {
	if !k.held {
		return nil
	}
	var shim supervise.Shim
	if k.w != nil {
		shim = k.w.shim
	}
	k.unwatch()
	var errs [3]error
	var wg sync.WaitGroup
	wg.Go(func() { errs[0] = k.s.end(ctx, k.id, shim) })
	own := ocispec.OwnNetwork(c.GetSpec())
	if own {
		wg.Go(func() { errs[1] = k.s.Networks.Leave(ctx, op, c) })
	}
	if hasVolumes(c) {
		wg.Go(func() { errs[2] = k.s.Volumes.Unmount(ctx, op, c) })
	}
	wg.Wait()
	if err := errors.Join(errs[:]...); err != nil {
		return err
	}
	if own {
		return k.s.NetNS.Remove(k.id)
	}
	return nil
}

// end ends a shim whose container is over: kindly, or else by burying what is left.
func (s *Service) end(ctx context.Context, id string, shim supervise.Shim) error {
	if shim != nil {
		if err := shutdown(ctx, shim); err == nil {
			return supervise.DropState(s.state(id))
		}
	}
	_, err := s.Shims.Bury(ctx, s.state(id))
	return err
}

var errShutdown = fmt.Errorf("the shim did not end within %v: %w", shimTime, context.DeadlineExceeded)

func shutdown(ctx context.Context, shim supervise.Shim) error {
	ctx, cancel := context.WithTimeoutCause(ctx, shimTime, errShutdown)
	defer cancel()
	if _, err := shim.Delete(ctx, &shimv1.DeleteRequest{}); err != nil {
		return rpc.FromTTRPC(err)
	}
	if _, err := shim.Shutdown(ctx, &shimv1.ShutdownRequest{}); err != nil {
		return rpc.FromTTRPC(err)
	}
	select {
	case <-shim.Gone():
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// undoContainer takes back a container that was being made, and finishes removing one.
func (s *Service) undoContainer(_ context.Context, c *storev1.Claim) error {
	id := c.GetRef().GetKey()
	if err := os.RemoveAll(s.dir(id)); err != nil {
		return err
	}
	return s.DB.Update(func(tx *meta.Tx) error { return s.t.drop(tx, id, &s.exits) })
}

// undoShim ends a shim that should not be there, and everything in its container.
func (s *Service) undoShim(ctx context.Context, c *storev1.Claim) error {
	_, err := s.Shims.Bury(ctx, s.state(c.GetRef().GetKey()))
	return err
}

func (s *Service) undoNetNS(_ context.Context, c *storev1.Claim) error {
	return s.NetNS.Remove(c.GetRef().GetKey())
}
