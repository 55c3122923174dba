package admit

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	containersv1 "github.com/gantryd/gantry/proto/gantry/containers/v1"
)

func TestHost(t *testing.T) {
	with, without := host{sys: t.TempDir()}, host{sys: t.TempDir()}
	for name, words := range map[string]string{
		"module/apparmor/parameters/enabled": "Y\n", "kernel/security/apparmor/profiles": "mine (enforce)\ndocker-default (complain)\n",
		"devices/system/cpu/online": "0-1,4\n", "devices/system/node/online": "0\n",
	} {
		path := filepath.Join(with.sys, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(words), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	profile := func(words string) *containersv1.Spec {
		return &containersv1.Spec{Seccomp: &containersv1.Seccomp{Profile: []byte(words)}}
	}
	device := func(path string) *containersv1.Spec {
		return &containersv1.Spec{Devices: []*containersv1.Device{{HostPath: path}}}
	}
	set := func(cpus, mems string) *containersv1.Spec {
		return &containersv1.Spec{Resources: &containersv1.Resources{CpusetCpus: cpus, CpusetMems: mems}}
	}
	for _, tc := range []struct {
		name string
		h    host
		spec *containersv1.Spec
		want string // of the error; "": none
	}{
		{"nothing", without, &containersv1.Spec{}, ""},
		{"a device", without, device("/dev/null"), ""},
		{"no device", without, device("/dev/no-such-device"), "no such device"},
		{"a file", without, device("/etc/passwd"), "mount a file with --volume"},
		{"a profile", without, profile(`{"defaultAction":"SCMP_ACT_ALLOW"}`), ""},
		{"a bad profile", without, profile(`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["bpf"],"action":"NO"}]}`), "rule 1 (bpf)"},
		{"AppArmor", with, &containersv1.Spec{Apparmor: "mine"}, ""},
		{"AppArmor turned off", with, &containersv1.Spec{Apparmor: "unconfined"}, ""},
		{"another profile", with, &containersv1.Spec{Apparmor: "min"}, "it is not loaded"},
		{"no AppArmor", without, &containersv1.Spec{Apparmor: "mine"}, "has no AppArmor"},
		{"no AppArmor and none wanted", without, &containersv1.Spec{Apparmor: "unconfined"}, ""},
		{"processors", with, set("1,4", "0"), ""},
		{"processors that are not there", with, set("1-2", ""), "this host has 0-1,4"},
		{"no such node", with, set("", "1"), "this host has 0"},
		{"a block device", without, &containersv1.Spec{Resources: &containersv1.Resources{ReadBps: []*containersv1.DeviceRate{{Path: "/dev/null", Rate: 1}}}}, "no block device"},
	} {
		err := checkHost(tc.spec, tc.h)
		if tc.want == "" && err != nil || tc.want != "" && (!errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), tc.want)) {
			t.Errorf("%s: %v, want %q", tc.name, err, tc.want)
		}
	}
}
