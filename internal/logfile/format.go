// Package logfile keeps what a container writes: in segments, bounded, checksummed, readable while
// it is written.
//
// A log is a directory of segments, "00000001.log" and so on; the number of segments and the bytes
// in one are bounded, and the oldest goes when a new one begins. A segment is a header and blocks;
// a block is what one read of the process's pipe got, however many lines that is, so that writing
// costs the same for long lines and short ones. Readers make records of it again: one a line.
//
//	segment  magic 8 │ first line 8 │ 0 4 │ crc 4 │ blocks …
//	block    magic 4 │ length 4 │ next 8 │ time 8 │ back 4 │ begun 4 │ stream 1 │ flags 1 │ 0 2 │ crc 4 │ payload │ total 4
//
// Numbers are little endian, checksums CRC-32C. Lines of both streams are numbered together, from 1,
// for the life of the container: next is the number of the first line that begins in the block,
// begun how many do. A block whose first bytes continue a line says which one, next - back. The
// total at the end is there to walk backwards.
//
// What a crash left of a block is skipped and counted: readers look for the next magic. What could
// not be written is counted by the writer, which writes a notice of it as soon as it can.
package logfile

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Stream is where bytes came from.
type Stream uint8

// The streams.
const (
	Stdout Stream = 1
	Stderr Stream = 2
	notice Stream = 3 // the writer's own words
)

const (
	segMagic   = "gantrlg\x01"
	segHeader  = 24
	blockMagic = 0xb10c5eed
	blockHead  = 40
	blockFoot  = 4
	overhead   = blockHead + blockFoot

	flagContinues = 1 // the first bytes belong to a line that began in an earlier block
	flagOpen      = 2 // the last line is not complete
)

// MaxBlock bounds the bytes of one block.
const MaxBlock = 64 << 10

// castagnoli makes its table when it is first used, once: a shim should not spend its start on it.
func castagnoli() *crc32.Table { return crc32.MakeTable(crc32.Castagnoli) }

// block is the header of a block.
type block struct {
	length int
	next   uint64
	time   int64
	back   uint32
	begun  uint32
	stream Stream
	flags  uint8
}

func (b *block) total() int      { return b.length + overhead }
func (b *block) continues() bool { return b.flags&flagContinues != 0 }

// put writes header and footer around the payload in buf, which is as long as the block.
func (b *block) put(buf []byte) {
	le := binary.LittleEndian
	le.PutUint32(buf, blockMagic)
	le.PutUint32(buf[4:], uint32(b.length)) //nolint:gosec // at most MaxBlock
	le.PutUint64(buf[8:], b.next)
	le.PutUint64(buf[16:], uint64(b.time)) //nolint:gosec // the same bits
	le.PutUint32(buf[24:], b.back)
	le.PutUint32(buf[28:], b.begun)
	buf[32], buf[33], buf[34], buf[35] = byte(b.stream), b.flags, 0, 0
	end := blockHead + b.length
	le.PutUint32(buf[36:], sum(buf[:36], buf[blockHead:end]))
	le.PutUint32(buf[end:], uint32(b.total())) //nolint:gosec // as above
}

func sum(head, payload []byte) uint32 {
	return crc32.Update(crc32.Checksum(head, castagnoli()), castagnoli(), payload)
}

var (
	errShort = errors.New("the block is not all there")
	errTorn  = errors.New("no block")
)

// parse reads the header of the block at the beginning of buf. errShort: with more bytes it could
// be one.
func parse(buf []byte) (b block, err error) {
	le := binary.LittleEndian
	switch {
	case len(buf) < 4:
		return b, errShort
	case le.Uint32(buf) != blockMagic:
		return b, errTorn
	case len(buf) < blockHead:
		return b, errShort
	}
	b = block{
		length: int(le.Uint32(buf[4:])), next: le.Uint64(buf[8:]), time: int64(le.Uint64(buf[16:])), //nolint:gosec // the same bits
		back: le.Uint32(buf[24:]), begun: le.Uint32(buf[28:]), stream: Stream(buf[32]), flags: buf[33],
	}
	if b.length <= 0 || b.length > MaxBlock || b.stream == 0 || int(b.begun) > b.length {
		return b, errTorn
	}
	if len(buf) < b.total() {
		return b, errShort
	}
	end := blockHead + b.length
	if le.Uint32(buf[36:]) != sum(buf[:36], buf[blockHead:end]) || int(le.Uint32(buf[end:])) != b.total() {
		return b, errTorn
	}
	return b, nil
}

// resync returns how many bytes at the beginning of buf are certainly no beginning of a block.
func resync(buf []byte) int {
	magic := binary.LittleEndian.AppendUint32(nil, blockMagic)
	if i := bytes.Index(buf, magic); i >= 0 {
		return i
	}
	for n := min(3, len(buf)); n > 0; n-- { // a magic cut short
		if bytes.HasPrefix(magic, buf[len(buf)-n:]) {
			return len(buf) - n
		}
	}
	return len(buf)
}

func putSegment(first uint64) []byte {
	b := append(make([]byte, 0, segHeader), segMagic...)
	b = binary.LittleEndian.AppendUint64(b, first)
	b = append(b, 0, 0, 0, 0)
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli()))
}

func parseSegment(b []byte) (first uint64, ok bool) {
	if len(b) < segHeader || string(b[:8]) != segMagic {
		return 0, false
	}
	le := binary.LittleEndian
	return le.Uint64(b[8:]), le.Uint32(b[20:]) == crc32.Checksum(b[:20], castagnoli())
}

func segmentPath(dir string, n uint64) string { return filepath.Join(dir, fmt.Sprintf("%08d.log", n)) }

// segments lists the numbers of the segments in dir, oldest first. No directory is no segments.
func segments(dir string) ([]uint64, error) {
	es, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("log: %w", err)
	}
	var out []uint64
	for _, e := range es {
		if base, ok := strings.CutSuffix(e.Name(), ".log"); ok {
			if n, err := strconv.ParseUint(base, 10, 64); err == nil && n > 0 && filepath.Base(segmentPath(dir, n)) == e.Name() {
				out = append(out, n)
			}
		}
	}
	slices.Sort(out)
	return out, nil
}
