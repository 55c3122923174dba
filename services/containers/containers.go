// Package containers owns containers from create to remove.
//
//	server.go      gRPC in, gRPC out
//	containers.go  the verbs
//	keeper.go      one goroutine per container: from what is to what should be
//	next.go        the decision, pure
//	store.go       the table
package containers

import (
	"context"
	"iter"

	"github.com/gantryd/gantry/internal/bundle"
	"github.com/gantryd/gantry/internal/meta"
	"github.com/gantryd/gantry/internal/supervise"
	containersv1 "github.com/gantryd/gantry/proto/gantry/containers/v1"
	imagesv1 "github.com/gantryd/gantry/proto/gantry/images/v1"
	networksv1 "github.com/gantryd/gantry/proto/gantry/networks/v1"
	shimv1 "github.com/gantryd/gantry/proto/gantry/shim/v1"
	typesv1 "github.com/gantryd/gantry/proto/gantry/types/v1"
	"github.com/gantryd/gantry/snapshotters"
)

// Images finds what to run.
type Images interface {
	Resolve(ctx context.Context, ref, snapshotter string) (*imagesv1.Image, error)
}

// Networks joins a container to its networks.
type Networks interface {
	Join(ctx context.Context, op *meta.Op, c *containersv1.Container, netns string) ([]*networksv1.Endpoint, error)
	Leave(ctx context.Context, op *meta.Op, c *containersv1.Container) error
}

// Volumes mounts a container's volumes.
type Volumes interface {
	Mount(ctx context.Context, op *meta.Op, c *containersv1.Container) ([]*typesv1.Mount, error)
	Unmount(ctx context.Context, op *meta.Op, c *containersv1.Container) error
}

// Snapshots makes and drops filesystems.
type Snapshots interface {
	Prepare(ctx context.Context, op *meta.Op, snapshotter, key, parent string, o snapshotters.Options) ([]*typesv1.Mount, error)
	Mounts(ctx context.Context, snapshotter, key string) ([]*typesv1.Mount, error)
	Remove(ctx context.Context, op *meta.Op, snapshotter, key string) error
}

// Shims starts shims and finds them again.
type Shims interface {
	Spawn(ctx context.Context, dir bundle.Dir, boot *shimv1.Boot) (supervise.Shim, error)
	Find(ctx context.Context, dir bundle.Dir) (supervise.Shim, error)
	Bury(ctx context.Context, dir bundle.Dir) (bundle.Exit, error)
}

// Service is the verbs.
type Service struct{}

// New returns a Service.
func New(db *meta.DB, i Images, n Networks, v Volumes, s Snapshots, sh Shims, state string) *Service {
	return &Service{}
}

// Create reserves everything a container needs and starts nothing.
func (s *Service) Create(ctx context.Context, name string, spec *containersv1.Spec) (*containersv1.Container, error) {
	return nil, nil
}

// Start makes running the wanted state and waits until it is, or cannot be.
func (s *Service) Start(ctx context.Context, ref string) (*containersv1.Container, error) {
	return nil, nil
}

// All ranges over the containers that match. It takes no lock.
func (s *Service) All(filters ...string) iter.Seq2[*containersv1.Container, error] { return nil }

// Recover finds what was running when the last daemon ended, and starts the keepers.
func (s *Service) Recover(ctx context.Context) error { return nil }
