package unpack

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"hash"
	"io"
	"sync"
	"sync/atomic"

	"github.com/containerd/errdefs"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
)

const (
	chunkSize  = 512 << 10
	chunkCount = 8
	// maxWindow is the most memory a zstd frame may ask for its window: what zstd --ultra --long=27 makes.
	maxWindow = 128 << 20
)

// stream is the archive inside a layer: one goroutine decompresses, one hashes, and the reader is the third, so that
// inflating, which takes the longest, waits for nobody.
type stream struct {
	limit int64
	alg   digest.Algorithm

	free, toHash, toRead chan *chunk
	quit                 chan struct{}
	wg                   sync.WaitGroup
	once                 sync.Once

	hash  hash.Hash
	bytes int64
	err   error // of the decompressor; read after toRead was closed

	cur *chunk
	off int
}

type chunk struct {
	data []byte
	n    int
	refs atomic.Int32
}

func newStream(r io.Reader, job Job) *stream {
	s := &stream{
		limit: job.Limits.Bytes, alg: digest.SHA256,
		free: make(chan *chunk, chunkCount), toHash: make(chan *chunk, chunkCount), toRead: make(chan *chunk, chunkCount),
		quit: make(chan struct{}),
	}
	if job.DiffID != "" {
		s.alg = job.DiffID.Algorithm()
	}
	s.hash = s.alg.Hash()
	for range chunkCount {
		s.free <- &chunk{data: make([]byte, chunkSize)}
	}
	s.wg.Go(func() { s.err = s.inflate(r); close(s.toHash); close(s.toRead) })
	s.wg.Go(func() {
		for c := range s.toHash {
			s.hash.Write(c.data[:c.n])
			s.release(c)
		}
	})
	return s
}

func (s *stream) release(c *chunk) {
	if c.refs.Add(-1) == 0 {
		s.free <- c // never blocks: there is room for all of them
	}
}

func (s *stream) inflate(r io.Reader) error {
	d, err := decompress(r)
	if err != nil {
		return err
	}
	defer d.Close()
	for {
		var c *chunk
		select {
		case c = <-s.free:
		case <-s.quit:
			return nil
		}
		n, err := io.ReadFull(d, c.data)
		if s.bytes += int64(n); s.bytes > s.limit {
			return layerError{fmt.Sprintf("it unpacks to more than the %d bytes allowed: raise the limit if you trust it", s.limit), errdefs.ErrResourceExhausted}
		}
		if n > 0 {
			c.n = n
			c.refs.Store(2)
			s.toHash <- c // room for all chunks: never blocks
			s.toRead <- c
		}
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF) && isEnd(d):
			return nil
		case err != nil:
			return streamError(err)
		}
	}
}

// endReader remembers how its reader ended, which io.ReadFull does not tell: it says ErrUnexpectedEOF of a
// clean end and of a truncated stream alike.
type endReader struct {
	io.ReadCloser
	err error
}

func (e *endReader) Read(p []byte) (int, error) {
	n, err := e.ReadCloser.Read(p)
	if err != nil {
		e.err = err
	}
	return n, err
}

func isEnd(r *endReader) bool { return r.err == io.EOF } //nolint:errorlint // a wrapped EOF is not the end

func streamError(err error) error {
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return layerError{"its compressed stream is cut short", errdefs.ErrDataLoss}
	}
	return layerError{fmt.Sprintf("its compressed stream is damaged: %v", err), errdefs.ErrDataLoss}
}

// Compressions are told by their first bytes: the media type is a claim, and often a wrong one.
var (
	magicGzip = []byte{0x1f, 0x8b}
	magicZstd = []byte{0x28, 0xb5, 0x2f, 0xfd}
	refused   = []struct {
		name  string
		magic []byte
	}{
		{"bzip2", []byte("BZh")},
		{"xz", []byte{0xfd, '7', 'z', 'X', 'Z', 0}},
		{"lz4", []byte{0x04, 0x22, 0x4d, 0x18}},
	}
)

// decompress finds out how r is compressed and undoes it.
func decompress(r io.Reader) (*endReader, error) {
	b := bufio.NewReaderSize(r, chunkSize)
	head, err := b.Peek(6)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, streamError(err)
	}
	switch {
	case bytes.HasPrefix(head, magicGzip):
		z, err := gzip.NewReader(b)
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return nil, streamError(err)
		}
		return &endReader{ReadCloser: z}, nil
	case bytes.HasPrefix(head, magicZstd), isSkippable(head):
		z, err := zstd.NewReader(b, zstd.WithDecoderMaxWindow(maxWindow))
		if err != nil {
			return nil, streamError(err)
		}
		return &endReader{ReadCloser: z.IOReadCloser()}, nil
	}
	for _, x := range refused {
		if bytes.HasPrefix(head, x.magic) {
			return nil, layerError{fmt.Sprintf("it is compressed with %s: only gzip, zstd and none are known", x.name), errdefs.ErrNotImplemented}
		}
	}
	return &endReader{ReadCloser: io.NopCloser(b)}, nil
}

// isSkippable says whether a zstd skippable frame begins here, as zstd:chunked layers may (RFC 8878, 3.1.2).
func isSkippable(head []byte) bool {
	return len(head) >= 4 && head[0]&0xf0 == 0x50 && head[1] == 0x2a && head[2] == 0x4d && head[3] == 0x18
}

// Read reads the archive.
func (s *stream) Read(p []byte) (int, error) {
	for s.cur == nil {
		c, ok := <-s.toRead
		if !ok {
			return 0, io.EOF
		}
		s.cur, s.off = c, 0
	}
	n := copy(p, s.cur.data[s.off:s.cur.n])
	if s.off += n; s.off == s.cur.n {
		s.release(s.cur)
		s.cur = nil
	}
	return n, nil
}

// failure waits for the decompressor if it has ended early, and says why. While it has more to give there is no failure yet: the archive's own
// error stands.
func (s *stream) failure() error {
	select {
	case _, ok := <-s.toRead:
		if !ok {
			return s.err
		}
	default:
	}
	return nil
}

// stop ends the goroutines; those that wait for input end with it.
func (s *stream) stop() { s.once.Do(func() { close(s.quit) }) }

// sum is the digest and size of the whole archive. It is called after Read has said io.EOF.
func (s *stream) sum() (digest.Digest, int64) {
	s.wg.Wait()
	return digest.NewDigest(s.alg, s.hash), s.bytes
}
