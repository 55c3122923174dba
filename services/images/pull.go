package images

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/gantryd/gantry/internal/fault"
	"github.com/gantryd/gantry/internal/meta"
	"github.com/gantryd/gantry/internal/registry"
	"github.com/gantryd/gantry/internal/rpc"
	imagesv1 "github.com/gantryd/gantry/proto/gantry/images/v1"
	storev1 "github.com/gantryd/gantry/proto/gantry/store/v1"
	typesv1 "github.com/gantryd/gantry/proto/gantry/types/v1"
	"github.com/gantryd/gantry/services/images/hello"
)

// Report is told how a pull goes. It must not wait.
type Report func(*typesv1.Progress)

// Pull fetches and unpacks an image. Stopped half way it leaves the blobs that are whole, and what came of those that are not,
// for the next pull.
func (s *Service) Pull(ctx context.Context, req *imagesv1.PullRequest, report Report) (img *imagesv1.Image, err error) {
	name, err := registry.Parse(req.GetRef())
	if err != nil {
		return nil, err
	}
	want, err := parsePlatform(req.GetPlatform(), s.platform)
	if err != nil {
		return nil, err
	}
	defer func() {
		if errdefs.IsResourceExhausted(err) && !strings.Contains(err.Error(), "make room") { // a driver was the first to notice
			err = fmt.Errorf("%w: make room on the filesystem of %s (`gantry system df` shows what gantry keeps)", err, s.Blobs.Root())
		}
		if err != nil {
			err = fmt.Errorf("pull image %s: %w", name, err)
		}
	}()
	if report == nil {
		report = func(*typesv1.Progress) {}
	}
	snapshotter := s.o.Snapshotter
	switch {
	case req.GetNoUnpack():
		snapshotter = ""
	case req.GetSnapshotter() != "":
		snapshotter = req.GetSnapshotter()
	}
	if name.String() == hello.Name {
		return s.hello(ctx, snapshotter, report)
	}
	a := req.GetAuth()
	repo := s.Registry.Repository(name, registry.Options{
		Auth:      registry.Auth{Username: a.GetUsername(), Password: a.GetPassword(), IdentityToken: a.GetIdentityToken()},
		PlainHTTP: req.GetPlainHttp(),
	})
	report(&typesv1.Progress{Verb: "resolve", Message: name.String()})
	target, err := repo.Resolve(ctx)
	if err != nil {
		return nil, err
	}
	c, err := read(ctx, s.reader(repo), target, want, req.GetPlatform() != "")
	if err != nil {
		return nil, err
	}
	if have := c.platform(); want.rank(have) < 0 {
		report(&typesv1.Progress{Verb: "resolve", Message: fmt.Sprintf("the image is for %s, and this host is %s", have, want)})
	}
	return s.receive(ctx, "image.pull", c, name.String(), repo, snapshotter, report)
}

// reader reads documents from the store where they are here already, else from a registry.
func (s *Service) reader(repo *registry.Repository) reader {
	return func(ctx context.Context, kind string, desc ocispec.Descriptor) ([]byte, error) {
		if raw, err := s.Blobs.Read(desc.Digest, registry.MaxManifest); err == nil && int64(len(raw)) == desc.Size {
			return raw, nil
		}
		if kind == "config" {
			return repo.Config(ctx, desc)
		}
		return repo.Manifest(ctx, desc)
	}
}

// local reads documents that must be here.
func (s *Service) local(_ context.Context, _ string, desc ocispec.Descriptor) ([]byte, error) {
	return s.Blobs.Read(desc.Digest, registry.MaxManifest)
}

// receive takes an image in: its blobs from src, its layers into snapshotter ("" for nowhere), its records at the end, all at once.
func (s *Service) receive(ctx context.Context, verb string, c *content, name string, src source, snapshotter string, report Report) (img *imagesv1.Image, err error) {
	var op *meta.Op
	if err := rpc.Retry(ctx, func(context.Context) (err error) {
		op, err = s.DB.Begin(verb, s.claims(c, snapshotter)...)
		return err
	}); err != nil {
		return nil, err
	}
	defer op.End(ctx, &err)
	fault.Point("images.pull.claimed")
	for _, d := range c.documents {
		if err := s.putDocument(ctx, d); err != nil {
			return nil, err
		}
	}
	t := &transfer{s: s, op: op, c: c, src: src, snapshotter: snapshotter, report: report, bytes: make([]int64, len(c.layers))}
	if err := t.run(ctx); err != nil {
		return nil, err
	}
	fault.Point("images.pull.unpacked")
	img = c.record(name, t.bytes)
	if snapshotter != "" {
		img.Unpacked = []string{snapshotter}
	}
	return img, op.Commit(func(tx *meta.Tx) error {
		if err := putBlobs(tx, c.blobs()); err != nil {
			return err
		}
		img.Local = verb != "image.pull" && localName(tx, name, img.GetMeta().GetId())
		return put(tx, img)
	})
}

// claims are what a pull uses: all its blobs and, by their chain ids, the snapshots of its layers.
func (s *Service) claims(c *content, snapshotter string) (out []*storev1.Claim) {
	seen := map[digest.Digest]bool{}
	use := func(d digest.Digest) {
		if !seen[d] {
			seen[d] = true
			out = append(out, blobClaim(d.String(), meta.Use))
		}
	}
	for _, d := range c.documents {
		use(d.desc.Digest)
	}
	for _, l := range c.layers {
		use(l.Digest)
		if snapshotter != "" {
			out = append(out, s.Snapshots.ClaimFor(snapshotter, l.chainID.String(), meta.Use))
		}
	}
	return out
}

// putDocument stores a document. One that is here but damaged is replaced.
func (s *Service) putDocument(ctx context.Context, d document) error {
	if raw, err := s.Blobs.Read(d.desc.Digest, registry.MaxManifest); err == nil && int64(len(raw)) == d.desc.Size {
		return nil
	} else if errdefs.IsDataLoss(err) {
		if err := s.Blobs.Remove(d.desc.Digest); err != nil {
			return err
		}
	}
	return s.Blobs.Put(ctx, d.desc, newBytes(d.raw))
}

// unpackFor unpacks an image that is here for another driver.
func (s *Service) unpackFor(ctx context.Context, img *imagesv1.Image, snapshotter string) (*imagesv1.Image, error) {
	name := img.GetMeta().GetName()
	c, err := s.contentOf(ctx, img)
	if err == nil {
		img, err = s.receive(ctx, "image.unpack", c, name, elsewhere{name}, snapshotter, func(*typesv1.Progress) {})
	}
	if err != nil {
		return nil, fmt.Errorf("unpack image %s: %w", name, err)
	}
	return img, nil
}

// contentOf reads an image's documents again.
func (s *Service) contentOf(ctx context.Context, img *imagesv1.Image) (*content, error) {
	p, err := parsePlatform(img.GetPlatform(), s.platform)
	if err != nil {
		return nil, err
	}
	t := img.GetTarget()
	c, err := read(ctx, s.local, ocispec.Descriptor{MediaType: t.GetMediaType(), Digest: digest.Digest(t.GetDigest()), Size: t.GetSize()}, p, false)
	if errdefs.IsNotFound(err) {
		return nil, fmt.Errorf("%w: fetch it with: gantry pull %s", errors.Join(errdefs.ErrDataLoss, err), img.GetMeta().GetName())
	}
	return c, err
}

// memory is a source of what is in memory.
type memory map[digest.Digest][]byte

func (m memory) Fetch(_ context.Context, desc ocispec.Descriptor, offset int64, w io.Writer) error {
	raw, ok := m[desc.Digest]
	if !ok {
		return fmt.Errorf("blob %s is not there: %w", desc.Digest, errdefs.ErrNotFound)
	}
	_, err := w.Write(raw[offset:])
	return err
}

// hello puts the image that is in the daemon in place.
func (s *Service) hello(ctx context.Context, snapshotter string, report Report) (*imagesv1.Image, error) {
	if report == nil {
		report = func(*typesv1.Progress) {}
	}
	img, err := hello.New(s.platform.Architecture)
	if err != nil {
		return nil, err
	}
	report(&typesv1.Progress{Verb: "resolve", Message: hello.Name + " is part of the daemon"})
	c, err := read(ctx, func(_ context.Context, _ string, d ocispec.Descriptor) ([]byte, error) {
		return img.Content[d.Digest], nil
	},
		img.Manifest, s.platform, false)
	if err != nil {
		return nil, fmt.Errorf("image hello: %w", err)
	}
	return s.receive(ctx, "image.import", c, hello.Name, memory(img.Content), snapshotter, report)
}

// keepPartial is how long what arrived in part is kept for another try.
const keepPartial = 7 * 24 * time.Hour

// Recover takes up where the last daemon left off. It is called after the database's own.
func (s *Service) Recover(context.Context) error {
	_, err := s.Blobs.Prune(time.Now().Add(-keepPartial))
	return err
}
