package system

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/gantryd/gantry/internal/check"
	"github.com/gantryd/gantry/internal/meta"
	networksv1 "github.com/gantryd/gantry/proto/gantry/networks/v1"
	storev1 "github.com/gantryd/gantry/proto/gantry/store/v1"
	typesv1 "github.com/gantryd/gantry/proto/gantry/types/v1"
)

// storeChecks are what must be true of the store by itself.
func storeChecks(db *meta.DB) []check.Check {
	return []check.Check{
		{Name: "store.file", Run: func(_ context.Context, report check.Report) error {
			return db.Verify(func(subject, detail string) { report(subject, detail, nil) })
		}},
		{Name: "store.names", Run: func(_ context.Context, report check.Report) error { return checkNames(db, report) }},
		{Name: "store.addresses", Run: func(_ context.Context, report check.Report) error { return checkAddresses(db, report) }},
		{Name: "store.endpoints", Run: func(_ context.Context, report check.Report) error { return checkEndpoints(db, report) }},
		{Name: "store.operations", Run: func(_ context.Context, report check.Report) error { return checkOperations(db, report) }},
	}
}

// compare runs fn in one moment of the store and hands on what it reports, unless a record could not
// be read: what seems to be missing may be just that one, and nothing is repaired on such grounds.
func compare(db *meta.DB, report check.Report, fn func(tx *meta.Tx, report check.Report)) error {
	var found []func()
	if err := db.View(func(tx *meta.Tx) error {
		fn(tx, func(subject, detail string, repair func(context.Context) error) {
			found = append(found, func() { report(subject, detail, repair) })
		})
		return tx.Damaged()
	}); err != nil {
		return err
	}
	for _, f := range found {
		f()
	}
	return nil
}

// named is the kinds whose things have names: id and name of each.
var named = map[meta.Names]func(tx *meta.Tx) map[string]string{
	"container": func(tx *meta.Tx) map[string]string { return nameOf(tx, containers) },
	"network":   func(tx *meta.Tx) map[string]string { return nameOf(tx, networks) },
	"volume":    func(tx *meta.Tx) map[string]string { return nameOf(tx, volumes) },
}

func nameOf[T interface {
	proto.Message
	GetMeta() *typesv1.Meta
}](tx *meta.Tx, t meta.Table[T],
) map[string]string {
	m := map[string]string{}
	for id, v := range t.All(tx) {
		m[id] = v.GetMeta().GetName()
	}
	return m
}

// checkNames compares every name with the record it leads to, and every record with its name.
func checkNames(db *meta.DB, report check.Report) error {
	return compare(db, report, func(tx *meta.Tx, report check.Report) {
		for kind, read := range named {
			records := read(tx)
			for name, id := range kind.All(tx) {
				switch has, ok := records[id]; {
				case !ok:
					report(fmt.Sprintf("name %s %q", kind, name), fmt.Sprintf("it leads to %s, which is not there", id), releaseName(db, kind, name, id))
				case has != name:
					report(fmt.Sprintf("name %s %q", kind, name), fmt.Sprintf("it leads to %s, whose name is %q", id, has), releaseName(db, kind, name, id))
				}
			}
			for id, name := range records {
				if name == "" {
					continue
				}
				if holder, err := kind.Resolve(tx, name); err != nil {
					report(fmt.Sprintf("%s %s", kind, id), fmt.Sprintf("its name %q leads nowhere", name), reserveName(db, kind, name, id))
				} else if holder != id {
					report(fmt.Sprintf("%s %s", kind, id), fmt.Sprintf("its name %q leads to %s", name, holder), nil)
				}
			}
		}
	})
}

// releaseName repairs a name that leads astray, unless it does not any more.
func releaseName(db *meta.DB, kind meta.Names, name, id string) func(context.Context) error {
	return func(context.Context) error {
		return db.Update(func(tx *meta.Tx) error {
			if has, ok := named[kind](tx)[id]; ok && has == name {
				return nil
			}
			if err := tx.Damaged(); err != nil {
				return err
			}
			return kind.Release(tx, name, id)
		})
	}
}

// reserveName repairs a record whose name leads nowhere.
func reserveName(db *meta.DB, kind meta.Names, name, id string) func(context.Context) error {
	return func(context.Context) error {
		return db.Update(func(tx *meta.Tx) error {
			if named[kind](tx)[id] != name {
				return nil
			}
			return kind.Reserve(tx, name, id)
		})
	}
}

// checkAddresses compares every address that is taken with the endpoint that has it. An address that
// an operation under way has chosen is its own until it commits.
func checkAddresses(db *meta.DB, report check.Report) error {
	return compare(db, report, func(tx *meta.Tx, report check.Report) {
		has := addressesOf(tx)
		claimed := map[string]bool{} // networks, by id
		for _, c := range tx.Claims() {
			if c.GetRef().GetKind() == "endpoint" {
				claimed[c.GetRef().GetScope()] = true
			}
		}
		taken := map[address]bool{}
		for key, ref := range addresses.All(tx) {
			a, ok := addressOf(key)
			if !ok {
				report("address "+strings.Join(meta.Parts(key), "/"), "it is no address", nil)
				continue
			}
			taken[a] = true
			if isEndpoint(ref) && !has[a] && !claimed[a.network] {
				report(fmt.Sprintf("address %s/%s", a.network, a.ip), "it is taken, and no endpoint has it", freeAddress(db, key, a))
			}
		}
		for a := range has {
			if !taken[a] {
				report(fmt.Sprintf("address %s/%s", a.network, a.ip), "an endpoint has it, and it is not taken: another may get it too", nil)
			}
		}
	})
}

type address struct {
	network string
	ip      netip.Addr
}

// isEndpoint reports whether an address is an endpoint's, and not a gateway's or reserved.
func isEndpoint(r *storev1.Ref) bool { return r.GetKind() == "endpoint" }

func addressOf(key string) (address, bool) {
	p := meta.Parts(key)
	if len(p) != 2 {
		return address{}, false
	}
	ip, err := parseAddress(p[1])
	return address{p[0], ip}, err == nil
}

// parseAddress reads an address with or without the length of its prefix.
func parseAddress(s string) (netip.Addr, error) {
	s, _, _ = strings.Cut(s, "/")
	ip, err := netip.ParseAddr(s)
	return ip.Unmap(), err
}

// addressesOf is the addresses that endpoints have.
func addressesOf(tx *meta.Tx) map[address]bool {
	has := map[address]bool{}
	for _, e := range endpoints.All(tx) {
		for _, s := range e.GetAddresses() {
			if ip, err := parseAddress(s); err == nil {
				has[address{e.GetNetworkId(), ip}] = true
			}
		}
	}
	return has
}

func freeAddress(db *meta.DB, key string, a address) func(context.Context) error {
	return func(context.Context) error {
		return db.Update(func(tx *meta.Tx) error {
			if addressesOf(tx)[a] {
				return nil
			}
			if err := tx.Damaged(); err != nil {
				return err
			}
			return addresses.Delete(tx, key)
		})
	}
}

// checkEndpoints compares every endpoint with its network and container.
func checkEndpoints(db *meta.DB, report check.Report) error {
	return compare(db, report, func(tx *meta.Tx, report check.Report) {
		for key, e := range endpoints.All(tx) {
			subject := "endpoint " + strings.Join(meta.Parts(key), "/")
			for _, lost := range lostOf(tx, e) {
				report(subject, lost, nil)
			}
		}
	})
}

func lostOf(tx *meta.Tx, e *networksv1.Endpoint) (lost []string) {
	if !networks.Has(tx, e.GetNetworkId()) {
		lost = append(lost, fmt.Sprintf("its network %s is not there", e.GetNetworkId()))
	}
	if !containers.Has(tx, e.GetContainerId()) {
		lost = append(lost, fmt.Sprintf("its container %s is not there", e.GetContainerId()))
	}
	return lost
}

// checkOperations finds operations that nobody works on: something of theirs could not be undone,
// and what they hold is refused to everybody else.
func checkOperations(db *meta.DB, report check.Report) error {
	return compare(db, report, func(tx *meta.Tx, report check.Report) {
		for op := range tx.Ops() {
			if !db.Left(op.GetId()) {
				continue
			}
			report("operation "+op.GetId(), fmt.Sprintf("%s, begun at %s, could not be undone and holds %s", op.GetVerb(), op.GetBeganAt().AsTime().Format(time.RFC3339), holds(op)), undo(db, op.GetId()))
		}
	})
}

// undo tries again, and is content if this one operation is gone.
func undo(db *meta.DB, id string) func(context.Context) error {
	return func(ctx context.Context) error {
		if err := db.Recover(ctx); err != nil && db.Left(id) {
			return err
		}
		return nil
	}
}

// holds names the first of an operation's claims, for people.
func holds(op *storev1.Op) string {
	var all []string
	for _, c := range op.GetClaims() {
		r := c.GetRef()
		all = append(all, strings.Join(slices.DeleteFunc([]string{r.GetKind(), r.GetScope(), r.GetKey()}, func(s string) bool { return s == "" }), " "))
	}
	const few = 4
	if n := len(all) - few; n > 0 {
		all = append(all[:few:few], fmt.Sprintf("%d more", n))
	}
	return strings.Join(all, ", ")
}
