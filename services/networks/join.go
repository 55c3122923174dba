package networks

import (
	"context"
	"fmt"
	"net/netip"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"

	"github.com/gantryd/gantry/internal/fault"
	"github.com/gantryd/gantry/internal/meta"
	"github.com/gantryd/gantry/plugins"
	"github.com/gantryd/gantry/plugins/network"
	containersv1 "github.com/gantryd/gantry/proto/gantry/containers/v1"
	networksv1 "github.com/gantryd/gantry/proto/gantry/networks/v1"
	storev1 "github.com/gantryd/gantry/proto/gantry/store/v1"
)

// wanted is the networks a container asks for, in order.
func wanted(spec *containersv1.Spec) []*containersv1.NetworkAttachment {
	switch {
	case spec.GetNetworkMode() != containersv1.NetworkMode_NETWORK_MODE_UNSPECIFIED:
		return nil
	case len(spec.GetNetworks()) == 0:
		return []*containersv1.NetworkAttachment{{Network: Default}}
	}
	return spec.GetNetworks()
}

// Check says at once what would stop a container with this spec from joining its networks: one that is not
// there, an address that cannot be, ports that another container publishes. What is free now may be taken by the
// time it starts. container is its id if it has one.
func (s *Service) Check(ctx context.Context, spec *containersv1.Spec, container string) error {
	ports, err := asked(spec.GetPorts())
	if err != nil {
		return err
	}
	wants := wanted(spec)
	if len(ports) > 0 && len(wants) == 0 {
		return invalid("publish ports: a container on no network, or on the host's, has none of its own")
	}
	if err := s.db.View(func(tx *meta.Tx) error {
		if err := s.checkNetworks(tx, wants, len(ports) > 0); err != nil {
			return err
		}
		if len(ports) == 0 {
			return nil
		}
		return conflict(ports, s.inUse(tx, container))
	}); err != nil {
		return err
	}
	if len(ports) == 0 {
		return nil
	}
	return s.publisher(ctx, wants)
}

func (s *Service) checkNetworks(tx *meta.Tx, wants []*containersv1.NetworkAttachment, publish bool) error {
	seen, outward := map[string]bool{}, false
	for _, w := range wants {
		n, err := meta.Resolve(tx, s.networks, names, w.GetNetwork())
		if errdefs.IsNotFound(err) && w.GetNetwork() == Default {
			outward = true // it is made when it is needed
			continue
		}
		if err != nil {
			return err
		}
		id := n.GetMeta().GetId()
		if seen[id] {
			return invalid("network %s is asked for twice", n.GetMeta().GetName())
		}
		seen[id], outward = true, outward || !n.GetInternal()
		if w.GetAddress() == "" {
			continue
		}
		a, err := netip.ParseAddr(w.GetAddress())
		if err != nil {
			return invalid("network %s: %q is no address", n.GetMeta().GetName(), w.GetAddress())
		}
		spec, err := s.spec(tx, n)
		if err != nil {
			return err
		}
		if len(spec.Subnets) == 0 || !spec.Subnets[0].Contains(a.Unmap()) {
			return invalid("network %s: address %s is not in %v", n.GetMeta().GetName(), a, spec.Subnets)
		}
	}
	if publish && len(wants) > 0 && !outward {
		return invalid("publish ports: every network asked for is internal")
	}
	return nil
}

// publisher refuses ports where the first network that could carry them has a driver that publishes none.
func (s *Service) publisher(ctx context.Context, wants []*containersv1.NetworkAttachment) error {
	driver := "bridge"
	if err := s.db.View(func(tx *meta.Tx) error {
		for _, w := range wants {
			if n, err := meta.Resolve(tx, s.networks, names, w.GetNetwork()); err == nil && !n.GetInternal() {
				driver = n.GetDriver()
				return nil
			}
		}
		return nil
	}); err != nil {
		return err
	}
	info, err := s.drivers.Info(ctx, plugins.Network, driver)
	if err != nil {
		return fmt.Errorf("publish ports: %w", err)
	}
	if !info.Has(network.Ports) {
		return fmt.Errorf("publish ports: network driver %s does not: %w", driver, errdefs.ErrNotImplemented)
	}
	return nil
}

// joint is one endpoint being made.
type joint struct {
	driver string
	spec   network.Network
	record *networksv1.Endpoint
	handle plugins.Handle
}

// Join gives a container its endpoints in the network namespace pinned at netns, and publishes its ports, under op.
// The records are complete when op commits; if it aborts everything is taken back.
// It costs one commit, and one call of the driver an endpoint, and one more where there are ports.
func (s *Service) Join(ctx context.Context, op *meta.Op, c *containersv1.Container, netns string) ([]*networksv1.Endpoint, error) {
	wants := wanted(c.GetSpec())
	if len(wants) == 0 {
		return nil, nil
	}
	ports, err := asked(c.GetSpec().GetPorts())
	if err != nil {
		return nil, err
	}
	for _, w := range wants {
		if w.GetNetwork() == Default {
			if err := s.ensureDefault(ctx); err != nil {
				return nil, err
			}
		}
	}
	if err := s.Leave(ctx, op, c); err != nil { // what an earlier run may have left
		return nil, err
	}
	joints, err := s.claim(op, c, wants, ports)
	if err != nil {
		return nil, err
	}
	fault.Point("networks.join.claimed")
	var out []*networksv1.Endpoint
	for _, j := range joints {
		if err := s.attach(ctx, j, netns); err != nil {
			return nil, fmt.Errorf("join network %s: %w", j.spec.Name, err)
		}
		if len(j.record.GetPorts()) > 0 {
			if err := s.publish(ctx, j, netns, ports); err != nil {
				return nil, err
			}
		}
		out = append(out, j.record)
	}
	op.Then(func(tx *meta.Tx) error { return s.recordJoints(tx, c.GetMeta().GetId(), joints) })
	return out, nil
}

// recordJoints writes down what a container's endpoints have become.
func (s *Service) recordJoints(tx *meta.Tx, container string, joints []*joint) error {
	for _, j := range joints {
		if err := s.endpoints.Put(tx, meta.Key(j.spec.ID, container), proto.CloneOf(j.record)); err != nil {
			return err
		}
		if err := s.keep(tx, kindEndpoint, j.spec.ID, j.record.GetId(), j.handle); err != nil {
			return err
		}
	}
	return nil
}

// claim chooses addresses and ports, writes them down and claims the endpoints, in one transaction.
func (s *Service) claim(op *meta.Op, c *containersv1.Container, wants []*containersv1.NetworkAttachment, ports []*networksv1.Port) (joints []*joint, err error) {
	return joints, s.db.Update(func(tx *meta.Tx) error {
		if err := s.checkNetworks(tx, wants, len(ports) > 0); err != nil {
			return err
		}
		var chosen []*networksv1.Port
		if len(ports) > 0 {
			held := s.inUse(tx, c.GetMeta().GetId())
			if err := conflict(ports, held); err != nil {
				return err
			}
			var err error
			if chosen, err = s.choose(ports, held); err != nil {
				return err
			}
		}
		var claims []*storev1.Claim
		for i, w := range wants {
			n, err := meta.Resolve(tx, s.networks, names, w.GetNetwork())
			if err != nil {
				return err
			}
			j, err := s.sit(tx, n, c, w, fmt.Sprint("eth", i))
			if err != nil {
				return fmt.Errorf("join network %s: %w", n.GetMeta().GetName(), err)
			}
			if !n.GetInternal() {
				j.record.Ports, chosen = chosen, nil
			}
			if err := s.endpoints.Put(tx, meta.Key(j.spec.ID, c.GetMeta().GetId()), proto.CloneOf(j.record)); err != nil {
				return err
			}
			claims = append(claims, networkClaim(meta.Use, n), claim(meta.Make, kindEndpoint, j.spec.ID, j.record.GetId()))
			joints = append(joints, j)
		}
		return op.ClaimIn(tx, claims...)
	})
}

// sit takes the addresses of an endpoint.
func (s *Service) sit(tx *meta.Tx, n *networksv1.Network, c *containersv1.Container, w *containersv1.NetworkAttachment, iface string) (*joint, error) {
	spec, err := s.spec(tx, n)
	if err != nil {
		return nil, err
	}
	j := &joint{driver: n.GetDriver(), spec: spec, record: &networksv1.Endpoint{
		Id: newID(), NetworkId: spec.ID, Network: spec.Name, ContainerId: c.GetMeta().GetId(), Container: c.GetMeta().GetName(),
		Aliases: w.GetAliases(), Mac: w.GetMac(), Interface: iface,
	}}
	for i := range spec.Subnets {
		var static netip.Addr
		if i == 0 && w.GetAddress() != "" {
			if static, err = netip.ParseAddr(w.GetAddress()); err != nil {
				return nil, invalid("%q is no address", w.GetAddress())
			}
		}
		a, err := s.address(tx, spec, i, static, j.record.GetId())
		if err != nil {
			return nil, err
		}
		j.record.Addresses = append(j.record.Addresses, a.String())
		gateway := spec.Gateways[i].String()
		if spec.Internal {
			gateway = ""
		}
		j.record.Gateways = append(j.record.Gateways, gateway)
	}
	return j, nil
}

func (s *Service) attach(ctx context.Context, j *joint, netns string) error {
	d, err := s.drivers.Network(j.driver)
	if err != nil {
		return err
	}
	e, err := seat(j.record, netns, nil)
	if err != nil {
		return err
	}
	got, err := d.Attach(ctx, j.spec, e)
	if err != nil {
		return err
	}
	j.handle, j.record.Attached, j.record.Mac = got.Handle, true, got.MAC
	if got.Interface != "" {
		j.record.Interface = got.Interface
	}
	for _, a := range got.Nameservers {
		j.record.Nameservers = append(j.record.Nameservers, a.String())
	}
	return nil
}

// tries is how many numbers are proposed for a port that may have any: a process of the
// host may have the first ones, which only the driver finds out.
const tries = 16

// publish asks the driver for the ports that were chosen, and for others where it may.
func (s *Service) publish(ctx context.Context, j *joint, netns string, ports []*networksv1.Port) error {
	d, err := s.drivers.Network(j.driver)
	if err != nil {
		return err
	}
	p, ok := d.(network.Publisher)
	if !ok {
		return fmt.Errorf("publish ports: network driver %s does not: %w", j.driver, errdefs.ErrNotImplemented)
	}
	any := false
	for _, q := range ports {
		any = any || q.GetHostPort() == 0
	}
	for try := 1; ; try++ {
		e, err := seat(j.record, netns, j.handle)
		if err != nil {
			return err
		}
		list, err := wire(j.record.GetPorts())
		if err != nil {
			return err
		}
		if err = p.Publish(ctx, j.spec, e, list); err == nil || !any || !errdefs.IsAlreadyExists(err) || try == tries {
			return err
		}
		if err := s.db.Update(func(tx *meta.Tx) error {
			chosen, err := s.choose(ports, s.inUse(tx, j.record.GetContainerId()))
			if err != nil {
				return err
			}
			j.record.Ports = chosen
			return s.endpoints.Put(tx, meta.Key(j.spec.ID, j.record.GetContainerId()), proto.CloneOf(j.record))
		}); err != nil {
			return err
		}
	}
}

// Drops is the claims that Leave makes for a container. Whoever begins an operation with them saves a commit.
func (s *Service) Drops(tx *meta.Tx, container string) (claims []*storev1.Claim) {
	for e := range s.of(tx, container) {
		claims = append(claims, claim(meta.Drop, kindEndpoint, e.GetNetworkId(), e.GetId()))
	}
	return claims
}

// Leave takes a container's endpoints away, under op. Its network namespace is about to be dropped, and the links go
// with it. Addresses and ports are free for others when op commits.
func (s *Service) Leave(ctx context.Context, op *meta.Op, c *containersv1.Container) error {
	var left []*networksv1.Endpoint
	var claims []*storev1.Claim
	if err := s.db.View(func(tx *meta.Tx) error {
		for e := range s.of(tx, c.GetMeta().GetId()) {
			left = append(left, e)
		}
		claims = s.Drops(tx, c.GetMeta().GetId())
		return tx.Damaged()
	}); err != nil || len(left) == 0 {
		return err
	}
	if err := op.Claim(claims...); err != nil {
		return err
	}
	fault.Point("networks.leave.claimed")
	for _, e := range left {
		if err := s.detach(ctx, e.GetNetworkId(), e.GetId(), ""); err != nil {
			return fmt.Errorf("leave network %s: %w", e.GetNetwork(), err)
		}
	}
	op.Then(func(tx *meta.Tx) error {
		for _, e := range left {
			freed, err := s.strike(tx, e.GetNetworkId(), e.GetId())
			if err != nil {
				return err
			}
			s.freed(freed)
		}
		return nil
	})
	return nil
}

// detach tells the driver to let go of an endpoint, whatever of it the store still knows.
func (s *Service) detach(ctx context.Context, networkID, id, netns string) error {
	var driver string
	spec, e := network.Network{ID: networkID}, network.Endpoint{ID: id, NetNS: netns}
	if err := s.db.View(func(tx *meta.Tx) error {
		if !s.networks.Has(tx, networkID) {
			return nil
		}
		n, err := s.networks.Get(tx, networkID)
		if err != nil {
			return err
		}
		driver = n.GetDriver()
		if spec, err = s.spec(tx, n); err != nil {
			return err
		}
		for _, r := range s.on(tx, networkID) {
			if r.GetId() == id {
				e, err = seat(r, netns, s.kept(tx, kindEndpoint, networkID, id))
			}
		}
		return err
	}); err != nil {
		return err
	}
	if driver == "" {
		return nil // the network is gone, and everything on it went with it
	}
	d, err := s.drivers.Network(driver)
	if err != nil {
		return err
	}
	return d.Detach(ctx, spec, e)
}

// undoEndpoint takes back an endpoint that was being made, or finishes one that was leaving. Its
// namespace is claimed by the same operation and goes too.
func (s *Service) undoEndpoint(ctx context.Context, c *storev1.Claim) error {
	networkID, id := c.GetRef().GetScope(), c.GetRef().GetKey()
	if err := s.detach(ctx, networkID, id, ""); err != nil {
		return err
	}
	return s.db.Update(func(tx *meta.Tx) error {
		freed, err := s.strike(tx, networkID, id)
		if err == nil {
			s.freed(freed)
		}
		return err
	})
}
