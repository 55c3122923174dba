package bridge

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"runtime"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/plugins/network"
)

// Attach puts an endpoint into its network namespace: a veth pair made by one message with
// its peer inside, then loopback, address, link and route by one train of messages there.
func (d *Driver) Attach(ctx context.Context, n network.Network, e network.Endpoint) (network.Attached, error) {
	a, err := d.attach(ctx, n, e)
	if err != nil {
		return a, fmt.Errorf("attach endpoint %s to network %s: %w", e.ID, label(n), err)
	}
	return a, nil
}

func (d *Driver) attach(ctx context.Context, n network.Network, e network.Endpoint) (network.Attached, error) {
	if err := alive(ctx); err != nil {
		return network.Attached{}, err
	}
	p, err := d.plan(n)
	if err != nil {
		return network.Attached{}, err
	}
	s, err := d.seat(p, e)
	if err != nil {
		return network.Attached{}, err
	}
	end, err := d.turns.take(ctx, s.id)
	if err != nil {
		return network.Attached{}, err
	}
	defer end()
	host, err := dial(unix.NETLINK_ROUTE)
	if err != nil {
		return network.Attached{}, err
	}
	defer host.close()
	br, err := d.present(ctx, host, p)
	if err != nil {
		return network.Attached{}, err
	}
	ns, inside, err := enter(s.netns)
	if err != nil {
		return network.Attached{}, err
	}
	defer inside.close()
	defer unix.Close(ns) //nolint:errcheck // a namespace descriptor
	index, err := d.join(host, inside, ns, p, s, br)
	if err != nil {
		return network.Attached{}, err
	}
	if err := furnish(inside, index, p, s); err != nil {
		return network.Attached{}, err
	}
	a := network.Attached{Interface: s.inside, MAC: s.mac.String()}
	if !p.internal {
		a.Routes = []netip.Prefix{netip.PrefixFrom(netip.IPv4Unspecified(), 0)}
	}
	return a, nil
}

// present returns the network's bridge, and makes the network first if the host lost it.
func (d *Driver) present(ctx context.Context, c *conn, p plan) (*link, error) {
	br, err := findLink(c, p.bridge)
	if err != nil {
		return nil, err
	}
	if br != nil && br.up && br.alias == (owner{d.instance, p.id, ""}).String() {
		d.mu.Lock()
		whole, err := d.sound(p)
		d.mu.Unlock()
		if err != nil || whole {
			return br, err
		}
	}
	return d.ensure(ctx, p)
}

// sound says whether the rules are as they should be. mu is held.
func (d *Driver) sound(p plan) (bool, error) {
	whole, err := d.rules.whole(p)
	if err != nil || !whole || d.rules.sound[p.bridge] {
		return whole, err
	}
	if err := d.openForeign(p); err != nil {
		return false, err
	}
	d.rules.vouch(p)
	return true, nil
}

// join makes the pair, and returns the index of its peer inside.
func (d *Driver) join(host, inside *conn, ns int, p plan, s seat, br *link) (int, error) {
	alias := owner{d.instance, p.id, s.id}.String()
	for range 2 {
		answers, err := host.send(pair(ns, s, br, alias))
		if err != nil {
			return 0, err
		}
		switch err := answers[0]; {
		case err == nil && answers[1] != nil:
			return 0, fmt.Errorf("name link %s: %w", s.host, answers[1])
		case err == nil:
			return peer(host, inside, s)
		case !errors.Is(err, unix.EEXIST):
			return 0, fmt.Errorf("make link %s on %s: %w", s.host, p.bridge, err)
		}
		index, err := adopt(host, inside, s, br, alias)
		if err != nil || index != 0 {
			return index, err
		}
	}
	return 0, fmt.Errorf("make link %s on %s: it keeps coming back: %w", s.host, p.bridge, errdefs.ErrAborted)
}

// adopt looks at the link that is in the way: 0 means that it was half made, and has been removed.
func adopt(host, inside *conn, s seat, br *link, alias string) (int, error) {
	have, err := findLink(host, s.host)
	if err != nil {
		return 0, err
	}
	if have == nil {
		return 0, fmt.Errorf("interface %s is there already: %w", s.inside, errdefs.ErrAlreadyExists)
	}
	if have.alias != alias {
		return 0, fmt.Errorf("link %s is there and is not ours (alias %q): %w", s.host, have.alias, errdefs.ErrAlreadyExists)
	}
	peer, err := findLink(inside, s.inside)
	if err != nil {
		return 0, err
	}
	if peer == nil || peer.kind != "veth" || peer.index != have.peer || peer.peer != have.index || !bytes.Equal(peer.mac, s.mac) || !only(inside, peer.index, s.address) {
		// In another namespace, or with other parameters: what is wanted now counts.
		if err := deleteLink(host, have.index); err != nil {
			return 0, fmt.Errorf("delete link %s: %w", s.host, err)
		}
		return 0, nil
	}
	if err := enslave(host, have, br); err != nil {
		return 0, err
	}
	return peer.index, nil
}

// peer finds the index of the end just made inside. (One that is asked for is granted only together
// with one for the host's end, drivers/net/veth.c.)
func peer(host, inside *conn, s seat) (int, error) {
	l, err := findLink(inside, s.inside)
	if err == nil && l == nil {
		have, _ := findLink(host, s.host)
		if have != nil {
			_ = deleteLink(host, have.index)
		}
		err = fmt.Errorf("interface %s is gone again: %w", s.inside, errdefs.ErrAborted)
	}
	if err != nil {
		return 0, err
	}
	return l.index, nil
}

// pair is the message that makes both ends, and the one that says whose they are. The
// host's end is on the bridge and up at once; the peer cannot be brought up from outside.
func pair(ns int, s seat, br *link, alias string) *message {
	const vethInfoPeer = 1 // VETH_INFO_PEER, linux/veth.h
	m := &message{buf: make([]byte, 0, 512)}
	m.begin(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL, ifinfo(unix.AF_UNSPEC, 0, unix.IFF_UP, unix.IFF_UP))
	m.text(unix.IFLA_IFNAME, s.host)
	m.u32(unix.IFLA_MASTER, uint32(br.index)) //nolint:gosec // an index
	m.u32(unix.IFLA_MTU, uint32(br.mtu))      //nolint:gosec // an MTU
	m.nest(unix.IFLA_LINKINFO|unix.NLA_F_NESTED, nil, func() {
		m.text(unix.IFLA_INFO_KIND, "veth")
		m.nest(unix.IFLA_INFO_DATA|unix.NLA_F_NESTED, nil, func() {
			m.nest(vethInfoPeer|unix.NLA_F_NESTED, ifinfo(unix.AF_UNSPEC, 0, 0, 0), func() {
				m.text(unix.IFLA_IFNAME, s.inside)
				m.bytes(unix.IFLA_ADDRESS, s.mac)
				m.u32(unix.IFLA_MTU, uint32(br.mtu))   //nolint:gosec // an MTU
				m.u32(unix.IFLA_NET_NS_FD, uint32(ns)) //nolint:gosec // a descriptor
			})
		})
	})
	m.begin(unix.RTM_SETLINK, 0, ifinfo(unix.AF_UNSPEC, 0, 0, 0))
	m.text(unix.IFLA_IFNAME, s.host)
	m.text(unix.IFLA_IFALIAS, alias)
	noAutoAddress(m)
	return m
}

// furnish brings up loopback and the interface, and gives it its address and the way out.
func furnish(inside *conn, index int, p plan, s seat) error {
	m := &message{buf: make([]byte, 0, 512)}
	m.begin(unix.RTM_SETLINK, 0, ifinfo(unix.AF_UNSPEC, 1, unix.IFF_UP, unix.IFF_UP)) // lo is always 1
	m.begin(unix.RTM_SETLINK, 0, ifinfo(unix.AF_UNSPEC, index, 0, 0))
	noAutoAddress(m)
	address(m, index, s.address.Addr(), s.address.Bits())
	m.begin(unix.RTM_SETLINK, 0, ifinfo(unix.AF_UNSPEC, index, unix.IFF_UP, unix.IFF_UP))
	if !p.internal {
		m.begin(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_EXCL,
			[]byte{unix.AF_INET, 0, 0, 0, unix.RT_TABLE_MAIN, unix.RTPROT_BOOT, unix.RT_SCOPE_UNIVERSE, unix.RTN_UNICAST, 0, 0, 0, 0})
		m.bytes(unix.RTA_GATEWAY, p.gateway.AsSlice())
		m.u32(unix.RTA_OIF, uint32(index)) //nolint:gosec // an index
	}
	answers, err := inside.send(m)
	if err != nil {
		return err
	}
	steps := []string{"bring up lo", "quieten " + s.inside, "give " + s.inside + " " + s.address.String(), "bring up " + s.inside, "route by " + p.gateway.String()}
	for i, err := range answers {
		if i == 1 && err != nil {
			continue // a kernel without IPv6 has nothing to quieten
		}
		if i == 4 && errors.Is(err, unix.EEXIST) {
			continue // there is a way out already: of this network, or of the one joined before it
		}
		if err != nil {
			return fmt.Errorf("%s: %w", steps[i], err)
		}
	}
	return nil
}

// address adds the message that gives a link an address, with its broadcast.
func address(m *message, index int, a netip.Addr, bits int) {
	head := []byte{unix.AF_INET, byte(bits), 0, unix.RT_SCOPE_UNIVERSE, 0, 0, 0, 0}
	binary.NativeEndian.PutUint32(head[4:], uint32(index)) //nolint:gosec // an index
	m.begin(unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, head)
	b := a.As4()
	m.bytes(unix.IFA_LOCAL, b[:])
	m.bytes(unix.IFA_ADDRESS, b[:])
	v := binary.BigEndian.Uint32(b[:]) | (1<<(32-bits) - 1)
	m.bytes(unix.IFA_BROADCAST, binary.BigEndian.AppendUint32(nil, v))
}

// only says whether a link has no IPv4 address but want.
func only(c *conn, index int, want netip.Prefix) bool {
	alone := true
	err := addresses(c, func(i int, v []byte, bits int) {
		a, ok := netip.AddrFromSlice(v)
		alone = alone && (i != index || ok && netip.PrefixFrom(a, bits) == want)
	})
	return err == nil && alone
}

// addresses calls fn with every IPv4 address of the namespace.
func addresses(c *conn, fn func(index int, address []byte, bits int)) error {
	var m message
	m.begin(unix.RTM_GETADDR, unix.NLM_F_DUMP, []byte{unix.AF_INET, 0, 0, 0, 0, 0, 0, 0})
	return c.dump(&m, func(typ uint16, b []byte) {
		if typ != unix.RTM_NEWADDR || len(b) < unix.SizeofIfAddrmsg {
			return
		}
		for t, v := range attributes(b[unix.SizeofIfAddrmsg:]) {
			if t == unix.IFA_LOCAL {
				fn(number(b[4:]), v, int(b[1]))
			}
		}
	})
}

// enter opens a pinned network namespace, and a netlink socket that works in it. The
// thread that goes there comes back, or ends with its goroutine.
func enter(path string) (ns int, c *conn, err error) {
	type result struct {
		ns  int
		c   *conn
		err error
	}
	done := make(chan result, 1)
	go func() {
		runtime.LockOSThread()
		home, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			runtime.UnlockOSThread()
			done <- result{err: fmt.Errorf("open own network namespace: %w", err)}
			return
		}
		defer unix.Close(home) //nolint:errcheck // a namespace descriptor
		ns, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err == nil {
			if err = unix.Setns(ns, unix.CLONE_NEWNET); err != nil {
				_ = unix.Close(ns)
			}
		}
		if err != nil {
			runtime.UnlockOSThread()
			class := error(errdefs.ErrInvalidArgument) // it is there and is not a network namespace
			if errors.Is(err, unix.ENOENT) {
				class = errdefs.ErrNotFound
			}
			done <- result{err: fmt.Errorf("enter network namespace %s: %w: %w", path, err, class)}
			return
		}
		c, err := dial(unix.NETLINK_ROUTE)
		if unix.Setns(home, unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
		if err != nil {
			_ = unix.Close(ns)
		}
		done <- result{ns, c, err}
	}()
	r := <-done
	return r.ns, r.c, r.err
}

// Detach takes back what an endpoint published. Its link is deleted only where it would
// stay: deleting one takes the kernel some 17 ms, while a link whose namespace is dropped goes on its own.
func (d *Driver) Detach(ctx context.Context, n network.Network, e network.Endpoint) error {
	if err := d.detach(ctx, e); err != nil {
		return fmt.Errorf("detach endpoint %s from network %s: %w", e.ID, label(n), err)
	}
	return nil
}

func (d *Driver) detach(ctx context.Context, e network.Endpoint) error {
	end, err := d.turns.take(ctx, e.ID)
	if err != nil {
		return err
	}
	defer end()
	d.mu.Lock()
	err = d.replace(e.ID, nil)
	d.mu.Unlock()
	if err != nil || e.NetNS == "" {
		return err
	}
	c, err := dial(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer c.close()
	all, err := links(c) // by alias, as Endpoints finds them: somebody may have renamed it
	if err != nil {
		return err
	}
	for _, l := range all {
		if o := parseOwner(l.alias); o.instance != d.instance || o.endpoint != e.ID {
			continue // somebody else's, be it under our name
		}
		if err := deleteLink(c, l.index); err != nil {
			return fmt.Errorf("delete link %s: %w", l.name, err)
		}
	}
	return nil
}
