package plugins

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"

	"github.com/containerd/errdefs/pkg/errgrpc"
	"google.golang.org/grpc"

	driverv1 "github.com/gantryd/gantry/proto/gantry/driver/v1"
	typesv1 "github.com/gantryd/gantry/proto/gantry/types/v1"
)

// Register offers p on s.
func Register(s grpc.ServiceRegistrar, p Plugin) {
	driverv1.RegisterPluginServiceServer(s, &server{p: p})
}

// NewClient returns the plugin at the other end of cc. daemon is the version of the caller, for the
// plugin's log.
func NewClient(cc grpc.ClientConnInterface, daemon string) Plugin {
	return &client{c: driverv1.NewPluginServiceClient(cc), daemon: daemon}
}

type server struct {
	driverv1.UnimplementedPluginServiceServer
	p Plugin
}

func (s *server) Info(ctx context.Context, _ *driverv1.InfoRequest) (*driverv1.InfoResponse, error) {
	i, err := s.p.Info(ctx)
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	return &driverv1.InfoResponse{
		Family: string(i.Family), Name: i.Name, Version: i.Version,
		Capabilities: i.Capabilities, Lingers: i.Lingers,
	}, nil
}

func (s *server) Configure(ctx context.Context, r *driverv1.ConfigureRequest) (*driverv1.ConfigureResponse, error) {
	if err := s.p.Configure(ctx, Config{Root: r.GetRoot(), State: r.GetState(), Options: r.GetOptions()}); err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	return &driverv1.ConfigureResponse{}, nil
}

type client struct {
	c      driverv1.PluginServiceClient
	daemon string
}

func (c *client) Info(ctx context.Context) (Info, error) {
	r, err := c.c.Info(ctx, &driverv1.InfoRequest{DaemonVersion: c.daemon})
	if err != nil {
		return Info{}, errgrpc.ToNative(err)
	}
	return Info{
		Family: Family(r.GetFamily()), Name: r.GetName(), Version: r.GetVersion(),
		Capabilities: r.GetCapabilities(), Lingers: r.GetLingers(),
	}, nil
}

func (c *client) Configure(ctx context.Context, cfg Config) error {
	_, err := c.c.Configure(ctx, &driverv1.ConfigureRequest{Root: cfg.Root, State: cfg.State, Options: cfg.Options})
	return errgrpc.ToNative(err)
}

// Proto is m as messages carry it.
func (m Mount) Proto() *typesv1.Mount {
	return &typesv1.Mount{Type: m.Type, Source: m.Source, Target: m.Target, Options: m.Options}
}

// MountFrom is the mount that a message carried.
func MountFrom(m *typesv1.Mount) Mount {
	return Mount{Type: m.GetType(), Source: m.GetSource(), Target: m.GetTarget(), Options: m.GetOptions()}
}

// MountsProto is ms as messages carry them.
func MountsProto(ms []Mount) []*typesv1.Mount {
	out := make([]*typesv1.Mount, len(ms))
	for i, m := range ms {
		out[i] = m.Proto()
	}
	return out
}

// MountsFrom is the mounts that a message carried.
func MountsFrom(ms []*typesv1.Mount) []Mount {
	out := make([]Mount, len(ms))
	for i, m := range ms {
		out[i] = MountFrom(m)
	}
	return out
}

// strict decodes one JSON value, all of whose fields v must know.
func strict(raw json.RawMessage, v any) error {
	d := json.NewDecoder(bytes.NewReader(raw))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("more than one value")
	}
	return nil
}
