package containers

import (
	"context"
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"

	"github.com/gantryd/gantry/internal/fault"
	"github.com/gantryd/gantry/internal/meta"
	"github.com/gantryd/gantry/internal/ocispec"
	containersv1 "github.com/gantryd/gantry/proto/gantry/containers/v1"
	imagesv1 "github.com/gantryd/gantry/proto/gantry/images/v1"
	storev1 "github.com/gantryd/gantry/proto/gantry/store/v1"
	typesv1 "github.com/gantryd/gantry/proto/gantry/types/v1"
	"github.com/gantryd/gantry/services/containers/admit"
	containernames "github.com/gantryd/gantry/services/containers/names"
	"github.com/gantryd/gantry/snapshotters"
)

// Create reserves everything a container needs and starts nothing.
func (s *Service) Create(ctx context.Context, name string, labels map[string]string, spec *containersv1.Spec) (c *containersv1.Container, err error) {
	defer func() { err = wrap(err, "create container %s", name) }()
	if err := admit.Check(name, labels, spec, s.runtimes()); err != nil {
		return nil, err
	}
	if err := s.CDI.Check(ocispec.CDI(spec)); err != nil {
		return nil, err
	}
	if ocispec.OwnNetwork(spec) { // else, as with docker, all ports are the host's or another's and none is published
		if err := s.Networks.Check(ctx, spec, ""); err != nil {
			return nil, err
		}
	}
	snapshotter := spec.GetSnapshotter()
	if snapshotter == "" {
		snapshotter = s.Snapshotter
	}
	image, err := s.Images.Resolve(ctx, spec.GetImage(), snapshotter)
	if errdefs.IsNotFound(err) {
		return nil, fmt.Errorf("%w; fetch it with: gantry pull %s", err, spec.GetImage())
	} else if err != nil {
		return nil, err
	}
	if c, err = s.record(name, labels, spec, image, snapshotter); err != nil {
		return nil, err
	}
	if err := s.make(ctx, c); err != nil {
		return nil, err
	}
	k, err := s.keeperOf(c)
	if err != nil {
		return nil, err
	}
	return k.last(), nil
}

// runtimes are the OCI runtimes of now: the configuration may have been read again.
func (s *Service) runtimes() []admit.Program {
	if s.Runtimes == nil {
		return nil
	}
	return s.Runtimes()
}

// make claims, prepares and records c, which gets a name if it has none.
func (s *Service) make(ctx context.Context, c *containersv1.Container) (err error) {
	id, o := c.GetMeta().GetId(), c.GetOrigin()
	drv := o.GetSnapshotter()
	claims := []*storev1.Claim{
		claim(meta.Make, kindContainer, "", id), claim(meta.Use, kindImage, "", o.GetImageId()), claim(meta.Make, kindSnapshot, drv, id),
	}
	if o.GetChainId() != "" {
		claims = append(claims, claim(meta.Use, kindSnapshot, drv, o.GetChainId()))
	}
	var op *meta.Op
	if err := s.DB.Update(func(tx *meta.Tx) error {
		if n := c.GetMeta().GetName(); n != "" {
			if err := free(tx, n); err != nil { // the commit decides; this saves the work
				return err
			}
		}
		op, err = tx.Begin("container.create", claims...)
		return err
	}); err != nil {
		return err
	}
	defer func() { s.untidyIf(op, err) }()
	defer op.End(ctx, &err)
	fault.Point("containers.create.claimed")
	wrote := make(chan error, 1)
	go func() { wrote <- s.etc(c) }() // meanwhile: new directories cost the disk as much as the driver's answer costs
	_, err = s.Snapshots.Prepare(ctx, op, drv, id, o.GetChainId(), snapshotters.Options{Volatile: c.GetSpec().GetRemoveOnExit()})
	if werr := <-wrote; err == nil {
		err = werr
	}
	if err != nil {
		return err
	}
	fault.Point("containers.create.prepared")
	if err := s.Volumes.Ensure(ctx, op, c); err != nil {
		return err
	}
	return op.Commit(func(tx *meta.Tx) error {
		if c.Meta.Name == "" {
			if err := christen(tx, c); err != nil {
				return err
			}
		}
		return s.t.put(tx, c)
	})
}

// free is Reserve's answer without its effect.
func free(tx *meta.Tx, name string) error {
	holder, err := names.Resolve(tx, name)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	return fmt.Errorf("the name %q is in use by container %s: remove that one (gantry rm), or choose another name: %w", name, meta.Short(holder), errdefs.ErrAlreadyExists)
}

// christen makes up a name.
func christen(tx *meta.Tx, c *containersv1.Container) error {
	for attempt := range 64 {
		n := containernames.Random(attempt)
		if err := names.Reserve(tx, n, c.GetMeta().GetId()); err == nil {
			c.Meta.Name = n
			return nil
		} else if !errdefs.IsAlreadyExists(err) {
			return err
		}
	}
	return fmt.Errorf("no name is left: give one with --name: %w", errdefs.ErrResourceExhausted)
}

// record is what is known of a container before anything is made for it.
func (s *Service) record(name string, labels map[string]string, spec *containersv1.Spec, image *imagesv1.Image, snapshotter string) (*containersv1.Container, error) {
	command, err := ocispec.Command(spec, image.GetConfig())
	if err != nil {
		return nil, err
	}
	volumes, err := admit.Volumes(spec, image.GetConfig(), containernames.ID)
	if err != nil {
		return nil, err
	}
	shared, err := s.shared(spec)
	if err != nil {
		return nil, err
	}
	return &containersv1.Container{
		Meta:   &typesv1.Meta{Id: containernames.ID(), Name: name, Labels: labels, CreatedAt: now()},
		Spec:   proto.CloneOf(spec),
		Wanted: containersv1.Wanted_WANTED_STOPPED,
		Status: &containersv1.Status{Phase: containersv1.Phase_PHASE_CREATED},
		Origin: &containersv1.Origin{
			Image: image.GetMeta().GetName(), ImageId: image.GetMeta().GetId(), ChainId: image.GetChainId(),
			Snapshotter: snapshotter, Config: image.GetConfig(),
		},
		Volumes: volumes,
		Command: command,
		Shared:  shared,
	}, nil
}

func invalid(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, errdefs.ErrInvalidArgument)...)
}

// wrap puts what was tried before an error. A name that is not known is left out.
func wrap(err error, format, name string) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", strings.TrimRight(fmt.Sprintf(format, name), " "), err)
}

// untidyIf has an operation that failed looked at again: undoing it may have failed too.
func (s *Service) untidyIf(op *meta.Op, err error) {
	if err != nil && s.DB.Left(op.ID()) {
		s.mess()
	}
}
