// Package check holds the words in which parts of the daemon say what they found wrong.
//
// A check compares two accounts of one thing (the store and a driver, the store and the
// kernel, two tables of the store) and reports every difference. services/system runs them
// all; whoever owns one of the two accounts contributes the check.
package check

import "context"

// Report says one difference: subject is what differs ("container 3f2a"), detail says how in
// one line. repair makes it right, or is nil where gantry cannot decide what right is. It is
// called after the check has run, if at all, and must look again before it acts: the world has
// moved since.
type Report func(subject, detail string, repair func(ctx context.Context) error)

// Check is one invariant.
type Check struct {
	// Name says what should hold, as a noun with its part in front: "store.names".
	Name string
	// Run reports every difference. Its error means that the comparison itself could not be
	// made, not that something differs.
	Run func(ctx context.Context, report Report) error
}
