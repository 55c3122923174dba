package networks

import (
	"bufio"
	"fmt"
	"hash/fnv"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/internal/meta"
)

// Host says what addresses this host has use for.
type Host interface {
	// InUse lists what a new network must keep away from: routes (but the default one), the subnets of the
	// links' addresses, and nameservers. Those of the link that has own, the network's gateway, are left out.
	InUse(own netip.Addr) ([]netip.Prefix, error)
}

// kernel is the Host there is.
type kernel struct{}

// InUse asks the kernel, all tables, and reads the resolvers' files.
func (kernel) InUse(own netip.Addr) ([]netip.Prefix, error) {
	addrs, err := netlink.AddrList(nil, netlink.FAMILY_V4)
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	mine := -1
	var out []netip.Prefix
	add := func(raw []byte, ones int) {
		if a, ok := netip.AddrFromSlice(raw); ok && ones > 0 {
			out = append(out, netip.PrefixFrom(a.Unmap(), ones).Masked())
		}
	}
	for _, a := range addrs {
		if ip, ok := netip.AddrFromSlice(a.IP.To4()); ok && ip == own {
			mine = a.LinkIndex
		}
	}
	for _, a := range addrs {
		if ones, _ := a.Mask.Size(); a.LinkIndex != mine {
			add(a.IP.To4(), ones)
		}
	}
	routes, err := netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	for _, r := range routes {
		if r.Dst != nil && r.LinkIndex != mine && r.Type == unix.RTN_UNICAST {
			ones, _ := r.Dst.Mask.Size()
			add(r.Dst.IP.To4(), ones)
		}
	}
	for _, file := range []string{"/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"} {
		for _, a := range nameservers(file) {
			out = append(out, netip.PrefixFrom(a, a.BitLen()))
		}
	}
	return out, nil
}

// nameservers reads a resolv.conf(5). A file that is not there names none.
func nameservers(file string) (all []netip.Addr) {
	f, err := os.Open(file) //nolint:gosec // a constant
	if err != nil {
		return nil
	}
	defer f.Close() //nolint:errcheck // it was read
	for sc := bufio.NewScanner(f); sc.Scan(); {
		w := strings.Fields(sc.Text())
		if len(w) < 2 || w[0] != "nameserver" {
			continue
		}
		if a, err := netip.ParseAddr(w[1]); err == nil && a.Unmap().Is4() {
			all = append(all, a.Unmap())
		}
	}
	return all
}

// pools is where subnets are looked for, in this order: what is seldom used elsewhere. 172.17 to
// 172.29 are Docker's, 10.88 to 10.91 Podman's.
var pools = []netip.Prefix{
	netip.MustParsePrefix("172.30.0.0/16"), netip.MustParsePrefix("172.31.0.0/16"),
	netip.MustParsePrefix("10.213.0.0/16"), netip.MustParsePrefix("10.214.0.0/16"), netip.MustParsePrefix("192.168.0.0/16"),
}

// pickSubnet returns a /24 that overlaps nothing in use. The first look is at a place that
// depends on the instance, so that two daemons that begin together do not both choose the same; "gantry" begins with the first.
func pickSubnet(instance string, use []netip.Prefix) (netip.Prefix, error) {
	start := uint32(0)
	if instance != "" && instance != "gantry" {
		h := fnv.New32a()
		_, _ = h.Write([]byte(instance))
		start = h.Sum32() % 256
	}
	for _, pool := range pools {
		for i := range uint32(256) {
			p := netip.PrefixFrom(numbered(number(pool.Addr())+(start+i)%256<<8), 24)
			if !slices.ContainsFunc(use, p.Overlaps) {
				return p, nil
			}
		}
	}
	return netip.Prefix{}, fmt.Errorf("pick a subnet: this host has a use for every one in %v: choose one with --subnet, or network.subnet in the configuration: %w", pools, errdefs.ErrResourceExhausted)
}

// subnets are those of the networks there are, and whose they are.
func (s *Service) subnets() (map[netip.Prefix]string, error) {
	all := map[netip.Prefix]string{}
	err := s.db.View(func(tx *meta.Tx) error {
		for _, n := range s.networks.All(tx) {
			for _, sub := range n.GetSubnets() {
				if p, err := netip.ParsePrefix(sub); err == nil {
					all[p] = n.GetMeta().GetName()
				}
			}
		}
		return tx.Damaged()
	})
	return all, err
}

// parseSubnet reads a subnet that a user wrote.
func parseSubnet(text string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(text)
	if err != nil {
		return p, invalid("subnet %q: write it as 10.20.30.0/24", text)
	}
	if !p.Addr().Is4() {
		return p, fmt.Errorf("subnet %s: networks are IPv4 only: %w", p, errdefs.ErrNotImplemented)
	}
	if p.Bits() < 8 || p.Bits() > 30 {
		return p, invalid("subnet %s: want a prefix of 8 to 30 bits", p)
	}
	return p.Masked(), nil
}

// free refuses a subnet that another network has, or that the host has a use for.
func free(p netip.Prefix, theirs map[netip.Prefix]string, use []netip.Prefix) error {
	for o, name := range theirs {
		if o.Overlaps(p) {
			return fmt.Errorf("subnet %s overlaps %s of network %s: choose another: %w", p, o, name, errdefs.ErrFailedPrecondition)
		}
	}
	for _, o := range use {
		if o.Overlaps(p) {
			return fmt.Errorf("subnet %s overlaps %s, which this host reaches otherwise: choose another: %w", p, o, errdefs.ErrFailedPrecondition)
		}
	}
	return nil
}

// gatewayOf is the gateway that was asked for, or else the first address of the subnet.
func gatewayOf(p netip.Prefix, asked string) (netip.Addr, error) {
	first, last := bounds(p)
	if asked == "" {
		return numbered(first + 1), nil
	}
	a, err := netip.ParseAddr(asked)
	if err != nil || !p.Contains(a) || a == numbered(first) || a == numbered(last) {
		return a, invalid("gateway %q: want an address in %s", asked, p)
	}
	return a, nil
}
