package logfile

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"
)

// MaxLine bounds the data of one Record, in bytes. A longer line comes in pieces.
const MaxLine = 64 << 10

// Options say what to read.
type Options struct {
	From     uint64    // the number of the first line; 0: whatever is there
	Tail     int       // this many lines from the end, and what follows; negative: all. With From it is not looked at
	Since    time.Time // zero: whatever is there
	Until    time.Time // zero: no end
	NoStdout bool
	NoStderr bool
	Follow   bool            // wait for more at the end
	Done     <-chan struct{} // once closed, Follow ends when everything that is there is read; nil: it goes on
}

// Record is one line, or a piece of a long one, or a notice.
type Record struct {
	At       time.Time
	Stream   Stream
	Data     []byte // with its newline, if it had one; valid until the next call
	Partial  bool   // more of the same line may follow
	Sequence uint64 // the number of the line; its pieces share it. A gap is a loss, or the other stream
	Notice   string // instead of data: what a reader should know
}

// Reader reads a log, while it is written or after. It is for one goroutine at a time.
type Reader struct {
	dir string
	o   Options

	seg     uint64 // the open one, or the last that was
	sc      *scanner
	expect  uint64 // the number of the next line; 0: not known
	begun   bool   // a segment was open
	started bool   // notices about the beginning are said

	skip  int     // lines to leave out: Tail
	shown [4]bool // the line that the stream is in the middle of is wanted
	gone  uint64  // lines below this number began in what was rotated away; 0: none did
	torn  [4]bool // it is decided what to do with the one that goes on

	queue []Record // what is to be returned, from head
	head  int
	held  [4]held // the beginnings of lines whose end is in another block
	short int     // how often in a row the end was not a block's end
	over  bool

	watch *watch
}

// held is the beginning of a line.
type held struct {
	data []byte
	at   time.Time
	seq  uint64
}

// Open opens the log in dir. It need not be there yet.
func Open(dir string, o Options) (*Reader, error) {
	r := &Reader{dir: dir, o: o, shown: [4]bool{true, true, true, true}}
	if err := r.start(); err != nil {
		return nil, errors.Join(err, r.Close())
	}
	return r, nil
}

// Close ends reading.
func (r *Reader) Close() error {
	var err error
	if r.watch != nil {
		err = r.watch.close()
		r.watch = nil
	}
	return errors.Join(err, r.leave())
}

func (r *Reader) leave() error {
	if r.sc == nil {
		return nil
	}
	err := r.sc.f.Close()
	r.sc = nil
	return err
}

// Next returns the next record. io.EOF is the end: of what is there, or with Follow, once Done is
// closed or Until is over.
func (r *Reader) Next(ctx context.Context) (Record, error) {
	for {
		if r.head < len(r.queue) {
			r.head++
			return r.queue[r.head-1], nil
		}
		if r.over {
			return Record{}, io.EOF
		}
		r.queue, r.head = r.queue[:0], 0
		if err := r.more(ctx); err != nil {
			return Record{}, err
		}
	}
}

// more reads until there is something to return, or nothing will be.
func (r *Reader) more(ctx context.Context) error {
	if r.sc == nil {
		ok, err := r.advance()
		if err != nil {
			return err
		}
		if !ok {
			return r.atEnd(ctx)
		}
	}
	b, p, err := r.sc.next()
	if errors.Is(err, errShort) {
		return r.endOfSegment(ctx)
	}
	if err != nil {
		return fmt.Errorf("log: %w", err)
	}
	r.short = 0
	r.confess()
	r.take(b, p)
	return nil
}

// confess says what was skipped.
func (r *Reader) confess() {
	if r.sc.torn > 0 {
		r.say(fmt.Sprintf("%d torn bytes skipped", r.sc.torn))
		r.sc.torn = 0
	}
}

func (r *Reader) say(text string) { r.queue = append(r.queue, Record{Notice: text}) }

// take makes records of a block.
func (r *Reader) take(b block, p []byte) {
	at := time.Unix(0, b.time)
	if !r.o.Until.IsZero() && at.After(r.o.Until) {
		r.flush(false)
		r.over = true
		return
	}
	if r.expect != 0 && b.next > r.expect && r.sc.off == segHeader+int64(b.total()) {
		r.say(fmt.Sprintf("%d lines were rotated away before they were read", b.next-r.expect))
	}
	if b.stream == notice {
		if r.expect = b.next; !at.Before(r.o.Since) {
			r.queue = append(r.queue, Record{At: at, Notice: string(p)})
		}
		return
	}
	r.expect = b.next + uint64(b.begun)
	if b.stream > Stderr || b.stream == Stdout && r.o.NoStdout || b.stream == Stderr && r.o.NoStderr {
		return
	}
	r.split(b, at, p)
}

// split makes a record of each line, but keeps the last if it is not complete.
func (r *Reader) split(b block, at time.Time, p []byte) {
	h := &r.held[b.stream]
	seq, next := b.next, b.next+1
	if b.continues() {
		seq, next = b.next-uint64(b.back), b.next
		r.decapitated(b, seq, at)
	} else {
		r.release(b.stream, false) // its line went on nowhere
	}
	for first := true; len(p) > 0; first = false {
		line, rest, whole := bytes.Cut(p, []byte{'\n'})
		if whole {
			line = p[:len(line)+1]
		}
		if !first || !b.continues() {
			r.shown[b.stream] = r.wanted(seq, at)
		}
		switch {
		case !r.shown[b.stream] || r.skipped(at):
		case len(h.data) > 0 && h.seq != seq:
			r.release(b.stream, false)
			fallthrough
		default:
			r.emit(b.stream, Record{At: at, Stream: b.stream, Data: line, Partial: !whole, Sequence: seq})
		}
		p, seq = rest, next
		next++
	}
}

// decapitated decides about a line that goes on and whose beginning was rotated away: it was rotated away as well. One
// that fills more than a segment is shown nevertheless, and said to be what it is: there might be nothing else.
func (r *Reader) decapitated(b block, seq uint64, at time.Time) {
	if seq >= r.gone || r.torn[b.stream] {
		return
	}
	r.torn[b.stream] = true
	r.shown[b.stream] = !r.skipped(at) && !r.closes(b)
	if r.shown[b.stream] {
		r.say("the line that follows is longer than a segment of the log, and its beginning was rotated away")
	}
}

// closes reports whether the line that b continues ends in the open segment.
func (r *Reader) closes(b block) bool {
	sc := scanner{f: r.sc.f, off: r.sc.off}
	for s := b.stream; ; {
		if b.stream == s && (!b.continues() || b.begun > 0 || b.flags&flagOpen == 0) {
			return true
		}
		var err error
		if b, _, err = sc.next(); err != nil {
			return false // it is the reading on that meets the error, and says so
		}
	}
}

// wanted reports whether the line that begins is.
func (r *Reader) wanted(seq uint64, at time.Time) bool {
	if r.skipped(at) || seq < r.o.From {
		return false
	}
	if r.skip > 0 {
		r.skip--
		return false
	}
	return true
}

func (r *Reader) skipped(at time.Time) bool { return at.Before(r.o.Since) }

// emit returns a record, joined with what is held of its line; or holds it.
func (r *Reader) emit(s Stream, rec Record) {
	h := &r.held[s]
	for len(h.data)+len(rec.Data) > MaxLine { // in pieces
		n := MaxLine - len(h.data)
		piece := rec
		piece.Data, piece.Partial, rec.Data = rec.Data[:n], true, rec.Data[n:]
		if len(h.data) > 0 {
			h.data = append(h.data, piece.Data...)
			piece.Data, piece.At = bytes.Clone(h.data), h.at
			h.data = h.data[:0]
		}
		r.queue = append(r.queue, piece)
	}
	switch {
	case len(rec.Data) == 0:
	case rec.Partial:
		if len(h.data) == 0 {
			h.at, h.seq = rec.At, rec.Sequence
		}
		h.data = append(h.data, rec.Data...)
	case len(h.data) > 0:
		h.data = append(h.data, rec.Data...)
		rec.Data, rec.At = bytes.Clone(h.data), h.at
		h.data = h.data[:0]
		r.queue = append(r.queue, rec)
	default:
		r.queue = append(r.queue, rec)
	}
}

// release returns what is held of a stream's line.
func (r *Reader) release(s Stream, partial bool) {
	if h := &r.held[s]; len(h.data) > 0 {
		r.queue = append(r.queue, Record{At: h.at, Stream: s, Data: bytes.Clone(h.data), Partial: partial, Sequence: h.seq})
		h.data = h.data[:0]
	}
}

func (r *Reader) flush(partial bool) {
	r.release(Stdout, partial)
	r.release(Stderr, partial)
}

// endOfSegment goes on to the next segment if there is one.
func (r *Reader) endOfSegment(ctx context.Context) error {
	newer, err := r.newer()
	if err != nil {
		return err
	}
	rest, err := r.sc.rest()
	if err != nil {
		return fmt.Errorf("log: %w", err)
	}
	if len(newer) == 0 {
		if rest > 0 && r.short == 0 && !r.o.Follow { // somebody may be writing it just now
			r.short++
			return pause(ctx, 20*time.Millisecond)
		}
		return r.atEnd(ctx)
	}
	// The writer is elsewhere by now: what it wrote here before it went is here.
	if r.short == 0 {
		r.short++
		return nil
	}
	r.short = 0
	r.sc.torn += rest
	r.confess()
	_, err = r.advance()
	return err
}

// newer lists the segments after the open one.
func (r *Reader) newer() ([]uint64, error) {
	segs, err := segments(r.dir)
	if err != nil {
		return nil, err
	}
	for i, n := range segs {
		if n > r.seg {
			return segs[i:], nil
		}
	}
	return nil, nil
}

// advance opens the next segment. One that is removed meanwhile is one that was rotated away.
func (r *Reader) advance() (bool, error) {
	newer, err := r.newer()
	if err != nil {
		return false, err
	}
	for _, n := range newer {
		f, err := os.Open(segmentPath(r.dir, n))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return false, fmt.Errorf("log: %w", err)
		}
		return true, r.enter(f, n)
	}
	return false, nil
}

// enter begins to read a segment.
func (r *Reader) enter(f *os.File, n uint64) error {
	if err := r.leave(); err != nil {
		return errors.Join(err, f.Close())
	}
	first, ok, err := header(f)
	r.seg, r.sc = n, &scanner{f: f, off: segHeader}
	if err != nil {
		return fmt.Errorf("log: %w", err)
	}
	if !ok {
		r.sc.off = 0 // whatever it is, blocks are told by themselves
	}
	if !r.begun && ok && first > max(1, r.o.From) && !r.started {
		r.say("older lines were rotated away")
		r.gone = first
	}
	r.begun, r.started = true, true
	return nil
}

func header(f *os.File) (first uint64, ok bool, err error) {
	b := make([]byte, segHeader)
	if _, err := f.ReadAt(b, 0); err != nil && !errors.Is(err, io.EOF) {
		return 0, false, err
	}
	first, ok = parseSegment(b)
	return first, ok, nil
}

// atEnd is at the end of what is there.
func (r *Reader) atEnd(ctx context.Context) error {
	if r.o.Follow {
		r.flush(true)
		if len(r.queue) > 0 {
			return nil
		}
		again, err := r.wait(ctx)
		if again || err != nil {
			return err
		}
	}
	r.flush(false)
	if r.sc != nil {
		rest, err := r.sc.rest()
		if err != nil {
			return fmt.Errorf("log: %w", err)
		}
		r.sc.torn += rest
		r.confess()
	}
	r.over = true
	return nil
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
