package volumes

import (
	"context"
	"fmt"
	"iter"
	"maps"
	"strings"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/gantryd/gantry/internal/fault"
	"github.com/gantryd/gantry/internal/filter"
	"github.com/gantryd/gantry/internal/meta"
	"github.com/gantryd/gantry/plugins/volume"
	storev1 "github.com/gantryd/gantry/proto/gantry/store/v1"
	typesv1 "github.com/gantryd/gantry/proto/gantry/types/v1"
	volumesv1 "github.com/gantryd/gantry/proto/gantry/volumes/v1"
)

// Create makes a volume. Of want, the name counts ("": 64 hexadecimal digits, and the volume is anonymous), the backend
// ("": Default), its options and the labels. A volume of that name, backend and options that is there already is the answer;
// another one of that name is AlreadyExists.
func (s *Service) Create(ctx context.Context, want *volumesv1.Volume) (_ *volumesv1.Volume, err error) {
	v := fresh(want)
	name := v.GetMeta().GetName()
	if !nameForm.MatchString(name) {
		return nil, invalid("create volume %.300q: want a name of %s", name, nameForm)
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("create volume %s: %w", name, err)
		}
	}()
	b, err := s.drivers.Volume(v.GetBackend())
	if err != nil {
		return nil, err
	}
	var op *meta.Op
	var old *volumesv1.Volume
	if err := s.db.Update(func(tx *meta.Tx) (err error) {
		if old, err = s.named(tx, name); err != nil || old != nil {
			return err
		}
		op, err = tx.Begin("volume.create", claim(meta.Make, kindName, "", name), volumeClaim(meta.Make, v))
		return err
	}); err != nil {
		return nil, err
	}
	if old != nil {
		return old, same(old, v)
	}
	defer op.End(ctx, &err)
	fault.Point("volumes.create.claimed")
	c, err := b.Create(ctx, volume.Volume{ID: v.GetMeta().GetId(), Name: name, Options: v.GetOptions()})
	if err != nil {
		return nil, err
	}
	fault.Point("volumes.create.made")
	v.Mountpoint = c.Path
	return v, op.Commit(func(tx *meta.Tx) error { return s.add(tx, v, c.Handle) })
}

// fresh is a volume like want that is not there yet.
func fresh(want *volumesv1.Volume) *volumesv1.Volume {
	v := &volumesv1.Volume{
		Meta: &typesv1.Meta{
			Id: newID(), Name: want.GetMeta().GetName(), Labels: want.GetMeta().GetLabels(), CreatedAt: timestamppb.Now(),
		},
		Backend: want.GetBackend(), Options: want.GetOptions(), Anonymous: want.GetAnonymous(),
	}
	if v.GetBackend() == "" {
		v.Backend = Default
	}
	if v.GetMeta().GetName() == "" {
		v.Meta.Name, v.Anonymous = v.Meta.Id, true
	}
	return v
}

// same says whether old is what was asked for.
func same(old, want *volumesv1.Volume) error {
	switch {
	case old.GetBackend() != want.GetBackend():
		return fmt.Errorf("a volume of that name is there, of the backend %s: remove it (gantry volume rm %s), or choose another name: %w",
			old.GetBackend(), old.GetMeta().GetName(), errdefs.ErrAlreadyExists)
	case !maps.Equal(old.GetOptions(), want.GetOptions()):
		return fmt.Errorf("a volume of that name is there, with other options: remove it (gantry volume rm %s), or choose another name: %w",
			old.GetMeta().GetName(), errdefs.ErrAlreadyExists)
	}
	return nil
}

// Get returns a volume by id, name or unambiguous beginning of its id.
func (s *Service) Get(ref string) (v *volumesv1.Volume, err error) {
	err = s.db.View(func(tx *meta.Tx) error {
		v, err = meta.Resolve(tx, s.volumes, names, ref)
		return err
	})
	return v, err
}

// keys are what volumes are filtered by.
var keys = filter.Keys[*volumesv1.Volume]{
	"id":        filter.ID(func(v *volumesv1.Volume) string { return v.GetMeta().GetId() }),
	"name":      filter.Name(func(v *volumesv1.Volume) []string { return []string{v.GetMeta().GetName()} }),
	"driver":    filter.Is((*volumesv1.Volume).GetBackend),
	"label":     filter.Label(func(v *volumesv1.Volume) map[string]string { return v.GetMeta().GetLabels() }),
	"dangling":  filter.Bool(func(v *volumesv1.Volume) bool { return len(v.GetContainerIds()) == 0 }),
	"anonymous": filter.Bool((*volumesv1.Volume).GetAnonymous),
}

// All ranges over the volumes that match, by name.
func (s *Service) All(filters []*typesv1.Filter) iter.Seq2[*volumesv1.Volume, error] {
	match, err := filter.New("volumes", keys, filters)
	if err != nil {
		return func(yield func(*volumesv1.Volume, error) bool) { yield(nil, err) }
	}
	return meta.ByName(s.db, s.volumes, match)
}

// Remove destroys a volume that no container uses, with its content. Removing what is not there succeeds.
func (s *Service) Remove(ctx context.Context, ref string) (err error) {
	var v *volumesv1.Volume
	var op *meta.Op
	var spec volume.Volume
	err = s.db.Update(func(tx *meta.Tx) (err error) {
		if v, err = meta.Resolve(tx, s.volumes, names, ref); err != nil {
			return err
		}
		if by := s.users(tx, v); len(by) > 0 {
			return fmt.Errorf("it is in use by %s: remove first what uses it (gantry rm): %w", list(by), errdefs.ErrFailedPrecondition)
		}
		spec = s.spec(tx, v)
		op, err = tx.Begin("volume.remove", volumeClaim(meta.Drop, v))
		return err
	})
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("remove volume %s: %w", ref, err)
	}
	defer op.End(ctx, &err)
	fault.Point("volumes.remove.claimed")
	b, err := s.drivers.Volume(v.GetBackend())
	if err == nil {
		err = b.Delete(ctx, spec)
	}
	if err != nil {
		return fmt.Errorf("remove volume %s: %w", ref, err)
	}
	fault.Point("volumes.remove.deleted")
	return op.Commit(func(tx *meta.Tx) error { return s.strike(tx, v.GetBackend(), spec.ID) })
}

// list names containers, and not too many of them.
func list(who []string) string {
	const most = 5
	out := "container " + who[0]
	if len(who) > 1 {
		out = "containers " + strings.Join(who[:min(len(who), most)], ", ")
	}
	if n := len(who) - most; n > 0 {
		out += fmt.Sprintf(" and %d more", n)
	}
	return out
}

// Claim returns a claim on the volume that ref means, for who builds operations of volumes and more.
func (s *Service) Claim(tx *meta.Tx, ref string, mode storev1.Claim_Mode) (*storev1.Claim, error) {
	v, err := meta.Resolve(tx, s.volumes, names, ref)
	if err != nil {
		return nil, err
	}
	return volumeClaim(mode, v), nil
}
