package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/internal/bundle"
	"github.com/gantryd/gantry/internal/supervise"
	shimv1 "github.com/gantryd/gantry/proto/gantry/shim/v1"
)

func phase(want shimv1.Phase) func(*shimv1.StateResponse) bool {
	return func(st *shimv1.StateResponse) bool { return st.GetPhase() == want }
}

const (
	running = shimv1.Phase_PHASE_RUNNING
	exited  = shimv1.Phase_PHASE_EXITED
	waiting = shimv1.Phase_PHASE_WAITING
	paused  = shimv1.Phase_PHASE_PAUSED
)

func TestStartFails(t *testing.T) {
	for _, c := range []struct {
		name, cmd string
		is        func(error) bool
		code      uint32
	}{
		{"not there", "nothing-like-that", errdefs.IsNotFound, 127},
		{"no program", "/etc/passwd", nil, 126},
		{"a directory", "/bin", errdefs.IsPermissionDenied, 126},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBox(t, c.cmd)
			b.boot.Restart = &shimv1.Restart{Always: true}
			b.spawn()
			_, err := b.shim.Create(b.ctx(), &shimv1.CreateRequest{})
			created := err == nil
			if created {
				_, err = b.shim.Start(b.ctx(), &shimv1.StartRequest{})
			}
			if err == nil || !strings.Contains(err.Error(), "exec "+c.cmd+": ") || c.is != nil && !c.is(err) {
				t.Fatalf("%v", err)
			}
			if !created {
				return
			}
			if x := b.wait(); x.GetCode() != c.code || x.GetReason() != reasonStart {
				t.Errorf("%v", x)
			}
			st := b.until(phase(exited))
			if st.GetMessage() == "" {
				t.Errorf("no message in %v", st)
			}
		})
	}
}

func TestWrongOrder(t *testing.T) {
	b := newBox(t, "sleep", "1000").spawn()
	calls := map[string]func() error{
		"start":  func() error { _, err := b.shim.Start(b.ctx(), &shimv1.StartRequest{}); return err },
		"pause":  func() error { _, err := b.shim.Pause(b.ctx(), &shimv1.PauseRequest{}); return err },
		"resume": func() error { _, err := b.shim.Resume(b.ctx(), &shimv1.ResumeRequest{}); return err },
		"kill":   func() error { _, err := b.shim.Kill(b.ctx(), &shimv1.KillRequest{Signal: 9, All: true}); return err },
		"stats":  func() error { _, err := b.shim.Stats(b.ctx(), &shimv1.StatsRequest{}); return err },
		"exec": func() error {
			_, err := b.shim.Exec(b.ctx(), &shimv1.ExecRequest{Process: "x", Spec: []byte(`{"args":["true"],"cwd":"/"}`)})
			return err
		},
	}
	for name, call := range calls {
		if err := call(); !errdefs.IsFailedPrecondition(err) {
			t.Errorf("%s before create: %v", name, err)
		}
	}
	first, err := b.shim.Create(b.ctx(), &shimv1.CreateRequest{})
	b.ok(err)
	if again, err := b.shim.Create(b.ctx(), &shimv1.CreateRequest{}); err != nil || again.GetPid() != first.GetPid() {
		t.Errorf("create again, the answer was lost: %v %v", again, err)
	}
	b.start()
	if _, err := b.shim.Create(b.ctx(), &shimv1.CreateRequest{}); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("create what runs: %v", err)
	}
	for name, call := range map[string]func() error{
		"start":    calls["start"],
		"delete":   func() error { _, err := b.shim.Delete(b.ctx(), &shimv1.DeleteRequest{}); return err },
		"shutdown": func() error { _, err := b.shim.Shutdown(b.ctx(), &shimv1.ShutdownRequest{}); return err },
	} {
		if err := call(); !errdefs.IsFailedPrecondition(err) {
			t.Errorf("%s what runs: %v", name, err)
		}
	}
	if _, err := b.shim.Wait(b.ctx(), &shimv1.WaitRequest{Process: "nobody"}); !errdefs.IsNotFound(err) {
		t.Errorf("wait for nobody: %v", err)
	}
}

// TestWarnings: what the host does not allow is told to whoever asks for the container, each time.
func TestWarnings(t *testing.T) {
	var have unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NPROC, &have); err != nil {
		t.Fatal(err)
	}
	b := newBox(t, "true")
	b.spec.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NPROC", Soft: have.Max - 1, Hard: have.Max}}
	want := 0
	if have.Max != unix.RLIM_INFINITY && !mayRaise(t) {
		b.spec.Process.Rlimits[0].Hard, want = have.Max+1, 1
	}
	b.create()
	for range 2 { // whoever did not hear the answer asks again
		made, err := b.shim.Create(b.ctx(), &shimv1.CreateRequest{})
		b.ok(err)
		if w := made.GetWarnings(); len(w) != want || want > 0 && !strings.HasSuffix(w[0], fmt.Sprintf(": limit RLIMIT_NPROC, hard %d", have.Max)) {
			t.Errorf("%q, want %d", w, want)
		}
	}
}

// mayRaise reports whether this process may raise limits, which CAP_SYS_RESOURCE allows.
func mayRaise(t *testing.T) bool {
	t.Helper()
	raw, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	var caps uint64
	for line := range strings.Lines(string(raw)) {
		if hex, ok := strings.CutPrefix(line, "CapEff:"); ok {
			if _, err := fmt.Sscanf(strings.TrimSpace(hex), "%x", &caps); err != nil {
				t.Fatal(err)
			}
		}
	}
	return caps>>unix.CAP_SYS_RESOURCE&1 == 1
}

func TestDeleteWhatNeverRan(t *testing.T) {
	b := newBox(t, "true").create()
	_, err := b.shim.Delete(b.ctx(), &shimv1.DeleteRequest{})
	b.ok(err)
	_, err = b.shim.Delete(b.ctx(), &shimv1.DeleteRequest{})
	b.ok(err)
	if xs, err := b.dir.ReadExits(); len(xs) > 0 || err != nil {
		t.Errorf("%v %v", xs, err)
	}
	_, err = b.shim.Create(b.ctx(), &shimv1.CreateRequest{})
	b.ok(err)
	b.start()
	if x := b.wait(); x.GetCode() != 0 {
		t.Errorf("%v", x)
	}
}

func TestRestarts(t *testing.T) {
	b := newBox(t, "sh", "-c", "echo run; exit 5")
	b.boot.Run, b.boot.Restart = 7, &shimv1.Restart{OnFailure: true, MaxAttempts: 2}
	b.create()
	c := b.io("", true)
	b.start()
	h := hear(t, c, nil)
	if h.out.String() != "run\nrun\nrun\n" || h.starts != 3 || h.exit.GetCode() != 5 || h.exit.GetRun() != 9 {
		t.Errorf("%q %d %v", h.out.String(), h.starts, h.exit)
	}
	st := b.until(phase(exited))
	if st.GetRun() != 9 || st.GetRestarts() != 2 {
		t.Errorf("%v", st)
	}
	xs, err := b.dir.ReadExits()
	if err != nil || len(xs) != 3 || xs[0].Run != 7 || xs[2].Run != 9 {
		t.Errorf("%+v %v", xs, err)
	}
	if got := b.logged(); got != "run\nrun\nrun\n" {
		t.Errorf("%q", got)
	}
}

func TestStopEndsRestarts(t *testing.T) {
	b := newBox(t, "sh", "-c", "trap 'exit 0' TERM; echo ready; while true; do sleep 0.01; done")
	b.boot.Restart = &shimv1.Restart{Always: true}
	b.create()
	c := b.io("", true)
	b.start()
	hear(t, c, func(h *heard) bool { return h.out.Len() > 0 })
	b.kill(&shimv1.KillRequest{Signal: uint32(unix.SIGKILL)}) // not the user's stop: it comes back
	hear(t, c, func(h *heard) bool { return h.starts > 0 && h.out.Len() > 0 })
	b.kill(&shimv1.KillRequest{Signal: uint32(unix.SIGTERM), Last: true})
	if x := b.wait(); x.GetCode() != 0 || x.GetRun() != 2 {
		t.Errorf("%v", x)
	}
}

func TestStopWhileWaiting(t *testing.T) {
	b := newBox(t, "false")
	b.boot.Restart = &shimv1.Restart{Always: true}
	b.run()
	b.until(func(st *shimv1.StateResponse) bool { return st.GetPhase() == waiting && st.GetRestarts() >= 3 }) // waits 800 ms now
	b.kill(&shimv1.KillRequest{Signal: uint32(unix.SIGTERM), Last: true})
	st := b.until(phase(exited))
	if st.GetExit().GetCode() != 1 {
		t.Errorf("%v", st)
	}
	time.Sleep(time.Second)
	if after := b.until(phase(exited)); after.GetRun() != st.GetRun() {
		t.Errorf("it ran again: %v", after)
	}
}

// TestStopAnywhen stops a container that starts all the time, at any moment: it always ends.
func TestStopAnywhen(t *testing.T) {
	for i := range 12 {
		b := newBox(t, "true")
		b.boot.Restart = &shimv1.Restart{Always: true}
		b.run()
		time.Sleep(time.Duration(90+i*3) * time.Millisecond)
		_, err := b.shim.Kill(b.ctx(), &shimv1.KillRequest{Signal: 9, All: true, Last: true})
		if err != nil && !errdefs.IsFailedPrecondition(err) && !errdefs.IsNotFound(err) {
			t.Fatal(err)
		}
		b.until(phase(exited))
	}
}

func TestPause(t *testing.T) {
	b := newBox(t, "sh", "-c", "while true; do echo x; sleep 0.01; done").run()
	c := b.io("", false)
	hear(t, c, func(h *heard) bool { return h.out.Len() > 10 })
	for range 2 { // twice is once
		_, err := b.shim.Pause(b.ctx(), &shimv1.PauseRequest{})
		b.ok(err)
	}
	b.until(phase(paused))
	if _, err := b.shim.Exec(b.ctx(), &shimv1.ExecRequest{Process: "x", Spec: []byte(`{"args":["true"],"cwd":"/"}`)}); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("exec in what is paused: %v", err)
	}
	_, err := b.shim.Resume(b.ctx(), &shimv1.ResumeRequest{})
	b.ok(err)
	b.until(phase(running))
	hear(t, c, func(h *heard) bool { return h.out.Len() > 10 })
	_, err = b.shim.Pause(b.ctx(), &shimv1.PauseRequest{})
	b.ok(err)
	b.kill(&shimv1.KillRequest{Signal: 9}) // and it dies nevertheless
	if x := b.wait(); x.GetCode() != 137 || x.GetReason() != "" {
		t.Errorf("%v", x)
	}
}

func TestExec(t *testing.T) {
	b := newBox(t, "sleep", "1000").run()
	if h := b.exec("one", "sh", "-c", "echo out; echo err >&2; exit 9"); h.out.String() != "out\n" || h.err.String() != "err\n" || h.exit.GetCode() != 9 || h.exit.GetRun() != 0 {
		t.Errorf("%q %q %v", h.out.String(), h.err.String(), h.exit)
	}
	b.prepare("in", true, "cat")
	if _, err := b.shim.Exec(b.ctx(), &shimv1.ExecRequest{Process: "in", Spec: []byte(`{}`)}); !errdefs.IsAlreadyExists(err) {
		t.Errorf("a name in use: %v", err)
	}
	c := b.io("in", true)
	_, err := b.shim.Start(b.ctx(), &shimv1.StartRequest{Process: "in"})
	b.ok(err)
	b.ok(c.Send(stdin("through\n")))
	b.ok(c.Send(eof))
	if h := hear(t, c, nil); h.out.String() != "through\n" || h.exit.GetCode() != 0 {
		t.Errorf("%q %v", h.out.String(), h.exit)
	}
	b.prepare("killed", false, "sleep", "1000")
	_, err = b.shim.Start(b.ctx(), &shimv1.StartRequest{Process: "killed"})
	b.ok(err)
	if _, err := b.shim.Delete(b.ctx(), &shimv1.DeleteRequest{Process: "killed"}); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("delete what runs: %v", err)
	}
	b.kill(&shimv1.KillRequest{Process: "killed", Signal: 9})
	r, err := b.shim.Wait(b.ctx(), &shimv1.WaitRequest{Process: "killed"})
	if err != nil || r.GetExit().GetCode() != 137 || r.GetExit().GetSignal() != 9 {
		t.Errorf("%v %v", r, err)
	}
	// One that was never started, one that cannot be, and one that dies with the container.
	b.prepare("never", false, "true")
	_, err = b.shim.Delete(b.ctx(), &shimv1.DeleteRequest{Process: "never"})
	b.ok(err)
	spec, _ := json.Marshal(specs.Process{Args: []string{"nothing-like-that"}, Cwd: "/", Env: []string{"PATH=/bin"}})
	_, err = b.shim.Exec(b.ctx(), &shimv1.ExecRequest{Process: "not", Spec: spec})
	if err == nil {
		_, err = b.shim.Start(b.ctx(), &shimv1.StartRequest{Process: "not"})
	}
	if !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), "exec nothing-like-that: ") {
		t.Errorf("%v", err)
	}
	b.prepare("with", false, "sleep", "1000")
	_, err = b.shim.Start(b.ctx(), &shimv1.StartRequest{Process: "with"})
	b.ok(err)
	b.kill(&shimv1.KillRequest{Signal: 9})
	b.wait() // execs are told before init
	ctx, cancel := context.WithTimeout(b.ctx(), 10*time.Millisecond)
	defer cancel()
	if r, err := b.shim.Wait(ctx, &shimv1.WaitRequest{Process: "with"}); err != nil || r.GetExit().GetCode() != 137 {
		t.Errorf("%v %v", r, err)
	}
}

func TestOOM(t *testing.T) {
	b := newBox(t, "sh", "-c", "x=x; while true; do x=$x$x; done")
	limit := int64(16 << 20)
	b.spec.Linux.Resources.Memory = &specs.LinuxMemory{Limit: &limit, Swap: &limit}
	b.run()
	if x := b.wait(); x.GetCode() != 137 || x.GetReason() != reasonOOM {
		t.Errorf("%v", x)
	}
}

func TestStatsAndUpdate(t *testing.T) {
	b := newBox(t, "sleep", "1000").run()
	st, err := b.shim.Stats(b.ctx(), &shimv1.StatsRequest{})
	// What a program leaves of itself counts until it is reaped, a moment later.
	for end := time.Now().Add(5 * time.Second); err == nil && st.GetPids() != 1 && time.Now().Before(end); time.Sleep(time.Millisecond) {
		st, err = b.shim.Stats(b.ctx(), &shimv1.StatsRequest{})
	}
	if err != nil || st.GetPids() != 1 || st.GetMemoryBytes() == 0 {
		t.Errorf("%v %v", st, err)
	}
	_, err = b.shim.Update(b.ctx(), &shimv1.UpdateRequest{Resources: []byte(`{"pids":{"limit":3}}`)})
	b.ok(err)
	if h := b.exec("full", "sh", "-c", "sleep 9 & sleep 9 & sleep 9 & wait"); h.exit.GetCode() == 0 {
		t.Errorf("a fifth process in a group of three: %v", h.exit)
	}
}

// TestUpdatePolicy is for exits from then on, in the middle of a run and between two.
func TestUpdatePolicy(t *testing.T) {
	b := newBox(t, "sleep", "1000").run()
	update := func(req *shimv1.UpdateRequest) {
		t.Helper()
		_, err := b.shim.Update(b.ctx(), req)
		b.ok(err)
	}
	update(&shimv1.UpdateRequest{Restart: &shimv1.Restart{Always: true}})
	for run := uint64(2); run < 6; run++ { // at last there is almost a second between two runs
		b.kill(&shimv1.KillRequest{Signal: 9})
		b.until(func(st *shimv1.StateResponse) bool {
			return st.GetRun() == run-1 && st.GetPhase() == shimv1.Phase_PHASE_WAITING || st.GetRun() == run
		})
		if run < 5 {
			b.until(func(st *shimv1.StateResponse) bool { return st.GetRun() == run && st.GetPhase() == running })
		}
	}
	b.spec.Linux.Resources.Pids = &specs.LinuxPids{Limit: new(int64)}
	*b.spec.Linux.Resources.Pids.Limit = 3
	raw, err := json.Marshal(b.spec)
	b.ok(err)
	b.ok(os.WriteFile(b.dir.Config(), raw, 0o600))
	update(&shimv1.UpdateRequest{Resources: []byte(`{"pids":{"limit":3}}`)}) // nothing is there to be limited
	b.until(func(st *shimv1.StateResponse) bool { return st.GetRun() == 5 && st.GetPhase() == running })
	if h := b.exec("full", "sh", "-c", "sleep 9 & sleep 9 & sleep 9 & wait"); h.exit.GetCode() == 0 {
		t.Errorf("a fifth process in a group of three: %v", h.exit)
	}
	update(&shimv1.UpdateRequest{Restart: &shimv1.Restart{}})
	b.kill(&shimv1.KillRequest{Signal: 9})
	if st := b.until(phase(exited)); st.GetRun() != 5 {
		t.Errorf("%v", st)
	}
}

// TestLongPoll answers when something changes, and not before.
func TestLongPoll(t *testing.T) {
	b := newBox(t, "sleep", "1000").create()
	st := b.until(phase(shimv1.Phase_PHASE_CREATED))
	ctx, cancel := context.WithTimeout(b.ctx(), 50*time.Millisecond)
	defer cancel()
	if again, err := b.shim.State(ctx, &shimv1.StateRequest{Seen: st.GetChange()}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("nothing happened: %v %v", again, err)
	}
	got := make(chan *shimv1.StateResponse, 1)
	go func() {
		r, _ := b.shim.State(b.ctx(), &shimv1.StateRequest{Seen: st.GetChange()})
		got <- r
	}()
	b.start()
	if r := <-got; r.GetPhase() != running || r.GetPid() == 0 || r.GetStartedAt() == nil {
		t.Errorf("%v", r)
	}
}

// TestDeaf sends a shim the signals that end others.
func TestDeaf(t *testing.T) {
	b := newBox(t, "sh", "-c", "trap 'exit 4' TERM; echo ready; while true; do sleep 0.01; done").create()
	c := b.io("", true)
	b.start()
	hear(t, c, func(h *heard) bool { return h.out.Len() > 0 })
	is, err := b.dir.Shim()
	b.ok(err)
	for _, sig := range []unix.Signal{unix.SIGTERM, unix.SIGINT, unix.SIGHUP, unix.SIGQUIT, unix.SIGUSR1, unix.SIGPIPE} {
		b.ok(unix.Kill(is.PID, sig))
	}
	_, err = b.shim.Hello(b.ctx(), &shimv1.HelloRequest{})
	b.ok(err)
	b.kill(&shimv1.KillRequest{Signal: uint32(unix.SIGTERM)}) // which the container has not learnt to ignore
	if x := b.wait(); x.GetCode() != 4 {
		t.Errorf("%v", x)
	}
}

// TestFind loses the first daemon and finds the shim with the next.
func TestFind(t *testing.T) {
	b := newBox(t, "sh", "-c", "echo one; sleep 0.3; echo two").run()
	c := b.io("", true)
	hear(t, c, func(h *heard) bool { return h.out.Len() > 0 })
	b.ok(c.Close())
	b.ok(b.shim.(io.Closer).Close())
	<-b.shim.Gone()
	if _, err := b.shim.Hello(b.ctx(), &shimv1.HelloRequest{}); !errdefs.IsUnavailable(err) {
		t.Errorf("over a closed connection: %v", err)
	}
	next := supervise.New(supervise.Options{Instance: instance})
	shim, err := next.Find(b.ctx(), b.dir)
	b.ok(err)
	b.shim = shim
	if h := hear(t, b.io("", true), nil); h.out.String() != "one\ntwo\n" || h.exit.GetCode() != 0 {
		t.Errorf("%q %v", h.out.String(), h.exit)
	}
	for f, err := range next.All(filepath.Dir(filepath.Dir(b.dir.State))) {
		if err != nil || f.ID != b.dir.ID() || !f.Alive {
			t.Errorf("all: %+v %v", f, err)
		}
	}
	// A shim whose shim.json says something else is not ours, and not signalled.
	good, err := b.dir.Shim()
	b.ok(err)
	for name, change := range map[string]func(*bundle.Shim){
		"start time": func(s *bundle.Shim) { s.Started++ },
		"boot id":    func(s *bundle.Shim) { s.BootID = "another" },
		"pid":        func(s *bundle.Shim) { s.PID = os.Getpid() },
		"nonce":      func(s *bundle.Shim) { s.Nonce = "another" },
		"container":  func(s *bundle.Shim) { s.Container = "another" },
	} {
		bad := good
		change(&bad)
		b.ok(bundle.WriteShim(b.dir, bad))
		if _, err := next.Find(b.ctx(), b.dir); !errdefs.IsNotFound(err) {
			t.Errorf("another %s: %v", name, err)
		}
	}
	b.ok(bundle.WriteShim(b.dir, good))
	_, err = next.Find(b.ctx(), b.dir)
	b.ok(err)
	// One that hangs is not one that is gone.
	b.ok(unix.Kill(good.PID, unix.SIGSTOP))
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		if stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", good.PID)); strings.Contains(string(stat), ") T ") {
			break
		}
	}
	ctx, cancel := context.WithTimeout(b.ctx(), 200*time.Millisecond)
	defer cancel()
	if _, err := next.Find(ctx, b.dir); err == nil || errdefs.IsNotFound(err) {
		t.Errorf("a shim that hangs: %v", err)
	}
	began := time.Now()
	x, err := next.Bury(b.ctx(), b.dir)
	if err != nil || x.Code != 0 || x.Run != 1 || time.Since(began) > 5*time.Second {
		t.Errorf("buried: %+v %v after %v", x, err, time.Since(began))
	}
	if _, err := next.Find(b.ctx(), b.dir); !errdefs.IsNotFound(err) {
		t.Errorf("after the burial: %v", err)
	}
}

// TestBury kills a shim with its container running, in one that its policy would start again.
func TestBury(t *testing.T) {
	b := newBox(t, "sleep", "1000")
	b.boot.Restart, b.boot.Run = &shimv1.Restart{Always: true}, 4
	b.run()
	pid := int(b.until(phase(running)).GetPid())
	is, err := b.dir.Shim()
	b.ok(err)
	b.ok(unix.Kill(is.PID, unix.SIGKILL))
	<-b.shim.Gone()
	if err := unix.Kill(pid, 0); err != nil {
		t.Errorf("the container did not outlive its shim: %v", err)
	}
	for range 2 {
		x, err := b.sup.Bury(b.ctx(), b.dir)
		if err != nil || x.Code != 137 || x.Reason != supervise.ReasonLost || x.Run != 4 || x.At.IsZero() {
			t.Errorf("%+v %v", x, err)
		}
	}
	if t0, err := bundle.StartTime(pid); t0 != 0 || err != nil {
		t.Errorf("the container lives: %d %v", t0, err)
	}
	if _, err := os.Stat(b.dir.State); !os.IsNotExist(err) {
		t.Errorf("the state directory: %v", err)
	}
	if xs, err := b.dir.ReadExits(); err != nil || len(xs) != 1 {
		t.Errorf("%v %v", xs, err)
	}
	// A container that was never started has no exit; one that lives is ended, shim and all.
	never := newBox(t, "sleep", "1000").create()
	if x, err := never.sup.Bury(never.ctx(), never.dir); err != nil || x != (bundle.Exit{}) {
		t.Errorf("%+v %v", x, err)
	}
	alive := newBox(t, "sleep", "1000").run()
	if x, err := alive.sup.Bury(alive.ctx(), alive.dir); err != nil || x.Reason != supervise.ReasonLost {
		t.Errorf("%+v %v", x, err)
	}
}

func TestSpawnFails(t *testing.T) {
	b := newBox(t, "true")
	b.boot.Protocol = 99
	_, err := b.sup.Spawn(b.ctx(), b.dir, b.boot)
	if err == nil || !strings.Contains(err.Error(), "protocol 99") {
		t.Errorf("%v", err)
	}
	if _, err := os.Stat(b.dir.State); !os.IsNotExist(err) {
		t.Errorf("something was left: %v", err)
	}
	b.boot.Protocol = protocol
	b.spawn()
	if _, err := b.sup.Spawn(b.ctx(), b.dir, b.boot); !errdefs.IsAlreadyExists(err) {
		t.Errorf("a second one: %v", err)
	}
	_, err = supervise.New(supervise.Options{Binary: "/nothing"}).Spawn(b.ctx(), bundle.Dir{State: t.TempDir() + "/c/x", Root: t.TempDir()}, b.boot)
	if !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no program: %v", err)
	}
	sleeper, err := exec.LookPath("sleep")
	b.ok(err)
	_, err = supervise.New(supervise.Options{Binary: sleeper}).Spawn(b.ctx(), bundle.Dir{State: t.TempDir() + "/c/x", Root: t.TempDir()}, b.boot)
	if err == nil || !strings.Contains(err.Error(), "without a word") {
		t.Errorf("another program: %v", err)
	}
}

// TestLongPath has a state directory whose sockets' paths are longer than a socket's address.
func TestLongPath(t *testing.T) {
	b := newBox(t, "echo", "far")
	b.dir.State = filepath.Join(t.TempDir(), strings.Repeat("d", 100), "c", b.dir.ID())
	b.boot.StateDir = b.dir.State
	b.ok(os.MkdirAll(filepath.Dir(b.dir.State), 0o700))
	b.create()
	c := b.io("", true)
	b.start()
	if h := hear(t, c, nil); h.out.String() != "far\n" {
		t.Errorf("%q", h.out.String())
	}
}

// TestSealed looks at a shim as a container would that got hold of one (CVE-2019-5736).
func TestSealed(t *testing.T) {
	b := newBox(t, "sleep", "1000")
	raw, err := os.ReadFile("/proc/self/exe")
	b.ok(err)
	program := filepath.Join(t.TempDir(), "gantry-shim")
	b.ok(os.WriteFile(program, raw, 0o755))
	b.sup = supervise.New(supervise.Options{Binary: program, Instance: instance})
	b.run()
	is, err := b.dir.Shim()
	b.ok(err)
	comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", is.PID))
	if err != nil || string(comm) != "gantry-shim\n" {
		t.Errorf("it is called %q %v", comm, err)
	}
	held, err := unix.Open(fmt.Sprintf("/proc/%d/exe", is.PID), unix.O_PATH|unix.O_CLOEXEC, 0)
	b.ok(err)
	defer unix.Close(held) //nolint:errcheck // a test's
	_, err = b.sup.Bury(b.ctx(), b.dir)
	b.ok(err)
	// While it runs nobody can write to it; who waits until it does not must not be able to either.
	fd, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", held), unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if !errors.Is(err, unix.EROFS) {
		t.Errorf("the shim's program can be written to: %d %v", fd, err)
	}
	fd, err = unix.Open(program, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatalf("the test proves nothing: %v", err)
	}
	_ = unix.Close(fd)
}

// TestStranger turns away who is not root.
func TestStranger(t *testing.T) {
	b := newBox(t, "sleep", "1000").run()
	for p := b.dir.State; p != "/"; p = filepath.Dir(p) { // even where the directory would let in anybody
		st, err := os.Stat(p)
		b.ok(err)
		b.ok(os.Chmod(p, st.Mode().Perm()|0o711))
	}
	for _, name := range []string{bundle.SocketFile, bundle.IOFile} {
		path := filepath.Join(b.dir.State, name)
		b.ok(os.Chmod(path, 0o666))
		for uid, want := range map[uint32]string{0: "welcome", 65534: "turned away"} {
			cmd := exec.Command("/proc/self/exe")
			cmd.Args = []string{"stranger", path}
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
			if out, err := cmd.CombinedOutput(); string(out) != want {
				t.Errorf("%s, uid %d: %s %v", name, uid, out, err)
			}
		}
	}
}

// stranger is the program of TestStranger.
func stranger(path string) {
	c, err := net.Dial("unix", path)
	if err != nil {
		fmt.Print(err)
		return
	}
	_ = c.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
	if _, err := c.Read(make([]byte, 1)); errors.Is(err, os.ErrDeadlineExceeded) {
		fmt.Print("welcome")
		return
	}
	fmt.Print("turned away")
}

// TestBegun: a shim that is told to makes the container before anybody asks, and says why it cannot when somebody does.
func TestBegun(t *testing.T) {
	b := newBox(t, "echo", "hello")
	b.boot.Create = true
	b.spawn()
	b.until(phase(shimv1.Phase_PHASE_CREATED))
	for range 2 {
		_, err := b.shim.Create(b.ctx(), &shimv1.CreateRequest{})
		b.ok(err)
	}
	b.start()
	if x := b.wait(); x.GetCode() != 0 {
		t.Errorf("%v", x)
	}

	b = newBox(t, "true")
	b.boot.Create, b.boot.User = true, "stranger"
	b.spawn()
	for range 2 {
		if _, err := b.shim.Create(b.ctx(), &shimv1.CreateRequest{}); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "stranger") {
			t.Errorf("%v", err)
		}
	}
}

// shims are the processes that this test has started as shims.
func shims(t *testing.T) (pids []int) {
	t.Helper()
	tasks, err := filepath.Glob("/proc/self/task/*/children")
	if err != nil {
		t.Fatal(err)
	}
	for _, task := range tasks {
		raw, err := os.ReadFile(task)
		if err != nil {
			continue // a thread that has ended
		}
		for _, f := range strings.Fields(string(raw)) {
			if comm, err := os.ReadFile("/proc/" + f + "/comm"); err == nil && strings.TrimSpace(string(comm)) == "gantry-shim" {
				pid, _ := strconv.Atoi(f)
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

// TestSlots: shims that were started ahead are as good as others, whatever happened to them; and none is left.
func TestSlots(t *testing.T) {
	sup := supervise.New(supervise.Options{Binary: "/proc/self/exe", Instance: instance, Slots: 2, Log: slog.New(slog.DiscardHandler)})
	ready := func(n int) (pids []int) {
		t.Helper()
		for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
			if pids = shims(t); len(pids) == n {
				return pids
			}
			if time.Now().After(deadline) {
				t.Fatalf("there are %d shims, want %d", len(pids), n)
			}
		}
	}
	run := func() int {
		t.Helper()
		b := newBox(t, "sleep", "1000")
		b.sup = sup
		b.run()
		is, err := b.dir.Shim()
		b.ok(err)
		if wd, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", is.PID)); err != nil || wd != b.dir.State {
			t.Errorf("it is in %s, %v", wd, err)
		}
		if out, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/2", is.PID)); err != nil || out != filepath.Join(b.dir.State, bundle.LogFile) {
			t.Errorf("it writes to %s, %v", out, err)
		}
		return is.PID
	}
	first := run()
	ahead := slices.DeleteFunc(ready(3), func(pid int) bool { return pid == first })
	if pid := run(); !slices.Contains(ahead, pid) {
		t.Errorf("%d was not started ahead: %v", pid, ahead)
	}
	// Killed while they wait: somebody else's doing, and no reason for a container not to start.
	for _, pid := range ready(4) {
		if is, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cwd/%s", pid, bundle.ShimFile)); len(is) == 0 {
			b := newBox(t)
			b.ok(unix.Kill(pid, unix.SIGKILL))
		}
	}
	ready(2)
	run()
	ready(5)
	sup.Close()
	sup.Close()
	ready(3)
	run() // without
	ready(4)
}
