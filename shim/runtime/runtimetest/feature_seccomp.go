package runtimetest

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"unsafe"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/shim/runtime"
)

var seccompFeatures = []feature{
	{name: "linux.seccomp (actions)", ask: profile("true", specs.ActErrno), more: actions},
	{name: "linux.seccomp (flags)", ask: profile("true", specs.ActErrno), more: seccompFlags},
	{name: "linux.seccomp: a listener", ask: func(b *Box) *runtime.Config {
		c := profile("true", specs.ActNotify)(b)
		c.Spec.Linux.Seccomp.ListenerPath = "/not/there"
		return c
	}, more: notify},
}

// profile is a container in which mkdir gets an action, and all else is allowed.
func profile(script string, action specs.LinuxSeccompAction) func(*Box) *runtime.Config {
	return func(b *Box) *runtime.Config {
		c := b.Sh(script)
		c.Seccomp = nil
		c.Spec.Linux.Seccomp = &specs.LinuxSeccomp{
			DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{{Names: []string{"mkdir", "mkdirat"}, Action: action}},
		}
		return c
	}
}

func actions(b *Box) {
	for action, want := range map[specs.LinuxSeccompAction]string{
		specs.ActAllow: "0", specs.ActLog: "0", specs.ActErrno: "1", specs.ActKill: "159", specs.ActKillThread: "159", specs.ActKillProcess: "159",
		specs.ActTrap: "159", specs.ActTrace: "1", // SIGSYS; nobody traces: ENOSYS
	} {
		for _, unprivileged := range []bool{false, true} {
			c := profile("rm -rf /tmp/made; mkdir /tmp/made 2>/dev/null; echo $?", action)(b)
			c.Spec.Process.NoNewPrivileges = unprivileged
			out, _ := b.Run(c)
			lines := strings.Fields(out)
			if len(lines) == 0 || lines[len(lines)-1] != want {
				b.T.Errorf("%s: %q, want %s", action, out, want)
			}
		}
	}
	c := profile("true", "SCMP_ACT_ODD")(b)
	b.refuses("SCMP_ACT_ODD", c)
}

func seccompFlags(b *Box) {
	flags := []specs.LinuxSeccompFlag{"SECCOMP_FILTER_FLAG_TSYNC", specs.LinuxSeccompFlagLog, specs.LinuxSeccompFlagSpecAllow, specs.LinuxSeccompFlagWaitKillableRecv}
	for _, list := range [][]specs.LinuxSeccompFlag{flags, {}} {
		c := profile("grep -E '^(Seccomp|Speculation_Store_Bypass):' /proc/self/status | tr -d '\\t'; mkdir /x 2>/dev/null || echo no", specs.ActErrno)(b)
		c.Spec.Linux.Seccomp.Flags = list
		out, code := b.Run(c)
		if code != 0 || !strings.HasPrefix(out, "Seccomp:2\n") || !strings.HasSuffix(out, "\nno\n") {
			b.T.Errorf("%v: exit %d, %s", list, code, out)
		}
	}
	c := profile("true", specs.ActErrno)(b)
	c.Spec.Linux.Seccomp.Flags = []specs.LinuxSeccompFlag{"SECCOMP_FILTER_FLAG_ODD"}
	b.refuses("SECCOMP_FILTER_FLAG_ODD", c)
}

// agent listens at a socket for processes whose calls it answers: all with EXDEV.
type agent struct {
	path   string
	mu     sync.Mutex
	states []specs.ContainerProcessState
	calls  []int32
}

// notification is struct seccomp_notif, answer struct seccomp_notif_resp (linux/seccomp.h).
type notification struct {
	id         uint64
	pid, flags uint32
	nr         int32
	arch       uint32
	ip         uint64
	args       [6]uint64
}

type answer struct {
	id    uint64
	val   int64
	err   int32
	flags uint32
}

func (b *Box) agent() *agent {
	a := &agent{path: filepath.Join(b.Dir, "agent.sock")}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: a.path, Net: "unix"})
	b.check(err)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := l.AcceptUnix()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer conn.Close() //nolint:errcheck // it was only read
				if err := a.serve(conn); err != nil {
					b.T.Error(err)
				}
			})
		}
	})
	b.T.Cleanup(func() { _ = l.Close(); wg.Wait() })
	return a
}

func (a *agent) serve(conn *net.UnixConn) error {
	buf, oob := make([]byte, 64<<10), make([]byte, 64)
	n, oobn, _, _, err := conn.ReadMsgUnix(buf, oob)
	if err != nil {
		return err
	}
	var s specs.ContainerProcessState
	if err := json.Unmarshal(buf[:n], &s); err != nil {
		return err
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil || len(msgs) != 1 {
		return fmt.Errorf("%d messages with it: %w", len(msgs), err)
	}
	fds, err := unix.ParseUnixRights(&msgs[0])
	if err != nil || len(fds) != 1 {
		return fmt.Errorf("%d descriptors with it: %w", len(fds), err)
	}
	defer unix.Close(fds[0]) //nolint:errcheck // the process has gone
	a.mu.Lock()
	a.states = append(a.states, s)
	a.mu.Unlock()
	for {
		// It hangs up when nobody is left who could ask.
		poll := []unix.PollFd{{Fd: int32(fds[0]), Events: unix.POLLIN}}
		if _, err := unix.Poll(poll, -1); errors.Is(err, unix.EINTR) {
			continue
		}
		if poll[0].Revents&unix.POLLIN == 0 {
			return nil
		}
		var q notification
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fds[0]), unix.SECCOMP_IOCTL_NOTIF_RECV, uintptr(unsafe.Pointer(&q))); errno != 0 {
			continue // whoever asked has gone
		}
		a.mu.Lock()
		a.calls = append(a.calls, q.nr)
		a.mu.Unlock()
		r := answer{id: q.id, err: -int32(unix.EXDEV)}
		if q.nr == unix.SYS_CAPSET || q.nr == unix.SYS_EXECVE || q.nr == unix.SYS_READ {
			r = answer{id: q.id, flags: 1} // SECCOMP_USER_NOTIF_FLAG_CONTINUE
		}
		_, _, _ = unix.Syscall(unix.SYS_IOCTL, uintptr(fds[0]), unix.SECCOMP_IOCTL_NOTIF_SEND, uintptr(unsafe.Pointer(&r)))
	}
}

func (a *agent) last() (specs.ContainerProcessState, int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.states) == 0 {
		return specs.ContainerProcessState{}, 0
	}
	return a.states[len(a.states)-1], len(a.states)
}

func notify(b *Box) {
	a := b.agent()
	listened := func(script string) *runtime.Config {
		c := profile(script, specs.ActNotify)(b)
		c.Spec.Linux.Seccomp.ListenerPath, c.Spec.Linux.Seccomp.ListenerMetadata = a.path, "opaque"
		c.Spec.Linux.Seccomp.Flags = []specs.LinuxSeccompFlag{specs.LinuxSeccompFlagWaitKillableRecv}
		return c
	}
	const script = "mkdir /tmp/x 2>&1 | sed 's/.*: //'; ls /proc/self/fd | wc -l"
	const want = "Invalid cross-device link\n4\n"
	for _, unprivileged := range []bool{false, true} {
		c := listened(script + "; sleep 1000; true")
		c.Spec.Process.NoNewPrivileges = unprivileged
		m := b.Start(c)
		m.Out.Until(b.T, "4\n")
		if out := m.Out.String(); out != want {
			b.T.Errorf("%q, want %q", out, want)
		}
		s, n := a.last()
		pid := m.Init().PID()
		if n == 0 || s.Version != c.Spec.Version || len(s.Fds) != 1 || s.Fds[0] != "seccompFd" || s.Metadata != "opaque" || s.Pid != pid ||
			s.State.ID != c.ID || s.State.Status != specs.StateCreating || s.State.Pid != pid || s.State.Bundle != b.Dir {
			b.T.Errorf("told %+v", s)
		}
		out, _, err := m.Exec(m.Process("/bin/sh", "-c", script))
		if err != nil || out != want {
			b.T.Errorf("exec: %q %v", out, err)
		}
		if s, _ := a.last(); s.Pid == pid || s.State.Pid != pid || s.State.Status != specs.StateRunning {
			b.T.Errorf("exec: told %+v", s)
		}
		b.check(m.Kill(Context(b.T), unix.SIGKILL))
		m.Wait()
	}
	// Calls that the start itself makes are answered too.
	c := listened("true")
	c.Spec.Linux.Seccomp.Syscalls[0].Names = []string{"capset", "execve", "read"}
	if out, code := b.Run(c); code != 0 {
		b.T.Errorf("exit %d, %s", code, out)
	}
	notifyErrors(b, listened)
}

func notifyErrors(b *Box, listened func(string) *runtime.Config) {
	c := listened("true")
	c.Spec.Linux.Seccomp.ListenerPath = ""
	b.refuses("linux.seccomp.listenerPath", c)
	c.Spec.Linux.Seccomp.ListenerPath = "/" + strings.Repeat("x", 200)
	b.refuses("linux.seccomp.listenerPath", c)
	c.Spec.Linux.Seccomp.ListenerPath = "/not/there"
	if _, err := b.Create(c); !errors.Is(err, unix.ENOENT) || !strings.Contains(err.Error(), "/not/there") {
		b.T.Errorf("nobody listens: %v", err)
	}
	c = listened("true")
	c.Spec.Linux.Seccomp.Syscalls[0].Names = []string{"write"}
	b.refuses("SCMP_ACT_NOTIFY", c)
	c = listened("true")
	c.Init = true
	b.refuses("a listener", c)
	// With nobody to be told, the path is not looked at.
	c = profile("true", specs.ActErrno)(b)
	c.Spec.Linux.Seccomp.ListenerPath = "/not/there"
	b.expect(c, "")
}
