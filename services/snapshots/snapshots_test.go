package snapshots

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/gantryd/gantry/internal/gc"
	"github.com/gantryd/gantry/internal/meta"
	"github.com/gantryd/gantry/internal/rpc"
	"github.com/gantryd/gantry/plugins"
	snapshotsv1 "github.com/gantryd/gantry/proto/gantry/snapshots/v1"
	storev1 "github.com/gantryd/gantry/proto/gantry/store/v1"
	"github.com/gantryd/gantry/snapshotters"
)

// driver is a storage driver with no storage.
type driver struct {
	mu    sync.Mutex
	held  map[string]snapshotters.Info
	calls []string
	fail  error
}

func (d *driver) call(verb string, keys ...string) error {
	d.calls = append(d.calls, strings.Join(append([]string{verb}, keys...), " "))
	return d.fail
}

func (d *driver) make(verb, key, parent string, o snapshotters.Options) ([]plugins.Mount, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.call(verb, key, parent); err != nil {
		return nil, err
	}
	if parent != "" && !d.held[parent].Committed {
		return nil, fmt.Errorf("parent %q: %w", parent, errdefs.ErrNotFound)
	}
	if _, ok := d.held[key]; !ok {
		d.held[key] = snapshotters.Info{Key: key, Parent: parent, ReadOnly: verb == "view", Labels: o.Labels, Bytes: -1, Inodes: -1}
	}
	return []plugins.Mount{{Type: "bind", Source: "/" + key, Options: []string{"bind"}}}, nil
}

func (d *driver) Prepare(_ context.Context, key, parent string, o snapshotters.Options) ([]plugins.Mount, error) {
	return d.make("prepare", key, parent, o)
}

func (d *driver) View(_ context.Context, key, parent string, o snapshotters.Options) ([]plugins.Mount, error) {
	return d.make("view", key, parent, o)
}

func (d *driver) Mounts(_ context.Context, key string) ([]plugins.Mount, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	i, ok := d.held[key]
	switch {
	case d.fail != nil:
		return nil, d.fail
	case !ok:
		return nil, errdefs.ErrNotFound
	case i.Committed:
		return nil, errdefs.ErrFailedPrecondition
	}
	return []plugins.Mount{{Type: "bind", Source: "/" + key}}, nil
}

func (d *driver) Commit(_ context.Context, key, name, parent string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.call("commit", key, name, parent); err != nil {
		return err
	}
	if parent == "" {
		parent = d.held[key].Parent
	}
	if !d.held[name].Committed {
		d.held[name] = snapshotters.Info{Key: name, Parent: parent, Committed: true, Bytes: 100, Inodes: 3}
	}
	delete(d.held, key)
	return nil
}

func (d *driver) Remove(_ context.Context, key string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.call("remove", key); err != nil {
		return err
	}
	for _, i := range d.held {
		if i.Parent == key {
			return fmt.Errorf("%s stands on it: %w", i.Key, errdefs.ErrFailedPrecondition)
		}
	}
	delete(d.held, key)
	return nil
}

func (d *driver) Stat(_ context.Context, key string) (snapshotters.Info, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	i, ok := d.held[key]
	if !ok {
		return i, errdefs.ErrNotFound
	}
	if i.Bytes < 0 {
		i.Bytes, i.Inodes = 10, 1
	}
	return i, d.fail
}

func (d *driver) All(context.Context) iter.Seq2[snapshotters.Info, error] {
	d.mu.Lock()
	defer d.mu.Unlock()
	all, fail := maps.Clone(d.held), d.fail
	return func(yield func(snapshotters.Info, error) bool) {
		if fail != nil {
			yield(snapshotters.Info{}, fail)
			return
		}
		for _, k := range slices.Sorted(maps.Keys(all)) {
			if !yield(all[k], nil) {
				return
			}
		}
	}
}

func (d *driver) keys() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Sorted(maps.Keys(d.held))
}

// house is a store with drivers.
type house struct {
	*testing.T
	path    string
	db      *meta.DB
	s       *Service
	drivers map[string]*driver
	caps    map[string][]string
}

func (h *house) Snapshotter(name string) (snapshotters.Snapshotter, error) {
	d, ok := h.drivers[name]
	if !ok {
		return nil, fmt.Errorf("snapshotter %s: %w", name, errdefs.ErrNotFound)
	}
	return d, nil
}

func (h *house) Info(_ context.Context, f plugins.Family, name string) (plugins.Info, error) {
	if _, err := h.Snapshotter(name); err != nil {
		return plugins.Info{}, err
	}
	return plugins.Info{Family: f, Name: name, Capabilities: h.caps[name]}, nil
}

func newHouse(t *testing.T) *house {
	h := &house{
		T: t, path: filepath.Join(t.TempDir(), "db"),
		drivers: map[string]*driver{"a": {held: map[string]snapshotters.Info{}}, "b": {held: map[string]snapshotters.Info{}}},
		caps:    map[string][]string{"a": {snapshotters.Rebase}},
	}
	h.open()
	return h
}

// open starts the daemon, in so far as it matters here.
func (h *house) open() {
	h.Helper()
	db, err := meta.Open(h.path, meta.Strict(time.Second))
	if err != nil {
		h.Fatal(err)
	}
	h.db, h.s = db, New(db, h, "a")
	h.Cleanup(func() { _ = db.Close() })
}

// die ends the daemon and starts another.
func (h *house) die() {
	h.Helper()
	if err := h.db.Close(); err != nil {
		h.Fatal(err)
	}
	h.open()
	if err := h.db.Recover(h.Context()); err != nil {
		h.Fatal(err)
	}
}

func (h *house) begin(claims ...*storev1.Claim) *meta.Op {
	h.Helper()
	op, err := h.db.Begin("test", claims...)
	if err != nil {
		h.Fatal(err)
	}
	return op
}

// layer records a committed snapshot.
func (h *house) layer(name, parent string) {
	h.Helper()
	op := h.begin()
	if _, err := h.s.Prepare(h.Context(), op, "a", "tmp "+name, "", snapshotters.Options{}); err != nil {
		h.Fatal(err)
	}
	if err := h.s.Commit(h.Context(), op, "a", "tmp "+name, name, parent); err != nil {
		h.Fatal(err)
	}
	if err := op.Commit(nil); err != nil {
		h.Fatal(err)
	}
}

func (h *house) container(key, parent string) {
	h.Helper()
	op := h.begin()
	if _, err := h.s.Prepare(h.Context(), op, "a", key, parent, snapshotters.Options{}); err != nil {
		h.Fatal(err)
	}
	if err := op.Commit(nil); err != nil {
		h.Fatal(err)
	}
}

func (h *house) records() (out []string) {
	h.Helper()
	all, err := h.s.List(h.Context(), "a")
	if err != nil {
		h.Fatal(err)
	}
	for _, r := range all {
		out = append(out, r.GetKey())
	}
	return out
}

func (h *house) agree(want ...string) {
	h.Helper()
	if got := h.records(); !slices.Equal(got, want) {
		h.Errorf("records %v, want %v", got, want)
	}
	if got := h.drivers["a"].keys(); !slices.Equal(got, want) {
		h.Errorf("driver %v, want %v", got, want)
	}
}

func TestLife(t *testing.T) {
	h := newHouse(t)
	h.layer("l1", "")
	h.layer("l2", "l1")
	h.agree("l1", "l2")
	op := h.begin(h.s.ClaimFor("a", "c", meta.Make), h.s.ClaimFor("a", "l2", meta.Use))
	before := h.db.Revision()
	mounts, err := h.s.Prepare(t.Context(), op, "a", "c", "l2", snapshotters.Options{Labels: map[string]string{"l": "v"}})
	if err != nil || len(mounts) != 1 || mounts[0].GetSource() != "/c" {
		t.Fatal(mounts, err)
	}
	if n := len(op.Claims()); n != 2 || h.db.Revision() != before {
		t.Errorf("%d claims after prepare, want the 2 that were begun with", n)
	}
	if got := h.records(); slices.Contains(got, "c") {
		t.Errorf("recorded before its operation has committed: %v", got)
	}
	if err := op.Commit(nil); err != nil {
		t.Fatal(err)
	}
	h.agree("c", "l1", "l2")
	r, err := h.s.Get(t.Context(), "a", "c")
	if err != nil || r.GetParent() != "l2" || r.GetKind() != snapshotsv1.Kind_KIND_ACTIVE || r.GetMeta().GetLabels()["l"] != "v" || r.GetMeta().GetId() != "c" || r.GetMeta().GetCreatedAt() == nil {
		t.Errorf("%v, %v", r, err)
	}
	if r, err := h.s.Get(t.Context(), "a", "l2"); err != nil || r.GetParent() != "l1" || r.GetKind() != snapshotsv1.Kind_KIND_COMMITTED {
		t.Errorf("%v, %v", r, err)
	}
	op = h.begin()
	if err := h.s.Remove(t.Context(), op, "a", "c"); err != nil {
		t.Fatal(err)
	}
	if err := op.Commit(nil); err != nil {
		t.Fatal(err)
	}
	h.agree("l1", "l2")
}

func TestCommitKeepsTheParentOfPrepare(t *testing.T) {
	h := newHouse(t)
	h.layer("l1", "")
	op := h.begin()
	if _, err := h.s.Prepare(t.Context(), op, "a", "tmp", "l1", snapshotters.Options{}); err != nil {
		t.Fatal(err)
	}
	if err := h.s.Commit(t.Context(), op, "a", "tmp", "l2", ""); err != nil {
		t.Fatal(err)
	}
	if err := op.Commit(nil); err != nil {
		t.Fatal(err)
	}
	if r, err := h.s.Get(t.Context(), "a", "l2"); err != nil || r.GetParent() != "l1" {
		t.Errorf("%v, %v", r, err)
	}
}

// TestAbort undoes each verb.
func TestAbort(t *testing.T) {
	for name, c := range map[string]struct {
		do   func(h *house, op *meta.Op) error
		want []string // records and driver
		also []string // the driver alone: what is named by its content stays
	}{
		"prepare": {func(h *house, op *meta.Op) error {
			_, err := h.s.Prepare(h.Context(), op, "a", "new", "l1", snapshotters.Options{})
			return err
		}, []string{"c", "l1"}, nil},
		"view": {func(h *house, op *meta.Op) error {
			_, err := h.s.View(h.Context(), op, "a", "new", "l1", nil)
			return err
		}, []string{"c", "l1"}, nil},
		"commit": {func(h *house, op *meta.Op) error {
			if _, err := h.s.Prepare(h.Context(), op, "a", "new", "", snapshotters.Options{}); err != nil {
				return err
			}
			return h.s.Commit(h.Context(), op, "a", "new", "l2", "l1")
		}, []string{"c", "l1"}, []string{"l2"}},
		"remove is finished": {func(h *house, op *meta.Op) error {
			return h.s.Remove(h.Context(), op, "a", "c")
		}, []string{"l1"}, nil},
		"remove of what is stood on": {func(h *house, op *meta.Op) error {
			if err := h.s.Remove(h.Context(), op, "a", "l1"); !errdefs.IsFailedPrecondition(err) {
				return fmt.Errorf("removed: %w", err)
			}
			return nil
		}, []string{"c", "l1"}, nil},
		"a key that is there": {func(h *house, op *meta.Op) error {
			if _, err := h.s.Prepare(h.Context(), op, "a", "c", "l1", snapshotters.Options{}); !errdefs.IsAlreadyExists(err) {
				return fmt.Errorf("prepared: %w", err)
			}
			return nil
		}, []string{"c", "l1"}, nil},
	} {
		for how, end := range map[string]func(h *house, op *meta.Op) error{
			"abort": func(h *house, op *meta.Op) error { return op.Abort(h.Context()) },
			"crash": func(h *house, _ *meta.Op) error { h.die(); return nil },
		} {
			t.Run(name+"/"+how, func(t *testing.T) {
				h := newHouse(t)
				h.layer("l1", "")
				h.container("c", "l1")
				op := h.begin()
				if err := c.do(h, op); err != nil {
					t.Fatal(err)
				}
				if err := end(h, op); err != nil {
					t.Fatal(err)
				}
				if got := h.records(); !slices.Equal(got, c.want) {
					t.Errorf("records %v, want %v", got, c.want)
				}
				want := slices.Sorted(slices.Values(append(slices.Clone(c.want), c.also...)))
				if got := h.drivers["a"].keys(); !slices.Equal(got, want) {
					t.Errorf("driver %v, want %v", got, want)
				}
				if n := len(h.s.pending); n != 0 {
					t.Errorf("%d pending records are left", n)
				}
				if err := h.db.View(func(tx *meta.Tx) error {
					for op := range tx.Ops() {
						t.Errorf("left in the journal: %v", op)
					}
					return nil
				}); err != nil {
					t.Fatal(err)
				}
				if found := h.check(); len(found) != 0 {
					t.Errorf("check: %v", found)
				}
			})
		}
	}
}

// TestUndoWaits: what cannot be undone now stays claimed, and is undone when the driver is back.
func TestUndoWaits(t *testing.T) {
	h := newHouse(t)
	op := h.begin()
	if _, err := h.s.Prepare(t.Context(), op, "a", "c", "", snapshotters.Options{}); err != nil {
		t.Fatal(err)
	}
	h.drivers["a"].fail = errdefs.ErrUnavailable
	if err := op.Abort(t.Context()); err == nil {
		t.Fatal("undone without the driver")
	}
	if _, err := h.db.Begin("rival", h.s.ClaimFor("a", "c", meta.Make)); !errdefs.IsAborted(err) {
		t.Errorf("a rival: %v", err)
	}
	h.drivers["a"].fail = nil
	if err := h.db.Recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	h.agree()
}

func TestHeld(t *testing.T) {
	h := newHouse(t)
	h.layer("l1", "")
	h.drivers["a"].held["stray"] = snapshotters.Info{Key: "stray", Parent: "l1", Committed: true}
	h.drivers["a"].held["active"] = snapshotters.Info{Key: "active"}
	op := h.begin()
	for name, want := range map[string]bool{"l1": true, "stray": true, "nobody": false} {
		if got, err := h.s.Held(t.Context(), op, "a", name); err != nil || got != want {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
	if _, err := h.s.Held(t.Context(), op, "a", "active"); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("active: %v", err)
	}
	if _, err := h.db.Begin("rival", h.s.ClaimFor("a", "stray", meta.Drop)); !errdefs.IsAborted(err) {
		t.Errorf("a collector may take what is held: %v", err)
	}
	if err := op.Commit(nil); err != nil {
		t.Fatal(err)
	}
	if r, err := h.s.Get(t.Context(), "a", "stray"); err != nil || r.GetParent() != "l1" || r.GetKind() != snapshotsv1.Kind_KIND_COMMITTED {
		t.Errorf("stray: %v, %v", r, err)
	}
	h.drivers["a"].fail = errdefs.ErrUnavailable
	if _, err := h.s.Held(t.Context(), h.begin(), "a", "l1"); !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "snapshotter a") {
		t.Errorf("without the driver: %v", err)
	}
}

func TestRefusals(t *testing.T) {
	h := newHouse(t)
	op := h.begin()
	for what, c := range map[string]struct {
		err error
		is  func(error) bool
	}{
		"no such driver": {second(h.s.Prepare(t.Context(), op, "x", "k", "", snapshotters.Options{})), errdefs.IsNotFound},
		"bad key":        {second(h.s.Prepare(t.Context(), op, "a", "k/", "", snapshotters.Options{})), errdefs.IsInvalidArgument},
		"bad parent":     {second(h.s.View(t.Context(), op, "a", "k", "p/", nil)), errdefs.IsInvalidArgument},
		"bad name":       {h.s.Commit(t.Context(), op, "a", "k", "", ""), errdefs.IsInvalidArgument},
		"no quota":       {second(h.s.Prepare(t.Context(), op, "a", "k", "", snapshotters.Options{MaxBytes: 1})), errdefs.IsNotImplemented},
		"no record":      {second(h.s.Get(t.Context(), "a", "k")), errdefs.IsNotFound},
		"no usage":       {second(h.s.Usage(t.Context(), "a", "k")), errdefs.IsNotFound},
		"no mounts":      {second(h.s.Mounts(t.Context(), "a", "k")), errdefs.IsNotFound},
	} {
		if !c.is(c.err) {
			t.Errorf("%s: %v", what, c.err)
		}
	}
	if n := len(op.Claims()); n != 0 {
		t.Errorf("%d claims were made before the refusal", n)
	}
	if calls := h.drivers["a"].calls; len(calls) != 0 {
		t.Errorf("the driver was called: %v", calls)
	}
	for name, want := range map[string]bool{"a": true, "b": false} {
		if got, err := h.s.Rebase(t.Context(), name); err != nil || got != want {
			t.Errorf("rebase %s: %v, %v", name, got, err)
		}
	}
	if _, err := h.s.Rebase(t.Context(), "x"); !errdefs.IsNotFound(err) {
		t.Errorf("rebase of nothing: %v", err)
	}
}

func second[T any](_ T, err error) error { return err }

// check runs the service's checks, and repairs if asked.
func (h *house) check(repair ...bool) (out []string) {
	h.Helper()
	for _, c := range h.s.Checks() {
		var repairs []func(context.Context) error
		if err := c.Run(h.Context(), func(subject, _ string, repair func(context.Context) error) {
			out = append(out, subject)
			if repair != nil {
				repairs = append(repairs, repair)
			}
		}); err != nil {
			h.Fatal(err)
		}
		for _, r := range repairs {
			if len(repair) > 0 {
				if err := r(h.Context()); err != nil {
					h.Error(err)
				}
			}
		}
	}
	slices.Sort(out)
	return out
}

func TestChecks(t *testing.T) {
	h := newHouse(t)
	h.layer("l1", "")
	h.layer("l2", "l1")
	h.layer("lost", "")
	h.container("c", "l2")
	h.container("gone", "l2")
	h.container("other", "l2")
	if got := h.check(); len(got) != 0 {
		t.Errorf("differences where there are none: %v", got)
	}
	d := h.drivers["a"]
	delete(d.held, "lost")
	delete(d.held, "gone")
	d.held["other"] = snapshotters.Info{Key: "other", Parent: "l1"}
	d.held["stray"] = snapshotters.Info{Key: "stray", Parent: "l1"}
	d.held["cache"] = snapshotters.Info{Key: "cache", Parent: "l1", Committed: true} // of an interrupted pull
	op := h.begin()
	if _, err := h.s.Prepare(t.Context(), op, "a", "under way", "l2", snapshotters.Options{}); err != nil {
		t.Fatal(err)
	}
	want := []string{"snapshot gone of a", "snapshot lost of a", "snapshot other of a", "snapshot stray of a"}
	if got := h.check(true); !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	want = []string{"snapshot gone of a", "snapshot other of a"} // nobody but their owners can tell
	if got := h.check(); !slices.Equal(got, want) {
		t.Errorf("after repair %v, want %v", got, want)
	}
	if err := op.Commit(nil); err != nil {
		t.Fatal(err)
	}
	if got := h.check(); !slices.Equal(got, want) {
		t.Errorf("after commit %v, want %v", got, want)
	}
}

func TestCollect(t *testing.T) {
	h := newHouse(t)
	h.layer("needed", "")
	h.layer("needed 2", "needed")
	h.layer("image", "")
	h.layer("garbage", "")
	h.layer("garbage 2", "garbage")
	h.layer("used", "")
	h.container("c", "needed 2")
	d := h.drivers["a"]
	d.held["stray"] = snapshotters.Info{Key: "stray", Parent: "image", Committed: true, Bytes: 7}
	d.held["half"] = snapshotters.Info{Key: "half"}
	op := h.begin(h.s.ClaimFor("a", "used", meta.Use))
	c := gc.New(h.db)
	h.s.Collect(c)
	c.Root(func(_ *meta.Tx, mark func(gc.Ref)) error {
		mark(gc.Ref{Kind: Kind, Scope: "a", Key: "image"})
		return nil
	})
	r, err := c.Collect(t.Context(), gc.Options{Grace: time.Hour})
	if err != nil || len(r.Dropped) != 0 {
		t.Errorf("within the grace: %+v, %v", r, err)
	}
	r, err = c.Collect(t.Context(), gc.Options{})
	if err != nil {
		t.Fatal(err)
	}
	var dropped []string
	for _, t := range r.Dropped {
		dropped = append(dropped, t.Key)
	}
	slices.Sort(dropped)
	if want := []string{"garbage", "garbage 2", "half", "stray"}; !slices.Equal(dropped, want) || r.Bytes != 207 {
		t.Errorf("dropped %v and %d bytes, want %v and 207", dropped, r.Bytes, want)
	}
	if err := op.Commit(nil); err != nil {
		t.Fatal(err)
	}
	h.agree("c", "image", "needed", "needed 2", "used")
	if _, err := c.Collect(t.Context(), gc.Options{}); err != nil {
		t.Fatal(err)
	}
	h.agree("c", "image", "needed", "needed 2")
	if len(h.s.sighted) != 0 {
		t.Errorf("sighted for ever: %v", h.s.sighted)
	}
	d.fail = errdefs.ErrUnavailable // and nothing is dropped because a driver says nothing
	if _, err := c.Collect(t.Context(), gc.Options{}); err != nil {
		t.Errorf("with a driver that does not answer: %v", err)
	}
}

func TestUsages(t *testing.T) {
	h := newHouse(t)
	h.layer("l1", "")
	h.layer("l2", "l1")
	h.layer("l3", "")
	h.container("c", "l2")
	u, err := h.s.Usages(t.Context())
	if err != nil || len(u) != 1 {
		t.Fatal(u, err)
	}
	if l := u[0]; l.GetKind() != "layers" || l.GetTotal() != 3 || l.GetActive() != 2 || l.GetBytes() != 300 || l.GetReclaimableBytes() != 100 {
		t.Errorf("%v", l)
	}
	h.drivers["a"].fail = errors.New("no")
	if _, err := h.s.Usages(t.Context()); err == nil {
		t.Error("a sum without a driver")
	}
}

func TestServer(t *testing.T) {
	h := newHouse(t)
	h.layer("l1", "")
	h.container("c", "l1")
	sock := filepath.Join(t.TempDir(), "s")
	srv := grpc.NewServer(rpc.ServerOptions(rpc.Options{})...)
	h.s.Register(srv)
	l, err := net.Listen("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() { _ = srv.Serve(l) })
	t.Cleanup(func() { srv.Stop(); wg.Wait() })
	cc, err := grpc.NewClient("unix://"+sock, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cc.Close() })
	c := snapshotsv1.NewSnapshotsServiceClient(cc)
	got, err := c.Get(t.Context(), &snapshotsv1.GetRequest{Snapshotter: "a", Key: "c"})
	if err != nil || got.GetSnapshot().GetParent() != "l1" {
		t.Errorf("%v, %v", got, err)
	}
	if _, err := c.Get(t.Context(), &snapshotsv1.GetRequest{Snapshotter: "a", Key: "x"}); status.Code(err) != codes.NotFound {
		t.Errorf("get of nothing: %v", err)
	}
	u, err := c.Usage(t.Context(), &snapshotsv1.UsageRequest{Snapshotter: "a", Key: "c"})
	if err != nil || u.GetBytes() != 10 || u.GetInodes() != 1 {
		t.Errorf("%v, %v", u, err)
	}
	for of, want := range map[string]int{"": 2, "a": 2, "b": 0} {
		stream, err := c.List(t.Context(), &snapshotsv1.ListRequest{Snapshotter: of})
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for {
			if _, err := stream.Recv(); err != nil {
				break
			}
			n++
		}
		if n != want {
			t.Errorf("list %q: %d, want %d", of, n, want)
		}
	}
}
