package cli

import (
	"bytes"
	"strings"
	"testing"
)

func TestDetachKeys(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"": "", "a": "a", "ctrl-p,ctrl-q": "\x10\x11", "CTRL-A,x": "\x01x", "ctrl-@": "\x00", "ctrl-[": "\x1b",
		"ctrl-\\,ctrl-]": "\x1c\x1d", "ctrl-_": "\x1f", "ctrl-z": "\x1a", "A,b": "Ab", "-": "-",
	} {
		if got, err := DetachKeys(in); err != nil || string(got) != want {
			t.Errorf("%q: %q, %v", in, got, err)
		}
	}
	for _, in := range []string{",", "ab", "ctrl-", "ctrl-pp", "ctrl-1", "a,,b", "ctrl-p ctrl-q", "é"} {
		if got, err := DetachKeys(in); ExitCode(err) != 2 {
			t.Errorf("%q: %q, %v", in, got, err)
		}
	}
}

func TestDetacher(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		keys, typed, out, rest string
		detach                 bool
	}{
		{"", "hello\x10\x11", "hello\x10\x11", "", false},
		{"\x10\x11", "hello", "hello", "", false},
		{"\x10\x11", "hel\x10\x11lo", "hel", "", true},
		{"\x10\x11", "\x10lo", "\x10lo", "", false},
		{"\x10\x11", "\x10\x10\x11", "\x10", "", true},
		{"\x10\x11", "lo\x10", "lo", "\x10", false},
		{"\x10\x11", "\x11\x10", "\x11", "\x10", false},
		{"aab", "aaab", "a", "", true},
		{"aab", "aaaa", "aa", "aa", false},
		{"abac", "ababac", "ab", "", true},
		{"abac", "abax", "abax", "", false},
		{"a", "xa", "x", "", true},
		{"aaa", "aaxaaa", "aax", "", true},
	} {
		// Whole, and cut at every place: what is typed comes in any pieces.
		for cut := 0; cut <= len(c.typed); cut++ {
			d := NewDetacher([]byte(c.keys))
			var out []byte
			detach := false
			for _, piece := range []string{c.typed[:cut], c.typed[cut:]} {
				if detach {
					break
				}
				var some []byte
				some, detach = d.Feed([]byte(piece))
				out = append(out, some...)
			}
			if string(out) != c.out || detach != c.detach {
				t.Errorf("keys %q, typed %q, cut at %d: %q, %t", c.keys, c.typed, cut, out, detach)
			}
			if rest := d.Rest(); string(rest) != c.rest {
				t.Errorf("keys %q, typed %q: held back %q", c.keys, c.typed, rest)
			}
			if rest := d.Rest(); len(rest) != 0 {
				t.Errorf("keys %q, typed %q: held back twice", c.keys, c.typed)
			}
		}
	}
}

func FuzzDetacher(f *testing.F) {
	f.Add([]byte("aab"), []byte("aaab"), 2)
	f.Fuzz(func(t *testing.T, keys, typed []byte, cut int) {
		d := NewDetacher(keys)
		cut = max(0, min(cut, len(typed)))
		out, detach := d.Feed(bytes.Clone(typed[:cut]))
		out = bytes.Clone(out)
		if !detach {
			more, end := d.Feed(bytes.Clone(typed[cut:]))
			out, detach = append(out, more...), end
		}
		at := bytes.Index(typed, keys)
		if len(keys) == 0 {
			at = -1
		}
		switch {
		case detach != (at >= 0):
			t.Errorf("keys %q, typed %q: detach %t", keys, typed, detach)
		case detach && string(out) != string(typed[:at]):
			t.Errorf("keys %q, typed %q: passed on %q", keys, typed, out)
		case !detach && string(out)+string(d.Rest()) != string(typed):
			t.Errorf("keys %q, typed %q: lost something of it: %q", keys, typed, out)
		}
	})
}

func TestConfirm(t *testing.T) {
	t.Parallel()
	e := &Env{In: strings.NewReader("y\n"), Err: &bytes.Buffer{}}
	if ok, err := e.Confirm("This removes everything."); ok || ExitCode(err) != 2 || !strings.Contains(err.Error(), "--force") {
		t.Errorf("without a terminal: %t, %v", ok, err)
	}
}
