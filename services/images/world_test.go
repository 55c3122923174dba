package images

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/internal/blob"
	"github.com/gantryd/gantry/internal/gc"
	"github.com/gantryd/gantry/internal/meta"
	"github.com/gantryd/gantry/internal/registry"
	"github.com/gantryd/gantry/internal/unpack"
	"github.com/gantryd/gantry/plugins"
	imagesv1 "github.com/gantryd/gantry/proto/gantry/images/v1"
	typesv1 "github.com/gantryd/gantry/proto/gantry/types/v1"
	"github.com/gantryd/gantry/services/snapshots"
	"github.com/gantryd/gantry/snapshotters"
	"github.com/gantryd/gantry/snapshotters/native"
	"github.com/gantryd/gantry/snapshotters/overlay"
)

func TestMain(m *testing.M) {
	unpack.Main()
	os.Exit(m.Run())
}

// world is the service with real parts: database, blobs, drivers.
type world struct {
	*Service
	t       *testing.T
	root    string
	drivers drivers
	snaps   *snapshots.Service
	users   map[string][]User
}

// drivers are both storage drivers, in this process.
type drivers map[string]snapshotters.Snapshotter

func (d drivers) Snapshotter(name string) (snapshotters.Snapshotter, error) {
	if s, ok := d[name]; ok {
		return s, nil
	}
	return nil, fmt.Errorf("snapshotter %s: %w", name, errdefs.ErrNotFound)
}

func (d drivers) Info(ctx context.Context, _ plugins.Family, name string) (plugins.Info, error) {
	s, err := d.Snapshotter(name)
	if err != nil {
		return plugins.Info{}, err
	}
	return s.(plugins.Plugin).Info(ctx)
}

// newWorld makes one in a filesystem of size ("" is ample) that overlayfs can stand on.
func newWorld(t *testing.T, size string) *world {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("unpacking needs root: NOT TESTED")
	}
	root, err := os.MkdirTemp("", "images") // the name of the test may have what overlayfs cannot
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Remove(root) })
	if size == "" {
		size = "1g"
	}
	if err := unix.Mount("images", root, "tmpfs", 0, "size="+size); err != nil {
		t.Skip("tmpfs cannot be mounted: NOT TESTED:", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(root, 0); err != nil {
			t.Error("something is left open or mounted:", err)
			_ = unix.Unmount(root, unix.MNT_DETACH)
		}
	})
	w := &world{t: t, root: root, users: map[string][]User{}}
	w.open()
	return w
}

// open starts the service, as a daemon does.
func (w *world) open() {
	w.t.Helper()
	must := func(err error) {
		if err != nil {
			w.t.Fatal(err)
		}
	}
	db, err := meta.Open(filepath.Join(w.root, "gantry.db"))
	must(err)
	w.drivers = drivers{"overlay": overlay.New(), "native": native.New()}
	for name, d := range w.drivers {
		c := plugins.Config{Root: filepath.Join(w.root, name), State: filepath.Join(w.root, name+".state")}
		must(errors.Join(os.MkdirAll(c.Root, 0o700), os.MkdirAll(c.State, 0o700)))
		must(d.(plugins.Plugin).Configure(w.t.Context(), c))
	}
	store, err := blob.Open(filepath.Join(w.root, "content"))
	must(err)
	collector := gc.New(db)
	w.snaps = snapshots.New(db, w.drivers, "overlay", "native")
	client := registry.New(registry.Config{Connect: 2 * time.Second, Answer: 5 * time.Second, Stall: time.Second, Tries: 2, Pause: time.Millisecond})
	w.Service, err = New(Options{Snapshotter: "overlay"}, Parts{
		DB: db, Blobs: store, Registry: client, Snapshots: w.snaps, Collector: collector,
		Users: func(_ *meta.Tx, id string) []User { return w.users[id] },
	})
	must(err)
	w.snaps.Collect(collector)
	w.Collect(collector)
	must(db.Recover(w.t.Context()))
	must(w.Recover(w.t.Context()))
	w.t.Cleanup(w.stop)
}

// stop ends it.
func (w *world) stop() {
	if w.Service == nil {
		return
	}
	w.Registry.Close()
	if err := w.DB.Close(); err != nil {
		w.t.Error(err)
	}
	for _, d := range w.drivers {
		if c, ok := d.(io.Closer); ok {
			if err := c.Close(); err != nil {
				w.t.Error(err)
			}
		}
	}
	w.Service = nil
}

// ingest lists what has arrived in part.
func (w *world) ingest() (names []string) {
	entries, err := os.ReadDir(filepath.Join(w.root, "content", "ingest"))
	if err != nil {
		w.t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// held lists what a driver holds.
func (w *world) held(driver string) (committed, temporary []string) {
	for i, err := range w.drivers[driver].All(w.t.Context()) {
		switch {
		case err != nil:
			w.t.Fatal(err)
		case i.Committed:
			committed = append(committed, i.Key)
		default:
			temporary = append(temporary, i.Key)
		}
	}
	slices.Sort(committed)
	return committed, temporary
}

// clean fails the test if anything is under way, half done, or differs.
func (w *world) clean() {
	w.t.Helper()
	if err := w.DB.View(func(tx *meta.Tx) error {
		for op := range tx.Ops() {
			w.t.Errorf("operation %s %s is left", op.GetId(), op.GetVerb())
		}
		return nil
	}); err != nil {
		w.t.Fatal(err)
	}
	for name := range w.drivers {
		if _, temporary := w.held(name); len(temporary) > 0 {
			w.t.Errorf("%s holds %v", name, temporary)
		}
	}
	for _, c := range append(w.Checks(), w.snaps.Checks()...) {
		if err := c.Run(w.t.Context(), func(subject, detail string, _ func(context.Context) error) {
			w.t.Errorf("check %s: %s: %s", c.Name, subject, detail)
		}); err != nil {
			w.t.Error(err)
		}
	}
}

// look mounts an image read-only and calls fn with where.
func (w *world) look(img *imagesv1.Image, driver string, fn func(root string)) {
	w.t.Helper()
	d := w.drivers[driver]
	mounts, err := d.View(w.t.Context(), "look", img.GetChainId(), snapshotters.Options{})
	if err != nil {
		w.t.Fatal(err)
	}
	defer func() {
		if err := d.Remove(w.t.Context(), "look"); err != nil {
			w.t.Error(err)
		}
	}()
	at := w.t.TempDir()
	m := mounts[0]
	flags, data := uintptr(unix.MS_RDONLY), []string{}
	for _, o := range m.Options {
		switch o {
		case "ro":
		case "bind", "rbind":
			flags |= unix.MS_BIND
		default:
			data = append(data, o)
		}
	}
	if err := unix.Mount(m.Source, at, m.Type, flags, strings.Join(data, ",")); err != nil {
		w.t.Fatal(m, err)
	}
	defer unix.Unmount(at, unix.MNT_DETACH)
	fn(at)
}

// files lists a tree: names, and contents of files.
func files(t *testing.T, root string) (out []string) {
	t.Helper()
	err := filepath.Walk(root, func(p string, fi os.FileInfo, err error) error {
		if err != nil {
			return err
		}
		name, _ := filepath.Rel(root, p)
		switch {
		case name == ".":
		case fi.IsDir():
			out = append(out, name+"/")
		case fi.Mode().IsRegular():
			b, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			out = append(out, fmt.Sprintf("%s=%.20s", name, b))
		default:
			out = append(out, name+" "+fi.Mode().Type().String())
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// fake is a registry whose content a test makes, and whose answers it may spoil.
type fake struct {
	t    *testing.T
	host string

	mu    sync.Mutex
	tags  map[string]ocispec.Descriptor
	blobs map[digest.Digest][]byte
	types map[digest.Digest]string
	spoil map[digest.Digest]func(w http.ResponseWriter, r *http.Request, b []byte)
	asked map[digest.Digest]int // how often a blob was asked for
}

func newFake(t *testing.T) *fake {
	t.Helper()
	f := &fake{
		t: t, tags: map[string]ocispec.Descriptor{}, blobs: map[digest.Digest][]byte{}, types: map[digest.Digest]string{},
		spoil: map[digest.Digest]func(http.ResponseWriter, *http.Request, []byte){}, asked: map[digest.Digest]int{},
	}
	s := httptest.NewServer(f)
	t.Cleanup(s.Close)
	f.host = strings.TrimPrefix(s.URL, "http://")
	return f
}

func (f *fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	parts := strings.Split(strings.TrimPrefix(r.URL.Path, "/v2/"), "/")
	if len(parts) != 3 {
		http.NotFound(w, r)
		return
	}
	f.mu.Lock()
	d := digest.Digest(parts[2])
	if t, ok := f.tags[parts[0]+":"+parts[2]]; ok && parts[1] == "manifests" {
		d = t.Digest
	}
	b, ok := f.blobs[d]
	spoil := f.spoil[d]
	if r.Method == http.MethodGet {
		f.asked[d]++
	}
	t := f.types[d]
	f.mu.Unlock()
	if !ok {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Content-Type", t)
	w.Header().Set("Docker-Content-Digest", d.String())
	if spoil != nil {
		spoil(w, r, b)
		return
	}
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(b))
}

func (f *fake) add(mediaType string, b []byte) ocispec.Descriptor {
	f.mu.Lock()
	defer f.mu.Unlock()
	d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
	f.blobs[d.Digest], f.types[d.Digest] = b, mediaType
	return d
}

func (f *fake) json(mediaType string, v any) ocispec.Descriptor {
	f.t.Helper()
	raw, err := json.Marshal(v)
	if err != nil {
		f.t.Fatal(err)
	}
	return f.add(mediaType, raw)
}

// imageLayer is one layer of a test's image.
type imageLayer struct {
	tar       []byte
	compress  string // "gzip" if not said; "none", "zstd"
	diffID    digest.Digest
	mediaType string
}

// kinds are the media types of an image's parts.
type kinds struct{ manifest, index, config, layer string }

// The two families (https://distribution.github.io/distribution/spec/manifest-v2-2/ is the second's).
var (
	oci = kinds{
		ocispec.MediaTypeImageManifest, ocispec.MediaTypeImageIndex, ocispec.MediaTypeImageConfig, ocispec.MediaTypeImageLayerGzip,
	}
	docker = kinds{
		registry.DockerManifest, registry.DockerList,
		"application/vnd.docker.container.image.v1+json", "application/vnd.docker.image.rootfs.diff.tar.gzip",
	}
)

// image makes an image and tags it.
func (f *fake) image(name string, layers ...imageLayer) (ocispec.Descriptor, []ocispec.Descriptor) {
	f.t.Helper()
	return f.imageOf(oci, name, layers...)
}

// imageOf makes an image of one family and tags it.
func (f *fake) imageOf(k kinds, name string, layers ...imageLayer) (ocispec.Descriptor, []ocispec.Descriptor) {
	f.t.Helper()
	cfg := ocispec.Image{
		Platform: ocispec.Platform{OS: "linux", Architecture: "amd64"},
		Config: ocispec.ImageConfig{
			Cmd: []string{"/bin/" + name}, Labels: map[string]string{"name": name}, ExposedPorts: map[string]struct{}{"80/tcp": {}},
		},
	}
	m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: k.manifest}
	for _, l := range layers {
		if l.diffID == "" {
			l.diffID = digest.FromBytes(l.tar)
		}
		cfg.RootFS.DiffIDs = append(cfg.RootFS.DiffIDs, l.diffID)
		cfg.History = append(cfg.History, ocispec.History{CreatedBy: "step"}, ocispec.History{CreatedBy: "nothing", EmptyLayer: true})
		if l.mediaType == "" {
			l.mediaType = k.layer
		}
		m.Layers = append(m.Layers, f.add(l.mediaType, pack(f.t, l.tar, l.compress)))
	}
	m.Config = f.json(k.config, cfg)
	d := f.json(k.manifest, m)
	f.tag(name, d)
	return d, m.Layers
}

func (f *fake) tag(name string, d ocispec.Descriptor) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !strings.Contains(name, ":") {
		name += ":latest"
	}
	f.tags[name] = d
}

func pack(t *testing.T, raw []byte, how string) []byte {
	t.Helper()
	var b bytes.Buffer
	switch how {
	case "none":
		return raw
	case "zstd":
		z, err := zstd.NewWriter(nil)
		if err != nil {
			t.Fatal(err)
		}
		return z.EncodeAll(raw, nil)
	}
	z := gzip.NewWriter(&b)
	if _, err := z.Write(raw); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// files in a layer: "dir/", "file=content", "link->target", "hard=>target", "white!" (a whiteout); bigger things by header.
func layerOf(t *testing.T, entries ...string) imageLayer {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		h := &tar.Header{Name: e, Mode: 0o755, Typeflag: tar.TypeReg, ModTime: time.Unix(1e9, 5), Format: tar.FormatPAX}
		body := ""
		if name, to, ok := strings.Cut(e, "=>"); ok {
			h.Name, h.Typeflag, h.Linkname = name, tar.TypeLink, to
		} else if name, to, ok := strings.Cut(e, "->"); ok {
			h.Name, h.Typeflag, h.Linkname = name, tar.TypeSymlink, to
		} else if name, ok := strings.CutSuffix(e, "!"); ok {
			h.Name = filepath.Join(filepath.Dir(name), ".wh."+filepath.Base(name))
		} else if strings.HasSuffix(e, "/") {
			h.Typeflag = tar.TypeDir
		} else if name, content, ok := strings.Cut(e, "="); ok {
			h.Name, body = name, content
			h.Size = int64(len(body))
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return imageLayer{tar: b.Bytes()}
}

// big is incompressible enough to take a while.
func big(seed byte, n int) string {
	b := make([]byte, n)
	x := uint32(seed) + 1
	for i := range b {
		x = x*1664525 + 1013904223
		b[i] = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_."[x>>26]
	}
	return string(b)
}

func (w *world) pull(f *fake, name string, change ...func(*imagesv1.PullRequest)) (*imagesv1.Image, []*typesv1.Progress, error) {
	req := &imagesv1.PullRequest{Ref: f.host + "/" + name}
	for _, c := range change {
		c(req)
	}
	var mu sync.Mutex
	var said []*typesv1.Progress
	img, err := w.Pull(w.t.Context(), req, func(p *typesv1.Progress) {
		mu.Lock()
		defer mu.Unlock()
		said = append(said, p)
	})
	return img, said, err
}
