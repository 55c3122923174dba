package gc

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/gantryd/gantry/internal/meta"
)

// mark finds what is needed: the roots, the claims of operations other than mine, and all that they
// need. If a record could not be read it fails, for that record may need anything.
func (c *Collector) mark(mine string, things []Thing) (map[Ref]bool, error) {
	needed := map[Ref]bool{}
	err := c.db.View(func(tx *meta.Tx) error {
		m := c.marker(tx, things, needed)
		for op, claim := range tx.Claims() {
			if op.Id != mine && claim.Mode != meta.Drop {
				m.push(RefOf(claim.Ref))
			}
		}
		for _, root := range c.roots {
			if err := root(tx, m.push); err != nil {
				return err
			}
		}
		if err := m.follow(); err != nil {
			return err
		}
		if err := tx.Damaged(); err != nil {
			return fmt.Errorf("nothing is dropped while a record cannot be read: %w", err)
		}
		return nil
	})
	return needed, err
}

// under is the refs given and all that they need.
func (c *Collector) under(refs []Ref, things []Thing) (map[Ref]bool, error) {
	under := map[Ref]bool{}
	return under, c.db.View(func(tx *meta.Tx) error {
		m := c.marker(tx, things, under)
		for _, r := range refs {
			m.push(r)
		}
		return m.follow()
	})
}

// marker walks from things to what they need.
type marker struct {
	c    *Collector
	tx   *meta.Tx
	refs map[Ref][]Ref // as things say it
	seen map[Ref]bool
	todo []Ref
}

func (c *Collector) marker(tx *meta.Tx, things []Thing, seen map[Ref]bool) *marker {
	m := &marker{c: c, tx: tx, refs: map[Ref][]Ref{}, seen: seen}
	for _, t := range things {
		if len(t.Refs) > 0 {
			m.refs[t.Ref] = t.Refs
		}
	}
	return m
}

func (m *marker) push(r Ref) {
	if !m.seen[r] {
		m.seen[r] = true
		m.todo = append(m.todo, r)
	}
}

func (m *marker) follow() error {
	for len(m.todo) > 0 {
		r := m.todo[len(m.todo)-1]
		m.todo = m.todo[:len(m.todo)-1]
		if err := m.c.needs(m.tx, r, m.refs, m.push); err != nil {
			return err
		}
	}
	return nil
}

// needs marks what one thing needs.
func (c *Collector) needs(tx *meta.Tx, r Ref, refs map[Ref][]Ref, mark Mark) error {
	for _, to := range refs[r] {
		mark(to)
	}
	for _, edges := range c.edges[r.Kind] {
		if err := edges(tx, r, mark); err != nil {
			return fmt.Errorf("what %v needs: %w", r, err)
		}
	}
	return nil
}

// order sorts garbage so that things come before what they need: a parent cannot go while it has
// children. A circle, which no driver should make, goes in any order.
func (c *Collector) order(garbage []Thing) ([]Thing, error) {
	byRef := map[Ref]Thing{}
	refs := map[Ref][]Ref{}
	for _, t := range garbage {
		byRef[t.Ref], refs[t.Ref] = t, t.Refs
	}
	// a stable order, whatever the drivers list
	slices.SortFunc(garbage, func(a, b Thing) int {
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Scope, b.Scope), cmp.Compare(a.Key, b.Key))
	})
	var needed []Thing // what is needed first
	done := map[Ref]bool{}
	err := c.db.View(func(tx *meta.Tx) error {
		var visit func(Thing) error
		visit = func(t Thing) error {
			if done[t.Ref] {
				return nil
			}
			done[t.Ref] = true
			var below []Ref
			if err := c.needs(tx, t.Ref, refs, func(r Ref) { below = append(below, r) }); err != nil {
				return err
			}
			for _, r := range below {
				if next, ok := byRef[r]; ok {
					if err := visit(next); err != nil {
						return err
					}
				}
			}
			needed = append(needed, t)
			return nil
		}
		for _, t := range garbage {
			if err := visit(t); err != nil {
				return err
			}
		}
		return nil
	})
	slices.Reverse(needed)
	return needed, err
}
