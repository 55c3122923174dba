package native

import (
	"context"
	"errors"
	"fmt"
	"os"
	osexec "os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/shim/runtime"
	"github.com/gantryd/gantry/shim/runtime/runtimetest"
)

// Each of these tests shows an attack on runtimes that was real, that it works with the guard taken
// away, and that it does not with the guard in place.

// without runs fn with guards taken away.
func without(t *testing.T, take func(), fn func()) {
	t.Helper()
	before := insecure
	defer func() { insecure = before }()
	take()
	fn()
}

// visitor is a process added to a container that has not executed anything yet: what the container's
// own processes can see of it is what an attacker gets.
func visitor(t *testing.T, m *runtimetest.Made) {
	t.Helper()
	p, err := m.Container.Exec(runtimetest.Context(t), m.Process("true"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
}

// peek runs a script in the container for every process but the first and itself.
func peek(t *testing.T, m *runtimetest.Made, script string) string {
	t.Helper()
	out, _, err := m.Exec(m.Process("/bin/sh", "-c", `for p in /proc/[0-9]*; do n=${p#/proc/}; [ $n = 1 ] || [ $n = $$ ] || { `+script+`; }; done; true`))
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func ptracing(c *runtime.Config) *runtime.Config {
	caps := append(slices.Clone(runtimetest.Caps), "CAP_SYS_PTRACE")
	c.Spec.Process.Capabilities = &specs.LinuxCapabilities{Bounding: caps, Permitted: caps, Effective: caps}
	return c
}

// TestExecutable (CVE-2019-5736): a container that gets hold of /proc/<pid>/exe of the runtime's child
// must not be able to write the host's executable, not even with CAP_SYS_PTRACE.
func TestExecutable(t *testing.T) {
	b := runtimetest.New(t, newRuntime(t))
	m := b.Start(ptracing(b.Config("sleep", "1000")))
	visitor(t, m)
	const script = `readlink $p/exe >/dev/null && echo seen; touch $p/exe && echo writable`
	out := peek(t, m, script)
	if os.Getenv(unsealedTest) != "" {
		fmt.Println("OUT", strings.Fields(out))
		return
	}
	if !strings.Contains(out, "seen") || strings.Contains(out, "writable") {
		t.Errorf("with CAP_SYS_PTRACE: %q", out)
	}
	// A script whose interpreter is the runtime's child.
	b.File("bin/evil", "#!/proc/self/exe -test.run=none\n", 0o755)
	if _, _, err := m.Exec(m.Process("evil")); err != nil {
		t.Logf("evil: %v", err)
	}
	// Without that capability nothing is seen of it at all.
	m = b.Start(b.Config("sleep", "1000"))
	visitor(t, m)
	if out := peek(t, m, `ls $p/fd $p/map_files; cat $p/environ $p/maps; readlink $p/exe && echo seen; readlink $p/root && echo seen; readlink $p/cwd && echo seen`); strings.Contains(out, "seen") || strings.Contains(out, "gantry") {
		t.Errorf("without a capability: %q", out)
	}
	// The same with the guard taken away, in a process that was not sealed.
	cmd := osexec.Command(os.Getenv(testExe), "-test.run", "^TestExecutable$", "-test.v")
	cmd.Env = append(os.Environ(), unsealedTest+"=1")
	raw, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(raw), "OUT [seen writable]") {
		t.Errorf("the guard guards nothing: %v\n%s", err, raw)
	}
}

func TestUnsealedIsRefused(t *testing.T) {
	if os.Getenv(unsealedTest) != "" {
		insecure.unsealed = false
		_, err := New()
		fmt.Println("OUT", errdefs.IsFailedPrecondition(err))
		return
	}
	cmd := osexec.Command(os.Getenv(testExe), "-test.run", "^TestUnsealedIsRefused$", "-test.v")
	cmd.Env = append(os.Environ(), unsealedTest+"=1")
	raw, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(raw), "OUT true") {
		t.Errorf("%v\n%s", err, raw)
	}
}

// TestVisitor: what a container with CAP_SYS_PTRACE sees of a process that enters it is nothing of the
// host's: no descriptor, no root, no directory (CVE-2016-9962).
func TestVisitor(t *testing.T) {
	b := runtimetest.New(t, newRuntime(t))
	m := b.Start(ptracing(b.Config("sleep", "1000")))
	visitor(t, m)
	out := peek(t, m, `ls $p/fd | tr '\n' ' '; readlink $p/fd/3 | cut -c1-7; ls -d $p/root`+b.Dir+`; readlink $p/root; readlink $p/cwd`)
	if want := "0 1 2 3 socket:\n"; !strings.HasPrefix(out, want) || !strings.Contains(out, "No such file") || !strings.HasSuffix(out, "/\n/\n") {
		t.Errorf("got %q", out)
	}
}

// TestDescriptors (CVE-2024-21626): a working directory, or a command, that goes through a descriptor
// which the runtime has left open.
func TestDescriptors(t *testing.T) {
	b := runtimetest.New(t, newRuntime(t))
	if err := os.WriteFile(filepath.Join(b.Dir, "marker"), []byte("host\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	tool := filepath.Join(b.Dir, "echo") // not in the image under that name
	if err := os.Link(filepath.Join(b.Lower, "bin/busybox"), tool); err != nil {
		t.Fatal(err)
	}
	m := b.Start(b.Config("sleep", "1000"))
	run := func(c *runtime.Config) (string, error) {
		m, err := b.Create(c)
		if err != nil {
			return "", err
		}
		defer m.Delete(context.Background()) //nolint:errcheck // it is deleted again
		if err := m.Init().Start(runtimetest.Context(t)); err != nil {
			return "", err
		}
		m.Wait()
		return m.Out.Wait(t), nil
	}
	attacks := map[string]func(link string) (string, error){
		"directory": func(link string) (string, error) {
			c := b.Sh("cat ." + b.Dir + "/marker")
			c.Spec.Process.Cwd = link
			return run(c)
		},
		"command": func(link string) (string, error) { return run(b.Config(link+tool, "host")) },
		"directory of exec": func(link string) (string, error) {
			x := m.Process("/bin/sh", "-c", "cat ."+b.Dir+"/marker")
			x.Spec.Cwd = link
			out, _, err := m.Exec(x)
			return out, err
		},
	}
	// try answers the first descriptor with which an attack gets out.
	try := func(how string, from, to int) int {
		for fd := from; fd < to; fd++ {
			if out, err := attacks[how](fmt.Sprintf("/proc/self/fd/%d", fd)); err == nil && strings.Contains(out, "host") {
				return fd
			}
		}
		return -1
	}
	for _, how := range []string{"directory", "command"} {
		open := -1
		without(t, func() { insecure.keepFDs, insecure.cwd = true, true }, func() { open = try(how, 3, 100) })
		if open < 0 {
			t.Errorf("%s: the guard guards nothing", how)
			continue
		}
		if fd := try(how, open, open+1); fd >= 0 {
			t.Errorf("%s: got out through %d", how, fd)
		}
		if how == "directory" { // either guard alone stops this one
			without(t, func() { insecure.keepFDs = true }, func() { open = try(how, open, open+1) })
			if open >= 0 {
				t.Errorf("%s: got out through %d, past the second guard", how, open)
			}
		}
	}
	for how := range attacks {
		if fd := try(how, 3, 30); fd >= 0 {
			t.Errorf("%s: got out through %d", how, fd)
		}
	}
}

// TestMaskSource (CVE-2025-31133): an image whose /dev/null is something else does not choose what a
// masked file shows.
func TestMaskSource(t *testing.T) {
	b := runtimetest.New(t, newRuntime(t))
	if err := os.Symlink("../etc/passwd", filepath.Join(b.Lower, "dev/null")); err != nil {
		t.Fatal(err)
	}
	attack := func() string {
		c := b.Sh("cat /etc/group")
		c.Spec.Linux.MaskedPaths = []string{"/etc/group"}
		out, _ := b.Run(c)
		return out
	}
	if out := attack(); out != "" {
		t.Errorf("the mask shows %q", out)
	}
	without(t, func() { insecure.null = true }, func() {
		if out := attack(); !strings.Contains(out, "alice") {
			t.Errorf("the guard guards nothing: %q", out)
		}
	})
}

// TestMountPointSwapped (CVE-2021-30465, CVE-2025-52565): a mount point that becomes a link after it
// was looked at is not followed.
func TestMountPointSwapped(t *testing.T) {
	b := runtimetest.New(t, newRuntime(t))
	shared, data, victim := filepath.Join(b.Dir, "shared"), filepath.Join(b.Dir, "data"), filepath.Join(b.Dir, "victim")
	attack := func() error {
		for _, d := range []string{shared, data, victim} {
			if err := errors.Join(os.RemoveAll(d), os.Mkdir(d, 0o755)); err != nil {
				t.Fatal(err)
			}
		}
		sub := filepath.Join(shared, "sub")
		insecure.race = func() {
			if err := errors.Join(os.Remove(sub), os.Symlink(victim, sub)); err != nil {
				t.Error(err)
			}
		}
		defer func() { insecure.race = nil }()
		c := b.Sh("true")
		c.Spec.Mounts = append(c.Spec.Mounts,
			specs.Mount{Destination: "/shared", Type: "bind", Source: shared, Options: []string{"rbind"}},
			specs.Mount{Destination: "/shared/sub", Type: "bind", Source: data, Options: []string{"rbind"}})
		_, err := b.Create(c)
		return err
	}
	if err := attack(); err == nil || !errors.Is(err, unix.ELOOP) || !strings.Contains(err.Error(), "/shared/sub") {
		t.Errorf("the mount point is a link: %v", err)
	}
	without(t, func() { insecure.follow = true }, func() {
		if err := attack(); err != nil {
			t.Errorf("the guard guards nothing: %v", err)
		}
	})
}

// TestConsoleLink (CVE-2025-52565): /dev/console of an image that is a link leads nowhere outside.
func TestConsoleLink(t *testing.T) {
	b := runtimetest.New(t, newRuntime(t))
	victim := filepath.Join(b.Dir, "victim")
	if err := os.WriteFile(victim, []byte("host\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	dev := filepath.Join(b.Dir, "dev")
	if err := os.MkdirAll(filepath.Join(dev, "pts"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(victim, filepath.Join(dev, "console")); err != nil {
		t.Fatal(err)
	}
	c := b.Sh("cat " + victim + "; echo; stat -c %F " + victim)
	c.Spec.Process.Terminal = true
	c.Spec.Mounts = slices.DeleteFunc(c.Spec.Mounts, func(m specs.Mount) bool {
		return strings.HasPrefix(m.Destination, "/dev/") && m.Destination != "/dev/pts"
	})
	for i, m := range c.Spec.Mounts {
		if m.Destination == "/dev" {
			c.Spec.Mounts[i] = specs.Mount{Destination: "/dev", Type: "bind", Source: dev, Options: []string{"rbind"}}
		}
	}
	m, err := b.Create(c)
	if err != nil {
		t.Fatal(err)
	}
	_ = m.Init().Terminal().Close()
	if raw, err := os.ReadFile(victim); err != nil || string(raw) != "host\n" {
		t.Errorf("the host's file: %q %v", raw, err)
	}
}

// TestSysctlTarget (CVE-2025-52881): a sysctl is written to procfs, whatever is mounted on /proc.
func TestSysctlTarget(t *testing.T) {
	b := runtimetest.New(t, newRuntime(t))
	victim := filepath.Join(b.Dir, "victim")
	fake := filepath.Join(b.Dir, "proc")
	if err := os.MkdirAll(filepath.Join(fake, "sys/net/ipv4"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(victim, filepath.Join(fake, "sys/net/ipv4/ip_unprivileged_port_start")); err != nil {
		t.Fatal(err)
	}
	attack := func() string {
		if err := os.WriteFile(victim, []byte("untouched"), 0o644); err != nil {
			t.Fatal(err)
		}
		c := b.Sh("true")
		c.Spec.Linux.Sysctl = map[string]string{"net.ipv4.ip_unprivileged_port_start": "1"}
		c.Spec.Linux.MaskedPaths, c.Spec.Linux.ReadonlyPaths = nil, nil
		c.Spec.Mounts[0] = specs.Mount{Destination: "/proc", Type: "bind", Source: fake, Options: []string{"rbind"}}
		m, err := b.Create(c)
		if err != nil {
			t.Fatal(err)
		}
		_ = m.Delete(context.Background())
		raw, err := os.ReadFile(victim)
		if err != nil {
			t.Fatal(err)
		}
		return string(raw)
	}
	if got := attack(); got != "untouched" {
		t.Errorf("the host's file: %q", got)
	}
	without(t, func() { insecure.procfs = true }, func() {
		if got := attack(); got == "untouched" {
			t.Error("the guard guards nothing")
		}
	})
}

// TestProcIsLink (CVE-2019-19921, CVE-2023-27561): an image whose /proc is a link cannot have its masks
// put elsewhere.
func TestProcIsLink(t *testing.T) {
	b := runtimetest.New(t, newRuntime(t))
	if err := errors.Join(os.Remove(filepath.Join(b.Lower, "proc")), os.Symlink("/tmp/elsewhere", filepath.Join(b.Lower, "proc"))); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Create(b.Sh("true")); !errors.Is(err, unix.ELOOP) {
		t.Errorf("%v", err)
	}
}
