package seccomp

import (
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

func TestLoad(t *testing.T) {
	t.Parallel()
	const docker = `{"defaultAction":"SCMP_ACT_ALLOW","archMap":[{"architecture":"SCMP_ARCH_X86_64","subArchitectures":["SCMP_ARCH_X86"]}],
		"syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO","errnoRet":38},
			{"names":["mount"],"action":"SCMP_ACT_ERRNO","excludes":{"caps":["CAP_SYS_ADMIN"]}}]}`
	for _, tc := range []struct {
		caps []string
		want int
	}{{nil, 2}, {[]string{"CAP_SYS_ADMIN"}, 1}} {
		p, err := Load([]byte(docker), tc.caps)
		if err != nil || len(p.Syscalls) != tc.want || p.DefaultAction != specs.ActAllow {
			t.Errorf("%v: %+v, %v", tc.caps, p, err)
		}
	}
	for raw, want := range map[string]string{
		``:                                   "no JSON",
		`[]`:                                 "no JSON",
		`{}`:                                 "defaultAction",
		`{"defaultAction":"SCMP_ACT_MAYBE"}`: `default action: action "SCMP_ACT_MAYBE"`,
		`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["read"],"action":"SCMP_ACT_ALLOW"},{"names":["a","b","c","d"],"action":"ERRNO"}]}`: "rule 2 (a, b, c, …)",
		`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["clone"],"action":"SCMP_ACT_ERRNO","args":[{"index":9}]}]}`:                        "rule 1 (clone): argument 9",
	} {
		if _, err := Load([]byte(raw), nil); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", raw, err, want)
		}
	}
}
