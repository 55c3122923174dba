package cli

import (
	"bytes"
	"os"
	"os/signal"
	"strings"

	"golang.org/x/sys/unix"
	"golang.org/x/term"

	typesv1 "github.com/gantryd/gantry/proto/gantry/types/v1"
)

// Raw puts a terminal into raw mode and returns what puts it back.
func Raw(fd int) (restore func(), err error) {
	old, err := term.MakeRaw(fd)
	if err != nil {
		return nil, err
	}
	return func() { _ = term.Restore(fd, old) }, nil
}

// TerminalSize is the size of a terminal, nil if it does not tell.
func TerminalSize(fd int) *typesv1.TerminalSize {
	w, h, err := term.GetSize(fd)
	if err != nil || w <= 0 || h <= 0 {
		return nil
	}
	return &typesv1.TerminalSize{Columns: uint32(w), Rows: uint32(h)} //nolint:gosec // both are positive
}

// Resizes calls fn with the size of a terminal whenever it changes, until stop is called.
func Resizes(fd int, fn func(*typesv1.TerminalSize)) (stop func()) {
	ch, done, ended := make(chan os.Signal, 1), make(chan struct{}), make(chan struct{})
	signal.Notify(ch, unix.SIGWINCH)
	go func() {
		defer close(ended)
		for {
			select {
			case <-ch:
				if s := TerminalSize(fd); s != nil {
					fn(s)
				}
			case <-done:
				return
			}
		}
	}()
	return func() {
		signal.Stop(ch)
		close(done)
		<-ended
	}
}

// DetachKeys parses "ctrl-p,ctrl-q": the keys which, typed one after the other, leave the
// process running and end the client. "" means none.
func DetachKeys(s string) ([]byte, error) {
	if s == "" {
		return nil, nil
	}
	var keys []byte
	for _, k := range strings.Split(s, ",") {
		if c, ok := strings.CutPrefix(strings.ToLower(k), "ctrl-"); ok && len(c) == 1 {
			switch b := c[0]; {
			case b >= 'a' && b <= 'z':
				keys = append(keys, b-'a'+1)
				continue
			case b >= '[' && b <= '_' || b == '@':
				keys = append(keys, b&0x1f)
				continue
			}
		}
		if len(k) != 1 {
			return nil, Usagef("--detach-keys %q: %q is no key; write letters or ctrl-a to ctrl-z, with commas between, as in ctrl-p,ctrl-q", s, k)
		}
		keys = append(keys, k[0])
	}
	return keys, nil
}

// Detacher looks for the detach keys in what is typed.
type Detacher struct {
	keys []byte
	seen int
}

// NewDetacher returns a Detacher for keys.
func NewDetacher(keys []byte) *Detacher { return &Detacher{keys: keys} }

// Feed takes what was typed and returns what is to be passed on, and whether to detach.
// Keys that begin the sequence are held back until it is clear that they do not end it.
func (d *Detacher) Feed(in []byte) (out []byte, detach bool) {
	if len(d.keys) == 0 {
		return in, false
	}
	for _, b := range in {
		// What is held back is the beginning of the keys. Where b does not go on with it, a later
		// part of it may be one as well: "a,a,b" is in "aaab".
		for d.seen > 0 && b != d.keys[d.seen] {
			n := 1
			for !bytes.Equal(d.keys[n:d.seen], d.keys[:d.seen-n]) {
				n++
			}
			out = append(out, d.keys[:n]...)
			d.seen -= n
		}
		if b != d.keys[d.seen] {
			out = append(out, b)
			continue
		}
		if d.seen++; d.seen == len(d.keys) {
			d.seen = 0
			return out, true
		}
	}
	return out, false
}

// Rest is what was held back, for when nothing more will be typed.
func (d *Detacher) Rest() []byte {
	held := d.keys[:d.seen]
	d.seen = 0
	return held
}
