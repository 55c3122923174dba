package rpc

import (
	"context"
	"fmt"
	"log/slog"
	"runtime/debug"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"

	containersv1 "github.com/gantryd/gantry/proto/gantry/containers/v1"
)

// deadline is what a unary call gets that brings none.
const deadline = 2 * time.Minute

// patient are the unary calls that may rightly take any time: each waits for a container.
var patient = []string{
	containersv1.ContainersService_Wait_FullMethodName,
	containersv1.ContainersService_Stop_FullMethodName,
	containersv1.ContainersService_Remove_FullMethodName,
}

// Options says how a server treats its calls. The zero value will do.
type Options struct {
	// Log is where panics and, at debug, requests go; nil means slog.Default.
	Log *slog.Logger
	// Deadline bounds a unary call that brings no deadline; 0 means two minutes.
	Deadline time.Duration
	// Patient are full names of methods that Deadline does not apply to, beside those of the
	// containers service that wait for a container.
	Patient []string
}

// server is the interceptors.
type server struct {
	log      *slog.Logger
	deadline time.Duration
	patient  map[string]bool
}

// ServerOptions are the interceptors of a server.
func ServerOptions(o Options) []grpc.ServerOption {
	s := &server{log: o.Log, deadline: o.Deadline, patient: map[string]bool{}}
	if s.log == nil {
		s.log = slog.Default()
	}
	if s.deadline == 0 {
		s.deadline = deadline
	}
	for _, m := range append(patient, o.Patient...) {
		s.patient[m] = true
	}
	return []grpc.ServerOption{grpc.ChainUnaryInterceptor(s.unary), grpc.ChainStreamInterceptor(s.stream)}
}

func (s *server) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (resp any, err error) {
	defer s.tell(ctx, info.FullMethod, time.Now(), &err)
	if _, ok := ctx.Deadline(); !ok && !s.patient[info.FullMethod] {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, s.deadline, fmt.Errorf("the call took more than %v and brought no deadline of its own: %w", s.deadline, context.DeadlineExceeded))
		defer cancel()
	}
	err = Retry(ctx, func(ctx context.Context) error {
		return s.safely(info.FullMethod, func() error {
			resp, err = handle(ctx, req)
			return err
		})
	})
	if err != nil {
		return nil, ToStatus(err)
	}
	return resp, nil
}

func (s *server) stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) (err error) {
	defer s.tell(ss.Context(), info.FullMethod, time.Now(), &err)
	return ToStatus(s.safely(info.FullMethod, func() error { return handle(srv, ss) }))
}

// safely turns a panic into an error. What was panicked with goes to the log only: it may hold
// anything.
func (s *server) safely(method string, call func() error) (err error) {
	defer func() {
		if r := recover(); r != nil {
			s.log.Error("call panicked", "method", method, "panic", r, "stack", string(debug.Stack()))
			err = fmt.Errorf("%s panicked, gantryd's log tells where; please report it: %w", method, errdefs.ErrInternal)
		}
	}()
	return call()
}

// tell logs a call by name and outcome, and nothing of what was in it: requests carry secrets.
func (s *server) tell(ctx context.Context, method string, began time.Time, err *error) {
	if !s.log.Enabled(ctx, slog.LevelDebug) {
		return
	}
	attrs := []any{"method", method, "took", time.Since(began), "code", status.Code(*err)}
	if *err != nil {
		attrs = append(attrs, "err", status.Convert(*err).Message())
	}
	s.log.DebugContext(ctx, "call", attrs...)
}
