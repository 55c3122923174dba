package system

import (
	"context"

	"google.golang.org/grpc"

	systemv1 "github.com/gantryd/gantry/proto/gantry/system/v1"
)

// Register offers s on r. Errors get their codes from the interceptors of internal/rpc.
func (s *Service) Register(r grpc.ServiceRegistrar) {
	systemv1.RegisterSystemServiceServer(r, &server{s: s})
}

type server struct {
	systemv1.UnimplementedSystemServiceServer
	s *Service
}

func (v *server) Info(ctx context.Context, _ *systemv1.InfoRequest) (*systemv1.InfoResponse, error) {
	return v.s.Info(ctx)
}

func (v *server) Usage(ctx context.Context, _ *systemv1.UsageRequest) (*systemv1.UsageResponse, error) {
	all, err := v.s.Usage(ctx)
	if err != nil {
		return nil, err
	}
	return &systemv1.UsageResponse{Usage: all}, nil
}

func (v *server) Check(r *systemv1.CheckRequest, stream grpc.ServerStreamingServer[systemv1.CheckResponse]) error {
	return v.s.Check(stream.Context(), r.GetRepair(), stream.Send)
}

func (v *server) ListPlugins(_ *systemv1.ListPluginsRequest, stream grpc.ServerStreamingServer[systemv1.ListPluginsResponse]) error {
	for _, p := range v.s.ListPlugins(stream.Context()) {
		if err := stream.Send(&systemv1.ListPluginsResponse{Plugin: p}); err != nil {
			return err
		}
	}
	return nil
}

func (v *server) RestartPlugin(ctx context.Context, r *systemv1.RestartPluginRequest) (*systemv1.RestartPluginResponse, error) {
	p, err := v.s.RestartPlugin(ctx, r.GetFamily(), r.GetName())
	if err != nil {
		return nil, err
	}
	return &systemv1.RestartPluginResponse{Plugin: p}, nil
}
