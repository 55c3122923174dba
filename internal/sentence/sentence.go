// Package sentence says an error to people: its words without those that only name its class.
//
// fmt.Errorf("…: choose another name: %w", errdefs.ErrAlreadyExists) gives an error its class, and
// puts "already exists" behind a sentence that is whole without it. On the wire the class travels
// beside the sentence, as a code, so the words of it are left out wherever an error is shown.
package sentence

import (
	"slices"
	"strings"

	"github.com/containerd/errdefs"
)

// classes are those whose words say nothing that the code does not. "permission denied" is not one of
// them: it is the kernel's word for a cause as well.
var classes = []error{
	errdefs.ErrInvalidArgument, errdefs.ErrNotFound, errdefs.ErrAlreadyExists, errdefs.ErrResourceExhausted,
	errdefs.ErrFailedPrecondition, errdefs.ErrAborted, errdefs.ErrOutOfRange, errdefs.ErrNotImplemented,
	errdefs.ErrInternal, errdefs.ErrUnavailable, errdefs.ErrDataLoss, errdefs.ErrUnauthenticated,
}

// Of is the words of err. Only what a class itself put there is left out: a text that happens to be
// the same, such as EINVAL's "invalid argument", stays, and so does a class that stands alone. An error
// with a method Sentence() string has no such words, and that is its text.
func Of(err error) string {
	if err == nil {
		return ""
	}
	if whole, ok := err.(interface{ Sentence() string }); ok { //nolint:errorlint // this one, not one in it
		return whole.Sentence()
	}
	text := err.Error()
	var within []error
	switch u := err.(type) { //nolint:errorlint // one link of the chain at a time
	case interface{ Unwrap() error }:
		within = []error{u.Unwrap()}
	case interface{ Unwrap() []error }:
		within = u.Unwrap()
	}
	for _, inner := range slices.Backward(within) {
		switch {
		case inner == nil:
		case slices.Contains(classes, inner):
			text = swapLast(text, ": "+inner.Error(), "")
		default:
			text = swapLast(text, inner.Error(), Of(inner))
		}
	}
	return text
}

// swapLast puts other where the last part of text that is old stands.
func swapLast(text, old, other string) string {
	i := strings.LastIndex(text, old)
	if i < 0 || old == "" || old == other {
		return text
	}
	return text[:i] + other + text[i+len(old):]
}
