package rpc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/ttrpc"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	"github.com/gantryd/gantry/internal/sentence"
	containersv1 "github.com/gantryd/gantry/proto/gantry/containers/v1"
	systemv1 "github.com/gantryd/gantry/proto/gantry/system/v1"
)

// answer is a server of two methods, unary and stream, that do what a test says.
type answer struct {
	systemv1.UnimplementedSystemServiceServer
	do func(ctx context.Context) error
}

func (a answer) Info(ctx context.Context, _ *systemv1.InfoRequest) (*systemv1.InfoResponse, error) {
	return &systemv1.InfoResponse{Version: "1"}, a.do(ctx)
}

func (a answer) Check(_ *systemv1.CheckRequest, s grpc.ServerStreamingServer[systemv1.CheckResponse]) error {
	if err := s.Send(&systemv1.CheckResponse{Subject: "first"}); err != nil {
		return err
	}
	return a.do(s.Context())
}

func serve(t *testing.T, o Options, do func(context.Context) error, dial ...grpc.DialOption) systemv1.SystemServiceClient {
	t.Helper()
	l := bufconn.Listen(1 << 16)
	s := grpc.NewServer(ServerOptions(o)...)
	systemv1.RegisterSystemServiceServer(s, answer{do: do})
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	cc, err := grpc.NewClient("passthrough:///x", append(dial, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cc.Close()
		s.Stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return systemv1.NewSystemServiceClient(cc)
}

// both makes a call by each method and returns the errors.
func both(t *testing.T, c systemv1.SystemServiceClient) map[string]error {
	t.Helper()
	_, unary := c.Info(t.Context(), &systemv1.InfoRequest{})
	s, err := c.Check(t.Context(), &systemv1.CheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if first, err := s.Recv(); err != nil || first.Subject != "first" {
		t.Fatalf("first answer %v, %v", first, err)
	}
	_, stream := s.Recv()
	if errors.Is(stream, io.EOF) {
		stream = nil
	}
	return map[string]error{"unary": unary, "stream": stream}
}

// TestClasses sends every class over the wire and back, and looks at it from both sides.
func TestClasses(t *testing.T) {
	for _, class := range []error{
		errdefs.ErrInvalidArgument, errdefs.ErrNotFound, errdefs.ErrAlreadyExists, errdefs.ErrPermissionDenied, errdefs.ErrResourceExhausted,
		errdefs.ErrFailedPrecondition, errdefs.ErrOutOfRange, errdefs.ErrNotImplemented, errdefs.ErrUnavailable,
		errdefs.ErrDataLoss, errdefs.ErrUnauthenticated, errdefs.ErrInternal, context.Canceled, context.DeadlineExceeded,
	} {
		sent := fmt.Errorf("start container web: %w", fmt.Errorf("driver bridge: %w", class))
		do := func(context.Context) error { return sent }
		for how, err := range both(t, serve(t, Options{}, do, DialOptions()...)) {
			if !errors.Is(err, class) || err.Error() != sentence.Of(sent) || Reason(err) == "" {
				t.Errorf("%s %v: got %v (reason %q)", how, class, err, Reason(err))
			}
		}
		for how, err := range both(t, serve(t, Options{}, do)) { // a client of another language sees this
			if st, ok := status.FromError(err); !ok || st.Code() != code(class) || len(st.Details()) != 1 || st.Message() != sentence.Of(sent) {
				t.Errorf("%s %v: got status %v", how, class, st)
			}
		}
	}
}

func TestToStatus(t *testing.T) {
	for name, c := range map[string]struct {
		err    error
		code   codes.Code
		reason string
	}{
		"no class":                {errors.New("what"), codes.Internal, "internal"},
		"context before class":    {fmt.Errorf("%w: %w", errdefs.ErrUnavailable, context.Canceled), codes.Canceled, "canceled"},
		"reason given":            {fmt.Errorf("exec: %w", Because("command-not-found", errdefs.ErrNotFound)), codes.NotFound, "command-not-found"},
		"outermost reason":        {Because("b", Because("a", errdefs.ErrNotFound)), codes.NotFound, "b"},
		"a status stays":          {status.Error(codes.OutOfRange, "far"), codes.OutOfRange, "out-of-range"},
		"a status in a chain":     {fmt.Errorf("list: %w", status.Error(codes.OutOfRange, "far")), codes.OutOfRange, "out-of-range"},
		"joined: the first class": {errors.Join(errdefs.ErrNotFound, errdefs.ErrInternal), codes.NotFound, "not-found"},
	} {
		back := FromStatus(ToStatus(c.err))
		if got := status.Code(ToStatus(c.err)); got != c.code || Reason(back) != c.reason {
			t.Errorf("%s: %v, reason %q; want %v, %q", name, got, Reason(back), c.code, c.reason)
		}
		if again := ToStatus(ToStatus(c.err)); len(status.Convert(again).Details()) != 1 {
			t.Errorf("%s: twice through has details %v", name, status.Convert(again).Details())
		}
	}
	if ToStatus(nil) != nil || FromStatus(nil) != nil || Because("x", nil) != nil || FromTTRPC(nil) != nil {
		t.Error("nil became an error")
	}
}

// TestSentence follows a sentence over two wires, as one of a shim goes: it loses the words of its class
// at the first, and at neither what only looks like them.
func TestSentence(t *testing.T) {
	for sent, want := range map[error]string{
		fmt.Errorf("the name is taken: choose another name: %w", errdefs.ErrAlreadyExists):       "the name is taken: choose another name",
		fmt.Errorf("mount proc at /proc: %w: %w", syscall.EINVAL, errdefs.ErrInvalidArgument):    "mount proc at /proc: invalid argument",
		fmt.Errorf("exec sh: %w", errdefs.ErrPermissionDenied.WithMessage("permission denied")):  "exec sh: permission denied",
		fmt.Errorf("driver d: %w", Because("r", fmt.Errorf("gone: %w", errdefs.ErrUnavailable))): "driver d: gone",
	} {
		once := FromStatus(ToStatus(sent))
		twice := FromStatus(ToStatus(fmt.Errorf("start container web: %w", once)))
		if once.Error() != want || twice.Error() != "start container web: "+want || code(twice) != code(sent) {
			t.Errorf("%v:\nonce  %q\ntwice %q (%v)\nwant  %q (%v)", sent, once, twice, code(twice), want, code(sent))
		}
	}
}

func TestFromTTRPC(t *testing.T) {
	for _, c := range []struct {
		err   error
		class error
	}{
		{ttrpc.ErrClosed, errdefs.ErrUnavailable},
		{fmt.Errorf("dial: %w", syscall.ECONNREFUSED), errdefs.ErrUnavailable},
		{context.DeadlineExceeded, context.DeadlineExceeded},
		{context.Canceled, context.Canceled},
		{status.Error(codes.NotFound, "exec x: not found"), errdefs.ErrNotFound},
		{ToStatus(Because("r", errdefs.ErrAborted)), errdefs.ErrAborted},
	} {
		if got := FromTTRPC(c.err); !errors.Is(got, c.class) {
			t.Errorf("%v: got %v, want %v", c.err, got, c.class)
		}
	}
}

func TestPanic(t *testing.T) {
	var log bytes.Buffer
	c := serve(t, Options{Log: slog.New(slog.NewTextHandler(&log, nil))}, func(context.Context) error { panic("the password is hunter2") }, DialOptions()...)
	for how, err := range both(t, c) {
		if !errdefs.IsInternal(err) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: %v", how, err)
		}
	}
	if !strings.Contains(log.String(), "rpc_test.go") {
		t.Errorf("the log does not say where: %s", &log)
	}
}

// TestRetry waits out an operation in the way, for unary calls only.
func TestRetry(t *testing.T) {
	var calls atomic.Int32
	c := serve(t, Options{}, func(context.Context) error {
		if calls.Add(1) < 4 {
			return fmt.Errorf("volume data: container.remove is under way: %w", errdefs.ErrAborted)
		}
		return nil
	}, DialOptions()...)
	resp, err := c.Info(t.Context(), &systemv1.InfoRequest{})
	if err != nil || resp.Version != "1" || calls.Load() != 4 {
		t.Errorf("answer %v, %v after %d calls", resp, err, calls.Load())
	}
	calls.Store(0)
	s, err := c.Check(t.Context(), &systemv1.CheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, err = s.Recv()
	}
	if !errdefs.IsAborted(err) || calls.Load() != 1 {
		t.Errorf("stream: %v after %d calls", err, calls.Load())
	}
}

type busy struct{ error }

func (busy) Temporary() bool { return true }
func (b busy) Unwrap() error { return b.error }

func TestRetryLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began, n := time.Now(), 0
		err := Retry(t.Context(), func(context.Context) error { n++; return errdefs.ErrAborted })
		if took := time.Since(began); !errdefs.IsAborted(err) || took > retryTime || took < retryTime-time.Second || n < 50 {
			t.Errorf("without a deadline: %v after %v and %d calls", err, took, n)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		err = Retry(ctx, func(context.Context) error { return busy{errdefs.ErrResourceExhausted} })
		if !errdefs.IsResourceExhausted(err) || ctx.Err() != nil {
			t.Errorf("with a deadline: %v, and the caller had stopped listening: %v", err, ctx.Err())
		}
		for _, final := range []error{errdefs.ErrNotFound, errdefs.ErrResourceExhausted, nil} {
			n = 0
			if err := Retry(t.Context(), func(context.Context) error { n++; return final }); !errors.Is(err, final) || n != 1 {
				t.Errorf("%v: %v after %d calls", final, err, n)
			}
		}
		gone, leave := context.WithCancel(t.Context())
		leave()
		if err := Retry(gone, func(context.Context) error { return errdefs.ErrAborted }); !errdefs.IsAborted(err) {
			t.Errorf("caller gone: %v", err)
		}
	})
}

func TestDeadline(t *testing.T) {
	left := make(chan time.Duration, 1)
	do := func(ctx context.Context) error {
		d, ok := ctx.Deadline()
		if !ok {
			left <- -1
			return nil
		}
		left <- time.Until(d)
		return nil
	}
	c := serve(t, Options{Deadline: time.Hour}, do)
	call := func(ctx context.Context) time.Duration {
		if _, err := c.Info(ctx, &systemv1.InfoRequest{}); err != nil {
			t.Fatal(err)
		}
		return <-left
	}
	if d := call(context.Background()); d < 59*time.Minute || d > time.Hour {
		t.Errorf("a call without a deadline got %v", d)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Hour)
	defer cancel()
	if d := call(ctx); d < 2*time.Hour {
		t.Errorf("a call with one of its own got %v", d)
	}
	c = serve(t, Options{Patient: []string{systemv1.SystemService_Info_FullMethodName}}, do)
	if d := call(context.Background()); d != -1 {
		t.Errorf("a patient call got %v", d)
	}
	if len(patient) == 0 || patient[0] != containersv1.ContainersService_Wait_FullMethodName {
		t.Error("wait is not patient")
	}
}

// TestLog shows that calls are told of at debug, and nothing else.
func TestLog(t *testing.T) {
	for level, want := range map[slog.Level]bool{slog.LevelDebug: true, slog.LevelInfo: false} {
		var log bytes.Buffer
		c := serve(t, Options{Log: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: level}))}, func(context.Context) error { return errdefs.ErrNotFound })
		_, _ = c.Info(t.Context(), &systemv1.InfoRequest{})
		if got := strings.Contains(log.String(), "SystemService/Info") && strings.Contains(log.String(), "NotFound"); got != want {
			t.Errorf("%v: log %q", level, &log)
		}
	}
}

func TestDetached(t *testing.T) {
	gone, leave := context.WithCancel(context.WithValue(t.Context(), busy{}, "kept"))
	leave()
	ctx, cancel := Detached(gone, time.Millisecond)
	defer cancel()
	if ctx.Err() != nil && !errors.Is(ctx.Err(), context.DeadlineExceeded) {
		t.Errorf("it ended with its parent: %v", ctx.Err())
	}
	if ctx.Value(busy{}) != "kept" {
		t.Error("it lost a value")
	}
	<-ctx.Done()
	if !errors.Is(context.Cause(ctx), context.DeadlineExceeded) {
		t.Errorf("cause %v", context.Cause(ctx))
	}
}
