package frame

import (
	"bytes"
	"errors"
	"io"
	"testing"
	"testing/iotest"

	"google.golang.org/protobuf/proto"

	typesv1 "github.com/gantryd/gantry/proto/gantry/types/v1"
)

func TestRoundTrip(t *testing.T) {
	big := bytes.Repeat([]byte("x"), MaxPayload)
	var b []byte
	b = Append(b, Hello, Greeting{Process: "exec-1", Replay: true, Whole: true}.Marshal())
	b = Append(b, Stdin, []byte("ls\n"))
	b = Append(b, Stdout, big)
	b = Append(b, StdinEOF, nil)
	b = AppendSize(b, 80, 24)
	b = AppendStarted(b, 4711)
	b = AppendLost(b, 1<<40)
	exit := &typesv1.Exit{Code: 137, Signal: 9, Reason: "oom"}
	b, err := AppendExit(b, exit)
	if err != nil {
		t.Fatal(err)
	}
	b = AppendRefused(b, 5, "no such process")
	for name, r := range map[string]io.Reader{
		"at once": bytes.NewReader(b), "byte by byte": iotest.OneByteReader(bytes.NewReader(b)), "halves": iotest.HalfReader(bytes.NewReader(b)),
	} {
		t.Run(name, func(t *testing.T) {
			r := NewReader(r)
			next := func(want Type) []byte {
				t.Helper()
				got, p, err := r.Next()
				if err != nil || got != want {
					t.Fatalf("got %v, %v; want type %v", got, err, want)
				}
				return p
			}
			if g, err := ParseGreeting(next(Hello)); err != nil || g != (Greeting{Process: "exec-1", Replay: true, Whole: true}) {
				t.Errorf("greeting %+v, %v", g, err)
			}
			if p := next(Stdin); string(p) != "ls\n" {
				t.Errorf("stdin %q", p)
			}
			if p := next(Stdout); !bytes.Equal(p, big) {
				t.Errorf("stdout of %d bytes", len(p))
			}
			if p := next(StdinEOF); len(p) != 0 {
				t.Errorf("eof %q", p)
			}
			if c, r, err := ParseSize(next(Resize)); c != 80 || r != 24 || err != nil {
				t.Errorf("size %d %d %v", c, r, err)
			}
			if pid, err := ParseStarted(next(Started)); pid != 4711 || err != nil {
				t.Errorf("pid %d %v", pid, err)
			}
			if n, err := ParseLost(next(Lost)); n != 1<<40 || err != nil {
				t.Errorf("lost %d %v", n, err)
			}
			if x, err := ParseExit(next(Exit)); err != nil || !proto.Equal(x, exit) {
				t.Errorf("exit %v %v", x, err)
			}
			if class, s, err := ParseRefused(next(Refused)); class != 5 || s != "no such process" || err != nil {
				t.Errorf("refused %d %q %v", class, s, err)
			}
			if _, _, err := r.Next(); err != io.EOF { //nolint:errorlint // exactly that
				t.Errorf("at the end: %v", err)
			}
		})
	}
}

func TestCutShortAndTooLong(t *testing.T) {
	whole := Append(nil, Stdout, []byte("hello"))
	for n := 1; n < len(whole); n++ {
		if _, _, err := NewReader(bytes.NewReader(whole[:n])).Next(); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("cut after %d bytes: %v", n, err)
		}
	}
	if _, _, err := NewReader(bytes.NewReader([]byte{byte(Stdout), 1, 0x80, 0})).Next(); !errors.Is(err, ErrMalformed) {
		t.Errorf("one byte too long: %v", err)
	}
	defer func() {
		if recover() == nil {
			t.Error("a frame that nobody can read was written")
		}
	}()
	Append(nil, Stdout, make([]byte, MaxPayload+1))
}

func FuzzReader(f *testing.F) {
	f.Add(Append(Append(nil, Hello, Greeting{NoStdin: true}.Marshal()), Stdout, []byte("hi")))
	f.Add([]byte{255, 255, 255, 255})
	f.Fuzz(func(t *testing.T, in []byte) {
		r := NewReader(bytes.NewReader(in))
		var again []byte
		for {
			typ, p, err := r.Next()
			if err != nil {
				break
			}
			again = Append(again, typ, p)
			// none of these may panic
			_, _ = ParseGreeting(p)
			_, _, _ = ParseSize(p)
			_, _ = ParseStarted(p)
			_, _ = ParseLost(p)
			_, _ = ParseExit(p)
			_, _, _ = ParseRefused(p)
		}
		if !bytes.HasPrefix(in, again) {
			t.Errorf("what was read is not what was there")
		}
		if cap(r.buf) > HeaderSize+MaxPayload {
			t.Errorf("a buffer of %d bytes", cap(r.buf))
		}
	})
}
