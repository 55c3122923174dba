package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// ExitError ends the program with a code of its own. A nil Err says nothing more.
type ExitError struct {
	Code int
	Err  error
}

// Error is the sentence, if there is one.
func (e *ExitError) Error() string {
	if e.Err == nil {
		return fmt.Sprintf("exit %d", e.Code)
	}
	return e.Err.Error()
}

// Unwrap returns the cause.
func (e *ExitError) Unwrap() error { return e.Err }

// Exit returns an error that ends the program with code and says nothing.
func Exit(code int) error { return &ExitError{Code: code} }

// Usagef is an error of whoever typed the command.
func Usagef(format string, args ...any) error {
	return &ExitError{Code: 2, Err: fmt.Errorf(format, args...)}
}

// exitCodes is the table of docs/errors.md: what a caller should do decides the number.
var exitCodes = map[codes.Code]int{
	codes.InvalidArgument:    2,
	codes.NotFound:           3,
	codes.AlreadyExists:      4,
	codes.FailedPrecondition: 5,
	codes.Aborted:            6,
	codes.ResourceExhausted:  6,
	codes.Unavailable:        7,
	codes.DeadlineExceeded:   8,
	codes.Canceled:           8,
	codes.Unimplemented:      9,
}

// ExitCode is the number that the program ends with for err.
func ExitCode(err error) int {
	if err == nil {
		return 0
	}
	var exit *ExitError
	if errors.As(err, &exit) {
		return exit.Code
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return exitCodes[codes.Canceled]
	}
	var joined interface{ Unwrap() []error }
	if errors.As(err, &joined) && len(joined.Unwrap()) > 0 {
		return ExitCode(joined.Unwrap()[0])
	}
	if code, ok := exitCodes[status.Code(err)]; ok {
		return code
	}
	return 1
}

// Code is the class of a daemon's answer, codes.Unknown for anything else.
func Code(err error) codes.Code {
	if err == nil {
		return codes.OK
	}
	return status.Code(err)
}

// Reason is the word that a daemon gave beside the class of an error, "" if none.
func Reason(err error) string {
	s, ok := status.FromError(err)
	if !ok {
		return ""
	}
	for _, d := range s.Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok && info.GetDomain() == "gantry" {
			return info.GetReason()
		}
	}
	return ""
}

// Sentence is what a person reads of err: the daemon's words without gRPC's around them, and
// what this program had to say before them.
func (e *Env) Sentence(err error) string {
	var answer interface {
		error
		GRPCStatus() *status.Status
	}
	if !errors.As(err, &answer) {
		return err.Error()
	}
	own, s := err.Error() != answer.Error(), answer.GRPCStatus()
	words := s.Message()
	switch unavailable := s.Code() == codes.Unavailable; {
	case unavailable && wentAway(words) && own:
		words = ending(words)
	case unavailable && wentAway(words):
		return fmt.Sprintf("the daemon at %s went away before it had answered: %s\ncontainers go on without it; ask again when it is back", e.Host, ending(words))
	case unavailable && notThere(words) && own:
		words = cause(words)
	case unavailable && notThere(words):
		return fmt.Sprintf("no daemon answers at %s: %s\nstart one with \"gantryd\" (or \"systemctl start gantryd\"), or name another with --host", e.Host, cause(words))
	case s.Code() == codes.Canceled && words == "context canceled":
		words = "interrupted"
	}
	return strings.ReplaceAll(err.Error(), answer.Error(), words)
}

// Cut reports whether err is a connection to the daemon that broke while it was in use.
func Cut(err error) bool {
	s, ok := status.FromError(err)
	return err != nil && ok && s.Code() == codes.Unavailable && wentAway(s.Message())
}

// wentAway tells gRPC's words for a connection that was there from those for one that never was.
func wentAway(m string) bool {
	return strings.Contains(m, "error reading from server") || strings.Contains(m, "goaway") || strings.Contains(m, "transport is closing") ||
		strings.Contains(m, "closing transport")
}

func notThere(m string) bool {
	return strings.Contains(m, "connection error") || strings.Contains(m, "error reading server preface")
}

// ending is why a connection broke, without gRPC's account of it.
func ending(m string) string {
	if strings.Contains(m, "graceful_stop") {
		return "it was stopped"
	}
	_, reason, found := strings.Cut(m, "error reading from server: ")
	if !found {
		return "the connection was closed"
	}
	reason, _, _ = strings.Cut(reason, `", received prior goaway`)
	return "the connection broke: " + strings.Trim(reason, `" `)
}

// cause takes gRPC's own wrapping off a dial error.
func cause(m string) string {
	if i := strings.LastIndex(m, "desc = "); i >= 0 {
		m = m[i+len("desc = "):]
	}
	if i := strings.LastIndex(m, "dial "); i >= 0 {
		m = m[i:]
	}
	return strings.Trim(m, `" `)
}
