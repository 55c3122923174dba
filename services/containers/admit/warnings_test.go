package admit

import (
	"slices"
	"strings"
	"testing"

	"github.com/gantryd/gantry/internal/ocispec"
	containersv1 "github.com/gantryd/gantry/proto/gantry/containers/v1"
)

func TestWarnings(t *testing.T) {
	all := ocispec.Capabilities(&containersv1.Spec{Privileged: true}, nil)
	less := slices.DeleteFunc(slices.Clone(all), func(c string) bool { return c == "CAP_SYS_RESOURCE" })
	for _, tc := range []struct {
		name string
		spec *containersv1.Spec
		have []string
		want string // part of each warning, joined by |
	}{
		{"nothing", &containersv1.Spec{}, less, ""},
		{"privileged and all there", &containersv1.Spec{Privileged: true}, all, ""},
		{"privileged", &containersv1.Spec{Privileged: true}, less, "lacks the capabilities SYS_RESOURCE: the container goes without"},
		{"added", &containersv1.Spec{CapAdd: []string{"sys_resource"}}, less, "lacks the capabilities SYS_RESOURCE"},
		{"all added", &containersv1.Spec{CapAdd: []string{"ALL"}}, less, "lacks the capabilities SYS_RESOURCE"},
		{"all but that added", &containersv1.Spec{CapAdd: []string{"ALL"}, CapDrop: []string{"SYS_RESOURCE"}}, less, ""},
		{"a usual one", &containersv1.Spec{}, less[1:], "lacks the capabilities CHOWN"},
		{"no killer", &containersv1.Spec{Resources: &containersv1.Resources{OomKillDisable: true}}, all, "give a limit with --memory"},
		{"no killer, with a limit", &containersv1.Spec{Resources: &containersv1.Resources{OomKillDisable: true, MemoryBytes: 1 << 30}}, all, ""},
		{"not known", &containersv1.Spec{Privileged: true}, nil, ""},
	} {
		got := strings.Join(Warnings(tc.spec, tc.have), "|")
		if tc.want == "" && got != "" || !strings.Contains(got, tc.want) {
			t.Errorf("%s: %q, want %q", tc.name, got, tc.want)
		}
	}
}
