package containers

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
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

// statusWords are the phases in the words of users.
var statusWords = map[string][]containersv1.Phase{
	"created":     {containersv1.Phase_PHASE_CREATED},
	"starting":    {containersv1.Phase_PHASE_STARTING},
	"running":     {containersv1.Phase_PHASE_RUNNING, containersv1.Phase_PHASE_STOPPING},
	"paused":      {containersv1.Phase_PHASE_PAUSED},
	"stopping":    {containersv1.Phase_PHASE_STOPPING},
	"restarting":  {containersv1.Phase_PHASE_RESTARTING},
	"exited":      {containersv1.Phase_PHASE_EXITED},
	"unreachable": {containersv1.Phase_PHASE_UNREACHABLE},
}

// matcher is a list's filters, understood. Those of one key are alternatives.
type matcher struct {
	all   bool
	tests []func(*containersv1.Container) bool
}

// newMatcher reads filters. Asking for a status or an exit code asks for containers that do not run as well.
func newMatcher(filters []*typesv1.Filter, all bool) (*matcher, error) {
	m := &matcher{all: all}
	by := map[string][]func(*containersv1.Container) bool{}
	for _, f := range filters {
		test, err := newTest(f.GetKey(), f.GetValue())
		if err != nil {
			return nil, err
		}
		m.all = m.all || f.GetKey() == "status" || f.GetKey() == "exited"
		by[f.GetKey()] = append(by[f.GetKey()], test)
	}
	for _, key := range slices.Sorted(maps.Keys(by)) {
		alternatives := by[key]
		m.tests = append(m.tests, func(c *containersv1.Container) bool {
			return slices.ContainsFunc(alternatives, func(t func(*containersv1.Container) bool) bool { return t(c) })
		})
	}
	return m, nil
}

func (m *matcher) match(c *containersv1.Container) bool {
	if !m.all && !alive(c) {
		return false
	}
	return !slices.ContainsFunc(m.tests, func(t func(*containersv1.Container) bool) bool { return !t(c) })
}

func newTest(key, value string) (func(*containersv1.Container) bool, error) {
	switch key {
	case "id":
		return func(c *containersv1.Container) bool { return strings.HasPrefix(c.GetMeta().GetId(), value) }, nil
	case "name":
		return func(c *containersv1.Container) bool { return strings.Contains(c.GetMeta().GetName(), value) }, nil
	case "label":
		k, v, valued := strings.Cut(value, "=")
		return func(c *containersv1.Container) bool {
			got, has := c.GetMeta().GetLabels()[k]
			return has && (!valued || got == v)
		}, nil
	case "status":
		phases, ok := statusWords[value]
		if !ok {
			return nil, fmt.Errorf("filter status=%s: no such status; %s are known: %w", value,
				strings.Join(slices.Sorted(maps.Keys(statusWords)), ", "), errdefs.ErrInvalidArgument)
		}
		return func(c *containersv1.Container) bool { return slices.Contains(phases, c.GetStatus().GetPhase()) }, nil
	case "exited":
		code, err := strconv.ParseUint(value, 10, 32)
		if err != nil {
			return nil, fmt.Errorf("filter exited=%s: want an exit code: %w", value, errdefs.ErrInvalidArgument)
		}
		return func(c *containersv1.Container) bool {
			return c.GetStatus().GetPhase() == containersv1.Phase_PHASE_EXITED && uint64(c.GetStatus().GetExit().GetCode()) == code
		}, nil
	case "ancestor":
		return func(c *containersv1.Container) bool { return madeFrom(c, value) }, nil
	}
	return nil, fmt.Errorf("filter %q: no such key; id, name, label, status, exited and ancestor are known: %w", key, errdefs.ErrInvalidArgument)
}

// madeFrom reports whether image, in any of the words in which people name one, is what c was made from.
func madeFrom(c *containersv1.Container, image string) bool {
	o := c.GetOrigin()
	if image == "" {
		return false
	}
	if image == c.GetSpec().GetImage() || image == o.GetImage() || image == o.GetImageId() {
		return true
	}
	if digits := strings.TrimPrefix(o.GetImageId(), "sha256:"); len(image) >= 4 && strings.HasPrefix(digits, strings.TrimPrefix(image, "sha256:")) {
		return true
	}
	full := o.GetImage()
	return full == "docker.io/library/"+image || full == "docker.io/"+image ||
		full == "docker.io/library/"+image+":latest" || full == "docker.io/"+image+":latest" || full == image+":latest"
}

func now() *timestamppb.Timestamp { return timestamppb.Now() }
