// Package images owns image names and the blobs they reach.
package images

import (
	"context"

	"github.com/gantryd/gantry/internal/meta"
	imagesv1 "github.com/gantryd/gantry/proto/gantry/images/v1"
	typesv1 "github.com/gantryd/gantry/proto/gantry/types/v1"
	"github.com/gantryd/gantry/snapshotters"
)

// Snapshots is where layers are unpacked.
type Snapshots interface {
	Prepare(ctx context.Context, op *meta.Op, snapshotter, key, parent string, o snapshotters.Options) ([]*typesv1.Mount, error)
	Commit(ctx context.Context, op *meta.Op, snapshotter, key, name, parent string) error
}

// Service is the verbs.
type Service struct{}

// New returns a Service.
func New(db *meta.DB, s Snapshots) *Service { return &Service{} }

// Resolve finds what to run, unpacked.
func (s *Service) Resolve(ctx context.Context, ref, snapshotter string) (*imagesv1.Image, error) {
	return nil, nil
}
