// Package volumes owns volumes. It is the only caller of volume backends.
package volumes

import (
	"context"

	"github.com/gantryd/gantry/internal/meta"
	"github.com/gantryd/gantry/plugins/volume"
	containersv1 "github.com/gantryd/gantry/proto/gantry/containers/v1"
	typesv1 "github.com/gantryd/gantry/proto/gantry/types/v1"
)

// Drivers finds volume backends.
type Drivers interface {
	Volume(name string) (volume.Backend, error)
}

// Service is the verbs.
type Service struct{}

// New returns a Service.
func New(db *meta.DB, d Drivers) *Service { return &Service{} }

// Mount makes a container's volumes usable.
func (s *Service) Mount(ctx context.Context, op *meta.Op, c *containersv1.Container) ([]*typesv1.Mount, error) {
	return nil, nil
}

// Unmount ends that use.
func (s *Service) Unmount(ctx context.Context, op *meta.Op, c *containersv1.Container) error {
	return nil
}
