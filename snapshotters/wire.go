package snapshotters

import (
	"context"
	"errors"
	"io"
	"iter"

	"github.com/containerd/errdefs/pkg/errgrpc"
	"google.golang.org/grpc"

	"github.com/gantryd/gantry/plugins"
	driverv1 "github.com/gantryd/gantry/proto/gantry/driver/v1"
	typesv1 "github.com/gantryd/gantry/proto/gantry/types/v1"
)

// Register offers d on s.
func Register(s grpc.ServiceRegistrar, d Snapshotter) {
	driverv1.RegisterSnapshotterServiceServer(s, &server{d: d})
}

// server is gRPC in, driver, gRPC out.
type server struct {
	driverv1.UnimplementedSnapshotterServiceServer
	d Snapshotter
}

func (s *server) Prepare(ctx context.Context, r *driverv1.PrepareRequest) (*driverv1.PrepareResponse, error) {
	m, err := s.d.Prepare(ctx, r.GetKey(), r.GetParent(), Options{MaxBytes: r.GetMaxBytes(), Labels: r.GetLabels(), Volatile: r.GetVolatile()})
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	return &driverv1.PrepareResponse{Mounts: toMounts(m)}, nil
}

func (s *server) View(ctx context.Context, r *driverv1.ViewRequest) (*driverv1.ViewResponse, error) {
	m, err := s.d.View(ctx, r.GetKey(), r.GetParent(), Options{Labels: r.GetLabels()})
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	return &driverv1.ViewResponse{Mounts: toMounts(m)}, nil
}

func (s *server) Mounts(ctx context.Context, r *driverv1.MountsRequest) (*driverv1.MountsResponse, error) {
	m, err := s.d.Mounts(ctx, r.GetKey())
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	return &driverv1.MountsResponse{Mounts: toMounts(m)}, nil
}

func (s *server) Commit(ctx context.Context, r *driverv1.CommitRequest) (*driverv1.CommitResponse, error) {
	if err := s.d.Commit(ctx, r.GetKey(), r.GetName(), r.GetParent()); err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	return &driverv1.CommitResponse{}, nil
}

func (s *server) Remove(ctx context.Context, r *driverv1.RemoveRequest) (*driverv1.RemoveResponse, error) {
	if err := s.d.Remove(ctx, r.GetKey()); err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	return &driverv1.RemoveResponse{}, nil
}

func (s *server) Stat(ctx context.Context, r *driverv1.StatRequest) (*driverv1.StatResponse, error) {
	i, err := s.d.Stat(ctx, r.GetKey())
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	return &driverv1.StatResponse{Info: toInfo(i)}, nil
}

func (s *server) List(_ *driverv1.ListRequest, stream grpc.ServerStreamingServer[driverv1.ListResponse]) error {
	for i, err := range s.d.All(stream.Context()) {
		if err != nil {
			return errgrpc.ToGRPC(err)
		}
		if err := stream.Send(&driverv1.ListResponse{Info: toInfo(i)}); err != nil {
			return err
		}
	}
	return nil
}

// NewClient returns the driver at the other end of cc. Errors have the class they had there.
func NewClient(cc grpc.ClientConnInterface) Snapshotter {
	return &client{c: driverv1.NewSnapshotterServiceClient(cc)}
}

type client struct {
	c driverv1.SnapshotterServiceClient
}

// checkKeys looks at keys on this side: protobuf would refuse what is not UTF-8, with an error of
// a class that tells the caller nothing.
func checkKeys(keys ...string) error {
	for _, k := range keys {
		if err := CheckKey(k); err != nil {
			return err
		}
	}
	return nil
}

// withParent adds a parent to the keys to check, unless there is none.
func withParent(parent string, keys ...string) []string {
	if parent == "" {
		return keys
	}
	return append(keys, parent)
}

func (c *client) Prepare(ctx context.Context, key, parent string, o Options) ([]plugins.Mount, error) {
	if err := checkKeys(withParent(parent, key)...); err != nil {
		return nil, err
	}
	r, err := c.c.Prepare(ctx, &driverv1.PrepareRequest{Key: key, Parent: parent, MaxBytes: o.MaxBytes, Labels: o.Labels, Volatile: o.Volatile})
	if err != nil {
		return nil, errgrpc.ToNative(err)
	}
	return fromMounts(r.GetMounts()), nil
}

func (c *client) View(ctx context.Context, key, parent string, o Options) ([]plugins.Mount, error) {
	if err := checkKeys(withParent(parent, key)...); err != nil {
		return nil, err
	}
	r, err := c.c.View(ctx, &driverv1.ViewRequest{Key: key, Parent: parent, Labels: o.Labels})
	if err != nil {
		return nil, errgrpc.ToNative(err)
	}
	return fromMounts(r.GetMounts()), nil
}

func (c *client) Mounts(ctx context.Context, key string) ([]plugins.Mount, error) {
	if err := checkKeys(key); err != nil {
		return nil, err
	}
	r, err := c.c.Mounts(ctx, &driverv1.MountsRequest{Key: key})
	if err != nil {
		return nil, errgrpc.ToNative(err)
	}
	return fromMounts(r.GetMounts()), nil
}

func (c *client) Commit(ctx context.Context, key, name, parent string) error {
	if err := checkKeys(withParent(parent, key, name)...); err != nil {
		return err
	}
	_, err := c.c.Commit(ctx, &driverv1.CommitRequest{Key: key, Name: name, Parent: parent})
	return errgrpc.ToNative(err)
}

func (c *client) Remove(ctx context.Context, key string) error {
	if err := checkKeys(key); err != nil {
		return err
	}
	_, err := c.c.Remove(ctx, &driverv1.RemoveRequest{Key: key})
	return errgrpc.ToNative(err)
}

func (c *client) Stat(ctx context.Context, key string) (Info, error) {
	if err := checkKeys(key); err != nil {
		return Info{}, err
	}
	r, err := c.c.Stat(ctx, &driverv1.StatRequest{Key: key})
	if err != nil {
		return Info{}, errgrpc.ToNative(err)
	}
	return fromInfo(r.GetInfo()), nil
}

func (c *client) All(ctx context.Context) iter.Seq2[Info, error] {
	return func(yield func(Info, error) bool) {
		ctx, cancel := context.WithCancelCause(ctx)
		defer cancel(nil) // a range that is left early must not leave the stream behind
		stream, err := c.c.List(ctx, &driverv1.ListRequest{})
		for err == nil {
			var r *driverv1.ListResponse
			if r, err = stream.Recv(); err == nil && !yield(fromInfo(r.GetInfo()), nil) {
				return
			}
		}
		if !errors.Is(err, io.EOF) {
			yield(Info{}, errgrpc.ToNative(err))
		}
	}
}

func toMounts(ms []plugins.Mount) []*typesv1.Mount {
	out := make([]*typesv1.Mount, len(ms))
	for i, m := range ms {
		out[i] = &typesv1.Mount{Type: m.Type, Source: m.Source, Target: m.Target, Options: m.Options}
	}
	return out
}

func fromMounts(ms []*typesv1.Mount) []plugins.Mount {
	out := make([]plugins.Mount, len(ms))
	for i, m := range ms {
		out[i] = plugins.Mount{Type: m.GetType(), Source: m.GetSource(), Target: m.GetTarget(), Options: m.GetOptions()}
	}
	return out
}

func toInfo(i Info) *driverv1.SnapshotInfo {
	return &driverv1.SnapshotInfo{
		Key: i.Key, Parent: i.Parent, Committed: i.Committed, ReadOnly: i.ReadOnly,
		Bytes: i.Bytes, Inodes: i.Inodes, Labels: i.Labels,
	}
}

func fromInfo(i *driverv1.SnapshotInfo) Info {
	return Info{
		Key: i.GetKey(), Parent: i.GetParent(), Committed: i.GetCommitted(), ReadOnly: i.GetReadOnly(),
		Bytes: i.GetBytes(), Inodes: i.GetInodes(), Labels: i.GetLabels(),
	}
}
