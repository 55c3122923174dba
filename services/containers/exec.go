package containers

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/internal/ocispec"
	"github.com/gantryd/gantry/internal/rpc"
	"github.com/gantryd/gantry/internal/supervise"
	containersv1 "github.com/gantryd/gantry/proto/gantry/containers/v1"
	shimv1 "github.com/gantryd/gantry/proto/gantry/shim/v1"
	typesv1 "github.com/gantryd/gantry/proto/gantry/types/v1"
	containernames "github.com/gantryd/gantry/services/containers/names"
)

// Exec runs another process in a container and joins it until it has exited, unless it is
// detached. A client that leaves leaves the process running.
func (s *Service) Exec(ctx context.Context, start *containersv1.ExecStart, client Client) (err error) {
	c, k, err := s.resolve(ctx, start.GetRef())
	if err != nil {
		return wrap(err, "exec in container %s", start.GetRef())
	}
	defer func() { err = wrap(err, "exec in container %s", label(c)) }()
	x, err := s.newExec(c, k, start)
	if err != nil {
		return err
	}
	streams, err := x.start(ctx)
	if err != nil {
		return err
	}
	if err := client.Ready(); err != nil {
		x.abandon(ctx, streams)
		return err
	}
	if start.GetDetach() {
		x.abandon(ctx, streams)
		return client.Send(&typesv1.ProcessOutput{Output: &typesv1.ProcessOutput_StartedPid{StartedPid: x.pid}})
	}
	return x.join(ctx, streams, client)
}

// process is one beside a container's first.
type process struct {
	s    *Service
	c    *containersv1.Container
	k    *keeper
	shim supervise.Shim
	req  *shimv1.ExecRequest
	pid  uint32

	command string
}

func (s *Service) newExec(c *containersv1.Container, k *keeper, start *containersv1.ExecStart) (*process, error) {
	if c.GetStatus().GetPhase() != containersv1.Phase_PHASE_RUNNING && c.GetStatus().GetPhase() != containersv1.Phase_PHASE_STOPPING {
		return nil, notRunning(c)
	}
	words, err := ocispec.Exec(c, start, s.Capabilities)
	if err != nil {
		return nil, err
	}
	spec, err := json.Marshal(words)
	if err != nil {
		return nil, fmt.Errorf("process: %w", err)
	}
	shim, err := k.shimNow(c)
	if err != nil {
		return nil, err
	}
	user := start.GetUser()
	if user == "" {
		user = ocispec.User(c)
	}
	return &process{
		s: s, c: c, k: k, shim: shim, command: start.GetArgs()[0],
		req: &shimv1.ExecRequest{Process: "exec-" + containernames.ID()[:16], Spec: spec, User: user, OpenStdin: start.GetOpenStdin() && !start.GetDetach()},
	}, nil
}

// start gets the process going; its streams are joined before its first instruction.
func (x *process) start(ctx context.Context) (streams supervise.IO, err error) {
	short, cancel := context.WithTimeoutCause(ctx, shimTime, errShimTime)
	defer cancel()
	if _, err := x.shim.Exec(short, x.req); err != nil {
		return nil, blame(told(short, err), x.command)
	}
	defer func() {
		if err != nil {
			x.forget(ctx)
		}
	}()
	if streams, err = supervise.Whole(ctx, x.shim, x.req.GetProcess(), !x.req.GetOpenStdin()); err != nil {
		return nil, rpc.FromTTRPC(err)
	}
	resp, err := x.shim.Start(short, &shimv1.StartRequest{Process: x.req.GetProcess()})
	if err != nil {
		_ = streams.Close()
		return nil, blame(told(short, err), x.command)
	}
	x.pid = resp.GetPid()
	return streams, nil
}

// join passes everything on until the end, which is always an exit.
func (x *process) join(ctx context.Context, streams supervise.IO, client Client) error {
	defer streams.Close() //nolint:errcheck // it is only read from now on
	exited, err := x.s.pass(ctx, x.k, streams, client, x.req.GetOpenStdin())
	if exited {
		x.forget(ctx)
		return err
	}
	if err != nil { // the client is gone, the process is not
		x.linger()
		return err
	}
	exit, err := x.wait(ctx)
	if err != nil {
		return err
	}
	x.forget(ctx)
	return client.Send(&typesv1.ProcessOutput{Output: &typesv1.ProcessOutput_Exit{Exit: exit}})
}

// wait asks for the exit where the streams ended without one. A process dies with its container.
func (x *process) wait(ctx context.Context) (*typesv1.Exit, error) {
	resp, err := x.shim.Wait(ctx, &shimv1.WaitRequest{Process: x.req.GetProcess()})
	if err == nil {
		return resp.GetExit(), nil
	}
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if err = rpc.FromTTRPC(err); errdefs.IsUnavailable(err) || errdefs.IsNotFound(err) {
		return &typesv1.Exit{Code: 137, At: now(), Reason: reasonLost, Signal: 9}, nil
	}
	return nil, err
}

// abandon leaves a process to itself.
func (x *process) abandon(_ context.Context, streams supervise.IO) {
	_ = streams.Close()
	x.linger()
}

// linger waits, in the background, until a process that nobody watches has exited, and has the shim forget it.
func (x *process) linger() {
	_ = x.s.background(func() { // else the next daemon's shim forgets it
		if _, err := x.shim.Wait(x.s.ctx, &shimv1.WaitRequest{Process: x.req.GetProcess()}); err == nil {
			x.forget(x.s.ctx)
		}
	})
}

// forget has the shim forget a process. If it does not, the number of those it remembers is bounded.
func (x *process) forget(ctx context.Context) {
	ctx, cancel := rpc.Detached(ctx, shimTime)
	defer cancel()
	if _, err := x.shim.Delete(ctx, &shimv1.DeleteRequest{Process: x.req.GetProcess()}); err != nil {
		if err = rpc.FromTTRPC(err); !errdefs.IsNotFound(err) && !errdefs.IsUnavailable(err) {
			x.s.log.Warn("a shim keeps a process that has exited", "container", x.k.id, "process", x.req.GetProcess(), "err", err)
		}
	}
}
