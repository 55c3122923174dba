package harness

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// Layer is the tar of one layer.
type Layer []byte

// TarLayer makes a layer of headers and contents; a header without size takes its content's.
func TarLayer(t testing.TB, entries ...Entry) Layer {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		h := e.Header
		if h.Typeflag == tar.TypeReg && h.Size == 0 {
			h.Size = int64(len(e.Content))
		}
		if h.ModTime.IsZero() {
			h.ModTime = time.Unix(1700000000, 0)
		}
		if h.Mode == 0 {
			h.Mode = 0o755
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(e.Content)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// Entry is one entry of a layer.
type Entry struct {
	Header  tar.Header
	Content string
}

// File is an entry for a regular file.
func File(name, content string, mode int64) Entry {
	return Entry{tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode}, content}
}

// Dir is an entry for a directory.
func Dir(name string) Entry {
	return Entry{tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: 0o755}, ""}
}

// Symlink is an entry for a symbolic link.
func Symlink(name, target string) Entry {
	return Entry{tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777}, ""}
}

// BusyboxLayer is Debian's static busybox with its applets, and the few files that a system has.
func BusyboxLayer(t testing.TB) Layer {
	t.Helper()
	const path = "/bin/busybox"
	program, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("%v (\"make setup\" installs busybox-static)", err)
	}
	applets, err := exec.Command(path, "--list").Output()
	if err != nil {
		t.Fatal(err)
	}
	entries := []Entry{
		Dir("bin"), Dir("etc"), Dir("root"), Dir("home"), Dir("var"), Dir("proc"), Dir("sys"), Dir("dev"),
		File("bin/busybox", string(program), 0o755),
		File("etc/passwd", "root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1:daemon:/:/bin/false\nuser:x:1000:1000:user:/home:/bin/sh\n", 0o644),
		File("etc/group", "root:x:0:\ndaemon:x:1:\nuser:x:1000:\nextra:x:2000:user\n", 0o644),
		{tar.Header{Typeflag: tar.TypeDir, Name: "tmp/", Mode: 0o1777}, ""},
	}
	for _, a := range bytes.Fields(applets) {
		if string(a) != "busybox" {
			entries = append(entries, Symlink("bin/"+string(a), "busybox"))
		}
	}
	return TarLayer(t, entries...)
}

// WriteLayout writes an OCI layout of one image, tagged "latest", and returns the digest of its
// manifest.
func WriteLayout(t testing.TB, dir string, config v1.ImageConfig, layers ...Layer) digest.Digest {
	t.Helper()
	put := func(raw []byte) (digest.Digest, int64) {
		sum := sha256.Sum256(raw)
		name := hex.EncodeToString(sum[:])
		path := filepath.Join(dir, "blobs", "sha256", name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, raw, 0o644); err != nil {
			t.Fatal(err)
		}
		return digest.NewDigestFromEncoded(digest.SHA256, name), int64(len(raw))
	}
	marshal := func(v any) []byte {
		raw, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	created := time.Unix(1700000000, 0).UTC()
	image := v1.Image{Created: &created, Platform: v1.Platform{OS: "linux", Architecture: "amd64"}, Config: config, RootFS: v1.RootFS{Type: "layers"}}
	manifest := v1.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageManifest}
	for _, l := range layers {
		image.RootFS.DiffIDs = append(image.RootFS.DiffIDs, digest.FromBytes(l))
		var z bytes.Buffer
		w := gzip.NewWriter(&z)
		if _, err := w.Write(l); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		d, n := put(z.Bytes())
		manifest.Layers = append(manifest.Layers, v1.Descriptor{MediaType: v1.MediaTypeImageLayerGzip, Digest: d, Size: n})
	}
	d, n := put(marshal(image))
	manifest.Config = v1.Descriptor{MediaType: v1.MediaTypeImageConfig, Digest: d, Size: n}
	d, n = put(marshal(manifest))
	index := v1.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageIndex, Manifests: []v1.Descriptor{{
		MediaType: v1.MediaTypeImageManifest, Digest: d, Size: n, Annotations: map[string]string{v1.AnnotationRefName: "latest"},
	}}}
	for name, v := range map[string]any{"index.json": index, "oci-layout": v1.ImageLayout{Version: v1.ImageLayoutVersion}} {
		if err := os.WriteFile(filepath.Join(dir, name), marshal(v), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return d
}
