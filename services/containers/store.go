package containers

import (
	"slices"
	"strconv"
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/gantryd/gantry/internal/meta"
	containersv1 "github.com/gantryd/gantry/proto/gantry/containers/v1"
	storev1 "github.com/gantryd/gantry/proto/gantry/store/v1"
	typesv1 "github.com/gantryd/gantry/proto/gantry/types/v1"
)

// The kinds of what a container claims for itself.
const (
	kindContainer = "container"
	kindSnapshot  = "snapshot"
	kindImage     = "image"
	kindShim      = "shim"
	kindNetNS     = "netns"
	kindLimits    = "limits" // what a run, and its shim, were told of bounds and restarts
)

// names is the names of containers.
const names = meta.Names("container")

type tables struct {
	containers meta.Table[*containersv1.Container]
	exits      meta.Table[*typesv1.Exit]
}

func newTables() tables {
	return tables{
		containers: meta.NewTable("containers", func() *containersv1.Container { return &containersv1.Container{} }, facts),
		exits:      meta.NewTable("exits", func() *typesv1.Exit { return &typesv1.Exit{} }),
	}
}

// facts is what a container's events tell.
func facts(c *containersv1.Container) map[string]string {
	f := map[string]string{
		"image": c.GetSpec().GetImage(), "phase": c.GetStatus().GetPhase().String(), "wanted": c.GetWanted().String(),
	}
	if e := c.GetStatus().GetExit(); e != nil && c.GetStatus().GetPhase() == containersv1.Phase_PHASE_EXITED {
		f["code"] = strconv.FormatUint(uint64(e.GetCode()), 10)
		if e.GetReason() != "" {
			f["reason"] = e.GetReason()
		}
	}
	return f
}

func claim(mode storev1.Claim_Mode, kind, scope, key string) *storev1.Claim {
	return &storev1.Claim{Mode: mode, Ref: &storev1.Ref{Kind: kind, Scope: scope, Key: key}}
}

// put writes a record and its name.
func (t tables) put(tx *meta.Tx, c *containersv1.Container) error {
	if err := names.Reserve(tx, c.GetMeta().GetName(), c.GetMeta().GetId()); err != nil {
		return err
	}
	return t.containers.Put(tx, c.GetMeta().GetId(), c)
}

// drop deletes a record, its name, and keeps how it exited for those who ask late.
func (t tables) drop(tx *meta.Tx, id string, old *oldExits) error {
	if !t.containers.Has(tx, id) {
		return nil
	}
	c, err := t.containers.Get(tx, id)
	if err != nil {
		return err
	}
	if e := c.GetStatus().GetExit(); e != nil {
		if err := t.exits.Put(tx, id, e); err != nil {
			return err
		}
		if err := old.push(tx, t.exits, id); err != nil {
			return err
		}
	}
	if err := names.Release(tx, c.GetMeta().GetName(), id); err != nil {
		return err
	}
	return t.containers.Delete(tx, id)
}

const (
	// exitsFor is how long the exit of a container that is gone can be asked for.
	exitsFor = time.Hour
	// maxExits bounds how many are kept.
	maxExits = 10_000
)

// oldExits is the exits of containers that are gone, oldest first. It changes inside of
// transactions only, of which there is one at a time; what a transaction that fails took out is
// merely deleted once more.
type oldExits struct {
	mu   sync.Mutex
	list []oldExit
}

type oldExit struct {
	id string
	at time.Time
}

// load reads what earlier daemons left.
func (o *oldExits) load(tx *meta.Tx, t meta.Table[*typesv1.Exit]) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.list = nil
	for id, e := range t.All(tx) {
		o.list = append(o.list, oldExit{id, e.GetAt().AsTime()})
	}
	slices.SortFunc(o.list, func(a, b oldExit) int { return a.at.Compare(b.at) })
}

// push adds one, and deletes a few of those whose time is over.
func (o *oldExits) push(tx *meta.Tx, t meta.Table[*typesv1.Exit], id string) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.list = append(o.list, oldExit{id, time.Now()})
	for range 4 {
		if len(o.list) <= maxExits && time.Since(o.list[0].at) < exitsFor {
			return nil
		}
		if err := t.Delete(tx, o.list[0].id); err != nil {
			return err
		}
		o.list = o.list[1:]
	}
	return nil
}

// Mark names what containers need: whoever collects garbage keeps it.
func (s *Service) Mark(tx *meta.Tx, mark func(kind, scope, key string)) {
	for id, c := range s.t.containers.All(tx) {
		o := c.GetOrigin()
		mark(kindImage, "", o.GetImageId())
		mark(kindSnapshot, o.GetSnapshotter(), id)
		if o.GetChainId() != "" {
			mark(kindSnapshot, o.GetSnapshotter(), o.GetChainId())
		}
	}
}

// Users ranges over the containers made from an image, by its id (the digest of its configuration).
func (s *Service) Users(tx *meta.Tx, imageID string) []*containersv1.Container {
	var all []*containersv1.Container
	for _, c := range s.t.containers.All(tx) {
		if c.GetOrigin().GetImageId() == imageID {
			all = append(all, c)
		}
	}
	return all
}

func now() *timestamppb.Timestamp { return timestamppb.Now() }
