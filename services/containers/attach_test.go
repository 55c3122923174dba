package containers

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/internal/rpc"
	containersv1 "github.com/gantryd/gantry/proto/gantry/containers/v1"
	typesv1 "github.com/gantryd/gantry/proto/gantry/types/v1"
)

// read reads what a client is sent, to the exit.
func read(t *testing.T, c *fakeClient) (text string, exit *typesv1.Exit) {
	t.Helper()
	for {
		select {
		case o := <-c.out:
			text += string(o.GetStdout())
			if e := o.GetExit(); e != nil {
				return text, e
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("no exit after %q", text)
		}
	}
}

func TestAttachAwait(t *testing.T) {
	w := newWorld(t)
	w.create("web", &containersv1.Spec{RemoveOnExit: true, OpenStdin: true})
	client, done := w.attach(&containersv1.AttachStart{Ref: "web", Await: true, Size: &typesv1.TerminalSize{Columns: 80, Rows: 24}})
	<-client.ready // as a client waits for the header
	c, err := w.Start(t.Context(), "web")
	if err != nil {
		t.Fatal(err)
	}
	shim := w.shims.of(w.state(c.GetMeta().GetId()))
	client.in <- &typesv1.ProcessInput{Input: &typesv1.ProcessInput_Stdin{Stdin: []byte("hi")}}
	client.in <- &typesv1.ProcessInput{Input: &typesv1.ProcessInput_Signal{Signal: "SIGWINCH"}}
	close(client.in)
	for end := time.Now().Add(5 * time.Second); len(shim.init.inputs()) < 4 && time.Now().Before(end); time.Sleep(time.Millisecond) {
	}
	in := shim.init.inputs()
	if len(in) != 4 || in[0].GetResize().GetColumns() != 80 || string(in[1].GetStdin()) != "hi" || in[2].GetSignal() != "SIGWINCH" || !in[3].GetStdinEof() {
		t.Errorf("the process got %v", in)
	}
	shim.init.say("second\n")
	shim.ends(9)
	text, exit := read(t, client)
	if text != "first byte\nsecond\n" || exit.GetCode() != 9 {
		t.Errorf("%q, %v", text, exit)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	w.eventually("web", gone)
	w.clean()
}

// TestSlowReader has a client stop reading: while the process runs so does its daemon, and once it has
// ended the container goes, and the client has everything all the same.
func TestSlowReader(t *testing.T) {
	w := newWorld(t)
	w.create("web", &containersv1.Spec{RemoveOnExit: true})
	client, done := w.attach(&containersv1.AttachStart{Ref: "web", Await: true})
	client.out = make(chan *typesv1.ProcessOutput) // it takes nothing
	<-client.ready
	c, err := w.Start(t.Context(), "web")
	if err != nil {
		t.Fatal(err)
	}
	shim := w.shims.of(w.state(c.GetMeta().GetId()))
	const pieces = 40
	for range pieces {
		shim.init.say(strings.Repeat("x", 32<<10))
	}
	time.Sleep(20 * time.Millisecond)
	if n := shim.init.reached(); n > 2+lag/(32<<10) {
		t.Errorf("the daemon has read %d pieces for somebody who reads none", n)
	}
	shim.ends(0)
	w.eventually("web", gone)
	text, exit := read(t, client)
	if len(text) != len("first byte\n")+pieces*32<<10 || exit.GetCode() != 0 {
		t.Errorf("%d bytes, %v", len(text), exit)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	w.clean()
}

func TestAttachAwaitFails(t *testing.T) {
	w := newWorld(t)
	w.create("web", nil)
	w.shims.onSpawn = func(s *fakeShim) { s.fail["start"] = fmt.Errorf("exec sh: no such file: %w", errdefs.ErrNotFound) }
	client, done := w.attach(&containersv1.AttachStart{Ref: "web", Await: true})
	<-client.ready
	if _, err := w.Start(t.Context(), "web"); rpc.Reason(err) != ReasonNotFound {
		t.Error(err)
	}
	select {
	case err := <-done: // joined before the start, it finds the shim gone and the run not begun
		t.Log(err)
	case <-time.After(10 * time.Second):
		t.Fatal("waits for ever for a run that never was")
	}
	client, done = w.attach(&containersv1.AttachStart{Ref: "web", Await: true})
	<-client.ready
	if err := w.Service.Remove(t.Context(), "web", false, false); err != nil {
		t.Fatal(err)
	}
	if err := <-done; !errdefs.IsNotFound(err) {
		t.Errorf("a container removed under it: %v", err)
	}
	w.clean()
}

// TestAttachAwaitLost kills the shim of a run that was joined before it began.
func TestAttachAwaitLost(t *testing.T) {
	w := newWorld(t)
	w.create("web", nil)
	client, done := w.attach(&containersv1.AttachStart{Ref: "web", Await: true})
	<-client.ready
	w.shims.onSpawn = func(s *fakeShim) { s.fatal = true }
	if _, err := w.Start(t.Context(), "web"); err != nil {
		t.Fatal(err)
	}
	if _, exit := read(t, client); exit.GetCode() != 137 || exit.GetReason() != reasonLost {
		t.Errorf("%v", exit)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	w.clean()
}

func TestAttach(t *testing.T) {
	w := newWorld(t)
	w.create("idle", nil)
	if _, done := w.attach(&containersv1.AttachStart{Ref: "idle"}); !errdefs.IsFailedPrecondition(<-done) {
		t.Error("attached to what does not run")
	}
	_, shim := w.run("web", &containersv1.Spec{OpenStdin: true})
	client, done := w.attach(&containersv1.AttachStart{Ref: "web", NoStdin: true})
	<-client.ready
	client.in <- &typesv1.ProcessInput{Input: &typesv1.ProcessInput_Stdin{Stdin: []byte("hi")}}
	client.in <- &typesv1.ProcessInput{Input: &typesv1.ProcessInput_Resize{Resize: &typesv1.TerminalSize{Columns: 1, Rows: 1}}}
	for end := time.Now().Add(5 * time.Second); len(shim.init.inputs()) < 1 && time.Now().Before(end); time.Sleep(time.Millisecond) {
	}
	if in := shim.init.inputs(); len(in) != 1 || in[0].GetResize() == nil {
		t.Errorf("a watcher without stdin sent %v", in)
	}
	client.leave()
	if err := <-done; err == nil {
		t.Error("a client that left was served")
	}
	if shim.isGone() {
		t.Error("the container went with it")
	}
	// the shim dies: the exit comes from the keeper
	client, done = w.attach(&containersv1.AttachStart{Ref: "web", Replay: true})
	<-client.ready
	shim.die()
	text, exit := read(t, client)
	if text != "first byte\n" || exit.GetCode() != 137 || exit.GetReason() != "shim-lost" {
		t.Errorf("%q, %v", text, exit)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	w.clean()
}

func TestExec(t *testing.T) {
	w := newWorld(t)
	_, shim := w.run("web", nil)
	wait := func() *fakeProcess {
		t.Helper()
		for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
			if p := shim.exec(); p != nil {
				return p
			}
		}
		t.Fatal("no process")
		return nil
	}
	client, done := w.exec(&containersv1.ExecStart{Ref: "web", Args: []string{"cat"}, OpenStdin: true})
	<-client.ready
	p := wait()
	p.say("out")
	p.end(&typesv1.Exit{Code: 3})
	if text, exit := read(t, client); text != "out" || exit.GetCode() != 3 {
		t.Errorf("%q, %v", text, exit)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	if shim.exec() != nil {
		t.Error("the shim still remembers it")
	}

	// a client that leaves leaves the process, and somebody cleans up after it
	client, done = w.exec(&containersv1.ExecStart{Ref: "web", Args: []string{"sleep"}})
	<-client.ready
	p = wait()
	client.leave()
	<-done
	if shim.exec() == nil {
		t.Error("the process went with its client")
	}
	p.end(&typesv1.Exit{})
	for end := time.Now().Add(5 * time.Second); shim.exec() != nil && time.Now().Before(end); time.Sleep(time.Millisecond) {
	}
	if shim.exec() != nil {
		t.Error("nobody cleaned up")
	}

	client, done = w.exec(&containersv1.ExecStart{Ref: "web", Args: []string{"sleep"}, Detach: true})
	if err := <-done; err != nil {
		t.Error(err)
	}
	if o := <-client.out; o.GetStartedPid() != 77 {
		t.Errorf("%v", o)
	}
	wait().end(&typesv1.Exit{})

	for class, want := range map[error]string{errdefs.ErrNotFound: ReasonNotFound, errdefs.ErrPermissionDenied: ReasonNotExecutable} {
		shim.set(func() { shim.fail["start"] = fmt.Errorf("exec x: why: %w", class) })
		if _, done := w.exec(&containersv1.ExecStart{Ref: "web", Args: []string{"x"}}); true {
			if err := <-done; rpc.Reason(err) != want || !strings.HasPrefix(err.Error(), "exec in container web: ") {
				t.Errorf("%v, %q", err, rpc.Reason(err))
			}
		}
	}
	shim.set(func() { shim.fail["start"] = nil })
	if _, done := w.exec(&containersv1.ExecStart{Ref: "web"}); !errdefs.IsInvalidArgument(<-done) {
		t.Error("no command was run")
	}
	// the container goes: so does the process, and its client hears how
	client, done = w.exec(&containersv1.ExecStart{Ref: "web", Args: []string{"sleep"}})
	<-client.ready
	shim.die()
	if _, exit := read(t, client); exit.GetCode() != 137 {
		t.Errorf("%v", exit)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	w.eventually("web", inPhase(containersv1.Phase_PHASE_EXITED))
	if _, done := w.exec(&containersv1.ExecStart{Ref: "web", Args: []string{"x"}}); !errdefs.IsFailedPrecondition(<-done) {
		t.Error("ran in what does not run")
	}
	w.clean()
}
