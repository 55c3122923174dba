//go:build fault

package meta

import (
	"fmt"
	"testing"
)

// TestKillInside kills at every failpoint of this package: between the write and the commit, after
// the commit and before anybody knows of it, between two undos.
func TestKillInside(t *testing.T) {
	for _, verb := range []string{"create", "abort", "remove"} {
		die := 1
		for ; ; die++ {
			dir := based(t)
			killed := spawn(t, dir, verb, "", fmt.Sprintf("GANTRY_FAULT=meta.*=kill:%d", die))
			agree(t, dir, fmt.Sprint(verb, " killed at hit ", die))
			if !killed {
				break
			}
		}
		t.Logf("%s: killed at %d points", verb, die-1)
		if die < 6 {
			t.Errorf("%s was killed at %d points only", verb, die-1)
		}
	}
}
