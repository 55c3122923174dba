package escape

import (
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/internal/insecure"
	shimruntime "github.com/gantryd/gantry/shim/runtime"
	"github.com/gantryd/gantry/shim/runtime/runtimetest"
)

// tracing is c with CAP_SYS_PTRACE, which shows a container what its own processes are made of.
func tracing(c *shimruntime.Config) *shimruntime.Config {
	caps := append(slices.Clone(runtimetest.Caps), "CAP_SYS_PTRACE")
	c.Spec.Process.Capabilities = &specs.LinuxCapabilities{Bounding: caps, Permitted: caps, Effective: caps}
	return c
}

// visitor adds a process to a container that has not executed anything yet: what the container's own
// processes can do to it is what an attacker gets.
func visitor(t *testing.T, m *runtimetest.Made) shimruntime.Process {
	t.Helper()
	p, err := m.Container.Exec(runtimetest.Context(t), m.Process("true"))
	must(t, err)
	t.Cleanup(func() { _ = p.Close() })
	return p
}

// TestVisitor (CVE-2016-9962, runc): a process that joins a container brings descriptors of the host's,
// its root or its directory into the reach of the container, which traces it.
func TestVisitor(t *testing.T) {
	leak(t, unix.F_DUPFD_CLOEXEC)
	stands(t, func(t *testing.T) string {
		b := box(t)
		m := b.Start(tracing(b.Config("sleep", "1000")))
		visitor(t, m)
		out, _, err := m.Exec(m.Process("attack", "peek", secret(t, b)))
		must(t, err)
		if !strings.Contains(out, "saw exe") {
			t.Errorf("the visitor was not seen: %q", out)
		}
		var got []string
		for l := range strings.Lines(out) {
			switch l = strings.TrimSpace(l); {
			case strings.HasPrefix(l, "got "):
				got = append(got, l)
			case strings.HasPrefix(l, "saw fd") && l != "saw fd pipe" && l != "saw fd socket" && l != "saw fd /dev/null":
				got = append(got, l)
			}
		}
		return strings.Join(got, ", ")
	}, insecure.Descriptors)
}

// TestVisitorUnseen: a container with Docker's capabilities cannot look into a process that joins it,
// trace it, read or write its memory, or take its descriptors, at any time before it is the container's.
// Once it is confined, only that the shim is not dumpable stands between them (Seal).
func TestVisitorUnseen(t *testing.T) {
	attack := func(t *testing.T) string {
		b := box(t)
		c := b.Config("sleep", "1000")
		c.Seccomp = nil // what the filter forbids here it may allow on another kernel
		m := b.Start(c)
		visitor(t, m)
		out, _, err := m.Exec(m.Process("attack", "peek", secret(t, b)))
		must(t, err)
		return strings.ReplaceAll(strings.TrimSpace(out), "\n", ", ")
	}
	if os.Getenv(doomed) != "" {
		fmt.Println("GOT", attack(t))
		return
	}
	if got := attack(t); got != "" {
		t.Errorf("escaped: %s", got)
	}
	if !insecure.Built {
		return
	}
	cmd := exec.Command(os.Getenv(testExe), "-test.run", "^TestVisitorUnseen$", "-test.v")
	cmd.Env = append(os.Environ(), doomed+"=1", "GANTRY_INSECURE="+string(insecure.Seal))
	out, err := cmd.CombinedOutput()
	must(t, err)
	_, got, _ := strings.Cut(string(out), "GOT ")
	if got, _, _ = strings.Cut(got, "\n"); got == "" {
		t.Error("the attack fails without the guard too: it proves nothing")
	} else {
		t.Log(got)
	}
}

// ambushed is what an attacker who lurks in a container catches while processes join it one after the
// other, at every moment of that.
func ambushed(t *testing.T, change func(*shimruntime.Config) *shimruntime.Config, filtered bool, how ...string) string {
	t.Helper()
	return lurking(t, change, filtered, func(_ *runtimetest.Box, m *runtimetest.Made) {
		p, err := m.Container.Exec(runtimetest.Context(t), m.Process("true"))
		must(t, err, p.Start(runtimetest.Context(t)))
		runtimetest.Reap(t, p)
		must(t, p.Close())
	}, how...)
}

// lurking is what the attacker caught while somebody came, again and again.
func lurking(t *testing.T, change func(*shimruntime.Config) *shimruntime.Config, filtered bool, come func(*runtimetest.Box, *runtimetest.Made), how ...string) string {
	t.Helper()
	b := box(t)
	c := b.Config(append([]string{"attack", "ambush"}, how...)...)
	if !filtered {
		c.Seccomp = nil
	}
	m := b.Start(change(c))
	m.Out.Until(t, "lurking")
	for range fewTries {
		come(b, m)
	}
	must(t, m.Kill(runtimetest.Context(t), unix.SIGKILL))
	m.Wait()
	out := m.Out.Wait(t)
	if !strings.Contains(out, "met one") {
		t.Error("the attacker met nobody")
	}
	_, caught, _ := strings.Cut(out, "caught: ")
	caught, _, _ = strings.Cut(caught, "\n")
	return caught
}

func asItIs(c *shimruntime.Config) *shimruntime.Config { return c }

// TestVisitorWhileItIsMade is the same at every moment while processes join, one after the other.
func TestVisitorWhileItIsMade(t *testing.T) {
	differs(t, func(t *testing.T) string { return ambushed(t, asItIs, false) }, func(t *testing.T) string { return ambushed(t, tracing, false) })
}

// TestVisitorIsConfined: who may trace, and sees a process that joins, never finds one whose power is
// more than its own: neither capabilities, nor calls without the filter.
func TestVisitorIsConfined(t *testing.T) {
	for name, change := range map[string]func(*shimruntime.Config) *shimruntime.Config{
		"with privileges to gain": tracing,
		"without new privileges": func(c *shimruntime.Config) *shimruntime.Config {
			c = tracing(c)
			c.Spec.Process.NoNewPrivileges = true
			return c
		},
	} {
		t.Run(name, func(t *testing.T) {
			stands(t, func(t *testing.T) string { return ambushed(t, change, true, "covet") }, insecure.Unseen)
			stands(t, func(t *testing.T) string { return ambushed(t, change, false, "covet") }, insecure.Unseen)
		})
	}
}

// TestConfinedFirst: what joins a container that may trace is what it would be elsewhere.
func TestConfinedFirst(t *testing.T) {
	b := box(t)
	m := b.Start(tracing(b.Config("sleep", "1000")))
	const status = "pwd; umask; id -u; cat /proc/self/oom_score_adj; grep -E '^(Cap|Seccomp:|NoNewPrivs|SigBlk|Groups)' /proc/self/status"
	plain := b.Start(b.Config("sleep", "1000"))
	for _, user := range []string{"", "alice"} {
		var got [2]string
		for i, m := range []*runtimetest.Made{m, plain} {
			x := m.Process("/bin/sh", "-c", status)
			x.User, x.Spec.Cwd = user, "/tmp"
			caps := runtimetest.Caps
			x.Spec.Capabilities = &specs.LinuxCapabilities{Bounding: caps, Permitted: caps, Effective: caps}
			out, code, err := m.Exec(x)
			if err != nil || code != 0 {
				t.Fatalf("%q: exit %d, %s %v", user, code, out, err)
			}
			got[i] = out
		}
		if got[0] != got[1] {
			t.Errorf("as %q: %s\nwant %s", user, got[0], got[1])
		}
		x := m.Process("/bin/sh", "-c", "tty && echo at $(stty size)")
		x.User, x.Spec.Terminal, x.Spec.ConsoleSize = user, true, &specs.Box{Height: 11, Width: 22}
		p, err := m.Container.Exec(runtimetest.Context(t), x)
		must(t, err)
		out := runtimetest.Read(p.Terminal())
		must(t, p.Start(runtimetest.Context(t)))
		runtimetest.Reap(t, p)
		if text := out.Wait(t); !strings.Contains(text, "/dev/pts/") || !strings.Contains(text, "at 11 22") {
			t.Errorf("terminal of %q: %q", user, text)
		}
		must(t, p.Close())
	}
	x := m.Process("true")
	x.Spec.Cwd = "/not/there"
	if _, _, err := m.Exec(x); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "/not/there") {
		t.Errorf("working directory: %v", err)
	}
	if _, _, err := m.Exec(m.Process("not-there")); shimruntime.ExitCode(err) != 127 {
		t.Errorf("command: %v", err)
	}
	// A profile that lets nothing more be made: it is confined when it is made, and somebody is told.
	c := tracing(b.Config("sleep", "1000"))
	c.Seccomp = nil
	c.Spec.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{{Names: []string{"clone", "clone3", "fork", "vfork"}, Action: specs.ActErrno}}}
	m = b.Start(c)
	if out, code, err := m.Exec(m.Process("echo", "hello")); err != nil || code != 0 || out != "hello\n" || !strings.Contains(b.Warned(), "clone") {
		t.Errorf("without clone: %q %d %v; %s", out, code, err, b.Warned())
	}
}

// TestTraceShim: a container that shares the host's processes, with root's user id and Docker's
// capabilities, cannot trace the shim.
func TestTraceShim(t *testing.T) {
	attack := func(change func(*shimruntime.Config) *shimruntime.Config) attack {
		return func(t *testing.T) string {
			b := box(t)
			c := b.Config("attack", "ptrace", strconv.Itoa(os.Getpid()))
			c.Spec.Linux.Namespaces = slices.DeleteFunc(c.Spec.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == "pid" })
			c.Seccomp = nil
			return output(b)(change(c))
		}
	}
	differs(t, attack(func(c *shimruntime.Config) *shimruntime.Config { return c }), attack(tracing))
}

// TestJoinedIsConfined is the same for the first process of a container that shares the attacker's processes.
func TestJoinedIsConfined(t *testing.T) {
	stands(t, func(t *testing.T) string {
		return lurking(t, tracing, true, func(b *runtimetest.Box, m *runtimetest.Made) {
			c := joining(b, m, "true")
			made, err := b.R.Create(runtimetest.Context(t), c)
			must(t, err)
			must(t, made.Init().Start(runtimetest.Context(t)))
			runtimetest.Reap(t, made.Init())
			must(t, made.Delete(runtimetest.Context(t)))
		}, "covet")
	}, insecure.Unseen)
}
