package networks

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"iter"
	"net/netip"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/internal/meta"
	"github.com/gantryd/gantry/plugins"
	"github.com/gantryd/gantry/plugins/network"
	networksv1 "github.com/gantryd/gantry/proto/gantry/networks/v1"
	storev1 "github.com/gantryd/gantry/proto/gantry/store/v1"
)

// The kinds of claims: a network's scope is its driver, an endpoint's its network.
const (
	kindNetwork  = "network"
	kindEndpoint = "endpoint"
)

const names = meta.Names("network")

type tables struct {
	networks  meta.Table[*networksv1.Network]
	endpoints meta.Table[*networksv1.Endpoint] // by network and container
	addresses meta.Table[*storev1.Ref]         // by network and address: the endpoint that has it
	handles   meta.Table[*storev1.Handle]
}

func newTables() tables {
	return tables{
		networks: meta.NewTable("networks", func() *networksv1.Network { return &networksv1.Network{} }),
		endpoints: meta.NewTable("endpoints", func() *networksv1.Endpoint { return &networksv1.Endpoint{} }, func(e *networksv1.Endpoint) map[string]string {
			return map[string]string{"network": e.GetNetwork(), "container": e.GetContainerId(), "endpoint": e.GetId()}
		}),
		addresses: meta.NewTable("addresses", func() *storev1.Ref { return &storev1.Ref{} }),
		handles:   meta.NewTable("handles", func() *storev1.Handle { return &storev1.Handle{} }),
	}
}

func claim(mode storev1.Claim_Mode, kind, scope, key string) *storev1.Claim {
	return &storev1.Claim{Mode: mode, Ref: &storev1.Ref{Kind: kind, Scope: scope, Key: key}}
}

func networkClaim(mode storev1.Claim_Mode, n *networksv1.Network) *storev1.Claim {
	return claim(mode, kindNetwork, n.GetDriver(), n.GetMeta().GetId())
}

// newID is 64 hexadecimal digits, as containers have.
func newID() string {
	b := make([]byte, 32)
	_, _ = rand.Read(b) // never fails, says its contract
	return hex.EncodeToString(b)
}

// of ranges over a container's endpoints, in the order of their networks' ids.
func (t *tables) of(tx *meta.Tx, container string) iter.Seq[*networksv1.Endpoint] {
	return func(yield func(*networksv1.Endpoint) bool) {
		for id := range t.networks.All(tx) {
			key := meta.Key(id, container)
			if !t.endpoints.Has(tx, key) {
				continue
			}
			if e, err := t.endpoints.Get(tx, key); err == nil && !yield(e) {
				return
			}
		}
	}
}

// on ranges over a network's endpoints.
func (t *tables) on(tx *meta.Tx, network string) iter.Seq2[string, *networksv1.Endpoint] {
	return t.endpoints.Under(tx, meta.Key(network, ""))
}

// holder names the container that has an endpoint, for people.
func (t *tables) holder(tx *meta.Tx, r *storev1.Ref) string {
	for _, e := range t.on(tx, r.GetScope()) {
		if e.GetId() == r.GetKey() {
			return containerName(e)
		}
	}
	return kindEndpoint + " " + r.GetKey()
}

func containerName(e *networksv1.Endpoint) string {
	if e.GetContainer() != "" {
		return "container " + e.GetContainer()
	}
	id := e.GetContainerId()
	return "container " + meta.Short(id)
}

// strike deletes an endpoint's record if id is the one it is of, its addresses and its handle.
func (t *tables) strike(tx *meta.Tx, network, id string) (freed []string, err error) {
	for key, e := range t.on(tx, network) {
		if e.GetId() == id {
			if err := t.endpoints.Delete(tx, key); err != nil {
				return nil, err
			}
			break
		}
	}
	for key, r := range t.addresses.Under(tx, meta.Key(network, "")) {
		if r.GetKey() == id {
			freed = append(freed, key)
		}
	}
	for _, key := range freed {
		if err := t.addresses.Delete(tx, key); err != nil {
			return nil, err
		}
	}
	return freed, t.handles.Delete(tx, meta.Key(kindEndpoint, network, id))
}

func (t *tables) keep(tx *meta.Tx, kind, scope, key string, h plugins.Handle) error {
	if len(h) == 0 {
		return nil
	}
	return t.handles.Put(tx, meta.Key(kind, scope, key), &storev1.Handle{Ref: &storev1.Ref{Kind: kind, Scope: scope, Key: key}, Data: h})
}

// kept is a handle, nil if there is none: a driver must do without.
func (t *tables) kept(tx *meta.Tx, kind, scope, key string) plugins.Handle {
	if k := meta.Key(kind, scope, key); t.handles.Has(tx, k) {
		if h, err := t.handles.Get(tx, k); err == nil {
			return h.GetData()
		}
	}
	return nil
}

// spec is a network as its driver sees it.
func (t *tables) spec(tx *meta.Tx, n *networksv1.Network) (network.Network, error) {
	out := network.Network{
		ID: n.GetMeta().GetId(), Name: n.GetMeta().GetName(), MTU: int(n.GetMtu()), Internal: n.GetInternal(),
		Options: n.GetOptions(), Handle: t.kept(tx, kindNetwork, n.GetDriver(), n.GetMeta().GetId()),
	}
	for _, s := range n.GetSubnets() {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return out, fmt.Errorf("network %s: subnet %q: %w: %w", out.Name, s, err, errdefs.ErrDataLoss)
		}
		out.Subnets = append(out.Subnets, p)
	}
	for _, g := range n.GetGateways() {
		a, err := netip.ParseAddr(g)
		if err != nil {
			return out, fmt.Errorf("network %s: gateway %q: %w: %w", out.Name, g, err, errdefs.ErrDataLoss)
		}
		out.Gateways = append(out.Gateways, a)
	}
	return out, nil
}

// seat is an endpoint as its driver sees it. netns is "" where there is none any more, or it is not known.
func seat(e *networksv1.Endpoint, netns string, h plugins.Handle) (network.Endpoint, error) {
	out := network.Endpoint{ID: e.GetId(), NetNS: netns, MAC: e.GetMac(), Interface: e.GetInterface(), Handle: h}
	for _, s := range e.GetAddresses() {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return out, fmt.Errorf("endpoint %s: address %q: %w: %w", e.GetId(), s, err, errdefs.ErrDataLoss)
		}
		out.Addresses = append(out.Addresses, p)
	}
	return out, nil
}
