package bridge

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/plugins/network"
)

var (
	idForm   = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$`)
	linkForm = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_-]{0,14}$`) // IFNAMSIZ less its NUL
	instForm = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_-]{0,31}$`)
)

// owner is what an alias says: whose the link is, which network, which endpoint ("" for a bridge).
// An alias holds 255 bytes; the longest of ours is shorter.
type owner struct{ instance, network, endpoint string }

func (o owner) String() string {
	s := o.instance + " network " + o.network
	if o.endpoint != "" {
		s += " endpoint " + o.endpoint
	}
	return s
}

// parseOwner reads an alias. What is not gantry's gives the zero owner.
func parseOwner(alias string) owner {
	w := strings.Split(alias, " ")
	switch {
	case len(w) == 3 && w[1] == "network":
		return owner{w[0], w[2], ""}
	case len(w) == 5 && w[1] == "network" && w[3] == "endpoint":
		return owner{w[0], w[2], w[4]}
	}
	return owner{}
}

func digest(n int, words ...string) string {
	sum := sha256.Sum256([]byte(strings.Join(words, "\x00")))
	return hex.EncodeToString(sum[:])[:n]
}

// hostName is the name of an endpoint's link on the host.
func (d *Driver) hostName(endpoint string) string {
	return "gv" + digest(13, d.instance, endpoint)
}

// bridgeName is the name of a network's bridge: its option "bridge", the daemon's for
// the default network, else one made from its id.
func (d *Driver) bridgeName(n network.Network) string {
	if name := n.Options["bridge"]; name != "" {
		return name
	}
	if n.Name == "bridge" && d.defaultBridge != "" {
		return d.defaultBridge
	}
	return "gy" + digest(12, d.instance, n.ID)
}

// macOf is the hardware address that belongs to an address: locally administered, and the
// same every time, so that a neighbour's memory of an address stays right when another container gets it.
func macOf(a netip.Addr) net.HardwareAddr {
	b := a.As4()
	return net.HardwareAddr{0x02, 0x67, b[0], b[1], b[2], b[3]}
}

// plan is a network as this driver understands it: checked, and with every name.
type plan struct {
	id, name, bridge string
	subnet           netip.Prefix // masked
	gateway          netip.Addr
	mtu              int // 0: the uplink's
	internal         bool
}

func (d *Driver) plan(n network.Network) (plan, error) {
	p := plan{id: n.ID, name: n.Name, bridge: d.bridgeName(n), mtu: n.MTU, internal: n.Internal}
	bad := func(format string, args ...any) (plan, error) {
		return plan{}, fmt.Errorf(format+": %w", append(args, errdefs.ErrInvalidArgument)...)
	}
	if !idForm.MatchString(n.ID) {
		return bad("network id %q: want %s", n.ID, idForm)
	}
	if !linkForm.MatchString(p.bridge) {
		return bad("bridge name %q: want %s", p.bridge, linkForm)
	}
	for k := range n.Options {
		if k != "bridge" {
			return bad("option %q is not known; there is: bridge", k)
		}
	}
	if len(n.Subnets) != 1 || len(n.Gateways) != 1 {
		return bad("%d subnets and %d gateways: a bridge network has one of each", len(n.Subnets), len(n.Gateways))
	}
	p.subnet, p.gateway = n.Subnets[0].Masked(), n.Gateways[0]
	if !p.subnet.Addr().Is4() || !p.gateway.Is4() {
		return plan{}, fmt.Errorf("subnet %s: bridge networks are IPv4 only: %w", p.subnet, errdefs.ErrNotImplemented)
	}
	if p.subnet.Bits() < 8 || p.subnet.Bits() > 30 || !p.subnet.Contains(p.gateway) {
		return bad("subnet %s with gateway %s: want a prefix of 8 to 30 bits that holds the gateway", p.subnet, p.gateway)
	}
	if p.mtu != 0 && (p.mtu < 576 || p.mtu > 65535) {
		return bad("mtu %d: want 576 to 65535, or 0 for the uplink's", p.mtu)
	}
	return p, nil
}

// seat is an endpoint as this driver understands it.
type seat struct {
	id, netns, host, inside string
	address                 netip.Prefix
	mac                     net.HardwareAddr
}

func (d *Driver) seat(p plan, e network.Endpoint) (seat, error) {
	s := seat{id: e.ID, netns: e.NetNS, host: d.hostName(e.ID), inside: e.Interface}
	bad := func(format string, args ...any) (seat, error) {
		return seat{}, fmt.Errorf(format+": %w", append(args, errdefs.ErrInvalidArgument)...)
	}
	if !idForm.MatchString(e.ID) {
		return bad("endpoint id %q: want %s", e.ID, idForm)
	}
	if s.inside == "" {
		s.inside = "eth0"
	}
	if !linkForm.MatchString(s.inside) || s.inside == "lo" {
		return bad("interface name %q: want %s, and not lo", s.inside, linkForm)
	}
	if len(e.Addresses) != 1 {
		return bad("%d addresses: want one, out of %s", len(e.Addresses), p.subnet)
	}
	s.address = e.Addresses[0]
	if s.address.Masked() != p.subnet || s.address.Addr() == p.gateway {
		return bad("address %s: want one out of %s that is not the gateway %s", s.address, p.subnet, p.gateway)
	}
	s.mac = macOf(s.address.Addr())
	if e.MAC != "" {
		mac, err := net.ParseMAC(e.MAC)
		if err != nil || len(mac) != 6 || mac[0]&1 != 0 {
			return bad("hardware address %q: want six bytes, not multicast", e.MAC)
		}
		s.mac = mac
	}
	return s, nil
}
