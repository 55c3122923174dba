package sentence

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"
)

// opaque hides what is in an error, as one that came over a wire does.
type opaque struct{ error }

// told is an error that says its sentence itself.
type told struct{ error }

func (t told) Unwrap() error    { return t.error }
func (t told) Sentence() string { return t.Error() }

func TestOf(t *testing.T) {
	taken := fmt.Errorf("the name is in use: choose another name: %w", errdefs.ErrAlreadyExists)
	for _, tc := range []struct {
		err  error
		want string
	}{
		{nil, ""},
		{errors.New("plain: already exists"), "plain: already exists"},
		{errdefs.ErrNotFound, "not found"},
		{taken, "the name is in use: choose another name"},
		{fmt.Errorf("create container web: %w", taken), "create container web: the name is in use: choose another name"},
		{fmt.Errorf("mount proc: %w", syscall.EINVAL), "mount proc: invalid argument"},
		{fmt.Errorf("mount proc: %w: %w", syscall.EINVAL, errdefs.ErrInvalidArgument), "mount proc: invalid argument"},
		{fmt.Errorf("exec sh: %w", errdefs.ErrPermissionDenied), "exec sh: permission denied"},
		{fmt.Errorf("link eth0: %w: attach the endpoint first", errdefs.ErrFailedPrecondition), "link eth0: attach the endpoint first"},
		{fmt.Errorf("%w (and undo it: %w)", taken, fmt.Errorf("driver d: gone: %w", errdefs.ErrUnavailable)), "the name is in use: choose another name (and undo it: driver d: gone)"},
		{errors.Join(taken, fmt.Errorf("twice: %w", taken)), "the name is in use: choose another name\ntwice: the name is in use: choose another name"},
		{errdefs.ErrAborted.WithMessage("somebody was faster"), "somebody was faster"},
		{fmt.Errorf("wait: %w", context.DeadlineExceeded), "wait: context deadline exceeded"},
		{opaque{taken}, taken.Error()},
		{fmt.Errorf("create: %w", told{taken}), "create: " + taken.Error()},
	} {
		if got := Of(tc.err); got != tc.want {
			t.Errorf("%v:\ngot  %q\nwant %q", tc.err, got, tc.want)
		}
	}
}
