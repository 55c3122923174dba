// Package images owns image names and the blobs they reach.
//
// An image is a name for content: a record in the table "images" under its full reference
// ("docker.io/library/debian:12"), which leads to blobs by digest and to snapshots by chain id. What is named by its content
// is only ever USEd by a pull, so two pulls that share layers share them: one of them fetches and unpacks
// each, and neither can take away what the other relies on. What nothing leads to any more is the collector's.
//
// A name that is given to newer content leaves its old content under "repository@digest", so that nothing a container was made from
// goes without being asked to; such an image, without any tag, is called dangling.
//
// The image "hello" is part of the daemon. It is put in place when it is first asked for and the name means
// nothing else: a tag of one's own of that name comes first.
//
// Files: pull.go is the journey, layers.go the transfer and unpacking of layers, manifest.go reads what registries send, find.go
// knows what a user means by a name, remove.go and collect.go let go.
package images

import (
	"context"
	"fmt"
	"io"
	"runtime"
	"sync"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/gantryd/gantry/internal/blob"
	"github.com/gantryd/gantry/internal/gc"
	"github.com/gantryd/gantry/internal/meta"
	"github.com/gantryd/gantry/internal/registry"
	"github.com/gantryd/gantry/internal/unpack"
	snapshotsv1 "github.com/gantryd/gantry/proto/gantry/snapshots/v1"
	storev1 "github.com/gantryd/gantry/proto/gantry/store/v1"
	typesv1 "github.com/gantryd/gantry/proto/gantry/types/v1"
	"github.com/gantryd/gantry/snapshotters"
)

// Snapshots is where layers are unpacked. Its verbs act under the caller's operation.
type Snapshots interface {
	Prepare(ctx context.Context, op *meta.Op, snapshotter, key, parent string, o snapshotters.Options) ([]*typesv1.Mount, error)
	Commit(ctx context.Context, op *meta.Op, snapshotter, key, name, parent string) error
	Remove(ctx context.Context, op *meta.Op, snapshotter, key string) error
	// Held says whether name is committed, and makes sure that it is recorded when op commits.
	Held(ctx context.Context, op *meta.Op, snapshotter, name string) (bool, error)
	// Rebase says whether layers may be unpacked side by side.
	Rebase(ctx context.Context, snapshotter string) (bool, error)
	ClaimFor(snapshotter, key string, mode storev1.Claim_Mode) *storev1.Claim
	Get(ctx context.Context, snapshotter, key string) (*snapshotsv1.Snapshot, error)
}

// User is a container that was made from an image.
type User struct {
	ID, Name string
	Running  bool
}

// Users finds the containers that were made from an image, by its id.
type Users func(tx *meta.Tx, imageID string) []User

// Options of the service. Zero numbers mean the defaults.
type Options struct {
	Snapshotter string // the default driver
	Downloads   int    // at a time, of all pulls: 3
	Unpacks     int    // likewise: one more than there are processors
	Limits      unpack.Limits
	Platform    string // of this host; "" is right outside of tests
}

// Parts are what the service works with.
type Parts struct {
	DB        *meta.DB
	Blobs     *blob.Store
	Registry  *registry.Client
	Snapshots Snapshots
	// Collector drops what a removed image leaves behind. With nil it stays until somebody collects.
	Collector *gc.Collector
	// Users may be nil: then nobody uses anything.
	Users Users
}

// Service is the verbs.
type Service struct {
	Parts
	o         Options
	platform  platform
	unpacks   slots
	unpacking locks // by driver and chain id

	mu        sync.Mutex
	downloads slots
	sizes     map[string]int64 // of layers unpacked since we began, by diff id
}

// kinds of refs
const (
	kindImage = "image" // key: the image's id
	kindBlob  = "blob"  // key: the digest
)

// New returns a Service. It has told db how to take its claims back.
func New(o Options, p Parts) (*Service, error) {
	if o.Downloads <= 0 {
		o.Downloads = 3
	}
	if o.Unpacks <= 0 {
		o.Unpacks = runtime.NumCPU() + 1
	}
	host, err := parsePlatform(o.Platform, platform{OS: "linux", Architecture: runtime.GOARCH})
	if err != nil {
		return nil, err
	}
	s := &Service{
		Parts: p, o: o, platform: host, downloads: make(slots, o.Downloads), unpacks: make(slots, o.Unpacks), sizes: map[string]int64{},
	}
	p.DB.OnUndo(kindBlob, s.undoBlob)
	p.DB.OnUndo(kindImage, func(context.Context, *storev1.Claim) error { return nil }) // all of an image but its blobs is in the store
	return s, nil
}

// Configure replaces what is known of registries, and how much is downloaded at a time. What is under way goes on as it began.
func (s *Service) Configure(hosts map[string]registry.Host, downloads int) {
	s.Registry.Configure(hosts)
	s.mu.Lock()
	defer s.mu.Unlock()
	if downloads > 0 && downloads != cap(s.downloads) {
		s.downloads = make(slots, downloads)
	}
}

// downloading are the slots of downloads that begin now.
func (s *Service) downloading() slots {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.downloads
}

// blobClaim is a claim on a blob.
func blobClaim(digest string, mode storev1.Claim_Mode) *storev1.Claim {
	return &storev1.Claim{Ref: &storev1.Ref{Kind: kindBlob, Key: digest}, Mode: mode}
}

func imageClaim(id string, mode storev1.Claim_Mode) *storev1.Claim {
	return &storev1.Claim{Ref: &storev1.Ref{Kind: kindImage, Key: id}, Mode: mode}
}

// source is where blobs come from.
type source interface {
	// Fetch writes a blob to w from offset on.
	Fetch(ctx context.Context, desc ocispec.Descriptor, offset int64, w io.Writer) error
}

// elsewhere is the source of what must be here already.
type elsewhere struct{ name string }

func (e elsewhere) Fetch(_ context.Context, desc ocispec.Descriptor, _ int64, _ io.Writer) error {
	return fmt.Errorf("blob %s is missing: fetch it with: gantry pull %s: %w", desc.Digest, e.name, errdefs.ErrDataLoss)
}

// slots bound what is done at a time.
type slots chan struct{}

func (s slots) take(ctx context.Context) (give func(), err error) {
	select {
	case s <- struct{}{}:
		return func() { <-s }, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// locks are locks by name, waited for under a context.
type locks struct {
	mu   sync.Mutex
	held map[string]chan struct{}
}

func (l *locks) lock(ctx context.Context, name string) (unlock func(), err error) {
	for {
		l.mu.Lock()
		other, busy := l.held[name]
		mine := make(chan struct{})
		if !busy {
			if l.held == nil {
				l.held = map[string]chan struct{}{}
			}
			l.held[name] = mine
		}
		l.mu.Unlock()
		if !busy {
			return func() {
				l.mu.Lock()
				defer l.mu.Unlock()
				delete(l.held, name)
				close(mine)
			}, nil
		}
		select {
		case <-other:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}
