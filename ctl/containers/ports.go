package containers

import (
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"github.com/gantryd/gantry/ctl/cli"
	containersv1 "github.com/gantryd/gantry/proto/gantry/containers/v1"
)

// ParsePublish parses one value of --publish: [[ADDRESS:][HOSTPORT[-END]]:]PORT[-END][/PROTOCOL].
func ParsePublish(v string) (*containersv1.PortMapping, error) {
	bad := func(format string, args ...any) error {
		return cli.Usagef("--publish %q: "+format+"; write [[ADDRESS:]HOSTPORT:]PORT[/udp], as in 8080:80", append([]any{v}, args...)...)
	}
	rest, proto, hasProto := strings.Cut(v, "/")
	if !hasProto {
		proto = "tcp"
	}
	if proto = strings.ToLower(proto); proto != "tcp" && proto != "udp" {
		return nil, bad("protocol %q is not known (tcp and udp are)", proto)
	}
	address, host, port, err := splitPublish(rest)
	if err != nil {
		return nil, bad("%w", err)
	}
	if address != "" {
		if _, err := netip.ParseAddr(address); err != nil {
			return nil, bad("%q is no address", address)
		}
	}
	first, count, err := portRange(port)
	if err != nil {
		return nil, bad("%w", err)
	}
	m := &containersv1.PortMapping{Protocol: proto, HostAddress: address, ContainerPort: first, Count: count}
	if host == "" || host == "0" {
		return m, nil
	}
	from, n, err := portRange(host)
	if err != nil {
		return nil, bad("%w", err)
	}
	if n != count {
		return nil, bad("%d ports of the host for %d of the container", n, count)
	}
	m.HostPort = from
	return m, nil
}

func splitPublish(v string) (address, host, port string, err error) {
	if strings.HasPrefix(v, "[") {
		end := strings.Index(v, "]:")
		if end < 0 {
			return "", "", "", fmt.Errorf("an address in brackets needs ]: behind it")
		}
		address, v = v[1:end], v[end+2:]
		if address == "" {
			return "", "", "", fmt.Errorf("the address is empty")
		}
		if strings.Count(v, ":") != 1 {
			return "", "", "", fmt.Errorf("behind an address come HOSTPORT:PORT")
		}
	}
	parts := strings.Split(v, ":")
	switch {
	case len(parts) == 1:
		return address, "", parts[0], nil
	case len(parts) == 2:
		return address, parts[0], parts[1], nil
	case len(parts) == 3 && address == "":
		return parts[0], parts[1], parts[2], nil
	}
	return "", "", "", fmt.Errorf("too many colons (an IPv6 address stands in brackets)")
}

func portRange(v string) (first, count uint32, err error) {
	from, to, isRange := strings.Cut(v, "-")
	a, err := strconv.ParseUint(from, 10, 16)
	if err != nil || a == 0 {
		return 0, 0, fmt.Errorf("%q is no port (1 to 65535)", from)
	}
	if !isRange {
		return uint32(a), 1, nil
	}
	b, err := strconv.ParseUint(to, 10, 16)
	if err != nil || b < a {
		return 0, 0, fmt.Errorf("%q is no range of ports", v)
	}
	return uint32(a), uint32(b - a + 1), nil
}

// portText writes one mapping as docker ps does: 0.0.0.0:8080->80/tcp.
func portText(p *containersv1.PortMapping) string {
	proto := p.GetProtocol()
	if proto == "" {
		proto = "tcp"
	}
	if p.GetHostPort() == 0 {
		return span(p.GetContainerPort(), p.GetCount()) + "/" + proto
	}
	address := p.GetHostAddress()
	if address == "" {
		address = "0.0.0.0"
	}
	return net.JoinHostPort(address, span(p.GetHostPort(), p.GetCount())) + "->" + span(p.GetContainerPort(), p.GetCount()) + "/" + proto
}

func span(first, count uint32) string {
	if count <= 1 {
		return strconv.FormatUint(uint64(first), 10)
	}
	return fmt.Sprintf("%d-%d", first, first+count-1)
}
