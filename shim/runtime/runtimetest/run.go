// Package runtimetest is what every runtime must do, as a suite that drives the interface with a real
// kernel, a busybox root filesystem and real processes. It needs root, /bin/busybox (statically linked)
// and cgroups; it makes and removes its own cgroups and works in temporary directories.
package runtimetest

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/internal/cgroup"
	"github.com/gantryd/gantry/internal/seccomp"
	"github.com/gantryd/gantry/shim/runtime"
)

// Box is a place for one test's containers.
type Box struct {
	T       testing.TB
	R       runtime.Runtime
	Dir     string
	Overlay []runtime.Mount // the root filesystem: an overlay over Lower
	Lower   string
	Upper   string
	lacks   map[Feature]bool
	mu      sync.Mutex
	warned  []string
}

const busybox = "/bin/busybox"

// above is what this process's cgroups are in: who runs another suite at the same time removes its own.
var above = fmt.Sprintf("/gantry-runtimetest-%d", os.Getpid())

var applets = []string{
	"sh", "cat", "ls", "id", "env", "sleep", "true", "false", "echo", "pwd", "hostname", "mount", "umount", "stat", "touch", "mkdir", "rm", "ln", "mknod",
	"kill", "ps", "grep", "readlink", "tty", "stty", "test", "head", "tail", "dd", "chown", "chmod", "ulimit", "trap", "wc", "cut", "dmesg", "od", "seq", "top",
	"ip", "ifconfig", "nc", "sort", "tr", "awk", "sed", "find", "date", "unshare", "cp", "mv", "chroot", "setsid", "basename", "printf", "tee", "uname", "nproc", "xargs", "sync", "ionice", "df", "realpath", "yes", "usleep",
}

// New makes a box with a busybox image, for a runtime that lacks some features.
func New(t testing.TB, r runtime.Runtime, lacks ...Feature) *Box {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("SKIPPED: making containers needs root")
	}
	if _, err := os.Stat(busybox); err != nil {
		t.Fatalf(`no %s: "make setup" installs busybox-static`, busybox)
	}
	// Not below a temporary directory of mode 0700: users of containers must be able to look in.
	dir, err := os.MkdirTemp("", "gantry-runtime-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = os.RemoveAll(dir)
		if g, err := cgroup.Open(above); err == nil {
			_ = g.RemoveIfEmpty()
		}
	})
	b := &Box{T: t, R: r, Dir: dir, Lower: filepath.Join(dir, "lower"), Upper: filepath.Join(dir, "upper"), lacks: map[Feature]bool{}}
	for _, f := range lacks {
		b.lacks[f] = true
	}
	for _, d := range []string{"lower/bin", "lower/etc", "lower/tmp", "lower/proc", "lower/sys", "lower/dev", "lower/root", "lower/home/alice", "upper", "work"} {
		b.check(os.MkdirAll(filepath.Join(dir, d), 0o755))
	}
	b.check(os.Chmod(dir, 0o755))
	b.check(os.Chmod(filepath.Join(b.Lower, "tmp"), 0o1777))
	if err := os.Link(busybox, filepath.Join(b.Lower, "bin/busybox")); err != nil {
		raw, err := os.ReadFile(busybox)
		b.check(err)
		b.check(os.WriteFile(filepath.Join(b.Lower, "bin/busybox"), raw, 0o755))
	}
	for _, a := range applets {
		b.check(os.Symlink("busybox", filepath.Join(b.Lower, "bin", a)))
	}
	b.File("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nalice:x:1000:1000::/home/alice:/bin/sh\nbroken\n::x:\nbob:x:1001:100::/nowhere:/bin/sh\n", 0o644)
	b.File("etc/group", "root:x:0:\nwheel:x:10:root,alice\nusers:x:100:\nalice:x:1000:\nstaff:x:50:alice,bob\n", 0o644)
	b.Overlay = []runtime.Mount{{Type: "overlay", Source: "overlay", Options: []string{
		"lowerdir=" + b.Lower, "upperdir=" + b.Upper, "workdir=" + filepath.Join(dir, "work"),
	}}}
	return b
}

func (b *Box) check(err error) {
	b.T.Helper()
	if err != nil {
		b.T.Fatal(err)
	}
}

// File writes a file of the image.
func (b *Box) File(name, content string, mode os.FileMode) {
	b.T.Helper()
	p := filepath.Join(b.Lower, name)
	b.check(os.MkdirAll(filepath.Dir(p), 0o755))
	b.check(os.WriteFile(p, []byte(content), mode))
	b.check(os.Chmod(p, mode))
}

// Caps are Docker's default capabilities.
var Caps = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID", "CAP_SETUID",
	"CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE",
}

var defaultFilter = sync.OnceValues(func() ([]byte, error) {
	f, _, err := seccomp.Default(Caps)
	return f, err
})

// Config is a container like those of services/containers, running args.
func (b *Box) Config(args ...string) *runtime.Config {
	b.T.Helper()
	raw := make([]byte, 8)
	_, _ = rand.Read(raw)
	id := hex.EncodeToString(raw)
	every := int64(-1)
	rule := func(major, minor int64, access string) specs.LinuxDeviceCgroup {
		return specs.LinuxDeviceCgroup{Allow: true, Type: "c", Major: &major, Minor: &minor, Access: access}
	}
	pids := int64(100)
	filter, err := defaultFilter()
	b.check(err)
	c := &runtime.Config{
		ID: id, Bundle: b.Dir, Rootfs: b.Overlay, Seccomp: filter,
		Warn: func(m string, args ...any) {
			b.mu.Lock()
			defer b.mu.Unlock()
			b.warned = append(b.warned, m+" "+fmt.Sprint(args...))
		},
		Spec: &specs.Spec{
			Version: "1.1.0",
			Process: &specs.Process{
				Args: args, Cwd: "/", Env: []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOSTNAME=box"},
				Capabilities: &specs.LinuxCapabilities{Bounding: Caps, Effective: Caps, Permitted: Caps},
			},
			Root:     &specs.Root{},
			Hostname: "box",
			Mounts: []specs.Mount{
				{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
				{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
				{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
				{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "noexec", "nodev", "mode=1777", "size=67108864"}},
				{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
				{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
				{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"nosuid", "noexec", "nodev", "relatime", "ro"}},
			},
			Linux: &specs.Linux{
				CgroupsPath: above + "/" + id,
				Resources: &specs.LinuxResources{
					Pids: &specs.LinuxPids{Limit: &pids},
					Devices: []specs.LinuxDeviceCgroup{
						{Access: "rwm"},
						rule(every, every, "m"),
						{Allow: true, Type: "b", Major: &every, Minor: &every, Access: "m"},
						rule(1, 3, "rwm"), rule(1, 5, "rwm"), rule(1, 7, "rwm"), rule(1, 8, "rwm"), rule(1, 9, "rwm"),
						rule(5, 0, "rwm"), rule(5, 1, "rwm"), rule(5, 2, "rwm"), rule(136, every, "rwm"),
					},
				},
				Namespaces: []specs.LinuxNamespace{{Type: "pid"}, {Type: "ipc"}, {Type: "uts"}, {Type: "mount"}, {Type: "cgroup"}, {Type: "network"}},
				Sysctl:     map[string]string{"net.ipv4.ip_unprivileged_port_start": "0", "net.ipv4.ping_group_range": "0 2147483647"},
				MaskedPaths: []string{
					"/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
					"/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap",
				},
				ReadonlyPaths: []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"},
			},
		},
	}
	if b.Lacks(CompiledFilter) {
		c.Seccomp = nil
		c.Spec.Linux.Seccomp, err = seccomp.DefaultProfile(Caps)
		b.check(err)
	}
	return c
}

// Context ends a while before the test does.
func Context(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeoutCause(t.Context(), 30*time.Second, errors.New("the test took too long"))
	t.Cleanup(cancel)
	return ctx
}

// Made is a container with what its process wrote.
type Made struct {
	runtime.Container
	b      *Box
	Config *runtime.Config
	Out    *Output
}

// Output is the end of a pipe, read all the time.
type Output struct {
	mu  sync.Mutex
	buf bytes.Buffer
	end chan struct{}
}

// Read collects what comes out of r until it ends.
func Read(r io.ReadCloser) *Output {
	o := &Output{end: make(chan struct{})}
	go func() {
		defer close(o.end)
		defer r.Close() //nolint:errcheck // it was only read
		buf := make([]byte, 4096)
		for {
			n, err := r.Read(buf)
			o.mu.Lock()
			o.buf.Write(buf[:n])
			o.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	return o
}

// String is what came so far.
func (o *Output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

// Wait is everything, once the writers have gone.
func (o *Output) Wait(t testing.TB) string {
	t.Helper()
	select {
	case <-o.end:
	case <-time.After(20 * time.Second):
		t.Fatalf("output does not end: %q", o.String())
	}
	return o.String()
}

// Until waits for a text to appear.
func (o *Output) Until(t testing.TB, text string) {
	t.Helper()
	Poll(t, fmt.Sprintf("%q in output", text), func() bool { return strings.Contains(o.String(), text) }, func() string { return o.String() })
}

// Poll waits until ok says so.
func Poll(t testing.TB, what string, ok func() bool, else_ func() string) {
	t.Helper()
	for deadline := time.Now().Add(15 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: does not happen: %s", what, else_())
		}
	}
}

// Create makes a container; the test's end deletes it.
func (b *Box) Create(c *runtime.Config) (*Made, error) {
	b.T.Helper()
	r, w, err := os.Pipe()
	b.check(err)
	if c.Stdio == (runtime.Stdio{}) {
		c.Stdio = runtime.Stdio{Out: w, Err: w}
	}
	made, err := b.R.Create(Context(b.T), c)
	_ = w.Close()
	if err != nil {
		_ = r.Close()
		b.leftNothing(c)
		return nil, err
	}
	m := &Made{Container: made, b: b, Config: c, Out: Read(r)}
	b.T.Cleanup(func() {
		if err := m.Delete(context.Background()); err != nil {
			b.T.Errorf("delete: %v", err)
		}
		if err := m.Delete(context.Background()); err != nil {
			b.T.Errorf("delete again: %v", err)
		}
		b.leftNothing(c)
	})
	return m, nil
}

// leftNothing: no cgroup is left, and with it no process.
func (b *Box) leftNothing(c *runtime.Config) {
	b.T.Helper()
	g, err := cgroup.Open(c.Spec.Linux.CgroupsPath)
	if err != nil {
		return
	}
	if g.Exists() {
		b.T.Errorf("cgroup %s is left", c.Spec.Linux.CgroupsPath)
	}
	if up, err := cgroup.Open(filepath.Dir(c.Spec.Linux.CgroupsPath)); err == nil {
		_ = up.RemoveIfEmpty()
	}
}

// Run creates, starts and waits; the answer is output and exit code.
func (b *Box) Run(c *runtime.Config) (string, int) {
	b.T.Helper()
	m := b.Start(c)
	code := m.Wait()
	return m.Out.Wait(b.T), code
}

// Start creates and starts.
func (b *Box) Start(c *runtime.Config) *Made {
	b.T.Helper()
	m, err := b.Create(c)
	b.check(err)
	b.check(m.Init().Start(Context(b.T)))
	return m
}

// Wait reaps init.
func (m *Made) Wait() int {
	m.b.T.Helper()
	return Reap(m.b.T, m.Init())
}

// Reap waits for a process and answers its exit code, 128 and more for a signal.
func Reap(t testing.TB, p runtime.Process) int {
	t.Helper()
	type answer struct {
		ws  syscall.WaitStatus
		err error
	}
	done := make(chan answer, 1)
	go func() {
		var a answer
		for {
			_, a.err = syscall.Wait4(p.PID(), &a.ws, 0, nil)
			if !errors.Is(a.err, unix.EINTR) {
				break
			}
		}
		done <- a
	}()
	select {
	case a := <-done:
		if a.err != nil {
			t.Fatalf("wait for process %d: %v", p.PID(), a.err)
		}
		if a.ws.Signaled() {
			return 128 + int(a.ws.Signal())
		}
		return a.ws.ExitStatus()
	case <-time.After(20 * time.Second):
		t.Fatalf("process %d does not end", p.PID())
	}
	return -1
}

// Exec runs another process and answers output and exit code.
func (m *Made) Exec(x *runtime.Exec) (string, int, error) {
	t := m.b.T
	t.Helper()
	r, w, err := os.Pipe()
	m.b.check(err)
	if x.Stdio == (runtime.Stdio{}) {
		x.Stdio = runtime.Stdio{Out: w, Err: w}
	}
	p, err := m.Container.Exec(Context(t), x)
	_ = w.Close()
	if err != nil {
		_ = r.Close()
		return "", -1, err
	}
	out := Read(r)
	if err := p.Start(Context(t)); err != nil {
		_ = p.Close()
		return "", -1, err
	}
	code := Reap(t, p)
	text := out.Wait(t)
	return text, code, p.Close()
}

// Process is args as config.json would have them for c.
func (m *Made) Process(args ...string) *runtime.Exec {
	p := *m.Config.Spec.Process
	p.Args = args
	return &runtime.Exec{Spec: &p}
}

// Sh is a configuration that runs a script.
func (b *Box) Sh(script string) *runtime.Config { return b.Config("/bin/sh", "-c", script) }

// Warned is what the runtime warned about.
func (b *Box) Warned() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return strings.Join(b.warned, "\n")
}
