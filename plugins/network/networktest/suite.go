package networktest

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"

	"github.com/gantryd/gantry/plugins/network"
	"github.com/gantryd/gantry/plugins/wiretest"
)

// Run holds a driver to its contract over every wire. newDriver is called several times in a test: each
// stands for a process of its own that finds what the last one made. It is given a directory that all of them share.
func Run(t *testing.T, newDriver func(t testing.TB, state string) network.Driver) {
	for _, w := range wiretest.Wires {
		t.Run(w.Name, func(t *testing.T) {
			for _, c := range cases {
				t.Run(c.name, func(t *testing.T) {
					l, state := NewLab(t), t.TempDir()
					s := &suite{T: t, l: l, restart: func() network.Driver {
						return wiretest.Over[network.Driver](t, w, newDriver(t, state), network.Register, network.NewClient)
					}}
					s.d = s.restart()
					c.run(s)
					s.clear()
				})
			}
		})
	}
}

var cases = []struct {
	name string
	run  func(*suite)
}{
	{"reach", (*suite).reach},
	{"publish", (*suite).publish},
	{"ranges", (*suite).ranges},
	{"replace", (*suite).replace},
	{"conflicts", (*suite).conflicts},
	{"apart", (*suite).apart},
	{"internal", (*suite).internal},
	{"again", (*suite).again},
	{"restart", (*suite).restarted},
	{"host loses it", (*suite).lost},
	{"dropped", (*suite).dropped},
	{"refusals", (*suite).refusals},
	{"at once", (*suite).atOnce},
	{"check", (*suite).check},
}

type suite struct {
	*testing.T
	l        *Lab
	d        network.Driver
	restart  func() network.Driver
	networks []network.Network
}

func (s *suite) ctx() context.Context { return s.Context() }

func (s *suite) must(err error) {
	s.Helper()
	must(s.T, err)
}

// network makes the i-th network, 10.77.i.0/24.
func (s *suite) network(i int, internal bool) network.Network {
	s.Helper()
	n := network.Network{
		ID: fmt.Sprintf("net-%d", i), Name: fmt.Sprintf("test%d", i), Internal: internal,
		Subnets:  []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 77, byte(i), 0}), 24)},
		Gateways: []netip.Addr{netip.AddrFrom4([4]byte{10, 77, byte(i), 1})},
	}
	h, err := s.d.CreateNetwork(s.ctx(), n)
	s.must(err)
	n.Handle = h
	s.networks = append(s.networks, n)
	return n
}

// seat is an endpoint that is attached.
type seat struct {
	network.Endpoint
	addr netip.Addr
	got  network.Attached
}

func (s *suite) attach(n network.Network, id string, host byte) seat {
	s.Helper()
	b := n.Gateways[0].As4()
	b[3] = host
	e := network.Endpoint{ID: id, NetNS: s.l.NetNS(), Interface: "eth0", Addresses: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4(b), 24)}}
	got, err := s.d.Attach(s.ctx(), n, e)
	s.must(err)
	e.Handle = got.Handle
	return seat{e, netip.AddrFrom4(b), got}
}

// serve lets the container answer on a port.
func (s *suite) serve(c seat, proto string, port uint16) {
	s.Helper()
	s.l.Serve(c.NetNS, c.ID, proto, netip.AddrPortFrom(c.addr, port))
}

func (s *suite) ports(n network.Network, c seat, ports ...network.Port) {
	s.Helper()
	s.must(s.d.(network.Publisher).Publish(s.ctx(), n, c.Endpoint, ports))
}

func tcp(host string, from, to uint16) network.Port {
	return network.Port{Protocol: "tcp", Host: at(host, from), Container: to}
}

// at is an address and a port; "" is every address.
func at(host string, port uint16) netip.AddrPort {
	if host == "" {
		return netip.AddrPortFrom(netip.Addr{}, port)
	}
	return netip.AddrPortFrom(netip.MustParseAddr(host), port)
}

// needPorts skips what a driver that is no Publisher cannot do.
func (s *suite) needPorts() {
	s.Helper()
	if _, ok := s.d.(network.Publisher); !ok {
		s.Skip("the driver publishes no ports")
	}
}

// clear takes everything away, twice over, and what the driver still lists is a fault.
func (s *suite) clear() {
	s.Helper()
	for h, err := range s.d.Endpoints(s.ctx()) {
		s.must(err)
		for range 2 {
			s.must(s.d.Detach(s.ctx(), network.Network{ID: h.NetworkID}, network.Endpoint{ID: h.EndpointID, NetNS: "/nonexistent"}))
		}
	}
	for h, err := range s.d.Endpoints(s.ctx()) {
		s.Errorf("still there: %v, %v", h, err)
	}
	for range 2 {
		for _, n := range s.networks {
			s.must(s.d.DeleteNetwork(s.ctx(), n))
			n.Handle = nil
			s.must(s.d.DeleteNetwork(s.ctx(), n))
		}
	}
}

// reach: to the gateway, to each other, and out; with the uplink's packet size.
func (s *suite) reach() {
	n := s.network(1, false)
	a, b := s.attach(n, "a", 2), s.attach(n, "b", 3)
	s.serve(b, "tcp", 80)
	s.serve(b, "udp", 53)
	s.l.Serve("", "host", "tcp", netip.AddrPortFrom(n.Gateways[0], 7001))
	s.l.Serve(s.l.Outside, "outside", "tcp", netip.AddrPortFrom(FarAddr, 80))
	s.l.Serve(s.l.Outside, "outside", "udp", netip.AddrPortFrom(FarAddr, 53))
	if sees := s.l.Reaches(a.NetNS, "tcp", netip.AddrPortFrom(n.Gateways[0], 7001), "host"); sees != a.addr {
		s.Errorf("the host sees %s, want %s", sees, a.addr)
	}
	for proto, port := range map[string]uint16{"tcp": 80, "udp": 53} {
		if sees := s.l.Reaches(a.NetNS, proto, netip.AddrPortFrom(b.addr, port), "b"); sees != a.addr {
			s.Errorf("the neighbour sees %s, want %s", sees, a.addr)
		}
		if sees := s.l.Reaches(a.NetNS, proto, netip.AddrPortFrom(FarAddr, port), "outside"); sees != HostAddr {
			s.Errorf("the outside sees %s, want %s", sees, HostAddr)
		}
	}
	s.l.Reaches("", "tcp", netip.AddrPortFrom(b.addr, 80), "b")
	s.l.Reaches(a.NetNS, "tcp", netip.AddrPortFrom(b.addr, 80), "b")
	s.l.In(a.NetNS, func() {
		for _, name := range []string{"lo", "eth0"} {
			link, err := netlink.LinkByName(name)
			if err != nil || link.Attrs().Flags&1 == 0 {
				s.Errorf("%s is not up (%v)", name, err)
			}
		}
		if link, err := netlink.LinkByName("eth0"); err != nil || link.Attrs().MTU != UplinkMTU || link.Attrs().HardwareAddr.String() != a.got.MAC {
			s.Errorf("eth0 has not the uplink's MTU %d, or not the MAC %s: %+v %v", UplinkMTU, a.got.MAC, link, err)
		}
	})
	if a.got.Interface != "eth0" || len(a.got.Routes) == 0 {
		s.Errorf("attached: %+v", a.got)
	}
}

// publish: from loopback, the host's own address, outside, a neighbour, and the container itself.
func (s *suite) publish() {
	s.needPorts()
	n := s.network(1, false)
	a, b := s.attach(n, "a", 2), s.attach(n, "b", 3)
	s.ports(n, a, tcp("", 8080, 80), network.Port{Protocol: "udp", Host: at("0.0.0.0", 8053), Container: 53},
		tcp("127.0.0.1", 8081, 80), tcp(HostAddr.String(), 8082, 80))
	s.serve(a, "tcp", 80)
	s.serve(a, "udp", 53)
	for proto, port := range map[string]uint16{"tcp": 8080, "udp": 8053} {
		for from, host := range map[string]string{"": "127.0.0.1", s.l.Outside: "", b.NetNS: "", a.NetNS: ""} {
			for _, h := range []string{host, HostAddr.String()} {
				if h != "" {
					s.l.Reaches(from, proto, at(h, port), "a")
				}
			}
		}
		s.l.Reaches(a.NetNS, proto, at(n.Gateways[0].String(), port), "a")
		if sees := s.l.Reaches(s.l.Outside, proto, at(HostAddr.String(), port), "a"); sees != OutsideAddr {
			s.Errorf("the container sees %s, want the caller's own %s", sees, OutsideAddr)
		}
	}
	s.l.Reaches("", "tcp", at("127.0.0.1", 8081), "a")
	s.l.Misses("", "tcp", at(HostAddr.String(), 8081))
	s.l.Misses(s.l.Outside, "tcp", at(HostAddr.String(), 8081))
	s.l.Reaches(s.l.Outside, "tcp", at(HostAddr.String(), 8082), "a")
	s.l.Misses("", "tcp", at("127.0.0.1", 8082))
	s.l.Misses("", "udp", at("127.0.0.1", 8080))
}

// ranges: with the same numbers, and with others.
func (s *suite) ranges() {
	s.needPorts()
	n := s.network(1, false)
	a := s.attach(n, "a", 2)
	same := network.Port{Protocol: "tcp", Host: at("", 20000), Container: 20000, Count: 10000}
	other := network.Port{Protocol: "tcp", Host: at("", 31000), Container: 5000, Count: 700} // below the ephemeral ports: anyone may hold one of those
	s.ports(n, a, same, other)
	for _, p := range []uint16{20000, 25555, 29999, 5000, 5699} {
		s.serve(a, "tcp", p)
	}
	for _, p := range []uint16{20000, 25555, 29999, 31000, 31699} {
		s.l.Reaches(s.l.Outside, "tcp", at(HostAddr.String(), p), "a")
		s.l.Reaches("", "tcp", at("127.0.0.1", p), "a")
	}
	for _, p := range []uint16{19999, 30000, 30999, 31700} {
		s.l.Misses("", "tcp", at("127.0.0.1", p))
	}
}

// replace: the new set counts, and nothing of the old one.
func (s *suite) replace() {
	s.needPorts()
	n := s.network(1, false)
	a := s.attach(n, "a", 2)
	s.serve(a, "tcp", 80)
	s.serve(a, "udp", 53)
	// A caller that was there first must not be stuck with what the kernel remembers of it.
	s.l.Misses(s.l.Outside, "udp", at(HostAddr.String(), 53))
	s.ports(n, a, tcp("", 8080, 80), tcp("", 8081, 80), network.Port{Protocol: "udp", Host: at("", 53), Container: 53})
	s.l.Reaches(s.l.Outside, "udp", at(HostAddr.String(), 53), "a")
	s.ports(n, a, tcp("", 8081, 80), tcp("", 8082, 80))
	s.l.Misses("", "tcp", at("127.0.0.1", 8080))
	s.l.Misses(s.l.Outside, "udp", at(HostAddr.String(), 53))
	s.l.Reaches("", "tcp", at("127.0.0.1", 8081), "a")
	s.l.Reaches("", "tcp", at("127.0.0.1", 8082), "a")
	s.ports(n, a)
	s.l.Misses("", "tcp", at("127.0.0.1", 8081))
}

// conflicts: with another endpoint, and with a process of the host, each named.
func (s *suite) conflicts() {
	s.needPorts()
	n := s.network(1, false)
	a, b := s.attach(n, "a", 2), s.attach(n, "b", 3)
	s.serve(a, "tcp", 80)
	s.ports(n, a, tcp("", 8080, 80), network.Port{Protocol: "tcp", Host: at("", 9000), Container: 9000, Count: 100})
	s.l.Serve("", "host", "tcp", at("127.0.0.1", 8099))
	s.l.Serve("", "host", "udp", at("127.0.0.1", 8098))
	p := s.d.(network.Publisher)
	for _, c := range []struct {
		port network.Port
		says string
	}{
		{tcp("", 8080, 81), "endpoint a"},
		{tcp("127.0.0.1", 8080, 81), "endpoint a"},
		{tcp("", 9050, 81), "endpoint a"},
		{network.Port{Protocol: "tcp", Host: at("", 8990), Container: 8990, Count: 20}, "endpoint a"},
		{tcp("", 8099, 81), fmt.Sprintf("(pid %d)", os.Getpid())},
		{network.Port{Protocol: "udp", Host: at("", 8098), Container: 53}, fmt.Sprintf("(pid %d)", os.Getpid())},
		{network.Port{Protocol: "tcp", Host: at("", 8090), Container: 8090, Count: 100}, fmt.Sprintf("(pid %d)", os.Getpid())},
	} {
		err := p.Publish(s.ctx(), n, b.Endpoint, []network.Port{tcp("", 7777, 80), c.port})
		if !errdefs.IsAlreadyExists(err) || !strings.Contains(fmt.Sprint(err), c.says) {
			s.Errorf("publish %+v: %v, want AlreadyExists and %q", c.port, err, c.says)
		}
	}
	s.l.Misses("", "tcp", at("127.0.0.1", 7777)) // all or nothing
	s.ports(n, b, network.Port{Protocol: "udp", Host: at("", 8080), Container: 80}, tcp(HostAddr.String(), 8099, 80))
	s.l.Reaches("", "tcp", at("127.0.0.1", 8080), "a")
	// What a let go of, b may have.
	s.must(s.d.Detach(s.ctx(), n, a.Endpoint))
	s.ports(n, b, tcp("", 8080, 80))
	s.serve(b, "tcp", 80)
	s.l.Reaches("", "tcp", at("127.0.0.1", 8080), "b")
}

// apart: containers of two networks do not see each other, but for what is published; and
// a neighbour of the host reaches only what is published.
func (s *suite) apart() {
	n, m := s.network(1, false), s.network(2, false)
	a, b := s.attach(n, "a", 2), s.attach(m, "b", 2)
	s.serve(a, "tcp", 80)
	s.serve(b, "tcp", 80)
	s.l.Misses(a.NetNS, "tcp", netip.AddrPortFrom(b.addr, 80))
	s.l.Misses(b.NetNS, "tcp", netip.AddrPortFrom(a.addr, 80))
	s.l.In(s.l.Outside, func() {
		eth0, err := netlink.LinkByName("eth0")
		if err == nil {
			_, dst, _ := netParse(n.Subnets[0])
			err = netlink.RouteAdd(&netlink.Route{LinkIndex: eth0.Attrs().Index, Dst: dst, Gw: HostAddr.AsSlice()})
		}
		if err != nil {
			s.Error(err)
		}
	})
	s.l.Misses(s.l.Outside, "tcp", netip.AddrPortFrom(a.addr, 80))
	if _, ok := s.d.(network.Publisher); ok {
		s.ports(n, a, tcp("", 8080, 80))
		s.l.Reaches(b.NetNS, "tcp", at(HostAddr.String(), 8080), "a")
		s.l.Misses(s.l.Outside, "tcp", netip.AddrPortFrom(a.addr, 80))
	}
}

// internal: its containers see each other and nobody else.
func (s *suite) internal() {
	n, open := s.network(1, true), s.network(2, false)
	a, b, o := s.attach(n, "a", 2), s.attach(n, "b", 3), s.attach(open, "o", 2)
	s.serve(b, "tcp", 80)
	s.serve(o, "tcp", 80)
	s.l.Serve(s.l.Outside, "outside", "tcp", netip.AddrPortFrom(FarAddr, 80))
	s.l.Reaches(a.NetNS, "tcp", netip.AddrPortFrom(b.addr, 80), "b")
	s.l.Reaches(o.NetNS, "tcp", netip.AddrPortFrom(FarAddr, 80), "outside")
	s.l.Misses(o.NetNS, "tcp", netip.AddrPortFrom(b.addr, 80))
	s.l.Misses(a.NetNS, "tcp", netip.AddrPortFrom(FarAddr, 80))
	s.l.In(a.NetNS, func() { // even one that finds itself a way
		eth0, err := netlink.LinkByName("eth0")
		if err == nil {
			err = netlink.RouteAdd(&netlink.Route{LinkIndex: eth0.Attrs().Index, Gw: n.Gateways[0].AsSlice()})
		}
		if err != nil {
			s.Error(err)
		}
	})
	s.l.Misses(a.NetNS, "tcp", netip.AddrPortFrom(FarAddr, 80))
	s.l.Misses(a.NetNS, "tcp", netip.AddrPortFrom(o.addr, 80))
	if len(a.got.Routes) != 0 {
		s.Errorf("routes out of an internal network: %v", a.got.Routes)
	}
}

// again: every method gives the same answer the second time.
func (s *suite) again() {
	n := s.network(1, false)
	s.network(1, false)
	a := s.attach(n, "a", 2)
	s.serve(a, "tcp", 80)
	for range 2 {
		got, err := s.d.Attach(s.ctx(), n, a.Endpoint)
		s.must(err)
		if !reflect.DeepEqual(got, a.got) {
			s.Errorf("attached again: %+v, want %+v", got, a.got)
		}
	}
	s.l.Reaches("", "tcp", netip.AddrPortFrom(a.addr, 80), "a")
	if held := s.held(); len(held) != 1 || held[0] != (network.Held{NetworkID: n.ID, EndpointID: "a"}) {
		s.Errorf("held: %v", held)
	}
	// Elsewhere, and with another address: what is wanted now counts.
	moved := a
	moved.NetNS, moved.addr = s.l.NetNS(), netip.MustParseAddr("10.77.1.9")
	moved.Addresses = []netip.Prefix{netip.PrefixFrom(moved.addr, 24)}
	_, err := s.d.Attach(s.ctx(), n, moved.Endpoint)
	s.must(err)
	s.serve(moved, "tcp", 80)
	s.l.Reaches("", "tcp", netip.AddrPortFrom(moved.addr, 80), "a")
	for range 2 {
		s.must(s.d.Detach(s.ctx(), n, moved.Endpoint))
	}
	if held := s.held(); len(held) != 0 {
		s.Errorf("held: %v", held)
	}
}

func (s *suite) held() (all []network.Held) {
	for h, err := range s.d.Endpoints(s.ctx()) {
		s.must(err)
		all = append(all, h)
	}
	return all
}

// restarted: another process goes on where the last one was killed, without a handle.
func (s *suite) restarted() {
	n := s.network(1, false)
	a := s.attach(n, "a", 2)
	s.serve(a, "tcp", 80)
	if _, ok := s.d.(network.Publisher); ok {
		s.ports(n, a, tcp("", 8080, 80))
	}
	s.d = s.restart()
	n.Handle, a.Handle = nil, nil
	if held := s.held(); len(held) != 1 {
		s.Fatalf("held: %v", held)
	}
	if _, ok := s.d.(network.Publisher); ok {
		s.l.Reaches("", "tcp", at("127.0.0.1", 8080), "a")
		b := s.attach(n, "b", 3)
		err := s.d.(network.Publisher).Publish(s.ctx(), n, b.Endpoint, []network.Port{tcp("", 8080, 80)})
		if !errdefs.IsAlreadyExists(err) {
			s.Errorf("publish what the last process published: %v", err)
		}
		s.ports(n, a, tcp("", 8081, 80))
		s.l.Misses("", "tcp", at("127.0.0.1", 8080))
	}
	s.d = s.restart()
	s.must(s.d.Detach(s.ctx(), n, network.Endpoint{ID: "a", NetNS: a.NetNS}))
	s.l.Misses("", "tcp", at("127.0.0.1", 8081))
}

// lost: somebody deleted the links. The next call makes what it needs.
func (s *suite) lost() {
	n := s.network(1, false)
	a := s.attach(n, "a", 2)
	all, err := netlink.LinkList()
	s.must(err)
	for _, l := range all {
		if l.Attrs().Name != "lo" && l.Attrs().Name != "uplink0" {
			if err := netlink.LinkDel(l); err != nil && l.Type() != "veth" {
				s.Fatal(err)
			}
		}
	}
	_, err = s.d.Attach(s.ctx(), n, a.Endpoint)
	s.must(err)
	s.l.Serve(s.l.Outside, "outside", "tcp", netip.AddrPortFrom(FarAddr, 80))
	s.l.Reaches(a.NetNS, "tcp", netip.AddrPortFrom(FarAddr, 80), "outside")
}

// dropped: with its namespace an endpoint goes, in its own time, and what it published went at once.
func (s *suite) dropped() {
	n := s.network(1, false)
	a := s.attach(n, "a", 2)
	if _, ok := s.d.(network.Publisher); ok {
		s.ports(n, a, tcp("", 8080, 80))
		s.serve(a, "tcp", 80)
		s.l.Reaches("", "tcp", at("127.0.0.1", 8080), "a")
	}
	a.NetNS, a.Endpoint.NetNS = "", ""
	s.must(s.d.Detach(s.ctx(), n, a.Endpoint))
	s.l.Misses("", "tcp", at("127.0.0.1", 8080))
}

// refusals: what cannot be is InvalidArgument, or the class that fits, and leaves nothing.
func (s *suite) refusals() {
	n := s.network(1, false)
	good := network.Endpoint{ID: "x", NetNS: s.l.NetNS(), Interface: "eth0", Addresses: []netip.Prefix{netip.MustParsePrefix("10.77.1.2/24")}}
	for name, change := range map[string]func(*network.Endpoint){
		"no id":             func(e *network.Endpoint) { e.ID = "" },
		"bad id":            func(e *network.Endpoint) { e.ID = "a b" },
		"no address":        func(e *network.Endpoint) { e.Addresses = nil },
		"foreign address":   func(e *network.Endpoint) { e.Addresses = []netip.Prefix{netip.MustParsePrefix("10.78.1.2/24")} },
		"gateway's address": func(e *network.Endpoint) { e.Addresses = []netip.Prefix{netip.MustParsePrefix("10.77.1.1/24")} },
		"bad mac":           func(e *network.Endpoint) { e.MAC = "01:00:5e:00:00:01" },
		"bad interface":     func(e *network.Endpoint) { e.Interface = "../eth0" },
		"not a namespace":   func(e *network.Endpoint) { e.NetNS = "/proc/self/status" },
	} {
		e := good
		change(&e)
		if _, err := s.d.Attach(s.ctx(), n, e); !errdefs.IsInvalidArgument(err) {
			s.Errorf("%s: %v, want InvalidArgument", name, err)
		}
	}
	gone := good
	gone.NetNS = "/nonexistent"
	if _, err := s.d.Attach(s.ctx(), n, gone); !errdefs.IsNotFound(err) {
		s.Errorf("namespace that is not there: %v, want NotFound", err)
	}
	if held := s.held(); len(held) != 0 {
		s.Errorf("left by refusals: %v", held)
	}
	bad := n
	bad.ID, bad.Subnets = "other", nil
	if _, err := s.d.CreateNetwork(s.ctx(), bad); !errdefs.IsInvalidArgument(err) {
		s.Errorf("network without a subnet: %v", err)
	}
	// The deadline is the caller's.
	ctx, cancel := context.WithTimeoutCause(s.ctx(), 0, context.DeadlineExceeded)
	defer cancel()
	if _, err := s.d.Attach(ctx, n, good); err == nil {
		s.Error("attached after the deadline")
	}
}

// atOnce: many endpoints, side by side.
func (s *suite) atOnce() {
	n := s.network(1, false)
	const many = 16
	errs := make(chan error, many)
	began := time.Now()
	for i := range many {
		e := network.Endpoint{
			ID: fmt.Sprint("many-", i), NetNS: s.l.NetNS(), Interface: "eth0",
			Addresses: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 77, 1, byte(i + 10)}), 24)},
		}
		go func() {
			_, err := s.d.Attach(s.ctx(), n, e)
			if p, ok := s.d.(network.Publisher); ok && err == nil {
				err = p.Publish(s.ctx(), n, e, []network.Port{tcp("", uint16(9000+i), 80)})
			}
			errs <- err
		}()
	}
	for range many {
		s.must(<-errs)
	}
	s.Logf("%d endpoints in %s", many, time.Since(began))
	if held := s.held(); len(held) != many {
		s.Errorf("held: %d, want %d", len(held), many)
	}
}

// check: a driver that can tell what differs finds nothing where nothing does, and everything else.
func (s *suite) check() {
	c, ok := s.d.(network.Checker)
	if !ok {
		s.Skip("the driver does not check")
	}
	n := s.network(1, false)
	a, b := s.attach(n, "a", 2), s.attach(n, "b", 3)
	differences := func(want ...network.Want) (all []network.Difference) {
		s.Helper()
		for d, err := range c.Check(s.ctx(), n, want) {
			if errdefs.IsNotImplemented(err) {
				s.Skip("the driver does not check")
			}
			s.must(err)
			all = append(all, d)
		}
		return all
	}
	ports := []network.Port{tcp("", 8080, 80), {Protocol: "udp", Host: at("127.0.0.1", 9000), Container: 9000, Count: 9}}
	wa, wb := network.Want{Endpoint: a.Endpoint}, network.Want{Endpoint: b.Endpoint}
	wa.NetNS = ""
	if d := differences(wa, wb); len(d) != 0 {
		s.Errorf("differences: %v", d)
	}
	if _, ok := s.d.(network.Publisher); !ok {
		return
	}
	s.ports(n, a, ports...)
	if d := differences(wa, wb); len(d) != 2 {
		s.Errorf("published and not wanted: %v, want 2", d)
	}
	wa.Ports = ports
	if d := differences(wa, wb); len(d) != 0 {
		s.Errorf("differences: %v", d)
	}
	wb.Ports = []network.Port{tcp("", 8081, 80)}
	if d := differences(wa, wb); len(d) != 1 {
		s.Errorf("wanted and not published: %v, want 1", d)
	}
	if d := differences(wb); len(d) != 3 {
		s.Errorf("published for nobody, and wanted: %v, want 3", d)
	}
}
