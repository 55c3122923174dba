package main

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/internal/supervise"
	shimv1 "github.com/gantryd/gantry/proto/gantry/shim/v1"
	typesv1 "github.com/gantryd/gantry/proto/gantry/types/v1"
)

func TestStdin(t *testing.T) {
	b := newBox(t, "cat")
	b.boot.OpenStdin, b.boot.StdinOnce = true, true
	b.create()
	c, err := supervise.Whole(b.ctx(), b.shim, "", false)
	b.ok(err)
	b.ok(c.Send(stdin("before it starts\n")))
	b.start()
	big := strings.Repeat("0123456789abcdef", 64<<10) // a megabyte, through a pipe of 64 KiB
	go func() {
		_ = c.Send(stdin(big))
		_ = c.Send(eof)
	}()
	h := hear(t, c, nil)
	if got := h.out.String(); got != "before it starts\n"+big || h.exit.GetCode() != 0 || h.lost > 0 {
		t.Errorf("%d bytes came back, %d lost, %v", len(got), h.lost, h.exit)
	}
}

// TestStdinEndsWithItsClient has a client leave without a word.
func TestStdinEndsWithItsClient(t *testing.T) {
	b := newBox(t, "sh", "-c", "cat; echo end")
	b.boot.OpenStdin, b.boot.StdinOnce = true, true
	b.run()
	watcher, err := supervise.Watch(b.ctx(), b.shim, "", true)
	b.ok(err)
	b.ok(watcher.Close()) // only looked
	c := b.io("", false)
	b.ok(c.Send(stdin("hello\n")))
	other := b.io("", true)
	hear(t, other, func(h *heard) bool { return strings.Contains(h.out.String(), "hello\n") })
	b.ok(c.Close())
	if h := hear(t, other, nil); h.out.String() != "end\n" {
		t.Errorf("%q", h.out.String())
	}
}

func TestNoStdin(t *testing.T) {
	b := newBox(t, "cat").create()
	c := b.io("", true)
	b.ok(c.Send(stdin("nobody reads this\n")))
	b.start()
	if h := hear(t, c, nil); h.out.Len() > 0 || h.exit.GetCode() != 0 {
		t.Errorf("%q %v", h.out.String(), h.exit)
	}
}

// TestUnreadStdin has a process that does not read: its client waits, and may leave.
func TestUnreadStdin(t *testing.T) {
	b := newBox(t, "sleep", "1000")
	b.boot.OpenStdin = true
	b.run()
	for range maxReaders + 5 {
		c := b.io("", false)
		sent := make(chan error, 1)
		go func() { sent <- c.Send(stdin(strings.Repeat("x", 1<<20))) }()
		select {
		case err := <-sent:
			t.Fatalf("a megabyte went nowhere: %v", err)
		case <-time.After(5 * time.Millisecond):
		}
		b.ok(c.Close())
		<-sent
	}
	// Those who left make room.
	var err error
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		var c supervise.IO
		if c, err = b.shim.IO(b.ctx(), "", false); err == nil {
			b.ok(c.Close())
			break
		}
	}
	b.ok(err)
}

func TestTooManyReaders(t *testing.T) {
	b := newBox(t, "sleep", "1000").run()
	for range maxReaders {
		b.io("", true)
	}
	if _, err := b.shim.IO(b.ctx(), "", true); !errdefs.IsResourceExhausted(err) {
		t.Errorf("one too many: %v", err)
	}
	if _, err := b.shim.IO(b.ctx(), "nobody", true); !errdefs.IsNotFound(err) {
		t.Errorf("of nobody: %v", err)
	}
}

// TestReplay joins at many moments of a stream: ring and what is new fit together.
func TestReplay(t *testing.T) {
	b := newBox(t, "sh", "-c", "i=0; while [ $i -lt 300 ]; do i=$((i+1)); echo line $i; [ $((i % 10)) = 0 ] && sleep 0.01; done").create()
	first := b.io("", true)
	b.start()
	var want strings.Builder
	for i := range 300 {
		fmt.Fprintf(&want, "line %d\n", i+1)
	}
	for range 20 {
		c := b.io("", true)
		if h := hear(t, c, func(h *heard) bool { return strings.Count(h.out.String(), "\n") > 100 }); !strings.HasPrefix(want.String(), h.out.String()) {
			t.Fatalf("%q", h.out.String())
		}
		b.ok(c.Close())
	}
	if h := hear(t, first, nil); h.out.String() != want.String() || h.lost != 0 {
		t.Errorf("%d bytes, %d lost", h.out.Len(), h.lost)
	}
	none := hear(t, b.io("", false), nil)
	if none.out.Len() != 0 || none.exit == nil {
		t.Errorf("without replay: %q %v", none.out.String(), none.exit)
	}
}

// TestSlowReader has a reader that does not read: the process does not wait for it, and
// it is told what it missed.
func TestSlowReader(t *testing.T) {
	b := newBox(t, "sh", "-c", "seq 1 2000000; echo done >&2").create()
	slow := b.io("", true)
	b.start()
	began := time.Now()
	b.wait()
	if took := time.Since(began); took > drainTime {
		t.Errorf("the process took %v", took)
	}
	h := hear(t, slow, nil)
	const total = 14_888_896
	if got := uint64(h.out.Len()) + h.lost; got < total || got > total+5 || h.lost == 0 {
		t.Errorf("%d read and %d lost of %d", h.out.Len(), h.lost, total)
	}
	if !strings.HasSuffix(h.out.String(), "\n2000000\n") || h.err.String() != "done\n" || h.exit.GetCode() != 0 {
		t.Errorf("the end: %q %q %v", tail(h.out.String()), h.err.String(), h.exit)
	}
	if got := b.logged(); len(got) != total+5 {
		t.Errorf("the log has %d bytes", len(got))
	}
}

// TestNothingIsLost has clients that want the whole read more slowly than the process writes: they
// get every byte.
func TestNothingIsLost(t *testing.T) {
	b := newBox(t, "sh", "-c", "seq 1 300000; exec sleep 1000").create()
	whole := func(name string) supervise.IO {
		c, err := supervise.Whole(b.ctx(), b.shim, name, true)
		b.ok(err)
		return c
	}
	slowly := func(c supervise.IO, done string) *heard {
		n := 0
		return hear(t, c, func(h *heard) bool {
			if n++; n%8 == 0 {
				time.Sleep(2 * time.Millisecond)
			}
			return strings.HasSuffix(h.out.String()[max(0, h.out.Len()-20):], done)
		})
	}
	c := whole("")
	defer c.Close() //nolint:errcheck // a test's
	b.start()
	const total = 1_988_895
	if h := slowly(c, "\n300000\n"); h.out.Len() != total || h.lost > 0 {
		t.Errorf("%d of %d, %d lost", h.out.Len(), total, h.lost)
	}
	b.prepare("x", false, "seq", "1", "300000")
	x := whole("x")
	defer x.Close() //nolint:errcheck // a test's
	_, err := b.shim.Start(b.ctx(), &shimv1.StartRequest{Process: "x"})
	b.ok(err)
	if h := slowly(x, "never"); h.out.Len() != total || h.lost > 0 || h.exit.GetCode() != 0 {
		t.Errorf("exec: %d of %d, %d lost, %v", h.out.Len(), total, h.lost, h.exit)
	}
}

// TestNothingIsLostAtTheEnd has a client that does not read at all until the process has ended, and
// the shim after it.
func TestNothingIsLostAtTheEnd(t *testing.T) {
	b := newBox(t, "sh", "-c", "seq 1 110000; echo err >&2; exit 3").create() // as much as fits on the way
	c, err := supervise.Whole(b.ctx(), b.shim, "", false)
	b.ok(err)
	defer c.Close() //nolint:errcheck // a test's
	b.start()
	b.wait()
	_, err = b.shim.Delete(b.ctx(), &shimv1.DeleteRequest{})
	b.ok(err)
	_, err = b.shim.Shutdown(b.ctx(), &shimv1.ShutdownRequest{})
	b.ok(err)
	<-b.shim.Gone()
	if h := hear(t, c, nil); !strings.HasSuffix(h.out.String(), "\n110000\n") || h.err.String() != "err\n" || h.lost != 0 || h.exit.GetCode() != 3 {
		t.Errorf("%d bytes, %q, %d lost, %v", h.out.Len(), h.err.String(), h.lost, h.exit)
	}
}

// TestWholeAndGone has a client that wants the whole, does not read, and leaves: the process goes on.
func TestWholeAndGone(t *testing.T) {
	b := newBox(t, "sh", "-c", "seq 1 300000; echo done >&2").create()
	c, err := supervise.Whole(b.ctx(), b.shim, "", true)
	b.ok(err)
	b.start()
	ctx, cancel := context.WithTimeout(b.ctx(), 300*time.Millisecond)
	defer cancel()
	if r, err := b.shim.Wait(ctx, &shimv1.WaitRequest{}); err == nil {
		t.Errorf("it did not wait: %v", r)
	}
	b.ok(c.Close())
	if x := b.wait(); x.GetCode() != 0 {
		t.Errorf("%v", x)
	}
	if got := b.logged(); !strings.HasSuffix(got, "300000\ndone\n") {
		t.Errorf("%q", tail(got))
	}
}

func TestTerminal(t *testing.T) {
	b := newBox(t, "sh")
	b.boot.OpenStdin, b.spec.Process.Terminal = true, true
	b.create()
	c := b.io("", true)
	b.ok(c.Send(&typesv1.ProcessInput{Input: &typesv1.ProcessInput_Resize{Resize: &typesv1.TerminalSize{Columns: 101, Rows: 33}}}))
	b.start()
	b.ok(c.Send(stdin("stty size; echo to >&2\n")))
	hear(t, c, func(h *heard) bool { return strings.Contains(h.out.String(), "33 101\r\n") })
	_, err := b.shim.Resize(b.ctx(), &shimv1.ResizeRequest{Size: &typesv1.TerminalSize{Columns: 55, Rows: 44}})
	b.ok(err)
	b.ok(c.Send(stdin("stty size\n")))
	hear(t, c, func(h *heard) bool { return strings.Contains(h.out.String(), "44 55\r\n") })
	b.ok(c.Send(stdin("sh -c 'echo wait''ing; exec sleep 1000'\n")))
	hear(t, c, func(h *heard) bool { return strings.Contains(h.out.String(), "waiting\r\n") })
	b.ok(c.Send(stdin("\x03"))) // ctrl-c
	hear(t, c, func(h *heard) bool { return strings.Contains(h.out.String(), "# ") })
	b.ok(c.Send(stdin("echo code $?\n")))
	// An end of input that is typed ahead of the prompt is a zero byte to a shell that reads keys: the kernel keeps it so.
	hear(t, c, func(h *heard) bool { return strings.Contains(h.out.String(), "code 130\r\n~ # ") })
	b.ok(c.Send(eof)) // as ctrl-d
	h := hear(t, c, nil)
	if h.err.Len() > 0 || h.exit.GetSignal() != 0 {
		t.Errorf("%q %v", h.err.String(), h.exit)
	}
}

// TestEndOfInputRaw: a program that reads keys has often turned the terminal's own end of input off, and wants
// what a keyboard would send.
func TestEndOfInputRaw(t *testing.T) {
	b := newBox(t, "sh", "-c", `stty raw -echo eof undef; echo ready; dd bs=1 count=1 2>/dev/null | tr '\004' D`)
	b.boot.OpenStdin, b.spec.Process.Terminal = true, true
	b.create()
	c := b.io("", true)
	b.start()
	hear(t, c, func(h *heard) bool { return strings.Contains(h.out.String(), "ready") })
	b.ok(c.Send(eof))
	if h := hear(t, c, nil); strings.TrimSpace(h.out.String()) != "D" {
		t.Errorf("%q", h.out.String())
	}
}

func TestSignals(t *testing.T) {
	b := newBox(t, "sh", "-c", "trap 'echo usr1' USR1; trap 'echo hup; exit 3' HUP; echo ready; while true; do sleep 0.01; done").create()
	c := b.io("", true)
	b.start()
	hear(t, c, func(h *heard) bool { return strings.Contains(h.out.String(), "ready") })
	b.ok(c.Send(&typesv1.ProcessInput{Input: &typesv1.ProcessInput_Signal{Signal: "SIGUSR1"}}))
	hear(t, c, func(h *heard) bool { return strings.Contains(h.out.String(), "usr1") })
	b.kill(&shimv1.KillRequest{Signal: 1})
	if h := hear(t, c, nil); h.out.String() != "hup\n" || h.exit.GetCode() != 3 {
		t.Errorf("%q %v", h.out.String(), h.exit)
	}
	if _, err := b.shim.Kill(b.ctx(), &shimv1.KillRequest{Signal: 9}); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("of what has ended: %v", err)
	}
	if _, err := b.shim.Kill(b.ctx(), &shimv1.KillRequest{Signal: 99}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("no such signal: %v", err)
	}
}

// TestPipeOutlivesExec has a process leave a child that holds its pipe: the exit does not wait for
// it, and it does not die of that.
func TestPipeOutlivesExec(t *testing.T) {
	b := newBox(t, "sleep", "1000").run()
	began := time.Now()
	h := b.exec("one", "sh", "-c", "(sleep 0.3; echo late; sleep 0.1; echo lived > /tmp/lived) & echo early")
	if took := time.Since(began); h.out.String() != "early\n" || took > 250*time.Millisecond {
		t.Errorf("%q after %v", h.out.String(), took)
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if h := b.exec("look", "cat", "/tmp/lived"); h.out.String() == "lived\n" {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the child died")
		}
	}
}

func TestBinaryAndNoNewline(t *testing.T) {
	b := newBox(t, "sh", "-c", `head -c 100000 /dev/zero | tr '\000' '\377'; printf 'end'`).create()
	c := b.io("", true)
	b.start()
	want := append(bytes.Repeat([]byte{0xff}, 100_000), "end"...)
	if h := hear(t, c, nil); !bytes.Equal(h.out.Bytes(), want) {
		t.Errorf("%d bytes", h.out.Len())
	}
	if got := b.logged(); got != string(want) {
		t.Errorf("%d bytes in the log", len(got))
	}
}

func TestIOEndsWithContext(t *testing.T) {
	b := newBox(t, "sleep", "1000").run()
	ctx, cancel := context.WithCancel(b.ctx())
	cancel()
	if _, err := b.shim.IO(ctx, "", true); err == nil || !strings.Contains(err.Error(), "canceled") {
		t.Errorf("%v", err)
	}
}
