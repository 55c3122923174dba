package images

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/internal/meta"
	imagesv1 "github.com/gantryd/gantry/proto/gantry/images/v1"
	"github.com/gantryd/gantry/services/images/hello"
	"github.com/gantryd/gantry/snapshotters"
)

func on(driver string) func(*imagesv1.PullRequest) {
	return func(r *imagesv1.PullRequest) { r.Snapshotter = driver }
}

// TestPull is the journey, for both drivers and both families of manifests: what the layers hold is what is in the snapshot.
func TestPull(t *testing.T) {
	for family, k := range map[string]kinds{"oci": oci, "docker": docker} {
		t.Run(family, func(t *testing.T) { pullsWhatTheLayersHold(t, k) })
	}
}

func pullsWhatTheLayersHold(t *testing.T, k kinds) {
	w, f := newWorld(t, ""), newFake(t)
	layers := []imageLayer{
		layerOf(t, "./", "etc/", "etc/a=first", "etc/b=first", "bin/", "bin/sh=shell", "old/", "old/x=x"),
		layerOf(t, "etc/a=second", "etc/b!", "bin/bash=>bin/sh", "lib->bin"), // a hard link to a file below
		layerOf(t, "old/", "old/.wh..opq=", "old!", "new/", "new/z="+big(1, 300_000)),
		layerOf(t),
	}
	layers[1].compress, layers[2].compress = "zstd", "none"
	desc, _ := f.imageOf(k, "app", layers...)
	want := []string{"bin/", "bin/bash=shell", "bin/sh=shell", "etc/", "etc/a=second", "lib L---------", "new/", "new/z=" + big(1, 20)}
	for _, driver := range []string{"overlay", "native"} {
		img, said, err := w.pull(f, "app", on(driver))
		if err != nil {
			t.Fatal(driver, err)
		}
		if img.GetManifest().GetMediaType() != k.manifest || img.GetConfigDescriptor().GetMediaType() != k.config || img.GetLayers()[0].GetBlob().GetMediaType() != k.layer {
			t.Errorf("%s: the kinds are %s, %s and %s", driver, img.GetManifest().GetMediaType(), img.GetConfigDescriptor().GetMediaType(), img.GetLayers()[0].GetBlob().GetMediaType())
		}
		if img.GetTarget().GetDigest() != desc.Digest.String() || img.GetPlatform() != "linux/amd64" || len(img.GetLayers()) != 4 ||
			img.GetMeta().GetName() != f.host+"/app:latest" || img.GetMeta().GetId() != img.GetConfigDescriptor().GetDigest() ||
			img.GetConfig().GetCmd()[0] != "/bin/app" || img.GetConfig().GetExposedPorts()[0] != "80/tcp" || img.GetLayers()[3].GetCreatedBy() != "step" {
			t.Errorf("%s: %v", driver, img)
		}
		var bytes int64
		for i, l := range img.GetLayers() {
			if l.GetBytes() != int64(len(layers[i].tar)) {
				t.Errorf("%s: layer %d has %d bytes, not %d", driver, i, l.GetBytes(), len(layers[i].tar))
			}
			bytes += l.GetBytes()
		}
		if img.GetBytes() != bytes {
			t.Error(driver, img.GetBytes())
		}
		last := map[string]string{}
		for _, p := range said {
			last[p.GetId()] = p.GetVerb()
		}
		for _, l := range img.GetLayers() {
			if v := last[meta.Short(l.GetBlob().GetDigest())]; v != "done" && v != "exists" {
				t.Errorf("%s: the last word on %s is %q", driver, l.GetBlob().GetDigest(), v)
			}
		}
		w.look(img, driver, func(root string) {
			got := files(t, root)
			got = slices.DeleteFunc(got, func(s string) bool { return strings.HasPrefix(s, "old") })
			if !slices.Equal(got, want) {
				t.Errorf("%s:\n got %q\nwant %q", driver, got, want)
			}
			var a, b unix.Stat_t
			if err := errors.Join(unix.Stat(root+"/bin/sh", &a), unix.Stat(root+"/bin/bash", &b)); err != nil || a.Ino != b.Ino {
				t.Error(driver, "the hard link is none:", err)
			}
			if fi, err := os.Stat(root + "/etc"); err != nil || fi.ModTime().Unix() != 1e9 || fi.ModTime().Nanosecond() != 5 {
				t.Error(driver, "a directory that a later layer writes into has another time:", fi.ModTime(), err)
			}
		})
		w.clean()
	}
	got, err := w.Get(t.Context(), f.host+"/app")
	if err != nil || !slices.Equal(got.GetUnpacked(), []string{"native", "overlay"}) {
		t.Fatal(got.GetUnpacked(), err)
	}
	for d, n := range f.asked {
		if n > 1 && d != desc.Digest {
			t.Errorf("%s was fetched %d times", d, n)
		}
	}
}

// TestPullAgain: what is here is not fetched again, and a name that moves leaves its old content.
func TestPullAgain(t *testing.T) {
	w, f := newWorld(t, ""), newFake(t)
	base := layerOf(t, "base=base")
	_, _ = f.image("app", base, layerOf(t, "one=1"))
	first, _, err := w.pull(f, "app")
	if err != nil {
		t.Fatal(err)
	}
	again, said, err := w.pull(f, "app")
	if err != nil || again.GetMeta().GetId() != first.GetMeta().GetId() {
		t.Fatal(err)
	}
	for _, p := range said {
		if p.GetVerb() == "download" || p.GetVerb() == "unpack" {
			t.Error("it did again:", p)
		}
	}
	_, _ = f.image("app", base, layerOf(t, "two=2"))
	second, _, err := w.pull(f, "app")
	if err != nil {
		t.Fatal(err)
	}
	found, err := w.List(t.Context(), nil)
	if err != nil || len(found) != 2 {
		t.Fatal(found, err)
	}
	if d := found[1]; d.GetMeta().GetName() != f.host+"/app@"+first.GetTarget().GetDigest() || d.GetMeta().GetId() != first.GetMeta().GetId() || found[0].GetMeta().GetId() != second.GetMeta().GetId() {
		t.Fatal(found)
	}
	for d, n := range f.asked {
		if n > 1 {
			t.Errorf("%s was fetched %d times", d, n)
		}
	}
	if c, _ := w.held("overlay"); len(c) != 3 {
		t.Error("the base is there twice:", c)
	}
	w.clean()
}

// TestPullTogether: pulls of images that share layers fetch and unpack each layer once.
func TestPullTogether(t *testing.T) {
	w, f := newWorld(t, ""), newFake(t)
	var shared []imageLayer
	for i := range 6 {
		shared = append(shared, layerOf(t, fmt.Sprintf("f%d=%s", i, big(byte(i), 200_000))))
	}
	var names []string
	for i := range 4 {
		n := fmt.Sprint("app", i)
		f.image(n, append(slices.Clone(shared), layerOf(t, n+"="+n))...)
		names = append(names, n, n)
	}
	var wg sync.WaitGroup
	for i, n := range names {
		driver := []string{"overlay", "native"}[i%2]
		wg.Go(func() {
			if _, _, err := w.pull(f, n, on(driver)); err != nil {
				t.Error(n, driver, err)
			}
		})
	}
	wg.Wait()
	for d, n := range f.asked {
		if n > 1 && f.types[d] == ocispec.MediaTypeImageLayerGzip {
			t.Errorf("layer %s was fetched %d times", d, n)
		}
	}
	for name := range w.drivers {
		if c, _ := w.held(name); len(c) != 10 {
			t.Error(name, "holds", len(c))
		}
	}
	w.clean()
}

// TestSameLayerTwice: an image may have one layer several times.
func TestSameLayerTwice(t *testing.T) {
	w, f := newWorld(t, ""), newFake(t)
	l := layerOf(t, "x=x")
	f.image("app", l, l, l)
	for _, driver := range []string{"overlay", "native"} {
		if img, _, err := w.pull(f, "app", on(driver)); err != nil || len(img.GetLayers()) != 3 {
			t.Fatal(driver, err)
		}
	}
	w.clean()
}

// TestNoLayers: an image from scratch has nothing to unpack.
func TestNoLayers(t *testing.T) {
	w, f := newWorld(t, ""), newFake(t)
	f.image("scratch")
	img, _, err := w.pull(f, "scratch")
	if err != nil || img.GetChainId() != "" || !slices.Equal(img.GetUnpacked(), []string{"overlay"}) {
		t.Fatal(img, err)
	}
	w.clean()
}

// TestNoUnpack: blobs only; Resolve unpacks later, without the registry.
func TestNoUnpack(t *testing.T) {
	w, f := newWorld(t, ""), newFake(t)
	f.image("app", layerOf(t, "a=a"), layerOf(t, "b=b"))
	img, _, err := w.pull(f, "app", func(r *imagesv1.PullRequest) { r.NoUnpack = true })
	if err != nil || len(img.GetUnpacked()) != 0 {
		t.Fatal(img, err)
	}
	if c, _ := w.held("overlay"); len(c) != 0 {
		t.Fatal(c)
	}
	asked := len(f.asked)
	for _, driver := range []string{"", "native"} {
		img, err := w.Resolve(t.Context(), f.host+"/app", driver)
		if err != nil || !slices.Contains(img.GetUnpacked(), map[string]string{"": "overlay"}[driver]+driver) {
			t.Fatal(driver, img, err)
		}
	}
	if len(f.asked) != asked {
		t.Error("the registry was asked")
	}
	if err := w.Blobs.Remove("sha256:" + "0000000000000000000000000000000000000000000000000000000000000000"); err != nil {
		t.Error(err)
	}
	w.clean()
}

// TestResume: a pull that broke off goes on where it was, in the next daemon too.
func TestResume(t *testing.T) {
	w, f := newWorld(t, ""), newFake(t)
	_, layers := f.image("app", layerOf(t, "a="+big(1, 3_000_000)), layerOf(t, "b=b"))
	var ranges []string
	f.spoil[layers[0].Digest] = func(rw http.ResponseWriter, r *http.Request, b []byte) {
		ranges = append(ranges, r.Header.Get("Range"))
		rw.Header().Set("Content-Length", fmt.Sprint(len(b)))
		_, _ = rw.Write(b[:2_000_000])
		panic(http.ErrAbortHandler)
	}
	_, _, err := w.pull(f, "app")
	if !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "broke off after") {
		t.Fatal(err)
	}
	w.clean()
	if len(w.ingest()) != 1 {
		t.Fatal("nothing was kept:", w.ingest())
	}
	w.stop()
	w.open()
	f.mu.Lock()
	f.spoil[layers[0].Digest] = nil
	f.mu.Unlock()
	img, said, err := w.pull(f, "app")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range said {
		if p.GetId() == meta.Short(layers[0].Digest.String()) && p.GetVerb() == "download" && p.GetCurrent() < 1_000_000 {
			t.Error("it began again:", p)
		}
	}
	w.look(img, "overlay", func(root string) {
		if got := files(t, root); len(got) != 2 {
			t.Error(got)
		}
	})
	if len(w.ingest()) != 0 {
		t.Error("left:", w.ingest())
	}
	w.clean()
	_ = ranges
}

// TestStale: what was kept is damaged; that is found out, and it is fetched from its beginning.
func TestStale(t *testing.T) {
	for _, driver := range []string{"overlay", "native"} {
		w, f := newWorld(t, ""), newFake(t)
		l := layerOf(t, "a="+big(1, 3_000_000))
		l.compress = "none"
		_, layers := f.image("app", l, layerOf(t, "b=b"))
		p := filepath.Join(w.root, "content", "ingest", "sha256-"+layers[0].Digest.Encoded())
		if err := os.WriteFile(p, []byte(big(9, 1_000_000)), 0o600); err != nil {
			t.Fatal(err)
		}
		img, _, err := w.pull(f, "app", on(driver))
		if err != nil {
			t.Fatal(driver, err)
		}
		w.look(img, driver, func(root string) {
			if got := files(t, root); len(got) != 2 {
				t.Error(got)
			}
		})
		w.clean()
	}
}

// TestCancelled: nothing is left when the client goes away.
func TestCancelled(t *testing.T) {
	w, f := newWorld(t, ""), newFake(t)
	_, layers := f.image("app", layerOf(t, "a="+big(1, 3_000_000)), layerOf(t, "b="+big(2, 100)))
	ctx, cancel := context.WithCancelCause(t.Context())
	gone := errors.New("the client went away")
	f.spoil[layers[0].Digest] = func(rw http.ResponseWriter, r *http.Request, b []byte) {
		rw.Header().Set("Content-Length", fmt.Sprint(len(b)))
		_, _ = rw.Write(b[:1_000_000])
		_ = http.NewResponseController(rw).Flush()
		cancel(gone)
		<-r.Context().Done()
	}
	_, err := w.Pull(ctx, &imagesv1.PullRequest{Ref: f.host + "/app"}, nil)
	if !errors.Is(err, gone) {
		t.Fatal(err)
	}
	w.clean()
	if found, _ := w.List(t.Context(), nil); len(found) != 0 {
		t.Error(found)
	}
}

// TestOneOfTwoCancelled: a pull that waits for another's layer does the work itself when the other gives up.
func TestOneOfTwoCancelled(t *testing.T) {
	w, f := newWorld(t, ""), newFake(t)
	_, layers := f.image("app", layerOf(t, "a="+big(1, 2_000_000)))
	ctx, cancel := context.WithCancelCause(t.Context())
	reached, first := make(chan struct{}), true
	f.spoil[layers[0].Digest] = func(rw http.ResponseWriter, r *http.Request, b []byte) {
		f.mu.Lock()
		mine := first
		first = false
		f.mu.Unlock()
		if !mine {
			http.ServeContent(rw, r, "", w.modTime(), newSeeker(b))
			return
		}
		rw.Header().Set("Content-Length", fmt.Sprint(len(b)))
		_, _ = rw.Write(b[:1000])
		_ = http.NewResponseController(rw).Flush()
		close(reached)
		<-r.Context().Done()
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := w.Pull(ctx, &imagesv1.PullRequest{Ref: f.host + "/app"}, nil); err == nil {
			t.Error("the first was to fail")
		}
	})
	<-reached
	wg.Go(func() {
		if _, _, err := w.pull(f, "app"); err != nil {
			t.Error("the second:", err)
		}
	})
	cancel(errors.New("gone"))
	wg.Wait()
	w.clean()
}

// TestIndex: of several platforms the right one is taken, and attestations are not images.
func TestIndex(t *testing.T) {
	w, f := newWorld(t, ""), newFake(t)
	w.platform = platform{OS: "linux", Architecture: "amd64"}
	for name, k := range map[string]kinds{"multi": oci, "list": docker} {
		entry := func(arch string, p *ocispec.Platform) ocispec.Descriptor {
			d, _ := f.imageOf(k, name+"-"+arch, layerOf(t, arch+"="+name))
			d.Platform = p
			return d
		}
		attestation := entry("attestation", &ocispec.Platform{OS: "unknown", Architecture: "unknown"})
		attestation.Annotations = map[string]string{"vnd.docker.reference.type": "attestation-manifest"}
		index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: k.index, Manifests: []ocispec.Descriptor{
			attestation, entry("arm", &ocispec.Platform{OS: "linux", Architecture: "arm64", Variant: "v8"}),
			entry("amd", &ocispec.Platform{OS: "linux", Architecture: "amd64"}),
		}}
		f.tag(name, f.json(k.index, index))
		index.Manifests = index.Manifests[:1]
		f.tag(name+"-none", f.json(k.index, index))
		img, _, err := w.pull(f, name)
		if err != nil || img.GetConfig().GetCmd()[0] != "/bin/"+name+"-amd" || img.GetTarget().GetDigest() == img.GetManifest().GetDigest() ||
			img.GetTarget().GetMediaType() != k.index || img.GetManifest().GetMediaType() != k.manifest {
			t.Fatal(name, img, err)
		}
		if _, _, err := w.pull(f, name+"-none"); !errdefs.IsNotFound(err) {
			t.Fatal(name, err)
		}
	}
	// what is said of itself by the configuration counts for single images
	img, _, err := w.pull(f, "multi", func(r *imagesv1.PullRequest) { r.Platform = "linux/arm64" })
	if !errdefs.IsNotFound(err) { // the test's configurations all say amd64
		t.Fatal(img, err)
	}
	_, _, err = w.pull(f, "multi", func(r *imagesv1.PullRequest) { r.Platform = "linux/s390x" })
	if !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), "not there for linux/s390x, only for linux/amd64, linux/arm64") {
		t.Fatal(err)
	}
	w.clean()
}

// TestHello: the image that is in the daemon needs no registry, and comes after a tag of one's own.
func TestHello(t *testing.T) {
	w, f := newWorld(t, ""), newFake(t)
	w.platform = platform{OS: "linux", Architecture: "amd64"}
	for _, driver := range []string{"overlay", "native"} {
		img, err := w.Resolve(t.Context(), "hello", driver)
		if err != nil || img.GetMeta().GetName() != hello.Name {
			t.Fatal(img, err)
		}
		w.look(img, driver, func(root string) {
			fi, err := os.Stat(filepath.Join(root, "hello"))
			if err != nil || fi.Mode() != 0o755 {
				t.Error(driver, fi, err)
			}
		})
	}
	for _, ref := range []string{"hello", "hello:latest", "docker.io/library/hello"} {
		if _, err := w.Get(t.Context(), ref); err != nil {
			t.Error(ref, err)
		}
		if _, err := w.Pull(t.Context(), &imagesv1.PullRequest{Ref: ref}, nil); err != nil {
			t.Error(ref, err)
		}
	}
	f.image("app", layerOf(t, "mine=mine"))
	mine, _, err := w.pull(f, "app")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Tag(t.Context(), f.host+"/app", "hello"); err != nil {
		t.Fatal(err)
	}
	if img, err := w.Resolve(t.Context(), "hello", ""); err != nil || img.GetMeta().GetId() != mine.GetMeta().GetId() {
		t.Error(img, err)
	}
	for range 2 {
		if _, err := w.Remove(t.Context(), "hello", false); err != nil {
			t.Fatal(err)
		}
		if img, err := w.Resolve(t.Context(), "hello", ""); err != nil || img.GetMeta().GetId() == mine.GetMeta().GetId() {
			t.Error(img, err)
		}
	}
	w.clean()
}

// TestLeftByACrash: what another daemon unpacked and did not record is taken as it is, and known by its size.
func TestLeftByACrash(t *testing.T) {
	w, f := newWorld(t, ""), newFake(t)
	l := layerOf(t, "a=a")
	f.image("app", l)
	if _, _, err := w.pull(f, "app"); err != nil {
		t.Fatal(err)
	}
	w.stop()
	if err := os.Remove(filepath.Join(w.root, "gantry.db")); err != nil {
		t.Fatal(err)
	}
	w.open()
	img, said, err := w.pull(f, "app")
	if err != nil || img.GetBytes() != int64(len(l.tar)) {
		t.Fatal(img.GetBytes(), err)
	}
	for _, p := range said {
		if p.GetVerb() == "unpack" || p.GetVerb() == "download" {
			t.Error(p)
		}
	}
	w.clean()
}

// TestDriverGone: an error of a driver is the pull's, and leaves nothing.
func TestDriverGone(t *testing.T) {
	w, f := newWorld(t, ""), newFake(t)
	f.image("app", layerOf(t, "a=a"))
	if _, _, err := w.pull(f, "app", on("zfs")); !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), "zfs") {
		t.Fatal(err)
	}
	w.clean()
}

var _ snapshotters.Snapshotter
