package admit

import (
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	containersv1 "github.com/gantryd/gantry/proto/gantry/containers/v1"
	imagesv1 "github.com/gantryd/gantry/proto/gantry/images/v1"
)

func TestPorts(t *testing.T) {
	p := func(host, container, count uint32, address, protocol string) *containersv1.PortMapping {
		return &containersv1.PortMapping{HostPort: host, ContainerPort: container, Count: count, HostAddress: address, Protocol: protocol}
	}
	for name, tc := range map[string]struct {
		ports []*containersv1.PortMapping
		ok    bool
	}{
		"one":                  {[]*containersv1.PortMapping{p(80, 80, 0, "", "")}, true},
		"any":                  {[]*containersv1.PortMapping{p(0, 80, 0, "", ""), p(0, 80, 0, "", "")}, true},
		"tcp and udp":          {[]*containersv1.PortMapping{p(53, 53, 0, "", "tcp"), p(53, 53, 0, "", "udp")}, true},
		"two addresses":        {[]*containersv1.PortMapping{p(80, 80, 0, "127.0.0.1", ""), p(80, 81, 0, "127.0.0.2", "")}, true},
		"side by side":         {[]*containersv1.PortMapping{p(80, 80, 2, "", ""), p(82, 80, 2, "", "")}, true},
		"to the last":          {[]*containersv1.PortMapping{p(65534, 65534, 2, "", "")}, true},
		"twice":                {[]*containersv1.PortMapping{p(80, 80, 0, "", ""), p(80, 81, 0, "", "tcp")}, false},
		"overlapping":          {[]*containersv1.PortMapping{p(80, 80, 3, "", ""), p(82, 90, 1, "", "")}, false},
		"inside":               {[]*containersv1.PortMapping{p(82, 80, 1, "", ""), p(80, 90, 9, "", "")}, false},
		"past the last":        {[]*containersv1.PortMapping{p(65535, 80, 2, "", "")}, false},
		"past the container's": {[]*containersv1.PortMapping{p(80, 65535, 2, "", "")}, false},
		"many":                 {[]*containersv1.PortMapping{p(1, 1, 1<<31, "", "")}, false},
		"wrapping around":      {[]*containersv1.PortMapping{p(80, 80, 1<<32-40, "", "")}, false},
		"every address":        {[]*containersv1.PortMapping{p(80, 80, 0, "::", "")}, true},
		"IPv4 in IPv6":         {[]*containersv1.PortMapping{p(80, 80, 0, "::ffff:127.0.0.1", "")}, true},
		"IPv6":                 {[]*containersv1.PortMapping{p(80, 80, 0, "::1", "")}, false},
		"a name":               {[]*containersv1.PortMapping{p(80, 80, 0, "localhost", "")}, false},
	} {
		err := checkPorts(tc.ports)
		if (err == nil) != tc.ok || err != nil && !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestVolumes(t *testing.T) {
	fresh := func() string { return strings.Repeat("f", 64) }
	vs, err := Volumes(&containersv1.Spec{Volumes: []*containersv1.VolumeMount{
		{Source: t.TempDir(), Target: "/a/"}, {Source: "named", Target: "/b"}, {Target: "/c"}, {Kind: containersv1.VolumeMount_KIND_TMPFS, Target: "/d"},
	}}, &imagesv1.Config{Volumes: []string{"/b", "/e", "f", "/", "/e/"}}, fresh)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"/a", "/b", "/c", "/d", "/e", "/f"}
	if len(vs) != len(want) {
		t.Fatalf("%v", vs)
	}
	for i, v := range vs {
		if v.GetTarget() != want[i] || v.GetKind() == containersv1.VolumeMount_KIND_UNSPECIFIED {
			t.Errorf("%v, want a mount at %s", v, want[i])
		}
		if anonymous := len(v.GetSource()) == 64; anonymous != (i == 2 || i > 3) {
			t.Errorf("%v", v)
		}
	}
	if _, err := Volumes(&containersv1.Spec{Volumes: []*containersv1.VolumeMount{{Source: "/no/such/path", Target: "/a"}}}, nil, fresh); !errdefs.IsInvalidArgument(err) {
		t.Error(err)
	}
}

func TestStopSignal(t *testing.T) {
	for _, tc := range []struct {
		user, image string
		want        uint32
		ok          bool
	}{
		{"", "", 15, true},
		{"", "SIGQUIT", 3, true},
		{"int", "SIGQUIT", 2, true},
		{"9", "", 9, true},
		{"SIGRTMIN+3", "", 37, true},
		{"nope", "", 0, false},
		{"", "nope", 0, false},
		{"0", "", 0, false},
		{"65", "", 0, false},
	} {
		got, err := StopSignal(tc.user, tc.image)
		if (err == nil) != tc.ok || got != tc.want {
			t.Errorf("%q, %q: %d, %v", tc.user, tc.image, got, err)
		}
	}
}

func TestRuntime(t *testing.T) {
	runtimes := []Program{{Name: "mine", Path: "/bin/sh", Args: []string{"-e"}}, {Name: "gone", Path: "/no/such/program"}, {Name: "file", Path: "/etc/passwd"}}
	for name, want := range map[string]string{"": "", "native": "", "mine": "/bin/sh"} {
		got, err := Runtime(name, runtimes)
		if err != nil || got.Path != want || len(got.Args) != len(want)/len("/bin/sh") {
			t.Errorf("%q: %+v, %v", name, got, err)
		}
	}
	for name, want := range map[string]string{
		"other": "there are: file, gone, mine, native", "/bin/sh": "is not known", "./sh": "is not known", "gone": "no program at /no/such/program",
		"file": "no program at /etc/passwd",
	} {
		err := Check("", nil, &containersv1.Spec{Image: "x", Runtime: name}, runtimes)
		if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v; want %q", name, err, want)
		}
	}
	if err := Check("", nil, &containersv1.Spec{Image: "x", Runtime: "mine", Init: true}, runtimes); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "init") {
		t.Errorf("an init: %v", err)
	}
}

func TestLog(t *testing.T) {
	for want, l := range map[string]*containersv1.LogOptions{
		"a log file of 10 bytes: it has 4096 or more": {MaxBytes: 10},
		"a log file of -2 bytes":                      {MaxBytes: -2},
		"a log of 1001 files: 1000 are the most":      {MaxFiles: 1001},
	} {
		if err := Check("", nil, &containersv1.Spec{Image: "a", Log: l}, nil); !errdefs.IsInvalidArgument(err) || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%v: %v", l, err)
		}
	}
	for _, l := range []*containersv1.LogOptions{nil, {MaxBytes: -1}, {MaxBytes: 4096, MaxFiles: 1000}} {
		if err := Check("", nil, &containersv1.Spec{Image: "a", Log: l}, nil); err != nil {
			t.Errorf("%v: %v", l, err)
		}
	}
}
