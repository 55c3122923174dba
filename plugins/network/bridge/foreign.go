package bridge

import (
	"fmt"
	"log/slog"
	"maps"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
)

// A packet must be accepted by every chain on its way: no rule of ours can undo a drop in
// another's. Docker, ufw and others set the policy of iptables' FORWARD chain to drop; there
// two rules for each bridge are put, in the form that iptables itself writes, so that it can read them.
// What may pass is then for our own forward chain to say.

// openForeign makes foreign chains let a network's packets through, where they would not. mu is held.
func (d *Driver) openForeign(p plan) error {
	target, missing, err := d.shut(p)
	if err != nil || len(missing) == 0 {
		return err
	}
	c, _, err := transaction()
	if err != nil {
		return err
	}
	defer c.CloseLasting() //nolint:errcheck // the socket of one transaction
	for way, key := range missing {
		note := d.note(p.bridge, way)
		c.InsertRule(&nftables.Rule{
			Table: target.Table, Chain: target,
			UserData: userdata.AppendString(nil, userdata.TypeComment, note),
			Exprs: []expr.Any{
				&expr.Meta{Key: key, Register: 1},
				&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: append([]byte(p.bridge), 0)},
				&expr.Counter{},
				&expr.Verdict{Kind: expr.VerdictAccept},
			},
		})
	}
	if err := d.rules.commit(c); err != nil {
		return fmt.Errorf("let bridge %s through chain %s: %w", p.bridge, target.Name, err)
	}
	slog.Info("let a bridge through a foreign chain that drops", "bridge", p.bridge, "chain", target.Name)
	return nil
}

// shut returns the foreign chain that stops a network's packets, and the directions in which it does; none
// where nothing stops them. mu is held.
func (d *Driver) shut(p plan) (target *nftables.Chain, missing map[string]expr.MetaKey, err error) {
	steady, err := d.rules.steady()
	if err != nil {
		return nil, nil, err
	}
	if target, err = d.foreign(steady); err != nil {
		d.rules.hangUp()
		return nil, nil, err
	}
	if target == nil {
		return nil, nil, nil
	}
	have, err := d.rules.list(nftables.TableFamilyIPv4, target.Table.Name, target.Name)
	if err != nil {
		return nil, nil, err
	}
	missing = maps.Clone(ways)
	for way := range ways {
		if slices.ContainsFunc(have, func(r rule) bool { return r.comment == d.note(p.bridge, way) }) {
			delete(missing, way)
		}
	}
	return target, missing, nil
}

// ways are the directions that need a rule.
var ways = map[string]expr.MetaKey{"from": expr.MetaKeyIIFNAME, "to": expr.MetaKeyOIFNAME}

// note is the comment that marks a rule as ours.
func (d *Driver) note(bridge, way string) string { return d.instance + ": " + way + " " + bridge }

// foreign returns the chain in which a rule is needed; nil where none is.
func (d *Driver) foreign(c *nftables.Conn) (*nftables.Chain, error) {
	chains, err := c.ListChains()
	if err != nil {
		return nil, fmt.Errorf("list chains: %w", err)
	}
	var forward, user *nftables.Chain
	for _, ch := range chains {
		drops := ch.Hooknum != nil && *ch.Hooknum == *nftables.ChainHookForward && ch.Policy != nil && *ch.Policy == nftables.ChainPolicyDrop
		filter := ch.Table.Family == nftables.TableFamilyIPv4 && ch.Table.Name == "filter"
		switch {
		case filter && ch.Name == "DOCKER-USER":
			user = ch // where Docker asks others to put theirs
		case filter && ch.Name == "FORWARD" && drops:
			forward = ch
		case drops && (ch.Table.Family == nftables.TableFamilyIPv4 || ch.Table.Family == nftables.TableFamilyINet) && ch.Table.Name != d.instance:
			slog.Warn("a foreign chain drops what is forwarded: let gantry's bridges through it", "table", ch.Table.Name, "chain", ch.Name)
		}
	}
	if forward != nil && user != nil {
		return user, nil
	}
	return forward, nil
}

// closeForeign takes our rules for a bridge out of foreign chains. mu is held.
func (d *Driver) closeForeign(bridge string) error {
	table := &nftables.Table{Name: "filter", Family: nftables.TableFamilyIPv4}
	var gone []*nftables.Rule
	for _, name := range []string{"FORWARD", "DOCKER-USER"} {
		have, err := d.rules.list(table.Family, table.Name, name)
		if err != nil {
			return err
		}
		for _, r := range have {
			if r.comment == d.note(bridge, "from") || r.comment == d.note(bridge, "to") {
				gone = append(gone, &nftables.Rule{Table: table, Chain: &nftables.Chain{Name: name, Table: table}, Handle: r.handle})
			}
		}
	}
	if len(gone) == 0 {
		return nil
	}
	c, _, err := transaction()
	if err != nil {
		return err
	}
	defer c.CloseLasting() //nolint:errcheck // the socket of one transaction
	for _, r := range gone {
		if err := c.DelRule(r); err != nil {
			return fmt.Errorf("describe rule: %w", err)
		}
	}
	return d.rules.commit(c)
}
