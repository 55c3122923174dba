package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	shimv1 "github.com/gantryd/gantry/proto/gantry/shim/v1"
	typesv1 "github.com/gantryd/gantry/proto/gantry/types/v1"
)

// ociProgram is the OCI runtime that newBox's containers are made by; "" is native.
var ociProgram string

// by has a program of this machine's make the containers of a test.
func by(t *testing.T, name string) {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Fatalf("%v: install it with test/setup.sh", err)
	}
	ociProgram = path
	t.Cleanup(func() { ociProgram = "" })
}

// TestPrograms holds a shim to the same over an OCI runtime as over the native one.
func TestPrograms(t *testing.T) {
	for _, name := range []string{"crun", "runc"} {
		by(t, name)
		for _, c := range []struct {
			name string
			test func(*testing.T)
		}{
			{"run", TestRun},
			{"stdin", TestStdin},
			{"stdin ends with its client", TestStdinEndsWithItsClient},
			{"no stdin", TestNoStdin},
			{"replay", TestReplay},
			{"nothing is lost", TestNothingIsLost},
			{"nothing is lost at the end", TestNothingIsLostAtTheEnd},
			{"terminal", TestTerminal},
			{"signals", TestSignals},
			{"pipe outlives exec", TestPipeOutlivesExec},
			{"start fails", TestStartFails},
			{"wrong order", TestWrongOrder},
			{"delete what never ran", TestDeleteWhatNeverRan},
			{"restarts", TestRestarts},
			{"stop ends restarts", TestStopEndsRestarts},
			{"stop anywhen", TestStopAnywhen},
			{"pause", TestPause},
			{"exec", TestExec},
			{"out of memory", TestOOM},
			{"stats and update", TestStatsAndUpdate},
			{"find", TestFind},
			{"bury", TestBury},
			{"long path", TestLongPath},
		} {
			t.Run(name+"/"+c.name, c.test)
		}
	}
}

// TestProgramsTerminal: a process that is made only when it is started gets its terminal then, with the
// size that was asked for before, and what was typed.
func TestProgramsTerminal(t *testing.T) {
	for _, name := range []string{"crun", "runc"} {
		t.Run(name, func(t *testing.T) {
			by(t, name)
			b := newBox(t, "sleep", "1000").run()
			b.spec.Process.Terminal = true
			b.prepare("x", true, "sh", "-c", "read line; stty size; echo got $line; exit 3")
			c := b.io("x", true)
			_, err := b.shim.Resize(b.ctx(), &shimv1.ResizeRequest{Process: "x", Size: &typesv1.TerminalSize{Columns: 101, Rows: 33}})
			b.ok(err)
			b.ok(c.Send(stdin("typed\n")))
			r, err := b.shim.Start(b.ctx(), &shimv1.StartRequest{Process: "x"})
			b.ok(err)
			h := hear(t, c, nil)
			if r.GetPid() == 0 || h.exit.GetCode() != 3 || !strings.Contains(h.out.String(), "33 101\r\ngot typed\r\n") {
				t.Errorf("pid %d, %v, %q", r.GetPid(), h.exit, h.out.String())
			}
		})
	}
}

// TestProgramsDieWithTheirShim: a program at work does not go on when the shim is killed. What it would
// make then, nobody would find.
func TestProgramsDieWithTheirShim(t *testing.T) {
	dir := t.TempDir()
	ociProgram = filepath.Join(dir, "program")
	t.Cleanup(func() { ociProgram = "" })
	pid := filepath.Join(dir, "pid")
	text := "#!/bin/sh\n[ \"$1\" = features ] || [ \"$1\" = --version ] && exit 0\necho $$ >" + pid + ".new && mv " + pid + ".new " + pid + "\nexec sleep 1000\n"
	if err := os.WriteFile(ociProgram, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	b := newBox(t, "true").spawn()
	created := make(chan error, 1)
	go func() {
		_, err := b.shim.Create(b.ctx(), &shimv1.CreateRequest{})
		created <- err
	}()
	n := 0
	for end := time.Now().Add(10 * time.Second); n == 0 && time.Now().Before(end); time.Sleep(time.Millisecond) {
		if raw, err := os.ReadFile(pid); err == nil {
			n, _ = strconv.Atoi(strings.TrimSpace(string(raw)))
		}
	}
	if n < 2 || unix.Kill(n, 0) != nil {
		t.Fatal("the program does not run")
	}
	if _, err := b.sup.Bury(b.ctx(), b.dir); err != nil {
		t.Error(err)
	}
	if err := <-created; err == nil {
		t.Error("it is created")
	}
	for end := time.Now().Add(10 * time.Second); unix.Kill(n, 0) == nil; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			_ = unix.Kill(n, unix.SIGKILL)
			t.Fatal("the program outlives its shim")
		}
	}
}

// TestProgramsLeaveNothing: what a program keeps of a container is in the state directory, and goes with
// it when the shim is killed.
func TestProgramsLeaveNothing(t *testing.T) {
	for _, name := range []string{"crun", "runc"} {
		t.Run(name, func(t *testing.T) {
			by(t, name)
			b := newBox(t, "sleep", "1000").run()
			id := b.boot.GetContainerId()
			kept, err := filepath.Glob(filepath.Join(b.dir.State, ociDir, id, "keep", id, "*"))
			if err != nil || len(kept) == 0 {
				t.Errorf("it keeps nothing: %v", err)
			}
			for _, elsewhere := range []string{"/run/crun", "/run/runc"} {
				if _, err := os.Stat(filepath.Join(elsewhere, id)); err == nil {
					t.Errorf("it keeps something in %s", elsewhere)
				}
			}
			x, err := b.sup.Bury(b.ctx(), b.dir)
			if err != nil || x.Code != 137 {
				t.Errorf("bury: %+v %v", x, err)
			}
			if _, err := os.Stat(b.dir.State); !os.IsNotExist(err) {
				t.Errorf("the state directory: %v", err)
			}
		})
	}
}
