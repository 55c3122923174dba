package names

import (
	"regexp"
	"slices"
	"testing"
)

func TestRandom(t *testing.T) {
	ok := regexp.MustCompile(`^[a-z]+_[a-z]+(_[0-9a-f]{4})?$`)
	seen := map[string]bool{}
	for range 2000 {
		n := Random(0)
		if !ok.MatchString(n) {
			t.Fatalf("%q", n)
		}
		seen[n] = true
	}
	if len(seen) < 1800 {
		t.Errorf("of 2000 names %d differ", len(seen))
	}
	if n := Random(3); !regexp.MustCompile(`_[0-9a-f]{4}$`).MatchString(n) {
		t.Errorf("%q has no number", n)
	}
	for _, words := range [][]string{left, right} {
		s := slices.Sorted(slices.Values(words))
		if c := slices.Compact(slices.Clone(s)); len(c) != len(s) {
			t.Errorf("%d words, %d differ", len(s), len(c))
		}
	}
}

func TestID(t *testing.T) {
	ok := regexp.MustCompile(`^[0-9a-f]{64}$`)
	for range 1000 {
		if id := ID(); !ok.MatchString(id) || !regexp.MustCompile(`[a-f]`).MatchString(id[:12]) {
			t.Fatal(id)
		}
	}
}
