package runtimetest

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strings"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/shim/runtime"
)

var networkFeatures = []feature{
	{name: "linux.netDevices", ask: spec("true", func(s *specs.Spec) {
		s.Linux.NetDevices = map[string]specs.LinuxNetDevice{"lo": {Name: "x"}}
	}), more: netDevices},
}

// veth makes a pair of devices of this machine's; the first one's addresses are given.
func (b *Box) veth(name string, addresses ...string) netlink.Link {
	b.T.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = name, 1321
	attrs.HardwareAddr = net.HardwareAddr{2, 0, 0, 0, 0, 7}
	b.check(netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: name + "p"}))
	b.T.Cleanup(func() {
		if l, err := netlink.LinkByName(name + "p"); err == nil {
			_ = netlink.LinkDel(l)
		}
	})
	l, err := netlink.LinkByName(name)
	b.check(err)
	for _, a := range addresses {
		addr, err := netlink.ParseAddr(a)
		b.check(err)
		if addr.IP.To4() == nil {
			addr.Flags |= unix.IFA_F_NODAD
		}
		b.check(netlink.AddrAdd(l, addr))
	}
	return l
}

const showDevice = `ip -o link show dev %[1]s | grep -o 'mtu [0-9]*\|UP\|02:00:00:00:00:07' | tr '\n' ' '; ip -o addr show dev %[1]s scope global | awk '{ print $4, $6 }' | sort`

// netDevices: a device of the host's is the container's, with what it had, under its own or a new name.
func netDevices(b *Box) {
	name := fmt.Sprintf("gn%d", os.Getpid()%1000000)
	for _, x := range []struct{ to, want string }{{"", name}, {"eth7", "eth7"}, {"net%d", "net0"}} {
		for _, user := range []bool{false, true} {
			b.veth(name, "198.18.7.1/24", "2001:db8:7::1/64")
			c := b.Sh(fmt.Sprintf(showDevice, x.want))
			if user {
				b.inUser(c)
			}
			c.Spec.Linux.NetDevices = map[string]specs.LinuxNetDevice{name: {Name: x.to}}
			out, code := b.Run(c)
			if code != 0 {
				b.T.Errorf("%q: exit %d: %s", x.to, code, out)
			}
			for _, want := range []string{"mtu 1321", "UP", "02:00:00:00:00:07", "198.18.7.1/24 198.18.7.255", "2001:db8:7::1/64"} {
				if !strings.Contains(out, want) {
					b.T.Errorf("%q: no %s in %s", x.to, want, out)
				}
			}
			if l, err := netlink.LinkByName(name + "p"); err == nil {
				_ = netlink.LinkDel(l)
			}
		}
	}
	netDeviceErrors(b, name)
}

func netDeviceErrors(b *Box, name string) {
	device := func(from, to string) *runtime.Config {
		c := b.Sh("true")
		c.Spec.Linux.NetDevices = map[string]specs.LinuxNetDevice{from: {Name: to}}
		return c
	}
	if _, err := b.Create(device("gnnotthere", "")); !errors.Is(err, unix.ENODEV) || !strings.Contains(err.Error(), "linux.netDevices: move gnnotthere") {
		b.T.Errorf("a device that is not there: %v", err)
	}
	b.veth(name)
	if _, err := b.Create(device(name, "lo")); !errdefs.IsAlreadyExists(err) {
		b.T.Errorf("a name that is taken: %v", err)
	}
	if _, err := netlink.LinkByName(name); err != nil {
		b.T.Errorf("it was moved all the same: %v", err)
	}
	for _, bad := range []string{"a/b", "a b", "sixteen-letters-x", "."} {
		b.refuses("linux.netDevices", device(name, bad))
		b.refuses("linux.netDevices", device(bad, "x"))
	}
	c := device(name, "")
	without(c, specs.NetworkNamespace)
	c.Spec.Linux.Sysctl = nil
	b.refuses("linux.netDevices", c)
}
