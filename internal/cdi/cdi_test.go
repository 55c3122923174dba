package cdi

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

const vendor = `{"cdiVersion": "0.6.0", "kind": "example.com/thing", "containerEdits": {"env": ["THING=yes"]}, "devices": [
	{"name": "one", "containerEdits": {"deviceNodes": [{"path": "/dev/thing", "hostPath": "/dev/null", "permissions": "rw"}],
		"mounts": [{"hostPath": "/usr/lib", "containerPath": "/opt/thing", "options": ["ro", "rbind"]}],
		"hooks": [{"hookName": "createContainer", "path": "/bin/true"}]}},
	{"name": "seen", "containerEdits": {"deviceNodes": [{"path": "/dev/seen", "hostPath": "/dev/full", "permissions": "none"}]}},
	{"name": "lost", "containerEdits": {"deviceNodes": [{"path": "/dev/lost", "hostPath": "/dev/no-such-device"}]}}]}`

func write(t *testing.T, dir, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestInject(t *testing.T) {
	dir := t.TempDir()
	d := Dirs{filepath.Join(dir, "not-there"), dir}
	inject := func(names ...string) (string, error) {
		s := &specs.Spec{
			Process: &specs.Process{}, Mounts: []specs.Mount{{Destination: "/proc", Type: "proc"}},
			Linux: &specs.Linux{Resources: &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Access: "rwm"}}}},
		}
		err := d.Inject(s, names)
		raw, jerr := json.Marshal(s)
		if jerr != nil {
			t.Fatal(jerr)
		}
		return string(raw), err
	}
	if err := d.Check([]string{"example.com/thing=one"}); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "known: none") {
		t.Errorf("%v", err)
	}
	write(t, dir, "vendor.json", vendor)
	if err := d.Check([]string{"example.com/thing=one", "example.com/thing=seen"}); err != nil {
		t.Error(err)
	}
	got, err := inject("example.com/thing=one", "example.com/thing=seen")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`"env":["THING=yes"]`, `{"path":"/dev/thing","type":"c","major":1,"minor":3`, `{"path":"/dev/seen","type":"c","major":1,"minor":7`,
		`"devices":[{"allow":false,"access":"rwm"},{"allow":true,"type":"c","major":1,"minor":3,"access":"rw"}]`,
		`{"destination":"/opt/thing","source":"/usr/lib","options":["ro","rbind"]}`, `"createContainer":[{"path":"/bin/true"}]`,
	} {
		if !strings.Contains(got, want) {
			t.Errorf("no %s in %s", want, got)
		}
	}
	write(t, dir, "bad.json", "{")
	for name, want := range map[string]string{
		"example.com/thing=two": "known: example.com/thing=lost, example.com/thing=one, example.com/thing=seen", "thing": "write vendor.com/class=name",
		"example.com/other=one": "bad.json is damaged",
	} {
		if err := d.Check([]string{name}); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", name, err, want)
		}
	}
	if _, err := inject("example.com/thing=lost"); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "/dev/no-such-device") {
		t.Errorf("%v", err)
	}
	if before, err := inject(); err != nil || strings.Contains(before, "THING") {
		t.Errorf("%s, %v", before, err)
	}
}
