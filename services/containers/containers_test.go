package containers

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/gantryd/gantry/internal/meta"
	"github.com/gantryd/gantry/internal/rpc"
	containersv1 "github.com/gantryd/gantry/proto/gantry/containers/v1"
	shimv1 "github.com/gantryd/gantry/proto/gantry/shim/v1"
	typesv1 "github.com/gantryd/gantry/proto/gantry/types/v1"
)

func TestCreate(t *testing.T) {
	w := newWorld(t)
	c := w.create("web", &containersv1.Spec{Env: []string{"B=2"}})
	if len(c.GetMeta().GetId()) != 64 || c.GetStatus().GetPhase() != containersv1.Phase_PHASE_CREATED || c.GetOrigin().GetSnapshotter() != "overlay" || c.GetCommand()[0] != "sh" {
		t.Errorf("%v", c)
	}
	if n := w.create("", nil).GetMeta().GetName(); !strings.Contains(n, "_") {
		t.Errorf("made up the name %q", n)
	}
	_, err := w.Create(t.Context(), "web", nil, &containersv1.Spec{Image: "busybox"})
	if !errdefs.IsAlreadyExists(err) || !strings.Contains(err.Error(), meta.Short(c.GetMeta().GetId())) {
		t.Errorf("a name in use: %v", err)
	}
	_, err = w.Create(t.Context(), "x1", nil, &containersv1.Spec{Image: "missing"})
	if !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), "gantry pull missing") {
		t.Errorf("an image that is not here: %v", err)
	}
	for name, spec := range map[string]*containersv1.Spec{
		"no image":     {},
		"bad signal":   {Image: "a", StopSignal: "SIGNOPE"},
		"grace":        {Image: "a", StopGrace: durationpb.New(-1)},
		"log":          {Image: "a", Log: &containersv1.LogOptions{MaxBytes: 10}},
		"runtime":      {Image: "a", Runtime: "no-such-runtime"},
		"port":         {Image: "a", Ports: []*containersv1.PortMapping{{ContainerPort: 70000}}},
		"no port":      {Image: "a", Ports: []*containersv1.PortMapping{{}}},
		"protocol":     {Image: "a", Ports: []*containersv1.PortMapping{{ContainerPort: 1, Protocol: "icmp"}}},
		"port twice":   {Image: "a", Ports: []*containersv1.PortMapping{{ContainerPort: 1, HostPort: 80}, {ContainerPort: 2, HostPort: 79, Count: 2}}},
		"address":      {Image: "a", Ports: []*containersv1.PortMapping{{ContainerPort: 1, HostAddress: "localhost"}}},
		"none and -p":  {Image: "a", NetworkMode: containersv1.NetworkMode_NETWORK_MODE_NONE, Ports: []*containersv1.PortMapping{{ContainerPort: 1}}},
		"host and net": {Image: "a", NetworkMode: containersv1.NetworkMode_NETWORK_MODE_HOST, Networks: []*containersv1.NetworkAttachment{{Network: "x"}}},
		"rm, restart":  {Image: "a", RemoveOnExit: true, Restart: &containersv1.RestartPolicy{When: containersv1.RestartPolicy_WHEN_EXITED}},
		"bind to /":    {Image: "a", Volumes: []*containersv1.VolumeMount{{Source: "/tmp", Target: "/"}}},
		"no source":    {Image: "a", Volumes: []*containersv1.VolumeMount{{Source: "/no/such/path", Target: "/x"}}},
		"no command":   {Image: "a", ClearEntrypoint: true},
		"memory":       {Image: "a", Resources: &containersv1.Resources{MemoryBytes: 1}},
	} {
		if _, err := w.Create(t.Context(), "bad-one", nil, spec); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, name := range []string{"-a", "a b", "a/b", strings.Repeat("a", 129)} {
		if _, err := w.Create(t.Context(), name, nil, &containersv1.Spec{Image: "a"}); !errdefs.IsInvalidArgument(err) {
			t.Errorf("name %q: %v", name, err)
		}
	}
	w.nets.set("check", fmt.Errorf("port 80 is published by container other: %w", errdefs.ErrAlreadyExists))
	if _, err := w.Create(t.Context(), "unlucky", nil, &containersv1.Spec{Image: "a"}); !errdefs.IsAlreadyExists(err) {
		t.Errorf("%v", err)
	}
	w.nets.set("check", nil)
	w.vols.set("ensure", errdefs.ErrUnavailable)
	if _, err := w.Create(t.Context(), "unlucky", nil, &containersv1.Spec{Image: "a"}); !errdefs.IsUnavailable(err) {
		t.Errorf("%v", err)
	}
	w.clean()
}

// TestWarnings: what a shim could only do in part stands in the status, until the next start.
func TestWarnings(t *testing.T) {
	w := newWorld(t)
	told := []string{"a limit is lower than asked"}
	w.shims.onSpawn = func(s *fakeShim) { s.warnings = told }
	c, shim := w.run("web", nil)
	if !slices.Equal(c.GetStatus().GetWarnings(), told) {
		t.Errorf("%v", c.GetStatus())
	}
	shim.ends(0)
	if c := w.eventually("web", inPhase(containersv1.Phase_PHASE_EXITED)); !slices.Equal(c.GetStatus().GetWarnings(), told) {
		t.Errorf("after its end: %v", c.GetStatus())
	}
	told = nil
	c, err := w.Start(t.Context(), "web")
	if err != nil || len(c.GetStatus().GetWarnings()) > 0 {
		t.Errorf("started again: %v, %v", c.GetStatus(), err)
	}
	w.clean()
}

// TestStartJustEnded: once anybody can see that a container has ended, starting it starts it.
func TestStartJustEnded(t *testing.T) {
	w := newWorld(t)
	_, shim := w.run("web", nil)
	for run := uint64(2); run < 20; run++ {
		shim.ends(0)
		w.eventually("web", inPhase(containersv1.Phase_PHASE_EXITED))
		c, err := w.Start(t.Context(), "web")
		if err != nil || c.GetStatus().GetRun() != run {
			t.Fatalf("run %d: %v, %v", run, c.GetStatus(), err)
		}
		shim = w.shims.of(w.state(c.GetMeta().GetId()))
	}
	w.clean()
}

func TestCreateConcurrently(t *testing.T) {
	w := newWorld(t)
	var wg sync.WaitGroup
	var mu sync.Mutex
	made, refused := 0, 0
	for range 16 {
		wg.Go(func() {
			_, err := w.Create(t.Context(), "same", nil, &containersv1.Spec{Image: "a"})
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err == nil:
				made++
			case errdefs.IsAlreadyExists(err):
				refused++
			default:
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if made != 1 || refused != 15 {
		t.Errorf("%d made, %d refused", made, refused)
	}
	w.clean()
}

func TestLife(t *testing.T) {
	w := newWorld(t)
	dir := filepath.Join(t.TempDir(), "made", "by", "us")
	c, shim := w.run("web", &containersv1.Spec{Volumes: []*containersv1.VolumeMount{{Source: dir, Target: "/data", CreateSource: true}, {Source: "vol", Target: "/vol"}}})
	is := c.GetStatus()
	if is.GetPhase() != containersv1.Phase_PHASE_RUNNING || is.GetPid() != fakePID || is.GetRun() != 1 || is.GetRuns() != 1 || is.GetStartedAt() == nil {
		t.Errorf("%v", is)
	}
	if is.GetAddresses()[0].GetNetwork() != "back" || is.GetPorts()[0].GetHostPort() != 8080 {
		t.Errorf("%v", is)
	}
	if _, err := os.Stat(dir); err != nil {
		t.Error(err)
	}
	for file, want := range map[string]string{"config.json": "/volumes/vol", "hosts": "10.4.0.2", "hostname": meta.Short(c.GetMeta().GetId())} {
		if raw, err := os.ReadFile(filepath.Join(w.dir(c.GetMeta().GetId()), file)); err != nil || !strings.Contains(string(raw), want) {
			t.Errorf("%s: %q, %v", file, raw, err)
		}
	}
	if b := shim.boot; b.GetRun() != 1 || b.GetInstance() != "gantry-test" || b.GetNetns() == "" || b.GetLog().GetMaxBytes() != logBytes || b.GetLog().GetMaxFiles() != logFiles {
		t.Errorf("%v", b)
	}
	again, err := w.Start(t.Context(), "web")
	if err != nil || again.GetWantedRun() != 1 {
		t.Errorf("start of what runs: %v, %v", again, err)
	}
	if err := w.Service.Remove(t.Context(), "web", false, false); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "rm -f") {
		t.Errorf("removing what runs: %v", err)
	}
	stopped, err := w.Stop(t.Context(), "web", "", nil)
	if err != nil || stopped.GetStatus().GetExit().GetCode() != 143 || stopped.GetStatus().GetPhase() != containersv1.Phase_PHASE_EXITED || len(stopped.GetStatus().GetAddresses()) != 0 {
		t.Errorf("%v, %v", stopped, err)
	}
	if sent, last := shim.sent(); fmt.Sprint(sent) != "[15]" || !last {
		t.Errorf("sent %v, last %v", sent, last)
	}
	if _, err := w.Stop(t.Context(), "web", "", nil); err != nil {
		t.Errorf("stop of what does not run: %v", err)
	}
	if err := w.Kill(t.Context(), "web", "TERM"); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("kill of what does not run: %v", err)
	}
	w.clean()
	c, err = w.Start(t.Context(), "web")
	if err != nil || c.GetStatus().GetRun() != 2 || c.GetStatus().GetRuns() != 2 {
		t.Errorf("%v, %v", c, err)
	}
	if err := w.Service.Remove(t.Context(), "web", true, true); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Get(t.Context(), "web"); !errdefs.IsNotFound(err) {
		t.Errorf("%v", err)
	}
	if err := w.Service.Remove(t.Context(), "web", true, true); !errdefs.IsNotFound(err) {
		t.Errorf("%v", err)
	}
	if r := w.vols.released; len(r) != 1 || !r[0] {
		t.Errorf("volumes released: %v", r)
	}
	w.clean()
}

func TestStopPatience(t *testing.T) {
	w := newWorld(t)
	_, shim := w.run("deaf", nil)
	shim.set(func() { shim.deaf = true })
	long, brief := time.Hour, 10*time.Millisecond
	done := make(chan error, 1)
	go func() {
		_, err := w.Stop(t.Context(), "deaf", "", &long)
		done <- err
	}()
	w.eventually("deaf", inPhase(containersv1.Phase_PHASE_STOPPING))
	if _, err := w.Stop(t.Context(), "deaf", "", &brief); err != nil { // who is in more of a hurry wins
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if sent, _ := shim.sent(); fmt.Sprint(sent) != "[15 9]" {
		t.Errorf("sent %v", sent)
	}
	if c := w.eventually("deaf", inPhase(containersv1.Phase_PHASE_EXITED)); c.GetStatus().GetExit().GetCode() != 137 {
		t.Errorf("%v", c.GetStatus())
	}
	w.clean()
}

// TestStopSignal: whoever stops may choose the signal, and another one while it stops; the next stop
// knows nothing of it, nor of one that came while nothing ran.
func TestStopSignal(t *testing.T) {
	w := newWorld(t)
	_, shim := w.run("deaf", nil)
	shim.set(func() { shim.deaf = true })
	if _, err := w.Stop(t.Context(), "deaf", "NOSUCH", nil); !errdefs.IsInvalidArgument(err) {
		t.Errorf("no signal: %v", err)
	}
	long, none := time.Hour, time.Duration(0)
	done := make(chan error, 1)
	go func() {
		_, err := w.Stop(t.Context(), "deaf", "SIGINT", &long)
		done <- err
	}()
	w.eventually("deaf", inPhase(containersv1.Phase_PHASE_STOPPING))
	waitFor(t, func() bool { sent, _ := shim.sent(); return len(sent) == 1 })
	brief := 100 * time.Millisecond
	if _, err := w.Stop(t.Context(), "deaf", "quit", &brief); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if sent, _ := shim.sent(); fmt.Sprint(sent) != "[2 3 9]" {
		t.Errorf("sent %v", sent)
	}
	w.eventually("deaf", inPhase(containersv1.Phase_PHASE_EXITED))
	if _, err := w.Stop(t.Context(), "deaf", "SIGHUP", &none); err != nil { // it does not run
		t.Fatal(err)
	}
	if _, err := w.Start(t.Context(), "deaf"); err != nil {
		t.Fatal(err)
	}
	c, err := w.Stop(t.Context(), "deaf", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	if sent, _ := w.shims.of(w.state(c.GetMeta().GetId())).sent(); fmt.Sprint(sent) != "[15]" {
		t.Errorf("the next stop sent %v", sent)
	}
	w.clean()
}

// waitFor polls until ok.
func waitFor(t *testing.T, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it took too long")
		}
	}
}

func TestPause(t *testing.T) {
	w := newWorld(t)
	if err := w.Pause(t.Context(), "nobody"); !errdefs.IsNotFound(err) {
		t.Error(err)
	}
	_, shim := w.run("web", nil)
	if err := w.Resume(t.Context(), "web"); !errdefs.IsFailedPrecondition(err) {
		t.Error(err)
	}
	if err := w.Pause(t.Context(), "web"); err != nil {
		t.Fatal(err)
	}
	if c, _ := w.Get(t.Context(), "web"); c.GetStatus().GetPhase() != containersv1.Phase_PHASE_PAUSED {
		t.Errorf("%v", c.GetStatus())
	}
	if err := w.Pause(t.Context(), "web"); !errdefs.IsFailedPrecondition(err) {
		t.Error(err)
	}
	if _, err := w.Start(t.Context(), "web"); !errdefs.IsFailedPrecondition(err) {
		t.Error(err)
	}
	if err := w.Exec(t.Context(), &containersv1.ExecStart{Ref: "web", Args: []string{"ls"}}, newClient()); !errdefs.IsFailedPrecondition(err) {
		t.Error(err)
	}
	if _, err := w.Stop(t.Context(), "web", "", nil); err != nil { // the signal reaches it once it is thawed
		t.Fatal(err)
	}
	if sent, _ := shim.sent(); fmt.Sprint(sent) != "[15]" {
		t.Errorf("sent %v", sent)
	}
	w.clean()
}

func TestLaunchFails(t *testing.T) {
	for _, tc := range []struct {
		name   string
		break1 func(w *world)
		class  func(error) bool
		reason string
		code   uint32
	}{
		{"no network", func(w *world) { w.nets.set("join", fmt.Errorf("join network back: %w", errdefs.ErrUnavailable)) }, errdefs.IsUnavailable, "", 128},
		{"no volume", func(w *world) { w.vols.set("mount", errdefs.ErrUnavailable) }, errdefs.IsUnavailable, "", 128},
		{"no shim", func(w *world) { w.shims.set("spawn", errdefs.ErrInternal) }, errdefs.IsInternal, "", 128},
		{"no snapshot", func(w *world) { w.snaps.set("mounts", errdefs.ErrDataLoss) }, errdefs.IsDataLoss, "", 128},
		{"no command", func(w *world) {
			w.shims.onSpawn = func(s *fakeShim) { s.fail["start"] = fmt.Errorf("exec sh: no such file: %w", errdefs.ErrNotFound) }
		}, errdefs.IsNotFound, ReasonNotFound, 127},
		{"no program", func(w *world) {
			w.shims.onSpawn = func(s *fakeShim) {
				s.fail["create"] = fmt.Errorf("exec sh: exec format error: %w", errdefs.ErrFailedPrecondition)
			}
		}, errdefs.IsFailedPrecondition, ReasonNotExecutable, 126},
		{"no user", func(w *world) {
			w.shims.onSpawn = func(s *fakeShim) { s.fail["create"] = fmt.Errorf("user nobody: %w", errdefs.ErrNotFound) }
		}, errdefs.IsNotFound, "", 128},
		{"not executable", func(w *world) {
			w.shims.onSpawn = func(s *fakeShim) {
				s.fail["start"] = fmt.Errorf("exec sh: permission denied: %w", errdefs.ErrPermissionDenied)
			}
		}, errdefs.IsPermissionDenied, ReasonNotExecutable, 126},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t)
			vols := []*containersv1.VolumeMount{{Source: "vol", Target: "/vol"}}
			w.create("web", &containersv1.Spec{Volumes: vols})
			w.create("brief", &containersv1.Spec{Volumes: vols, RemoveOnExit: true})
			tc.break1(w)
			_, err := w.Start(t.Context(), "web")
			if !tc.class(err) || rpc.Reason(err) != tc.reason || !strings.HasPrefix(err.Error(), "start container web: ") {
				t.Errorf("%v, reason %q", err, rpc.Reason(err))
			}
			if _, err := w.Start(t.Context(), "brief"); !tc.class(err) {
				t.Errorf("%v", err)
			}
			w.snaps.set("mounts", nil)
			w.eventually("brief", gone)
			c, err := w.Get(t.Context(), "web")
			if is := c.GetStatus(); err != nil || is.GetPhase() != containersv1.Phase_PHASE_CREATED || !is.GetStartFailed() || is.GetMessage() == "" || is.GetExit().GetCode() != tc.code {
				t.Errorf("%v, %v", is, err)
			}
			w.clean()
			// and the next command works
			w.nets.set("join", nil)
			w.vols.set("mount", nil)
			w.shims.set("spawn", nil)
			w.shims.onSpawn = nil
			if _, err := w.Start(t.Context(), "web"); err != nil {
				t.Error(err)
			}
			if err := w.Service.Remove(t.Context(), "web", true, false); err != nil {
				t.Error(err)
			}
			w.clean()
		})
	}
}

// TestStopCutsLaunch stops a container whose network driver hangs.
func TestStopCutsLaunch(t *testing.T) {
	w := newWorld(t)
	w.create("web", nil)
	never := make(chan struct{})
	w.nets.hang(never)
	started := make(chan error, 1)
	go func() {
		_, err := w.Start(t.Context(), "web")
		started <- err
	}()
	w.eventually("web", inPhase(containersv1.Phase_PHASE_STARTING))
	if _, err := w.Stop(t.Context(), "web", "", nil); err != nil {
		t.Error(err)
	}
	if err := <-started; !errdefs.IsFailedPrecondition(err) {
		t.Errorf("start: %v", err)
	}
	w.nets.hang(nil)
	w.clean()
	if _, err := w.Start(t.Context(), "web"); err != nil {
		t.Error(err)
	}
	w.clean()
}

func TestExitAndRemove(t *testing.T) {
	w := newWorld(t)
	c, shim := w.run("brief", &containersv1.Spec{RemoveOnExit: true, Volumes: []*containersv1.VolumeMount{{Target: "/data"}}})
	id := c.GetMeta().GetId()
	waited := make(chan *typesv1.Exit, 3)
	for _, until := range []containersv1.WaitRequest_Until{0, containersv1.WaitRequest_UNTIL_NEXT_EXIT, containersv1.WaitRequest_UNTIL_REMOVED} {
		go func() {
			e, err := w.Wait(t.Context(), "brief", until)
			if err != nil {
				t.Error(err)
			}
			waited <- e
		}()
	}
	time.Sleep(20 * time.Millisecond) // some may come late: they are answered as well
	shim.ends(7)
	for range 3 {
		if e := <-waited; e.GetCode() != 7 {
			t.Errorf("%v", e)
		}
	}
	w.eventually(id, gone)
	if e, err := w.Wait(t.Context(), id, 0); err != nil || e.GetCode() != 7 {
		t.Errorf("late: %v, %v", e, err)
	}
	w.restart()
	if e, err := w.Wait(t.Context(), id, 0); err != nil || e.GetCode() != 7 {
		t.Errorf("after a restart: %v, %v", e, err)
	}
	if r := w.vols.released; len(r) != 1 || !r[0] {
		t.Errorf("--rm takes volumes without a name along: %v", r)
	}
	w.clean()
}

func TestInstantExit(t *testing.T) {
	w := newWorld(t)
	w.shims.onSpawn = func(s *fakeShim) { s.instant = true }
	for i := range 50 {
		c := w.create("", &containersv1.Spec{RemoveOnExit: i%2 == 0})
		if _, err := w.Start(t.Context(), c.GetMeta().GetId()); err != nil {
			t.Fatalf("a process that ends at once has started: %v", err)
		}
	}
	for c, err := range w.All(nil, true) {
		if err != nil {
			t.Fatal(err)
		}
		w.eventually(c.GetMeta().GetId(), func(c *containersv1.Container) bool { return c == nil || !alive(c) })
	}
	w.clean()
}

func TestRestartsByShim(t *testing.T) {
	w := newWorld(t)
	_, shim := w.run("web", &containersv1.Spec{Restart: &containersv1.RestartPolicy{When: containersv1.RestartPolicy_WHEN_EXITED, MaxAttempts: 3}})
	if r := shim.boot.GetRestart(); !r.GetAlways() || r.GetMaxAttempts() != 3 {
		t.Errorf("%v", r)
	}
	shim.set(func() {
		shim.phase, shim.exit = 5, &typesv1.Exit{Code: 1, Run: 1, At: now()}
	})
	w.eventually("web", inPhase(containersv1.Phase_PHASE_RESTARTING))
	shim.set(func() { shim.phase, shim.run = 3, 2 })
	c := w.eventually("web", inPhase(containersv1.Phase_PHASE_RUNNING))
	if is := c.GetStatus(); is.GetRuns() != 2 || is.GetRestarts() != 1 || is.GetExit().GetCode() != 1 || is.GetRun() != 1 {
		t.Errorf("%v", is)
	}
	if err := w.Kill(t.Context(), "web", "USR1"); err != nil {
		t.Fatal(err)
	}
	if _, last := shim.sent(); last {
		t.Error("SIGUSR1 ended the restart policy")
	}
	if err := w.Kill(t.Context(), "web", ""); err != nil {
		t.Fatal(err)
	}
	if _, last := shim.sent(); !last {
		t.Error("SIGKILL did not")
	}
	w.eventually("web", inPhase(containersv1.Phase_PHASE_EXITED))
	w.clean()
}

// TestShimLost kills shims: without a policy the container rests, with one it runs again.
func TestShimLost(t *testing.T) {
	w := newWorld(t)
	_, plain := w.run("plain", nil)
	c, loved := w.run("loved", &containersv1.Spec{Restart: &containersv1.RestartPolicy{When: containersv1.RestartPolicy_WHEN_FAILED}})
	_, told := w.run("told", nil)
	told.record(&typesv1.Exit{Code: 3, At: now(), Run: 1}) // written, and killed before it could tell
	w.shims.set1(func() { w.shims.dying = 5 })             // it takes a moment until they are surely dead
	plain.die()
	loved.die()
	told.die()
	p := w.eventually("plain", inPhase(containersv1.Phase_PHASE_EXITED))
	if e := p.GetStatus().GetExit(); e.GetCode() != 137 || e.GetReason() != "shim-lost" {
		t.Errorf("%v", e)
	}
	if e := w.eventually("told", inPhase(containersv1.Phase_PHASE_EXITED)).GetStatus().GetExit(); e.GetCode() != 3 {
		t.Errorf("%v", e)
	}
	l := w.eventually("loved", func(c *containersv1.Container) bool {
		return c.GetStatus().GetPhase() == containersv1.Phase_PHASE_RUNNING && c.GetStatus().GetRuns() == 2
	})
	if l.GetStatus().GetRestarts() != 1 || l.GetStatus().GetRun() != 1 || l.GetMeta().GetId() != c.GetMeta().GetId() {
		t.Errorf("%v", l.GetStatus())
	}
	w.clean()
}

func TestDaemonRestart(t *testing.T) {
	w := newWorld(t)
	_, stays := w.run("stays", nil)
	_, ends := w.run("ends", &containersv1.Spec{RemoveOnExit: true})
	_, lost := w.run("lost", nil)
	w.create("never", nil)
	id := lost.boot.GetContainerId()
	w.close()
	ends.ends(5)
	lost.die()
	w.open()
	if c, err := w.Get(t.Context(), "stays"); err != nil || c.GetStatus().GetPhase() != containersv1.Phase_PHASE_RUNNING {
		t.Errorf("%v, %v", c, err)
	}
	w.eventually("ends", gone)
	if e, err := w.Wait(t.Context(), ends.boot.GetContainerId(), 0); err != nil || e.GetCode() != 5 {
		t.Errorf("%v, %v", e, err)
	}
	if e := w.eventually(id, inPhase(containersv1.Phase_PHASE_EXITED)).GetStatus().GetExit(); e.GetReason() != "shim-lost" {
		t.Errorf("%v", e)
	}
	client, done := w.attach(&containersv1.AttachStart{Ref: "stays", Replay: true})
	<-client.ready
	if out := string((<-client.out).GetStdout()); out != "first byte\n" {
		t.Errorf("%q", out)
	}
	if _, err := w.Stop(t.Context(), "stays", "", nil); err != nil {
		t.Fatal(err)
	}
	if sent, _ := stays.sent(); fmt.Sprint(sent) != "[15]" {
		t.Errorf("sent %v", sent)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	w.clean()
}

func TestReboot(t *testing.T) {
	w := newWorld(t)
	_, plain := w.run("plain", nil)
	_, loved := w.run("loved", &containersv1.Spec{Restart: &containersv1.RestartPolicy{When: containersv1.RestartPolicy_WHEN_EXITED}})
	_, brief := w.run("brief", &containersv1.Spec{RemoveOnExit: true})
	w.run("stopped", &containersv1.Spec{Restart: &containersv1.RestartPolicy{When: containersv1.RestartPolicy_WHEN_EXITED}})
	if _, err := w.Stop(t.Context(), "stopped", "", nil); err != nil {
		t.Fatal(err)
	}
	w.close()
	for _, s := range []*fakeShim{plain, loved, brief} {
		s.die()
		if err := os.RemoveAll(s.dir.State); err != nil {
			t.Fatal(err)
		}
	}
	w.boot = "boot-2"
	w.open()
	if e := w.eventually("plain", inPhase(containersv1.Phase_PHASE_EXITED)).GetStatus().GetExit(); e.GetReason() != "host-rebooted" || e.GetCode() != 255 {
		t.Errorf("%v", e)
	}
	w.eventually("loved", inPhase(containersv1.Phase_PHASE_RUNNING))
	w.eventually("brief", gone)
	if c, _ := w.Get(t.Context(), "stopped"); c.GetStatus().GetPhase() != containersv1.Phase_PHASE_EXITED {
		t.Errorf("what its user stopped runs again: %v", c.GetStatus())
	}
	w.clean()
}

func TestUnreachable(t *testing.T) {
	w := newWorld(t)
	_, back := w.run("back", nil)
	w.run("doomed", nil)
	w.close()
	w.shims.hush(true)
	began := time.Now()
	w.open()
	if d := time.Since(began); d > 5*time.Second {
		t.Errorf("recovery took %v", d)
	}
	for _, name := range []string{"back", "doomed"} {
		if c, _ := w.Get(t.Context(), name); c.GetStatus().GetPhase() != containersv1.Phase_PHASE_UNREACHABLE {
			t.Errorf("%s: %v", name, c.GetStatus())
		}
	}
	if err := w.Kill(t.Context(), "back", ""); !errdefs.IsUnavailable(err) {
		t.Error(err)
	}
	if err := w.Service.Remove(t.Context(), "doomed", true, false); err != nil { // rm -f needs nobody's leave
		t.Error(err)
	}
	w.shims.hush(false)
	w.eventually("back", inPhase(containersv1.Phase_PHASE_RUNNING))
	if back.isGone() {
		t.Error("its shim was buried alive")
	}
	w.clean()
}

// TestHung stops shims with SIGSTOP: what was asked for happens all the same, and soon.
func TestHung(t *testing.T) {
	w := newWorld(t)
	for name, verb := range map[string]func() error{
		"removed": func() error { return w.Service.Remove(t.Context(), "removed", true, false) },
		"stopped": func() error {
			none := time.Duration(0)
			_, err := w.Stop(t.Context(), "stopped", "", &none)
			return err
		},
	} {
		_, shim := w.run(name, nil)
		shim.set(func() { shim.hung = true })
		began := time.Now()
		if err := verb(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if d := time.Since(began); d > 3*time.Second {
			t.Errorf("%s after %v", name, d)
		}
	}
	// one that comes back in time is not buried
	_, shim := w.run("slow", nil)
	shim.set(func() { shim.hung = true })
	long := time.Hour
	done := make(chan error, 1)
	go func() {
		_, err := w.Stop(t.Context(), "slow", "", &long)
		done <- err
	}()
	w.eventually("slow", inPhase(containersv1.Phase_PHASE_UNREACHABLE))
	shim.set(func() { shim.hung = false })
	if err := <-done; err != nil {
		t.Error(err)
	}
	if sent, _ := shim.sent(); fmt.Sprint(sent) != "[15]" {
		t.Errorf("sent %v", sent)
	}
	w.clean()
}

// TestReleaseFails has the network driver away when a container exits: the exit is told, removing
// fails with the reason, and everything comes right once the driver is back.
func TestReleaseFails(t *testing.T) {
	w := newWorld(t)
	_, shim := w.run("web", nil)
	away := fmt.Errorf("driver bridge is not there: %w", errdefs.ErrUnavailable)
	w.nets.set("leave", away)
	w.db.OnUndo("endpoint", undoing(func() error { return away }))
	shim.ends(4)
	if e, err := w.Wait(t.Context(), "web", 0); err != nil || e.GetCode() != 4 {
		t.Errorf("%v, %v", e, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := w.Service.Remove(ctx, "web", false, false); err == nil {
		t.Error("removed though its endpoint could not be")
	} else {
		t.Log(err)
	}
	w.nets.set("leave", nil)
	id := shim.boot.GetContainerId()
	w.db.OnUndo("endpoint", undoing(func() error { w.nets.drop(id); return nil }))
	if err := w.db.Recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.eventually("web", gone)
	w.clean()
}

func TestList(t *testing.T) {
	w := newWorld(t)
	a, _ := w.run("alpha", nil)
	if _, err := w.Create(t.Context(), "beta", map[string]string{"tier": "db", "x": ""}, &containersv1.Spec{Image: "postgres"}); err != nil {
		t.Fatal(err)
	}
	_, s := w.run("gamma", nil)
	s.ends(3)
	w.eventually("gamma", inPhase(containersv1.Phase_PHASE_EXITED))
	f := func(kv ...string) (out []*typesv1.Filter) {
		for _, x := range kv {
			k, v, _ := strings.Cut(x, "=")
			out = append(out, &typesv1.Filter{Key: k, Value: v})
		}
		return out
	}
	for _, tc := range []struct {
		filters []*typesv1.Filter
		all     bool
		want    string
	}{
		{nil, false, "alpha"},
		{nil, true, "alpha beta gamma"},
		{f("name=et"), true, "beta"},
		{f("name=al", "name=be"), true, "alpha beta"},
		{f("name=al", "status=exited"), true, ""},
		{f("id=" + a.GetMeta().GetId()[:10]), true, "alpha"},
		{f("label=tier"), true, "beta"},
		{f("label=tier=db"), true, "beta"},
		{f("label=tier=web"), true, ""},
		{f("label=x"), false, ""},
		{f("status=created"), false, "beta"},
		{f("status=running", "status=exited"), false, "alpha gamma"},
		{f("exited=3"), false, "gamma"},
		{f("exited=0"), false, ""},
		{f("ancestor=postgres"), true, "beta"},
		{f("ancestor=busybox:latest"), true, "alpha gamma"},
		{f("ancestor=docker.io/library/busybox:latest"), true, "alpha gamma"},
		{f("ancestor=0011223344"), true, "alpha beta gamma"},
	} {
		var got []string
		for c, err := range w.All(tc.filters, tc.all) {
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, c.GetMeta().GetName())
		}
		if strings.Join(got, " ") != tc.want {
			t.Errorf("%v: %q, want %q", tc.filters, got, tc.want)
		}
	}
	for _, bad := range []string{"colour=red", "status=odd", "exited=x"} {
		for _, err := range w.All(f(bad), true) {
			if !errdefs.IsInvalidArgument(err) {
				t.Errorf("%s: %v", bad, err)
			}
		}
	}
	u, err := w.Usage(t.Context())
	if err != nil || u[0].GetTotal() != 3 || u[0].GetActive() != 1 || u[0].GetBytes() != 3000 || u[0].GetReclaimableBytes() != 2000 {
		t.Errorf("%v, %v", u, err)
	}
}

// TestCommits counts what the hot path writes: each commit is an fsync.
func TestCommits(t *testing.T) {
	w := newWorld(t)
	w.shims.onSpawn = func(s *fakeShim) { s.instant = true }
	before := txid(t, w)
	c := w.create("", &containersv1.Spec{RemoveOnExit: true})
	if _, err := w.Start(t.Context(), c.GetMeta().GetId()); err != nil {
		t.Fatal(err)
	}
	w.eventually(c.GetMeta().GetId(), gone)
	w.clean()
	n := txid(t, w) - before
	t.Logf("create, start, exit, remove: %d commits", n)
	if n > 8 {
		t.Errorf("%d commits, want at most 8: two to create, one wanted, three to launch, one exit, one removal", n)
	}
}

func TestManyAtOnce(t *testing.T) {
	w := newWorld(t)
	var wg sync.WaitGroup
	slots := make(chan struct{}, 8)
	for i := range 60 {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			c, err := w.Create(t.Context(), fmt.Sprintf("many-%d", i), nil, &containersv1.Spec{Image: "a"})
			if err != nil {
				t.Error(err)
				return
			}
			id := c.GetMeta().GetId()
			var others sync.WaitGroup // everybody does everything at once
			for _, verb := range []func() error{
				func() error { _, err := w.Start(t.Context(), id); return err },
				func() error { _, err := w.Stop(t.Context(), id, "", nil); return err },
				func() error { return w.Kill(t.Context(), id, "KILL") },
				func() error { _, err := w.Start(t.Context(), id); return err },
				func() error { return w.Service.Remove(t.Context(), id, i%2 == 0, false) },
			} {
				others.Go(func() {
					if err := verb(); err != nil && !errdefs.IsFailedPrecondition(err) && !errdefs.IsNotFound(err) && !errdefs.IsUnavailable(err) {
						t.Error(err)
					}
				})
			}
			others.Wait()
			if err := w.Service.Remove(t.Context(), id, true, false); err != nil && !errdefs.IsNotFound(err) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for c := range w.All(nil, true) {
		t.Errorf("left: %v", c)
	}
	w.clean()
}

func TestUntilEnds(t *testing.T) {
	w := newWorld(t)
	w.run("web", nil)
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("had enough")
	go func() {
		time.Sleep(5 * time.Millisecond)
		cancel(why)
	}()
	if _, err := w.Wait(ctx, "web", 0); !errors.Is(err, why) {
		t.Error(err)
	}
	done := make(chan error, 1)
	go func() {
		_, err := w.Wait(t.Context(), "web", 0)
		done <- err
	}()
	w.Service.Close()
	if err := <-done; !errdefs.IsUnavailable(err) {
		t.Error(err)
	}
}

func TestLogLimits(t *testing.T) {
	for _, tc := range []struct {
		user, daemon *containersv1.LogOptions
		bytes        int64
		files        uint32
	}{
		{nil, nil, logBytes, logFiles},
		{&containersv1.LogOptions{MaxBytes: -1}, nil, -1, logFiles},
		{nil, &containersv1.LogOptions{MaxBytes: 5, MaxFiles: 6}, 5, 6},
		{nil, &containersv1.LogOptions{}, logBytes, logFiles},
		{&containersv1.LogOptions{MaxFiles: 9}, &containersv1.LogOptions{MaxBytes: 5, MaxFiles: 6}, 5, 9},
	} {
		s := &Service{}
		if tc.daemon != nil {
			s.LogLimits = func() (int64, uint32) { return tc.daemon.GetMaxBytes(), tc.daemon.GetMaxFiles() }
		}
		sink := &shimv1.LogSink{MaxBytes: tc.user.GetMaxBytes(), MaxFiles: tc.user.GetMaxFiles()}
		if s.bound(sink); sink.GetMaxBytes() != tc.bytes || sink.GetMaxFiles() != tc.files {
			t.Errorf("%v, %v: %v", tc.user, tc.daemon, sink)
		}
	}
}
