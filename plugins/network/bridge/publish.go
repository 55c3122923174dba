package bridge

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/plugins/network"
)

// maxElements bounds what one Publish may add. A range with the same numbers on both
// sides is one element, whatever its length.
const maxElements = 16384

// elementsInMessage keeps the list of a message within the 64 KiB that an attribute may have.
const elementsInMessage = 256

// port is one element of the port maps.
type port struct {
	protocol    uint8
	host        netip.Addr // the zero address means every one
	first, last uint16     // on the host
	to          netip.Addr
	at          uint16 // the container's first
	owner       string // endpoint
}

func (p port) span() bool { return p.first != p.last }

func (p port) String() string {
	host := "*"
	if p.host.IsValid() {
		host = p.host.String()
	}
	if p.span() {
		return fmt.Sprintf("%s:%d-%d/%s", host, p.first, p.last, protocolName(p.protocol))
	}
	return fmt.Sprintf("%s:%d/%s", host, p.first, protocolName(p.protocol))
}

func protocolName(p uint8) string {
	if p == unix.IPPROTO_UDP {
		return "udp"
	}
	return "tcp"
}

// overlaps says whether one packet could be meant for both.
func (p port) overlaps(q port) bool {
	return p.protocol == q.protocol && p.first <= q.last && q.first <= p.last &&
		(!p.host.IsValid() || !q.host.IsValid() || p.host == q.host)
}

// Publish makes ports reachable at the host's addresses. The set replaces the last one, in one transaction.
func (d *Driver) Publish(ctx context.Context, n network.Network, e network.Endpoint, ports []network.Port) error {
	if err := d.publish(ctx, n, e, ports); err != nil {
		return fmt.Errorf("publish ports of endpoint %s: %w", e.ID, err)
	}
	return nil
}

func (d *Driver) publish(ctx context.Context, n network.Network, e network.Endpoint, ports []network.Port) error {
	if err := alive(ctx); err != nil {
		return err
	}
	p, err := d.plan(n)
	if err != nil {
		return err
	}
	s, err := d.seat(p, e)
	if err != nil {
		return err
	}
	want, err := expand(ports, s)
	if err != nil {
		return err
	}
	end, err := d.turns.take(ctx, s.id)
	if err != nil {
		return err
	}
	defer end()
	if len(want) > 0 {
		if p.internal {
			return fmt.Errorf("network %s is internal: nothing of it can be published: %w", label(n), errdefs.ErrFailedPrecondition)
		}
		c, err := dial(unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer c.close()
		if _, err := d.present(ctx, c, p); err != nil {
			return err
		}
		if err := hairpin(c, s.host); err != nil {
			return err
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.replace(s.id, want)
}

// replace makes want all that owner publishes. mu is held.
func (d *Driver) replace(owner string, want []port) error {
	if err := d.rules.load(); err != nil {
		return err
	}
	var gone []port
	fresh := slices.Clone(want)
	for _, have := range d.rules.ports {
		if have.owner != owner {
			continue
		}
		if i := slices.Index(fresh, have); i >= 0 {
			fresh = slices.Delete(fresh, i, i+1)
		} else {
			gone = append(gone, have)
		}
	}
	if len(gone) == 0 && len(fresh) == 0 {
		return nil
	}
	for _, f := range fresh {
		for _, have := range d.rules.ports {
			if have.owner != owner && have.overlaps(f) {
				return fmt.Errorf("port %s is published by endpoint %s: %w", f, have.owner, errdefs.ErrAlreadyExists)
			}
		}
		if !slices.ContainsFunc(gone, f.overlaps) { // what is ours already cannot be bound by another
			if err := listening(f); err != nil {
				return err
			}
		}
	}
	if err := d.rules.swap(gone, fresh); err != nil {
		return err
	}
	if len(want) == 0 {
		d.janitor.forget(gone)
		return nil
	}
	return flows{gone, fresh}.forget()
}

// expand checks ports and makes elements of them.
func expand(ports []network.Port, s seat) ([]port, error) {
	bad := func(format string, args ...any) ([]port, error) {
		return nil, fmt.Errorf(format+": %w", append(args, errdefs.ErrInvalidArgument)...)
	}
	var out []port
	for _, q := range ports {
		p := port{host: q.Host.Addr().Unmap(), first: q.Host.Port(), to: s.address.Addr(), at: q.Container, owner: s.id}
		switch q.Protocol {
		case "tcp":
			p.protocol = unix.IPPROTO_TCP
		case "udp":
			p.protocol = unix.IPPROTO_UDP
		default:
			return bad("protocol %q: want tcp or udp", q.Protocol)
		}
		if p.host.IsUnspecified() {
			p.host = netip.Addr{}
		}
		if p.host.Is6() {
			return nil, fmt.Errorf("host address %s: bridge networks are IPv4 only: %w", p.host, errdefs.ErrNotImplemented)
		}
		count := max(int(q.Count), 1)
		if p.first == 0 || p.at == 0 || int(p.first)+count > 1<<16 || int(p.at)+count > 1<<16 {
			return bad("%d ports from %d on the host to %d in the container: want 1 to 65535 on both sides", count, p.first, p.at)
		}
		if p.first == p.at {
			p.last = p.first + uint16(count-1) //nolint:gosec // checked above
			out = append(out, p)
			continue
		}
		if len(out)+count > maxElements {
			return bad("%d ports with other numbers in the container: at most %d can be published at once", count, maxElements)
		}
		for i := range uint16(count) { //nolint:gosec // checked above
			one := p
			one.first, one.last, one.at = p.first+i, p.first+i, p.at+i
			out = append(out, one)
		}
	}
	return out, unique(out)
}

func unique(ports []port) error {
	sorted := slices.Clone(ports)
	slices.SortFunc(sorted, func(a, b port) int { return int(a.first) - int(b.first) })
	for i, a := range sorted {
		for _, b := range sorted[i+1:] {
			if b.first > a.last {
				break
			}
			if a.overlaps(b) {
				return fmt.Errorf("port %s is asked for twice (%s): %w", b, a, errdefs.ErrInvalidArgument)
			}
		}
	}
	return nil
}

// load reads what is published, if it is not known.
func (r *rules) load() error {
	for range 10 {
		if err := r.look(); err != nil {
			return err
		}
		if r.loaded {
			return nil
		}
		ports, err := r.read()
		if err != nil {
			return err
		}
		gen := r.gen
		if err := r.look(); err != nil {
			return err
		}
		if r.gen == gen {
			r.ports, r.loaded = ports, true
			return nil
		}
	}
	return fmt.Errorf("read table inet %s: it keeps changing: %w", r.table, errdefs.ErrAborted)
}

func (r *rules) read() ([]port, error) {
	c, err := r.steady()
	if err != nil {
		return nil, err
	}
	var all []port
	for _, id := range []uint32{mapPortAt, mapPortAll, mapRangeAt, mapRangeAll} {
		elements, err := listElements(c, r.set(id))
		if err != nil {
			r.hangUp()
			return nil, err
		}
		for _, e := range elements {
			if p, ok := parsePort(id, e); ok {
				all = append(all, p)
			}
		}
	}
	return all, nil
}

// element is the other way round of parsePort.
func (p port) element() (uint32, nftables.SetElement) {
	key := func(n uint16) []byte {
		b := []byte{p.protocol, 0, 0, 0}
		if p.host.IsValid() {
			b = append(b, p.host.AsSlice()...)
		}
		return append(binary.BigEndian.AppendUint16(b, n), 0, 0)
	}
	id := uint32(mapPortAll)
	if p.host.IsValid() {
		id = mapPortAt
	}
	e := nftables.SetElement{Key: key(p.first), Val: p.to.AsSlice(), Comment: p.owner}
	if p.span() {
		e.KeyEnd = key(p.last)
		return id + mapRangeAt - mapPortAt, e
	}
	e.Val = append(binary.BigEndian.AppendUint16(e.Val, p.at), 0, 0)
	return id, e
}

func parsePort(id uint32, e nftables.SetElement) (port, bool) {
	at, span := id == mapPortAt || id == mapRangeAt, id == mapRangeAt || id == mapRangeAll
	size, value := 8, 8
	if at {
		size = 12
	}
	if span {
		value = 4
	}
	if len(e.Key) != size || len(e.Val) != value || span && len(e.KeyEnd) != size {
		return port{}, false
	}
	p := port{protocol: e.Key[0], first: binary.BigEndian.Uint16(e.Key[size-4:]), to: netip.AddrFrom4([4]byte(e.Val[:4])), owner: e.Comment}
	p.last, p.at = p.first, p.first
	if at {
		p.host = netip.AddrFrom4([4]byte(e.Key[4:8]))
	}
	if span {
		p.last = binary.BigEndian.Uint16(e.KeyEnd[size-4:])
	} else {
		p.at = binary.BigEndian.Uint16(e.Val[4:])
	}
	return p, true
}

// portElements groups ports by set, in lists that fit a message.
func (r *rules) portElements(ports []port) []elementsOf {
	var out []elementsOf
	for id := uint32(mapPortAt); id <= mapRangeAll; id++ {
		var es []nftables.SetElement
		for _, p := range ports {
			if i, e := p.element(); i == id {
				es = append(es, e)
			}
		}
		for part := range slices.Chunk(es, elementsInMessage) {
			out = append(out, elementsOf{r.set(id), part})
		}
	}
	return out
}

// swap takes some ports out and puts others in, at once.
func (r *rules) swap(gone, fresh []port) error {
	c, err := r.steady()
	if err != nil {
		return err
	}
	for _, e := range r.portElements(gone) {
		if err := c.SetDeleteElements(e.set, e.elements); err != nil {
			return fmt.Errorf("describe elements: %w", err)
		}
	}
	for _, e := range r.portElements(fresh) {
		if err := c.SetAddElements(e.set, e.elements); err != nil {
			return fmt.Errorf("describe elements: %w", err)
		}
	}
	after := slices.DeleteFunc(slices.Clone(r.ports), func(p port) bool { return slices.Contains(gone, p) })
	if err := r.commit(c); err != nil {
		return err
	}
	r.ports = append(after, fresh...)
	return nil
}

// hairpin lets a frame leave by the port it came in by: with bridge-nf-call-iptables on, as
// Docker sets it, a container that calls itself by the host's address is answered inside the bridge.
func hairpin(c *conn, host string) error {
	const brportMode = 4 // IFLA_BRPORT_MODE
	l, err := findLink(c, host)
	if err != nil {
		return err
	}
	if l == nil {
		return fmt.Errorf("link %s: %w: attach the endpoint first", host, errdefs.ErrFailedPrecondition)
	}
	var m message
	m.begin(unix.RTM_SETLINK, 0, ifinfo(unix.AF_BRIDGE, l.index, 0, 0))
	m.nest(unix.IFLA_PROTINFO|unix.NLA_F_NESTED, nil, func() { m.bytes(brportMode, []byte{1}) })
	if err := c.first(&m); err != nil {
		return fmt.Errorf("let link %s answer itself: %w", host, err)
	}
	return nil
}

// flows matches connections that the kernel remembers and that must not go on as they
// are: those to a port that is no longer published, and UDP to one that now is, which may have begun before.
type flows struct{ gone, fresh []port }

// MatchConntrackFlow implements netlink.CustomConntrackFilter.
func (f flows) MatchConntrackFlow(c *netlink.ConntrackFlow) bool {
	match := func(p port, to bool) bool {
		from, _ := netip.AddrFromSlice(c.Reverse.SrcIP)
		return c.Forward.Protocol == p.protocol && p.first <= c.Forward.DstPort && c.Forward.DstPort <= p.last &&
			(from.Unmap() == p.to) == to
	}
	return slices.ContainsFunc(f.gone, func(p port) bool { return match(p, true) }) ||
		slices.ContainsFunc(f.fresh, func(p port) bool { return p.protocol == unix.IPPROTO_UDP && match(p, false) })
}

// forget makes the kernel forget them. It looks through all that it remembers, for every network
// namespace of the machine: 10 ms and more, however few they are.
func (f flows) forget() error {
	udp := slices.ContainsFunc(f.fresh, func(p port) bool { return p.protocol == unix.IPPROTO_UDP })
	if len(f.gone) == 0 && !udp {
		return nil
	}
	_, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, unix.AF_INET, f)
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("forget old connections: %w", err)
	}
	return nil
}

// janitor forgets connections to endpoints that have gone, after those who asked have
// their answer, and many at once.
type janitor struct {
	wg   sync.WaitGroup
	stop chan struct{} // closed: do not wait for more

	mu      sync.Mutex
	gone    []port // at most as many as were published
	working bool
}

func (j *janitor) forget(gone []port) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.gone = append(j.gone, gone...)
	if len(j.gone) > 0 && !j.working {
		j.working = true
		j.wg.Go(j.work)
	}
}

// gather is how long the janitor waits for more to forget in one go.
const gather = 100 * time.Millisecond

func (j *janitor) work() {
	for {
		select {
		case <-time.After(gather):
		case <-j.stop:
		}
		j.mu.Lock()
		gone := j.gone
		j.gone, j.working = nil, len(gone) > 0
		j.mu.Unlock()
		if len(gone) == 0 {
			return
		}
		if err := (flows{gone: gone}).forget(); err != nil {
			slog.Warn("connections to ports that are no longer published may linger", "err", err)
		}
	}
}
