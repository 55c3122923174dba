package networks

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"github.com/gantryd/gantry/internal/check"
	"github.com/gantryd/gantry/internal/meta"
	"github.com/gantryd/gantry/plugins"
	"github.com/gantryd/gantry/plugins/network"
	networksv1 "github.com/gantryd/gantry/proto/gantry/networks/v1"
)

// account is what the store says of one network at one moment.
type account struct {
	record    *networksv1.Network
	spec      network.Network
	endpoints map[string]*networksv1.Endpoint // by id
	handles   map[string]plugins.Handle
	claimed   map[string]bool // endpoints that somebody is at
}

func (s *Service) accounts() (all []account, err error) {
	return all, s.db.View(func(tx *meta.Tx) error {
		claimed := map[string]bool{}
		for _, c := range tx.Claims() {
			if c.GetRef().GetKind() == kindEndpoint {
				claimed[c.GetRef().GetKey()] = true
			}
		}
		for id, n := range s.networks.All(tx) {
			spec, err := s.spec(tx, n)
			if err != nil {
				return err
			}
			a := account{record: n, spec: spec, endpoints: map[string]*networksv1.Endpoint{}, handles: map[string]plugins.Handle{}, claimed: claimed}
			for _, e := range s.on(tx, id) {
				a.endpoints[e.GetId()] = e
				a.handles[e.GetId()] = s.kept(tx, kindEndpoint, id, e.GetId())
			}
			all = append(all, a)
		}
		return tx.Damaged()
	})
}

// Recover makes every network that has endpoints again, and publishes their ports again: whatever was deleted,
// flushed or lost while nobody looked is back when it returns. Call it after db.Recover and before
// containers are looked for; a driver that does not answer is an error, and no reason not to go on.
// It also says, in the log, which subnets have come to overlap with something of the host's.
func (s *Service) Recover(ctx context.Context) error {
	all, err := s.accounts()
	if err != nil {
		return fmt.Errorf("recover networks: %w", err)
	}
	errs := make([]error, len(all))
	var wg sync.WaitGroup
	for i, a := range all {
		s.warn(a)
		if len(a.endpoints) > 0 {
			wg.Go(func() { errs[i] = s.mend(ctx, a) })
		}
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("recover networks: %w", err)
	}
	return nil
}

// mend makes a network and its published ports as they should be.
func (s *Service) mend(ctx context.Context, a account) error {
	d, err := s.drivers.Network(a.record.GetDriver())
	if err != nil {
		return err
	}
	h, err := d.CreateNetwork(ctx, a.spec)
	if err != nil {
		return err
	}
	if string(h) != string(a.spec.Handle) && len(h) > 0 {
		a.spec.Handle = h
		if err := s.db.Update(func(tx *meta.Tx) error {
			return s.keep(tx, kindNetwork, a.record.GetDriver(), a.spec.ID, h)
		}); err != nil {
			return err
		}
	}
	held := map[string]bool{} // after a reboot none is, and their containers are let go of elsewhere
	for h, err := range d.Endpoints(ctx) {
		if err != nil {
			return err
		}
		held[h.EndpointID] = true
	}
	p, ok := d.(network.Publisher)
	var errs []error
	for id, e := range a.endpoints {
		if !ok || !held[id] || a.claimed[id] || len(e.GetPorts()) == 0 {
			continue
		}
		ports, err := wire(e.GetPorts())
		if err == nil {
			var ep network.Endpoint
			if ep, err = seat(e, "", a.handles[id]); err == nil {
				err = p.Publish(ctx, a.spec, ep, ports)
			}
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", containerName(e), err))
		}
	}
	return errors.Join(errs...)
}

// warn compares a network's subnets with what the host has come to use.
func (s *Service) warn(a account) {
	for i, p := range a.spec.Subnets {
		own := netip.Addr{}
		if i < len(a.spec.Gateways) {
			own = a.spec.Gateways[i]
		}
		use, err := s.host.InUse(own)
		if err != nil {
			s.log.Warn("cannot see whether a network's addresses are free on this host", "network", a.spec.Name, "err", err)
			return
		}
		for _, u := range use {
			if u.Overlaps(p) {
				s.log.Warn("a network's subnet overlaps what this host reaches otherwise: its containers cannot reach that; make another network, or change network.subnet and remove the old one",
					"network", a.spec.Name, "subnet", p, "overlaps", u)
			}
		}
	}
}

// Release takes what networks need out of the kernel where nobody is on them; the records stay, and the next
// Join makes it again. The daemon calls it when it stops and nothing runs.
func (s *Service) Release(ctx context.Context) error {
	all, err := s.accounts()
	if err != nil {
		return fmt.Errorf("release networks: %w", err)
	}
	var errs []error
	for _, a := range all {
		if len(a.endpoints) > 0 {
			continue
		}
		d, err := s.drivers.Network(a.record.GetDriver())
		if err == nil {
			err = d.DeleteNetwork(ctx, a.spec)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("release network %s: %w", a.spec.Name, err))
		}
	}
	return errors.Join(errs...)
}

// Checks compares the store with the drivers, and has those compare it with the host that can.
func (s *Service) Checks() []check.Check {
	return []check.Check{{Name: "networks.endpoints", Run: s.compare}, {Name: "networks.host", Run: s.compareHost}}
}

// compareHost asks drivers what differs on the host, of networks that somebody is on. The store is read before and after:
// what is said of an endpoint that somebody is at, or that came or went meanwhile, is under way.
func (s *Service) compareHost(ctx context.Context, report check.Report) error {
	before, err := s.accounts()
	if err != nil {
		return err
	}
	type found struct {
		network.Difference
		account
	}
	var all []found
	for _, a := range before {
		if len(a.endpoints) == 0 {
			continue
		}
		differences, err := s.checkOne(ctx, a)
		if err != nil {
			return fmt.Errorf("network %s: %w", a.spec.Name, err)
		}
		for _, d := range differences {
			all = append(all, found{d, a})
		}
	}
	if len(all) == 0 {
		return nil
	}
	after, err := s.accounts()
	if err != nil {
		return err
	}
	busy := underWay(before, after)
	for _, d := range all {
		if !slices.ContainsFunc(busy, func(id string) bool { return strings.Contains(d.Subject+" "+d.Detail, id) }) {
			report(d.Subject, fmt.Sprintf("network %s: %s", d.spec.Name, d.Detail), s.mendLater(d.spec.ID))
		}
	}
	return nil
}

// underWay are the endpoints that somebody is at in either of two accounts, or that only one of them has.
func underWay(before, after []account) (ids []string) {
	seen := map[string]int{}
	for _, all := range [][]account{before, after} {
		for i, a := range all {
			for id := range a.endpoints {
				seen[id]++
			}
			if i == 0 { // each has them all
				ids = slices.AppendSeq(ids, maps.Keys(a.claimed))
			}
		}
	}
	for id, n := range seen {
		if n == 1 {
			ids = append(ids, id)
		}
	}
	return ids
}

// checkOne asks a network's driver, if it can tell.
func (s *Service) checkOne(ctx context.Context, a account) (all []network.Difference, err error) {
	info, err := s.drivers.Info(ctx, plugins.Network, a.record.GetDriver())
	if err != nil || !info.Has(network.Check) {
		return nil, err
	}
	d, err := s.drivers.Network(a.record.GetDriver())
	if err != nil {
		return nil, err
	}
	c, ok := d.(network.Checker)
	if !ok {
		return nil, nil
	}
	var want []network.Want
	for id, e := range a.endpoints {
		ep, err := seat(e, "", a.handles[id])
		if err != nil {
			return nil, err
		}
		ports, err := wire(e.GetPorts())
		if err != nil {
			return nil, err
		}
		want = append(want, network.Want{Endpoint: ep, Ports: ports})
	}
	for diff, err := range c.Check(ctx, a.spec, want) {
		if err != nil {
			return nil, err
		}
		all = append(all, diff)
	}
	return all, nil
}

// mendLater mends a network as it is to be then.
func (s *Service) mendLater(id string) func(context.Context) error {
	return func(ctx context.Context) error {
		all, err := s.accounts()
		if err != nil {
			return err
		}
		for _, a := range all {
			if a.spec.ID == id && len(a.endpoints) > 0 {
				return s.mend(ctx, a)
			}
		}
		return nil
	}
}

// compare reads the store before and after the drivers: what is claimed, or known, in either is not a difference.
func (s *Service) compare(ctx context.Context, report check.Report) error {
	before, err := s.accounts()
	if err != nil {
		return err
	}
	held, err := s.held(ctx, before)
	if err != nil {
		return err
	}
	after, err := s.accounts()
	if err != nil {
		return err
	}
	known := map[string]bool{}
	for _, a := range append(slices.Clone(before), after...) {
		for id := range a.endpoints {
			known[id] = true
		}
		for id := range a.claimed {
			known[id] = true
		}
	}
	for driver, hs := range held {
		for h := range hs {
			if !known[h.EndpointID] {
				report("endpoint "+h.EndpointID, fmt.Sprintf("driver %s holds it, and the store does not know it", driver), s.dropStray(driver, h))
			}
		}
	}
	was := map[string]bool{}
	for _, a := range before {
		for id := range a.endpoints {
			was[id] = true
		}
	}
	for _, a := range after {
		for id, e := range a.endpoints {
			if was[id] && !a.claimed[id] && !held[a.record.GetDriver()][network.Held{NetworkID: a.spec.ID, EndpointID: id}] {
				report("endpoint "+id, fmt.Sprintf("%s has it on network %s, and driver %s does not hold it: restart the container", containerName(e), a.spec.Name, a.record.GetDriver()), nil)
			}
		}
	}
	return nil
}

// held asks the drivers of networks what they hold; the answer is by driver.
func (s *Service) held(ctx context.Context, of []account) (map[string]map[network.Held]bool, error) {
	held := map[string]map[network.Held]bool{}
	for _, a := range of {
		name := a.record.GetDriver()
		if held[name] != nil {
			continue
		}
		held[name] = map[network.Held]bool{}
		d, err := s.drivers.Network(name)
		if err != nil {
			return nil, err
		}
		for h, err := range d.Endpoints(ctx) {
			if err != nil {
				return nil, fmt.Errorf("network driver %s: %w", name, err)
			}
			held[name][h] = true
		}
	}
	return held, nil
}

// dropStray takes away what nobody knows, unless somebody does by now.
func (s *Service) dropStray(driver string, h network.Held) func(context.Context) error {
	return func(ctx context.Context) error {
		all, err := s.accounts()
		if err != nil {
			return err
		}
		spec := network.Network{ID: h.NetworkID}
		for _, a := range all {
			if a.endpoints[h.EndpointID] != nil || a.claimed[h.EndpointID] {
				return nil
			}
			if a.spec.ID == h.NetworkID {
				spec = a.spec
			}
		}
		d, err := s.drivers.Network(driver)
		if err != nil {
			return err
		}
		// A path, though nothing is there: its link is not to be left to a namespace that somebody may hold.
		return d.Detach(ctx, spec, network.Endpoint{ID: h.EndpointID, NetNS: "/proc/0/ns/net"})
	}
}
