package volumes

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/containerd/errdefs"

	"github.com/gantryd/gantry/internal/check"
	"github.com/gantryd/gantry/internal/meta"
	"github.com/gantryd/gantry/plugins"
	"github.com/gantryd/gantry/plugins/volume"
	containersv1 "github.com/gantryd/gantry/proto/gantry/containers/v1"
	systemv1 "github.com/gantryd/gantry/proto/gantry/system/v1"
	volumesv1 "github.com/gantryd/gantry/proto/gantry/volumes/v1"
)

// Checks compares the store with the backends, and volumes with containers.
func (s *Service) Checks() []check.Check {
	return []check.Check{
		{Name: "volumes.held", Run: s.compare},
		{Name: "volumes.uses", Run: s.uses},
	}
}

// account is what the store says at one moment.
type account struct {
	volumes map[string]*volumesv1.Volume // by id
	claimed map[string]bool              // ids that somebody is at
	specs   map[string]volume.Volume
}

func (s *Service) account() (a account, err error) {
	a = account{map[string]*volumesv1.Volume{}, map[string]bool{}, map[string]volume.Volume{}}
	err = s.db.View(func(tx *meta.Tx) error {
		for id, v := range s.volumes.All(tx) {
			a.volumes[id], a.specs[id] = v, s.spec(tx, v)
		}
		for _, c := range tx.Claims() {
			if c.GetRef().GetKind() == kindVolume {
				a.claimed[c.GetRef().GetKey()] = true
			}
		}
		return tx.Damaged()
	})
	return a, err
}

// compare reads the store before and after the backends: what is claimed, or known, in either is no difference. Nothing is
// repaired: what is lost cannot be, and what nobody knows may be somebody's only copy.
func (s *Service) compare(ctx context.Context, report check.Report) error {
	before, err := s.account()
	if err != nil {
		return err
	}
	backends := []string{Default}
	for _, v := range before.volumes {
		if !slices.Contains(backends, v.GetBackend()) {
			backends = append(backends, v.GetBackend())
		}
	}
	held := map[string]map[string]bool{}
	var errs []error
	for _, name := range backends {
		if held[name], err = s.heldBy(ctx, name); err != nil {
			errs = append(errs, err)
			delete(held, name)
		}
	}
	after, err := s.account()
	if err != nil {
		return err
	}
	for name, ids := range held {
		for id := range ids {
			if before.volumes[id] == nil && after.volumes[id] == nil && !before.claimed[id] && !after.claimed[id] {
				report("volume "+id, fmt.Sprintf("the backend %s holds it, and no record knows it: copy from it what is wanted, and delete it by hand", name), nil)
			}
		}
	}
	for id, v := range after.volumes {
		if ids, asked := held[v.GetBackend()]; asked && !ids[id] && before.volumes[id] != nil && !before.claimed[id] && !after.claimed[id] {
			report("volume "+v.GetMeta().GetName(), fmt.Sprintf("the backend %s does not hold it any more (id %s): its content is lost", v.GetBackend(), id), nil)
		}
	}
	return errors.Join(errs...)
}

// heldBy lists what a backend holds.
func (s *Service) heldBy(ctx context.Context, name string) (map[string]bool, error) {
	b, err := s.drivers.Volume(name)
	if err != nil {
		return nil, err
	}
	out := map[string]bool{}
	for id, err := range b.All(ctx) {
		if err != nil {
			return nil, err
		}
		out[id] = true
	}
	return out, nil
}

// uses finds volumes that name containers that are not there, or do not name containers that were made with them.
func (s *Service) uses(_ context.Context, report check.Report) error {
	containers := meta.NewTable("containers", func() *containersv1.Container { return &containersv1.Container{} })
	return s.db.View(func(tx *meta.Tx) error {
		has := map[string]map[string]bool{} // names of volumes, by container
		for id, c := range containers.All(tx) {
			has[id] = map[string]bool{}
			for m := range wanted(c) {
				has[id][m.GetSource()] = true
			}
		}
		busy := claimed(tx)
		for id, v := range s.volumes.All(tx) {
			if busy[id] {
				continue
			}
			for _, c := range v.GetContainerIds() {
				if !has[c][v.GetMeta().GetName()] {
					report("volume "+v.GetMeta().GetName(), "it says that container "+c+" uses it, which is not so", s.mendUse(id, c, false))
				}
			}
			for c, names := range has {
				if names[v.GetMeta().GetName()] && !slices.Contains(v.GetContainerIds(), c) {
					report("volume "+v.GetMeta().GetName(), "it does not say that container "+c+" uses it, which is so", s.mendUse(id, c, true))
				}
			}
		}
		return tx.Damaged()
	})
}

// claimed are the ids of volumes that somebody is at.
func claimed(tx *meta.Tx) map[string]bool {
	ids := map[string]bool{}
	for _, c := range tx.Claims() {
		if k := c.GetRef().GetKind(); k == kindUse || k == kindVolume {
			ids[c.GetRef().GetScope()], ids[c.GetRef().GetKey()] = true, true
		}
	}
	return ids
}

// mendUse corrects one entry, if it is still wrong.
func (s *Service) mendUse(id, container string, used bool) func(context.Context) error {
	containers := meta.NewTable("containers", func() *containersv1.Container { return &containersv1.Container{} })
	return func(context.Context) error {
		return s.db.Update(func(tx *meta.Tx) error {
			if !s.volumes.Has(tx, id) {
				return nil
			}
			v, err := s.volumes.Get(tx, id)
			if err != nil {
				return err
			}
			is := false
			if containers.Has(tx, container) {
				c, err := containers.Get(tx, container)
				if err != nil {
					return err
				}
				for m := range wanted(c) {
					is = is || m.GetSource() == v.GetMeta().GetName()
				}
			}
			if is != used {
				return nil // the world has moved
			}
			return s.use(tx, id, container, used)
		})
	}
}

// Usage counts volumes, those in use, and their bytes where the backend can tell.
func (s *Service) Usage(ctx context.Context) ([]*systemv1.Usage, error) {
	a, err := s.account()
	if err != nil {
		return nil, err
	}
	out := &systemv1.Usage{Kind: "volumes"}
	counters := map[string]volume.Counter{}
	var errs []error
	for id, v := range a.volumes {
		out.Total++
		active := len(v.GetContainerIds()) > 0
		if active {
			out.Active++
		}
		c, asked := counters[v.GetBackend()]
		if !asked {
			if c, err = s.counter(ctx, v.GetBackend()); err != nil {
				errs = append(errs, err)
			}
			counters[v.GetBackend()] = c
		}
		if c == nil || a.claimed[id] {
			continue
		}
		space, err := c.Usage(ctx, a.specs[id])
		if errdefs.IsNotFound(err) {
			continue // gone meanwhile
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		out.Bytes += space.Bytes
		if !active {
			out.ReclaimableBytes += space.Bytes
		}
	}
	return []*systemv1.Usage{out}, errors.Join(errs...)
}

// counter is a backend that can count, or nil.
func (s *Service) counter(ctx context.Context, name string) (volume.Counter, error) {
	info, err := s.drivers.Info(ctx, plugins.Volume, name)
	if err != nil || !info.Has(volume.Usage) {
		return nil, err
	}
	b, err := s.drivers.Volume(name)
	if err != nil {
		return nil, err
	}
	c, _ := b.(volume.Counter)
	return c, nil
}
