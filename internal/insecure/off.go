//go:build !insecure

package insecure

// Built says whether guards can be taken out of this program.
const Built = false

// Without says whether a guard is taken out. In this build none ever is.
func Without(Guard) bool { return false }

// Environ is the environment by which a child learns what its parent is without. In this build it is
// empty, and never nil: that would mean the parent's.
func Environ() []string { return []string{} }
