package cli

import (
	"context"
	"fmt"
)

// Each does one thing to every ref, says each one done on Out, each failure on Err, and
// ends with the exit code of the first failure.
func (e *Env) Each(ctx context.Context, refs []string, do func(context.Context, string) error) error {
	var first error
	for _, ref := range refs {
		if err := do(ctx, ref); err != nil {
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
