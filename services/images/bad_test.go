package images

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/gantryd/gantry/internal/registry"
	"github.com/gantryd/gantry/internal/unpack"
	imagesv1 "github.com/gantryd/gantry/proto/gantry/images/v1"
)

func newSeeker(b []byte) io.ReadSeeker { return bytes.NewReader(b) }

func (w *world) modTime() time.Time { return time.Time{} }

// TestBadImages: what strangers send, what is said of it, and that nothing is left: no image, no temporary snapshot, no
// operation; and the next pull works.
func TestBadImages(t *testing.T) {
	good := layerOf(t, "good=good")
	bytesOf := func(b []byte) func(http.ResponseWriter, *http.Request, []byte) {
		return func(w http.ResponseWriter, r *http.Request, _ []byte) {
			http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(b))
		}
	}
	for name, c := range map[string]struct {
		make  func(f *fake)
		class error
		says  []string
	}{
		"unknown image": {func(*fake) {}, errdefs.ErrNotFound, []string{"no such image in registry", "check the spelling, or log in"}},
		"truncated layer": {func(f *fake) {
			_, l := f.image("app", good, layerOf(f.t, "x="+big(1, 100_000)))
			f.spoil[l[1].Digest] = func(w http.ResponseWriter, _ *http.Request, b []byte) {
				w.Header().Set("Content-Length", fmt.Sprint(len(b)))
				_, _ = w.Write(b[:1000])
				_ = http.NewResponseController(w).Flush()
				panic(http.ErrAbortHandler)
			}
		}, errdefs.ErrUnavailable, []string{"broke off after", "try again"}},
		"layer shorter than announced": {func(f *fake) {
			_, l := f.image("app", layerOf(f.t, "x="+big(1, 100_000)))
			f.spoil[l[0].Digest] = bytesOf([]byte("short"))
		}, errdefs.ErrDataLoss, []string{"has 5 bytes of it"}},
		"tampered layer": {func(f *fake) {
			_, l := f.image("app", good, layerOf(f.t, "x="+big(1, 100_000)))
			b := bytes.Clone(f.blobs[l[1].Digest])
			b[len(b)/2] ^= 1
			f.spoil[l[1].Digest] = bytesOf(b)
		}, errdefs.ErrDataLoss, []string{"layer ", "what arrived is sha256:", "it was changed on its way"}},
		"tampered layer, of another archive": {func(f *fake) {
			l := layerOf(f.t, "x=1")
			l.compress = "none"
			_, ls := f.image("app", l)
			f.spoil[ls[0].Digest] = bytesOf(layerOf(f.t, "x=2").tar)
		}, errdefs.ErrDataLoss, []string{"what arrived is sha256:"}},
		"wrong diff id": {func(f *fake) {
			l := layerOf(f.t, "x=x")
			l.diffID = digest.FromString("something else")
			f.image("app", good, l)
		}, errdefs.ErrDataLoss, []string{"the image's configuration says"}},
		"tampered manifest": {func(f *fake) {
			d, _ := f.image("app", good)
			f.spoil[d.Digest] = bytesOf(bytes.Replace(f.blobs[d.Digest], []byte(`"schemaVersion":2`), []byte(`"schemaVersion": 2`), 1)[:d.Size])
		}, errdefs.ErrInvalidArgument, []string{"manifest is not well formed"}},
		"tampered configuration": {func(f *fake) {
			f.image("app", good)
			for d, b := range f.blobs {
				if f.types[d] == ocispec.MediaTypeImageConfig {
					f.spoil[d] = bytesOf(bytes.Replace(b, []byte("amd64"), []byte("amd65"), 1))
				}
			}
		}, errdefs.ErrDataLoss, []string{"configuration sha256:"}},
		"climbing entry":          {func(f *fake) { f.image("app", good, layerOf(f.t, "../../../tmp/gantry-was-here=x")) }, errdefs.ErrInvalidArgument, []string{"climbs out of the layer"}},
		"climbing link":           {func(f *fake) { f.image("app", good, layerOf(f.t, "l=>../../../etc/passwd")) }, errdefs.ErrInvalidArgument, []string{"climbs out of the layer"}},
		"climbing whiteout":       {func(f *fake) { f.image("app", good, layerOf(f.t, "../../x!")) }, errdefs.ErrInvalidArgument, []string{"climbs out of the layer"}},
		"link to nothing":         {func(f *fake) { f.image("app", good, layerOf(f.t, "l=>nothing")) }, errdefs.ErrInvalidArgument, []string{"is not there"}},
		"through a dangling link": {func(f *fake) { f.image("app", layerOf(f.t, "l->/nonexistent", "l/x=x")) }, errdefs.ErrInvalidArgument, []string{"link to nowhere"}},
		"not an archive": {func(f *fake) {
			f.image("app", imageLayer{tar: bytes.Repeat([]byte("rubbish "), 1000)})
		}, errdefs.ErrInvalidArgument, []string{"not well formed"}},
		"another compression": {func(f *fake) {
			f.image("app", imageLayer{tar: []byte("BZh91AY&SY"), compress: "none"})
		}, errdefs.ErrNotImplemented, []string{"bzip2"}},
		"a bomb": {func(f *fake) {
			f.image("app", layerOf(f.t, "zeros="+strings.Repeat("\x00", 64<<20)))
		}, errdefs.ErrResourceExhausted, []string{"more than the 33554432 bytes allowed"}},
		"fewer layers than digests": {func(f *fake) {
			d, _ := f.image("app", good, good)
			raw := bytes.Replace(f.blobs[d.Digest], []byte(`},{"mediaType":"application/vnd.oci.image.layer`), []byte(`}],"x":[{"mediaType":"application/vnd.oci.image.layer`), 1)
			f.tag("app", f.add(ocispec.MediaTypeImageManifest, raw))
		}, errdefs.ErrInvalidArgument, []string{"tells of 2 layers, its manifest of 1"}},
		"schema 1": {func(f *fake) {
			f.tag("app", f.add(registry.DockerSchema1Signed, []byte(`{"schemaVersion":1,"fsLayers":[]}`)))
		}, errdefs.ErrNotImplemented, []string{"schema 1", "push it again"}},
		"an artifact": {func(f *fake) {
			m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, Config: f.add("application/vnd.cncf.helm.config.v1+json", []byte("{}"))}
			f.tag("app", f.json(ocispec.MediaTypeImageManifest, m))
		}, errdefs.ErrInvalidArgument, []string{"no image but an artifact", "helm"}},
		"Windows": {func(f *fake) {
			m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, Config: f.add(ocispec.MediaTypeImageConfig, []byte(`{"os":"windows","architecture":"amd64"}`))}
			f.tag("app", f.json(ocispec.MediaTypeImageManifest, m))
		}, errdefs.ErrFailedPrecondition, []string{"it is for windows"}},
		"a digest that is none": {func(f *fake) {
			m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, Config: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: "sha256:../../../../etc/passwd", Size: 2}}
			f.tag("app", f.json(ocispec.MediaTypeImageManifest, m))
		}, errdefs.ErrInvalidArgument, []string{"invalid"}},
		"a loop of indexes": {func(f *fake) {
			d := f.json(ocispec.MediaTypeImageIndex, ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex})
			for range 4 {
				d = f.json(ocispec.MediaTypeImageIndex, ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{d}})
			}
			f.tag("app", d)
		}, errdefs.ErrInvalidArgument, []string{"nested more than three deep"}},
	} {
		t.Run(name, func(t *testing.T) {
			for _, driver := range []string{"overlay", "native"} {
				w, f := newWorld(t, ""), newFake(t)
				w.o.Limits = unpack.Limits{Bytes: 32 << 20}
				c.make(f)
				_, _, err := w.pull(f, "app", on(driver))
				if !errors.Is(err, c.class) {
					t.Fatalf("%s: %v", driver, err)
				}
				for _, s := range append(c.says, "pull image "+f.host+"/app:latest: ") {
					if !strings.Contains(err.Error(), s) {
						t.Errorf("%s: %q is not in: %v", driver, s, err)
					}
				}
				w.clean()
				if found, err := w.List(t.Context(), nil); err != nil || len(found) != 0 {
					t.Errorf("%s: %v, %v", driver, found, err)
				}
				if left := w.ingest(); len(left) > 0 && c.class != errdefs.ErrUnavailable { //nolint:errorlint // which one it is
					t.Errorf("%s: half a blob is left: %v", driver, left)
				}
				f.image("good", good)
				if _, _, err := w.pull(f, "good", on(driver)); err != nil {
					t.Errorf("%s: the next one: %v", driver, err)
				}
				w.clean()
			}
		})
	}
}

func TestUnreachable(t *testing.T) {
	w := newWorld(t, "")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	host := l.Addr().String()
	l.Close()
	_, err = w.Pull(t.Context(), &imagesv1.PullRequest{Ref: host + "/app"}, nil)
	if !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), host) || !strings.Contains(err.Error(), "check the name, the network, or a proxy") {
		t.Fatal(err)
	}
	w.clean()
}

// TestFullDisk: while downloading and while unpacking; afterwards there is room again.
func TestFullDisk(t *testing.T) {
	for name, c := range map[string]struct{ body, compress string }{
		"downloading": {big(1, 12<<20), "none"},
		"unpacking":   {strings.Repeat("x", 30<<20), "gzip"},
	} {
		for _, driver := range []string{"overlay", "native"} {
			t.Run(name+" "+driver, func(t *testing.T) {
				w, f := newWorld(t, "8m"), newFake(t)
				l := layerOf(t, "x="+c.body)
				l.compress = c.compress
				f.image("app", layerOf(t, "good=good"), l)
				_, _, err := w.pull(f, "app", on(driver))
				if !errdefs.IsResourceExhausted(err) || !strings.Contains(err.Error(), "no space left on device") || !strings.Contains(err.Error(), w.root) {
					t.Fatal(err)
				}
				if !strings.Contains(err.Error(), "make room") { // also where a driver is the first to notice
					t.Error("it does not say what to do:", err)
				}
				w.clean()
				f.image("small", layerOf(t, "x="+big(2, 1<<20)))
				_, _, err = w.pull(f, "small", on(driver))
				for deadline := time.Now().Add(10 * time.Second); errdefs.IsResourceExhausted(err) && time.Now().Before(deadline); {
					_, _, err = w.pull(f, "small", on(driver)) // drivers delete in the background
				}
				if err != nil {
					t.Error("the next one:", err)
				}
				w.clean()
			})
		}
	}
}

func TestBadRequests(t *testing.T) {
	w := newWorld(t, "")
	for name, req := range map[string]*imagesv1.PullRequest{
		"no name":  {},
		"bad name": {Ref: "A b"},
		"platform": {Ref: "debian", Platform: "linux/"},
	} {
		if _, err := w.Pull(t.Context(), req, nil); !errdefs.IsInvalidArgument(err) {
			t.Error(name, err)
		}
	}
}
