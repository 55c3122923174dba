//go:build !fault

package fault

// Enabled says whether this program was built with failpoints.
const Enabled = false

// Point marks a place where a test may interfere. This build lets none.
func Point(string) {}

// Err is Point for places that can also fail. In this build it is always nil.
func Err(string) error { return nil }
