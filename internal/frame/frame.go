// Package frame is what goes over a shim's io.sock: bytes of a process's streams and the few words
// around them.
//
// A frame is four bytes, then a payload:
//
//	0        1            4
//	┌────────┬────────────┬─ … ─┐
//	│ type   │ length, LE │     │   length ≤ MaxPayload
//	└────────┴────────────┴─ … ─┘
//
// The client speaks first, with a Hello; the shim answers Welcome, or Refused and hangs up. After
// that either side sends what it has. The last frame of the shim is Exit. Whoever reads a type that
// it does not know skips it: a shim is older than the daemon that finds it.
package frame

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"google.golang.org/protobuf/proto"

	typesv1 "github.com/gantryd/gantry/proto/gantry/types/v1"
)

// MaxPayload bounds one frame, in bytes.
const MaxPayload = 32 << 10

// HeaderSize is what a frame takes besides its payload, in bytes.
const HeaderSize = 4

// Type says what a frame holds.
type Type uint8

// What a client sends.
const (
	Hello    Type = 1 // once, first: which process
	Stdin    Type = 2
	StdinEOF Type = 3 // empty
	Resize   Type = 4 // columns, rows: two numbers of two bytes
	Signal   Type = 5 // a name
)

// What a shim sends.
const (
	Welcome Type = 65 // nothing of what follows is missed
	Refused Type = 66 // one byte of class, then a sentence
	Started Type = 67 // pid, four bytes
	Stdout  Type = 68
	Stderr  Type = 69
	Lost    Type = 70 // this many bytes, eight bytes: the reader fell behind
	Exit    Type = 71 // types.v1.Exit; always last
)

// ErrMalformed is that what was read is no frame: both sides were not made for each other, or one
// is not what it says it is.
var ErrMalformed = errors.New("malformed frame")

// Append appends a frame to b. Its payload must not be longer than MaxPayload.
func Append(b []byte, t Type, payload []byte) []byte {
	return append(AppendHeader(b, t, len(payload)), payload...)
}

// AppendHeader appends the header of a frame whose payload of n bytes the caller adds.
func AppendHeader(b []byte, t Type, n int) []byte {
	if n < 0 || n > MaxPayload {
		panic("frame: payload too long")
	}
	return append(b, byte(t), byte(n), byte(n>>8), byte(n>>16))
}

// PutHeader writes the header of a frame to the first HeaderSize bytes of b.
func PutHeader(b []byte, t Type, n int) { AppendHeader(b[:0:HeaderSize], t, n) }

// Reader reads frames. It holds no more than one.
type Reader struct {
	r   io.Reader
	buf []byte
	at  int // of what was read
	end int
}

// NewReader returns a Reader of r.
func NewReader(r io.Reader) *Reader { return &Reader{r: r} }

// Next returns the next frame; its payload is valid until the call after. io.EOF means that the
// other side hung up between two frames, io.ErrUnexpectedEOF within one.
func (r *Reader) Next() (Type, []byte, error) {
	if err := r.fill(HeaderSize); err != nil {
		return 0, nil, err
	}
	h := r.buf[r.at:]
	t, n := Type(h[0]), int(h[1])|int(h[2])<<8|int(h[3])<<16
	if n > MaxPayload {
		return 0, nil, fmt.Errorf("%w: %d bytes", ErrMalformed, n)
	}
	if err := r.fill(HeaderSize + n); err != nil {
		return 0, nil, noEOF(err)
	}
	p := r.buf[r.at+HeaderSize : r.at+HeaderSize+n]
	r.at += HeaderSize + n
	return t, p, nil
}

// fill makes sure that n bytes are there.
func (r *Reader) fill(n int) error {
	if r.end-r.at >= n {
		return nil
	}
	if r.at+n > len(r.buf) {
		// Most connections are quiet, and carry keys: a full frame's room is made when one comes.
		size := max(512, n)
		if n > 512 {
			size = HeaderSize + MaxPayload
		}
		to := r.buf
		if size > len(r.buf) {
			to = make([]byte, size)
		}
		r.end = copy(to, r.buf[r.at:r.end])
		r.buf, r.at = to, 0
	}
	got, err := io.ReadAtLeast(r.r, r.buf[r.end:], n-(r.end-r.at))
	r.end += got
	if err != nil && r.end > r.at {
		return noEOF(err)
	}
	return err
}

func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// Greeting is what a client says first.
type Greeting struct {
	Process string // "" is init
	Replay  bool   // what is still remembered comes first
	NoStdin bool   // the client only watches: that it leaves ends nothing
	Whole   bool   // nothing may be lost: the process waits for this client, for as long as it is there
}

const (
	flagReplay  = 1
	flagNoStdin = 2
	flagWhole   = 4
)

// maxName bounds the name of a process.
const maxName = 256

// Marshal is the payload of a Hello.
func (g Greeting) Marshal() []byte {
	b := make([]byte, 1, 1+len(g.Process))
	if g.Replay {
		b[0] |= flagReplay
	}
	if g.NoStdin {
		b[0] |= flagNoStdin
	}
	if g.Whole {
		b[0] |= flagWhole
	}
	return append(b, g.Process...)
}

// ParseGreeting reads the payload of a Hello. Flags that it does not know it ignores.
func ParseGreeting(b []byte) (Greeting, error) {
	if len(b) == 0 || len(b) > 1+maxName {
		return Greeting{}, fmt.Errorf("%w: hello of %d bytes", ErrMalformed, len(b))
	}
	return Greeting{Process: string(b[1:]), Replay: b[0]&flagReplay != 0, NoStdin: b[0]&flagNoStdin != 0, Whole: b[0]&flagWhole != 0}, nil
}

// AppendSize appends a Resize.
func AppendSize(b []byte, columns, rows uint16) []byte {
	b = AppendHeader(b, Resize, 4)
	return binary.LittleEndian.AppendUint16(binary.LittleEndian.AppendUint16(b, columns), rows)
}

// ParseSize reads the payload of a Resize.
func ParseSize(b []byte) (columns, rows uint16, err error) {
	if len(b) != 4 {
		return 0, 0, fmt.Errorf("%w: resize of %d bytes", ErrMalformed, len(b))
	}
	return binary.LittleEndian.Uint16(b), binary.LittleEndian.Uint16(b[2:]), nil
}

// AppendStarted appends a Started.
func AppendStarted(b []byte, pid uint32) []byte {
	return binary.LittleEndian.AppendUint32(AppendHeader(b, Started, 4), pid)
}

// ParseStarted reads the payload of a Started.
func ParseStarted(b []byte) (pid uint32, err error) {
	if len(b) != 4 {
		return 0, fmt.Errorf("%w: started of %d bytes", ErrMalformed, len(b))
	}
	return binary.LittleEndian.Uint32(b), nil
}

// AppendLost appends a Lost.
func AppendLost(b []byte, n uint64) []byte {
	return binary.LittleEndian.AppendUint64(AppendHeader(b, Lost, 8), n)
}

// ParseLost reads the payload of a Lost.
func ParseLost(b []byte) (n uint64, err error) {
	if len(b) != 8 {
		return 0, fmt.Errorf("%w: lost of %d bytes", ErrMalformed, len(b))
	}
	return binary.LittleEndian.Uint64(b), nil
}

// AppendExit appends an Exit.
func AppendExit(b []byte, x *typesv1.Exit) ([]byte, error) {
	p, err := proto.Marshal(x)
	if err != nil {
		return b, fmt.Errorf("exit: %w", err)
	}
	return Append(b, Exit, p), nil
}

// ParseExit reads the payload of an Exit.
func ParseExit(b []byte) (*typesv1.Exit, error) {
	x := &typesv1.Exit{}
	if err := proto.Unmarshal(b, x); err != nil {
		return nil, fmt.Errorf("%w: exit: %w", ErrMalformed, err)
	}
	return x, nil
}

// AppendRefused appends a Refused. class is a number that both sides know: a gRPC status code.
func AppendRefused(b []byte, class uint8, sentence string) []byte {
	sentence = sentence[:min(len(sentence), 1024)]
	return append(append(AppendHeader(b, Refused, 1+len(sentence)), class), sentence...)
}

// ParseRefused reads the payload of a Refused.
func ParseRefused(b []byte) (class uint8, sentence string, err error) {
	if len(b) == 0 {
		return 0, "", fmt.Errorf("%w: empty refusal", ErrMalformed)
	}
	return b[0], string(b[1:]), nil
}
