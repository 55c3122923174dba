package native

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/internal/insecure"
	"github.com/gantryd/gantry/shim/runtime/runtimetest"
)

// TestLabelsAreSet: on a kernel that has what it says it has, a label is set or the container is not
// made. Here it has neither, so the child finds that out.
func TestLabelsAreSet(t *testing.T) {
	b := runtimetest.New(t, newRuntime(t))
	if security.appArmor() || security.seLinux() {
		t.Skip("SKIPPED: this kernel has AppArmor or SELinux: the suite runs under them")
	}
	before := security
	defer func() { security = before }()
	security.appArmor = func() bool { return true }
	security.seLinux = func() bool { return true }
	m := b.Start(b.Config("sleep", "1000"))
	for want, set := range map[string]func(*specs.Process){
		"set AppArmor profile some-profile": func(p *specs.Process) { p.ApparmorProfile = "some-profile" },
		"set SELinux label a:b:c:s0":        func(p *specs.Process) { p.SelinuxLabel = "a:b:c:s0" },
	} {
		c := b.Config("true")
		set(c.Spec.Process)
		if _, err := b.Create(c); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
		x := m.Process("true")
		set(x.Spec)
		if _, _, err := m.Exec(x); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("exec: %s: %v", want, err)
		}
	}
	for want, set := range map[string]func(*specs.Spec){
		"holds a NUL": func(s *specs.Spec) { s.Process.ApparmorProfile = "a\nb" },
		"a quote":     func(s *specs.Spec) { s.Linux.MountLabel = `a"b` },
	} {
		c := b.Config("true")
		set(c.Spec)
		if _, err := b.Create(c); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
}

func TestMountLabel(t *testing.T) {
	t.Parallel()
	b := &builder{label: "u:r:t:s0:c1,c2"}
	for _, c := range []struct {
		kind string
		data []string
		want string
	}{
		{"tmpfs", []string{"size=1m"}, "size=1m,context=u:r:t:s0:c1,c2"},
		{"tmpfs", []string{"rootcontext=x"}, "rootcontext=x"},
		{"sysfs", nil, ""},
	} {
		if got := strings.Join(b.labeled(c.kind, c.data), ","); got != c.want {
			t.Errorf("%s %v: %s", c.kind, c.data, got)
		}
	}
	if got := joined([]string{"lowerdir=a", "context=u:r:t:s0:c1,c2"}); got != `lowerdir=a,context="u:r:t:s0:c1,c2"` {
		t.Error(got)
	}
	if got := (&builder{}).labeled("tmpfs", nil); got != nil {
		t.Error(got)
	}
}

// TestProcfsOfLabels (CVE-2019-16884, CVE-2025-52881): what is written to confine a process must reach
// the kernel, not a file that somebody has put there.
func TestProcfsOfLabels(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("SKIPPED: mounting needs root")
	}
	attempt := func() (string, error) {
		p := &program{}
		dir := t.TempDir()
		file := filepath.Join(dir, "self/attr/apparmor/exec")
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, nil, 0o644)); err != nil {
			t.Fatal(err)
		}
		p.prelude = func() error {
			if err := ownMounts(); err != nil {
				return err
			}
			return unix.Mount(dir, "/proc", "", unix.MS_BIND, "")
		}
		ctl, theirs, err := newControl()
		if err != nil {
			t.Fatal(err)
		}
		defer ctl.close()
		p.controlFD = theirs
		p.say("label")
		p.attribute("apparmor/exec", "exec profile")
		p.addKind(kindReady)
		c, err := p.spawn(0, -1)
		p.closeControl()
		if err != nil {
			t.Fatal(err)
		}
		defer c.destroy()
		rec, _, err := ctl.read()
		if err == nil && rec.index != ready {
			err = p.failed(rec)
		}
		raw, _ := os.ReadFile(file)
		return string(raw), err
	}
	if wrote, err := attempt(); !errors.Is(err, unix.EXDEV) || wrote != "" {
		t.Errorf("%v, and %q was written", err, wrote)
	}
	without(insecure.Procfs, func() {
		if wrote, err := attempt(); err != nil || wrote != "exec profile" {
			t.Errorf("the guard guards nothing: %v, %q", err, wrote)
		}
	})
}
