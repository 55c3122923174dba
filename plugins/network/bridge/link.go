package bridge

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"

	"golang.org/x/sys/unix"
)

// link is what we need to know of a network interface.
type link struct {
	index, mtu, master int
	peer               int // of a veth: the other end's index, in the namespace it is in
	up                 bool
	name, alias, kind  string
	mac                net.HardwareAddr
}

const skipStatistics = 8 // RTEXT_FILTER_SKIP_STATS

// findLink returns the link called name; nil when there is none.
func findLink(c *conn, name string) (*link, error) {
	var m message
	m.begin(unix.RTM_GETLINK, 0, ifinfo(unix.AF_UNSPEC, 0, 0, 0))
	m.text(unix.IFLA_IFNAME, name)
	m.u32(unix.IFLA_EXT_MASK, skipStatistics)
	m.finish()
	var found *link
	if err := unix.Sendto(c.fd, m.buf, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, fmt.Errorf("send netlink message: %w", err)
	}
	err := c.receive(func(h *unix.NlMsghdr, body []byte) (bool, error) {
		switch h.Type {
		case unix.RTM_NEWLINK:
			found = parseLink(body)
		case unix.NLMSG_ERROR:
			return false, answer(h, body)
		}
		return true, nil
	})
	if errors.Is(err, unix.ENODEV) {
		return nil, nil //nolint:nilnil // documented
	}
	if err != nil {
		return nil, fmt.Errorf("look up link %s: %w", name, err)
	}
	return found, nil
}

// links lists every link of the namespace.
func links(c *conn) ([]*link, error) {
	for try := 0; ; try++ {
		var m message
		m.begin(unix.RTM_GETLINK, unix.NLM_F_DUMP, ifinfo(unix.AF_UNSPEC, 0, 0, 0))
		m.u32(unix.IFLA_EXT_MASK, skipStatistics)
		var all []*link
		err := c.dump(&m, func(typ uint16, body []byte) {
			if typ == unix.RTM_NEWLINK {
				all = append(all, parseLink(body))
			}
		})
		if err == nil {
			return all, nil
		}
		if !errors.Is(err, errInterrupted) || try == 10 {
			return nil, fmt.Errorf("list links: %w", err)
		}
		c.close() // what is left of the interrupted list goes with the socket
		fresh, err := dial(unix.NETLINK_ROUTE)
		if err != nil {
			return nil, err
		}
		c.fd = fresh.fd
	}
}

func parseLink(b []byte) *link {
	if len(b) < unix.SizeofIfInfomsg {
		return &link{}
	}
	l := &link{
		index: int(binary.NativeEndian.Uint32(b[4:])),
		up:    binary.NativeEndian.Uint32(b[8:])&unix.IFF_UP != 0,
	}
	for typ, v := range attributes(b[unix.SizeofIfInfomsg:]) {
		switch typ {
		case unix.IFLA_IFNAME:
			l.name = cstring(v)
		case unix.IFLA_IFALIAS:
			l.alias = cstring(v)
		case unix.IFLA_MTU:
			l.mtu = number(v)
		case unix.IFLA_MASTER:
			l.master = number(v)
		case unix.IFLA_LINK:
			l.peer = number(v)
		case unix.IFLA_ADDRESS:
			l.mac = append(net.HardwareAddr(nil), v...)
		case unix.IFLA_LINKINFO:
			for t, w := range attributes(v) {
				if t == unix.IFLA_INFO_KIND {
					l.kind = cstring(w)
				}
			}
		}
	}
	return l
}

func number(v []byte) int {
	if len(v) < 4 {
		return 0
	}
	return int(binary.NativeEndian.Uint32(v))
}

// deleteLink removes a link; one that is gone already is fine.
func deleteLink(c *conn, index int) error {
	var m message
	m.begin(unix.RTM_DELLINK, 0, ifinfo(unix.AF_UNSPEC, index, 0, 0))
	if err := c.first(&m); err != nil && !errors.Is(err, unix.ENODEV) {
		return err
	}
	return nil
}

// noAutoAddress keeps the kernel from giving the link an IPv6 address of its own.
func noAutoAddress(m *message) {
	const inet6AddrGenMode, modeNone = 8, 1 // IFLA_INET6_ADDR_GEN_MODE, IN6_ADDR_GEN_MODE_NONE
	m.nest(unix.IFLA_AF_SPEC|unix.NLA_F_NESTED, nil, func() {
		m.nest(unix.AF_INET6|unix.NLA_F_NESTED, nil, func() {
			m.bytes(inet6AddrGenMode, []byte{modeNone})
		})
	})
}
