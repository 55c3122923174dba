package logfile

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"
	"time"
)

// Defaults of Limits.
const (
	DefaultMaxBytes = 10 << 20
	DefaultMaxFiles = 3
)

const (
	minBytes  = 4 << 10   // of a segment: below this the bound would be mostly headers
	bigBytes  = 256 << 20 // of a segment where everything is kept: tails are found from the end, times by segment
	minPiece  = 512       // a block is not cut into less to fill a segment
	noticeMax = 512
)

// Limits bound a log.
type Limits struct {
	MaxBytes int64 // of one segment; 0: DefaultMaxBytes; negative: everything is kept
	MaxFiles int   // 0: DefaultMaxFiles
}

// Head and Foot are the room that a Writer needs before and after the bytes that it is given.
const (
	Head = blockHead
	Foot = blockFoot
)

// Writer writes a log. It never fails: what cannot be written is counted, and said in the log when
// that can be written again. It is for one goroutine at a time.
type Writer struct {
	dir  string
	max  int64
	keep int // segments; 0: all

	resumed bool
	f       *os.File // nil: none
	seg     uint64
	size    int64
	next    uint64    // number of the next line
	open    [4]uint64 // the number of the line that a stream is in the middle of, or 0

	lost    uint64 // bytes since the last notice
	why     error
	onError func(error)
	failing bool

	sweep sync.WaitGroup
}

// NewWriter returns a Writer to the log in dir, which it makes, or continues, at its first write.
// onError, if not nil, is told the first error of each row of them.
func NewWriter(dir string, l Limits, onError func(error)) *Writer {
	w := &Writer{dir: dir, max: l.MaxBytes, keep: l.MaxFiles, next: 1, onError: onError}
	switch {
	case w.max < 0:
		w.max, w.keep = bigBytes, 0
	case w.max == 0:
		w.max = DefaultMaxBytes
	}
	if l.MaxBytes >= 0 && w.keep <= 0 {
		w.keep = DefaultMaxFiles
	}
	w.max = max(w.max, minBytes)
	return w
}

// Write writes the bytes in buf between the first Head and the last Foot, which it overwrites: at
// most MaxBlock, one write(2) unless they come to the end of a segment.
func (w *Writer) Write(s Stream, at time.Time, buf []byte) {
	from, end := Head, len(buf)-Foot
	for from < end {
		n := end - from
		if room := int(w.max-w.size) - overhead; n > room && w.f != nil && room >= minPiece {
			n = room
		} else if most := int(w.max) - segHeader - overhead; n > most {
			n = most
		}
		piece := buf[from-Head : from+n+Foot]
		var save [Foot]byte
		copy(save[:], piece[Head+n:]) // what follows may be the next piece
		w.write(s, at, piece)
		copy(piece[Head+n:], save[:])
		from += n
	}
}

// End says that the process has ended: what it writes next begins a line.
func (w *Writer) End() { w.open = [4]uint64{} }

// write writes one block.
func (w *Writer) write(s Stream, at time.Time, buf []byte) {
	n := len(buf) - Head - Foot
	err := w.resume()
	first := w.next
	b := w.number(s, at, buf[Head:Head+n])
	b.put(buf)
	if w.lost > 0 { // both or neither: a notice alone would find room on a full disk, and be wrong
		buf = append(w.confession(at, first), buf...)
	}
	if err == nil {
		err = w.ready(len(buf), first)
	}
	if err == nil {
		err = w.append(buf)
	}
	if err != nil {
		w.fail(n, err)
		return
	}
	w.lost, w.why, w.failing = 0, nil, false
}

// number numbers the lines of p, whether they get written or not: a gap is a loss.
func (w *Writer) number(s Stream, at time.Time, p []byte) block {
	b := block{length: len(p), next: w.next, time: at.UnixNano(), stream: s}
	pieces := bytes.Count(p, []byte{'\n'})
	closed := p[len(p)-1] == '\n'
	if !closed {
		pieces++
		b.flags |= flagOpen
	}
	line := w.open[s]
	if line != 0 {
		b.flags |= flagContinues
		b.back = uint32(min(b.next-line, 1<<32-1)) //nolint:gosec // bounded
		pieces--
	}
	b.begun = uint32(pieces) //nolint:gosec // at most MaxBlock
	w.next += uint64(pieces) //nolint:gosec // not negative: p is not empty
	switch {
	case closed:
		w.open[s] = 0
	case pieces > 0:
		w.open[s] = w.next - 1
	}
	return b
}

// confession is a notice of how much could not be written.
func (w *Writer) confession(at time.Time, next uint64) []byte {
	text := fmt.Sprintf("%d bytes lost: %v", w.lost, w.why)
	text = text[:min(len(text), noticeMax)]
	buf := make([]byte, Head+len(text)+Foot)
	copy(buf[Head:], text)
	b := block{length: len(text), next: next, time: at.UnixNano(), stream: notice}
	b.put(buf)
	return buf
}

func (w *Writer) fail(n int, err error) {
	w.lost += uint64(n) //nolint:gosec // a length
	if pe := (*os.PathError)(nil); errors.As(err, &pe) {
		err = pe.Err
	}
	w.why = err
	if !w.failing && w.onError != nil {
		w.onError(err)
	}
	w.failing = true
}

// append writes a block at the end of the segment. One that does not get there whole is overwritten
// by the next.
func (w *Writer) append(buf []byte) error {
	if _, err := w.f.WriteAt(buf, w.size); err != nil {
		_ = w.f.Truncate(w.size) // if it cannot be cut off either, readers skip it
		return err
	}
	w.size += int64(len(buf))
	return nil
}

// ready makes sure that there is a segment with room for n bytes, the first of which belong to the
// line called first, or to one before.
func (w *Writer) ready(n int, first uint64) error {
	if w.f != nil && (w.size+int64(n) <= w.max || w.size <= segHeader) {
		return nil
	}
	return w.rotate(first)
}

// rotate begins a segment. The oldest goes, off this path: dropping its pages takes a while.
func (w *Writer) rotate(first uint64) error {
	f, err := os.OpenFile(segmentPath(w.dir, w.seg+1), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) { // one that could not be begun, nor removed
		w.seg++
	}
	if err != nil {
		return err
	}
	if _, err := f.Write(putSegment(first)); err != nil {
		return errors.Join(err, os.Remove(f.Name()), f.Close())
	}
	old := w.f
	w.f, w.size = f, segHeader
	w.seg++
	w.sweep.Wait()
	keep, seg := w.keep, w.seg
	w.sweep.Go(func() {
		if old != nil {
			_ = old.Close()
		}
		if keep > 0 {
			w.drop(seg - min(seg, uint64(keep)))
		}
	})
	return nil
}

// drop removes every segment up to last. What cannot be removed now goes with the next.
func (w *Writer) drop(last uint64) {
	segs, err := segments(w.dir)
	if err != nil {
		return
	}
	for _, n := range segs {
		if n <= last {
			_ = os.Remove(segmentPath(w.dir, n))
		}
	}
}

// resume opens the last segment, where an earlier run left it. What could not be written before
// that was numbered from 1.
func (w *Writer) resume() error {
	if w.resumed {
		return nil
	}
	if err := os.MkdirAll(w.dir, 0o700); err != nil {
		return err
	}
	segs, err := segments(w.dir)
	if err != nil {
		return err
	}
	for i := len(segs) - 1; i >= 0; i-- {
		w.seg = max(w.seg, segs[i])
		f, err := os.OpenFile(segmentPath(w.dir, segs[i]), os.O_RDWR, 0)
		if err != nil {
			return err
		}
		size, next, ok, err := ends(f)
		if ok {
			w.next += next - 1
		}
		if ok && i == len(segs)-1 {
			w.f, w.size, w.resumed = f, size, true
			return nil
		}
		if cerr := f.Close(); err != nil || cerr != nil {
			return errors.Join(err, cerr)
		}
		if ok {
			break
		}
	}
	w.resumed = true
	return nil // a new one: rotate
}

// ends returns where a segment ends and the number of the next line; not ok: it is none.
func ends(f *os.File) (size int64, next uint64, ok bool, err error) {
	st, err := f.Stat()
	if err != nil {
		return 0, 0, false, err
	}
	head := make([]byte, segHeader)
	if _, err := f.ReadAt(head, 0); err != nil {
		if errors.Is(err, io.EOF) {
			err = nil
		}
		return 0, 0, false, err
	}
	if next, ok = parseSegment(head); !ok {
		return 0, 0, false, nil
	}
	size = st.Size()
	if b, ok, err := before(f, size); err != nil {
		return 0, 0, false, err
	} else if ok {
		return size, b.next + uint64(b.begun), true, nil
	}
	sc := scanner{f: f, off: segHeader}
	for {
		b, _, err := sc.next()
		if errors.Is(err, errShort) {
			return size, next, true, nil
		}
		if err != nil {
			return 0, 0, false, err
		}
		next = b.next + uint64(b.begun)
	}
}

// before returns the block that ends at off, if it is whole.
func before(f *os.File, off int64) (b block, ok bool, err error) {
	var foot [blockFoot]byte
	if off < segHeader+overhead {
		return b, false, nil
	}
	if _, err := f.ReadAt(foot[:], off-blockFoot); err != nil {
		return b, false, err
	}
	n := int64(binary.LittleEndian.Uint32(foot[:]))
	if n < overhead || n > MaxBlock+overhead || n > off-segHeader {
		return b, false, nil
	}
	buf := make([]byte, n)
	if _, err := f.ReadAt(buf, off-n); err != nil {
		return b, false, err
	}
	b, perr := parse(buf)
	return b, perr == nil && int64(b.total()) == n, nil
}

// Close closes the log.
func (w *Writer) Close() error {
	w.sweep.Wait()
	if w.f == nil {
		return nil
	}
	if buf := w.confession(time.Now(), w.next); w.lost > 0 && w.ready(len(buf), w.next) == nil && w.append(buf) == nil {
		w.lost = 0
	}
	err := w.f.Close()
	w.f, w.resumed, w.next = nil, false, 1
	return err
}
