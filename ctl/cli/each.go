package cli

import (
	"context"
	"errors"
	"fmt"
)

// ErrNothing tells Each that there was nothing to do, and that this is well.
var ErrNothing = errors.New("nothing to do")

// Each does one thing to every ref, says each one done on Out, each failure on Err, and
// ends with the exit code of the first failure.
func (e *Env) Each(ctx context.Context, refs []string, do func(context.Context, string) error) error {
	var first error
	for _, ref := range refs {
		err := do(ctx, ref)
		if errors.Is(err, ErrNothing) {
			continue
		}
		if err != nil {
			e.Complain(err)
			if first == nil {
				first = Exit(ExitCode(err))
			}
			continue
		}
		_, _ = fmt.Fprintln(e.Out, ref)
	}
	return first
}

// Complain writes the sentence of err.
func (e *Env) Complain(err error) { _, _ = fmt.Fprintln(e.Err, "gantry: "+e.Sentence(err)) }
