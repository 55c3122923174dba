package containers

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/gantryd/gantry/ctl/cli"
	containersv1 "github.com/gantryd/gantry/proto/gantry/containers/v1"
)

func TestParsePublish(t *testing.T) {
	t.Parallel()
	type m = containersv1.PortMapping
	for in, want := range map[string]*m{
		"80":                  {Protocol: "tcp", ContainerPort: 80, Count: 1},
		"53/udp":              {Protocol: "udp", ContainerPort: 53, Count: 1},
		"53/UDP":              {Protocol: "udp", ContainerPort: 53, Count: 1},
		"8080:80":             {Protocol: "tcp", HostPort: 8080, ContainerPort: 80, Count: 1},
		"0:80":                {Protocol: "tcp", ContainerPort: 80, Count: 1},
		":80":                 {Protocol: "tcp", ContainerPort: 80, Count: 1},
		"127.0.0.1:8080:80":   {Protocol: "tcp", HostAddress: "127.0.0.1", HostPort: 8080, ContainerPort: 80, Count: 1},
		"127.0.0.1::80/udp":   {Protocol: "udp", HostAddress: "127.0.0.1", ContainerPort: 80, Count: 1},
		"[::1]:8080:80":       {Protocol: "tcp", HostAddress: "::1", HostPort: 8080, ContainerPort: 80, Count: 1},
		"[::]::80":            {Protocol: "tcp", HostAddress: "::", ContainerPort: 80, Count: 1},
		"8000-8009:9000-9009": {Protocol: "tcp", HostPort: 8000, ContainerPort: 9000, Count: 10},
		"9000-9009":           {Protocol: "tcp", ContainerPort: 9000, Count: 10},
		"65535:65535":         {Protocol: "tcp", HostPort: 65535, ContainerPort: 65535, Count: 1},
	} {
		if got, err := ParsePublish(in); err != nil || !proto.Equal(got, want) {
			t.Errorf("%q: %v, %v", in, got, err)
		}
	}
	for in, want := range map[string]string{
		"":                    `"" is no port`,
		"0":                   `"0" is no port`,
		"65536":               `"65536" is no port`,
		"http":                `"http" is no port`,
		"+80":                 `"+80" is no port`,
		"80/sctp":             `protocol "sctp" is not known`,
		"80/":                 `protocol "" is not known`,
		"8080:":               `"" is no port`,
		"x:80":                `"x" is no port`,
		"host:8080:80":        `"host" is no address`,
		"1.2.3:8080:80":       `"1.2.3" is no address`,
		"::1:8080:80":         "too many colons",
		"[::1]:80":            "HOSTPORT:PORT",
		"[::1]:1:2:3":         "HOSTPORT:PORT",
		"[::1":                "brackets",
		"[]:8080:80":          "address is empty",
		"8000-8001:9000":      "2 ports of the host for 1 of the container",
		"8000:9000-9001":      "1 ports of the host for 2 of the container",
		"9-8":                 "no range",
		"8-":                  "no range",
		"65530-65536:1-7":     "no range",
		"127.0.0.1:1:2:3/tcp": "too many colons",
	} {
		if got, err := ParsePublish(in); cli.ExitCode(err) != 2 || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "--publish") {
			t.Errorf("%q: %v, %v", in, got, err)
		}
	}
}

func TestPortText(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"8080:80":           "0.0.0.0:8080->80/tcp",
		"80/udp":            "80/udp",
		"[::1]:8080:80":     "[::1]:8080->80/tcp",
		"127.0.0.1:1-3:4-6": "127.0.0.1:1-3->4-6/tcp",
		"4-6":               "4-6/tcp",
	} {
		m, err := ParsePublish(in)
		if err != nil {
			t.Fatal(err)
		}
		if got := portText(m); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
	if got := portText(&containersv1.PortMapping{ContainerPort: 80}); got != "80/tcp" {
		t.Errorf("bare: %q", got)
	}
}

func FuzzParsePublish(f *testing.F) {
	for _, s := range []string{"80", "8080:80/udp", "[::1]:8000-8009:9000-9009", "127.0.0.1::80", "a:b:c"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		m, err := ParsePublish(s)
		if err != nil {
			if cli.ExitCode(err) != 2 {
				t.Errorf("%q: %v is no usage error", s, err)
			}
			return
		}
		if m.GetContainerPort() == 0 || m.GetCount() == 0 || m.GetContainerPort()+m.GetCount() > 1<<16 || m.GetHostPort() != 0 && m.GetHostPort()+m.GetCount() > 1<<16 {
			t.Errorf("%q: %v", s, m)
		}
	})
}

func TestParseVolume(t *testing.T) {
	t.Parallel()
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	const (
		bind   = containersv1.VolumeMount_KIND_BIND
		volume = containersv1.VolumeMount_KIND_VOLUME
	)
	type m = containersv1.VolumeMount
	for in, want := range map[string]*m{
		"/data":                    {Kind: volume, Target: "/data"},
		"db:/data":                 {Kind: volume, Source: "db", Target: "/data"},
		"db:/data:ro":              {Kind: volume, Source: "db", Target: "/data", ReadOnly: true},
		"db:/data:rw":              {Kind: volume, Source: "db", Target: "/data"},
		"/srv:/data":               {Kind: bind, Source: "/srv", Target: "/data", CreateSource: true},
		"/srv/../x:/data:ro":       {Kind: bind, Source: "/x", Target: "/data", CreateSource: true, ReadOnly: true},
		"./a:/data":                {Kind: bind, Source: filepath.Join(here, "a"), Target: "/data", CreateSource: true},
		"..:/data":                 {Kind: bind, Source: filepath.Dir(here), Target: "/data", CreateSource: true},
		"/srv:/data:rslave,ro":     {Kind: bind, Source: "/srv", Target: "/data", CreateSource: true, ReadOnly: true, Propagation: "rslave"},
		"/srv:/data:z":             {Kind: bind, Source: "/srv", Target: "/data", CreateSource: true},
		"/srv:/data:ro,Z":          {Kind: bind, Source: "/srv", Target: "/data", CreateSource: true, ReadOnly: true},
		"/srv:/data:cached":        {Kind: bind, Source: "/srv", Target: "/data", CreateSource: true},
		"/srv:/data:delegated,ro":  {Kind: bind, Source: "/srv", Target: "/data", CreateSource: true, ReadOnly: true},
		"db:/data:nocopy":          {Kind: volume, Source: "db", Target: "/data"},
		"db:/data:z,consistent":    {Kind: volume, Source: "db", Target: "/data"},
		"/srv:/data with space:ro": {Kind: bind, Source: "/srv", Target: "/data with space", CreateSource: true, ReadOnly: true},
	} {
		if got, err := ParseVolume(in); err != nil || !proto.Equal(got, want) {
			t.Errorf("%q: %v, %v", in, got, err)
		}
	}
	for in, want := range map[string]string{
		"": "must be absolute", "data": "must be absolute", "db:data": "must be absolute", ":/data": "source is empty",
		"a:/b:ro:x": "too many colons", "a:/b:wx": `"wx" is not known`, "a:/": "cannot be its root", "/": "cannot be its root",
		"/x:/b/..": "cannot be its root", "~/x:/data": "$HOME", "~:/data": "$HOME", "db:/data:rslave": "is a volume", "/srv:/data:nocopy": "is a path of the host",
	} {
		if got, err := ParseVolume(in); cli.ExitCode(err) != 2 || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "--volume") {
			t.Errorf("%q: %v, %v", in, got, err)
		}
	}
}

func TestParseMount(t *testing.T) {
	t.Parallel()
	const (
		bind   = containersv1.VolumeMount_KIND_BIND
		volume = containersv1.VolumeMount_KIND_VOLUME
		tmpfs  = containersv1.VolumeMount_KIND_TMPFS
	)
	type m = containersv1.VolumeMount
	for in, want := range map[string]*m{
		"target=/data":                                                     {Kind: volume, Target: "/data"},
		"type=volume,source=db,target=/data":                               {Kind: volume, Source: "db", Target: "/data"},
		"type=bind,src=/a,dst=/data,ro":                                    {Kind: bind, Source: "/a", Target: "/data", ReadOnly: true},
		"type=bind,source=/a,destination=/data,readonly=false":             {Kind: bind, Source: "/a", Target: "/data"},
		"TYPE=bind,Source=/a,Target=/data,readonly=true":                   {Kind: bind, Source: "/a", Target: "/data", ReadOnly: true},
		"type=bind,source=/a,target=/data,bind-propagation=rshared":        {Kind: bind, Source: "/a", Target: "/data", Propagation: "rshared"},
		`type=bind,"source=/a,b",target=/data`:                             {Kind: bind, Source: "/a,b", Target: "/data"},
		"type=bind,source=/a,target=/data,consistency=cached":              {Kind: bind, Source: "/a", Target: "/data"},
		"source=db,target=/data,volume-nocopy":                             {Kind: volume, Source: "db", Target: "/data"},
		"type=tmpfs,target=/run,tmpfs-size=64m,tmpfs-mode=1777":            {Kind: tmpfs, Target: "/run", Options: []string{"size=64m", "mode=1777"}},
		"type=bind,source=/x=y,target=/data=z":                             {Kind: bind, Source: "/x=y", Target: "/data=z"},
		"source=/a,bind-propagation=rslave,type=bind,target=/d,readonly=1": {Kind: bind, Source: "/a", Target: "/d", Propagation: "rslave", ReadOnly: true},
	} {
		if got, err := ParseMount(in); err != nil || !proto.Equal(got, want) {
			t.Errorf("%q: %v, %v", in, got, err)
		}
	}
	for in, want := range map[string]string{
		"":          "it is empty",
		"type=bind": "target is missing",
		"type=bind,source=/a,target=/d,consistency=z": `consistency "z" is not known`,
		"target=data":                          "must be absolute",
		"target=/":                             "cannot be its root",
		"type=nfs,target=/d":                   `type "nfs" is not known`,
		"type=bind,source=a,target=/d":         "must be an absolute path",
		"type=bind,target=/d":                  "must be an absolute path",
		"source=/a,target=/d":                  "add type=bind",
		"type=tmpfs,source=x,target=/d":        "has no source",
		"target=/d,bind-propagation=rslave":    "type=bind",
		"target=/d,tmpfs-size=1m":              "type=tmpfs",
		"target=/d,bind-propagation=x":         "not known",
		"target=/d,readonly=maybe":             "true or false",
		"target=/d,volume-driver=x":            `"volume-driver" is not known`,
		"target=/d,":                           `"" is not known`,
		`target="/d`:                           "quote",
		"target=/d\ntype=bind":                 "more than one line",
		"type=bind,source=/a,target=/d\n\"x\n": "more than one line",
	} {
		if got, err := ParseMount(in); cli.ExitCode(err) != 2 || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "--mount") {
			t.Errorf("%q: %v, %v", in, got, err)
		}
	}
}

// sane is what every mount that was parsed must be.
func sane(t *testing.T, s string, m *containersv1.VolumeMount, err error) {
	t.Helper()
	if err != nil {
		if cli.ExitCode(err) != 2 {
			t.Errorf("%q: %v is no usage error", s, err)
		}
		return
	}
	if !filepath.IsAbs(m.GetTarget()) || filepath.Clean(m.GetTarget()) == "/" {
		t.Errorf("%q: target %q", s, m.GetTarget())
	}
	if m.GetKind() == containersv1.VolumeMount_KIND_BIND && !filepath.IsAbs(m.GetSource()) {
		t.Errorf("%q: source %q", s, m.GetSource())
	}
	if m.GetKind() != containersv1.VolumeMount_KIND_BIND && (m.GetPropagation() != "" || strings.HasPrefix(m.GetSource(), "/")) {
		t.Errorf("%q: %v", s, m)
	}
}

func FuzzParseVolume(f *testing.F) {
	for _, s := range []string{"/data", "db:/data:ro", "./x:/data:rslave,ro", "~:/x", "::"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		m, err := ParseVolume(s)
		sane(t, s, m, err)
	})
}

func FuzzParseMount(f *testing.F) {
	for _, s := range []string{"type=bind,source=/a,target=/b,ro", "type=tmpfs,target=/run,tmpfs-size=1m", `"a,b"`, "target=/x\ny"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		m, err := ParseMount(s)
		sane(t, s, m, err)
	})
}

func TestMoment(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	env := &cli.Env{Now: func() time.Time { return now }}
	for in, want := range map[string]time.Time{
		"10m":                            now.Add(-10 * time.Minute),
		"1h30m":                          now.Add(-90 * time.Minute),
		"1700000000":                     time.Unix(1700000000, 0),
		"1700000000.5":                   time.Unix(1700000000, 500e6),
		"1700000000.123456789":           time.Unix(1700000000, 123456789),
		"2026-01-02T03:04:05Z":           now,
		"2026-01-02T03:04:05.25+01:00":   time.Date(2026, 1, 2, 2, 4, 5, 250e6, time.UTC),
		"2026-01-02T03:04:05":            time.Date(2026, 1, 2, 3, 4, 5, 0, time.Local),
		"2026-01-02T03:04":               time.Date(2026, 1, 2, 3, 4, 0, 0, time.Local),
		"2026-01-02 03:04:05":            time.Date(2026, 1, 2, 3, 4, 5, 0, time.Local),
		"2026-01-02":                     time.Date(2026, 1, 2, 0, 0, 0, 0, time.Local),
		"2026-01-02T03:04:05.000000001Z": now.Add(1),
	} {
		if got, err := cli.Moment(env, "--since", in); err != nil || !got.AsTime().Equal(want) {
			t.Errorf("%q: %v, %v", in, got.AsTime(), err)
		}
	}
	if got, err := cli.Moment(env, "--since", ""); got != nil || err != nil {
		t.Errorf("unset: %v, %v", got, err)
	}
	for _, bad := range []string{"yesterday", "nan", "inf", "1e300", "-5", "99999999999999", "1.2.3", "1700000000.x", "1700000000.1234567890", "2026-13-01"} {
		if got, err := cli.Moment(env, "--since", bad); cli.ExitCode(err) != 2 || !strings.Contains(err.Error(), "--since") {
			t.Errorf("%q: %v, %v", bad, got, err)
		}
	}
}
