package bridge

import (
	"bytes"
	"context"
	"fmt"
	"iter"
	"os"
	"slices"
	"strings"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/plugins/network"
)

// Check compares a network with the kernel: the bridge and its address, the switches, the rules, the
// endpoints' links, and what is published.
func (d *Driver) Check(ctx context.Context, n network.Network, want []network.Want) iter.Seq2[network.Difference, error] {
	return func(yield func(network.Difference, error) bool) {
		var found []network.Difference
		err := d.check(ctx, n, want, func(subject, format string, args ...any) {
			found = append(found, network.Difference{Subject: subject, Detail: fmt.Sprintf(format, args...)})
		})
		for _, f := range found {
			if !yield(f, nil) {
				return
			}
		}
		if err != nil {
			yield(network.Difference{}, fmt.Errorf("check network %s: %w", label(n), err))
		}
	}
}

// differ takes one difference.
type differ func(subject, format string, args ...any)

func (d *Driver) check(ctx context.Context, n network.Network, want []network.Want, differ differ) error {
	if err := alive(ctx); err != nil {
		return err
	}
	p, err := d.plan(n)
	if err != nil {
		return err
	}
	br, err := d.checkLinks(p, want, differ)
	if err != nil {
		return err
	}
	if br != nil {
		checkSwitches(p, differ)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.checkRules(p, differ); err != nil {
		return err
	}
	return d.checkPorts(p, want, differ)
}

func (d *Driver) checkLinks(p plan, want []network.Want, differ differ) (*link, error) {
	c, err := dial(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	defer c.close()
	all, err := links(c)
	if err != nil {
		return nil, err
	}
	find := func(name string) *link {
		if i := slices.IndexFunc(all, func(l *link) bool { return l.name == name }); i >= 0 {
			return all[i]
		}
		return nil
	}
	subject := "bridge " + p.bridge
	br := find(p.bridge)
	switch alias := (owner{d.instance, p.id, ""}).String(); {
	case br == nil:
		differ(subject, "it is not there")
		return nil, nil //nolint:nilnil // nothing to look further at, and it was told
	case br.alias != alias:
		differ(subject, "it is not ours: its alias is %q, and not %q", br.alias, alias)
		return nil, nil //nolint:nilnil // likewise
	case !br.up:
		differ(subject, "it is down")
	}
	if !has(c, br.index, p) {
		differ(subject, "it has not the address %s/%d", p.gateway, p.subnet.Bits())
	}
	for _, w := range want {
		subject, l := "endpoint "+w.ID, find(d.hostName(w.ID))
		switch {
		case l == nil: // what Endpoints tells
		case parseOwner(l.alias) != owner{d.instance, p.id, w.ID}:
			differ(subject, "its link %s is another's: %q", l.name, l.alias)
		case l.master != br.index:
			differ(subject, "its link %s is not on bridge %s", l.name, p.bridge)
		case !l.up:
			differ(subject, "its link %s is down", l.name)
		}
	}
	return br, nil
}

// has says whether the bridge has its address.
func has(c *conn, index int, p plan) (yes bool) {
	_ = addresses(c, func(i int, v []byte, bits int) {
		yes = yes || i == index && bits == p.subnet.Bits() && bytes.Equal(v, p.gateway.AsSlice())
	})
	return yes
}

func checkSwitches(p plan, differ differ) {
	if p.internal {
		return
	}
	for path, why := range map[string]string{
		ipForward: "nothing is passed on",
		"/proc/sys/net/ipv4/conf/" + p.bridge + "/route_localnet": "ports published on loopback are not reached",
	} {
		if is, err := os.ReadFile(path); err == nil && string(bytes.TrimSpace(is)) == "0" {
			differ("sysctl "+strings.TrimPrefix(path, "/proc/sys/"), "it is off: %s", why)
		}
	}
}

// checkRules looks at the table afresh, whatever is known. mu is held.
func (d *Driver) checkRules(p plan, differ differ) error {
	subject := "table inet " + d.instance
	d.rules.known = false
	whole, err := d.rules.whole(p)
	if err != nil {
		return err
	}
	if !whole {
		differ(subject, "rules for bridge %s are missing, or too many", p.bridge)
		return nil
	}
	c, err := d.rules.steady()
	if err != nil {
		return err
	}
	for _, want := range d.rules.elements(p) {
		have, err := listElements(c, want.set)
		if err != nil {
			d.rules.hangUp()
			return err
		}
		for _, e := range want.elements {
			if !slices.ContainsFunc(have, func(h nftables.SetElement) bool { return bytes.Equal(h.Key, e.Key) }) {
				differ(subject, "set %s has no element for bridge %s", want.set.Name, p.bridge)
			}
		}
	}
	target, missing, err := d.shut(p)
	if err != nil {
		return err
	}
	if len(missing) > 0 {
		differ("chain "+target.Name, "it drops what bridge %s has to pass on", p.bridge)
	}
	return nil
}

// checkPorts compares what is published with what should be. mu is held.
func (d *Driver) checkPorts(p plan, want []network.Want, differ differ) error {
	if err := d.rules.load(); err != nil {
		return err
	}
	extra := map[port]bool{}
	for _, have := range d.rules.ports {
		if p.subnet.Contains(have.to) {
			extra[have] = true
		}
	}
	for _, w := range want {
		s, err := d.seat(p, w.Endpoint)
		if err != nil {
			return err
		}
		ports, err := expand(w.Ports, s)
		if err != nil {
			return err
		}
		for _, q := range ports {
			if !extra[q] {
				differ("port "+q.String()+" of endpoint "+w.ID, "it should be published, and is not")
			}
			delete(extra, q)
		}
	}
	for q := range extra {
		differ("port "+q.String()+" of endpoint "+q.owner, "it is published, and should not be")
	}
	return nil
}
