package snapshots

import (
	"context"
	"fmt"
	"iter"
	"log/slog"
	"time"

	"github.com/gantryd/gantry/internal/gc"
	"github.com/gantryd/gantry/internal/meta"
	snapshotsv1 "github.com/gantryd/gantry/proto/gantry/snapshots/v1"
	systemv1 "github.com/gantryd/gantry/proto/gantry/system/v1"
	"github.com/gantryd/gantry/snapshotters"
)

// Collect tells the collector about snapshots. Writable ones and views that are recorded are roots: they go when their
// owner removes them, and not because somebody forgot to say that he needs them. A committed one stays as long as an image
// leads to it, or another stands on it that stays.
func (s *Service) Collect(c *gc.Collector) {
	c.Root(func(tx *meta.Tx, mark func(gc.Ref)) error {
		for r := range records(tx, "") {
			if r.GetKind() != snapshotsv1.Kind_KIND_COMMITTED {
				mark(ref(r.GetSnapshotter(), r.GetKey()))
			}
		}
		return tx.Damaged()
	})
	c.Edges(Kind, func(tx *meta.Tx, r gc.Ref, mark func(gc.Ref)) error {
		k := id(r.Scope, r.Key)
		if !table.Has(tx, k) { // the driver's account of it has its parent
			return nil
		}
		got, err := table.Get(tx, k)
		if err == nil && got.GetParent() != "" {
			mark(ref(r.Scope, got.GetParent()))
		}
		return err
	})
	c.Sweeper(Kind, &sweeper{s})
}

func ref(snapshotter, key string) gc.Ref { return gc.Ref{Kind: Kind, Scope: snapshotter, Key: key} }

// sweeper is the collector's way to what drivers hold.
type sweeper struct{ s *Service }

// Things ranges over all that drivers hold. A driver that does not answer is passed over: what it holds can wait.
func (w *sweeper) Things(ctx context.Context) iter.Seq2[gc.Thing, error] {
	return func(yield func(gc.Thing, error) bool) {
		names, err := w.s.known()
		if err != nil {
			yield(gc.Thing{}, err)
			return
		}
		stranger := map[string]bool{} // without a record, by table key
		for _, n := range names {
			things, err := w.s.things(ctx, n, stranger)
			if err != nil {
				slog.Warn("a storage driver was passed over by the collector", "snapshotter", n, "err", err)
				continue
			}
			for _, t := range things {
				if !yield(t, nil) {
					return
				}
			}
		}
		w.s.forget(stranger)
	}
}

// things lists one driver.
func (s *Service) things(ctx context.Context, snapshotter string, stranger map[string]bool) ([]gc.Thing, error) {
	d, err := s.drivers.Snapshotter(snapshotter)
	if err != nil {
		return nil, err
	}
	var held []snapshotters.Info
	for i, err := range d.All(ctx) {
		if err != nil {
			return nil, err
		}
		held = append(held, i)
	}
	a, err := s.account(snapshotter)
	if err != nil {
		return nil, err
	}
	out := make([]gc.Thing, 0, len(held))
	for _, i := range held {
		t := gc.Thing{Ref: ref(snapshotter, i.Key), Bytes: max(i.Bytes, 0)}
		if i.Parent != "" {
			t.Refs = []gc.Ref{ref(snapshotter, i.Parent)}
		}
		if r := a.records[i.Key]; r != nil {
			t.Since = r.GetMeta().GetCreatedAt().AsTime()
		} else {
			k := id(snapshotter, i.Key)
			stranger[k] = true
			t.Since = s.sight(k)
		}
		out = append(out, t)
	}
	return out, nil
}

// sight returns when the collector first saw a snapshot that has no record. Drivers remember no time, and what a pull
// that was interrupted has unpacked should still be there when it is tried again.
func (s *Service) sight(k string) time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	first, ok := s.sighted[k]
	if !ok {
		first = time.Now()
		s.sighted[k] = first
	}
	return first
}

// forget forgets those sighted that are no longer seen.
func (s *Service) forget(seen map[string]bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for k := range s.sighted {
		if !seen[k] {
			delete(s.sighted, k)
		}
	}
}

// Drop removes a snapshot that nothing needs.
func (w *sweeper) Drop(ctx context.Context, op *meta.Op, r gc.Ref) error {
	return w.s.Remove(ctx, op, r.Scope, r.Key)
}

// Usages sums the layers that drivers hold, which images and containers share. What a container wrote on top of them is
// the container's.
func (s *Service) Usages(ctx context.Context) ([]*systemv1.Usage, error) {
	names, err := s.known()
	if err != nil {
		return nil, err
	}
	layers := &systemv1.Usage{Kind: "layers"}
	for _, n := range names {
		if err := s.sum(ctx, n, layers); err != nil {
			return nil, fmt.Errorf("snapshotter %s: %w", n, err)
		}
	}
	return []*systemv1.Usage{layers}, nil
}

// sum adds one driver. A layer is active if something writable, or a view, stands on it however far above.
func (s *Service) sum(ctx context.Context, snapshotter string, layers *systemv1.Usage) error {
	d, err := s.drivers.Snapshotter(snapshotter)
	if err != nil {
		return err
	}
	held, active := map[string]snapshotters.Info{}, map[string]bool{}
	for i, err := range d.All(ctx) {
		if err != nil {
			return err
		}
		held[i.Key] = i
	}
	for _, i := range held {
		if i.Committed {
			continue
		}
		for p := i.Parent; p != "" && !active[p]; p = held[p].Parent {
			active[p] = true
		}
	}
	for key, i := range held {
		if !i.Committed {
			continue
		}
		if i.Bytes < 0 {
			if i, err = d.Stat(ctx, key); err != nil {
				continue // removed meanwhile, or damaged: check tells
			}
		}
		layers.Total++
		layers.Bytes += i.Bytes
		if active[key] {
			layers.Active++
		} else {
			layers.ReclaimableBytes += i.Bytes
		}
	}
	return nil
}
