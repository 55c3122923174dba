// Package bridge is the network driver "bridge": a Linux bridge for each network, a veth
// pair for each endpoint, and one nftables table for all of them.
//
// The kernel is its only memory. Links say in their alias whose they are, set elements in
// their comment; so the driver may be killed at any instant, finds everything again, and
// touches nothing that does not bear the name of its daemon. It starts no program: links
// are made by rtnetlink messages sent in one train, rules and ports in nftables transactions.
//
//	bridge.go   networks                         wire.go     netlink messages
//	attach.go   endpoints                        link.go     links, read and dropped
//	table.go    the rules, and who may pass      names.go    what is called what
//	publish.go  ports                            foreign.go  other firewalls' forward chains
//	listen.go   who listens on a port already    sysctl.go   what must be turned on
//	check.go    what differs                     turns.go    one at a time
//	ruleset.go  talking to nftables
package bridge

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"net"
	"path/filepath"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/plugins"
	"github.com/gantryd/gantry/plugins/network"
)

// Driver is the bridge driver. Make it with New.
type Driver struct {
	instance      string // names the table, and owns links
	defaultBridge string // of the network called "bridge"
	state         string // directory that does not survive a reboot; "" where there is none

	turns   turns // of endpoints
	janitor janitor
	closing sync.Once

	mu       sync.Mutex // one change of the table at a time
	rules    rules
	forwards bool // forwarding was turned on, or found on, since this process began
}

var (
	_ network.Driver    = (*Driver)(nil)
	_ network.Publisher = (*Driver)(nil)
	_ network.Checker   = (*Driver)(nil)
	_ plugins.Plugin    = (*Driver)(nil)
	_ io.Closer         = (*Driver)(nil)
)

// New returns a driver of the instance "gantry", until Configure says otherwise.
func New() *Driver {
	d := &Driver{instance: "gantry", defaultBridge: "gantry0"}
	d.rules.table = d.instance
	d.janitor.stop = make(chan struct{})
	return d
}

// Close waits for what goes on in the background. What was made stays. No call may come after it.
func (d *Driver) Close() error {
	d.closing.Do(func() { close(d.janitor.stop) })
	d.janitor.wg.Wait()
	d.mu.Lock()
	defer d.mu.Unlock()
	d.rules.hangUp()
	return nil
}

// Info says what this is.
func (d *Driver) Info(context.Context) (plugins.Info, error) {
	return plugins.Info{Family: plugins.Network, Name: "bridge", Version: "1.0", Capabilities: []string{network.Ports, network.Check}}, nil
}

// options is the driver's section of the configuration.
type options struct {
	Instance string `json:"instance"` // names what is the daemon's in the kernel
	Bridge   string `json:"bridge"`   // link name of the network called "bridge"
}

// Configure takes {"instance": "gantry", "bridge": "gantry0"}; both may be left out.
func (d *Driver) Configure(_ context.Context, c plugins.Config) error {
	o := options{Instance: d.instance, Bridge: d.defaultBridge}
	if err := c.Decode(&o); err != nil {
		return fmt.Errorf("configure bridge: %w", err)
	}
	if !instForm.MatchString(o.Instance) {
		return fmt.Errorf("configure bridge: instance %q: want %s: %w", o.Instance, instForm, errdefs.ErrInvalidArgument)
	}
	if o.Bridge != "" && !linkForm.MatchString(o.Bridge) {
		return fmt.Errorf("configure bridge: bridge %q: want %s: %w", o.Bridge, linkForm, errdefs.ErrInvalidArgument)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.rules.hangUp()
	d.instance, d.defaultBridge, d.state = o.Instance, o.Bridge, c.State
	d.rules, d.forwards = rules{table: o.Instance}, false
	return nil
}

// CreateNetwork makes a network's bridge and rules. Called again, it mends them, puts the links of its endpoints back
// on the bridge, and takes back what is published for endpoints that have none.
func (d *Driver) CreateNetwork(ctx context.Context, n network.Network) (plugins.Handle, error) {
	p, err := d.plan(n)
	var br *link
	if err == nil {
		br, err = d.ensure(ctx, p)
	}
	if err == nil {
		err = d.regather(p, br)
	}
	if err != nil {
		return nil, fmt.Errorf("create network %s: %w", label(n), err)
	}
	return nil, nil
}

// ensure makes, or mends, everything a network needs.
func (d *Driver) ensure(ctx context.Context, p plan) (*link, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := alive(ctx); err != nil { // nobody may be waiting any more
		return nil, err
	}
	br, err := d.ensureBridge(p)
	if err != nil {
		return nil, err
	}
	if err := d.rules.ensure(p); err != nil {
		return nil, err
	}
	if err := d.openForeign(p); err != nil {
		return nil, err
	}
	if !p.internal {
		if err := d.turnOnForwarding(d.forwardingMark()); err != nil {
			return nil, err
		}
	}
	d.rules.vouch(p)
	return br, nil
}

// ensureBridge makes the link, with its address, and mends what differs.
func (d *Driver) ensureBridge(p plan) (*link, error) {
	c, err := dial(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	defer c.close()
	mtu := p.mtu
	if mtu == 0 {
		mtu = uplinkMTU()
	}
	alias := owner{d.instance, p.id, ""}.String()
	br, err := findLink(c, p.bridge)
	if err != nil {
		return nil, err
	}
	if br == nil {
		var m message
		m.begin(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL, ifinfo(unix.AF_UNSPEC, 0, 0, 0))
		m.text(unix.IFLA_IFNAME, p.bridge)
		// An address given by us stays; one borrowed from a port would change as containers come and go.
		m.bytes(unix.IFLA_ADDRESS, macOf(p.gateway))
		m.u32(unix.IFLA_MTU, uint32(mtu)) //nolint:gosec // checked by plan
		m.nest(unix.IFLA_LINKINFO|unix.NLA_F_NESTED, nil, func() { m.text(unix.IFLA_INFO_KIND, "bridge") })
		m.begin(unix.RTM_SETLINK, 0, ifinfo(unix.AF_UNSPEC, 0, 0, 0))
		m.text(unix.IFLA_IFNAME, p.bridge)
		m.text(unix.IFLA_IFALIAS, alias)
		if err := c.first(&m); err != nil {
			return nil, fmt.Errorf("make bridge %s: %w", p.bridge, err)
		}
		if br, err = findLink(c, p.bridge); err != nil || br == nil {
			return nil, errors.Join(fmt.Errorf("make bridge %s: it is gone again: %w", p.bridge, errdefs.ErrAborted), err)
		}
	}
	if br.alias != alias {
		if o := parseOwner(br.alias); o.instance == d.instance && o.endpoint == "" {
			return nil, fmt.Errorf("link %s belongs to network %s: choose another name with the option bridge: %w", p.bridge, o.network, errdefs.ErrAlreadyExists)
		}
		return nil, fmt.Errorf("link %s is there and is not ours: remove it, or choose another name with the option bridge: %w", p.bridge, errdefs.ErrAlreadyExists)
	}
	return br, d.mendBridge(c, p, br, mtu)
}

// mendBridge gives the bridge its address, size and switches, and brings it up.
func (d *Driver) mendBridge(c *conn, p plan, br *link, mtu int) error {
	if err := bridgeSwitches(p.bridge, p.internal); err != nil {
		return err
	}
	var m message
	if br.mtu != mtu {
		m.begin(unix.RTM_SETLINK, 0, ifinfo(unix.AF_UNSPEC, br.index, 0, 0))
		m.u32(unix.IFLA_MTU, uint32(mtu)) //nolint:gosec // checked by plan
		br.mtu = mtu
	}
	address(&m, br.index, p.gateway, p.subnet.Bits())
	m.begin(unix.RTM_SETLINK, 0, ifinfo(unix.AF_UNSPEC, br.index, unix.IFF_UP, unix.IFF_UP))
	if err := c.first(&m); err != nil {
		return fmt.Errorf("set up bridge %s: %w", p.bridge, err)
	}
	return nil
}

// regather puts endpoints' links on the bridge that somebody took off it or down, or whose bridge was another one.
func (d *Driver) regather(p plan, br *link) error {
	d.mu.Lock() // whoever has published had a link before, and is seen to have it
	defer d.mu.Unlock()
	c, err := dial(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer c.close()
	all, err := links(c)
	if err != nil {
		return err
	}
	held := map[string]bool{} // endpoints
	for _, l := range all {
		o := parseOwner(l.alias)
		if o.endpoint == "" || o != (owner{d.instance, p.id, o.endpoint}) {
			continue
		}
		held[o.endpoint] = true
		if l.name != d.hostName(o.endpoint) || l.master == br.index && l.up {
			continue
		}
		if err := enslave(c, l, br); err != nil && !errors.Is(err, unix.ENODEV) { // gone meanwhile
			return err
		}
	}
	return d.withdraw(p, held)
}

// withdraw takes back what is published into a network for endpoints without a link: it leads nowhere, or to another.
// mu is held.
func (d *Driver) withdraw(p plan, held map[string]bool) error {
	if err := d.rules.load(); err != nil {
		return err
	}
	var gone []port
	for _, q := range d.rules.ports {
		if p.subnet.Contains(q.to) && !held[q.owner] {
			gone = append(gone, q)
		}
	}
	if len(gone) == 0 {
		return nil
	}
	d.janitor.forget(gone)
	return d.rules.swap(gone, nil)
}

// enslave puts a link on a bridge, and up.
func enslave(c *conn, l, br *link) error {
	var m message
	m.begin(unix.RTM_SETLINK, 0, ifinfo(unix.AF_UNSPEC, l.index, unix.IFF_UP, unix.IFF_UP))
	m.u32(unix.IFLA_MASTER, uint32(br.index)) //nolint:gosec // an index
	m.u32(unix.IFLA_MTU, uint32(br.mtu))      //nolint:gosec // an MTU
	if err := c.first(&m); err != nil {
		return fmt.Errorf("mend link %s: %w", l.name, err)
	}
	return nil
}

// uplinkMTU is that of the link the default route leaves by; 1500 when there is none.
func uplinkMTU() int {
	routes, err := netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return 1500
	}
	best, mtu := -1, 1500
	for _, r := range routes {
		if r.Dst != nil && r.Dst.String() != "0.0.0.0/0" || best >= 0 && r.Priority >= best {
			continue
		}
		index := r.LinkIndex
		if index == 0 && len(r.MultiPath) > 0 {
			index = r.MultiPath[0].LinkIndex
		}
		if l, err := net.InterfaceByIndex(index); err == nil && l.MTU >= 576 {
			best, mtu = r.Priority, min(l.MTU, 65535)
		}
	}
	return mtu
}

// DeleteNetwork takes away a network's rules, its bridge and what is still on it. With
// the last network the table goes, and what was turned on for it is turned off.
func (d *Driver) DeleteNetwork(ctx context.Context, n network.Network) error {
	if err := d.deleteNetwork(ctx, n); err != nil {
		return fmt.Errorf("delete network %s: %w", label(n), err)
	}
	return nil
}

func (d *Driver) deleteNetwork(ctx context.Context, n network.Network) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := alive(ctx); err != nil {
		return err
	}
	c, err := dial(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer c.close()
	all, err := links(c)
	if err != nil {
		return err
	}
	others := 0
	for _, l := range all {
		o := parseOwner(l.alias)
		switch {
		case o.instance != d.instance:
		case o.network != n.ID:
			others++
		case o.endpoint != "":
			// An endpoint that nobody took off: its bridge is going, so it is of no use.
			if err := deleteLink(c, l.index); err != nil {
				return fmt.Errorf("delete link %s: %w", l.name, err)
			}
		default:
			if err := errors.Join(d.rules.remove(l.name), d.closeForeign(l.name)); err != nil {
				return err
			}
			if err := deleteLink(c, l.index); err != nil {
				return fmt.Errorf("delete bridge %s: %w", l.name, err)
			}
		}
	}
	// An operator may have deleted the link by hand: the rules are found by its name then.
	name := d.bridgeName(n)
	if err := errors.Join(d.rules.remove(name), d.closeForeign(name)); err != nil {
		return err
	}
	if others > 0 {
		return nil
	}
	if err := d.rules.drop(); err != nil {
		return err
	}
	return d.turnOffForwarding(d.forwardingMark(), all)
}

// Endpoints ranges over the endpoints whose links are in the kernel.
func (d *Driver) Endpoints(ctx context.Context) iter.Seq2[network.Held, error] {
	return func(yield func(network.Held, error) bool) {
		all, err := func() ([]*link, error) {
			if err := alive(ctx); err != nil {
				return nil, err
			}
			c, err := dial(unix.NETLINK_ROUTE)
			if err != nil {
				return nil, err
			}
			defer c.close()
			return links(c)
		}()
		if err != nil {
			yield(network.Held{}, fmt.Errorf("list endpoints: %w", err))
			return
		}
		for _, l := range all {
			o := parseOwner(l.alias)
			if o.instance == d.instance && o.endpoint != "" && !yield(network.Held{NetworkID: o.network, EndpointID: o.endpoint}, nil) {
				return
			}
		}
	}
}

func (d *Driver) forwardingMark() string {
	if d.state == "" {
		return ""
	}
	return filepath.Join(d.state, "turned-on-forwarding")
}

// label names a network to people.
func label(n network.Network) string {
	if n.Name != "" {
		return n.Name
	}
	return n.ID
}

// alive says whether there is still somebody to work for. Nothing in this driver waits for
// another process, so it asks once, when it has its turn.
func alive(ctx context.Context) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return nil
}
