package main

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/gantryd/gantry/internal/frame"
)

// parse makes the streams, and what was lost, of frames again.
func parse(t testing.TB, b []byte) (out, err []byte, lost uint64) {
	t.Helper()
	for r := frame.NewReader(bytes.NewReader(b)); ; {
		typ, p, rerr := r.Next()
		if errors.Is(rerr, io.EOF) {
			return out, err, lost
		}
		if rerr != nil {
			t.Fatal(rerr)
		}
		switch typ {
		case frame.Stdout:
			out = append(out, p...)
		case frame.Stderr:
			err = append(err, p...)
		case frame.Lost:
			n, _ := frame.ParseLost(p)
			lost += n
		}
	}
}

func TestRingKeepsOrderAndGrows(t *testing.T) {
	r := &ring{max: 1 << 20}
	var want []byte
	c := r.begin()
	for i := range 5000 {
		p := bytes.Repeat([]byte{byte(i)}, i%50+1)
		r.add(frame.Stdout, p)
		want = append(want, p...)
	}
	var got []byte
	for buf := make([]byte, 0, 1000); c.pos < r.head; {
		b := r.read(&c, buf)
		if len(b) == 0 {
			t.Fatal("stuck")
		}
		out, _, lost := parse(t, b)
		if lost != 0 {
			t.Fatal("lost")
		}
		got = append(got, out...)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%d bytes of %d", len(got), len(want))
	}
	if cap(r.buf) > 512<<10 {
		t.Errorf("a ring of %d bytes for %d", cap(r.buf), len(want))
	}
}

func TestRingJoinsSmallEntries(t *testing.T) {
	r := &ring{max: 4096}
	c := r.begin()
	for range 10 {
		r.add(frame.Stdout, []byte("a\n"))
	}
	r.add(frame.Stderr, []byte("e"))
	b := r.read(&c, make([]byte, 0, 4096))
	if want := frame.Append(frame.Append(nil, frame.Stdout, bytes.Repeat([]byte("a\n"), 10)), frame.Stderr, []byte("e")); !bytes.Equal(b, want) {
		t.Errorf("%q", b)
	}
}

// FuzzRing has a reader that is as slow as it likes: what it gets and what it is told it lost are
// together what there was, and what it gets is the end of that.
func FuzzRing(f *testing.F) {
	f.Add(uint64(1), uint16(300), uint8(20))
	f.Add(uint64(2), uint16(3000), uint8(1))
	f.Fuzz(func(t *testing.T, seed uint64, steps uint16, lazy uint8) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		r := &ring{max: 64 << 10}
		var total, got, lost uint64
		var last []byte // what was written since the reader was last up to date
		c := r.begin()
		buf := make([]byte, 0, frame.HeaderSize+frame.MaxPayload+64)
		take := func() {
			before := c.pos
			b := r.read(&c, buf)
			out, errs, n := parse(t, b)
			got += uint64(len(out) + len(errs))
			lost += n
			if n == 0 && before != c.pos && len(errs) == 0 && !bytes.HasPrefix(last, out) {
				t.Fatal("not what was written")
			}
			last = last[min(len(last), len(out)+len(errs)+int(n)):]
		}
		for range min(steps, 2000) {
			p := make([]byte, 1+rnd.IntN(5000))
			for i := range p {
				p[i] = byte(rnd.Uint32())
			}
			typ := frame.Stdout
			if rnd.IntN(3) == 0 {
				typ = frame.Stderr
			}
			r.add(typ, p)
			last = append(last, p...)
			total += uint64(len(p))
			if rnd.IntN(int(lazy)+1) == 0 {
				take()
			}
		}
		for c.pos != r.head {
			take()
		}
		if got+lost != total {
			t.Errorf("%d read and %d lost of %d", got, lost, total)
		}
		if r.written != total || len(r.buf) > r.max {
			t.Errorf("%d of %d counted, %d bytes", r.written, total, len(r.buf))
		}
	})
}
