package runtimetest

import (
	"context"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/gantryd/gantry/shim/runtime"
)

// feature is something that config.json may ask for, and that a runtime or a kernel need not have.
type feature struct {
	// name is the feature as config.json calls it. Who does not have it refuses by this name.
	name string
	// here says whether this kernel has it; nil: every kernel does.
	here func() bool
	// ask is a container that asks for it, and want what it then writes.
	ask  func(*Box) *runtime.Config
	want string
	// more is what else is to be seen; with it, ask may be for the refusal alone.
	more func(*Box)
}

// features are all of them, by the file they stand in.
func features() []feature {
	return slices.Concat(namespaceFeatures, hookFeatures, processFeatures, seccompFeatures, labelFeatures, resourceFeatures, networkFeatures)
}

// Lacks are the features, by their names, that a runtime does not have.
type Lacks []string

// RunFeatures holds a runtime to every feature: it does what is asked for, or refuses it by name.
func RunFeatures(t *testing.T, r runtime.Runtime, lacks Lacks) {
	for _, f := range features() {
		t.Run(f.name, func(t *testing.T) {
			b := New(t, r)
			if slices.Contains(lacks, f.name) || f.here != nil && !f.here() {
				b.refuses(f.name, f.ask(b))
				return
			}
			if f.want != "" {
				b.expect(f.ask(b), f.want)
			}
			if f.more != nil {
				f.more(b)
			}
		})
	}
}

// refuses expects that c is refused by name, and that nothing of it is left.
func (b *Box) refuses(name string, c *runtime.Config) {
	b.T.Helper()
	m, err := b.R.Create(Context(b.T), c)
	if err == nil {
		_ = m.Delete(context.Background())
	}
	// "linux.resources.cpu.idle (v2)" is refused as linux.resources.cpu.idle.
	name, _, _ = strings.Cut(name, " (")
	if err == nil || !strings.Contains(err.Error(), name) || !errdefs.IsNotImplemented(err) && !errdefs.IsInvalidArgument(err) {
		b.T.Errorf("want %q refused, got %v", name, err)
	}
	b.leftNothing(c)
}

// namespace changes or adds one.
func namespace(c *runtime.Config, kind specs.LinuxNamespaceType, path string) {
	for i, n := range c.Spec.Linux.Namespaces {
		if n.Type == kind {
			c.Spec.Linux.Namespaces[i].Path = path
			return
		}
	}
	c.Spec.Linux.Namespaces = append(c.Spec.Linux.Namespaces, specs.LinuxNamespace{Type: kind, Path: path})
}

// without takes one away: the container shares the host's.
func without(c *runtime.Config, kind specs.LinuxNamespaceType) {
	c.Spec.Linux.Namespaces = slices.DeleteFunc(c.Spec.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == kind })
}
