package logfile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"
)

// start finds out where to begin.
func (r *Reader) start() error {
	segs, err := segments(r.dir)
	if err != nil || len(segs) == 0 {
		return err
	}
	switch {
	case r.o.From > 0:
		return r.startAt(segs, func(f *os.File) (bool, error) {
			first, ok, err := header(f)
			return ok && first <= r.o.From, err
		})
	case r.o.Tail >= 0:
		return r.startTail(segs)
	case !r.o.Since.IsZero():
		return r.startAt(segs, func(f *os.File) (bool, error) {
			sc := scanner{f: f, off: segHeader}
			b, _, err := sc.next()
			if errors.Is(err, errShort) {
				return false, nil
			}
			return time.Unix(0, b.time).Before(r.o.Since), err
		})
	}
	return nil
}

// startAt begins with the last segment that begins early enough, or the first.
func (r *Reader) startAt(segs []uint64, early func(*os.File) (bool, error)) error {
	for i := len(segs) - 1; i > 0; i-- {
		f, err := os.Open(segmentPath(r.dir, segs[i]))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("log: %w", err)
		}
		ok, err := early(f)
		if err != nil {
			return errors.Join(fmt.Errorf("log: %w", err), f.Close())
		}
		if ok {
			r.started = true
			r.shown = [4]bool{} // lines that began before are not wanted either
			return r.enter(f, segs[i])
		}
		if err := f.Close(); err != nil {
			return err
		}
	}
	return nil
}

// startTail goes back from the end until it has seen as many lines as are wanted.
func (r *Reader) startTail(segs []uint64) error {
	want := uint64(r.o.Tail) //nolint:gosec // not negative
	r.shown = [4]bool{}      // lines that began before are not among them
	var have uint64
	for i := len(segs) - 1; i >= 0; i-- {
		f, err := os.Open(segmentPath(r.dir, segs[i]))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("log: %w", err)
		}
		off, n, err := r.back(f, want-have)
		if err != nil {
			return errors.Join(fmt.Errorf("log: %w", err), f.Close())
		}
		if have += n; have >= want {
			r.started = true
			r.skip = int(have - want) //nolint:gosec // less than a block has
			if err := r.enter(f, segs[i]); err != nil {
				return err
			}
			r.sc.off = off
			return nil
		}
		if err := f.Close(); err != nil {
			return err
		}
	}
	r.shown = [4]bool{true, true, true, true}
	return nil // fewer than wanted: all
}

// counts is how many lines of a block are wanted.
func (r *Reader) counts(b block) uint64 {
	at := time.Unix(0, b.time)
	switch {
	case b.stream == Stdout && r.o.NoStdout, b.stream == Stderr && r.o.NoStderr, b.stream > Stderr,
		at.Before(r.o.Since), !r.o.Until.IsZero() && at.After(r.o.Until):
		return 0
	}
	return uint64(b.begun)
}

// back goes backwards through a segment until it has want lines. It returns where that is, and how
// many lines there are from there on.
func (r *Reader) back(f *os.File, want uint64) (off int64, have uint64, err error) {
	st, err := f.Stat()
	if err != nil {
		return 0, 0, err
	}
	off = st.Size()
	if want == 0 {
		// Not in the middle of what is just being written.
		if _, ok, err := before(f, off); ok || err != nil {
			return off, 0, err
		}
	}
	for off > segHeader {
		b, ok, err := before(f, off)
		if err != nil {
			return 0, 0, err
		}
		if !ok {
			return r.forth(f, off, want, have)
		}
		off -= int64(b.total())
		if have += r.counts(b); have >= want {
			return off, have, nil
		}
	}
	return segHeader, have, nil
}

// forth does the same where the way back is torn: it reads everything up to end.
func (r *Reader) forth(f *os.File, end int64, want, have uint64) (int64, uint64, error) {
	type mark struct {
		off   int64
		lines uint64
	}
	var marks []mark
	sc := scanner{f: f, off: segHeader}
	last := int64(segHeader)
	for {
		b, _, err := sc.next()
		if errors.Is(err, errShort) || err == nil && sc.off > end {
			break
		}
		if err != nil {
			return 0, 0, err
		}
		last = sc.off
		marks = append(marks, mark{sc.off - int64(b.total()), r.counts(b)})
	}
	if want == 0 {
		return last, 0, nil
	}
	for i := len(marks) - 1; i >= 0; i-- {
		if have += marks[i].lines; have >= want {
			return marks[i].off, have, nil
		}
	}
	return segHeader, have, nil
}
