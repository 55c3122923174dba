package native

import (
	"bytes"
	"fmt"
	"os"
	"strings"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// security is what this kernel enforces besides the rest; tests put others in their place.
var security = struct{ appArmor, seLinux func() bool }{
	appArmor: func() bool {
		raw, err := os.ReadFile("/sys/module/apparmor/parameters/enabled")
		return err == nil && bytes.HasPrefix(raw, []byte("Y"))
	},
	seLinux: func() bool {
		var st unix.Statfs_t
		return unix.Statfs("/sys/fs/selinux", &st) == nil && st.Type == unix.SELINUX_MAGIC
	},
}

// unconfined is the profile of processes that have none.
const unconfined = "unconfined"

// supportedLabels refuses what nobody here would enforce.
func supportedLabels(p *specs.Process) error {
	for _, x := range []struct {
		field, value, who string
		here              func() bool
	}{
		{"process.apparmorProfile", strings.TrimPrefix(p.ApparmorProfile, unconfined), "AppArmor", security.appArmor},
		{"process.selinuxLabel", p.SelinuxLabel, "SELinux", security.seLinux},
	} {
		if strings.ContainsAny(x.value, "\x00\n") {
			return invalid("%s %q holds a NUL or the end of a line", x.field, x.value)
		}
		if x.value != "" && !x.here() {
			return fmt.Errorf("%s %q: this kernel does not have %s, or it is turned off: %w", x.field, x.value, x.who, errdefs.ErrNotImplemented)
		}
	}
	return nil
}

// labels have the child say what it is to be confined by from its next exec on, while it still sees
// the host's procfs: one that lies would have it confined by nothing (CVE-2019-16884, CVE-2025-52881).
func (p *program) labels(s *specs.Process) {
	if s.ApparmorProfile != "" && (s.ApparmorProfile != unconfined || security.appArmor()) {
		p.say("set AppArmor profile %s", s.ApparmorProfile)
		p.now.class = errdefs.ErrFailedPrecondition // it is not loaded
		p.attribute("apparmor/exec", "exec "+s.ApparmorProfile)
	}
	if s.SelinuxLabel != "" {
		p.say("set SELinux label %s", s.SelinuxLabel)
		p.now.class = errdefs.ErrInvalidArgument
		p.attribute("exec", s.SelinuxLabel)
		p.attribute("keycreate", s.SelinuxLabel)
	}
}

// attribute has the child write one of its security attributes (proc_pid_attr(5)).
func (p *program) attribute(name, value string) {
	p.openProc("/proc/self/attr/"+name, unix.O_WRONLY)
	p.add(unix.SYS_WRITE, regScratch, p.bytes([]byte(value)), uintptr(len(value))).ref(0)
	p.add(unix.SYS_CLOSE, regScratch).ref(0)
}

// supportedMountLabel refuses a label that nobody would look at.
func supportedMountLabel(l *specs.Linux) error {
	switch {
	case l.MountLabel == "":
		return nil
	case strings.ContainsAny(l.MountLabel, "\x00\n\""):
		return invalid("linux.mountLabel %q holds a NUL, a quote or the end of a line", l.MountLabel)
	case !security.seLinux():
		return fmt.Errorf("linux.mountLabel %q: this kernel does not have SELinux, or it is turned off: %w", l.MountLabel, errdefs.ErrNotImplemented)
	}
	return nil
}

// labeled gives a new filesystem the label that its files have for SELinux, unless it has one.
func (b *builder) labeled(kind string, data []string) []string {
	if b.label == "" || kind == "sysfs" {
		return data
	}
	for _, d := range data {
		if key, _, _ := strings.Cut(d, "="); strings.HasSuffix(key, "context") {
			return data
		}
	}
	return append(data[:len(data):len(data)], "context="+b.label)
}
