package bridge

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"

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

// turnOnForwarding lets the host pass packets on. If it was off, the file mark remembers
// that it was us. The mark is made first: a crash between leaves a mark too many, and turning off what
// is off does no harm.
func turnOnForwarding(mark string) error {
	is, err := os.ReadFile(ipForward)
	if err != nil {
		return fmt.Errorf("read sysctl: %w", err)
	}
	if string(bytes.TrimSpace(is)) != "0" {
		return nil
	}
	if mark != "" {
		if err := os.WriteFile(mark, nil, 0o600); err != nil {
			return fmt.Errorf("note that forwarding was off: %w", err)
		}
	}
	return sysctl(ipForward, "1")
}

// turnOffForwarding undoes turnOnForwarding, unless somebody else seems to rely on it by
// now: another link that is not a plain device, or a rule for packets that are passed on.
func turnOffForwarding(mark string, before []*link) error {
	if mark == "" {
		return nil
	}
	if _, err := os.Stat(mark); err != nil {
		return nil //nolint:nilerr // it was on before us
	}
	for _, l := range before {
		switch l.kind {
		case "", "ifb", "dummy", "veth": // a bare veth is how a container sees its own uplink
		default:
			if parseOwner(l.alias).instance == "" {
				return nil
			}
		}
	}
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("look for others who forward: %w", err)
	}
	chains, err := c.ListChains()
	if err != nil {
		return fmt.Errorf("look for others who forward: %w", err)
	}
	for _, ch := range chains {
		if ch.Hooknum != nil && (*ch.Hooknum == *nftables.ChainHookForward || ch.Type == nftables.ChainTypeNAT) {
			return nil
		}
	}
	if err := sysctl(ipForward, "0"); err != nil {
		return err
	}
	if err := os.Remove(mark); err != nil {
		return fmt.Errorf("forget that forwarding was off: %w", err)
	}
	return nil
}
