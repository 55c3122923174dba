package logfile

import (
	"errors"
	"io"
	"os"
)

// scanner reads the blocks of one segment, which may be growing.
type scanner struct {
	f       *os.File
	off     int64 // of the next block
	torn    int64 // bytes skipped before it, since the last block
	buf     []byte
	at, end int // what is buffered, from off
}

const scanBuffer = 256 << 10

// next returns the next block and its payload, valid until the call after. errShort: there is none
// yet. Bytes that are no block are skipped and counted.
func (s *scanner) next() (block, []byte, error) {
	for fresh := false; ; {
		b, err := parse(s.buf[s.at:s.end])
		switch {
		case err == nil:
			p := s.buf[s.at+blockHead : s.at+blockHead+b.length]
			s.skip(b.total())
			return b, p, nil
		case errors.Is(err, errTorn):
			n := max(1, resync(s.buf[s.at+1:s.end])+1)
			s.skip(n)
			s.torn += int64(n)
		case fresh:
			return block{}, nil, errShort
		default:
			n, err := s.fill()
			if err != nil {
				return block{}, nil, err
			}
			// What is not all there is read again from the start next time: a writer that could
			// not write all of it writes something else over it.
			fresh = n == 0
			if fresh {
				s.at, s.end = 0, 0
			}
		}
	}
}

func (s *scanner) skip(n int) {
	s.at += n
	s.off += int64(n)
}

// fill reads on. It returns how many bytes more there are than before.
func (s *scanner) fill() (int, error) {
	if s.buf == nil {
		s.buf = make([]byte, scanBuffer)
	}
	had := s.end - s.at
	n, err := s.f.ReadAt(s.buf, s.off)
	if err != nil && !errors.Is(err, io.EOF) {
		return 0, err
	}
	s.at, s.end = 0, n
	return n - had, nil
}

// rest is how many bytes there are that are no block, yet.
func (s *scanner) rest() (int64, error) {
	st, err := s.f.Stat()
	if err != nil {
		return 0, err
	}
	return max(0, st.Size()-s.off), nil
}
