package network_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"net/netip"
	"reflect"
	"testing"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/gantryd/gantry/plugins"
	"github.com/gantryd/gantry/plugins/network"
	"github.com/gantryd/gantry/plugins/wiretest"
	driverv1 "github.com/gantryd/gantry/proto/gantry/driver/v1"
)

// echo remembers what it was called with, and answers what it is told to.
type echo struct {
	n     network.Network
	e     network.Endpoint
	ports []network.Port
	got   network.Attached
	held  []network.Held
	err   error
}

func (d *echo) CreateNetwork(_ context.Context, n network.Network) (plugins.Handle, error) {
	d.n = n
	return d.got.Handle, d.err
}

func (d *echo) DeleteNetwork(_ context.Context, n network.Network) error {
	d.n = n
	return d.err
}

func (d *echo) Attach(_ context.Context, n network.Network, e network.Endpoint) (network.Attached, error) {
	d.n, d.e = n, e
	return d.got, d.err
}

func (d *echo) Detach(_ context.Context, n network.Network, e network.Endpoint) error {
	d.n, d.e = n, e
	return d.err
}

func (d *echo) Endpoints(context.Context) iter.Seq2[network.Held, error] {
	return func(yield func(network.Held, error) bool) {
		for _, h := range d.held {
			if !yield(h, nil) {
				return
			}
		}
		if d.err != nil {
			yield(network.Held{}, d.err)
		}
	}
}

// publisher is an echo with every capability.
type publisher struct {
	echo
	want  []network.Want
	found []network.Difference
}

func (d *publisher) Check(_ context.Context, n network.Network, want []network.Want) iter.Seq2[network.Difference, error] {
	d.n, d.want = n, want
	return func(yield func(network.Difference, error) bool) {
		for _, f := range d.found {
			if !yield(f, nil) {
				return
			}
		}
		if d.err != nil {
			yield(network.Difference{}, d.err)
		}
	}
}

func (d *publisher) Publish(_ context.Context, n network.Network, e network.Endpoint, ports []network.Port) error {
	d.n, d.e, d.ports = n, e, ports
	return d.err
}

func wire(t *testing.T) wiretest.Wire {
	t.Helper()
	for _, w := range wiretest.Wires {
		if w.Name == "grpc" {
			return w
		}
	}
	t.Fatal("no wire called grpc")
	return wiretest.Wire{}
}

var (
	full = network.Network{
		ID: "n", Name: "name", Subnets: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/24"), netip.MustParsePrefix("fd00::/64")},
		Gateways: []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1")}, MTU: 1400, Internal: true,
		Options: map[string]string{"k": "v"}, Handle: plugins.Handle("nh"),
	}
	seat = network.Endpoint{
		ID: "e", NetNS: "/netns/e", Addresses: []netip.Prefix{netip.MustParsePrefix("10.0.0.2/24"), netip.MustParsePrefix("fd00::2/64")},
		MAC: "02:00:00:00:00:01", Interface: "eth7", Handle: plugins.Handle("eh"),
	}
)

// TestLossless: what goes in comes out, both ways.
func TestLossless(t *testing.T) {
	d := &publisher{found: []network.Difference{{Subject: "bridge", Detail: "gone"}}, echo: echo{
		got: network.Attached{
			Interface: "eth7", MAC: "02:00:00:00:00:01", Handle: plugins.Handle("h"),
			Routes: []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")}, Nameservers: []netip.Addr{netip.MustParseAddr("10.0.0.1")},
		},
		held: []network.Held{{NetworkID: "n", EndpointID: "e"}, {NetworkID: "n", EndpointID: "f"}},
	}}
	far := wiretest.Over[network.Driver](t, wire(t), d, network.Register, network.NewClient)
	check := func(what string, err error, e network.Endpoint) {
		t.Helper()
		if err != nil || !reflect.DeepEqual(d.n, full) || !reflect.DeepEqual(d.e, e) {
			t.Errorf("%s: %v\n%+v\n%+v", what, err, d.n, d.e)
		}
		d.n, d.e = network.Network{}, network.Endpoint{}
	}
	h, err := far.CreateNetwork(t.Context(), full)
	check("create", err, network.Endpoint{})
	if string(h) != "h" {
		t.Errorf("handle %q", h)
	}
	check("delete", far.DeleteNetwork(t.Context(), full), network.Endpoint{})
	got, err := far.Attach(t.Context(), full, seat)
	check("attach", err, seat)
	if !reflect.DeepEqual(got, d.got) {
		t.Errorf("attached %+v, want %+v", got, d.got)
	}
	check("detach", far.Detach(t.Context(), full, seat), seat)
	ports := []network.Port{
		{Protocol: "tcp", Host: netip.MustParseAddrPort("0.0.0.0:80"), Container: 8080, Count: 65535},
		{Protocol: "udp", Host: netip.AddrPortFrom(netip.Addr{}, 53), Container: 53},
		{Protocol: "udp", Host: netip.MustParseAddrPort("[::1]:53"), Container: 53},
	}
	p, ok := far.(network.Publisher)
	if !ok {
		t.Fatal("the client is no Publisher")
	}
	check("publish", p.Publish(t.Context(), full, seat, ports), seat)
	if !reflect.DeepEqual(d.ports, ports) {
		t.Errorf("ports %+v, want %+v", d.ports, ports)
	}
	want := []network.Want{{Endpoint: seat, Ports: ports}, {Endpoint: network.Endpoint{ID: "f"}}}
	var found []network.Difference
	for f, err := range far.(network.Checker).Check(t.Context(), full, want) {
		if err != nil {
			t.Fatal(err)
		}
		found = append(found, f)
	}
	check("check", nil, network.Endpoint{})
	if !reflect.DeepEqual(d.want, want) || !reflect.DeepEqual(found, d.found) {
		t.Errorf("checked %+v, found %v", d.want, found)
	}
	var held []network.Held
	for h, err := range far.Endpoints(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		held = append(held, h)
	}
	if !reflect.DeepEqual(held, d.held) {
		t.Errorf("held %v", held)
	}
	for range far.Endpoints(t.Context()) {
		break // whoever stops early must not leave the stream behind: the wire's end would wait for it
	}
}

// TestClasses: an error keeps its class and its words.
func TestClasses(t *testing.T) {
	d := &publisher{}
	far := wiretest.Over[network.Driver](t, wire(t), d, network.Register, network.NewClient)
	for _, class := range []error{
		errdefs.ErrInvalidArgument, errdefs.ErrNotFound, errdefs.ErrAlreadyExists, errdefs.ErrFailedPrecondition, errdefs.ErrAborted,
		errdefs.ErrUnavailable, errdefs.ErrNotImplemented, errdefs.ErrDataLoss, errdefs.ErrInternal, errdefs.ErrResourceExhausted,
		context.DeadlineExceeded, context.Canceled,
	} {
		d.err = fmt.Errorf("do something: %w", class)
		_, create := far.CreateNetwork(t.Context(), full)
		_, attach := far.Attach(t.Context(), full, seat)
		var list error
		for _, err := range far.Endpoints(t.Context()) {
			list = err
		}
		var differ error
		for _, err := range far.(network.Checker).Check(t.Context(), full, nil) {
			differ = err
		}
		for what, err := range map[string]error{
			"check":  differ,
			"create": create, "delete": far.DeleteNetwork(t.Context(), full), "attach": attach, "detach": far.Detach(t.Context(), full, seat),
			"publish": far.(network.Publisher).Publish(t.Context(), full, seat, nil), "list": list,
		} {
			if !errors.Is(err, class) || err.Error() != d.err.Error() {
				t.Errorf("%s of %v: %v", what, class, err)
			}
		}
	}
}

// TestNoPublisher: a driver without a capability says so.
func TestNoPublisher(t *testing.T) {
	far := wiretest.Over[network.Driver](t, wire(t), &echo{}, network.Register, network.NewClient)
	p, ok := far.(network.Publisher)
	if !ok {
		t.Fatal("the client is no Publisher")
	}
	if err := p.Publish(t.Context(), full, seat, nil); !errdefs.IsNotImplemented(err) {
		t.Errorf("publish: %v", err)
	}
	for _, err := range far.(network.Checker).Check(t.Context(), full, nil) {
		if !errdefs.IsNotImplemented(err) {
			t.Errorf("check: %v", err)
		}
	}
}

// TestRubbish: what another program could send is refused before the driver hears of it.
func TestRubbish(t *testing.T) {
	d := &publisher{}
	cc := wire(t).Connect(t, func(s grpc.ServiceRegistrar) { network.Register(s, d) })
	c := driverv1.NewNetworkDriverServiceClient(cc)
	bad := &driverv1.NetworkSpec{Id: "n", Subnets: []string{"x"}}
	good := &driverv1.NetworkSpec{Id: "n"}
	for name, call := range map[string]func() error{
		"subnet": func() error {
			_, err := c.CreateNetwork(t.Context(), &driverv1.CreateNetworkRequest{Network: bad})
			return err
		},
		"subnet 2": func() error {
			_, err := c.DeleteNetwork(t.Context(), &driverv1.DeleteNetworkRequest{Network: bad})
			return err
		},
		"gateway": func() error {
			_, err := c.CreateNetwork(t.Context(), &driverv1.CreateNetworkRequest{Network: &driverv1.NetworkSpec{Gateways: []string{"10.0.0.0/8"}}})
			return err
		},
		"address": func() error {
			_, err := c.Attach(t.Context(), &driverv1.AttachRequest{Network: good, Addresses: []string{"10.0.0.2"}})
			return err
		},
		"address 2": func() error {
			_, err := c.Detach(t.Context(), &driverv1.DetachRequest{Network: good, Addresses: []string{"-"}})
			return err
		},
		"host": func() error {
			_, err := c.Publish(t.Context(), &driverv1.PublishRequest{Network: good, Ports: []*driverv1.Port{{HostAddress: "localhost"}}})
			return err
		},
		"port": func() error {
			_, err := c.Publish(t.Context(), &driverv1.PublishRequest{Network: good, Ports: []*driverv1.Port{{HostPort: 65536}}})
			return err
		},
		"count": func() error {
			_, err := c.Publish(t.Context(), &driverv1.PublishRequest{Network: good, Ports: []*driverv1.Port{{Count: 1 << 20}}})
			return err
		},
	} {
		if err := call(); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v", name, err)
		}
	}
	if d.n.ID != "" {
		t.Error("the driver was called")
	}
}
