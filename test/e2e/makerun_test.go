package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/test/harness"
)

// script is "make run" and "make stop" in a directory of the test's own. The machine's end
// compares the host with what it was before the first call.
type script struct {
	*harness.Machine
	t   *testing.T
	bin string
}

func newScript(t *testing.T) *script {
	t.Helper()
	m := harness.Bare(t)
	return &script{m, t, m.Bin}
}

// call runs one verb of test/run.sh. limit is what a daemon is given to answer and to end.
func (s *script) call(verb string, limit int) harness.Result {
	s.t.Helper()
	cmd := exec.Command(filepath.Join(harness.Top(), "test", "run.sh"), verb, s.bin)
	cmd.Env = append(os.Environ(), "GANTRY_RUN_DIR="+s.Dir, "GANTRY_RUN_SECONDS="+strconv.Itoa(limit))
	return s.Run(cmd)
}

func (s *script) start() {
	s.t.Helper()
	if r := s.call("start", 60); r.Code != 0 || !strings.Contains(r.Out, "Hello") {
		s.t.Fatalf("make run: exit %d\n%s", r.Code, r.All())
	}
}

func (s *script) stop() {
	s.t.Helper()
	if r := s.call("stop", 60); r.Code != 0 || !strings.Contains(r.Out, "nothing is left") {
		s.t.Fatalf("make stop: exit %d\n%s", r.Code, r.All())
	}
	if _, err := os.Stat(s.Dir); err == nil {
		s.t.Errorf("%s is left", s.Dir)
	}
}

// refused wants a stop that removes nothing and says why.
func (s *script) refused(limit int, words ...string) {
	s.t.Helper()
	r := s.call("stop", limit)
	for _, w := range words {
		if r.Code != 1 || !strings.Contains(r.Err, w) || strings.Contains(r.Out, "nothing is left") {
			s.t.Errorf("make stop: exit %d, want 1 and %q\n%s", r.Code, w, r.All())
		}
	}
	if _, err := os.Stat(s.Root + "/gantry.db"); err != nil {
		s.t.Fatalf("a stop that was refused took the store away: %v", err)
	}
}

func (s *script) daemon() int {
	s.t.Helper()
	raw, err := os.ReadFile(filepath.Join(s.Dir, "gantryd.pid"))
	if err != nil {
		s.t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(raw)))
	if err != nil {
		s.t.Fatal(err)
	}
	return pid
}

// TestMakeRun: what "make run" starts, "make stop" ends, with all that was made meanwhile.
func TestMakeRun(t *testing.T) {
	t.Parallel()
	s := newScript(t)
	s.start()
	image := s.Busybox()
	s.Must("network", "create", "--subnet", "10.98.0.0/24", "side")
	s.Must("run", "-d", "--network", "side", "-v", "data:/data", "-p", "8080:80", image, "sleep", "1000")
	pid := s.daemon()
	s.start() // again: it is the same daemon
	if again := s.daemon(); again != pid {
		t.Errorf("a second make run: daemon %d, was %d", again, pid)
	}
	s.stop()
	if r := s.call("stop", 60); r.Code != 0 {
		t.Errorf("make stop of nothing: exit %d\n%s", r.Code, r.All())
	}
}

// TestMakeStopAfterADeath: the daemon has died and its container goes on; the store is the only
// record of what is in the kernel, so it must not go before that.
func TestMakeStopAfterADeath(t *testing.T) {
	t.Parallel()
	s := newScript(t)
	s.start()
	image := s.Busybox()
	s.Must("run", "-d", "-p", "8080:80", image, "sleep", "1000")
	kill(t, s.daemon())
	s.stop()
}

// TestMakeRunAfterADeath is the README's tour: the next daemon finds the container again.
func TestMakeRunAfterADeath(t *testing.T) {
	t.Parallel()
	s := newScript(t)
	s.start()
	image := s.Busybox()
	s.Must("run", "-d", "--name", "c", image, "sleep", "1000")
	pid := s.Must("inspect", "-f", "{{.State.Pid}}", "c")
	kill(t, s.daemon())
	s.start()
	if out := s.Must("inspect", "-f", "{{.State.Status}} {{.State.Pid}}", "c"); out != "running "+pid {
		t.Errorf("after make run: %q, want running %s", out, pid)
	}
	s.stop()
}

// TestMakeStopRefuses: what still holds the directory is named, and the store stays with it.
func TestMakeStopRefuses(t *testing.T) {
	t.Parallel()
	s := newScript(t)
	s.start()
	daemon := s.daemon()

	// A daemon that does not answer.
	signal(t, daemon, unix.SIGSTOP)
	s.refused(1, fmt.Sprint("pid ", daemon), "does not answer")
	signal(t, daemon, unix.SIGCONT)

	// A daemon that does not end: it stops between its last answer and the signal to end.
	real := s.bin
	s.bin = t.TempDir()
	wrapper := fmt.Sprintf("#!/bin/sh\n%s/gantry \"$@\"; code=$?\n[ \"$1\" != ps ] || kill -STOP %d\nexit $code\n", real, daemon)
	if err := os.WriteFile(filepath.Join(s.bin, "gantry"), []byte(wrapper), 0o755); err != nil { //nolint:gosec // a program
		t.Fatal(err)
	}
	s.refused(1, fmt.Sprint("pid ", daemon), "has not ended")
	signal(t, daemon, unix.SIGCONT)
	harness.Eventually(t, 30*time.Second, "the daemon ends", func() bool { _, err := os.Stat(fmt.Sprint("/proc/", daemon)); return err != nil })
	s.bin = real

	// A mount below the directory.
	stray := filepath.Join(s.State, "stray")
	if err := os.Mkdir(stray, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("stray", stray, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	s.refused(60, "mount "+stray)
	if err := unix.Unmount(stray, 0); err != nil {
		t.Fatal(err)
	}

	// A process of its, and a cgroup.
	cgroup := filepath.Join("/sys/fs/cgroup", s.Instance)
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.procs"); err != nil {
		cgroup = filepath.Join("/sys/fs/cgroup/pids", s.Instance)
	}
	log, err := os.Create(filepath.Join(s.State, "stray.log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	if err := os.MkdirAll(filepath.Join(cgroup, "stray"), 0o755); err != nil {
		t.Fatal(err)
	}
	process := exec.Command("sleep", "1000")
	process.Stderr = log
	if err := process.Start(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(cgroup, "stray", "cgroup.procs"), []byte(strconv.Itoa(process.Process.Pid)), 0o644); err != nil {
		t.Error(err)
	}
	s.refused(60, fmt.Sprintf("process %d: sleep 1000", process.Process.Pid), "cgroup "+cgroup)
	_ = process.Process.Kill()
	_ = process.Wait()
	if err := os.Remove(filepath.Join(cgroup, "stray")); err != nil {
		t.Error(err)
	}
	s.stop()
}

func signal(t *testing.T, pid int, sig unix.Signal) {
	t.Helper()
	if err := unix.Kill(pid, sig); err != nil {
		t.Fatal(err)
	}
}
