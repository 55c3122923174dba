package volumes

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"regexp"
	"slices"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"

	"github.com/gantryd/gantry/internal/meta"
	"github.com/gantryd/gantry/plugins/volume"
	storev1 "github.com/gantryd/gantry/proto/gantry/store/v1"
	volumesv1 "github.com/gantryd/gantry/proto/gantry/volumes/v1"
)

// The kinds of claims.
const (
	kindVolume = "volume"       // scope: the backend; key: the id
	kindName   = "volume-name"  // key: a name that somebody is about to give
	kindUse    = "volume-use"   // scope: the volume; key: a container that is made with it
	kindMount  = "volume-mount" // scope: the volume; key: a container that runs with it
)

const (
	names          = meta.Names("volume")
	containerNames = meta.Names("container")
)

var (
	nameForm      = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,254}$`)
	anonymousForm = regexp.MustCompile(`^[0-9a-f]{64}$`)
)

type tables struct {
	volumes meta.Table[*volumesv1.Volume]
	handles meta.Table[*storev1.Handle]
}

func newTables() tables {
	return tables{
		volumes: meta.NewTable("volumes", func() *volumesv1.Volume { return &volumesv1.Volume{} }, func(v *volumesv1.Volume) map[string]string {
			return map[string]string{"name": v.GetMeta().GetName(), "backend": v.GetBackend()}
		}),
		handles: meta.NewTable("handles", func() *storev1.Handle { return &storev1.Handle{} }),
	}
}

func claim(mode storev1.Claim_Mode, kind, scope, key string) *storev1.Claim {
	return &storev1.Claim{Mode: mode, Ref: &storev1.Ref{Kind: kind, Scope: scope, Key: key}}
}

func volumeClaim(mode storev1.Claim_Mode, v *volumesv1.Volume) *storev1.Claim {
	return claim(mode, kindVolume, v.GetBackend(), v.GetMeta().GetId())
}

// newID is 64 hexadecimal digits, as containers have.
func newID() string {
	b := make([]byte, 32)
	_, _ = rand.Read(b) // never fails, says its contract
	return hex.EncodeToString(b)
}

// named finds a volume by its name alone; nil is none.
func (t *tables) named(tx *meta.Tx, name string) (*volumesv1.Volume, error) {
	id, err := names.Resolve(tx, name)
	if errdefs.IsNotFound(err) {
		return nil, nil //nolint:nilnil // none is no error here
	}
	if err != nil {
		return nil, err
	}
	return t.volumes.Get(tx, id)
}

// add writes a volume that has been made.
func (t *tables) add(tx *meta.Tx, v *volumesv1.Volume, handle []byte) error {
	id := v.GetMeta().GetId()
	if err := names.Reserve(tx, v.GetMeta().GetName(), id); err != nil {
		return err
	}
	if len(handle) > 0 {
		key := meta.Key(kindVolume, v.GetBackend(), id)
		if err := t.handles.Put(tx, key, &storev1.Handle{Ref: volumeClaim(meta.Use, v).GetRef(), Data: handle}); err != nil {
			return err
		}
	}
	return t.volumes.Put(tx, id, v)
}

// strike deletes everything about a volume.
func (t *tables) strike(tx *meta.Tx, backend, id string) error {
	if t.volumes.Has(tx, id) {
		v, err := t.volumes.Get(tx, id)
		if err != nil {
			return err
		}
		if err := names.Release(tx, v.GetMeta().GetName(), id); err != nil {
			return err
		}
	}
	return errors.Join(t.volumes.Delete(tx, id), t.handles.Delete(tx, meta.Key(kindVolume, backend, id)))
}

// use writes down that a container uses a volume, or no longer does.
func (t *tables) use(tx *meta.Tx, id, container string, used bool) error {
	if !used && !t.volumes.Has(tx, id) {
		return nil
	}
	v, err := t.volumes.Get(tx, id)
	if err != nil {
		return err
	}
	if slices.Contains(v.GetContainerIds(), container) == used {
		return nil
	}
	v = proto.CloneOf(v)
	if used {
		v.ContainerIds = append(v.ContainerIds, container)
	} else {
		v.ContainerIds = slices.DeleteFunc(v.ContainerIds, func(c string) bool { return c == container })
	}
	return t.volumes.Put(tx, id, v)
}

// spec is a volume as its backend sees it.
func (t *tables) spec(tx *meta.Tx, v *volumesv1.Volume) volume.Volume {
	out := volume.Volume{ID: v.GetMeta().GetId(), Name: v.GetMeta().GetName(), Options: v.GetOptions()}
	if key := meta.Key(kindVolume, v.GetBackend(), out.ID); t.handles.Has(tx, key) {
		if h, err := t.handles.Get(tx, key); err == nil { // a backend must do without
			out.Handle = h.GetData()
		}
	}
	return out
}

// lookup reads a volume and what its backend is told of it. One that is not there is NotFound.
func (s *Service) lookup(id string) (v *volumesv1.Volume, spec volume.Volume, err error) {
	err = s.db.View(func(tx *meta.Tx) (err error) {
		if v, err = s.volumes.Get(tx, id); err == nil {
			spec = s.spec(tx, v)
		}
		return err
	})
	return v, spec, err
}

// users names the containers that use a volume, for people.
func (t *tables) users(tx *meta.Tx, v *volumesv1.Volume) (out []string) {
	byID := map[string]string{}
	for name, id := range containerNames.All(tx) {
		byID[id] = name
	}
	for _, id := range v.GetContainerIds() {
		if name := byID[id]; name != "" {
			out = append(out, name)
		} else {
			out = append(out, meta.Short(id))
		}
	}
	slices.Sort(out)
	return out
}

// undoVolume takes back a volume that was being made, or finishes one that was being removed.
func (s *Service) undoVolume(ctx context.Context, c *storev1.Claim) error {
	backend, id := c.GetRef().GetScope(), c.GetRef().GetKey()
	spec := volume.Volume{ID: id, Name: meta.Short(id)}
	if _, known, err := s.lookup(id); err == nil {
		spec = known
	} else if !errdefs.IsNotFound(err) {
		return err
	}
	b, err := s.drivers.Volume(backend)
	if err != nil {
		return err
	}
	if err := b.Delete(ctx, spec); err != nil {
		return err
	}
	return s.db.Update(func(tx *meta.Tx) error { return s.strike(tx, backend, id) })
}

// undoName has nothing to do: a name is given in the transaction that makes its volume.
func undoName(context.Context, *storev1.Claim) error { return nil }

// undoUse finishes what a container that went had begun: letting go.
func (s *Service) undoUse(_ context.Context, c *storev1.Claim) error {
	return s.db.Update(func(tx *meta.Tx) error {
		return s.use(tx, c.GetRef().GetScope(), c.GetRef().GetKey(), false)
	})
}

// undoMount ends a use that was being begun or ended.
func (s *Service) undoMount(ctx context.Context, c *storev1.Claim) error {
	v, spec, err := s.lookup(c.GetRef().GetScope())
	if errdefs.IsNotFound(err) {
		return nil // a volume that is used is not removed: it was never there
	}
	if err != nil {
		return err
	}
	b, err := s.drivers.Volume(v.GetBackend())
	if err != nil {
		return err
	}
	return b.Unmount(ctx, spec, c.GetRef().GetKey())
}

func invalid(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, errdefs.ErrInvalidArgument)...)
}
