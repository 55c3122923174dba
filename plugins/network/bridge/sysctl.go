package bridge

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"

	"github.com/google/nftables"
)

const ipForward = "/proc/sys/net/ipv4/ip_forward"

func sysctl(path, value string) error {
	is, err := os.ReadFile(path) //nolint:gosec // below /proc/sys/net
	if err != nil {
		return fmt.Errorf("read sysctl: %w", err)
	}
	if string(bytes.TrimSpace(is)) == value {
		return nil
	}
	if err := os.WriteFile(path, []byte(value), 0o600); err != nil {
		return fmt.Errorf("write sysctl: %w", err)
	}
	return nil
}

// bridgeSwitches sets what the kernel keeps for each interface; it goes with the interface.
func bridgeSwitches(bridge string, internal bool) error {
	// A host that listens to router advertisements on this link could be led astray by
	// a container (CVE-2020-13401). The network has no IPv6, so the link needs none.
	err := sysctl("/proc/sys/net/ipv6/conf/"+bridge+"/disable_ipv6", "1")
	if err != nil && !errors.Is(err, fs.ErrNotExist) { // a kernel without IPv6
		return err
	}
	// Ports published on 127.0.0.1 leave by the bridge with a source of 127.0.0.1 until they
	// are masqueraded, and come back so. The table drops what a container sends there itself.
	value := "1"
	if internal {
		value = "0"
	}
	return sysctl("/proc/sys/net/ipv4/conf/"+bridge+"/route_localnet", value)
}

// noteTable is shared by all instances in a network namespace and holds no rule, but a chain named after each instance
// that relies on forwarding which was off before the first of them. Who leaves last turns it off.
var noteTable = &nftables.Table{Name: "gantry-forwarding", Family: nftables.TableFamilyINet}

// notes lists the instances that are noted.
func notes(c *nftables.Conn) (instances []string, err error) {
	chains, err := c.ListChainsOfTableFamily(noteTable.Family)
	if err != nil {
		return nil, fmt.Errorf("list chains: %w", err)
	}
	for _, ch := range chains {
		if ch.Table.Name == noteTable.Name {
			instances = append(instances, ch.Name)
		}
	}
	return instances, nil
}

// turnOnForwarding lets the host pass packets on. If it was off, the file mark remembers
// that it was us, and the note tells other instances. The mark is made first: a crash between
// leaves a mark too many, and turning off what is off does no harm.
func (d *Driver) turnOnForwarding(mark string) error {
	is, err := os.ReadFile(ipForward)
	if err != nil {
		return fmt.Errorf("read sysctl: %w", err)
	}
	off := string(bytes.TrimSpace(is)) == "0"
	if !off && d.forwards {
		return nil
	}
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	who, err := notes(c)
	if err != nil {
		return err
	}
	if off || len(who) > 0 && !slices.Contains(who, d.instance) {
		if mark != "" {
			if err := os.WriteFile(mark, nil, 0o600); err != nil {
				return fmt.Errorf("note that forwarding was off: %w", err)
			}
		}
		c.AddTable(noteTable)
		c.AddChain(&nftables.Chain{Name: d.instance, Table: noteTable})
		if err := c.Flush(); err != nil {
			return fmt.Errorf("note that forwarding was off: %w", err)
		}
	}
	if err := sysctl(ipForward, "1"); err != nil {
		return err
	}
	d.forwards = true
	return nil
}

// turnOffForwarding undoes turnOnForwarding, unless somebody else seems to rely on it by
// now: another instance, which will turn it off; another link that is not a plain device, or a
// rule for packets that are passed on.
func (d *Driver) turnOffForwarding(mark string, before []*link) error {
	d.forwards = false
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	others, err := strikeNote(c, d.instance)
	if err != nil {
		return err
	}
	if mark == "" {
		return nil
	}
	if _, err := os.Stat(mark); err != nil {
		return nil //nolint:nilerr // it was on before us
	}
	if !others {
		if used, err := foreignForwarding(c, before); err != nil || used {
			return err
		}
		if err := sysctl(ipForward, "0"); err != nil {
			return err
		}
	}
	if err := os.Remove(mark); err != nil {
		return fmt.Errorf("forget that forwarding was off: %w", err)
	}
	return nil
}

// strikeNote takes an instance's note away, and the table with the last; it reports whether others are noted.
func strikeNote(c *nftables.Conn, instance string) (others bool, err error) {
	who, err := notes(c)
	if err != nil || len(who) == 0 {
		return false, err
	}
	others = slices.ContainsFunc(who, func(i string) bool { return i != instance })
	switch {
	case !others:
		c.DelTable(noteTable)
	case slices.Contains(who, instance):
		c.DelChain(&nftables.Chain{Name: instance, Table: noteTable})
	default:
		return true, nil
	}
	if err := c.Flush(); err != nil {
		return others, fmt.Errorf("strike the note that forwarding was off: %w", err)
	}
	return others, nil
}

// foreignForwarding reports whether somebody who is no gantry seems to rely on forwarding.
func foreignForwarding(c *nftables.Conn, before []*link) (bool, error) {
	for _, l := range before {
		switch l.kind {
		case "", "ifb", "dummy", "veth": // a bare veth is how a container sees its own uplink
		default:
			if parseOwner(l.alias).instance == "" {
				return true, nil
			}
		}
	}
	chains, err := c.ListChains()
	if err != nil {
		return false, fmt.Errorf("look for others who forward: %w", err)
	}
	for _, ch := range chains {
		if ch.Hooknum != nil && (*ch.Hooknum == *nftables.ChainHookForward || ch.Type == nftables.ChainTypeNAT) {
			return true, nil
		}
	}
	return false, nil
}
