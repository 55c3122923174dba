package rpc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/ttrpc"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/gantryd/gantry/internal/sentence"
)

// Domain is the domain of gantry's ErrorInfo.
const Domain = "gantry"

// reasons are what ErrorInfo says where nobody gave a closer one.
var reasons = map[codes.Code]string{
	codes.InvalidArgument:    "invalid-argument",
	codes.NotFound:           "not-found",
	codes.AlreadyExists:      "already-exists",
	codes.PermissionDenied:   "permission-denied",
	codes.Unauthenticated:    "unauthenticated",
	codes.ResourceExhausted:  "resource-exhausted",
	codes.FailedPrecondition: "failed-precondition",
	codes.Aborted:            "aborted",
	codes.OutOfRange:         "out-of-range",
	codes.Unimplemented:      "not-implemented",
	codes.Unavailable:        "unavailable",
	codes.DeadlineExceeded:   "deadline-exceeded",
	codes.Canceled:           "canceled",
	codes.DataLoss:           "data-loss",
	codes.Internal:           "internal",
}

type because struct {
	error
	reason string
}

func (b *because) Unwrap() error { return b.error }

// Because gives an error a reason that programs can tell, "command-not-found" say. Its class and
// sentence stay. Of several reasons in a chain the outermost counts.
func Because(reason string, err error) error {
	if err == nil {
		return nil
	}
	return &because{err, reason}
}

// Reason is what Because gave, here or on the other side of the wire, or "".
func Reason(err error) string {
	if b := (*because)(nil); errors.As(err, &b) {
		return b.reason
	}
	return ""
}

// ToStatus turns an error into what goes over the wire. An error without a class is Internal:
// whoever made it has not thought about what the caller should do. The words of the class are left out
// of the sentence: the code says them.
func ToStatus(err error) error {
	if err == nil {
		return nil
	}
	st := status.New(code(err), sentence.Of(err))
	if s, ok := err.(interface{ GRPCStatus() *status.Status }); ok { // as it is, not somewhere in the chain
		st = s.GRPCStatus()
	}
	for _, d := range st.Details() {
		if _, ok := d.(*errdetails.ErrorInfo); ok {
			return st.Err()
		}
	}
	reason := Reason(err)
	if reason == "" {
		reason = reasons[st.Code()]
	}
	if with, derr := st.WithDetails(&errdetails.ErrorInfo{Reason: reason, Domain: Domain}); derr == nil {
		st = with
	}
	return st.Err()
}

// code is the class of an error as a status code. Contexts come first: what was cut short has
// often failed with some other class on the way out.
func code(err error) codes.Code {
	switch {
	case errors.Is(err, context.Canceled):
		return codes.Canceled
	case errors.Is(err, context.DeadlineExceeded):
		return codes.DeadlineExceeded
	}
	if c := status.Code(errgrpc.ToGRPC(err)); c != codes.Unknown {
		return c
	}
	return codes.Internal
}

// told is an error that came over the wire: its class, and its sentence as it was said there.
type told struct {
	class error
	text  string
}

func (t told) Error() string {
	if t.text == "" {
		return t.class.Error()
	}
	return t.text
}

func (t told) Unwrap() error { return t.class }

// Sentence says that the text has no words of a class to leave out, whatever it ends with.
func (t told) Sentence() string { return t.Error() }

// FromStatus turns what came over the wire into an error with its class and reason. Other errors
// it leaves alone.
func FromStatus(err error) error {
	st, ok := status.FromError(err)
	if err == nil || !ok {
		return err
	}
	native := error(told{class: errgrpc.ToNative(status.Error(st.Code(), "")), text: st.Message()})
	for _, d := range st.Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok && info.Domain == Domain {
			return Because(info.Reason, native)
		}
	}
	return native
}

// FromTTRPC is FromStatus for a ttrpc client, whose errors may come without a status: the context's
// own, and those of a connection that has gone, which become Unavailable.
func FromTTRPC(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return err
	case gone(err):
		// only its text: an EOF in the chain would be taken for the end of a stream
		return fmt.Errorf("the connection is gone: %s: %w", err.Error(), errdefs.ErrUnavailable)
	}
	return FromStatus(err)
}

func gone(err error) bool {
	for _, e := range []error{
		ttrpc.ErrClosed, ttrpc.ErrServerClosed, ttrpc.ErrStreamClosed, io.EOF, io.ErrUnexpectedEOF, io.ErrClosedPipe, net.ErrClosed,
		syscall.EPIPE, syscall.ECONNRESET, syscall.ECONNREFUSED, syscall.ENOENT, syscall.ENOTCONN,
	} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}
