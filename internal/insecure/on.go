//go:build insecure

package insecure

import (
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
)

// Built says whether guards can be taken out of this program.
const Built = true

const variable = "GANTRY_INSECURE"

var (
	mu  sync.Mutex
	out = named(os.Getenv(variable))
)

func named(list string) map[Guard]bool {
	set := map[Guard]bool{}
	for name := range strings.SplitSeq(list, ",") {
		if name != "" {
			set[Guard(name)] = true
		}
	}
	return set
}

// Without says whether a guard is taken out.
func Without(g Guard) bool {
	mu.Lock()
	defer mu.Unlock()
	return out[g]
}

// Take takes guards out until put is called.
func Take(guards ...Guard) (put func()) {
	mu.Lock()
	defer mu.Unlock()
	before := maps.Clone(out)
	for _, g := range guards {
		out[g] = true
	}
	return func() {
		mu.Lock()
		defer mu.Unlock()
		out = before
	}
}

// Environ is the environment by which a child learns what its parent is without.
func Environ() []string {
	mu.Lock()
	defer mu.Unlock()
	var names []string
	for _, g := range slices.Sorted(maps.Keys(out)) {
		names = append(names, string(g))
	}
	return []string{variable + "=" + strings.Join(names, ",")}
}
