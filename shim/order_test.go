package main

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/gantryd/gantry/internal/frame"
	"github.com/gantryd/gantry/internal/logfile"
)

// TestOrderOfStreams: of two pipes that both have something, the one that was written to first is read first, whichever
// pump wakes first.
func TestOrderOfStreams(t *testing.T) {
	dir := t.TempDir()
	log := logfile.NewWriter(dir, logfile.Limits{}, nil)
	o := newOutputs(log)
	outR, outW := pipeOf(t)
	errR, errW := pipeOf(t)
	pumps := o.startPumps(newPump(o, frame.Stdout, outR), newPump(o, frame.Stderr, errR))
	var want strings.Builder
	write := func(f *os.File, s logfile.Stream, text string) {
		t.Helper()
		if _, err := f.WriteString(text); err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&want, "%d %s", s, text)
	}
	read := func() uint64 {
		o.mu.Lock()
		defer o.mu.Unlock()
		return o.ring.written
	}
	var n uint64
	for i := range 200 {
		o.reading.Lock() // so that both pumps come too late
		if i%2 == 0 {
			write(outW, logfile.Stdout, "first\n")
			write(errW, logfile.Stderr, "second\n")
		} else {
			write(errW, logfile.Stderr, "first\n")
			write(outW, logfile.Stdout, "second\n")
		}
		if i%3 == 0 {
			time.Sleep(time.Millisecond) // both wait for the lock
		}
		o.reading.Unlock()
		n += uint64(len("first\nsecond\n"))
		for end := time.Now().Add(10 * time.Second); read() < n; time.Sleep(100 * time.Microsecond) {
			if time.Now().After(end) {
				t.Fatalf("%d bytes of %d were read", read(), n)
			}
		}
	}
	for _, f := range []*os.File{outW, errW} {
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	for _, p := range pumps {
		<-p.gone
	}
	if left := pumps[0].order.left; left != 0 {
		t.Errorf("%d pumps have not left", left)
	}
	if err := log.Close(); err != nil {
		t.Fatal(err)
	}
	r, err := logfile.Open(dir, logfile.Options{Tail: -1})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close() //nolint:errcheck // it was only read
	var got strings.Builder
	for {
		rec, err := r.Next(t.Context())
		if err != nil {
			break
		}
		fmt.Fprintf(&got, "%d %s", rec.Stream, rec.Data)
	}
	if got.String() != want.String() {
		t.Errorf("got\n%.300s\nwant\n%.300s", got.String(), want.String())
	}
}

// pipeOf is a pipe whose end to read from does not block, as a process's is.
func pipeOf(t *testing.T) (r, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	return r, w
}

// TestOrderOfAShortProcess: what it said last is not heard first.
func TestOrderOfAShortProcess(t *testing.T) {
	for range 20 {
		b := newBox(t, "sh", "-c", "echo a; echo b; echo err >&2").create()
		c := b.io("", true)
		b.start()
		if h := hear(t, c, nil); h.all.String() != "a\nb\nerr\n" {
			t.Fatalf("%q", h.all.String())
		}
	}
}
