package unpack

import (
	"archive/tar"
	"bytes"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// FuzzUnpack: whatever the archive, nothing happens beside the directory, and errors have a class.
func FuzzUnpack(f *testing.F) {
	root(f)
	for _, in := range [][]entry{
		{dir("./"), file("a/b", "x"), hard("l", "a/b"), sym("s", "../../x"), file("s/y", "z")},
		{sym("s", "/"), file("s/canary", "x"), wh("s/.wh.canary"), wh(".wh..wh..opq")},
		{e(tar.TypeFifo, "p"), e(tar.TypeChar, "c", dev(1, 3)), file("c", "x"), dir("p"), wh(".wh.p")},
		{file("../canary", "x")},
	} {
		f.Add(archive(f, in...), true)
		f.Add(archive(f, in...), false)
	}
	f.Fuzz(func(t *testing.T, raw []byte, overlay bool) {
		outside := t.TempDir()
		top := filepath.Join(outside, "top")
		canary := filepath.Join(outside, "canary")
		if err := os.Mkdir(top, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(canary, []byte("alive"), 0o600); err != nil {
			t.Fatal(err)
		}
		job := Job{Form: Apply, Limits: Limits{Bytes: 1 << 20, Entries: 1000}}
		if overlay {
			job.Form, job.Parented = Overlay, true
		}
		_, err := into(t, top, job, raw)
		if err != nil && errdefs.IsUnknown(errdefs.Resolve(err)) {
			t.Errorf("an error without a class: %v", err)
		}
		entries, err := os.ReadDir(outside)
		if err != nil || len(entries) != 2 {
			t.Fatalf("beside the directory: %v, %v", entries, err)
		}
		var st unix.Stat_t
		if err := unix.Lstat(canary, &st); err != nil || st.Size != 5 || st.Nlink != 1 || st.Mode != unix.S_IFREG|0o600 || st.Uid != 0 {
			t.Fatalf("the canary: %+v, %v", st, err)
		}
	})
}

// FuzzDecompress: whatever the bytes, the decompressors end, within their memory, and say what is wrong.
func FuzzDecompress(f *testing.F) {
	for _, b := range [][]byte{nil, []byte("plain"), gz(f, []byte("gzip")), zst(f, []byte("zstd")), []byte("BZh91AY"), {0x1f, 0x8b}, {0x28, 0xb5, 0x2f, 0xfd}} {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		s := newStream(bytes.NewReader(raw), Job{Limits: Limits{Bytes: 1 << 20}})
		n, err := io.Copy(io.Discard, s)
		if err != nil {
			t.Fatal(err)
		}
		if serr := s.failure(); serr != nil && errdefs.IsUnknown(errdefs.Resolve(serr)) {
			t.Errorf("an error without a class: %v", serr)
		}
		if d, m := s.sum(); m < n || d == "" {
			t.Errorf("read %d of %d", n, m)
		}
		s.stop()
	})
}
