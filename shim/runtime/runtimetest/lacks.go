package runtimetest

import (
	"strings"
	"testing"

	"github.com/gantryd/gantry/shim/runtime"
)

// Feature is something that a runtime may lack. What a case needs it for is not held against a runtime
// without it; that must refuse, by name, to make a container that asks for it. A few features are none
// that anybody asks for: how things are done, or said.
type Feature string

// The features.
const (
	CompiledFilter  Feature = "compiled filter"   // a seccomp filter as bytes, without a profile
	Init            Feature = "init"              // a small init as process 1
	Domainname      Feature = "domainname"        // in config.json
	MasksUnderFiles Feature = "masks under files" // a masked path that leads through a file is none, and no error

	RootPropagation   Feature = "root propagation"    // is what config.json says for the root mount itself
	SingleThread      Feature = "single thread"       // what waits to be started is one process with one thread
	LinkedMountPoints Feature = "linked mount points" // they may lead through links to what is not there, and back through ".."
	TerminalOwner     Feature = "terminal owner"      // an added process's terminal is its user's from the first instruction on
	MountWords        Feature = "mount words"         // what is wrong with a mount is said in words of ours
)

// asks are containers that ask for a feature, and a word of the refusal.
var asks = map[Feature]struct {
	word   string
	change func(*Box, *runtime.Config)
}{
	CompiledFilter: {"compiled seccomp filter", func(b *Box, c *runtime.Config) {
		var err error
		c.Spec.Linux.Seccomp = nil
		c.Seccomp, err = defaultFilter()
		b.check(err)
	}},
	Init:       {"(init)", func(_ *Box, c *runtime.Config) { c.Init = true }},
	Domainname: {"domainname", func(_ *Box, c *runtime.Config) { c.Spec.Domainname = "example.org" }},
	MasksUnderFiles: {"group/not/a/directory", func(_ *Box, c *runtime.Config) {
		c.Spec.Linux.MaskedPaths = []string{"/etc/group/not/a/directory"}
	}},
}

// Lacks reports whether the runtime is without a feature.
func (b *Box) Lacks(f Feature) bool { return b.lacks[f] }

// attempts makes containers with one of c's bind mounts each, and lets go of them: some can be made, others not.
func (b *Box) attempts(c *runtime.Config) {
	for _, m := range c.Spec.Mounts {
		if m.Type != "bind" {
			continue
		}
		one := b.Sh("true")
		one.Spec.Mounts = append(one.Spec.Mounts, m)
		if made, err := b.Create(one); err == nil {
			b.check(made.Delete(Context(b.T)))
		}
	}
}

// refusals holds a runtime to what it says it lacks.
func refusals(t *testing.T, r runtime.Runtime, lacks []Feature) {
	for _, f := range lacks {
		ask, ok := asks[f]
		if !ok {
			continue
		}
		t.Run(string(f), func(t *testing.T) {
			b := New(t, r, lacks...)
			c := b.Sh("true")
			ask.change(b, c)
			if _, err := b.Create(c); err == nil || !strings.Contains(err.Error(), ask.word) {
				t.Errorf("it is not refused: %v", err)
			}
		})
	}
}
