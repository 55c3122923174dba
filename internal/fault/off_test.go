//go:build !fault

package fault

import "testing"

// TestOff shows that a release obeys nobody.
func TestOff(t *testing.T) {
	t.Setenv("GANTRY_FAULT", "*=kill")
	Point("anything")
	if err := Err("anything"); err != nil || Enabled {
		t.Fatalf("err %v, enabled %v", err, Enabled)
	}
	if n := testing.AllocsPerRun(100, func() { Point("anything") }); n != 0 {
		t.Errorf("a point that is off allocates %v times", n)
	}
}
