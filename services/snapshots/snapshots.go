// Package snapshots keeps the records of what storage drivers hold. It is the only caller of them.
//
// Its verbs act under the operation of whoever asks (an image being pulled, a container being created): they claim
// before they call the driver, and what came of it is recorded when that operation commits. What the
// caller has claimed already (see [Service.ClaimFor]) costs nothing again.
//
// Two kinds of snapshots live by different rules. A writable one or a view belongs to one owner, who MAKEs and
// DROPs it. A committed one is named by its content: it is only ever USEd, stays when the operation that unpacked
// it fails, and goes when the collector finds that nobody needs it.
package snapshots

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/gantryd/gantry/internal/fault"
	"github.com/gantryd/gantry/internal/meta"
	"github.com/gantryd/gantry/plugins"
	snapshotsv1 "github.com/gantryd/gantry/proto/gantry/snapshots/v1"
	storev1 "github.com/gantryd/gantry/proto/gantry/store/v1"
	typesv1 "github.com/gantryd/gantry/proto/gantry/types/v1"
	"github.com/gantryd/gantry/snapshotters"
)

// Kind is the kind of a claim on a snapshot; its scope is the driver's name, its key the snapshot's.
const Kind = "snapshot"

// Drivers finds storage drivers.
type Drivers interface {
	// Snapshotter returns the named driver. It does not wait for it.
	Snapshotter(name string) (snapshotters.Snapshotter, error)
	// Info asks what a driver can do. It may start it.
	Info(ctx context.Context, family plugins.Family, name string) (plugins.Info, error)
}

// Service is the verbs.
type Service struct {
	db      *meta.DB
	drivers Drivers
	names   []string

	mu      sync.Mutex
	pending map[string]*pending  // by table key: prepared under an operation that has not ended
	sighted map[string]time.Time // by table key: when the collector first saw what has no record
}

// pending is a record that will be written when its operation commits, unless the snapshot is gone by then.
type pending struct {
	parent string
	gone   bool
}

// New returns a Service. names are drivers to look into for what the store does not know of, beside those
// that its records name: the default driver, at least.
func New(db *meta.DB, d Drivers, names ...string) *Service {
	s := &Service{db: db, drivers: d, names: names, pending: map[string]*pending{}, sighted: map[string]time.Time{}}
	db.OnUndo(Kind, s.undo)
	return s
}

// ClaimFor is the claim on a snapshot that a verb would make: whoever begins an operation with it saves a commit.
// Prepare and View want meta.Make for the key and meta.Use for the parent, Commit meta.Use for the name and parent,
// Remove meta.Drop.
func (s *Service) ClaimFor(snapshotter, key string, mode storev1.Claim_Mode) *storev1.Claim {
	return claim(snapshotter, key, mode)
}

func claim(snapshotter, key string, mode storev1.Claim_Mode) *storev1.Claim {
	return &storev1.Claim{Ref: &storev1.Ref{Kind: Kind, Scope: snapshotter, Key: key}, Mode: mode}
}

// Rebase says whether a driver takes layers prepared on nothing and hangs them on one another at Commit:
// see the package comment of snapshotters.
func (s *Service) Rebase(ctx context.Context, snapshotter string) (bool, error) {
	return s.can(ctx, snapshotter, snapshotters.Rebase)
}

func (s *Service) can(ctx context.Context, snapshotter, capability string) (bool, error) {
	i, err := s.drivers.Info(ctx, plugins.Snapshotter, snapshotter)
	if err != nil {
		return false, err
	}
	for _, c := range i.Capabilities {
		if c == capability {
			return true, nil
		}
	}
	return false, nil
}

// Prepare claims, then makes, a writable snapshot of parent ("" is empty), and says how to mount it.
// It fails with AlreadyExists if there is one of that key.
func (s *Service) Prepare(ctx context.Context, op *meta.Op, snapshotter, key, parent string, o snapshotters.Options) ([]*typesv1.Mount, error) {
	if o.MaxBytes > 0 { // asked before anything is claimed
		ok, err := s.can(ctx, snapshotter, "quota")
		if err != nil {
			return nil, err
		}
		if !ok {
			return nil, fmt.Errorf("snapshotter %s cannot limit bytes: %w", snapshotter, errdefs.ErrNotImplemented)
		}
	}
	return s.make(ctx, op, snapshotter, key, parent, snapshotsv1.Kind_KIND_ACTIVE, o)
}

// View claims, then makes, a read-only snapshot of parent.
func (s *Service) View(ctx context.Context, op *meta.Op, snapshotter, key, parent string, labels map[string]string) ([]*typesv1.Mount, error) {
	return s.make(ctx, op, snapshotter, key, parent, snapshotsv1.Kind_KIND_VIEW, snapshotters.Options{Labels: labels})
}

func (s *Service) make(ctx context.Context, op *meta.Op, snapshotter, key, parent string, kind snapshotsv1.Kind, o snapshotters.Options) ([]*typesv1.Mount, error) {
	d, err := s.driver(snapshotter, key, parent)
	if err != nil {
		return nil, err
	}
	claims := []*storev1.Claim{claim(snapshotter, key, meta.Make)}
	if parent != "" {
		claims = append(claims, claim(snapshotter, parent, meta.Use))
	}
	if err := op.Claim(claims...); err != nil {
		return nil, err
	}
	if err := s.vacant(snapshotter, key); err != nil {
		return nil, err
	}
	fault.Point("snapshots.prepare.claimed")
	var mounts []plugins.Mount
	if kind == snapshotsv1.Kind_KIND_VIEW {
		mounts, err = d.View(ctx, key, parent, o)
	} else {
		mounts, err = d.Prepare(ctx, key, parent, o)
	}
	if err != nil {
		return nil, fmt.Errorf("snapshotter %s: %w", snapshotter, err)
	}
	fault.Point("snapshots.prepare.made")
	s.recordLater(op, &snapshotsv1.Snapshot{
		Snapshotter: snapshotter, Key: key, Parent: parent, Kind: kind,
		Meta: &typesv1.Meta{Id: key, Labels: o.Labels, CreatedAt: timestamppb.Now()},
	})
	return toMounts(mounts), nil
}

// driver finds a driver, and looks at keys before they are claimed.
func (s *Service) driver(snapshotter string, keys ...string) (snapshotters.Snapshotter, error) {
	for i, k := range keys {
		if k == "" && i > 0 { // no parent
			continue
		}
		if err := snapshotters.CheckKey(k); err != nil {
			return nil, err
		}
	}
	return s.drivers.Snapshotter(snapshotter)
}

// vacant fails if there is a record of a snapshot that is about to be made. A driver would answer for the one
// that is there, and undoing would then take away what belongs to somebody else.
func (s *Service) vacant(snapshotter, key string) error {
	return s.db.View(func(tx *meta.Tx) error {
		if !table.Has(tx, id(snapshotter, key)) {
			return nil
		}
		return fmt.Errorf("snapshot %s of %s is there already: %w", key, snapshotter, errdefs.ErrAlreadyExists)
	})
}

// recordLater writes a record when op commits, unless the snapshot is committed or removed under the same
// operation.
func (s *Service) recordLater(op *meta.Op, r *snapshotsv1.Snapshot) {
	k := id(r.GetSnapshotter(), r.GetKey())
	p := &pending{parent: r.GetParent()}
	s.mu.Lock()
	s.pending[k] = p
	s.mu.Unlock()
	op.Then(func(tx *meta.Tx) error {
		if s.settle(k, p) {
			return nil
		}
		return table.Put(tx, k, r)
	})
}

// settle forgets a pending record and says whether its snapshot is gone.
func (s *Service) settle(k string, p *pending) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pending[k] == p {
		delete(s.pending, k)
	}
	return p.gone
}

// vanish tells a pending record that its snapshot is gone, and returns the parent it would have had.
func (s *Service) vanish(k string) (parent string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p, ok := s.pending[k]; ok {
		p.gone, parent = true, p.parent
		delete(s.pending, k)
	}
	return parent
}

// Commit claims name, then freezes the writable snapshot key, of the same operation, under it; parent as
// snapshotters.Snapshotter has it. A name that is committed already is success.
func (s *Service) Commit(ctx context.Context, op *meta.Op, snapshotter, key, name, parent string) error {
	d, err := s.driver(snapshotter, key, parent)
	if err != nil {
		return err
	}
	if err := snapshotters.CheckKey(name); err != nil {
		return err
	}
	claims := []*storev1.Claim{claim(snapshotter, key, meta.Make), claim(snapshotter, name, meta.Use)}
	if parent != "" {
		claims = append(claims, claim(snapshotter, parent, meta.Use))
	}
	if err := op.Claim(claims...); err != nil {
		return err
	}
	fault.Point("snapshots.commit.claimed")
	if err := d.Commit(ctx, key, name, parent); err != nil {
		return fmt.Errorf("snapshotter %s: %w", snapshotter, err)
	}
	fault.Point("snapshots.commit.made")
	if prepared := s.vanish(id(snapshotter, key)); parent == "" {
		parent = prepared
	}
	op.Then(func(tx *meta.Tx) error { return keep(tx, snapshotter, name, parent) })
	return nil
}

// Held claims USE of a committed snapshot and says whether the driver holds it. If it does, a record is made sure
// of when op commits: another pull may have unpacked it, or one that was interrupted before it recorded it.
func (s *Service) Held(ctx context.Context, op *meta.Op, snapshotter, name string) (bool, error) {
	d, err := s.driver(snapshotter, name)
	if err != nil {
		return false, err
	}
	if err := op.Claim(claim(snapshotter, name, meta.Use)); err != nil {
		return false, err
	}
	switch _, err := d.Mounts(ctx, name); { // what is committed has none: cheaper than Stat, which counts
	case errdefs.IsNotFound(err):
		return false, nil
	case err == nil:
		return false, fmt.Errorf("snapshot %s of %s is not committed: %w", name, snapshotter, errdefs.ErrFailedPrecondition)
	case !errdefs.IsFailedPrecondition(err):
		return false, fmt.Errorf("snapshotter %s: %w", snapshotter, err)
	}
	var known bool
	if err := s.db.View(func(tx *meta.Tx) error {
		known = table.Has(tx, id(snapshotter, name))
		return nil
	}); err != nil || known {
		return known, err
	}
	i, err := d.Stat(ctx, name)
	if err != nil {
		return false, fmt.Errorf("snapshotter %s: %w", snapshotter, err)
	}
	op.Then(func(tx *meta.Tx) error { return keep(tx, snapshotter, name, i.Parent) })
	return true, nil
}

// Mounts says how to mount a writable snapshot or a view.
func (s *Service) Mounts(ctx context.Context, snapshotter, key string) ([]*typesv1.Mount, error) {
	d, err := s.driver(snapshotter, key)
	if err != nil {
		return nil, err
	}
	m, err := d.Mounts(ctx, key)
	if err != nil {
		return nil, fmt.Errorf("snapshotter %s: %w", snapshotter, err)
	}
	return toMounts(m), nil
}

// Remove claims, then drops, a snapshot. It is refused with FailedPrecondition while another stands on it.
func (s *Service) Remove(ctx context.Context, op *meta.Op, snapshotter, key string) error {
	d, err := s.driver(snapshotter, key)
	if err != nil {
		return err
	}
	if err := op.Claim(claim(snapshotter, key, meta.Drop)); err != nil {
		return err
	}
	fault.Point("snapshots.remove.claimed")
	if err := d.Remove(ctx, key); err != nil {
		return fmt.Errorf("snapshotter %s: %w", snapshotter, err)
	}
	fault.Point("snapshots.remove.done")
	k := id(snapshotter, key)
	s.vanish(k)
	op.Then(func(tx *meta.Tx) error { return table.Delete(tx, k) })
	return nil
}

// undo takes a claim back. What is recorded was not made by the operation that fails, so of a MAKE it stays; a DROP is
// finished, unless another stands on the snapshot: then nothing was dropped, and all of it is still there.
func (s *Service) undo(ctx context.Context, c *storev1.Claim) error {
	snapshotter, key := c.GetRef().GetScope(), c.GetRef().GetKey()
	k := id(snapshotter, key)
	if c.GetMode() == meta.Make {
		s.vanish(k)
		if err := s.vacant(snapshotter, key); err != nil {
			if errdefs.IsAlreadyExists(err) {
				return nil
			}
			return err
		}
	}
	d, err := s.driver(snapshotter, key)
	if err != nil {
		return err
	}
	err = d.Remove(ctx, key)
	switch {
	case c.GetMode() == meta.Drop && errdefs.IsFailedPrecondition(err):
		return nil
	case err != nil:
		return fmt.Errorf("snapshotter %s: %w", snapshotter, err)
	case c.GetMode() == meta.Drop:
		return s.db.Update(func(tx *meta.Tx) error { return table.Delete(tx, k) })
	}
	return nil
}

// Get returns a record.
func (s *Service) Get(_ context.Context, snapshotter, key string) (r *snapshotsv1.Snapshot, err error) {
	return r, s.db.View(func(tx *meta.Tx) error {
		r, err = table.Get(tx, id(snapshotter, key))
		return err
	})
}

// List returns the records of a driver, or with "" of all.
func (s *Service) List(_ context.Context, snapshotter string) (out []*snapshotsv1.Snapshot, _ error) {
	return out, s.db.View(func(tx *meta.Tx) error {
		for r := range records(tx, snapshotter) {
			out = append(out, r)
		}
		return nil
	})
}

// Usage asks the driver how much a snapshot takes, without its parents.
func (s *Service) Usage(ctx context.Context, snapshotter, key string) (snapshotters.Info, error) {
	d, err := s.driver(snapshotter, key)
	if err != nil {
		return snapshotters.Info{}, err
	}
	i, err := d.Stat(ctx, key)
	if err != nil {
		return snapshotters.Info{}, fmt.Errorf("snapshotter %s: %w", snapshotter, err)
	}
	return i, nil
}

// drop removes a snapshot that nobody knows of, under an operation of its own.
func (s *Service) drop(ctx context.Context, verb, snapshotter, key string) (err error) {
	op, err := s.db.Begin(verb, claim(snapshotter, key, meta.Drop))
	if err != nil {
		return err
	}
	defer op.End(ctx, &err)
	if err := s.Remove(ctx, op, snapshotter, key); err != nil {
		return err
	}
	return op.Commit(nil)
}

func toMounts(ms []plugins.Mount) []*typesv1.Mount {
	out := make([]*typesv1.Mount, len(ms))
	for i, m := range ms {
		out[i] = &typesv1.Mount{Type: m.Type, Source: m.Source, Target: m.Target, Options: m.Options}
	}
	return out
}
