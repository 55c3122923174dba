package snapshots

import (
	"context"

	"google.golang.org/grpc"

	snapshotsv1 "github.com/gantryd/gantry/proto/gantry/snapshots/v1"
)

// Register offers s on r. Errors get their codes from the interceptors of internal/rpc.
func (s *Service) Register(r grpc.ServiceRegistrar) {
	snapshotsv1.RegisterSnapshotsServiceServer(r, &server{s: s})
}

type server struct {
	snapshotsv1.UnimplementedSnapshotsServiceServer
	s *Service
}

func (v *server) Get(ctx context.Context, r *snapshotsv1.GetRequest) (*snapshotsv1.GetResponse, error) {
	got, err := v.s.Get(ctx, r.GetSnapshotter(), r.GetKey())
	if err != nil {
		return nil, err
	}
	return &snapshotsv1.GetResponse{Snapshot: got}, nil
}

func (v *server) List(r *snapshotsv1.ListRequest, stream grpc.ServerStreamingServer[snapshotsv1.ListResponse]) error {
	all, err := v.s.List(stream.Context(), r.GetSnapshotter())
	if err != nil {
		return err
	}
	for _, one := range all {
		if err := stream.Send(&snapshotsv1.ListResponse{Snapshot: one}); err != nil {
			return err
		}
	}
	return nil
}

func (v *server) Usage(ctx context.Context, r *snapshotsv1.UsageRequest) (*snapshotsv1.UsageResponse, error) {
	i, err := v.s.Usage(ctx, r.GetSnapshotter(), r.GetKey())
	if err != nil {
		return nil, err
	}
	return &snapshotsv1.UsageResponse{Bytes: i.Bytes, Inodes: i.Inodes}, nil
}
