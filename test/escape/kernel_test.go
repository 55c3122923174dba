package escape

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/gantryd/gantry/internal/insecure"
	shimruntime "github.com/gantryd/gantry/shim/runtime"
	"github.com/gantryd/gantry/shim/runtime/runtimetest"
)

// TestMaskSource (CVE-2025-31133, runc): the image's /dev/null is a link to a file of the kernel's, and
// what should mask /proc/keys is that file, writable: a program of the attacker's as core_pattern is
// executed by the kernel, outside.
func TestMaskSource(t *testing.T) {
	pattern, err := os.ReadFile("/proc/sys/kernel/core_pattern")
	must(t, err)
	stands(t, func(t *testing.T) string {
		b := box(t)
		must(t, os.Symlink("/proc/sys/kernel/core_pattern", filepath.Join(b.Lower, "dev/null")))
		c := b.Sh("attack read /proc/keys; attack write /proc/keys")
		out := output(b)(c)
		if out == "/proc/keys" { // writing to the host's /dev/null is no harm
			return ""
		}
		if strings.Contains(out, strings.TrimSpace(string(pattern))) {
			return "core_pattern, to be written to: " + out
		}
		return out
	}, insecure.Null)
}

// TestMaskMissing (CVE-2025-31133, runc): an image without a /dev/null has its masks all the same.
func TestMaskMissing(t *testing.T) {
	b := box(t)
	must(t, os.WriteFile(filepath.Join(b.Lower, "etc/hidden"), []byte("secret\n"), 0o644))
	for _, there := range []string{"", "a directory", "a file"} {
		null := filepath.Join(b.Lower, "dev/null")
		must(t, os.RemoveAll(null))
		switch there {
		case "a directory":
			must(t, os.Mkdir(null, 0o755))
		case "a file":
			must(t, os.WriteFile(null, []byte("an image's own words"), 0o644))
		}
		c := b.Sh("cat /etc/hidden; wc -c </proc/keys")
		c.Spec.Linux.MaskedPaths = append(c.Spec.Linux.MaskedPaths, "/etc/hidden")
		if out := output(b)(c); out != "0" {
			t.Errorf("/dev/null is %q: %q", there, out)
		}
	}
}

// TestSysctlTarget (CVE-2025-52881, runc): what is mounted on /proc is none, and a sysctl is written to
// a file of the host's that it leads to.
func TestSysctlTarget(t *testing.T) {
	stands(t, func(t *testing.T) string {
		b := box(t)
		fake, victim := fresh(t, b, "proc"), filepath.Join(fresh(t, b, "victim"), "file")
		must(t, os.MkdirAll(filepath.Join(fake, "sys/net/ipv4"), 0o755), os.WriteFile(victim, []byte("untouched"), 0o644))
		must(t, os.Symlink(victim, filepath.Join(fake, "sys/net/ipv4/ip_unprivileged_port_start")))
		c := b.Sh("true")
		c.Spec.Linux.Sysctl = map[string]string{"net.ipv4.ip_unprivileged_port_start": "1"}
		c.Spec.Linux.MaskedPaths, c.Spec.Linux.ReadonlyPaths = nil, nil
		c.Spec.Mounts[0] = bind(fake, "/proc")
		created(t, b, c, func(int) string { return "" })
		raw, err := os.ReadFile(victim)
		must(t, err)
		if string(raw) != "untouched" {
			return "the host's file: " + string(raw)
		}
		return ""
	}, insecure.OverProc, insecure.Procfs)
}

// TestKernelFiles: what the kernel does for its owner, a container cannot ask for: a program to execute
// (core_pattern, modprobe, uevent_helper, binfmt_misc), a reboot (sysrq).
func TestKernelFiles(t *testing.T) {
	attack := func(open bool) attack {
		return func(t *testing.T) string {
			b := box(t)
			c := b.Config("attack", "write", "/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger", "/proc/sys/kernel/sysrq", "/proc/sys/kernel/modprobe",
				"/proc/sys/vm/panic_on_oom", "/proc/sys/fs/binfmt_misc/register", "/sys/kernel/uevent_helper", "/proc/irq/default_smp_affinity", "/proc/kcore", "/proc/self/../sysrq-trigger", "/proc/1/root/proc/sysrq-trigger", "/proc/self/root/proc/sys/kernel/core_pattern")
			if open {
				c.Spec.Linux.ReadonlyPaths, c.Spec.Linux.MaskedPaths = nil, nil
			}
			return strings.ReplaceAll(output(b)(c), "\n", ", ")
		}
	}
	differs(t, attack(false), attack(true))
}

// TestCgroupEscape (CVE-2022-0492, Linux, that containers of Docker and Podman without their profiles
// were open to): as root of a user namespace of its own, a container mounts a hierarchy of the host's
// cgroups, writable, with the program to execute when one of them is empty.
func TestCgroupEscape(t *testing.T) {
	attack := func(filtered bool) attack {
		return func(t *testing.T) string {
			b := box(t)
			c := b.Config("attack", "cgroup")
			if !filtered {
				c.Seccomp = nil
			}
			return strings.ReplaceAll(output(b)(c), "\n", ", ")
		}
	}
	differs(t, attack(true), attack(false))
}

// TestLikeRunc: whatever of /proc and /sys runc leaves closed in the same bundle is closed here.
func TestLikeRunc(t *testing.T) {
	runc, err := exec.LookPath("runc")
	if err != nil {
		t.Fatalf("%v (\"make setup\" installs it with docker.io)", err)
	}
	b := box(t)
	sweep := []string{"attack", "sweep", "/proc", "/sys"}
	ours := strings.Split(output(b)(b.Config(sweep...)), "\n")
	theirs := strings.Split(runByRunc(t, runc, b, b.Config(sweep...)), "\n")
	if len(theirs) < 2 {
		t.Errorf("runc leaves nothing open, which cannot be: %q", theirs)
	}
	for _, p := range ours {
		if !slices.Contains(theirs, p) {
			t.Errorf("%s can be written to; not so with runc", p)
		}
	}
	t.Logf("runc leaves %d files open, gantry %d", len(theirs), len(ours))
	c := b.Config(sweep...)
	c.Spec.Linux.ReadonlyPaths, c.Spec.Linux.MaskedPaths = nil, nil
	if open := strings.Split(output(b)(c), "\n"); len(open) < len(ours)+100 {
		t.Errorf("%d files are open without anything read-only: the sweep sees nothing", len(open))
	}
}

// runByRunc runs c's bundle with runc and answers what it wrote.
func runByRunc(t *testing.T, runc string, b *runtimetest.Box, c *shimruntime.Config) string {
	t.Helper()
	bundle := fresh(t, b, "bundle")
	spec := *c.Spec
	spec.Root = &specs.Root{Path: b.Lower, Readonly: true}
	spec.Linux.CgroupsPath = filepath.Join(filepath.Dir(spec.Linux.CgroupsPath), "runc-"+c.ID) // removed with the box
	raw, err := json.Marshal(&spec)
	must(t, err, os.WriteFile(filepath.Join(bundle, "config.json"), raw, 0o644))
	cmd := exec.Command(runc, "--root", filepath.Join(bundle, "state"), "run", "--bundle", bundle, c.ID)
	cmd.Env = os.Environ()
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("runc: %v\n%s", err, out)
	}
	return strings.TrimSpace(string(out))
}
