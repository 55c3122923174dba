//go:build !insecure

package insecure

import "testing"

// TestOff: a release obeys nobody.
func TestOff(t *testing.T) {
	t.Setenv("GANTRY_INSECURE", string(Seal))
	if Built || Without(Seal) || Environ() == nil || len(Environ()) > 0 {
		t.Errorf("built %v, without %v, environment %q", Built, Without(Seal), Environ())
	}
}
