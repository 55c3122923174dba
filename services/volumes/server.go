package volumes

import (
	"context"

	"google.golang.org/grpc"

	volumesv1 "github.com/gantryd/gantry/proto/gantry/volumes/v1"
)

// Register offers s on r. Errors get their codes from the interceptors of internal/rpc.
func (s *Service) Register(r grpc.ServiceRegistrar) {
	volumesv1.RegisterVolumesServiceServer(r, &server{s: s})
}

type server struct {
	volumesv1.UnimplementedVolumesServiceServer
	s *Service
}

func (v *server) Create(ctx context.Context, r *volumesv1.CreateRequest) (*volumesv1.CreateResponse, error) {
	got, err := v.s.Create(ctx, r.GetVolume())
	if err != nil {
		return nil, err
	}
	return &volumesv1.CreateResponse{Volume: got}, nil
}

func (v *server) Get(_ context.Context, r *volumesv1.GetRequest) (*volumesv1.GetResponse, error) {
	got, err := v.s.Get(r.GetRef())
	if err != nil {
		return nil, err
	}
	return &volumesv1.GetResponse{Volume: got, ContainerIds: got.GetContainerIds()}, nil
}

func (v *server) List(r *volumesv1.ListRequest, stream grpc.ServerStreamingServer[volumesv1.ListResponse]) error {
	for got, err := range v.s.All(r.GetFilters()) {
		if err != nil {
			return err
		}
		if err := stream.Send(&volumesv1.ListResponse{Volume: got}); err != nil {
			return err
		}
	}
	return nil
}

func (v *server) Remove(ctx context.Context, r *volumesv1.RemoveRequest) (*volumesv1.RemoveResponse, error) {
	if err := v.s.Remove(ctx, r.GetRef()); err != nil {
		return nil, err
	}
	return &volumesv1.RemoveResponse{}, nil
}
