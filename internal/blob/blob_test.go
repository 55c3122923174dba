package blob

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

func store(t *testing.T) *Store {
	t.Helper()
	s, err := Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func describe(b []byte) ocispec.Descriptor {
	return ocispec.Descriptor{Digest: digest.FromBytes(b), Size: int64(len(b))}
}

// left lists the files in ingest.
func left(t *testing.T, s *Store) []string {
	t.Helper()
	entries, err := os.ReadDir(s.ingestDir())
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func TestPut(t *testing.T) {
	content := []byte("some content")
	sha512 := ocispec.Descriptor{Digest: digest.SHA512.FromBytes(content), Size: int64(len(content))}
	short, long, other := describe(content), describe(content), describe(content)
	short.Size--
	long.Size++
	other.Digest = digest.FromString("other")
	for name, c := range map[string]struct {
		desc ocispec.Descriptor
		r    io.Reader
		is   func(error) bool
		says string
		kept bool // a part is kept for next time
	}{
		"good":            {desc: describe(content), r: bytes.NewReader(content)},
		"sha512":          {desc: sha512, r: bytes.NewReader(content)},
		"empty":           {desc: describe(nil), r: bytes.NewReader(nil)},
		"too much":        {desc: short, r: bytes.NewReader(content), is: errdefs.IsDataLoss, says: "more than the 11 bytes"},
		"too little":      {desc: long, r: bytes.NewReader(content), is: errdefs.IsDataLoss, says: "12 of 13 bytes", kept: true},
		"tampered":        {desc: other, r: bytes.NewReader(content), is: errdefs.IsDataLoss, says: "what arrived is sha256:"},
		"reader fails":    {desc: describe(content), r: io.MultiReader(strings.NewReader("some"), &broken{}), is: isBroken, says: "put blob", kept: true},
		"not a digest":    {desc: ocispec.Descriptor{Digest: "sha256:../../x", Size: 1}, r: bytes.NewReader(content), is: errdefs.IsInvalidArgument},
		"an odd digest":   {desc: ocispec.Descriptor{Digest: digest.SHA384.FromBytes(content), Size: 12}, r: bytes.NewReader(content), is: errdefs.IsInvalidArgument, says: "sha512"},
		"a negative size": {desc: ocispec.Descriptor{Digest: digest.FromBytes(content), Size: -1}, r: bytes.NewReader(content), is: errdefs.IsInvalidArgument},
	} {
		t.Run(name, func(t *testing.T) {
			s := store(t)
			err := s.Put(t.Context(), c.desc, c.r)
			if c.is == nil {
				if err != nil {
					t.Fatal(err)
				}
				got, err := s.Read(c.desc.Digest, 1<<20)
				if err != nil || int64(len(got)) != c.desc.Size {
					t.Fatalf("read back %q, %v", got, err)
				}
			} else {
				if !c.is(err) || !strings.Contains(err.Error(), c.says) {
					t.Fatalf("got %v", err)
				}
				if _, err := s.Stat(c.desc.Digest); err == nil {
					t.Fatal("it is there all the same")
				}
			}
			if n := len(left(t, s)); (n > 0) != c.kept {
				t.Fatalf("ingest holds %v", left(t, s))
			}
			if len(s.flights) != 0 {
				t.Fatal("a flight was not ended")
			}
		})
	}
}

type broken struct{}

var errBroken = errors.New("broken")

func (*broken) Read([]byte) (int, error) { return 0, errBroken }
func isBroken(err error) bool            { return errors.Is(err, errBroken) }

func TestPutOfWhatIsHereReadsNothing(t *testing.T) {
	s, b := store(t), []byte("x")
	if err := s.Put(t.Context(), describe(b), bytes.NewReader(b)); err != nil {
		t.Fatal(err)
	}
	if err := s.Put(t.Context(), describe(b), &broken{}); err != nil {
		t.Fatal(err)
	}
}

func TestAllAndRemove(t *testing.T) {
	s, want := store(t), map[digest.Digest]bool{}
	for _, c := range []string{"a", "b", "c"} {
		d := describe([]byte(c))
		want[d.Digest] = true
		if err := s.Put(t.Context(), d, strings.NewReader(c)); err != nil {
			t.Fatal(err)
		}
	}
	var strays []string
	for _, name := range []string{"junk", "blobs/md5", "blobs/sha256/stray", "blobs/sha512/" + strings.Repeat("0", 128)} {
		strays = append(strays, filepath.Join(s.root, name))
		if err := os.Mkdir(filepath.Join(s.root, name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := s.Strays(); err != nil || !slices.Equal(slices.Sorted(slices.Values(got)), slices.Sorted(slices.Values(strays))) {
		t.Errorf("strays: %q, %v", got, err)
	}
	if err := os.Remove(strays[3]); err != nil {
		t.Fatal(err)
	}
	for info, err := range s.All() {
		if err != nil || !want[info.Digest] || info.Size != 1 || time.Since(info.ModTime) > time.Hour {
			t.Fatal(info, err)
		}
		delete(want, info.Digest)
		if err := s.Remove(info.Digest); err != nil {
			t.Fatal(err)
		}
		if err := s.Remove(info.Digest); err != nil {
			t.Fatal("removing nothing:", err)
		}
	}
	if len(want) != 0 {
		t.Fatal("not listed:", want)
	}
	if _, err := s.Open(digest.FromString("a")); !errdefs.IsNotFound(err) {
		t.Fatal(err)
	}
}

// TestResume: what came before a break is not asked for again, and a part that was damaged is noticed and dropped.
func TestResume(t *testing.T) {
	for _, damaged := range []bool{false, true} {
		s, content := store(t), bytes.Repeat([]byte("0123456789"), 1000)
		desc := describe(content)
		in, err := s.Ingest(t.Context(), desc)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := in.Write(content[:4000]); err != nil {
			t.Fatal(err)
		}
		in.Close(errBroken)
		if damaged {
			if err := os.WriteFile(s.ingestPath(desc.Digest), make([]byte, 4000), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if in, err = s.Ingest(t.Context(), desc); err != nil {
			t.Fatal(err)
		}
		if in.Offset() != 4000 {
			t.Fatal("offset", in.Offset())
		}
		if _, err := in.Write(content[4000:]); err != nil {
			t.Fatal(err)
		}
		err = in.Commit()
		in.Close(nil)
		if damaged {
			if !errors.Is(err, ErrStale) || !errdefs.IsDataLoss(err) || len(left(t, s)) != 0 {
				t.Fatal(err, left(t, s))
			}
			err = s.Put(t.Context(), desc, bytes.NewReader(content))
		}
		if err != nil {
			t.Fatal(err)
		}
		if got, err := s.Read(desc.Digest, 1<<20); err != nil || !bytes.Equal(got, content) {
			t.Fatal("read back:", err)
		}
	}
}

// TestNoRoomKeepsNothing: a part that was given up for want of room, wherever that was, is not what fills the disk.
func TestNoRoomKeepsNothing(t *testing.T) {
	for _, cause := range []error{syscall.ENOSPC, fmt.Errorf("unpack: %w", errdefs.ErrResourceExhausted)} {
		s, content := store(t), bytes.Repeat([]byte("0123456789"), 1000)
		in, err := s.Ingest(t.Context(), describe(content))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := in.Write(content[:4000]); err != nil {
			t.Fatal(err)
		}
		in.Close(cause)
		if got := left(t, s); len(got) != 0 {
			t.Errorf("%v: left %v", cause, got)
		}
	}
}

// TestOneFlight: of many writers of one digest, one writes.
func TestOneFlight(t *testing.T) {
	s, content := store(t), bytes.Repeat([]byte("x"), 1<<20)
	desc, wrote := describe(content), 0
	var mu sync.Mutex
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			in, err := s.Ingest(context.Background(), desc)
			if errdefs.IsAlreadyExists(err) {
				return
			}
			if err != nil {
				t.Error(err)
				return
			}
			defer in.Close(nil)
			mu.Lock()
			wrote++
			mu.Unlock()
			if _, err := in.Write(content); err != nil {
				t.Error(err)
			}
			if err := in.Commit(); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if wrote != 1 {
		t.Fatal(wrote, "writers")
	}
}

// TestWaitEnds: who waits for another's flight can give up.
func TestWaitEnds(t *testing.T) {
	s, desc := store(t), describe([]byte("x"))
	in, err := s.Ingest(t.Context(), desc)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close(nil)
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errBroken)
	if _, err := s.Ingest(ctx, desc); !errors.Is(err, errBroken) {
		t.Fatal(err)
	}
}

func TestFollow(t *testing.T) {
	content := bytes.Repeat([]byte("0123456789"), 100_000)
	for name, c := range map[string]struct {
		write int // bytes, then:
		end   error
	}{
		"to the end": {write: len(content)},
		"broken off": {write: 1000, end: errBroken},
		"empty":      {write: 0, end: errBroken},
	} {
		t.Run(name, func(t *testing.T) {
			s := store(t)
			in, err := s.Ingest(t.Context(), describe(content))
			if err != nil {
				t.Fatal(err)
			}
			fo, err := in.Follow()
			if err != nil {
				t.Fatal(err)
			}
			defer fo.Close()
			var wg sync.WaitGroup
			wg.Go(func() {
				for i := 0; i < c.write; i += 1000 {
					if _, err := in.Write(content[i : i+1000]); err != nil {
						t.Error(err)
					}
				}
				in.Close(c.end)
			})
			got, err := io.ReadAll(fo)
			wg.Wait()
			if !errors.Is(err, c.end) || !bytes.Equal(got, content[:c.write]) {
				t.Fatalf("%d bytes, %v", len(got), err)
			}
		})
	}
}

func TestFollowerCloses(t *testing.T) {
	s := store(t)
	in, err := s.Ingest(t.Context(), describe([]byte("abc")))
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close(nil)
	fo, err := in.Follow()
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() {
		_, err := fo.Read(make([]byte, 1))
		done <- err
	}()
	fo.Close()
	if err := <-done; err == nil {
		t.Fatal("a closed follower read")
	}
}

func TestPrune(t *testing.T) {
	s := store(t)
	busy, err := s.Ingest(t.Context(), describe([]byte("busy")))
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close(nil)
	if _, err := busy.Write([]byte("bu")); err != nil {
		t.Fatal(err)
	}
	idle, err := s.Ingest(t.Context(), describe([]byte("idle")))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := idle.Write([]byte("idl")); err != nil {
		t.Fatal(err)
	}
	idle.Close(nil)
	if n, err := s.Prune(time.Now().Add(-time.Hour)); n != 0 || err != nil {
		t.Fatal(n, err)
	}
	if n, err := s.Prune(time.Now().Add(time.Hour)); n != 3 || err != nil {
		t.Fatal(n, err)
	}
	if l := left(t, s); len(l) != 1 {
		t.Fatal(l)
	}
}

// TestFullDisk: a full disk has its class, its advice and its path, and gives back the room it took.
func TestFullDisk(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting a small tmpfs needs root: a full disk is NOT TESTED")
	}
	root := t.TempDir()
	if err := unix.Mount("blobs", root, "tmpfs", 0, "size=256k"); err != nil {
		t.Skip("tmpfs cannot be mounted here: a full disk is NOT TESTED:", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(root, 0); err != nil {
			t.Error("something is still open:", err)
		}
	})
	s, err := Open(root)
	if err != nil {
		t.Fatal(err)
	}
	big := make([]byte, 1<<20)
	err = s.Put(t.Context(), describe(big), bytes.NewReader(big))
	if !errdefs.IsResourceExhausted(err) || !strings.Contains(err.Error(), root) || !strings.Contains(err.Error(), "make room") {
		t.Fatal(err)
	}
	if l := left(t, s); len(l) != 0 {
		t.Fatal(l)
	}
	small := make([]byte, 128<<10)
	if err := s.Put(t.Context(), describe(small), bytes.NewReader(small)); err != nil {
		t.Fatal("the next one:", err)
	}
}

func TestReadVerifies(t *testing.T) {
	s, desc := store(t), describe([]byte("abc"))
	if err := s.Put(t.Context(), desc, strings.NewReader("abc")); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Read(desc.Digest, 2); !errdefs.IsInvalidArgument(err) {
		t.Fatal(err)
	}
	if err := os.WriteFile(s.Path(desc.Digest), []byte("abd"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Read(desc.Digest, 10); !errdefs.IsDataLoss(err) {
		t.Fatal(err)
	}
}
