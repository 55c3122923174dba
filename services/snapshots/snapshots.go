// Package snapshots keeps the records of what storage drivers hold. It is the only caller of them.
package snapshots

import (
	"context"

	"github.com/gantryd/gantry/internal/meta"
	typesv1 "github.com/gantryd/gantry/proto/gantry/types/v1"
	"github.com/gantryd/gantry/snapshotters"
)

// Drivers finds storage drivers.
type Drivers interface {
	Snapshotter(name string) (snapshotters.Snapshotter, error)
}

// Service is the verbs.
type Service struct{}

// New returns a Service.
func New(db *meta.DB, d Drivers) *Service { return &Service{} }

// Prepare claims, then makes, a writable snapshot.
func (s *Service) Prepare(ctx context.Context, op *meta.Op, snapshotter, key, parent string, o snapshotters.Options) ([]*typesv1.Mount, error) {
	return nil, nil
}

// Commit claims, then makes, a committed snapshot of a writable one.
func (s *Service) Commit(ctx context.Context, op *meta.Op, snapshotter, key, name, parent string) error {
	return nil
}

// Mounts says how to mount one.
func (s *Service) Mounts(ctx context.Context, snapshotter, key string) ([]*typesv1.Mount, error) {
	return nil, nil
}

// Remove claims, then drops, one.
func (s *Service) Remove(ctx context.Context, op *meta.Op, snapshotter, key string) error { return nil }
