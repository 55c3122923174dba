package bridge

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	mdnetlink "github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// The table, as `nft list table inet gantry` would show it, with one network and one port:
//
//	set bridges   { type ifname; elements = { "gantry0" } }
//	map into      { type ifname : verdict; elements = { "gantry0" : jump into-gantry0 } }
//	map from      { type ifname : verdict }                  # internal networks only
//	map sources   { type ipv4_addr : verdict; flags interval; elements = { 172.30.0.0/24 : jump nat-gantry0 } }
//	map port-at   { type inet_proto . ipv4_addr . inet_service : ipv4_addr . inet_service }
//	map port-all  { type inet_proto . inet_service : ipv4_addr . inet_service; elements = { tcp . 8080 comment "<endpoint>" : 172.30.0.2 . 80 } }
//	map range-at  { type inet_proto . ipv4_addr . inet_service : ipv4_addr; flags interval }   # same ports on both sides
//	map range-all { type inet_proto . inet_service : ipv4_addr; flags interval }
//
//	chain raw { type filter hook prerouting priority raw;
//	    iifname @bridges ip daddr 127.0.0.0/8 drop           # route_localnet is on for these links
//	    iifname @bridges ip saddr 127.0.0.0/8 drop }
//	chain prerouting { type nat hook prerouting priority dstnat;
//	    ip daddr 127.0.0.0/8 return                          # a neighbour on the wire must not reach what is published on loopback
//	    fib daddr type local jump publish }
//	chain output { type nat hook output priority dstnat;
//	    fib daddr type local jump publish }
//	chain publish {
//	    dnat ip to meta l4proto . ip daddr . th dport map @port-at      … @port-all, @range-at, @range-all }
//	chain postrouting { type nat hook postrouting priority srcnat;
//	    ip saddr 127.0.0.0/8 oifname @bridges masquerade
//	    ip saddr vmap @sources }
//	chain nat-gantry0 {
//	    oifname "gantry0" ct status dnat masquerade          # to itself, or a neighbour, by the host's address
//	    oifname "gantry0" return
//	    masquerade }
//	chain forward { type filter hook forward priority filter;
//	    iifname vmap @from
//	    oifname vmap @into }
//	chain into-gantry0 {
//	    iifname "gantry0" accept
//	    ct state established,related accept
//	    ct status dnat accept                                # published
//	    drop }
//	chain from-<bridge of an internal network> { oifname <itself> accept; drop }
type rules struct {
	table string

	// gen is the generation of the kernel's ruleset that what follows is true of: any
	// change of it, by anyone, makes the kernel count one up.
	gen    uint32
	known  bool
	sound  map[string]bool // bridges whose part has been looked at
	loaded bool
	ports  []port // what is published, by everyone; as last seen where not loaded

	// Closing a netfilter socket waits for the kernel to tidy up after whoever deleted something
	// last, 5 to 15 ms: these two stay open.
	ask    *conn           // for questions
	change *nftables.Conn  // for elements
	socket *mdnetlink.Conn // of change
}

const (
	setBridges = iota + 1
	mapInto
	mapFrom
	mapSources
	mapPortAt
	mapPortAll
	mapRangeAt
	mapRangeAll
)

func (r *rules) nft() *nftables.Table {
	return &nftables.Table{Name: r.table, Family: nftables.TableFamilyINet}
}

// set describes one of the sets above; the kernel compares it with what is there.
func (r *rules) set(id uint32) *nftables.Set {
	s := &nftables.Set{Table: r.nft(), ID: id, IsMap: true, KeyByteOrder: binaryutil.BigEndian}
	at := nftables.MustConcatSetType(nftables.TypeInetProto, nftables.TypeIPAddr, nftables.TypeInetService)
	all := nftables.MustConcatSetType(nftables.TypeInetProto, nftables.TypeInetService)
	to := nftables.MustConcatSetType(nftables.TypeIPAddr, nftables.TypeInetService)
	switch id {
	case setBridges:
		s.Name, s.IsMap, s.KeyType, s.KeyByteOrder = "bridges", false, nftables.TypeIFName, binaryutil.NativeEndian
	case mapInto:
		s.Name, s.KeyType, s.DataType, s.KeyByteOrder = "into", nftables.TypeIFName, nftables.TypeVerdict, binaryutil.NativeEndian
	case mapFrom:
		s.Name, s.KeyType, s.DataType, s.KeyByteOrder = "from", nftables.TypeIFName, nftables.TypeVerdict, binaryutil.NativeEndian
	case mapSources:
		s.Name, s.KeyType, s.DataType, s.Interval = "sources", nftables.TypeIPAddr, nftables.TypeVerdict, true
	case mapPortAt:
		s.Name, s.KeyType, s.DataType, s.Concatenation = "port-at", at, to, true
	case mapPortAll:
		s.Name, s.KeyType, s.DataType, s.Concatenation = "port-all", all, to, true
	case mapRangeAt:
		s.Name, s.KeyType, s.DataType, s.Concatenation, s.Interval = "range-at", at, nftables.TypeIPAddr, true, true
	case mapRangeAll:
		s.Name, s.KeyType, s.DataType, s.Concatenation, s.Interval = "range-all", all, nftables.TypeIPAddr, true, true
	}
	return s
}

func (r *rules) chain(name string) *nftables.Chain {
	c := &nftables.Chain{Name: name, Table: r.nft()}
	accept := nftables.ChainPolicyAccept
	base := func(t nftables.ChainType, h *nftables.ChainHook, p *nftables.ChainPriority) {
		c.Type, c.Hooknum, c.Priority, c.Policy = t, h, p, &accept
	}
	switch name {
	case "raw":
		base(nftables.ChainTypeFilter, nftables.ChainHookPrerouting, nftables.ChainPriorityRaw)
	case "prerouting":
		base(nftables.ChainTypeNAT, nftables.ChainHookPrerouting, nftables.ChainPriorityNATDest)
	case "output":
		base(nftables.ChainTypeNAT, nftables.ChainHookOutput, nftables.ChainPriorityNATDest)
	case "postrouting":
		base(nftables.ChainTypeNAT, nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource)
	case "forward":
		base(nftables.ChainTypeFilter, nftables.ChainHookForward, nftables.ChainPriorityFilter)
	}
	return c
}

// whole says whether a network's part of the table is there, as far as can be told from outside. It
// costs one question to the kernel while nobody changes the ruleset.
func (r *rules) whole(p plan) (bool, error) {
	if err := r.look(); err != nil {
		return false, err
	}
	if r.sound[p.bridge] {
		return true, nil
	}
	want := map[string]int{"raw": 2, "prerouting": 2, "output": 1, "publish": 4, "postrouting": 2, "forward": 2, "into-" + p.bridge: 4}
	if p.internal {
		want["into-"+p.bridge], want["from-"+p.bridge] = 2, 2
	} else {
		want["nat-"+p.bridge] = 3
	}
	for chain, n := range want {
		have, err := r.list(nftables.TableFamilyINet, r.table, chain)
		if err != nil || len(have) != n {
			return false, err
		}
	}
	return true, nil
}

// ensure writes the table, and a network's part of it, as they should be.
func (r *rules) ensure(p plan) error {
	if err := r.look(); err != nil {
		return err
	}
	c, _, err := transaction()
	if err != nil {
		return err
	}
	defer c.CloseLasting() //nolint:errcheck // the socket of one transaction
	lost, err := r.lost(c)
	if err != nil {
		return err
	}
	c.AddTable(r.nft())
	for id := uint32(setBridges); id <= mapRangeAll; id++ {
		if err := c.AddSet(r.set(id), nil); err != nil {
			return fmt.Errorf("describe set: %w", err)
		}
	}
	r.static(c)
	r.perNetwork(c, p)
	for _, e := range append(r.elements(p), r.portElements(lost)...) {
		if err := c.SetAddElements(e.set, e.elements); err != nil {
			return fmt.Errorf("describe elements: %w", err)
		}
	}
	if err := r.commit(c); err != nil {
		if errors.Is(err, unix.EEXIST) || errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("%w (another network overlaps %s, or the table was changed by hand: `nft delete table inet %s`, then try again): %w", err, p.subnet, r.table, errdefs.ErrAlreadyExists)
		}
		return err
	}
	return nil
}

// lost returns the ports that were published when the table was last seen, if it is gone: somebody
// has flushed the ruleset, as a restart of the nftables service does.
func (r *rules) lost(c *nftables.Conn) ([]port, error) {
	tables, err := c.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return nil, fmt.Errorf("list tables: %w", err)
	}
	for _, t := range tables {
		if t.Name == r.table {
			return nil, nil
		}
	}
	return r.ports, nil
}

func (r *rules) static(c *nftables.Conn) {
	add := r.adder(c)
	lookup := func(id uint32) expr.Any { return &expr.Lookup{SourceRegister: 1, SetName: r.set(id).Name, SetID: id} }
	vmap := func(id uint32) expr.Any {
		return &expr.Lookup{SourceRegister: 1, IsDestRegSet: true, SetName: r.set(id).Name, SetID: id}
	}
	for _, name := range []string{"raw", "publish", "prerouting", "output", "postrouting", "forward"} {
		c.AddChain(r.chain(name))
		c.FlushChain(r.chain(name))
	}
	add("raw", ipv4(), load(expr.MetaKeyIIFNAME), lookup(setBridges), loopback(destination), verdict(expr.VerdictDrop))
	add("raw", ipv4(), load(expr.MetaKeyIIFNAME), lookup(setBridges), loopback(source), verdict(expr.VerdictDrop))

	local := []expr.Any{
		&expr.Fib{Register: 1, FlagDADDR: true, ResultADDRTYPE: true},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binary.NativeEndian.AppendUint32(nil, unix.RTN_LOCAL)},
	}
	jump := []expr.Any{&expr.Verdict{Kind: expr.VerdictJump, Chain: "publish"}}
	add("prerouting", ipv4(), loopback(destination), verdict(expr.VerdictReturn))
	add("prerouting", ipv4(), local, jump)
	add("output", ipv4(), local, jump)

	for _, id := range []uint32{mapPortAt, mapPortAll, mapRangeAt, mapRangeAll} {
		// Registers: a concatenation fills one of four bytes after the other, from 8 (register 1) on.
		key, next := load(expr.MetaKeyL4PROTO), uint32(9)
		if id == mapPortAt || id == mapRangeAt {
			key = append(key, &expr.Payload{DestRegister: next, Base: expr.PayloadBaseNetworkHeader, Offset: 16, Len: 4})
			next++
		}
		key = append(key,
			&expr.Payload{DestRegister: next, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
			&expr.Lookup{SourceRegister: 1, DestRegister: 1, IsDestRegSet: true, SetName: r.set(id).Name, SetID: id})
		nat := &expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: 1}
		if id == mapPortAt || id == mapPortAll {
			nat.RegProtoMin, nat.Specified = 9, true
		}
		add("publish", ipv4(), key, []expr.Any{nat})
	}

	add("postrouting", ipv4(), loopback(source), load(expr.MetaKeyOIFNAME), lookup(setBridges), []expr.Any{&expr.Masq{}})
	add("postrouting", ipv4(), []expr.Any{&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 12, Len: 4}, vmap(mapSources)})
	add("forward", load(expr.MetaKeyIIFNAME), vmap(mapFrom))
	add("forward", load(expr.MetaKeyOIFNAME), vmap(mapInto))
}

func (r *rules) perNetwork(c *nftables.Conn, p plan) {
	add := r.adder(c)
	chains := []string{"into-" + p.bridge, "nat-" + p.bridge}
	if p.internal {
		chains[1] = "from-" + p.bridge
	}
	for _, name := range chains {
		c.AddChain(r.chain(name))
		c.FlushChain(r.chain(name))
	}
	in, out := iface(expr.MetaKeyIIFNAME, p.bridge), iface(expr.MetaKeyOIFNAME, p.bridge)
	dnat := ctHas(expr.CtKeySTATUS, 1<<5) // IPS_DST_NAT
	known := ctHas(expr.CtKeySTATE, expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED)
	add(chains[0], in, verdict(expr.VerdictAccept))
	if p.internal {
		add(chains[0], verdict(expr.VerdictDrop))
		add(chains[1], out, verdict(expr.VerdictAccept))
		add(chains[1], verdict(expr.VerdictDrop))
		return
	}
	add(chains[0], known, verdict(expr.VerdictAccept))
	add(chains[0], dnat, verdict(expr.VerdictAccept))
	add(chains[0], verdict(expr.VerdictDrop))
	add(chains[1], out, dnat, []expr.Any{&expr.Masq{}})
	add(chains[1], out, verdict(expr.VerdictReturn))
	add(chains[1], []expr.Any{&expr.Masq{}})
}

// elementsOf are elements of one set.
type elementsOf struct {
	set      *nftables.Set
	elements []nftables.SetElement
}

// elements is what a network has in the sets.
func (r *rules) elements(p plan) []elementsOf {
	jump := func(chain string) *expr.Verdict { return &expr.Verdict{Kind: expr.VerdictJump, Chain: chain} }
	one := func(id uint32, e nftables.SetElement) elementsOf {
		e.Comment = p.bridge + " " + p.subnet.String() // remove finds it by this
		return elementsOf{r.set(id), []nftables.SetElement{e}}
	}
	name := ifname(p.bridge)
	out := []elementsOf{
		one(setBridges, nftables.SetElement{Key: name}),
		one(mapInto, nftables.SetElement{Key: name, VerdictData: jump("into-" + p.bridge)}),
	}
	if p.internal {
		return append(out, one(mapFrom, nftables.SetElement{Key: name, VerdictData: jump("from-" + p.bridge)}))
	}
	from := one(mapSources, nftables.SetElement{Key: p.subnet.Addr().AsSlice(), VerdictData: jump("nat-" + p.bridge)})
	from.elements = append(from.elements, end(p.subnet))
	return append(out, from)
}

// remove takes a bridge's part out of the table, whatever of it is there.
func (r *rules) remove(bridge string) error {
	if err := r.look(); err != nil {
		return err
	}
	c, _, err := transaction()
	if err != nil {
		return err
	}
	defer c.CloseLasting() //nolint:errcheck // the socket of one transaction
	found := false
	for _, id := range []uint32{setBridges, mapInto, mapFrom, mapSources} {
		have, err := listElements(c, r.set(id))
		if err != nil {
			return err
		}
		var gone []nftables.SetElement
		for _, e := range have {
			name, subnet, _ := strings.Cut(e.Comment, " ")
			if name != bridge {
				continue
			}
			gone = append(gone, nftables.SetElement{Key: e.Key})
			if p, err := netip.ParsePrefix(subnet); id == mapSources && err == nil {
				gone = append(gone, end(p))
			}
		}
		if len(gone) == 0 {
			continue
		}
		found = true
		if err := c.SetDeleteElements(r.set(id), gone); err != nil {
			return fmt.Errorf("describe elements: %w", err)
		}
	}
	chains, err := c.ListChainsOfTableFamily(nftables.TableFamilyINet)
	if err != nil {
		return fmt.Errorf("list chains: %w", err)
	}
	for _, ch := range chains {
		if ch.Table.Name == r.table && (ch.Name == "into-"+bridge || ch.Name == "from-"+bridge || ch.Name == "nat-"+bridge) {
			c.FlushChain(ch)
			c.DelChain(ch)
			found = true
		}
	}
	if !found {
		return nil
	}
	return r.commit(c)
}

// end is the element that ends the interval of a subnet. The kernel lets it carry nothing but its key.
func end(p netip.Prefix) nftables.SetElement {
	first := p.Addr().As4()
	last := binary.BigEndian.Uint32(first[:]) | (1<<(32-p.Bits()) - 1)
	return nftables.SetElement{Key: binary.BigEndian.AppendUint32(nil, last+1), IntervalEnd: true}
}

// drop takes the table away.
func (r *rules) drop() error {
	c, _, err := transaction()
	if err != nil {
		return err
	}
	defer c.CloseLasting() //nolint:errcheck // the socket of one transaction
	tables, err := c.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return fmt.Errorf("list tables: %w", err)
	}
	for _, t := range tables {
		if t.Name == r.table {
			c.DelTable(r.nft())
			r.ports, r.loaded = nil, false
			return r.commit(c)
		}
	}
	return nil
}

func (r *rules) adder(c *nftables.Conn) func(chain string, parts ...any) {
	return func(chain string, parts ...any) {
		ru := &nftables.Rule{Table: r.nft(), Chain: r.chain(chain)}
		for _, p := range parts {
			switch p := p.(type) {
			case expr.Any:
				ru.Exprs = append(ru.Exprs, p)
			case []expr.Any:
				ru.Exprs = append(ru.Exprs, p...)
			}
		}
		c.AddRule(ru)
	}
}

func load(k expr.MetaKey) []expr.Any { return []expr.Any{&expr.Meta{Key: k, Register: 1}} }

func ipv4() []expr.Any {
	return append(load(expr.MetaKeyNFPROTO), &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.NFPROTO_IPV4}})
}

// Offsets of the addresses in an IPv4 header.
const source, destination = 12, 16

func loopback(offset uint32) []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{127}},
	}
}

func iface(k expr.MetaKey, name string) []expr.Any {
	return append(load(k), &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: ifname(name)})
}

func ifname(name string) []byte {
	return append([]byte(name), make([]byte, unix.IFNAMSIZ-len(name))...)
}

// ctHas is true where any of the bits is set.
func ctHas(k expr.CtKey, bits uint32) []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: k, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binary.NativeEndian.AppendUint32(nil, bits), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
	}
}

func verdict(k expr.VerdictKind) []expr.Any { return []expr.Any{&expr.Verdict{Kind: k}} }
