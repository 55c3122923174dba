package supervise

import (
	"context"
	"errors"

	"github.com/containerd/errdefs"

	shimv1 "github.com/gantryd/gantry/proto/gantry/shim/v1"
)

// calls gives the errors of a ttrpc client their class, and its long polls a deadline.
type calls struct{ to shimv1.ShimService }

func call[Q, R any](ctx context.Context, fn func(context.Context, *Q) (*R, error), req *Q) (*R, error) {
	r, err := fn(ctx, req)
	if err != nil {
		return nil, classify(ctx, err)
	}
	return r, nil
}

// poll calls again and again, for a bounded time each, until there is an answer. What is asked must
// be a state, not a change: an answer that comes too late is asked for again.
func poll[Q, R any](ctx context.Context, fn func(context.Context, *Q) (*R, error), req *Q) (*R, error) {
	for {
		slice, cancel := context.WithTimeoutCause(ctx, sliceTime, context.DeadlineExceeded)
		r, err := call(slice, fn, req)
		cancel()
		switch {
		case err == nil:
			return r, nil
		case ctx.Err() != nil:
			return nil, context.Cause(ctx)
		case !errors.Is(err, context.DeadlineExceeded) && !errdefs.IsDeadlineExceeded(err):
			return nil, err
		}
	}
}

func (c calls) Hello(ctx context.Context, req *shimv1.HelloRequest) (*shimv1.HelloResponse, error) {
	return call(ctx, c.to.Hello, req)
}

func (c calls) Create(ctx context.Context, req *shimv1.CreateRequest) (*shimv1.CreateResponse, error) {
	return call(ctx, c.to.Create, req)
}

func (c calls) Start(ctx context.Context, req *shimv1.StartRequest) (*shimv1.StartResponse, error) {
	return call(ctx, c.to.Start, req)
}

func (c calls) Exec(ctx context.Context, req *shimv1.ExecRequest) (*shimv1.ExecResponse, error) {
	return call(ctx, c.to.Exec, req)
}

func (c calls) State(ctx context.Context, req *shimv1.StateRequest) (*shimv1.StateResponse, error) {
	return poll(ctx, c.to.State, req)
}

func (c calls) Wait(ctx context.Context, req *shimv1.WaitRequest) (*shimv1.WaitResponse, error) {
	return poll(ctx, c.to.Wait, req)
}

func (c calls) Kill(ctx context.Context, req *shimv1.KillRequest) (*shimv1.KillResponse, error) {
	return call(ctx, c.to.Kill, req)
}

func (c calls) Pause(ctx context.Context, req *shimv1.PauseRequest) (*shimv1.PauseResponse, error) {
	return call(ctx, c.to.Pause, req)
}

func (c calls) Resume(ctx context.Context, req *shimv1.ResumeRequest) (*shimv1.ResumeResponse, error) {
	return call(ctx, c.to.Resume, req)
}

func (c calls) Update(ctx context.Context, req *shimv1.UpdateRequest) (*shimv1.UpdateResponse, error) {
	return call(ctx, c.to.Update, req)
}

func (c calls) Resize(ctx context.Context, req *shimv1.ResizeRequest) (*shimv1.ResizeResponse, error) {
	return call(ctx, c.to.Resize, req)
}

func (c calls) Stats(ctx context.Context, req *shimv1.StatsRequest) (*shimv1.StatsResponse, error) {
	return call(ctx, c.to.Stats, req)
}

func (c calls) Delete(ctx context.Context, req *shimv1.DeleteRequest) (*shimv1.DeleteResponse, error) {
	return call(ctx, c.to.Delete, req)
}

// Shutdown succeeds as well where the connection ends instead of an answer: the shim's last answer and its end
// arrive together, and ttrpc's client takes whichever it sees first.
func (c calls) Shutdown(ctx context.Context, req *shimv1.ShutdownRequest) (*shimv1.ShutdownResponse, error) {
	resp, err := call(ctx, c.to.Shutdown, req)
	if errdefs.IsUnavailable(err) && ctx.Err() == nil {
		return &shimv1.ShutdownResponse{}, nil
	}
	return resp, err
}
