package volume

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"google.golang.org/grpc"

	"github.com/gantryd/gantry/plugins"
	driverv1 "github.com/gantryd/gantry/proto/gantry/driver/v1"
)

// Register serves b. If b is a Counter too, that is served with it; if not, Usage answers
// errdefs.ErrNotImplemented.
func Register(s grpc.ServiceRegistrar, b Backend) {
	driverv1.RegisterVolumeBackendServiceServer(s, &server{b: b})
}

// Client is a backend at the other end of a connection.
type Client interface {
	Backend
	Counter
}

// NewClient returns the backend that cc leads to. Its errors have the classes of containerd/errdefs that
// the backend gave them. Whether Usage will count anything is for the plugin's capability words to say.
func NewClient(cc grpc.ClientConnInterface) Client {
	return &client{c: driverv1.NewVolumeBackendServiceClient(cc)}
}

type server struct {
	driverv1.UnimplementedVolumeBackendServiceServer
	b Backend
}

func (s *server) CreateVolume(ctx context.Context, r *driverv1.CreateVolumeRequest) (*driverv1.CreateVolumeResponse, error) {
	c, err := s.b.Create(ctx, from(r))
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	return &driverv1.CreateVolumeResponse{Handle: c.Handle, Path: c.Path}, nil
}

func (s *server) DeleteVolume(ctx context.Context, r *driverv1.DeleteVolumeRequest) (*driverv1.DeleteVolumeResponse, error) {
	if err := s.b.Delete(ctx, from(r)); err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	return &driverv1.DeleteVolumeResponse{}, nil
}

func (s *server) Mount(ctx context.Context, r *driverv1.MountRequest) (*driverv1.MountResponse, error) {
	m, err := s.b.Mount(ctx, from(r), r.GetUserId())
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	return &driverv1.MountResponse{Mount: m.Proto()}, nil
}

func (s *server) Unmount(ctx context.Context, r *driverv1.UnmountRequest) (*driverv1.UnmountResponse, error) {
	if err := s.b.Unmount(ctx, from(r), r.GetUserId()); err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	return &driverv1.UnmountResponse{}, nil
}

func (s *server) VolumeUsage(ctx context.Context, r *driverv1.VolumeUsageRequest) (*driverv1.VolumeUsageResponse, error) {
	c, ok := s.b.(Counter)
	if !ok {
		return nil, errgrpc.ToGRPC(fmt.Errorf("count a volume: the backend has no capability %q: %w", Usage, errdefs.ErrNotImplemented))
	}
	u, err := c.Usage(ctx, from(r))
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	return &driverv1.VolumeUsageResponse{Bytes: u.Bytes, Inodes: u.Inodes}, nil
}

func (s *server) ListVolumes(_ *driverv1.ListVolumesRequest, to grpc.ServerStreamingServer[driverv1.ListVolumesResponse]) error {
	for id, err := range s.b.All(to.Context()) {
		if err != nil {
			return errgrpc.ToGRPC(err)
		}
		if err := to.Send(&driverv1.ListVolumesResponse{Id: id}); err != nil {
			return err
		}
	}
	return nil
}

// named is what every request about one volume says.
type named interface {
	GetVolume() *driverv1.VolumeSpec
	GetHandle() []byte
}

func from(r named) Volume {
	s := r.GetVolume()
	return Volume{ID: s.GetId(), Name: s.GetName(), Options: s.GetOptions(), Handle: r.GetHandle()}
}

func spec(v Volume) *driverv1.VolumeSpec {
	return &driverv1.VolumeSpec{Id: v.ID, Name: v.Name, Options: v.Options}
}

type client struct {
	c driverv1.VolumeBackendServiceClient
}

func (c *client) Create(ctx context.Context, v Volume) (Created, error) {
	if err := CheckID(v.ID); err != nil {
		return Created{}, err
	}
	r, err := c.c.CreateVolume(ctx, &driverv1.CreateVolumeRequest{Volume: spec(v), Handle: v.Handle})
	if err != nil {
		return Created{}, errgrpc.ToNative(err)
	}
	return Created{Handle: r.GetHandle(), Path: r.GetPath()}, nil
}

func (c *client) Delete(ctx context.Context, v Volume) error {
	if err := CheckID(v.ID); err != nil {
		return err
	}
	_, err := c.c.DeleteVolume(ctx, &driverv1.DeleteVolumeRequest{Volume: spec(v), Handle: v.Handle})
	return errgrpc.ToNative(err)
}

func (c *client) Mount(ctx context.Context, v Volume, user string) (plugins.Mount, error) {
	if err := CheckID(v.ID); err != nil {
		return plugins.Mount{}, err
	}
	r, err := c.c.Mount(ctx, &driverv1.MountRequest{Volume: spec(v), Handle: v.Handle, UserId: user})
	if err != nil {
		return plugins.Mount{}, errgrpc.ToNative(err)
	}
	return plugins.MountFrom(r.GetMount()), nil
}

func (c *client) Unmount(ctx context.Context, v Volume, user string) error {
	if err := CheckID(v.ID); err != nil {
		return err
	}
	_, err := c.c.Unmount(ctx, &driverv1.UnmountRequest{Volume: spec(v), Handle: v.Handle, UserId: user})
	return errgrpc.ToNative(err)
}

func (c *client) Usage(ctx context.Context, v Volume) (Space, error) {
	if err := CheckID(v.ID); err != nil {
		return Space{}, err
	}
	r, err := c.c.VolumeUsage(ctx, &driverv1.VolumeUsageRequest{Volume: spec(v), Handle: v.Handle})
	if err != nil {
		return Space{}, errgrpc.ToNative(err)
	}
	return Space{Bytes: r.GetBytes(), Inodes: r.GetInodes()}, nil
}

func (c *client) All(ctx context.Context) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		ctx, cancel := context.WithCancelCause(ctx)
		defer cancel(nil) // ends the stream of a caller that stops early
		from, err := c.c.ListVolumes(ctx, &driverv1.ListVolumesRequest{})
		for err == nil {
			var r *driverv1.ListVolumesResponse
			if r, err = from.Recv(); err == nil && !yield(r.GetId(), nil) {
				return
			}
		}
		if !errors.Is(err, io.EOF) {
			yield("", errgrpc.ToNative(err))
		}
	}
}
