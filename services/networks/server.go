package networks

import (
	"context"

	"google.golang.org/grpc"

	networksv1 "github.com/gantryd/gantry/proto/gantry/networks/v1"
)

// Register offers s on r. Errors get their codes from the interceptors of internal/rpc.
func (s *Service) Register(r grpc.ServiceRegistrar) {
	networksv1.RegisterNetworksServiceServer(r, &server{s: s})
}

type server struct {
	networksv1.UnimplementedNetworksServiceServer
	s *Service
}

func (v *server) Create(ctx context.Context, r *networksv1.CreateRequest) (*networksv1.CreateResponse, error) {
	n, err := v.s.Create(ctx, r.GetNetwork())
	if err != nil {
		return nil, err
	}
	return &networksv1.CreateResponse{Network: n}, nil
}

func (v *server) Get(_ context.Context, r *networksv1.GetRequest) (*networksv1.GetResponse, error) {
	n, on, err := v.s.Get(r.GetRef())
	if err != nil {
		return nil, err
	}
	return &networksv1.GetResponse{Network: n, Endpoints: on}, nil
}

func (v *server) List(r *networksv1.ListRequest, stream grpc.ServerStreamingServer[networksv1.ListResponse]) error {
	for n, err := range v.s.All(r.GetFilters()) {
		if err != nil {
			return err
		}
		if err := stream.Send(&networksv1.ListResponse{Network: n}); err != nil {
			return err
		}
	}
	return nil
}

func (v *server) Remove(ctx context.Context, r *networksv1.RemoveRequest) (*networksv1.RemoveResponse, error) {
	if err := v.s.Remove(ctx, r.GetRef()); err != nil {
		return nil, err
	}
	return &networksv1.RemoveResponse{}, nil
}
