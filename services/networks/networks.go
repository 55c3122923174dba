// Package networks owns networks, endpoints and addresses. It is the only caller of network drivers.
package networks

import (
	"context"

	"github.com/gantryd/gantry/internal/meta"
	"github.com/gantryd/gantry/plugins/network"
	containersv1 "github.com/gantryd/gantry/proto/gantry/containers/v1"
	networksv1 "github.com/gantryd/gantry/proto/gantry/networks/v1"
)

// Drivers finds network drivers.
type Drivers interface {
	Network(name string) (network.Driver, error)
}

// Service is the verbs.
type Service struct{}

// New returns a Service.
func New(db *meta.DB, d Drivers) *Service { return &Service{} }

// Join gives a container its endpoints, in netns.
func (s *Service) Join(ctx context.Context, op *meta.Op, c *containersv1.Container, netns string) ([]*networksv1.Endpoint, error) {
	return nil, nil
}

// Leave takes them away.
func (s *Service) Leave(ctx context.Context, op *meta.Op, c *containersv1.Container) error {
	return nil
}
