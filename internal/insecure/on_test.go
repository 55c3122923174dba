//go:build insecure

package insecure

import (
	"slices"
	"testing"
)

func TestTake(t *testing.T) {
	put := Take(Seal, Null)
	if !Without(Seal) || !Without(Null) || Without(Links) || !slices.Equal(Environ(), []string{"GANTRY_INSECURE=null,seal"}) {
		t.Errorf("taken: %q", Environ())
	}
	put()
	if Without(Seal) || Without(Null) {
		t.Errorf("put back: %q", Environ())
	}
	if set := named("a,,b"); len(set) != 2 || !set["a"] || !set["b"] {
		t.Errorf("%v", set)
	}
}
