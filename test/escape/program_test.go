package escape

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/internal/cgroup"
	"github.com/gantryd/gantry/internal/insecure"
	shimruntime "github.com/gantryd/gantry/shim/runtime"
	"github.com/gantryd/gantry/shim/runtime/runtimetest"
)

// secret makes a file of the host's.
func secret(t *testing.T, b *runtimetest.Box) string {
	t.Helper()
	path := filepath.Join(b.Dir, "secret")
	must(t, os.WriteFile(path, []byte("the host's secret\n"), 0o600))
	return path
}

// leak holds the host's root open at a number that is known, as a runtime might by mistake: flags as
// of open(2). It goes with the test.
func leak(t *testing.T, cmd int) int {
	t.Helper()
	fd, err := unix.Open("/", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	must(t, err)
	defer unix.Close(fd)
	high, err := unix.FcntlInt(uintptr(fd), cmd, 90)
	must(t, err)
	t.Cleanup(func() { _ = unix.Close(high) })
	return high
}

// TestOverwriteRuntime (CVE-2019-5736, runc): a container gets hold of /proc/<pid>/exe of the process
// that is about to become one of its own, which is the runtime's executable, and writes to it when the
// runtime has ended. It has CAP_SYS_PTRACE, or it would see nothing at all.
func TestOverwriteRuntime(t *testing.T) {
	if os.Getenv(doomed) != "" {
		beOverwritten(t)
		return
	}
	attack := func(vars ...string) string {
		dir, err := os.MkdirTemp("", "gantry-escape-")
		must(t, err)
		defer os.RemoveAll(dir)
		program := filepath.Join(dir, "runtime")
		before, err := os.ReadFile(os.Getenv(testExe))
		must(t, err, os.WriteFile(program, before, 0o755))
		// The container's processes come to us when their runtime ends.
		must(t, unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0))
		defer unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
		cmd := exec.Command(program, "-test.run", "^TestOverwriteRuntime$", "-test.v")
		cmd.Env = append(append(os.Environ(), doomed+"=1", testExe+"="), vars...)
		out, err := cmd.CombinedOutput()
		var left, group string
		var pid int
		for l := range strings.Lines(string(out)) {
			if n, _ := fmt.Sscanf(l, "LEFT %s %s %d", &left, &group, &pid); n == 3 {
				break
			}
		}
		if err != nil || pid == 0 {
			t.Fatalf("the runtime did not get as far as its end: %v\n%s", err, out)
		}
		defer os.RemoveAll(left)
		for reaped := 0; reaped != pid; { // the visitor as well: the first process of a namespace ends after every other
			reaped, err = unix.Wait4(-1, nil, 0, nil)
			must(t, err)
		}
		g, err := cgroup.Open(group)
		must(t, err, g.Kill(t.Context()), g.Remove(t.Context()))
		if up, err := cgroup.Open(filepath.Dir(group)); err == nil {
			_ = up.RemoveIfEmpty()
		}
		after, err := os.ReadFile(program)
		must(t, err)
		if !slices.Equal(before[:64], after[:64]) {
			return "the runtime is now " + string(after[:14])
		}
		return ""
	}
	if got := attack(); got != "" {
		t.Errorf("escaped: %s", got)
	}
	if insecure.Built {
		if got := attack("GANTRY_INSECURE=" + string(insecure.Seal)); got == "" {
			t.Error("the attack fails without the guard too: it proves nothing")
		} else {
			t.Log(got)
		}
	}
}

// beOverwritten is the runtime: it has a visitor in a container that holds its executable, and ends.
func beOverwritten(t *testing.T) {
	b := box(t)
	m := b.Start(tracing(b.Config("attack", "overwrite")))
	visitor(t, m)
	m.Out.Until(t, "holding")
	fmt.Println("LEFT", b.Dir, m.Config.Spec.Linux.CgroupsPath, m.Init().PID())
	if attackerDir != "" {
		_ = os.RemoveAll(attackerDir)
	}
	os.Exit(0) // nothing is deleted: the container lives on
}

// TestWorkdir (CVE-2024-21626, runc): a working directory that is a descriptor of the runtime's.
func TestWorkdir(t *testing.T) {
	fd := leak(t, unix.F_DUPFD_CLOEXEC)
	stands(t, func(t *testing.T) string {
		b := box(t)
		file := secret(t, b)
		return through(fd, func(link string) string {
			c := b.Sh("cat ." + file)
			c.Spec.Process.Cwd = link
			return run(t, b, c)
		})
	}, insecure.Descriptors, insecure.Workdir)
}

// TestWorkdirOfExec is the same for a process that is added.
func TestWorkdirOfExec(t *testing.T) {
	fd := leak(t, unix.F_DUPFD_CLOEXEC)
	stands(t, func(t *testing.T) string {
		b := box(t)
		file := secret(t, b)
		m := b.Start(b.Config("sleep", "1000"))
		return through(fd, func(link string) string {
			x := m.Process("/bin/sh", "-c", "cat ."+file)
			x.Spec.Cwd = link
			out, _, _ := m.Exec(x)
			return out
		})
	}, insecure.Descriptors, insecure.Workdir)
}

// TestCommand (CVE-2024-21626, runc): a command below a descriptor of the runtime's is the host's.
func TestCommand(t *testing.T) {
	fd := leak(t, unix.F_DUPFD_CLOEXEC)
	stands(t, func(t *testing.T) string {
		b := box(t)
		tool := filepath.Join(b.Dir, "echo") // not in the image under that name
		must(t, os.Link(filepath.Join(b.Lower, "bin/busybox"), tool))
		return through(fd, func(link string) string { return run(t, b, b.Config(link+tool, "the host's secret")) })
	}, insecure.Descriptors)
}

// through tries the descriptors that a runtime could have left open, and the one that is known to be.
func through(known int, try func(link string) string) string {
	for _, fd := range []int{known, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20} {
		if out := try(fmt.Sprintf("/proc/self/fd/%d", fd)); strings.Contains(out, "the host's secret") {
			return fmt.Sprintf("by %d: %s", fd, out)
		}
	}
	return ""
}

// run is the output of a container that may fail to be made or to start.
func run(t *testing.T, b *runtimetest.Box, c *shimruntime.Config) string {
	t.Helper()
	m, err := b.Create(c)
	if err != nil {
		return ""
	}
	defer m.Delete(context.Background()) //nolint:errcheck // it is deleted again
	if err := m.Init().Start(runtimetest.Context(t)); err != nil {
		return ""
	}
	m.Wait()
	return m.Out.Wait(t)
}

// TestInherited: neither the first process of a container nor one that is added has a descriptor but
// its three, even of those that the runtime forgot to mark.
func TestInherited(t *testing.T) {
	leak(t, unix.F_DUPFD) // inherited through exec, if nothing is done
	for name, attack := range map[string]func(t *testing.T, b *runtimetest.Box) string{
		"init": func(_ *testing.T, b *runtimetest.Box) string { return output(b)(b.Config("attack", "fds")) },
		"under an init": func(_ *testing.T, b *runtimetest.Box) string {
			c := b.Config("attack", "fds")
			c.Init = true
			return output(b)(c)
		},
		"exec": func(t *testing.T, b *runtimetest.Box) string {
			m := b.Start(b.Config("sleep", "1000"))
			out, _, err := m.Exec(m.Process("attack", "fds"))
			must(t, err)
			return out
		},
		"the init itself": func(t *testing.T, b *runtimetest.Box) string {
			c := b.Sh("ls -l /proc/1/fd | sed 's/.* \\([0-9]* -> .*\\)/\\1/' | grep -- '->' | tr -d '>-'")
			c.Init = true
			return output(b)(c)
		},
		"terminal": func(t *testing.T, b *runtimetest.Box) string {
			c := b.Config("attack", "fds")
			c.Spec.Process.Terminal = true
			m := b.Start(c)
			out := runtimetest.Read(m.Init().Terminal())
			m.Wait()
			return strings.ReplaceAll(out.Wait(t), "\r", "")
		},
	} {
		t.Run(name, func(t *testing.T) {
			stands(t, func(t *testing.T) string {
				b := box(t)
				out := strings.TrimSpace(attack(t, b))
				var got []string
				for i, l := range strings.Split(out, "\n") {
					f := strings.Fields(l)
					if len(f) < 2 || f[0] != strconv.Itoa(i) || i > 2 || !strings.HasPrefix(f[1], "pipe:") && f[1] != "/dev/null" && f[1] != "/dev/pts/0" {
						got = append(got, l)
					}
				}
				return strings.Join(got, ", ")
			}, insecure.Descriptors)
		})
	}
}

// TestKeyring: keys in the session keyring of whoever starts the runtime are not the container's.
func TestKeyring(t *testing.T) {
	runtime.LockOSThread() // and not unlocked: the keyring goes with the thread
	_, err := unix.KeyctlJoinSessionKeyring("gantry-escape")
	must(t, err)
	_, err = unix.AddKey("user", "gantry-escape", []byte("the host's secret"), unix.KEY_SPEC_SESSION_KEYRING)
	must(t, err)
	stands(t, func(t *testing.T) string {
		b := box(t)
		var got []string
		c := b.Config("attack", "key", "gantry-escape")
		c.Seccomp = nil // the default filter allows no keyctl at all
		m, err := b.Create(c)
		must(t, err, m.Init().Start(runtimetest.Context(t)))
		m.Wait()
		got = append(got, m.Out.Wait(t))
		c = b.Config("sleep", "1000")
		c.Seccomp = nil
		m = b.Start(c)
		out, _, err := m.Exec(m.Process("attack", "key", "gantry-escape"))
		must(t, err)
		return strings.TrimSpace(strings.Join(append(got, out), ""))
	}, insecure.Keyring)
}

// TestTerminalMultiplexer: a container with a /dev of its own does not have the shim open whatever it
// calls /dev/pts/ptmx: a pipe would let it wait, a device might do something (CVE-2025-52565 is the
// same trust in a name below /dev).
func TestTerminalMultiplexer(t *testing.T) {
	stands(t, func(t *testing.T) string {
		b := box(t)
		dev := filepath.Join(b.Dir, "dev")
		pipe := filepath.Join(dev, "pts/ptmx")
		must(t, os.MkdirAll(filepath.Dir(pipe), 0o755), unix.Mkfifo(pipe, 0o600))
		opened := make(chan error, 1)
		go func() {
			f, err := os.OpenFile(pipe, os.O_WRONLY, 0) // until somebody opens the other end
			if err == nil {
				err = f.Close()
			}
			opened <- err
		}()
		time.Sleep(20 * time.Millisecond)
		c := b.Sh("true")
		c.Spec.Process.Terminal = true
		c.Spec.Mounts = slices.DeleteFunc(c.Spec.Mounts, func(m specs.Mount) bool { return strings.HasPrefix(m.Destination, "/dev") })
		c.Spec.Mounts = append(c.Spec.Mounts, specs.Mount{Destination: "/dev", Type: "bind", Source: dev, Options: []string{"rbind"}})
		if _, err := b.Create(c); err == nil {
			return "it has a terminal"
		}
		select {
		case <-opened:
			return "the shim opened it"
		case <-time.After(50 * time.Millisecond):
		}
		f, err := os.OpenFile(pipe, os.O_RDONLY|unix.O_NONBLOCK, 0)
		must(t, err, <-opened, f.Close())
		return ""
	}, insecure.Ptmx)
}
