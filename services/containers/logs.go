package containers

import (
	"context"

	containersv1 "github.com/gantryd/gantry/proto/gantry/containers/v1"
)

// Logs streams what a container has written.
func (s *Service) Logs(ctx context.Context, r *containersv1.LogsRequest, send func([]*containersv1.LogRecord) error) error {
	return nil
}
