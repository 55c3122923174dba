package main

import (
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"

	containersv1 "github.com/gantryd/gantry/proto/gantry/containers/v1"
	typesv1 "github.com/gantryd/gantry/proto/gantry/types/v1"
)

// TestSignals: a signal does not wait behind a stdin that the process does not read. Not parallel:
// signals are the whole process's.
func TestSignals(t *testing.T) {
	d := newDaemon(t)
	reader, writer := io.Pipe()
	defer writer.Close()
	d.env.In = reader
	d.process = func(p process) *typesv1.Exit {
		p.out("ready")
		if sig := <-p.killed; sig != "SIGUSR1" {
			return &typesv1.Exit{Code: 1}
		}
		return &typesv1.Exit{Code: 128 + uint32(unix.SIGUSR1)}
	}
	ended := make(chan int, 1)
	go func() { ended <- d.gantry("run", "-i", "hello") }()
	until(t, "the process is ready", func() bool { return d.out.String() == "ready" })
	if err := unix.Kill(os.Getpid(), unix.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	if code := <-ended; code != 138 {
		t.Errorf("exit %d: %s", code, d.err.String())
	}
	d.wasCalled(t, "create hello", "attach "+short+" await=true stdin=true", "start "+short, "kill "+short+" SIGUSR1")
}

// TestLeave: where the process has a terminal, a signal ends this program only, stdin joined or not, and
// the terminal here is as it was. Not parallel: signals are the whole process's.
func TestLeave(t *testing.T) {
	for _, args := range [][]string{{"attach", "--no-stdin", "web"}, {"attach", "web"}, {"start", "-ai", "web"}, {"attach", "--sig-proxy=false", "plain"}} {
		master, tty, err := pty.Open()
		if err != nil {
			t.Fatal(err)
		}
		before, err := unix.IoctlGetTermios(int(tty.Fd()), unix.TCGETS)
		if err != nil {
			t.Fatal(err)
		}
		d := newDaemon(t)
		d.env.In = tty
		d.get = func(ref string) (*containersv1.Container, error) {
			return container(&containersv1.Spec{Tty: ref == "web", OpenStdin: true}), nil
		}
		d.process = func(p process) *typesv1.Exit {
			p.out("ready")
			for p.in() != nil { // goes on until this client leaves
			}
			return nil
		}
		ended := make(chan int, 1)
		go func() { ended <- d.gantry(args...) }()
		until(t, "the process is ready", func() bool { return d.out.String() == "ready" })
		if err := unix.Kill(os.Getpid(), unix.SIGINT); err != nil {
			t.Fatal(err)
		}
		if code := <-ended; code != 130 || len(d.kills) > 0 {
			t.Errorf("%v: exit %d, %d signals passed on: %s", args, code, len(d.kills), d.err.String())
		}
		if after, err := unix.IoctlGetTermios(int(tty.Fd()), unix.TCGETS); err != nil || *after != *before {
			t.Errorf("%v: the terminal is %+v, and was %+v (%v)", args, after, before, err)
		}
		_, _ = tty.Close(), master.Close()
	}
}

// TestNoTerminal: a process's terminal is not joined to a stdin that is none, whose end would end it.
func TestNoTerminal(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	d.get = func(string) (*containersv1.Container, error) {
		return container(&containersv1.Spec{Tty: true, OpenStdin: true}), nil
	}
	d.expect(t, 2, "", "attach: stdin is no terminal", "attach", "web")
	d.expect(t, 2, "", "start -i: stdin is no terminal", "start", "-ai", "web")
	d.wasCalled(t)
	d.expect(t, 0, "hello\n", "stdin is no terminal", "attach", "--no-stdin", "web")
	d.wasCalled(t, "attach "+short+" await=false stdin=false")
}

// TestDetach types the detach keys at a terminal.
func TestDetach(t *testing.T) {
	t.Parallel()
	master, tty, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer master.Close()
	defer tty.Close()
	d := newDaemon(t)
	d.env.In = tty
	d.process = func(p process) *typesv1.Exit {
		p.out("ready")
		for in := p.in(); in != nil; in = p.in() {
			p.out(string(in.GetStdin()))
		}
		return &typesv1.Exit{Code: 1}
	}
	ended := make(chan int, 1)
	go func() { ended <- d.gantry("run", "-it", "hello") }()
	until(t, "the process is ready", func() bool { return d.out.String() == "ready" })
	for _, keys := range []string{"a\x10", "b\x10", "\x11"} {
		if _, err := master.WriteString(keys); err != nil {
			t.Fatal(err)
		}
	}
	if code := <-ended; code != 0 {
		t.Errorf("exit %d: %s", code, d.err.String())
	}
}

func TestNoDaemon(t *testing.T) {
	t.Parallel()
	d := newDaemon(t)
	d.env.Use(nil)
	socket := "unix://" + filepath.Join(t.TempDir(), "none.sock")
	d.expect(t, 7, "", "no daemon answers at "+socket, "--host", socket, "ps")
}

// TestDaemonDies: a stream that is cut is told from a daemon that was never there, and nobody is sent to
// start one whose containers go on.
func TestDaemonDies(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		args []string
		call string
		code int
		want string
	}{
		{[]string{"wait", "web"}, "wait web", 7, "wait for container web: the daemon went away meanwhile; the container goes on"},
		{[]string{"logs", "-f", "endless"}, "logs endless tail=-1 follow=true", 7, "read the log of container endless: the daemon went away meanwhile; the container goes on"},
		{[]string{"exec", "web", "sleep"}, `exec web ["sleep"] env=[] user= detach=false stdin=false`, 125, "exec in container web: the daemon went away meanwhile"},
	} {
		d := newDaemon(t)
		began := make(chan struct{})
		d.process = func(p process) *typesv1.Exit {
			close(began)
			p.in()
			return nil
		}
		ended := make(chan int, 1)
		go func() { ended <- d.gantry(c.args...) }()
		if c.args[0] == "exec" {
			<-began
		}
		until(t, "it is asked", func() bool { d.mu.Lock(); defer d.mu.Unlock(); return slices.Contains(d.calls, c.call) })
		d.die()
		code, said := <-ended, d.err.String()
		if code != c.code || !strings.Contains(said, c.want) || strings.Contains(said, "start one with") || strings.Contains(said, "goaway") || strings.Contains(said, "desc =") {
			t.Errorf("%v: exit %d: %s", c.args, code, said)
		}
	}
}
