package blob

import (
	"context"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// ErrStale says that a blob that was continued did not verify. What was kept of it is gone: try once more, from its
// beginning.
var ErrStale = errors.New("the part kept from an earlier attempt does not belong to it")

// errUnfinished is what followers learn when an ingest was closed early without a reason.
var errUnfinished = errors.New("writing it was given up")

// flushEvery is how many bytes are written before the kernel is asked to begin writing them back, so that the sync at the
// end has little left to do.
const flushEvery = 8 << 20

// Ingest is a blob that is arriving. It has one writer and any number of followers.
type Ingest struct {
	s       *Store
	desc    ocispec.Descriptor
	f       *os.File
	hash    hash.Hash
	resumed bool
	flushed int64
	closed  bool

	mu   sync.Mutex
	have int64         // bytes in the file that followers may read
	err  error         // why there will be no more
	news chan struct{} // closed when have or err changes; nil while nobody waits
}

// Ingest begins, or continues, a blob. AlreadyExists says that it is here. The caller must Close it.
func (s *Store) Ingest(ctx context.Context, desc ocispec.Descriptor) (*Ingest, error) {
	if err := check(desc.Digest); err != nil {
		return nil, err
	}
	if desc.Size < 0 {
		return nil, fmt.Errorf("ingest blob %s: a size of %d bytes: %w", desc.Digest, desc.Size, errdefs.ErrInvalidArgument)
	}
	if err := s.takeOff(ctx, desc.Digest); err != nil {
		return nil, err
	}
	in, err := s.ingest(ctx, desc)
	if err != nil {
		s.land(desc.Digest)
		return nil, err
	}
	return in, nil
}

func (s *Store) ingest(ctx context.Context, desc ocispec.Descriptor) (*Ingest, error) {
	if info, err := s.Stat(desc.Digest); err == nil {
		if info.Size != desc.Size {
			return nil, fmt.Errorf("ingest blob %s: the store has it with %d bytes, not the %d that were announced: %w",
				desc.Digest, info.Size, desc.Size, errdefs.ErrDataLoss)
		}
		return nil, fmt.Errorf("ingest blob %s: it is there already: %w", desc.Digest, errdefs.ErrAlreadyExists)
	} else if !errdefs.IsNotFound(err) {
		return nil, err
	}
	f, err := os.OpenFile(s.ingestPath(desc.Digest), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("ingest blob %s: %w", desc.Digest, diskError(err))
	}
	in := &Ingest{s: s, desc: desc, f: f, hash: desc.Digest.Algorithm().Hash()}
	if err := in.resume(ctx); err != nil {
		_ = f.Close()
		return nil, err
	}
	return in, nil
}

// resume takes up what an earlier attempt left.
func (in *Ingest) resume(ctx context.Context) error {
	fi, err := in.f.Stat()
	if err != nil {
		return fmt.Errorf("ingest blob %s: %w", in.desc.Digest, err)
	}
	if fi.Size() > in.desc.Size {
		return in.Restart()
	}
	buf := make([]byte, 1<<20)
	for {
		if err := context.Cause(ctx); err != nil {
			return fmt.Errorf("ingest blob %s: %w", in.desc.Digest, err)
		}
		n, err := in.f.Read(buf)
		in.hash.Write(buf[:n])
		in.have += int64(n)
		if errors.Is(err, io.EOF) {
			in.resumed = in.have > 0
			in.flushed = in.have
			return nil
		}
		if err != nil {
			return fmt.Errorf("ingest blob %s: %w", in.desc.Digest, err)
		}
	}
}

// Restart forgets what an earlier attempt left. It is for a writer that can only begin at the beginning, before it has
// written anything.
func (in *Ingest) Restart() error {
	if err := in.f.Truncate(0); err != nil {
		return fmt.Errorf("ingest blob %s: %w", in.desc.Digest, err)
	}
	if _, err := in.f.Seek(0, io.SeekStart); err != nil {
		return fmt.Errorf("ingest blob %s: %w", in.desc.Digest, err)
	}
	in.hash.Reset()
	in.have, in.flushed, in.resumed = 0, 0, false
	return nil
}

// Offset is how many bytes are here: the writer goes on from there.
func (in *Ingest) Offset() int64 {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.have
}

// Write adds bytes. More of them than the descriptor announced are an error of class DataLoss.
func (in *Ingest) Write(p []byte) (int, error) {
	if in.have+int64(len(p)) > in.desc.Size { // only the writer changes have
		return 0, in.spoil(fmt.Errorf("blob %s: more than the %d bytes announced arrived: %w", in.desc.Digest, in.desc.Size, errdefs.ErrDataLoss))
	}
	n, err := in.f.Write(p)
	in.hash.Write(p[:n])
	in.tell(int64(n), nil)
	if err != nil {
		err = fmt.Errorf("write blob %s: %w", in.desc.Digest, diskError(err))
		if errdefs.IsResourceExhausted(err) {
			return n, in.spoil(err) // give the room back
		}
		return n, err
	}
	if in.have-in.flushed >= flushEvery {
		_ = unix.SyncFileRange(int(in.f.Fd()), in.flushed, in.have-in.flushed, unix.SYNC_FILE_RANGE_WRITE) // a hint
		in.flushed = in.have
	}
	return n, nil
}

// Commit verifies what arrived, makes it durable and gives it its name.
func (in *Ingest) Commit() error {
	d := in.desc.Digest
	if in.have != in.desc.Size {
		err := fmt.Errorf("blob %s: %d of %d bytes arrived: %w", d, in.have, in.desc.Size, errdefs.ErrDataLoss)
		in.tell(0, err)
		return err
	}
	if got := digest.NewDigest(d.Algorithm(), in.hash); got != d {
		err := fmt.Errorf("blob %s: what arrived is %s: it was changed on its way or where it came from: %w", d, got, errdefs.ErrDataLoss)
		if in.resumed {
			err = fmt.Errorf("blob %s: %w: %w", d, ErrStale, errdefs.ErrDataLoss)
		}
		return in.spoil(err)
	}
	if err := in.f.Sync(); err != nil {
		return in.spoil(fmt.Errorf("sync blob %s: %w", d, diskError(err)))
	}
	if err := os.Rename(in.f.Name(), in.s.Path(d)); err != nil {
		return in.spoil(fmt.Errorf("commit blob %s: %w", d, diskError(err)))
	}
	if err := syncDir(filepath.Dir(in.s.Path(d))); err != nil {
		return fmt.Errorf("commit blob %s: %w", d, err)
	}
	return nil
}

// spoil removes what arrived: it is wrong, or in the way.
func (in *Ingest) spoil(err error) error {
	if rerr := os.Remove(in.f.Name()); rerr != nil && !errors.Is(rerr, fs.ErrNotExist) {
		err = errors.Join(err, rerr)
	}
	in.tell(0, err)
	return err
}

// Close ends the ingest. What arrived in part is kept for the next one, unless it is known to be wrong, or cause is that
// there is no room: then it would take what others need. Followers that have not seen all of it are told cause.
// Closing twice is fine.
func (in *Ingest) Close(cause error) {
	if in.closed {
		return
	}
	in.closed = true
	if cause == nil {
		cause = errUnfinished
	}
	in.tell(0, fmt.Errorf("blob %s: %w", in.desc.Digest, cause))
	if in.have == 0 && in.desc.Size > 0 || in.have < in.desc.Size && noRoom(cause) {
		_ = os.Remove(in.f.Name()) // nothing to continue, or no room to keep it in
	}
	_ = in.f.Close() // a committed blob was synced; a partial one is verified when it is continued
	in.s.land(in.desc.Digest)
}

// tell publishes n more bytes, or the end.
func (in *Ingest) tell(n int64, err error) {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.have += n
	if in.err == nil {
		in.err = err
	}
	if in.news != nil {
		close(in.news)
		in.news = nil
	}
}

// Follow reads the blob from its beginning while it arrives. The reader ends with io.EOF when it has given all the bytes
// announced, and with an error when they will not come. That it ended says nothing of the digest: only Commit does.
// Closing the reader wakes a Read that waits.
func (in *Ingest) Follow() (io.ReadCloser, error) {
	f, err := os.Open(in.f.Name())
	if err != nil {
		return nil, fmt.Errorf("follow blob %s: %w", in.desc.Digest, err)
	}
	return &follower{in: in, f: f, done: make(chan struct{})}, nil
}

type follower struct {
	in   *Ingest
	f    *os.File
	off  int64
	once sync.Once
	done chan struct{}
}

func (fo *follower) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for fo.off < fo.in.desc.Size {
		have, news, err := fo.look()
		if have > fo.off {
			n, err := fo.f.ReadAt(p[:min(int64(len(p)), have-fo.off)], fo.off)
			fo.off += int64(n)
			if n > 0 {
				return n, nil
			}
			return 0, fmt.Errorf("follow blob %s: %w", fo.in.desc.Digest, err)
		}
		if err != nil {
			return 0, err
		}
		select {
		case <-news:
		case <-fo.done:
			return 0, fs.ErrClosed
		}
	}
	return 0, io.EOF
}

// look returns how much there is, what is closed when there is more, and why there will be no more.
func (fo *follower) look() (int64, <-chan struct{}, error) {
	fo.in.mu.Lock()
	defer fo.in.mu.Unlock()
	if fo.in.news == nil && fo.in.err == nil {
		fo.in.news = make(chan struct{})
	}
	return fo.in.have, fo.in.news, fo.in.err
}

func (fo *follower) Close() error {
	err := error(nil)
	fo.once.Do(func() {
		close(fo.done)
		err = fo.f.Close()
	})
	return err
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Sync(); err != nil && !errors.Is(err, syscall.EINVAL) { // EINVAL: a filesystem whose directories need none
		return err
	}
	return nil
}
