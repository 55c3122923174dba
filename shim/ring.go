package main

import (
	"encoding/binary"

	"github.com/gantryd/gantry/internal/frame"
)

const (
	ringPerStream = 256 << 10
	ringFirst     = 512
	entryHead     = 4
)

// ring remembers the last of what a process wrote, in the order in which it was read: entries of
// a frame's type and payload. It grows to its bound as it is needed.
type ring struct {
	buf     []byte
	max     int
	head    uint64 // where the next entry goes; positions only grow
	tail    uint64 // the oldest entry
	written uint64 // bytes of output before head
	dropped uint64 // bytes of output before tail
}

// cursor is a reader's place in a ring.
type cursor struct {
	pos  uint64
	seen uint64 // bytes of output before pos
}

func (r *ring) end() cursor   { return cursor{r.head, r.written} }
func (r *ring) begin() cursor { return cursor{r.tail, r.dropped} }

// add appends p, in as many entries as it takes.
func (r *ring) add(t frame.Type, p []byte) {
	for len(p) > 0 {
		n := min(len(p), frame.MaxPayload)
		r.entry(t, p[:n])
		p = p[n:]
	}
}

func (r *ring) entry(t frame.Type, p []byte) {
	need := entryHead + len(p)
	for r.used()+need > len(r.buf) {
		if len(r.buf) < r.max {
			r.grow(r.used() + need)
		} else {
			r.drop()
		}
	}
	var h [entryHead]byte
	binary.LittleEndian.PutUint32(h[:], uint32(t)<<24|uint32(len(p))) //nolint:gosec // at most MaxPayload
	r.put(r.head, h[:])
	r.put(r.head+entryHead, p)
	r.head += uint64(need) //nolint:gosec // a length
	if output(t) {
		r.written += uint64(len(p))
	}
}

func output(t frame.Type) bool { return t == frame.Stdout || t == frame.Stderr }

func (r *ring) used() int { return int(r.head - r.tail) } //nolint:gosec // at most max

// drop forgets the oldest entry.
func (r *ring) drop() {
	t, n := r.at(r.tail)
	r.tail += uint64(entryHead + n) //nolint:gosec // a length
	if output(t) {
		r.dropped += uint64(n) //nolint:gosec // a length
	}
}

func (r *ring) grow(need int) {
	size := max(ringFirst, len(r.buf))
	for size < need && size < r.max {
		size *= 2
	}
	if size == len(r.buf) {
		size *= 2
	}
	size = min(size, r.max)
	old := *r
	r.buf = make([]byte, size)
	for pos := r.tail; pos < r.head; {
		from := old.buf[pos%uint64(len(old.buf)):]
		n := min(uint64(len(from)), r.head-pos)
		r.put(pos, from[:n])
		pos += n
	}
}

// put copies p to a position, around the end.
func (r *ring) put(pos uint64, p []byte) {
	i := int(pos % uint64(len(r.buf))) //nolint:gosec // less than len
	n := copy(r.buf[i:], p)
	copy(r.buf, p[n:])
}

// get copies from a position, around the end.
func (r *ring) get(pos uint64, p []byte) {
	i := int(pos % uint64(len(r.buf))) //nolint:gosec // less than len
	n := copy(p, r.buf[i:])
	copy(p[n:], r.buf)
}

func (r *ring) at(pos uint64) (frame.Type, int) {
	var h [entryHead]byte
	r.get(pos, h[:])
	v := binary.LittleEndian.Uint32(h[:])
	return frame.Type(v >> 24), int(v & 0xffffff)
}

// read appends what a reader has not seen to b, as frames, as much as fits into it. Entries of one
// stream that follow each other become one frame. Bytes that the reader was too slow for are
// reported.
func (r *ring) read(c *cursor, b []byte) []byte {
	if c.pos < r.tail {
		if lost := r.dropped - c.seen; lost > 0 {
			b = frame.AppendLost(b, lost)
		}
		*c = r.begin()
	}
	for c.pos < r.head {
		t, n := r.at(c.pos)
		if len(b)+frame.HeaderSize+n > cap(b) {
			return b
		}
		start := len(b)
		b = b[:start+frame.HeaderSize]
		total := 0
		for c.pos < r.head {
			u, n := r.at(c.pos)
			if u != t || total > 0 && (!output(t) || total+n > frame.MaxPayload || len(b)+n > cap(b)) {
				break
			}
			b = b[:len(b)+n]
			r.get(c.pos+entryHead, b[len(b)-n:])
			c.pos += uint64(entryHead + n) //nolint:gosec // a length
			total += n
		}
		if output(t) {
			c.seen += uint64(total) //nolint:gosec // a length
		}
		frame.PutHeader(b[start:], t, total)
	}
	return b
}
