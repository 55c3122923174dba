package networks

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"net/netip"
	"regexp"
	"strings"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/gantryd/gantry/internal/fault"
	"github.com/gantryd/gantry/internal/filter"
	"github.com/gantryd/gantry/internal/meta"
	"github.com/gantryd/gantry/plugins/network"
	networksv1 "github.com/gantryd/gantry/proto/gantry/networks/v1"
	storev1 "github.com/gantryd/gantry/proto/gantry/store/v1"
	typesv1 "github.com/gantryd/gantry/proto/gantry/types/v1"
)

var nameForm = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,62}$`)

// Create makes a network. Of want, the name counts, and what else is not empty: the driver ("bridge"),
// its options, subnets (one /24 that this host does not use), gateways (the first address of each), MTU, labels.
func (s *Service) Create(ctx context.Context, want *networksv1.Network) (*networksv1.Network, error) {
	name := want.GetMeta().GetName()
	if !nameForm.MatchString(name) || name == "host" || name == "none" || name == "default" {
		return nil, invalid("create network %q: want a name of %s that is not host, none or default", name, nameForm)
	}
	if err := s.turn(ctx); err != nil {
		return nil, fmt.Errorf("create network %s: %w", name, err)
	}
	defer func() { <-s.making }()
	n, err := s.create(ctx, want)
	if err != nil {
		return nil, fmt.Errorf("create network %s: %w", name, err)
	}
	return n, nil
}

// turn waits until nobody else makes a network: two of them must not choose the same subnet.
func (s *Service) turn(ctx context.Context) error {
	select {
	case s.making <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// create is Create; making is held.
func (s *Service) create(ctx context.Context, want *networksv1.Network) (_ *networksv1.Network, err error) {
	n := proto.CloneOf(want)
	n.Meta = &typesv1.Meta{Id: newID(), Name: want.GetMeta().GetName(), Labels: want.GetMeta().GetLabels(), CreatedAt: timestamppb.Now()}
	if n.GetDriver() == "" {
		n.Driver = "bridge"
	}
	if err := s.db.View(func(tx *meta.Tx) error {
		if id, err := names.Resolve(tx, n.GetMeta().GetName()); err == nil {
			return fmt.Errorf("the name is taken by network %s: %w", meta.Short(id), errdefs.ErrAlreadyExists)
		}
		return nil
	}); err != nil {
		return nil, err
	}
	if err := s.plan(n); err != nil {
		return nil, err
	}
	d, err := s.drivers.Network(n.GetDriver())
	if err != nil {
		return nil, err
	}
	op, err := s.db.Begin("network.create", networkClaim(meta.Make, n))
	if err != nil {
		return nil, err
	}
	defer op.End(ctx, &err)
	fault.Point("networks.create.claimed")
	var spec network.Network
	if err := s.db.View(func(tx *meta.Tx) (err error) {
		spec, err = s.spec(tx, n)
		return err
	}); err != nil {
		return nil, err
	}
	h, err := d.CreateNetwork(ctx, spec)
	if err != nil {
		return nil, err
	}
	return n, op.Commit(func(tx *meta.Tx) error {
		if err := names.Reserve(tx, n.GetMeta().GetName(), n.GetMeta().GetId()); err != nil {
			return err
		}
		if err := s.keep(tx, kindNetwork, n.GetDriver(), n.GetMeta().GetId(), h); err != nil {
			return err
		}
		return s.networks.Put(tx, n.GetMeta().GetId(), n)
	})
}

// plan fills in subnets and gateways, and refuses those that would be in the way.
func (s *Service) plan(n *networksv1.Network) error {
	use, err := s.host.InUse(netip.Addr{})
	if err != nil {
		return err
	}
	theirs, err := s.subnets()
	if err != nil {
		return err
	}
	if len(n.GetSubnets()) == 0 {
		for p := range theirs {
			use = append(use, p)
		}
		p, err := pickSubnet(s.o.Instance, use)
		if err != nil {
			return err
		}
		n.Subnets = []string{p.String()}
		use = nil
	}
	if len(n.GetGateways()) > len(n.GetSubnets()) {
		return invalid("%d gateways for %d subnets", len(n.GetGateways()), len(n.GetSubnets()))
	}
	for i, text := range n.GetSubnets() {
		p, err := parseSubnet(text)
		if err != nil {
			return err
		}
		if err := free(p, theirs, use); err != nil {
			return err
		}
		theirs[p] = n.GetMeta().GetName()
		asked := ""
		if i < len(n.GetGateways()) {
			asked = n.GetGateways()[i]
		}
		gateway, err := gatewayOf(p, asked)
		if err != nil {
			return err
		}
		n.Subnets[i] = p.String()
		n.Gateways = append(n.Gateways[:i:i], append([]string{gateway.String()}, n.Gateways[min(i+1, len(n.Gateways)):]...)...)
	}
	return nil
}

// ensureDefault makes the default network if there is none yet.
func (s *Service) ensureDefault(ctx context.Context) error {
	has := func() (has bool) {
		_ = s.db.View(func(tx *meta.Tx) error {
			_, err := names.Resolve(tx, Default)
			has = err == nil
			return nil
		})
		return has
	}
	if has() {
		return nil
	}
	if err := s.turn(ctx); err != nil {
		return err
	}
	defer func() { <-s.making }()
	if has() { // made by whoever had the turn
		return nil
	}
	n := &networksv1.Network{Meta: &typesv1.Meta{Name: Default}, Driver: "bridge", Mtu: uint32(s.o.MTU)} //nolint:gosec // an MTU
	if s.o.Subnet != "" {
		n.Subnets = []string{s.o.Subnet}
	}
	if s.o.Bridge != "" {
		n.Options = map[string]string{"bridge": s.o.Bridge}
	}
	if _, err := s.create(ctx, n); err != nil {
		return fmt.Errorf("make the default network: %w", err)
	}
	return nil
}

// Get returns a network by id, name or unambiguous beginning of its id, and who is on it.
func (s *Service) Get(ref string) (n *networksv1.Network, on []*networksv1.Endpoint, err error) {
	err = s.db.View(func(tx *meta.Tx) error {
		if n, err = meta.Resolve(tx, s.networks, names, ref); err != nil {
			return err
		}
		for _, e := range s.on(tx, n.GetMeta().GetId()) {
			on = append(on, e)
		}
		return tx.Damaged()
	})
	return n, on, err
}

// keys are what networks are filtered by.
var keys = filter.Keys[*networksv1.Network]{
	"id":     filter.ID(func(n *networksv1.Network) string { return n.GetMeta().GetId() }),
	"name":   filter.Name(func(n *networksv1.Network) []string { return []string{n.GetMeta().GetName()} }),
	"driver": filter.Is((*networksv1.Network).GetDriver),
	"label":  filter.Label(func(n *networksv1.Network) map[string]string { return n.GetMeta().GetLabels() }),
}

// All ranges over the networks that match, by name.
func (s *Service) All(filters []*typesv1.Filter) iter.Seq2[*networksv1.Network, error] {
	match, err := filter.New("networks", keys, filters)
	if err != nil {
		return func(yield func(*networksv1.Network, error) bool) { yield(nil, err) }
	}
	return meta.ByName(s.db, s.networks, match)
}

// Remove deletes a network that nothing is connected to. Removing what is not there succeeds.
func (s *Service) Remove(ctx context.Context, ref string) (err error) {
	var n *networksv1.Network
	var op *meta.Op
	var spec network.Network
	err = s.db.Update(func(tx *meta.Tx) (err error) {
		if n, err = meta.Resolve(tx, s.networks, names, ref); err != nil {
			return err
		}
		if n.GetMeta().GetName() == Default {
			return fmt.Errorf("it is the default network and stays: %w", errdefs.ErrFailedPrecondition)
		}
		var on []string
		for _, e := range s.on(tx, n.GetMeta().GetId()) {
			on = append(on, containerName(e))
		}
		if len(on) > 0 {
			return fmt.Errorf("%s is connected to it: %w", strings.Join(on[:min(len(on), 5)], ", "), errdefs.ErrFailedPrecondition)
		}
		if spec, err = s.spec(tx, n); err != nil {
			return err
		}
		op, err = tx.Begin("network.remove", networkClaim(meta.Drop, n))
		return err
	})
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("remove network %s: %w", ref, err)
	}
	defer op.End(ctx, &err)
	fault.Point("networks.remove.claimed")
	d, err := s.drivers.Network(n.GetDriver())
	if err == nil {
		err = d.DeleteNetwork(ctx, spec)
	}
	if err != nil {
		return fmt.Errorf("remove network %s: %w", ref, err)
	}
	return op.Commit(func(tx *meta.Tx) error { return s.strikeNetwork(tx, n.GetDriver(), n.GetMeta().GetId()) })
}

func (s *Service) strikeNetwork(tx *meta.Tx, driver, id string) error {
	if s.networks.Has(tx, id) {
		n, err := s.networks.Get(tx, id)
		if err != nil {
			return err
		}
		if err := names.Release(tx, n.GetMeta().GetName(), id); err != nil {
			return err
		}
	}
	return errors.Join(s.networks.Delete(tx, id), s.handles.Delete(tx, meta.Key(kindNetwork, driver, id)))
}

// undoNetwork takes back a network that was being made, or finishes one that was being removed.
func (s *Service) undoNetwork(ctx context.Context, c *storev1.Claim) error {
	driver, id := c.GetRef().GetScope(), c.GetRef().GetKey()
	spec := network.Network{ID: id}
	if err := s.db.View(func(tx *meta.Tx) error {
		if !s.networks.Has(tx, id) {
			return nil
		}
		n, err := s.networks.Get(tx, id)
		if err == nil {
			spec, err = s.spec(tx, n)
		}
		return err
	}); err != nil {
		return err
	}
	d, err := s.drivers.Network(driver)
	if err != nil {
		return err
	}
	if err := d.DeleteNetwork(ctx, spec); err != nil {
		return err
	}
	return s.db.Update(func(tx *meta.Tx) error { return s.strikeNetwork(tx, driver, id) })
}
