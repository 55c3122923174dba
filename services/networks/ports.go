package networks

import (
	"fmt"
	"net/netip"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/internal/meta"
	"github.com/gantryd/gantry/plugins/network"
	containersv1 "github.com/gantryd/gantry/proto/gantry/containers/v1"
	networksv1 "github.com/gantryd/gantry/proto/gantry/networks/v1"
)

// Host ports that nobody chose come out of Linux's own range for such
// (/proc/sys/net/ipv4/ip_local_port_range).
const firstEphemeral, lastEphemeral = 32768, 60999

// span is ports of one host address: the zero address means every one.
type span struct {
	protocol    string
	host        netip.Addr
	first, last uint32
}

func (s span) String() string {
	out := ""
	if s.host.IsValid() {
		out = s.host.String() + ":"
	}
	if s.first == s.last {
		return fmt.Sprintf("%s%d/%s", out, s.first, s.protocol)
	}
	return fmt.Sprintf("%s%d-%d/%s", out, s.first, s.last, s.protocol)
}

func (s span) overlaps(o span) bool {
	return s.protocol == o.protocol && s.first <= o.last && o.first <= s.last &&
		(!s.host.IsValid() || !o.host.IsValid() || s.host == o.host)
}

// taken is a span and the container that has it.
type taken struct {
	span
	by string
}

func invalid(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, errdefs.ErrInvalidArgument)...)
}

// asked reads what a user asked for. Host port 0 stays 0.
func asked(ms []*containersv1.PortMapping) ([]*networksv1.Port, error) {
	var out []*networksv1.Port
	var seen []span
	for _, m := range ms {
		p := &networksv1.Port{
			Protocol: m.GetProtocol(), HostAddress: m.GetHostAddress(), HostPort: m.GetHostPort(),
			ContainerPort: m.GetContainerPort(), Count: max(m.GetCount(), 1),
		}
		if p.Protocol == "" {
			p.Protocol = "tcp"
		}
		if p.Protocol != "tcp" && p.Protocol != "udp" {
			return nil, invalid("publish %d/%s: want tcp or udp", p.ContainerPort, p.Protocol)
		}
		if p.ContainerPort == 0 || p.Count > 1<<16 || p.ContainerPort+p.Count > 1<<16 || p.HostPort > 1<<16 || p.HostPort+p.Count > 1<<16 {
			return nil, invalid("publish %d ports from %d on the host to %d in the container: want 1 to 65535 (host port 0: any)", p.Count, p.HostPort, p.ContainerPort)
		}
		s, err := spanOf(p)
		if err != nil {
			return nil, err
		}
		if s.host.IsValid() {
			p.HostAddress = s.host.String()
		} else {
			p.HostAddress = ""
		}
		if p.HostPort != 0 {
			for _, o := range seen {
				if s.overlaps(o) {
					return nil, invalid("port %s is asked for twice (%s)", s, o)
				}
			}
			seen = append(seen, s)
		}
		out = append(out, p)
	}
	return out, nil
}

func spanOf(p *networksv1.Port) (span, error) {
	s := span{protocol: p.GetProtocol(), first: p.GetHostPort(), last: p.GetHostPort() + max(p.GetCount(), 1) - 1}
	if h := p.GetHostAddress(); h != "" {
		a, err := netip.ParseAddr(h)
		if err != nil {
			return s, invalid("publish on %q: no address", h)
		}
		if a = a.Unmap(); !a.IsUnspecified() {
			s.host = a
		}
	}
	return s, nil
}

// inUse lists the ports of every endpoint but those of one container.
func (s *Service) inUse(tx *meta.Tx, but string) (all []taken) {
	for _, e := range s.endpoints.All(tx) {
		if e.GetContainerId() == but {
			continue
		}
		for _, p := range e.GetPorts() {
			if sp, err := spanOf(p); err == nil {
				all = append(all, taken{sp, containerName(e)})
			}
		}
	}
	return all
}

// conflict refuses ports that another container has.
func conflict(ports []*networksv1.Port, held []taken) error {
	for _, p := range ports {
		if p.GetHostPort() == 0 {
			continue
		}
		sp, err := spanOf(p)
		if err != nil {
			return err
		}
		for _, h := range held {
			if sp.overlaps(h.span) {
				return fmt.Errorf("port %s is published by %s: %w", sp, h.by, errdefs.ErrAlreadyExists)
			}
		}
	}
	return nil
}

// choose fills in host ports that are 0: numbers that no container has, one after the other, so that
// a number that a process of the host turns out to have is not proposed again at once. The result is a copy.
func (s *Service) choose(ports []*networksv1.Port, held []taken) ([]*networksv1.Port, error) {
	var out []*networksv1.Port
	for _, p := range ports { // what is fixed first, or a choice could fall on it
		if p.GetHostPort() != 0 {
			if sp, err := spanOf(p); err == nil {
				held = append(held, taken{sp, "this container"})
			}
		}
	}
	for _, p := range ports {
		q := &networksv1.Port{Protocol: p.GetProtocol(), HostAddress: p.GetHostAddress(), HostPort: p.GetHostPort(), ContainerPort: p.GetContainerPort(), Count: p.GetCount()}
		if q.HostPort == 0 {
			sp, err := s.free(q, held)
			if err != nil {
				return nil, err
			}
			held = append(held, taken{sp, "this container"})
			q.HostPort = sp.first
		}
		out = append(out, q)
	}
	return out, nil
}

func (s *Service) free(p *networksv1.Port, held []taken) (span, error) {
	const size = lastEphemeral - firstEphemeral + 1
	count := max(p.GetCount(), 1)
	if count > size {
		return span{}, invalid("publish %d ports on any: there are %d", count, size)
	}
	for range size {
		first := firstEphemeral + (s.nextPort.Add(count)-count)%size
		if first+count-1 > lastEphemeral {
			continue
		}
		sp, err := spanOf(&networksv1.Port{Protocol: p.GetProtocol(), HostAddress: p.GetHostAddress(), HostPort: first, Count: count})
		if err != nil {
			return sp, err
		}
		busy := false
		for _, h := range held {
			busy = busy || sp.overlaps(h.span)
		}
		if !busy {
			return sp, nil
		}
	}
	return span{}, fmt.Errorf("publish %d/%s: no %d free ports from %d to %d: %w", p.GetContainerPort(), p.GetProtocol(), count, firstEphemeral, lastEphemeral, errdefs.ErrResourceExhausted)
}

// wire is ports as the driver takes them.
func wire(ports []*networksv1.Port) ([]network.Port, error) {
	var out []network.Port
	for _, p := range ports {
		sp, err := spanOf(p)
		if err != nil {
			return nil, err
		}
		out = append(out, network.Port{
			Protocol: p.GetProtocol(), Host: netip.AddrPortFrom(sp.host, uint16(p.GetHostPort())), //nolint:gosec // checked by asked
			Container: uint16(p.GetContainerPort()), Count: uint16(p.GetCount()), //nolint:gosec // checked by asked
		})
	}
	return out, nil
}
