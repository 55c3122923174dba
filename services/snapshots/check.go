package snapshots

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/gantryd/gantry/internal/check"
	"github.com/gantryd/gantry/internal/meta"
	snapshotsv1 "github.com/gantryd/gantry/proto/gantry/snapshots/v1"
	"github.com/gantryd/gantry/snapshotters"
)

// known returns the drivers to look into.
func (s *Service) known() ([]string, error) {
	names := map[string]bool{}
	for _, n := range s.names {
		names[n] = true
	}
	err := s.db.View(func(tx *meta.Tx) error {
		for r := range records(tx, "") {
			names[r.GetSnapshotter()] = true
		}
		for _, c := range tx.Claims() {
			if c.GetRef().GetKind() == Kind {
				names[c.GetRef().GetScope()] = true
			}
		}
		return tx.Damaged()
	})
	return slices.Sorted(maps.Keys(names)), err
}

// account is what the store says of one driver at one moment.
type account struct {
	records map[string]*snapshotsv1.Snapshot // by key
	claimed map[string]bool                  // by key: being made, used or dropped just now
}

func (s *Service) account(snapshotter string) (account, error) {
	a := account{records: map[string]*snapshotsv1.Snapshot{}, claimed: map[string]bool{}}
	return a, s.db.View(func(tx *meta.Tx) error {
		for r := range records(tx, snapshotter) {
			a.records[r.GetKey()] = r
		}
		for _, c := range tx.Claims() {
			if r := c.GetRef(); r.GetKind() == Kind && r.GetScope() == snapshotter {
				a.claimed[r.GetKey()] = true
			}
		}
		return tx.Damaged()
	})
}

// Checks compares the records with what the drivers hold.
func (s *Service) Checks() []check.Check {
	return []check.Check{{Name: "snapshots.drivers", Run: func(ctx context.Context, report check.Report) error {
		names, err := s.known()
		if err != nil {
			return err
		}
		for _, n := range names {
			if err := s.compare(ctx, n, report); err != nil {
				return fmt.Errorf("snapshotter %s: %w", n, err)
			}
		}
		return nil
	}}}
}

// compare reports where the store and a driver differ. The store is read before and after the driver: what
// differs only from one of the two accounts, or is claimed in either, is under way.
//
// A committed snapshot that the store does not know of is no difference: it was unpacked by a pull that did not finish.
// The next pull uses it, or the collector takes it.
func (s *Service) compare(ctx context.Context, snapshotter string, report check.Report) error {
	before, err := s.account(snapshotter)
	if err != nil {
		return err
	}
	d, err := s.drivers.Snapshotter(snapshotter)
	if err != nil {
		return err
	}
	held := map[string]snapshotters.Info{}
	for i, err := range d.All(ctx) {
		if err != nil {
			return err
		}
		held[i.Key] = i
	}
	after, err := s.account(snapshotter)
	if err != nil {
		return err
	}
	busy := func(key string) bool { return before.claimed[key] || after.claimed[key] }
	for key, r := range after.records {
		_, was := before.records[key]
		i, ok := held[key]
		switch {
		case !was || busy(key):
		case !ok:
			s.reportMissing(r, report)
		case i.Parent != r.GetParent() || kindOf(i) != r.GetKind():
			report(subject(snapshotter, key), fmt.Sprintf("the store has it as %s on %q, the driver as %s on %q",
				word(r.GetKind()), r.GetParent(), word(kindOf(i)), i.Parent), nil)
		}
	}
	for key, i := range held {
		if before.records[key] != nil || after.records[key] != nil || busy(key) || i.Committed {
			continue
		}
		report(subject(snapshotter, key), "the driver holds it and the store does not know of it", func(ctx context.Context) error {
			now, err := s.account(snapshotter)
			if err != nil || now.records[key] != nil || now.claimed[key] {
				return err
			}
			return s.drop(ctx, "snapshot.check", snapshotter, key)
		})
	}
	return nil
}

// reportMissing reports a record of what the driver does not hold. A layer's record may go: who needs the layer unpacks
// it again. What a container wrote is lost, and only its owner can say what now.
func (s *Service) reportMissing(r *snapshotsv1.Snapshot, report check.Report) {
	var repair func(context.Context) error
	if r.GetKind() == snapshotsv1.Kind_KIND_COMMITTED {
		repair = func(ctx context.Context) error { return s.drop(ctx, "snapshot.check", r.GetSnapshotter(), r.GetKey()) }
	}
	report(subject(r.GetSnapshotter(), r.GetKey()), "the store has a record of it and the driver does not hold it", repair)
}

func subject(snapshotter, key string) string {
	return fmt.Sprintf("snapshot %s of %s", key, snapshotter)
}

func kindOf(i snapshotters.Info) snapshotsv1.Kind {
	switch {
	case i.Committed:
		return snapshotsv1.Kind_KIND_COMMITTED
	case i.ReadOnly:
		return snapshotsv1.Kind_KIND_VIEW
	default:
		return snapshotsv1.Kind_KIND_ACTIVE
	}
}

func word(k snapshotsv1.Kind) string {
	switch k {
	case snapshotsv1.Kind_KIND_ACTIVE:
		return "writable"
	case snapshotsv1.Kind_KIND_VIEW:
		return "a view"
	case snapshotsv1.Kind_KIND_COMMITTED:
		return "committed"
	default:
		return "of no kind"
	}
}
