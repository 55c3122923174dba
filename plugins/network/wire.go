package network

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/netip"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"google.golang.org/grpc"

	"github.com/gantryd/gantry/plugins"
	driverv1 "github.com/gantryd/gantry/proto/gantry/driver/v1"
)

// Register serves d. If d is a Publisher or a Checker too, that is served with it; if not, Publish and
// Check answer errdefs.ErrNotImplemented.
func Register(s grpc.ServiceRegistrar, d Driver) {
	driverv1.RegisterNetworkDriverServiceServer(s, &server{d: d})
}

// Client is a driver at the other end of a connection.
type Client interface {
	Driver
	Publisher
	Checker
}

// NewClient returns the driver that cc leads to. Its errors have the classes of
// containerd/errdefs that the driver gave them. Whether Publish and Check will do anything is
// for the plugin's capability words to say.
func NewClient(cc grpc.ClientConnInterface) Client {
	return &client{driverv1.NewNetworkDriverServiceClient(cc)}
}

type server struct {
	driverv1.UnimplementedNetworkDriverServiceServer
	d Driver
}

func (s *server) CreateNetwork(ctx context.Context, r *driverv1.CreateNetworkRequest) (*driverv1.CreateNetworkResponse, error) {
	n, err := specFrom(r.GetNetwork(), r.GetHandle())
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	h, err := s.d.CreateNetwork(ctx, n)
	return &driverv1.CreateNetworkResponse{Handle: h}, errgrpc.ToGRPC(err)
}

func (s *server) DeleteNetwork(ctx context.Context, r *driverv1.DeleteNetworkRequest) (*driverv1.DeleteNetworkResponse, error) {
	n, err := specFrom(r.GetNetwork(), r.GetHandle())
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	return &driverv1.DeleteNetworkResponse{}, errgrpc.ToGRPC(s.d.DeleteNetwork(ctx, n))
}

func (s *server) Attach(ctx context.Context, r *driverv1.AttachRequest) (*driverv1.AttachResponse, error) {
	n, e, err := bothFrom(r.GetNetwork(), r.GetNetworkHandle(), r)
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	a, err := s.d.Attach(ctx, n, e)
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	return &driverv1.AttachResponse{
		Handle: a.Handle, Interface: a.Interface, Mac: a.MAC,
		Routes: texts(a.Routes), Nameservers: texts(a.Nameservers),
	}, nil
}

func (s *server) Detach(ctx context.Context, r *driverv1.DetachRequest) (*driverv1.DetachResponse, error) {
	n, e, err := bothFrom(r.GetNetwork(), r.GetNetworkHandle(), r)
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	return &driverv1.DetachResponse{}, errgrpc.ToGRPC(s.d.Detach(ctx, n, e))
}

func (s *server) Publish(ctx context.Context, r *driverv1.PublishRequest) (*driverv1.PublishResponse, error) {
	p, ok := s.d.(Publisher)
	if !ok {
		return nil, errgrpc.ToGRPC(fmt.Errorf("publish ports: the driver has no capability %q: %w", Ports, errdefs.ErrNotImplemented))
	}
	n, e, err := bothFrom(r.GetNetwork(), r.GetNetworkHandle(), r)
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	ports, err := parseAll(r.GetPorts(), portFrom)
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	return &driverv1.PublishResponse{}, errgrpc.ToGRPC(p.Publish(ctx, n, e, ports))
}

func (s *server) ListEndpoints(_ *driverv1.ListEndpointsRequest, to grpc.ServerStreamingServer[driverv1.ListEndpointsResponse]) error {
	for h, err := range s.d.Endpoints(to.Context()) {
		if err != nil {
			return errgrpc.ToGRPC(err)
		}
		if err := to.Send(&driverv1.ListEndpointsResponse{NetworkId: h.NetworkID, EndpointId: h.EndpointID}); err != nil {
			return err
		}
	}
	return nil
}

func (s *server) CheckNetwork(r *driverv1.CheckNetworkRequest, to grpc.ServerStreamingServer[driverv1.CheckNetworkResponse]) error {
	c, ok := s.d.(Checker)
	if !ok {
		return errgrpc.ToGRPC(fmt.Errorf("check network: the driver has no capability %q: %w", Check, errdefs.ErrNotImplemented))
	}
	n, err := specFrom(r.GetNetwork(), r.GetHandle())
	if err != nil {
		return errgrpc.ToGRPC(err)
	}
	want, err := parseAll(r.GetEndpoints(), wantFrom)
	if err != nil {
		return errgrpc.ToGRPC(err)
	}
	for d, err := range c.Check(to.Context(), n, want) {
		if err != nil {
			return errgrpc.ToGRPC(err)
		}
		if err := to.Send(&driverv1.CheckNetworkResponse{Subject: d.Subject, Detail: d.Detail}); err != nil {
			return err
		}
	}
	return nil
}

type client struct {
	c driverv1.NetworkDriverServiceClient
}

func (c *client) CreateNetwork(ctx context.Context, n Network) (plugins.Handle, error) {
	r, err := c.c.CreateNetwork(ctx, &driverv1.CreateNetworkRequest{Network: specTo(n), Handle: n.Handle})
	return r.GetHandle(), errgrpc.ToNative(err)
}

func (c *client) DeleteNetwork(ctx context.Context, n Network) error {
	_, err := c.c.DeleteNetwork(ctx, &driverv1.DeleteNetworkRequest{Network: specTo(n), Handle: n.Handle})
	return errgrpc.ToNative(err)
}

func (c *client) Attach(ctx context.Context, n Network, e Endpoint) (Attached, error) {
	r, err := c.c.Attach(ctx, &driverv1.AttachRequest{
		Network: specTo(n), NetworkHandle: n.Handle, EndpointId: e.ID, Netns: e.NetNS,
		Addresses: texts(e.Addresses), Mac: e.MAC, Interface: e.Interface, Handle: e.Handle,
	})
	if err != nil {
		return Attached{}, errgrpc.ToNative(err)
	}
	a := Attached{Interface: r.GetInterface(), MAC: r.GetMac(), Handle: r.GetHandle()}
	if a.Routes, err = parseAll(r.GetRoutes(), netip.ParsePrefix); err == nil {
		a.Nameservers, err = parseAll(r.GetNameservers(), netip.ParseAddr)
	}
	if err != nil {
		return Attached{}, fmt.Errorf("read the driver's answer to attach %s: %w: %w", e.ID, err, errdefs.ErrInternal)
	}
	return a, nil
}

func (c *client) Detach(ctx context.Context, n Network, e Endpoint) error {
	_, err := c.c.Detach(ctx, &driverv1.DetachRequest{
		Network: specTo(n), NetworkHandle: n.Handle, EndpointId: e.ID, Netns: e.NetNS,
		Addresses: texts(e.Addresses), Mac: e.MAC, Interface: e.Interface, Handle: e.Handle,
	})
	return errgrpc.ToNative(err)
}

func (c *client) Publish(ctx context.Context, n Network, e Endpoint, ports []Port) error {
	r := &driverv1.PublishRequest{
		Network: specTo(n), NetworkHandle: n.Handle, EndpointId: e.ID, Netns: e.NetNS,
		Addresses: texts(e.Addresses), Mac: e.MAC, Interface: e.Interface, Handle: e.Handle,
	}
	for _, p := range ports {
		r.Ports = append(r.Ports, portTo(p))
	}
	_, err := c.c.Publish(ctx, r)
	return errgrpc.ToNative(err)
}

func (c *client) Endpoints(ctx context.Context) iter.Seq2[Held, error] {
	return stream(ctx, func(ctx context.Context) (grpc.ServerStreamingClient[driverv1.ListEndpointsResponse], error) {
		return c.c.ListEndpoints(ctx, &driverv1.ListEndpointsRequest{})
	}, func(r *driverv1.ListEndpointsResponse) Held {
		return Held{NetworkID: r.GetNetworkId(), EndpointID: r.GetEndpointId()}
	})
}

func (c *client) Check(ctx context.Context, n Network, want []Want) iter.Seq2[Difference, error] {
	r := &driverv1.CheckNetworkRequest{Network: specTo(n), Handle: n.Handle}
	for _, w := range want {
		p := &driverv1.WantedEndpoint{
			EndpointId: w.ID, Netns: w.NetNS, Addresses: texts(w.Addresses), Mac: w.MAC, Interface: w.Interface, Handle: w.Handle,
		}
		for _, q := range w.Ports {
			p.Ports = append(p.Ports, portTo(q))
		}
		r.Endpoints = append(r.Endpoints, p)
	}
	return stream(ctx, func(ctx context.Context) (grpc.ServerStreamingClient[driverv1.CheckNetworkResponse], error) {
		return c.c.CheckNetwork(ctx, r)
	}, func(r *driverv1.CheckNetworkResponse) Difference {
		return Difference{Subject: r.GetSubject(), Detail: r.GetDetail()}
	})
}

// stream ranges over what a call answers, and ends the call of a caller that stops early.
func stream[R, T any](ctx context.Context, call func(context.Context) (grpc.ServerStreamingClient[R], error), read func(*R) T) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		ctx, cancel := context.WithCancelCause(ctx)
		defer cancel(nil)
		var none T
		from, err := call(ctx)
		if err != nil {
			yield(none, errgrpc.ToNative(err))
			return
		}
		for {
			r, err := from.Recv()
			if errors.Is(err, io.EOF) {
				return
			}
			if err != nil {
				yield(none, errgrpc.ToNative(err))
				return
			}
			if !yield(read(r), nil) {
				return
			}
		}
	}
}

func specTo(n Network) *driverv1.NetworkSpec {
	return &driverv1.NetworkSpec{
		Id: n.ID, Name: n.Name, Subnets: texts(n.Subnets), Gateways: texts(n.Gateways),
		Mtu: uint32(n.MTU), Internal: n.Internal, Options: n.Options, //nolint:gosec // MTUs are small
	}
}

func specFrom(p *driverv1.NetworkSpec, h []byte) (n Network, err error) {
	n = Network{ID: p.GetId(), Name: p.GetName(), MTU: int(p.GetMtu()), Internal: p.GetInternal(), Options: p.GetOptions(), Handle: h}
	if n.Subnets, err = parseAll(p.GetSubnets(), netip.ParsePrefix); err == nil {
		n.Gateways, err = parseAll(p.GetGateways(), netip.ParseAddr)
	}
	if err != nil {
		return n, fmt.Errorf("read network %s: %w: %w", n.ID, err, errdefs.ErrInvalidArgument)
	}
	return n, nil
}

// endpointMessage is what the requests that carry an endpoint have in common.
type endpointMessage interface {
	GetEndpointId() string
	GetNetns() string
	GetAddresses() []string
	GetMac() string
	GetInterface() string
	GetHandle() []byte
}

func bothFrom(p *driverv1.NetworkSpec, nh []byte, m endpointMessage) (Network, Endpoint, error) {
	e := Endpoint{ID: m.GetEndpointId(), NetNS: m.GetNetns(), MAC: m.GetMac(), Interface: m.GetInterface(), Handle: m.GetHandle()}
	n, err := specFrom(p, nh)
	if err != nil {
		return n, e, err
	}
	if e.Addresses, err = parseAll(m.GetAddresses(), netip.ParsePrefix); err != nil {
		return n, e, fmt.Errorf("read endpoint %s: %w: %w", e.ID, err, errdefs.ErrInvalidArgument)
	}
	return n, e, nil
}

func wantFrom(p *driverv1.WantedEndpoint) (Want, error) {
	w := Want{Endpoint: Endpoint{ID: p.GetEndpointId(), NetNS: p.GetNetns(), MAC: p.GetMac(), Interface: p.GetInterface(), Handle: p.GetHandle()}}
	var err error
	if w.Addresses, err = parseAll(p.GetAddresses(), netip.ParsePrefix); err != nil {
		return w, fmt.Errorf("read endpoint %s: %w: %w", w.ID, err, errdefs.ErrInvalidArgument)
	}
	w.Ports, err = parseAll(p.GetPorts(), portFrom)
	return w, err
}

func portTo(p Port) *driverv1.Port {
	q := &driverv1.Port{
		Protocol: p.Protocol, HostPort: uint32(p.Host.Port()),
		ContainerPort: uint32(p.Container), Count: uint32(p.Count),
	}
	if p.Host.Addr().IsValid() {
		q.HostAddress = p.Host.Addr().String()
	}
	return q
}

func portFrom(p *driverv1.Port) (Port, error) {
	var addr netip.Addr
	if h := p.GetHostAddress(); h != "" {
		var err error
		if addr, err = netip.ParseAddr(h); err != nil {
			return Port{}, fmt.Errorf("read port: %w: %w", err, errdefs.ErrInvalidArgument)
		}
	}
	for _, v := range []uint32{p.GetHostPort(), p.GetContainerPort(), p.GetCount()} {
		if v > 1<<16-1 {
			return Port{}, fmt.Errorf("read port: %d is more than 65535: %w", v, errdefs.ErrInvalidArgument)
		}
	}
	return Port{
		Protocol: p.GetProtocol(), Host: netip.AddrPortFrom(addr, uint16(p.GetHostPort())), //nolint:gosec // checked above
		Container: uint16(p.GetContainerPort()), Count: uint16(p.GetCount()), //nolint:gosec // checked above
	}, nil
}

func texts[T fmt.Stringer](in []T) []string {
	if len(in) == 0 {
		return nil
	}
	out := make([]string, len(in))
	for i, v := range in {
		out[i] = v.String()
	}
	return out
}

func parseAll[S, T any](in []S, parse func(S) (T, error)) ([]T, error) {
	var out []T
	for _, s := range in {
		v, err := parse(s)
		if err != nil {
			return nil, err
		}
		out = append(out, v)
	}
	return out, nil
}
