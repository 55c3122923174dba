package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func TestExitCode(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		err  error
		want int
	}{
		{nil, 0},
		{errors.New("x"), 1},
		{status.Error(codes.Internal, "x"), 1},
		{status.Error(codes.InvalidArgument, "x"), 2},
		{Usagef("x"), 2},
		{status.Error(codes.NotFound, "x"), 3},
		{status.Error(codes.AlreadyExists, "x"), 4},
		{status.Error(codes.FailedPrecondition, "x"), 5},
		{status.Error(codes.Aborted, "x"), 6},
		{status.Error(codes.ResourceExhausted, "x"), 6},
		{status.Error(codes.Unavailable, "x"), 7},
		{status.Error(codes.DeadlineExceeded, "x"), 8},
		{context.DeadlineExceeded, 8},
		{fmt.Errorf("x: %w", context.Canceled), 8},
		{status.Error(codes.Unimplemented, "x"), 9},
		{status.Error(codes.DataLoss, "x"), 1},
		{Exit(42), 42},
		{fmt.Errorf("x: %w", Exit(42)), 42},
		{&ExitError{Code: 125, Err: status.Error(codes.NotFound, "x")}, 125},
		{fmt.Errorf("y: %w", status.Error(codes.NotFound, "x")), 3},
		{errors.Join(status.Error(codes.Aborted, "x"), status.Error(codes.NotFound, "x")), 6},
	} {
		if got := ExitCode(c.err); got != c.want {
			t.Errorf("%v: %d, want %d", c.err, got, c.want)
		}
	}
}

func TestSentence(t *testing.T) {
	t.Parallel()
	e := &Env{Host: "unix:///x.sock"}
	refused := status.Error(codes.Unavailable, `connection error: desc = "transport: Error while dialing: dial unix /x.sock: connect: no such file or directory"`)
	eof := status.Error(codes.Unavailable, "error reading from server: EOF")
	stopped := status.Error(codes.Unavailable, `closing transport due to: connection error: desc = "error reading from server: EOF", received prior goaway: code: NO_ERROR, debug data: "graceful_stop"`)
	stopping := status.Error(codes.Unavailable, `the connection is draining: received prior goaway: code: NO_ERROR, debug data: "graceful_stop"`)
	for err, want := range map[error]bool{eof: true, stopped: true, stopping: true, refused: false, status.Error(codes.Unavailable, "plugin x: restarting"): false, errors.New("EOF"): false} {
		if Cut(err) != want {
			t.Errorf("%v: cut %v", err, !want)
		}
	}
	for _, c := range []struct {
		err  error
		want string
	}{
		{errors.New("plain"), "plain"},
		{status.Error(codes.NotFound, "get container web: not found"), "get container web: not found"},
		{fmt.Errorf("own words: %w", status.Error(codes.Aborted, "theirs")), "own words: theirs"},
		{&ExitError{Code: 125, Err: status.Error(codes.NotFound, "theirs")}, "theirs"},
		{status.Error(codes.Canceled, "context canceled"), "interrupted"},
		{status.Error(codes.Unavailable, "start container web: plugin overlay: restarting"), "start container web: plugin overlay: restarting"},
		{refused, "no daemon answers at unix:///x.sock: dial unix /x.sock: connect: no such file or directory\nstart one with \"gantryd\" (or \"systemctl start gantryd\"), or name another with --host"},
		{fmt.Errorf("wait for x: %w", refused), "wait for x: dial unix /x.sock: connect: no such file or directory"},
		{eof, "the daemon at unix:///x.sock went away before it had answered: the connection broke: EOF\ncontainers go on without it; ask again when it is back"},
		{fmt.Errorf("the daemon went away: %w", eof), "the daemon went away: the connection broke: EOF"},
		{fmt.Errorf("the daemon went away: %w", stopped), "the daemon went away: it was stopped"},
		{fmt.Errorf("the daemon went away: %w", stopping), "the daemon went away: it was stopped"},
	} {
		if got := e.Sentence(c.err); got != c.want {
			t.Errorf("%v:\n%s\nwant\n%s", c.err, got, c.want)
		}
	}
}

func TestReason(t *testing.T) {
	t.Parallel()
	with := func(domain string) error {
		s, err := status.New(codes.NotFound, "x").WithDetails(&errdetails.ErrorInfo{Domain: domain, Reason: "command-not-found"})
		if err != nil {
			t.Fatal(err)
		}
		return s.Err()
	}
	for want, err := range map[string]error{
		"command-not-found": with("gantry"), "": with("somebody.example"),
	} {
		if got := Reason(err); got != want {
			t.Errorf("%q, want %q", got, want)
		}
		if got := Reason(fmt.Errorf("x: %w", err)); got != want {
			t.Errorf("wrapped: %q, want %q", got, want)
		}
	}
	if Reason(errors.New("x")) != "" || Reason(nil) != "" {
		t.Error("a reason where there is none")
	}
}

// TestHosts: an address that cannot be one is the user's mistake, told at the first call and by name.
func TestHosts(t *testing.T) {
	t.Parallel()
	for host, want := range map[string]string{
		"/run/gantry.sock":  "no scheme",
		"http://x":          "unknown scheme",
		"tcp://127.0.0.1:1": "--tls-ca",
	} {
		e := &Env{Host: host}
		err := e.Conn().Invoke(t.Context(), "/x/y", nil, nil)
		if ExitCode(err) != 2 || !strings.Contains(e.Sentence(err), want) || !strings.Contains(e.Sentence(err), host) {
			t.Errorf("%s: %v", host, err)
		}
	}
}
