package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/gantryd/gantry/internal/bundle"
	"github.com/gantryd/gantry/internal/cgroup"
	"github.com/gantryd/gantry/internal/logfile"
	"github.com/gantryd/gantry/internal/supervise"
	shimv1 "github.com/gantryd/gantry/proto/gantry/shim/v1"
	typesv1 "github.com/gantryd/gantry/proto/gantry/types/v1"
)

// The shims of these tests are real processes: this test program, executed as gantry-shim.
func TestMain(m *testing.M) {
	if name := filepath.Base(os.Args[0]); name == "gantry-shim" || name == "gantry-init" {
		main()
		return
	}
	if os.Args[0] == "stranger" {
		stranger(os.Args[1])
		return
	}
	code := m.Run()
	_ = os.RemoveAll(rootfsDir)
	os.Exit(max(code, leftovers()))
}

// instance is what is these tests' own in the kernel.
var instance = fmt.Sprintf("gantry-shimtest-%d", os.Getpid())

// leftovers removes the cgroup of the tests, and complains if something is in it.
func leftovers() int {
	g, err := cgroup.Open("/" + instance)
	if err != nil || !g.Exists() {
		return 0
	}
	kids, err := cgroup.Children("/" + instance)
	if err != nil || len(kids) > 0 {
		fmt.Fprintln(os.Stderr, "cgroups were left:", kids, err)
		return 1
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := g.Remove(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "the cgroup stays:", err)
		return 1
	}
	return 0
}

var (
	rootfsOnce sync.Once
	rootfsDir  string
)

// rootfs is a directory with busybox in it, the same for all: nothing in here writes to it.
func rootfs(t testing.TB) string {
	t.Helper()
	rootfsOnce.Do(func() {
		busybox, err := exec.LookPath("busybox")
		if err != nil {
			t.Fatal(`no busybox: "make setup" installs busybox-static`)
		}
		dir, err := os.MkdirTemp("", "gantry-rootfs")
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range []string{"bin", "dev", "etc", "proc", "sys", "tmp"} {
			if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		raw, err := os.ReadFile(busybox)
		if err != nil {
			t.Fatal(err)
		}
		for path, b := range map[string][]byte{"bin/busybox": raw, "etc/passwd": []byte("root:x:0:0::/:/bin/sh\n"), "etc/group": []byte("root:x:0:\n")} {
			if err := os.WriteFile(filepath.Join(dir, path), b, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		for _, name := range strings.Fields("sh cat echo sleep true false seq yes head stty kill printf dd tr sed id ls mkdir") {
			if err := os.Symlink("busybox", filepath.Join(dir, "bin", name)); err != nil {
				t.Fatal(err)
			}
		}
		rootfsDir = dir
	})
	return rootfsDir
}

// box is one container and its shim.
type box struct {
	t    testing.TB
	sup  *supervise.Supervisor
	dir  bundle.Dir
	boot *shimv1.Boot
	spec *specs.Spec
	shim supervise.Shim
}

// newBox prepares a container that runs args.
func newBox(t testing.TB, args ...string) *box {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: containers need root")
	}
	tmp := t.TempDir()
	id := newNonce()
	dir := bundle.Dir{State: filepath.Join(tmp, "c", id), Root: filepath.Join(tmp, "containers", id)}
	if err := os.MkdirAll(dir.Root, 0o700); err != nil {
		t.Fatal(err)
	}
	b := &box{
		t: t, dir: dir, sup: supervise.New(supervise.Options{Binary: "/proc/self/exe", Instance: instance, Log: slog.New(slog.DiscardHandler)}),
		boot: &shimv1.Boot{
			Protocol: protocol, ContainerId: id, StateDir: dir.State, Dir: dir.Root, Run: 1, Instance: instance,
			Rootfs: []*typesv1.Mount{{Type: "bind", Source: rootfs(t), Options: []string{"rbind", "ro"}}},
			Log:    &shimv1.LogSink{Path: dir.Log(), MaxBytes: -1}, Runtime: ociProgram,
		},
		spec: &specs.Spec{
			Version: "1.1.0", Hostname: "box", Root: &specs.Root{Path: dir.RootFS(), Readonly: true},
			Process: &specs.Process{Args: args, Cwd: "/", Env: []string{"PATH=/bin"}, Capabilities: &specs.LinuxCapabilities{}},
			Mounts: []specs.Mount{
				{Destination: "/proc", Type: "proc", Source: "proc"},
				{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "mode=755", "size=65536k"}},
				{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
				{Destination: "/tmp", Type: "tmpfs", Source: "tmpfs", Options: []string{"size=16m"}},
			},
			Linux: &specs.Linux{
				CgroupsPath: "/" + instance + "/" + id,
				Namespaces:  []specs.LinuxNamespace{{Type: "pid"}, {Type: "ipc"}, {Type: "uts"}, {Type: "mount"}, {Type: "network"}},
				Resources:   &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}}},
			},
		},
	}
	t.Cleanup(b.bury)
	return b
}

func (b *box) bury() {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	words, _ := os.ReadFile(filepath.Join(b.dir.State, bundle.LogFile))
	if _, err := b.sup.Bury(ctx, b.dir); err != nil {
		b.t.Errorf("bury: %v", err)
	}
	if b.t.Failed() && len(words) > 0 {
		b.t.Logf("shim.log:\n%s", words)
	}
}

func (b *box) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	b.t.Cleanup(cancel)
	return ctx
}

func (b *box) ok(err error) {
	b.t.Helper()
	if err != nil {
		b.t.Fatal(err)
	}
}

// spawn starts the shim.
func (b *box) spawn() *box {
	b.t.Helper()
	raw, err := json.Marshal(b.spec)
	b.ok(err)
	b.ok(os.WriteFile(b.dir.Config(), raw, 0o600))
	b.shim, err = b.sup.Spawn(b.ctx(), b.dir, b.boot)
	b.ok(err)
	return b
}

// create makes the container.
func (b *box) create() *box {
	b.t.Helper()
	_, err := b.spawn().shim.Create(b.ctx(), &shimv1.CreateRequest{})
	b.ok(err)
	return b
}

// start lets it go.
func (b *box) start() *box {
	b.t.Helper()
	_, err := b.shim.Start(b.ctx(), &shimv1.StartRequest{})
	b.ok(err)
	return b
}

func (b *box) run() *box { b.t.Helper(); return b.create().start() }

func (b *box) wait() *typesv1.Exit {
	b.t.Helper()
	r, err := b.shim.Wait(b.ctx(), &shimv1.WaitRequest{})
	b.ok(err)
	return r.GetExit()
}

func (b *box) kill(r *shimv1.KillRequest) {
	b.t.Helper()
	_, err := b.shim.Kill(b.ctx(), r)
	b.ok(err)
}

func (b *box) io(process string, replay bool) supervise.IO {
	b.t.Helper()
	c, err := b.shim.IO(b.ctx(), process, replay)
	b.ok(err)
	b.t.Cleanup(func() { _ = c.Close() })
	return c
}

// until polls the state until it is as wanted.
func (b *box) until(ok func(*shimv1.StateResponse) bool) *shimv1.StateResponse {
	b.t.Helper()
	ctx, seen := b.ctx(), uint64(0)
	for {
		st, err := b.shim.State(ctx, &shimv1.StateRequest{Seen: seen})
		b.ok(err)
		if ok(st) {
			return st
		}
		seen = st.GetChange()
	}
}

// heard is what came over an IO.
type heard struct {
	out, err bytes.Buffer
	all      bytes.Buffer // both, in the order in which they came
	lost     uint64
	starts   int
	exit     *typesv1.Exit
}

// hear reads an IO to its end, or until enough.
func hear(t testing.TB, c supervise.IO, enough func(*heard) bool) *heard {
	t.Helper()
	h := &heard{}
	late := time.AfterFunc(30*time.Second, func() { _ = c.Close() })
	defer late.Stop()
	for {
		o, err := c.Recv()
		if errors.Is(err, io.EOF) {
			return h
		}
		if err != nil {
			t.Fatalf("after %q %q: %v", tail(h.out.String()), tail(h.err.String()), err)
		}
		switch o := o.GetOutput().(type) {
		case *typesv1.ProcessOutput_Stdout:
			h.out.Write(o.Stdout)
			h.all.Write(o.Stdout)
		case *typesv1.ProcessOutput_Stderr:
			h.err.Write(o.Stderr)
			h.all.Write(o.Stderr)
		case *typesv1.ProcessOutput_LostBytes:
			h.lost += o.LostBytes
		case *typesv1.ProcessOutput_StartedPid:
			h.starts++
		case *typesv1.ProcessOutput_Exit:
			h.exit = o.Exit
		}
		if enough != nil && enough(h) {
			return h
		}
	}
}

func tail(s string) string { return s[max(0, len(s)-200):] }

// exec runs a command to its end.
func (b *box) exec(name string, args ...string) *heard {
	b.t.Helper()
	b.prepare(name, false, args...)
	c := b.io(name, true)
	defer c.Close() //nolint:errcheck // read to its end
	_, err := b.shim.Start(b.ctx(), &shimv1.StartRequest{Process: name})
	b.ok(err)
	h := hear(b.t, c, nil)
	_, err = b.shim.Delete(b.ctx(), &shimv1.DeleteRequest{Process: name})
	b.ok(err)
	return h
}

func (b *box) prepare(name string, stdin bool, args ...string) {
	b.t.Helper()
	p := *b.spec.Process
	p.Args = args
	raw, err := json.Marshal(p)
	b.ok(err)
	_, err = b.shim.Exec(b.ctx(), &shimv1.ExecRequest{Process: name, Spec: raw, OpenStdin: stdin})
	b.ok(err)
}

// logged is the container's log.
func (b *box) logged() string {
	b.t.Helper()
	r, err := logfile.Open(b.dir.Log(), logfile.Options{Tail: -1})
	b.ok(err)
	defer r.Close() //nolint:errcheck // only read
	var out strings.Builder
	for ctx := b.ctx(); ; {
		rec, err := r.Next(ctx)
		if errors.Is(err, io.EOF) {
			return out.String()
		}
		b.ok(err)
		if rec.Notice != "" {
			b.t.Errorf("notice: %s", rec.Notice)
		}
		out.Write(rec.Data)
	}
}

func stdin(p string) *typesv1.ProcessInput {
	return &typesv1.ProcessInput{Input: &typesv1.ProcessInput_Stdin{Stdin: []byte(p)}}
}

var eof = &typesv1.ProcessInput{Input: &typesv1.ProcessInput_StdinEof{StdinEof: true}}

func TestRun(t *testing.T) {
	b := newBox(t, "sh", "-c", "echo out; echo err >&2; exit 7").create()
	c := b.io("", true)
	b.start()
	h := hear(t, c, nil)
	if h.out.String() != "out\n" || h.err.String() != "err\n" || h.exit.GetCode() != 7 || h.exit.GetRun() != 1 || h.starts != 1 {
		t.Errorf("%q %q %v %d", h.out.String(), h.err.String(), h.exit, h.starts)
	}
	if x := b.wait(); x.GetCode() != 7 || x.GetReason() != "" {
		t.Errorf("wait: %v", x)
	}
	if got := b.logged(); got != "out\nerr\n" && got != "err\nout\n" {
		t.Errorf("log %q", got)
	}
	xs, err := b.dir.ReadExits()
	if err != nil || len(xs) != 1 || xs[0].Code != 7 || xs[0].Run != 1 || xs[0].StartedAt.IsZero() {
		t.Errorf("exits %+v %v", xs, err)
	}
	late := hear(t, b.io("", true), nil)
	if late.out.String() != "out\n" || late.exit.GetCode() != 7 {
		t.Errorf("who comes late gets %q %v", late.out.String(), late.exit)
	}
	st := b.until(func(st *shimv1.StateResponse) bool { return st.GetPhase() == shimv1.Phase_PHASE_EXITED })
	if st.GetExit().GetCode() != 7 || st.GetRun() != 1 || st.GetPid() != 0 {
		t.Errorf("state %v", st)
	}
	_, err = b.shim.Delete(b.ctx(), &shimv1.DeleteRequest{})
	b.ok(err)
	_, err = b.shim.Shutdown(b.ctx(), &shimv1.ShutdownRequest{})
	b.ok(err)
	select {
	case <-b.shim.Gone():
	case <-time.After(10 * time.Second):
		t.Error("the shim stays")
	}
}
