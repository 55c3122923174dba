package ocispec

import (
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	containersv1 "github.com/gantryd/gantry/proto/gantry/containers/v1"
	imagesv1 "github.com/gantryd/gantry/proto/gantry/images/v1"
	typesv1 "github.com/gantryd/gantry/proto/gantry/types/v1"
)

const id = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

func container(s *containersv1.Spec) *containersv1.Container {
	return &containersv1.Container{Meta: &typesv1.Meta{Id: id}, Spec: s, Command: []string{"true"}, Volumes: s.GetVolumes()}
}

func TestCommand(t *testing.T) {
	image := &imagesv1.Config{Entrypoint: []string{"/entry"}, Cmd: []string{"serve", "-v"}}
	for _, tc := range []struct {
		name  string
		spec  *containersv1.Spec
		image *imagesv1.Config
		want  string
	}{
		{"the image's", &containersv1.Spec{}, image, "/entry serve -v"},
		{"other arguments", &containersv1.Spec{Args: []string{"help"}}, image, "/entry help"},
		{"another entrypoint drops the image's arguments", &containersv1.Spec{Entrypoint: []string{"sh"}}, image, "sh"},
		{"both", &containersv1.Spec{Entrypoint: []string{"sh"}, Args: []string{"-c", "x"}}, image, "sh -c x"},
		{"no entrypoint", &containersv1.Spec{ClearEntrypoint: true, Args: []string{"ls"}}, image, "ls"},
		{"no entrypoint and nothing else", &containersv1.Spec{ClearEntrypoint: true}, image, ""},
		{"nothing", &containersv1.Spec{}, nil, ""},
		{"an empty word", &containersv1.Spec{Args: []string{""}}, nil, ""},
	} {
		got, err := Command(tc.spec, tc.image)
		if s := strings.Join(got, " "); s != tc.want || (err != nil) != (tc.want == "") || err != nil && !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %q, %v; want %q", tc.name, s, err, tc.want)
		}
	}
}

func TestEnv(t *testing.T) {
	image := &imagesv1.Config{Env: []string{"PATH=/bin", "A=1", "B=2"}}
	got := Env(&containersv1.Spec{Env: []string{"B=3", "A", "C=4", "D", "C=5"}, Tty: true}, image, "h")
	if want := []string{"PATH=/bin", "HOSTNAME=h", "TERM=xterm", "B=3", "C=5"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := Env(&containersv1.Spec{}, nil, "h"); !slices.Equal(got, []string{defaultPath, "HOSTNAME=h"}) {
		t.Errorf("got %q", got)
	}
}

func TestBuild(t *testing.T) {
	c := container(&containersv1.Spec{
		Hostname: "box", Workdir: "/w", NoNewPrivileges: true, ReadOnly: true,
		Resources: &containersv1.Resources{MemoryBytes: 64 << 20, CpuMillis: 1500, Pids: 9},
		Rlimits:   []*containersv1.Rlimit{{Name: "nofile", Soft: 10, Hard: 20}},
	})
	s, err := Build(c, Options{Instance: "gantry", RootFS: "/run/rootfs", Etc: "/etc-files", NetNS: "/run/netns/x"})
	if err != nil {
		t.Fatal(err)
	}
	if s.Linux.CgroupsPath != "/gantry/"+id || s.Hostname != "box" || s.Process.Cwd != "/w" || !s.Root.Readonly || !s.Process.NoNewPrivileges {
		t.Errorf("%+v", s)
	}
	r := s.Linux.Resources
	if *r.Memory.Limit != 64<<20 || *r.Memory.Swap != 128<<20 || *r.CPU.Quota != 150000 || *r.CPU.Period != 100000 || *r.Pids.Limit != 9 {
		t.Errorf("%+v", r)
	}
	if r.Devices[0].Allow || r.Devices[0].Access != "rwm" {
		t.Error("devices are not denied first")
	}
	if l := s.Process.Rlimits[0]; l.Type != "RLIMIT_NOFILE" || l.Soft != 10 || l.Hard != 20 {
		t.Errorf("%+v", l)
	}
	if len(s.Process.Capabilities.Bounding) != 14 || len(s.Process.Capabilities.Inheritable) != 0 || len(s.Process.Capabilities.Ambient) != 0 {
		t.Errorf("%+v", s.Process.Capabilities)
	}
	if !slices.Contains(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.NetworkNamespace, Path: "/run/netns/x"}) || len(s.Linux.Namespaces) != 6 {
		t.Errorf("%+v", s.Linux.Namespaces)
	}
	if s.Linux.Seccomp != nil {
		t.Error("a seccomp section")
	}
	for _, m := range s.Mounts {
		if m.Type == "bind" && !slices.Contains(m.Options, "ro") {
			t.Errorf("%s is writable in a read-only container", m.Destination)
		}
		if (m.Destination == "/sys" || m.Destination == "/sys/fs/cgroup") && !slices.Contains(m.Options, "ro") {
			t.Errorf("%s is writable", m.Destination)
		}
	}
	if _, err := json.Marshal(s); err != nil {
		t.Error(err)
	}
}

func TestHostNetwork(t *testing.T) {
	s, err := Build(container(&containersv1.Spec{NetworkMode: containersv1.NetworkMode_NETWORK_MODE_HOST}), Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range s.Linux.Namespaces {
		if n.Type == specs.NetworkNamespace {
			t.Error("a network namespace of its own on the host's network")
		}
	}
	if len(s.Linux.Sysctl) != 0 {
		t.Errorf("would set the host's %v", s.Linux.Sysctl)
	}
	if h, _ := os.Hostname(); s.Hostname != h {
		t.Errorf("hostname %q, want the host's", s.Hostname)
	}
}

func TestMounts(t *testing.T) {
	spec := &containersv1.Spec{Volumes: []*containersv1.VolumeMount{
		{Source: "/srv/deep", Target: "/data/a/b", ReadOnly: true},
		{Source: "/srv", Target: "/data/", Propagation: "rslave"},
		{Kind: containersv1.VolumeMount_KIND_TMPFS, Target: "/dev/shm", Options: []string{"exec", "size=1m"}},
		{Source: "vol", Target: "/vol", ReadOnly: true},
		{Source: "/my/hosts", Target: "/etc/hosts"},
	}}
	s, err := Build(container(spec), Options{Etc: "/e", Volumes: []*typesv1.Mount{{Type: "bind", Source: "/v/vol", Target: "/vol/", Options: []string{"rbind", "rw"}}}})
	if err != nil {
		t.Fatal(err)
	}
	at := map[string]specs.Mount{}
	index := map[string]int{}
	for i, m := range s.Mounts {
		if _, twice := at[m.Destination]; twice {
			t.Errorf("%s is mounted twice", m.Destination)
		}
		at[m.Destination], index[m.Destination] = m, i
	}
	if index["/data"] > index["/data/a/b"] {
		t.Error("a mount inside another comes first and is hidden")
	}
	if o := at["/data/a/b"].Options; !slices.Equal(o, []string{"rbind", "rprivate", "ro"}) {
		t.Errorf("%q", o)
	}
	if o := at["/dev/shm"].Options; !slices.Equal(o, []string{"nosuid", "nodev", "size=1m"}) {
		t.Errorf("%q", o)
	}
	if m := at["/vol"]; m.Source != "/v/vol" || !slices.Equal(m.Options, []string{"rbind", "ro"}) {
		t.Errorf("%+v", m)
	}
	if at["/etc/hosts"].Source != "/my/hosts" || at["/etc/hostname"].Source != "/e/hostname" {
		t.Error("the user's /etc/hosts does not take the place of ours")
	}
	if s.Linux.RootfsPropagation != "rslave" {
		t.Errorf("root is %q", s.Linux.RootfsPropagation)
	}
	if _, err := Build(container(spec), Options{}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("a volume that is not mounted: %v", err)
	}
}

func TestCheck(t *testing.T) {
	bind := func(source, target string) *containersv1.Spec {
		return &containersv1.Spec{Volumes: []*containersv1.VolumeMount{{Kind: containersv1.VolumeMount_KIND_BIND, Source: source, Target: target}}}
	}
	for name, s := range map[string]*containersv1.Spec{
		"target is the root":      bind("/a", "/"),
		"target climbs to root":   bind("/a", "/a/../"),
		"target is relative":      bind("/a", "b"),
		"source is relative":      bind("a", "/b"),
		"two at one place":        {Volumes: []*containersv1.VolumeMount{{Source: "/a", Target: "/x"}, {Source: "/b", Target: "/x/"}}},
		"volume name with slash":  {Volumes: []*containersv1.VolumeMount{{Source: "../a", Target: "/x"}}},
		"tmpfs option":            {Volumes: []*containersv1.VolumeMount{{Kind: containersv1.VolumeMount_KIND_TMPFS, Target: "/x", Options: []string{"bogus"}}}},
		"propagation":             {Volumes: []*containersv1.VolumeMount{{Source: "/a", Target: "/x", Propagation: "sideways"}}},
		"propagation of a volume": {Volumes: []*containersv1.VolumeMount{{Source: "a", Target: "/x", Propagation: "rshared"}}},
		"environment":             {Env: []string{"=x"}},
		"environment with NUL":    {Env: []string{"A=\x00"}},
		"argument with NUL":       {Args: []string{"\x00"}},
		"hostname":                {Hostname: strings.Repeat("x", 65)},
		"working directory":       {Workdir: "tmp"},
		"little memory":           {Resources: &containersv1.Resources{MemoryBytes: 4096}},
		"negative memory":         {Resources: &containersv1.Resources{MemoryBytes: -1}},
		"little processor":        {Resources: &containersv1.Resources{CpuMillis: 9}},
		"more than there is":      {Resources: &containersv1.Resources{CpuMillis: 2001}},
		"pids":                    {Resources: &containersv1.Resources{Pids: -2}},
		"limit":                   {Rlimits: []*containersv1.Rlimit{{Name: "files", Soft: 1, Hard: 1}}},
		"limit above":             {Rlimits: []*containersv1.Rlimit{{Name: "nofile", Soft: 2, Hard: 1}}},
		"limit twice":             {Rlimits: []*containersv1.Rlimit{{Name: "nofile"}, {Name: "nofile"}}},
		"extra host":              {ExtraHosts: []string{"a:b"}},
		"extra host without":      {ExtraHosts: []string{"a"}},
		"nameserver":              {Dns: []string{"dns.example"}},
	} {
		if err := Check(s, 2); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, s := range map[string]*containersv1.Spec{
		"nothing":     {},
		"bind":        bind("/a", "/b"),
		"IPv6 host":   {ExtraHosts: []string{"a:::1", "b:[::1]", "c:host-gateway"}},
		"no limit":    {Rlimits: []*containersv1.Rlimit{{Name: "core", Soft: math.MaxUint64, Hard: math.MaxUint64}}, Resources: &containersv1.Resources{Pids: -1}},
		"variable":    {Env: []string{"A"}},
		"all of them": {Resources: &containersv1.Resources{CpuMillis: 2000, MemoryBytes: minMemory}},
	} {
		if err := Check(s, 2); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestResolvConf(t *testing.T) {
	own, host := containersv1.NetworkMode_NETWORK_MODE_UNSPECIFIED, containersv1.NetworkMode_NETWORK_MODE_HOST
	for _, tc := range []struct {
		name, etc, resolved string
		mode                containersv1.NetworkMode
		dns                 []string
		want                string
	}{
		{"plain", "# c\nnameserver 10.0.0.1\nsearch a b\n", "", own, nil, "nameserver 10.0.0.1\nsearch a b\n"},
		{"loopback goes", "nameserver 127.0.0.1\nnameserver 10.0.0.1\n", "", own, nil, "nameserver 10.0.0.1\n"},
		{"nothing left", "nameserver ::1\n", "", own, nil, "nameserver 8.8.8.8\nnameserver 8.8.4.4\n"},
		{"no file", "", "", own, nil, "nameserver 8.8.8.8\nnameserver 8.8.4.4\n"},
		{"resolved", "nameserver 127.0.0.53\noptions edns0\n", "nameserver 192.0.2.1\nsearch x\n", own, nil, "nameserver 192.0.2.1\nsearch x\n"},
		{"IPv6 goes where IPv4 is", "nameserver 2001:db8::1\nnameserver 192.0.2.1\n", "", own, nil, "nameserver 192.0.2.1\n"},
		{"IPv6 stays alone", "nameserver 2001:db8::1\nnameserver fe80::1%eth0\n", "", own, nil, "nameserver 2001:db8::1\n"},
		{"the user's", "nameserver 10.0.0.1\nsearch a\n", "", own, []string{"1.1.1.1"}, "nameserver 1.1.1.1\nsearch a\n"},
		{"the host's as it is", "# c\nnameserver 127.0.0.53\n", "nameserver 192.0.2.1\n", host, nil, "# c\nnameserver 127.0.0.53\n"},
		{"the user's on the host", "nameserver 127.0.0.53\n", "", host, []string{"1.1.1.1"}, "nameserver 1.1.1.1\n"},
	} {
		dir := t.TempDir()
		if tc.etc != "" {
			os.WriteFile(filepath.Join(dir, "resolv.conf"), []byte(tc.etc), 0o600)
		}
		os.WriteFile(filepath.Join(dir, "resolved"), []byte(tc.resolved), 0o600)
		got, err := resolvConf(&containersv1.Spec{NetworkMode: tc.mode, Dns: tc.dns}, Host{Etc: dir, Resolved: filepath.Join(dir, "resolved")})
		if err != nil || string(got) != tc.want {
			t.Errorf("%s: %q, %v; want %q", tc.name, got, err, tc.want)
		}
	}
}

func TestHostsInPlace(t *testing.T) {
	dir := t.TempDir()
	c := container(&containersv1.Spec{Hostname: "box", Domainname: "lan", ExtraHosts: []string{"db:10.1.1.1", "me:host-gateway"}})
	if err := WriteEtc(dir, c, ThisHost()); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(filepath.Join(dir, "hosts")) // as a container has it mounted
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	c.Status = &containersv1.Status{Addresses: []*containersv1.Address{{Address: "10.4.0.2/24", Gateway: "10.4.0.1"}}}
	if err := WriteHosts(dir, c, ThisHost()); err != nil {
		t.Fatal(err)
	}
	raw := make([]byte, 4096)
	n, _ := f.Read(raw)
	for _, want := range []string{"127.0.0.1\tlocalhost\n", "10.1.1.1\tdb\n", "10.4.0.1\tme\n", "10.4.0.2\tbox.lan box\n"} {
		if !strings.Contains(string(raw[:n]), want) {
			t.Errorf("no %q in %q", want, raw[:n])
		}
	}
	if fi, _ := os.Stat(filepath.Join(dir, "resolv.conf")); fi.Mode().Perm() != 0o644 {
		t.Errorf("mode %v", fi.Mode())
	}
}

func TestExec(t *testing.T) {
	c := container(&containersv1.Spec{Env: []string{"A=1"}, Workdir: "/w"})
	p, err := Exec(c, &containersv1.ExecStart{Args: []string{"ps"}, Tty: true, Env: []string{"B=2"}, Size: &typesv1.TerminalSize{Columns: 80, Rows: 24}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if p.Cwd != "/w" || !p.Terminal || p.ConsoleSize.Width != 80 || !slices.Contains(p.Env, "A=1") || !slices.Contains(p.Env, "B=2") || !slices.Contains(p.Env, "TERM=xterm") {
		t.Errorf("%+v", p)
	}
	for _, x := range []*containersv1.ExecStart{{}, {Args: []string{""}}, {Args: []string{"a"}, Workdir: "b"}, {Args: []string{"a"}, Env: []string{"="}}} {
		if _, err := Exec(c, x, nil); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%v: %v", x, err)
		}
	}
}

// FuzzResolv holds what is written to what can be read again: a server a line, and never one of loopback.
func FuzzResolv(f *testing.F) {
	f.Add("nameserver 10.0.0.1\nsearch a\n")
	f.Add("nameserver\n;x\n\tnameserver 127.0.0.1 # x\n")
	f.Fuzz(func(t *testing.T, in string) {
		servers, rest := parseResolv([]byte(in))
		for _, s := range reachable(servers) {
			if strings.HasPrefix(s, "127.") || strings.ContainsAny(s, " \n") {
				t.Errorf("%q", s)
			}
		}
		for _, r := range rest {
			if r == "" || strings.HasPrefix(r, "nameserver ") {
				t.Errorf("%q", r)
			}
		}
	})
}
