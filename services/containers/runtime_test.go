package containers

import (
	"context"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	containersv1 "github.com/gantryd/gantry/proto/gantry/containers/v1"
	"github.com/gantryd/gantry/services/containers/admit"
)

// TestRuntime: who makes a container is told to its shim, and who compiles filters itself gets the profile.
func TestRuntime(t *testing.T) {
	w := newWorld(t)
	known := []admit.Program{{Name: "mine", Path: "/bin/sh", Args: []string{"--debug"}}}
	w.Runtimes = func() []admit.Program { return known }
	w.Seccomp = func(context.Context, []string) (string, error) { return "/the/filter", nil }
	w.SeccompProfile = func([]string) (*specs.LinuxSeccomp, error) {
		return &specs.LinuxSeccomp{DefaultAction: "SCMP_ACT_TRAP"}, nil
	}
	for name, want := range map[string]struct{ path, filter, profile string }{
		"native": {"", "/the/filter", ""},
		"mine":   {"/bin/sh", "", "SCMP_ACT_TRAP"},
	} {
		c, shim := w.run(name, &containersv1.Spec{Runtime: name})
		raw, err := os.ReadFile(w.state(c.GetMeta().GetId()).Config())
		if err != nil {
			t.Fatal(err)
		}
		b := shim.boot
		if b.GetRuntime() != want.path || b.GetSeccomp() != want.filter || strings.Contains(string(raw), "SCMP_ACT_TRAP") != (want.profile != "") {
			t.Errorf("%s: %v\n%s", name, b, raw)
		}
		if want.path != "" && (b.GetRuntimeName() != name || !slices.Equal(b.GetRuntimeArgs(), known[0].Args)) {
			t.Errorf("%s: %v", name, b)
		}
	}
	// It is not known any more when it is started again.
	c := w.create("later", &containersv1.Spec{Runtime: "mine"})
	known = nil
	if _, err := w.Start(t.Context(), "later"); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), `runtime "mine" is not known`) {
		t.Errorf("%v: %v", c.GetMeta().GetName(), err)
	}
}
