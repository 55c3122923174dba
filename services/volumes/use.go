package volumes

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/internal/fault"
	"github.com/gantryd/gantry/internal/meta"
	"github.com/gantryd/gantry/plugins/volume"
	containersv1 "github.com/gantryd/gantry/proto/gantry/containers/v1"
	storev1 "github.com/gantryd/gantry/proto/gantry/store/v1"
	typesv1 "github.com/gantryd/gantry/proto/gantry/types/v1"
	volumesv1 "github.com/gantryd/gantry/proto/gantry/volumes/v1"
)

// wanted are the volumes that a container is made with, by name.
func wanted(c *containersv1.Container) iter.Seq[*containersv1.VolumeMount] {
	return func(yield func(*containersv1.VolumeMount) bool) {
		for _, m := range c.GetVolumes() {
			if m.GetKind() == containersv1.VolumeMount_KIND_VOLUME && !yield(m) {
				return
			}
		}
	}
}

// isAnonymous says whether nobody has named a volume of c: its name looks like an id, and the user did not say it.
func isAnonymous(c *containersv1.Container, name string) bool {
	return anonymousForm.MatchString(name) && !slices.ContainsFunc(c.GetSpec().GetVolumes(), func(m *containersv1.VolumeMount) bool {
		return m.GetSource() == name
	})
}

// Ensure makes those of c's volumes that are not there, and writes down, with op, that c uses them all. op may be
// c's creation, or another chance to make what is missing.
func (s *Service) Ensure(ctx context.Context, op *meta.Op, c *containersv1.Container) error {
	var names []string
	for m := range wanted(c) {
		if !nameForm.MatchString(m.GetSource()) {
			return invalid("volume %.300q: want a name of %s", m.GetSource(), nameForm)
		}
		if !slices.Contains(names, m.GetSource()) {
			names = append(names, m.GetSource())
		}
	}
	made, ids, err := s.ensureClaims(op, c, names)
	if err != nil {
		return fmt.Errorf("volumes: %w", err)
	}
	fault.Point("volumes.ensure.claimed")
	for _, v := range made {
		b, err := s.drivers.Volume(v.GetBackend())
		if err != nil {
			return err
		}
		got, err := b.Create(ctx, volume.Volume{ID: v.GetMeta().GetId(), Name: v.GetMeta().GetName()})
		if err != nil {
			return err
		}
		v.Mountpoint = got.Path
		op.Then(func(tx *meta.Tx) error { return s.add(tx, v, got.Handle) })
	}
	container := c.GetMeta().GetId()
	op.Then(func(tx *meta.Tx) error {
		for _, id := range ids {
			if err := s.use(tx, id, container, true); err != nil {
				return err
			}
		}
		return nil
	})
	return nil
}

// ensureClaims claims the volumes of c that have these names, and returns their ids, and those that are still to be made.
func (s *Service) ensureClaims(op *meta.Op, c *containersv1.Container, names []string) (made []*volumesv1.Volume, ids []string, err error) {
	err = s.db.Update(func(tx *meta.Tx) error {
		made, ids = nil, nil // a transaction may be run again
		for _, name := range names {
			v, err := s.named(tx, name)
			if err != nil {
				return err
			}
			claims := []*storev1.Claim{nil}
			if v != nil {
				claims[0] = volumeClaim(meta.Use, v)
			} else {
				v = fresh(&volumesv1.Volume{Meta: &typesv1.Meta{Name: name}, Anonymous: isAnonymous(c, name)})
				made = append(made, v)
				claims = []*storev1.Claim{claim(meta.Make, kindName, "", name), volumeClaim(meta.Make, v)}
			}
			ids = append(ids, v.GetMeta().GetId())
			if err := op.ClaimIn(tx, claims...); err != nil {
				return err
			}
		}
		return nil
	})
	return made, ids, err
}

// used is one volume of a container.
type used struct {
	record *volumesv1.Volume
	spec   volume.Volume
	at     []*containersv1.VolumeMount // where
}

// of reads c's volumes, each once. Those that are not there are left out, or an error.
func (s *Service) of(tx *meta.Tx, c *containersv1.Container, all bool) (out []*used, err error) {
	byName := map[string]*used{}
	for m := range wanted(c) {
		if u := byName[m.GetSource()]; u != nil {
			u.at = append(u.at, m)
			continue
		}
		v, err := s.named(tx, m.GetSource())
		if err != nil {
			return nil, err
		}
		if v == nil {
			if all {
				return nil, fmt.Errorf("volume %s: it is not there any more: %w", m.GetSource(), errdefs.ErrNotFound)
			}
			continue
		}
		u := &used{record: v, spec: s.spec(tx, v), at: []*containersv1.VolumeMount{m}}
		byName[m.GetSource()] = u
		out = append(out, u)
	}
	return out, nil
}

// MountClaims are what Mount is going to claim: an operation that begins with them saves a commit.
func (s *Service) MountClaims(tx *meta.Tx, c *containersv1.Container) []*storev1.Claim {
	all, err := s.of(tx, c, false)
	if err != nil {
		return nil // Mount will say it
	}
	var out []*storev1.Claim
	for _, u := range all {
		out = append(out, volumeClaim(meta.Use, u.record), claim(meta.Make, kindMount, u.spec.ID, c.GetMeta().GetId()))
	}
	return out
}

// DropClaims are what Unmount is going to claim, and Release too if forget is set.
func (s *Service) DropClaims(tx *meta.Tx, c *containersv1.Container, forget bool) []*storev1.Claim {
	all, err := s.of(tx, c, false)
	if err != nil {
		return nil
	}
	var out []*storev1.Claim
	for _, u := range all {
		out = append(out, claim(meta.Drop, kindMount, u.spec.ID, c.GetMeta().GetId()))
		if forget {
			out = append(out, claim(meta.Drop, kindUse, u.spec.ID, c.GetMeta().GetId()))
		}
	}
	return out
}

// Mount makes c's volumes usable, and says how to mount them: in the order in which c names them, with the path in the
// container as the target. That one is read-only is for the caller to add.
func (s *Service) Mount(ctx context.Context, op *meta.Op, c *containersv1.Container) ([]*typesv1.Mount, error) {
	var all []*used
	if err := s.db.Update(func(tx *meta.Tx) (err error) {
		if all, err = s.of(tx, c, true); err != nil {
			return err
		}
		return op.ClaimIn(tx, s.MountClaims(tx, c)...)
	}); err != nil {
		return nil, fmt.Errorf("mount volumes: %w", err)
	}
	fault.Point("volumes.mount.claimed")
	at := map[*containersv1.VolumeMount]*typesv1.Mount{}
	for _, u := range all {
		b, err := s.drivers.Volume(u.record.GetBackend())
		if err != nil {
			return nil, err
		}
		m, err := b.Mount(ctx, u.spec, c.GetMeta().GetId())
		if err != nil {
			return nil, err
		}
		for _, where := range u.at {
			p := m.Proto()
			p.Target, p.Options = where.GetTarget(), slices.Clone(p.GetOptions())
			at[where] = p
		}
	}
	out := make([]*typesv1.Mount, 0, len(at))
	for m := range wanted(c) {
		out = append(out, at[m])
	}
	return out, nil
}

// Unmount ends c's use of its volumes. Of what is not mounted, or not there, it succeeds.
func (s *Service) Unmount(ctx context.Context, op *meta.Op, c *containersv1.Container) error {
	var all []*used
	if err := s.db.Update(func(tx *meta.Tx) (err error) {
		if all, err = s.of(tx, c, false); err != nil {
			return err
		}
		return op.ClaimIn(tx, s.DropClaims(tx, c, false)...)
	}); err != nil {
		return fmt.Errorf("unmount volumes: %w", err)
	}
	var errs []error
	for _, u := range all {
		b, err := s.drivers.Volume(u.record.GetBackend())
		if err == nil {
			err = b.Unmount(ctx, u.spec, c.GetMeta().GetId())
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// othersThan reports whether a container other than this one uses the volume.
func (u *used) othersThan(container string) bool {
	return slices.ContainsFunc(u.record.GetContainerIds(), func(id string) bool { return id != container })
}

// Release says that c goes for good, and takes the volumes that nobody named with it if anonymous is set and nobody else
// uses them. Unmount has been called.
func (s *Service) Release(ctx context.Context, op *meta.Op, c *containersv1.Container, anonymous bool) error {
	container := c.GetMeta().GetId()
	all, gone, err := s.releaseClaims(op, c, anonymous)
	if err != nil {
		return fmt.Errorf("release volumes: %w", err)
	}
	fault.Point("volumes.release.claimed")
	for _, u := range gone {
		b, err := s.drivers.Volume(u.record.GetBackend())
		if err != nil {
			return err
		}
		if err := b.Delete(ctx, u.spec); err != nil {
			return err
		}
	}
	op.Then(func(tx *meta.Tx) error {
		for _, u := range all {
			if err := s.use(tx, u.spec.ID, container, false); err != nil {
				return err
			}
		}
		for _, u := range gone {
			if err := s.strike(tx, u.record.GetBackend(), u.spec.ID); err != nil {
				return err
			}
		}
		return nil
	})
	return nil
}

// releaseClaims claims what Release drops: the uses of all volumes of c, and those volumes that go with it.
func (s *Service) releaseClaims(op *meta.Op, c *containersv1.Container, anonymous bool) (all, gone []*used, err error) {
	container := c.GetMeta().GetId()
	err = s.db.Update(func(tx *meta.Tx) (err error) {
		gone = nil
		if all, err = s.of(tx, c, false); err != nil {
			return err
		}
		for _, u := range all {
			if err := op.ClaimIn(tx, claim(meta.Drop, kindUse, u.spec.ID, container)); err != nil {
				return err
			}
			if !anonymous || !u.record.GetAnonymous() || u.othersThan(container) {
				continue
			}
			err := op.ClaimIn(tx, volumeClaim(meta.Drop, u.record))
			if errdefs.IsAborted(err) { // somebody is about to use it: it stays
				continue
			}
			if err != nil {
				return err
			}
			gone = append(gone, u)
		}
		return nil
	})
	return all, gone, err
}
