package logfile

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

var base = time.Unix(1_700_000_000, 0)

// put writes p as one read of a pipe.
func put(w *Writer, s Stream, at time.Time, p string) {
	buf := make([]byte, Head+len(p)+Foot)
	copy(buf[Head:], p)
	w.Write(s, at, buf)
}

func closeWriter(t testing.TB, w *Writer) {
	t.Helper()
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
}

// read reads everything as short strings: 1 or 2 for the stream, the line's number, + where more
// follows, the data; or ! and a notice.
func read(t testing.TB, dir string, o Options) (out []string) {
	t.Helper()
	r, err := Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close() //nolint:errcheck // only read
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for {
		rec, err := r.Next(ctx)
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, short(rec))
	}
}

func short(r Record) string {
	if r.Notice != "" {
		return "!" + r.Notice
	}
	more := ""
	if r.Partial {
		more = "+"
	}
	return fmt.Sprintf("%d:%d%s %s", r.Stream, r.Sequence, more, r.Data)
}

func same(t testing.TB, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("got\n%q\nwant\n%q", got, want)
	}
}

var all = Options{Tail: -1}

func TestLines(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "log")
	same(t, read(t, dir, all))
	w := NewWriter(dir, Limits{}, nil)
	put(w, Stdout, base, "one\ntwo\nthr")
	put(w, Stderr, base.Add(1*time.Second), "err\nor")
	put(w, Stdout, base.Add(2*time.Second), "ee\n\x00\xff bin\n\n")
	put(w, Stderr, base.Add(3*time.Second), "x")
	put(w, Stdout, base.Add(4*time.Second), "end")
	everything := []string{"1:1 one\n", "1:2 two\n", "2:4 err\n", "1:3 three\n", "1:6 \x00\xff bin\n", "1:7 \n", "1:8 end", "2:5 orx"}
	same(t, read(t, dir, all), everything...)
	closeWriter(t, w)
	same(t, read(t, dir, all), everything...)
	same(t, read(t, dir, Options{Tail: -1, NoStdout: true}), "2:4 err\n", "2:5 orx")
	same(t, read(t, dir, Options{Tail: -1, NoStderr: true}), "1:1 one\n", "1:2 two\n", "1:3 three\n", "1:6 \x00\xff bin\n", "1:7 \n", "1:8 end")
	same(t, read(t, dir, Options{Tail: 0}))
	same(t, read(t, dir, Options{Tail: 1}), "1:8 end")
	same(t, read(t, dir, Options{Tail: 2}), "1:7 \n", "1:8 end")
	same(t, read(t, dir, Options{Tail: 5}), "2:4 err\n", "1:6 \x00\xff bin\n", "1:7 \n", "1:8 end", "2:5 orx")
	same(t, read(t, dir, Options{Tail: 100}), everything...)
	same(t, read(t, dir, Options{Tail: 2, NoStderr: true}), "1:7 \n", "1:8 end")
	same(t, read(t, dir, Options{Tail: -1, Since: base.Add(2 * time.Second)}), "1:6 \x00\xff bin\n", "1:7 \n", "1:8 end") // lines that began before have that time
	same(t, read(t, dir, Options{Tail: -1, Until: base.Add(2 * time.Second)}), "1:1 one\n", "1:2 two\n", "2:4 err\n", "1:3 three\n", "1:6 \x00\xff bin\n", "1:7 \n", "2:5 or")
	same(t, read(t, dir, Options{From: 6}), "1:6 \x00\xff bin\n", "1:7 \n", "1:8 end")

	// The next run goes on, on a line of its own.
	w = NewWriter(dir, Limits{}, nil)
	put(w, Stdout, base.Add(9*time.Second), "again\n")
	closeWriter(t, w)
	same(t, read(t, dir, Options{From: 7}), "1:7 \n", "1:8 end", "1:9 again\n")
}

func TestTimesAreKept(t *testing.T) {
	dir := t.TempDir()
	w := NewWriter(dir, Limits{}, nil)
	at := base.Add(123456789 * time.Nanosecond)
	put(w, Stdout, at, "beginning ")
	put(w, Stdout, at.Add(time.Hour), "end\n")
	closeWriter(t, w)
	r, err := Open(dir, all)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close() //nolint:errcheck // only read
	rec, err := r.Next(t.Context())
	if err != nil || !rec.At.Equal(at) || string(rec.Data) != "beginning end\n" {
		t.Errorf("%v %q %v", rec.At, rec.Data, err)
	}
}

func TestLongLines(t *testing.T) {
	dir := t.TempDir()
	w := NewWriter(dir, Limits{}, nil)
	long := strings.Repeat("0123456789", 20_000)
	for p := long; p != ""; {
		n := min(len(p), 50_000)
		put(w, Stdout, base, p[:n])
		p = p[n:]
	}
	put(w, Stdout, base, "\nshort\n")
	closeWriter(t, w)
	r, err := Open(dir, all)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close() //nolint:errcheck // only read
	var got []byte
	for {
		rec, err := r.Next(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if rec.Sequence != 1 || len(rec.Data) > MaxLine {
			t.Fatalf("a record of line %d with %d bytes", rec.Sequence, len(rec.Data))
		}
		got = append(got, rec.Data...)
		if !rec.Partial {
			break
		}
	}
	if string(got) != long+"\n" {
		t.Errorf("%d bytes came back of %d", len(got), len(long)+1)
	}
	if rec, err := r.Next(t.Context()); err != nil || short(rec) != "1:2 short\n" {
		t.Errorf("%v %v", short(rec), err)
	}
}

func TestRotation(t *testing.T) {
	dir := t.TempDir()
	w := NewWriter(dir, Limits{MaxBytes: 8 << 10, MaxFiles: 3}, nil)
	const n = 5000
	for i := range n {
		put(w, Stdout, base.Add(time.Duration(i)*time.Second), fmt.Sprintf("line %d\n", i+1))
		if i == n/2 { // another shim
			closeWriter(t, w)
			w = NewWriter(dir, Limits{MaxBytes: 8 << 10, MaxFiles: 3}, nil)
		}
	}
	closeWriter(t, w)
	var bytes int64
	segs, err := segments(dir)
	if err != nil || len(segs) != 3 {
		t.Fatalf("%d segments, %v", len(segs), err)
	}
	for _, s := range segs {
		st, err := os.Stat(segmentPath(dir, s))
		if err != nil {
			t.Fatal(err)
		}
		bytes += st.Size()
	}
	if bytes > 3*8<<10 {
		t.Errorf("%d bytes", bytes)
	}
	got := read(t, dir, all)
	if got[0] != "!older lines were rotated away" {
		t.Errorf("first %q", got[0])
	}
	got = got[1:]
	for i, line := range got {
		k := n - len(got) + i + 1
		if want := fmt.Sprintf("1:%d line %d\n", k, k); line != want {
			t.Fatalf("got %q, want %q", line, want)
		}
	}
	if len(got) < 200 {
		t.Errorf("only %d lines", len(got))
	}
	for _, k := range []int{0, 1, 2, 100, 200, len(got) - 1, len(got)} {
		tail := read(t, dir, Options{Tail: k})
		if !slices.Equal(tail, got[len(got)-k:]) {
			t.Errorf("tail of %d has %d lines, the first %q", k, len(tail), tail[:min(1, len(tail))])
		}
	}
	if tail := read(t, dir, Options{Tail: len(got) + 1}); len(tail) != len(got)+1 || tail[0][0] != '!' {
		t.Errorf("more than there is: %d lines", len(tail))
	}
	since := read(t, dir, Options{Tail: -1, Since: base.Add((n - 10) * time.Second)})
	if !slices.Equal(since, got[len(got)-10:]) {
		t.Errorf("since: %q", since)
	}
	from := read(t, dir, Options{From: n - 99})
	if !slices.Equal(from, got[len(got)-100:]) {
		t.Errorf("from: %d lines", len(from))
	}
}

// TestRotatedLine: a line whose beginning was rotated away was rotated away, on either stream; what is shown begins
// with a whole line.
func TestRotatedLine(t *testing.T) {
	for _, size := range []int{700, 1000, 3000, 40_000} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			dir := t.TempDir()
			w := NewWriter(dir, Limits{MaxBytes: 8 << 10, MaxFiles: 2}, nil)
			var out, errs []byte
			for i := range 20_000 {
				out = fmt.Appendf(out, "this is line %d\n", i)
				errs = fmt.Appendf(errs, "this is problem %d\n", i)
			}
			for len(out) > 0 { // blocks that begin and end anywhere in a line
				n := min(size, len(out))
				put(w, Stdout, base, string(out[:n]))
				out = out[n:]
				n = min(size/3, len(errs))
				put(w, Stderr, base, string(errs[:n]))
				errs = errs[n:]
			}
			closeWriter(t, w)
			for name, o := range map[string]Options{"all": all, "tail": {Tail: 1 << 20}, "stdout": {Tail: -1, NoStderr: true}, "stderr": {Tail: -1, NoStdout: true}} {
				got := read(t, dir, o)
				if got[0] != "!older lines were rotated away" {
					t.Errorf("%s: first %q", name, got[0])
				}
				for i, line := range got[1:] {
					_, data, _ := strings.Cut(line, " ")
					if !strings.HasPrefix(data, "this is ") && i < 3 {
						t.Errorf("%s: line %d is %q", name, i, line)
					}
				}
			}
		})
	}
}

// TestRotatedLongLine: one that is longer than all that is kept is better than nothing, and said to have no beginning.
func TestRotatedLongLine(t *testing.T) {
	dir := t.TempDir()
	w := NewWriter(dir, Limits{MaxBytes: 8 << 10, MaxFiles: 2}, nil)
	for range 30 {
		put(w, Stdout, base, strings.Repeat("x", 1000))
	}
	closeWriter(t, w)
	notices := []string{"!older lines were rotated away", "!the line that follows is longer than a segment of the log, and its beginning was rotated away"}
	got := read(t, dir, all)
	if len(got) != 3 || !slices.Equal(got[:2], notices) || len(got[2]) < 8<<10 {
		t.Errorf("got %.200q", got)
	}
	w = NewWriter(dir, Limits{MaxBytes: 8 << 10, MaxFiles: 2}, nil)
	put(w, Stdout, base.Add(time.Minute), "\nnext\n")
	closeWriter(t, w)
	same(t, read(t, dir, Options{Tail: 1}), "1:3 next\n")
	same(t, read(t, dir, Options{Tail: -1, Since: base.Add(time.Second)}), "1:2 \n", "1:3 next\n")
}

// TestSinceInALine: what began before is not wanted, wherever reading begins.
func TestSinceInALine(t *testing.T) {
	dir := t.TempDir()
	w := NewWriter(dir, Limits{MaxBytes: 4 << 10, MaxFiles: 100}, nil)
	put(w, Stdout, base, "be")
	put(w, Stdout, base, "fore\nbegun"+strings.Repeat("x", 3000))
	put(w, Stderr, base, strings.Repeat("x", 3000)+"\n") // another segment
	put(w, Stdout, base, "long")
	put(w, Stdout, base.Add(time.Minute), " ago\nafter\n")
	closeWriter(t, w)
	if segs, err := segments(dir); err != nil || len(segs) != 2 {
		t.Fatalf("segments %v, %v", segs, err)
	}
	same(t, read(t, dir, Options{Tail: -1, Since: base.Add(time.Second)}), "1:4 after\n")
	same(t, read(t, dir, Options{From: 4}), "1:4 after\n")
}

func TestKeepEverything(t *testing.T) {
	dir := t.TempDir()
	w := NewWriter(dir, Limits{MaxBytes: -1, MaxFiles: 1}, nil)
	w.max = 16 << 10 // as if it were much
	for i := range 3000 {
		put(w, Stdout, base, fmt.Sprintf("line %d\n", i+1))
	}
	closeWriter(t, w)
	if got := read(t, dir, all); len(got) != 3000 || got[0] != "1:1 line 1\n" {
		t.Errorf("%d lines, the first %q", len(got), got[0])
	}
}

// TestSmallSegments cuts blocks that are larger than a segment.
func TestSmallSegments(t *testing.T) {
	dir := t.TempDir()
	w := NewWriter(dir, Limits{MaxBytes: 1, MaxFiles: 1000}, nil)
	var want strings.Builder
	for i := range 40 {
		var p strings.Builder
		for j := range 900 {
			fmt.Fprintf(&p, "%d-%d is a line\n", i, j)
		}
		want.WriteString(p.String())
		put(w, Stdout, base, p.String())
	}
	closeWriter(t, w)
	var got strings.Builder
	for i, line := range read(t, dir, all) {
		head, data, _ := strings.Cut(line, " ")
		if head != fmt.Sprintf("1:%d", i+1) {
			t.Fatalf("record %d is %q", i, line)
		}
		got.WriteString(data)
	}
	if got.String() != want.String() {
		t.Errorf("%d bytes came back of %d", got.Len(), want.Len())
	}
}

func TestTornAndDamaged(t *testing.T) {
	dir := t.TempDir()
	w := NewWriter(dir, Limits{}, nil)
	put(w, Stdout, base, "one\n")
	put(w, Stdout, base, "two\n")
	put(w, Stdout, base, "three\n")
	closeWriter(t, w)
	path := segmentPath(dir, 1)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	last := overhead + len("three\n")
	for cut := 1; cut < last; cut++ { // a crash at every byte
		if err := os.WriteFile(path, whole[:len(whole)-cut], 0o600); err != nil {
			t.Fatal(err)
		}
		torn := last - cut
		if cut%10 == 1 {
			same(t, read(t, dir, all), "1:1 one\n", "1:2 two\n", fmt.Sprintf("!%d torn bytes skipped", torn))
		}
		same(t, read(t, dir, Options{Tail: 1})[:1], "1:2 two\n")
		w := NewWriter(dir, Limits{}, nil)
		put(w, Stdout, base, "more\n")
		closeWriter(t, w)
		same(t, read(t, dir, all), "1:1 one\n", "1:2 two\n", fmt.Sprintf("!%d torn bytes skipped", torn), "1:3 more\n")
		same(t, read(t, dir, Options{Tail: 2}), "1:2 two\n", fmt.Sprintf("!%d torn bytes skipped", torn), "1:3 more\n")
	}
	// A bit turned over in the second.
	bad := bytes.Clone(whole)
	bad[segHeader+overhead+len("one\n")+blockHead] ^= 1
	if err := os.WriteFile(path, bad, 0o600); err != nil {
		t.Fatal(err)
	}
	same(t, read(t, dir, all), "1:1 one\n", fmt.Sprintf("!%d torn bytes skipped", overhead+len("two\n")), "1:3 three\n")
	same(t, read(t, dir, Options{Tail: 2}), "1:1 one\n", fmt.Sprintf("!%d torn bytes skipped", overhead+len("two\n")), "1:3 three\n")
	// Zeros after a power cut, and a segment that was never begun.
	if err := os.WriteFile(path, append(bytes.Clone(whole), make([]byte, 100)...), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(segmentPath(dir, 2), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	same(t, read(t, dir, all), "1:1 one\n", "1:2 two\n", "1:3 three\n", "!100 torn bytes skipped")
	w = NewWriter(dir, Limits{}, nil)
	put(w, Stdout, base, "more\n")
	closeWriter(t, w)
	same(t, read(t, dir, all), "1:1 one\n", "1:2 two\n", "1:3 three\n", "!100 torn bytes skipped", "1:4 more\n")
	// A header that is gone does not take the lines with it.
	bad = bytes.Clone(whole)
	bad[3] ^= 1
	if err := os.WriteFile(path, bad, 0o600); err != nil {
		t.Fatal(err)
	}
	same(t, read(t, dir, all), "!24 torn bytes skipped", "1:1 one\n", "1:2 two\n", "1:3 three\n", "1:4 more\n")
}

func TestFullDisk(t *testing.T) {
	dir := t.TempDir()
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", "size=128k", "gantry-test", dir).CombinedOutput(); err != nil {
		t.Skipf("no tmpfs can be mounted here: %v: %s", err, out)
	}
	defer func() {
		if out, err := exec.Command("umount", dir).CombinedOutput(); err != nil {
			t.Errorf("umount: %v: %s", err, out)
		}
	}()
	fill := filepath.Join(dir, "fill")
	_ = os.WriteFile(fill, make([]byte, 64<<10), 0o600)
	log := filepath.Join(dir, "log")
	var errs int
	w := NewWriter(log, Limits{}, func(error) { errs++ })
	line := strings.Repeat("x", 999) + "\n"
	for range 200 { // more than there is room for
		put(w, Stdout, base, line)
	}
	if errs != 1 {
		t.Errorf("told %d times", errs)
	}
	if err := os.Remove(fill); err != nil {
		t.Fatal(err)
	}
	put(w, Stdout, base, "room again\n")
	closeWriter(t, w)
	got := read(t, log, all)
	n := len(got)
	if n < 3 || got[n-1] != "1:201 room again\n" {
		t.Fatalf("%d lines, the last %.80q", n, got[n-1])
	}
	if want := fmt.Sprintf("!%d bytes lost: no space left on device", 1000*(200-(n-2))); got[n-2] != want {
		t.Errorf("notice %.80q, want %q", got[n-2], want)
	}
}

// TestFollow has readers at the heels of a writer, over rotations.
func TestFollow(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "log")
	const lines = 30_000
	done := make(chan struct{})
	var readers sync.WaitGroup
	for range 3 {
		readers.Go(func() {
			r, err := Open(dir, Options{Tail: -1, Follow: true, Done: done})
			if err != nil {
				t.Error(err)
				return
			}
			defer r.Close() //nolint:errcheck // only read
			var want uint64 = 1
			var line []byte
			for {
				rec, err := r.Next(t.Context())
				if errors.Is(err, io.EOF) {
					break
				}
				if err != nil {
					t.Error(err)
					return
				}
				if rec.Notice != "" {
					t.Errorf("notice %q", rec.Notice)
					return
				}
				if line = append(line, rec.Data...); rec.Partial {
					continue
				}
				if rec.Sequence != want || string(line) != fmt.Sprintf("this is line %d\n", want) {
					t.Errorf("line %d: %d %q", want, rec.Sequence, line)
					return
				}
				want++
				line = line[:0]
			}
			if want != lines+1 {
				t.Errorf("%d lines", want-1)
			}
		})
	}
	time.Sleep(20 * time.Millisecond) // some are there before the directory is; it works either way
	w := NewWriter(dir, Limits{MaxBytes: 64 << 10, MaxFiles: 100}, nil)
	var text []byte
	for i := range lines {
		text = fmt.Appendf(text, "this is line %d\n", i+1)
	}
	for rnd := rand.New(rand.NewPCG(1, 2)); len(text) > 0; {
		n := min(len(text), 1+rnd.IntN(3000))
		put(w, Stdout, time.Now(), string(text[:n]))
		text = text[n:]
		if rnd.IntN(50) == 0 {
			time.Sleep(time.Millisecond)
		}
	}
	closeWriter(t, w)
	close(done)
	readers.Wait()
}

// TestFollowShowsPrompts does not wait for the end of a line that may never come.
func TestFollowShowsPrompts(t *testing.T) {
	dir := t.TempDir()
	w := NewWriter(dir, Limits{}, nil)
	defer closeWriter(t, w)
	r, err := Open(dir, Options{Follow: true, Tail: -1})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close() //nolint:errcheck // only read
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for _, step := range []struct{ write, want string }{{"$ ", "1:1+ $ "}, {"ls\n", "1:1 ls\n"}, {"a\n", "1:2 a\n"}} {
		put(w, Stdout, time.Now(), step.write)
		rec, err := r.Next(ctx)
		if err != nil || short(rec) != step.want {
			t.Errorf("got %q %v, want %q", short(rec), err, step.want)
		}
	}
	cancel()
	if _, err := r.Next(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// TestFollowTooSlow loses what was rotated away, and says so.
func TestFollowTooSlow(t *testing.T) {
	dir := t.TempDir()
	w := NewWriter(dir, Limits{MaxBytes: 4096, MaxFiles: 2}, nil)
	put(w, Stdout, base, "first\n")
	done := make(chan struct{})
	r, err := Open(dir, Options{Follow: true, Tail: -1, Done: done})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close() //nolint:errcheck // only read
	if rec, err := r.Next(t.Context()); err != nil || short(rec) != "1:1 first\n" {
		t.Fatalf("%v %v", short(rec), err)
	}
	for i := range 1000 {
		put(w, Stdout, base, fmt.Sprintf("line %d\n", i+2))
	}
	closeWriter(t, w)
	close(done)
	var got []string
	for {
		rec, err := r.Next(t.Context())
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, short(rec))
	}
	notices := slices.DeleteFunc(slices.Clone(got), func(s string) bool { return s[0] != '!' })
	if len(notices) != 1 || !strings.HasSuffix(notices[0], " lines were rotated away before they were read") {
		t.Errorf("notices %q", notices)
	}
	if last := got[len(got)-1]; last != "1:1001 line 1001\n" {
		t.Errorf("last %q", last)
	}
	var n int
	if _, err := fmt.Sscanf(notices[0], "!%d lines", &n); err != nil || n+len(got)-1 != 1000 {
		t.Errorf("%d lost and %d read of 1000", n, len(got)-1)
	}
}

func TestUntilEndsFollow(t *testing.T) {
	dir := t.TempDir()
	w := NewWriter(dir, Limits{}, nil)
	defer closeWriter(t, w)
	put(w, Stdout, time.Now(), "now\n")
	same(t, read(t, dir, Options{Tail: -1, Follow: true, Until: time.Now().Add(50 * time.Millisecond)}), "1:1 now\n")
}

func FuzzReader(f *testing.F) {
	dir := f.TempDir()
	w := NewWriter(dir, Limits{}, nil)
	put(w, Stdout, base, "one\ntw")
	put(w, Stderr, base, "x\n")
	put(w, Stdout, base, "o\n")
	closeWriter(f, w)
	whole, err := os.ReadFile(segmentPath(dir, 1))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(whole, 3, 2)
	f.Add(whole[:50], 0, -1)
	f.Fuzz(func(t *testing.T, raw []byte, at, tail int) {
		dir := t.TempDir()
		if at = min(max(0, at), len(raw)); at > 0 {
			if err := os.WriteFile(segmentPath(dir, 1), raw[:at], 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.WriteFile(segmentPath(dir, 2), raw[at:], 0o600); err != nil {
			t.Fatal(err)
		}
		read(t, dir, Options{Tail: tail})
		w := NewWriter(dir, Limits{}, nil)
		put(w, Stdout, base, "after\n")
		closeWriter(t, w)
		got := read(t, dir, all)
		if !strings.HasSuffix(got[len(got)-1], " after\n") {
			t.Errorf("last %q", got[len(got)-1])
		}
	})
}

// FuzzRoundTrip writes the same bytes in any pieces.
func FuzzRoundTrip(f *testing.F) {
	f.Add([]byte("a\nb\n\nccc"), uint64(3))
	f.Fuzz(func(t *testing.T, p []byte, seed uint64) {
		dir := t.TempDir()
		rnd := rand.New(rand.NewPCG(seed, 0))
		w := NewWriter(dir, Limits{MaxBytes: -1}, nil)
		w.max = 4096
		for rest := p; len(rest) > 0; {
			n := 1 + rnd.IntN(len(rest))
			put(w, Stdout, base, string(rest[:n]))
			rest = rest[n:]
		}
		closeWriter(t, w)
		r, err := Open(dir, all)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close() //nolint:errcheck // only read
		var got []byte
		for line := uint64(1); ; line++ {
			rec, err := r.Next(t.Context())
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil || rec.Notice != "" || rec.Sequence != line && !rec.Partial {
				t.Fatalf("%v %v", rec, err)
			}
			if got = append(got, rec.Data...); rec.Partial {
				line--
			}
		}
		if !bytes.Equal(got, p) {
			t.Errorf("%q came back as %q", p, got)
		}
	})
}

func benchmark(b *testing.B, line int) {
	dir := b.TempDir()
	w := NewWriter(dir, Limits{}, nil)
	src := bytes.Repeat(append(bytes.Repeat([]byte("x"), line-1), '\n'), MaxBlock/line)
	buf := make([]byte, Head+len(src)+Foot)
	b.SetBytes(int64(len(src)))
	for b.Loop() {
		copy(buf[Head:], src)
		w.Write(Stdout, base, buf)
	}
	closeWriter(b, w)
}

func BenchmarkWrite100(b *testing.B) { benchmark(b, 100) }
func BenchmarkWrite2(b *testing.B)   { benchmark(b, 2) }

func BenchmarkRead100(b *testing.B) {
	dir := b.TempDir()
	w := NewWriter(dir, Limits{MaxBytes: -1}, nil)
	src := bytes.Repeat(append(bytes.Repeat([]byte("x"), 99), '\n'), MaxBlock/100)
	buf := make([]byte, Head+len(src)+Foot)
	for range 1000 {
		copy(buf[Head:], src)
		w.Write(Stdout, base, buf)
	}
	closeWriter(b, w)
	b.SetBytes(int64(1000 * len(src)))
	for b.Loop() {
		r, err := Open(dir, all)
		if err != nil {
			b.Fatal(err)
		}
		for err == nil {
			_, err = r.Next(b.Context())
		}
		if !errors.Is(err, io.EOF) {
			b.Fatal(err)
		}
		_ = r.Close()
	}
}
