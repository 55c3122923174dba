package networks

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"time"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/internal/meta"
	"github.com/gantryd/gantry/plugins/network"
	storev1 "github.com/gantryd/gantry/proto/gantry/store/v1"
)

// rest is how long an address that was given back is passed over while there are others: the link that had it goes
// with its namespace, some time after everything else, and answers for it until then.
const rest = 2 * time.Second

// mayHave refuses an address that was asked for and cannot be given.
func (s *Service) mayHave(tx *meta.Tx, n network.Network, i int, a netip.Addr) error {
	subnet, gateway := n.Subnets[i].Masked(), n.Gateways[i]
	first, last := bounds(subnet)
	switch {
	case !subnet.Contains(a):
		return fmt.Errorf("address %s is not in %s: %w", a, subnet, errdefs.ErrInvalidArgument)
	case a == gateway, a == numbered(first), a == numbered(last):
		return fmt.Errorf("address %s is the network's own (gateway %s): %w", a, gateway, errdefs.ErrInvalidArgument)
	case s.addresses.Has(tx, meta.Key(n.ID, a.String())):
		r, err := s.addresses.Get(tx, meta.Key(n.ID, a.String()))
		if err != nil {
			return err
		}
		return fmt.Errorf("address %s is taken by %s: %w", a, s.holder(tx, r), errdefs.ErrAlreadyExists)
	}
	return nil
}

// address takes an address of n for an endpoint: the one asked for, or the next one after the
// last given, wrapping around, so that an address is not given again as long as can be.
func (s *Service) address(tx *meta.Tx, n network.Network, i int, asked netip.Addr, endpoint string) (netip.Prefix, error) {
	subnet, gateway := n.Subnets[i].Masked(), n.Gateways[i]
	owner := &storev1.Ref{Kind: kindEndpoint, Scope: n.ID, Key: endpoint}
	take := func(a netip.Addr) (netip.Prefix, error) {
		return netip.PrefixFrom(a, subnet.Bits()), s.addresses.Put(tx, meta.Key(n.ID, a.String()), owner)
	}
	first, last := bounds(subnet)
	if asked.IsValid() {
		if err := s.mayHave(tx, n, i, asked.Unmap()); err != nil {
			return netip.Prefix{}, err
		}
		return take(asked.Unmap())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	at, known := s.cursor[n.ID]
	if !known { // after a restart: go on behind the highest
		for key := range s.addresses.Under(tx, meta.Key(n.ID, "")) {
			if a, err := netip.ParseAddr(meta.Parts(key)[1]); err == nil && a.Is4() {
				at = max(at, number(a))
			}
		}
		at = max(at, number(gateway))
	}
	free := func(a netip.Addr) bool {
		return a != gateway && !s.addresses.Has(tx, meta.Key(n.ID, a.String()))
	}
	size := last - first - 1 // without the network's and the broadcast address
	var tired netip.Addr
	for range size {
		if at++; at <= first || at >= last {
			at = first + 1
		}
		a := numbered(at)
		if !free(a) {
			continue
		}
		if t, ok := s.rested[meta.Key(n.ID, a.String())]; ok && time.Since(t) < rest {
			if !tired.IsValid() {
				tired = a
			}
			continue
		}
		s.cursor[n.ID] = at
		return take(a)
	}
	if tired.IsValid() {
		return take(tired)
	}
	return netip.Prefix{}, fmt.Errorf("no free address in %s: remove containers, or make a larger network: %w", subnet, errdefs.ErrResourceExhausted)
}

// freed remembers when addresses were given back.
func (s *Service) freed(keys []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	if len(s.rested) > 1024 {
		for k, t := range s.rested {
			if now.Sub(t) >= rest {
				delete(s.rested, k)
			}
		}
	}
	for _, k := range keys {
		s.rested[k] = now
	}
}

func number(a netip.Addr) uint32 {
	b := a.As4()
	return binary.BigEndian.Uint32(b[:])
}

func numbered(n uint32) netip.Addr {
	return netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, n)))
}

// bounds is the first and the last address of an IPv4 subnet.
func bounds(p netip.Prefix) (first, last uint32) {
	first = number(p.Masked().Addr())
	return first, first | (1<<(32-p.Bits()) - 1)
}
