package admit

import (
	"fmt"
	"slices"
	"strings"

	"github.com/gantryd/gantry/internal/ocispec"
	containersv1 "github.com/gantryd/gantry/proto/gantry/containers/v1"
)

// Warnings say what of a spec has no effect, what this daemon, whose capabilities are have (nil: every one), can
// do in part only, and what is dangerous: the user may want to know, and nothing fails for it.
func Warnings(spec *containersv1.Spec, have []string) (out []string) {
	if spec.GetNetworkMode() == containersv1.NetworkMode_NETWORK_MODE_HOST && len(spec.GetPorts()) > 0 {
		out = append(out, "Published ports are discarded when using host network mode")
	}
	var lack []string
	for _, c := range ocispec.Capabilities(spec, nil) {
		if have != nil && !slices.Contains(have, c) {
			lack = append(lack, strings.TrimPrefix(c, "CAP_"))
		}
	}
	if len(lack) > 0 {
		out = append(out, fmt.Sprintf("this daemon lacks the capabilities %s: the container goes without", strings.Join(lack, ", ")))
	}
	if spec.GetResources().GetOomKillDisable() && spec.GetResources().GetMemoryBytes() == 0 {
		out = append(out, "it is never killed for memory and has no memory limit: it can bring this host to a halt; give a limit with --memory")
	}
	return out
}
