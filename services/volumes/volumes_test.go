package volumes

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc"

	"github.com/gantryd/gantry/internal/meta"
	"github.com/gantryd/gantry/plugins"
	"github.com/gantryd/gantry/plugins/volume"
	"github.com/gantryd/gantry/plugins/volume/local"
	"github.com/gantryd/gantry/plugins/wiretest"
	containersv1 "github.com/gantryd/gantry/proto/gantry/containers/v1"
	typesv1 "github.com/gantryd/gantry/proto/gantry/types/v1"
	volumesv1 "github.com/gantryd/gantry/proto/gantry/volumes/v1"
)

// world is a service over a real store and the real backend, both in temporary directories.
type world struct {
	*testing.T
	dir     string
	db      *meta.DB
	s       *Service
	backend *flaky
}

// flaky is a backend that fails when told, and counts.
type flaky struct {
	*local.Driver

	mu      sync.Mutex
	failing error
	calls   []string
}

func (f *flaky) call(what string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, what)
	return f.failing
}

func (f *flaky) fail(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.failing = err
}

func (f *flaky) Create(ctx context.Context, v volume.Volume) (volume.Created, error) {
	if err := f.call("create " + v.Name); err != nil {
		return volume.Created{}, err
	}
	return f.Driver.Create(ctx, v)
}

func (f *flaky) Delete(ctx context.Context, v volume.Volume) error {
	if err := f.call("delete " + v.Name); err != nil {
		return err
	}
	return f.Driver.Delete(ctx, v)
}

func (f *flaky) Mount(ctx context.Context, v volume.Volume, user string) (plugins.Mount, error) {
	if err := f.call("mount " + v.Name); err != nil {
		return plugins.Mount{}, err
	}
	return f.Driver.Mount(ctx, v, user)
}

func (f *flaky) Unmount(ctx context.Context, v volume.Volume, user string) error {
	if err := f.call("unmount " + v.Name); err != nil {
		return err
	}
	return f.Driver.Unmount(ctx, v, user)
}

func (f *flaky) called(what string) (n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.calls {
		if c == what {
			n++
		}
	}
	return n
}

// Volume and Info make the world the Drivers of its service.
func (w *world) Volume(name string) (volume.Backend, error) {
	if name != Default {
		return nil, fmt.Errorf("driver %s: no such volume plugin: %w", name, errdefs.ErrNotFound)
	}
	return w.backend, nil
}

func (w *world) Info(ctx context.Context, _ plugins.Family, _ string) (plugins.Info, error) {
	return w.backend.Info(ctx)
}

func newWorld(t *testing.T) *world {
	w := &world{T: t, dir: t.TempDir()}
	w.start()
	t.Cleanup(w.stop)
	return w
}

func (w *world) start() {
	w.Helper()
	db, err := meta.Open(filepath.Join(w.dir, "gantry.db"))
	if err != nil {
		w.Fatal(err)
	}
	root := filepath.Join(w.dir, "local")
	if err := os.MkdirAll(root, 0o700); err != nil {
		w.Fatal(err)
	}
	d := local.New()
	if err := d.Configure(w.Context(), plugins.Config{Root: root}); err != nil {
		w.Fatal(err)
	}
	w.db, w.backend = db, &flaky{Driver: d}
	w.s = New(db, w)
	db.OnUndo("container", undoName)
}

func (w *world) stop() {
	if err := errors.Join(w.backend.Close(), w.db.Close()); err != nil {
		w.Error(err)
	}
}

// crash ends the daemon without anything being ended, and starts the next one.
func (w *world) crash() {
	w.Helper()
	w.stop()
	w.start()
	if err := w.db.Recover(w.Context()); err != nil {
		w.Fatal(err)
	}
}

func (w *world) create(name string) *volumesv1.Volume {
	w.Helper()
	v, err := w.s.Create(w.Context(), &volumesv1.Volume{Meta: &typesv1.Meta{Name: name}})
	if err != nil {
		w.Fatal(err)
	}
	return v
}

// names are the volumes there are, and clean says that store and backend agree.
func (w *world) names(filters ...*typesv1.Filter) (out []string) {
	w.Helper()
	for v, err := range w.s.All(filters) {
		if err != nil {
			w.Fatal(err)
		}
		out = append(out, v.GetMeta().GetName())
	}
	return out
}

func (w *world) clean() {
	w.Helper()
	for _, c := range w.s.Checks() {
		if err := c.Run(w.Context(), func(subject, detail string, _ func(context.Context) error) {
			w.Errorf("%s: %s: %s", c.Name, subject, detail)
		}); err != nil {
			w.Error(err)
		}
	}
}

var containers = meta.NewTable("containers", func() *containersv1.Container { return &containersv1.Container{} })

// container is one with volumes mounted at /<name>.
func container(id string, names ...string) *containersv1.Container {
	c := &containersv1.Container{Meta: &typesv1.Meta{Id: id, Name: "name-of-" + id}, Spec: &containersv1.Spec{}}
	for _, n := range names {
		m := &containersv1.VolumeMount{Kind: containersv1.VolumeMount_KIND_VOLUME, Source: n, Target: "/" + n}
		c.Volumes = append(c.Volumes, m)
		if !anonymousForm.MatchString(n) {
			c.Spec.Volumes = append(c.Spec.Volumes, m)
		}
	}
	return c
}

// made makes a container, as services/containers does.
func (w *world) made(c *containersv1.Container) {
	w.Helper()
	if err := w.make(c); err != nil {
		w.Fatal(err)
	}
}

func (w *world) make(c *containersv1.Container) (err error) {
	id := c.GetMeta().GetId()
	op, err := w.db.Begin("container.create", claim(meta.Make, "container", "", id))
	if err != nil {
		return err
	}
	defer op.End(w.Context(), &err)
	if err := w.s.Ensure(w.Context(), op, c); err != nil {
		return err
	}
	return op.Commit(func(tx *meta.Tx) error {
		return errors.Join(containerNames.Reserve(tx, c.GetMeta().GetName(), id), containers.Put(tx, id, c))
	})
}

func (w *world) remove(c *containersv1.Container, anonymous bool) (err error) {
	id := c.GetMeta().GetId()
	op, err := w.db.Begin("container.remove", claim(meta.Drop, "container", "", id))
	if err != nil {
		return err
	}
	defer op.End(w.Context(), &err)
	if err := errors.Join(w.s.Unmount(w.Context(), op, c), w.s.Release(w.Context(), op, c, anonymous)); err != nil {
		return err
	}
	return op.Commit(func(tx *meta.Tx) error {
		return errors.Join(containerNames.Release(tx, c.GetMeta().GetName(), id), containers.Delete(tx, id))
	})
}

func TestCreate(t *testing.T) {
	w := newWorld(t)
	v := w.create("data")
	if v.GetBackend() != "local" || v.GetAnonymous() || v.GetMeta().GetCreatedAt() == nil {
		t.Errorf("got %v", v)
	}
	if st, err := os.Stat(v.GetMountpoint()); err != nil || !st.IsDir() {
		t.Errorf("mountpoint %q: %v", v.GetMountpoint(), err)
	}
	if again := w.create("data"); again.GetMeta().GetId() != v.GetMeta().GetId() {
		t.Error("the same volume asked for again is another one")
	}
	a := w.create("")
	if !a.GetAnonymous() || !anonymousForm.MatchString(a.GetMeta().GetName()) {
		t.Errorf("without a name: %v", a)
	}
	for _, ref := range []string{"data", v.GetMeta().GetId(), v.GetMeta().GetId()[:12]} {
		if got, err := w.s.Get(ref); err != nil || got.GetMeta().GetId() != v.GetMeta().GetId() {
			t.Errorf("get %s: %v %v", ref, got, err)
		}
	}
	w.clean()
}

func TestCreateRefuses(t *testing.T) {
	w := newWorld(t)
	w.create("data")
	for _, c := range []struct {
		name  string
		want  *volumesv1.Volume
		class func(error) bool
		words string
	}{
		{"bad name", &volumesv1.Volume{Meta: &typesv1.Meta{Name: "-x"}}, errdefs.IsInvalidArgument, "want a name of"},
		{"slash", &volumesv1.Volume{Meta: &typesv1.Meta{Name: "a/b"}}, errdefs.IsInvalidArgument, "want a name of"},
		{"long", &volumesv1.Volume{Meta: &typesv1.Meta{Name: strings.Repeat("x", 256)}}, errdefs.IsInvalidArgument, "want a name of"},
		{"no such backend", &volumesv1.Volume{Meta: &typesv1.Meta{Name: "a"}, Backend: "nfs"}, errdefs.IsNotFound, "driver nfs"},
		{"unknown option", &volumesv1.Volume{Meta: &typesv1.Meta{Name: "a"}, Options: map[string]string{"type": "nfs"}}, errdefs.IsInvalidArgument, `no option "type"`},
		{"other options", &volumesv1.Volume{Meta: &typesv1.Meta{Name: "data"}, Options: map[string]string{"x": "y"}}, errdefs.IsAlreadyExists, "with other options"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if _, err := w.s.Create(t.Context(), c.want); !c.class(err) || !strings.Contains(err.Error(), c.words) || !strings.HasPrefix(err.Error(), "create volume ") {
				t.Errorf("got %v", err)
			}
		})
	}
	if got := w.names(); !slices.Equal(got, []string{"data"}) {
		t.Errorf("left: %q", got)
	}
	w.clean()
}

func TestRemove(t *testing.T) {
	w := newWorld(t)
	v := w.create("data")
	if err := os.WriteFile(filepath.Join(v.GetMountpoint(), "f"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := w.s.Remove(t.Context(), "data"); err != nil {
		t.Fatal(err)
	}
	if err := w.s.Remove(t.Context(), "data"); err != nil {
		t.Errorf("again: %v", err)
	}
	if _, err := w.s.Get("data"); !errdefs.IsNotFound(err) {
		t.Errorf("get: %v", err)
	}
	if entries, err := os.ReadDir(w.create("data").GetMountpoint()); err != nil || len(entries) != 0 {
		t.Errorf("a new volume of that name holds %v (%v)", entries, err)
	}
	w.clean()
}

func TestInUse(t *testing.T) {
	w := newWorld(t)
	one, two := container("c1", "data"), container("c2", "data", "more")
	w.made(one)
	w.made(two)
	err := w.s.Remove(t.Context(), "data")
	if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "remove volume data: it is in use by containers name-of-c1, name-of-c2") {
		t.Errorf("got %v", err)
	}
	if err := w.remove(one, true); err != nil {
		t.Fatal(err)
	}
	if err := w.s.Remove(t.Context(), "data"); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "by container name-of-c2") {
		t.Errorf("got %v", err)
	}
	w.clean()
	if err := w.remove(two, true); err != nil {
		t.Fatal(err)
	}
	if got := w.names(); !slices.Equal(got, []string{"data", "more"}) {
		t.Errorf("what somebody named went with its container: %q", got)
	}
	if err := w.s.Remove(t.Context(), "data"); err != nil {
		t.Error(err)
	}
	w.clean()
}

func TestRemoveWhileAContainerIsMade(t *testing.T) {
	w := newWorld(t)
	w.create("data")
	op, err := w.db.Begin("container.create", claim(meta.Make, "container", "", "c1"))
	if err != nil {
		t.Fatal(err)
	}
	if err := w.s.Ensure(t.Context(), op, container("c1", "data")); err != nil {
		t.Fatal(err)
	}
	if err := w.s.Remove(t.Context(), "data"); !errdefs.IsAborted(err) || !strings.Contains(err.Error(), "container.create is under way") {
		t.Errorf("got %v", err)
	}
	if err := op.Abort(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := w.s.Remove(t.Context(), "data"); err != nil {
		t.Error(err)
	}
}

func TestEnsure(t *testing.T) {
	w := newWorld(t)
	anonymous := strings.Repeat("ab", 32)
	w.create("there")
	c := container("c1", "there", "new", anonymous, "new")
	w.made(c)
	for name, want := range map[string]bool{"there": false, "new": false, anonymous: true} {
		v, err := w.s.Get(name)
		if err != nil || v.GetAnonymous() != want || !slices.Equal(v.GetContainerIds(), []string{"c1"}) {
			t.Errorf("%s: %v %v", name, v, err)
		}
	}
	if n := w.backend.called("create new"); n != 1 {
		t.Errorf("new was made %d times", n)
	}
	w.clean()
	op, err := w.db.Begin("container.create")
	if err != nil {
		t.Fatal(err)
	}
	if err := w.s.Ensure(t.Context(), op, container("c9", "bad/name")); !errdefs.IsInvalidArgument(err) {
		t.Errorf("got %v", err)
	}
	if err := op.Abort(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestEnsureIsUndone(t *testing.T) {
	for name, end := range map[string]func(w *world, op *meta.Op){
		"abort": func(w *world, op *meta.Op) {
			if err := op.Abort(w.Context()); err != nil {
				w.Error(err)
			}
		},
		"crash": func(w *world, _ *meta.Op) { w.crash() },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.create("there")
			op, err := w.db.Begin("container.create", claim(meta.Make, "container", "", "c1"))
			if err != nil {
				t.Fatal(err)
			}
			if err := w.s.Ensure(t.Context(), op, container("c1", "there", "new")); err != nil {
				t.Fatal(err)
			}
			end(w, op)
			if got := w.names(); !slices.Equal(got, []string{"there"}) {
				t.Errorf("left: %q", got)
			}
			if v, _ := w.s.Get("there"); len(v.GetContainerIds()) != 0 {
				t.Errorf("used by %q", v.GetContainerIds())
			}
			w.clean()
		})
	}
}

// TestEnsureAtOnce: containers that are made at once with one new volume get one volume; who comes second tries again.
func TestEnsureAtOnce(t *testing.T) {
	w := newWorld(t)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			c := container(fmt.Sprintf("c%d", i), "shared")
			for {
				err := w.make(c)
				if err == nil {
					return
				}
				if !errdefs.IsAborted(err) {
					t.Errorf("make: %v", err)
					return
				}
				time.Sleep(time.Millisecond)
			}
		})
	}
	wg.Wait()
	v, err := w.s.Get("shared")
	if err != nil || len(v.GetContainerIds()) != 8 {
		t.Errorf("got %v %v", v, err)
	}
	w.clean()
}

func TestMount(t *testing.T) {
	w := newWorld(t)
	c := container("c1", "b", "a", "b")
	c.Volumes[2].Target = "/again"
	c.Volumes = slices.Insert(c.Volumes, 1, &containersv1.VolumeMount{Kind: containersv1.VolumeMount_KIND_BIND, Source: "/etc", Target: "/etc"})
	w.made(c)
	op, err := w.db.Begin("container.launch", claim(meta.Make, "container", "", "c1"))
	if err != nil {
		t.Fatal(err)
	}
	got, err := w.s.Mount(t.Context(), op, c)
	if err != nil {
		t.Fatal(err)
	}
	var at []string
	for _, m := range got {
		at = append(at, m.GetTarget())
		if _, err := os.Stat(m.GetSource()); err != nil || m.GetType() != "bind" {
			t.Errorf("%v: %v", m, err)
		}
	}
	if !slices.Equal(at, []string{"/b", "/a", "/again"}) {
		t.Errorf("mounted at %q", at)
	}
	if n := w.backend.called("mount b"); n != 1 {
		t.Errorf("b was mounted %d times", n)
	}
	if err := op.Abort(t.Context()); err != nil {
		t.Fatal(err)
	}
	if w.backend.called("unmount a") != 1 || w.backend.called("unmount b") != 1 {
		t.Errorf("a launch that failed: %q", w.backend.calls)
	}
	if got := w.names(); len(got) != 2 {
		t.Errorf("it took volumes with it: %q", got)
	}
}

func TestClaimsAheadSaveCommits(t *testing.T) {
	w := newWorld(t)
	c := container("c1", "a", "b")
	w.made(c)
	for name, run := range map[string]func(op *meta.Op) error{
		"mount": func(op *meta.Op) error {
			_, err := w.s.Mount(t.Context(), op, c)
			return err
		},
		"unmount": func(op *meta.Op) error { return w.s.Unmount(t.Context(), op, c) },
		"release": func(op *meta.Op) error { return w.s.Release(t.Context(), op, c, false) },
	} {
		var op *meta.Op
		if err := w.db.Update(func(tx *meta.Tx) (err error) {
			claims := w.s.DropClaims(tx, c, true)
			if name == "mount" {
				claims = w.s.MountClaims(tx, c)
			}
			op, err = tx.Begin("x", claims...)
			return err
		}); err != nil {
			t.Fatal(err)
		}
		before := len(op.Claims())
		if err := run(op); err != nil {
			t.Fatal(err)
		}
		if after := len(op.Claims()); after != before {
			t.Errorf("%s: %d claims became %d", name, before, after)
		}
		if err := op.Commit(nil); err != nil {
			t.Fatal(err)
		}
	}
}

func TestReleaseOfAnonymous(t *testing.T) {
	id := func(c string) string { return strings.Repeat(c, 64) }
	for _, c := range []struct {
		name      string
		anonymous bool
		left      []string
	}{
		{"asked", true, []string{id("b"), "named"}},
		{"not asked", false, []string{id("a"), id("b"), "named"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			one, two := container("c1", "named", id("a"), id("b")), container("c2", id("b"))
			w.made(one)
			w.made(two)
			if err := w.remove(one, c.anonymous); err != nil {
				t.Fatal(err)
			}
			if got := w.names(); !slices.Equal(got, c.left) {
				t.Errorf("left: %q, want %q", got, c.left)
			}
			w.clean()
		})
	}
}

// TestReleaseIsFinished: a removal that a crash interrupted is finished, whatever had been done of it.
func TestReleaseIsFinished(t *testing.T) {
	w := newWorld(t)
	a := strings.Repeat("a", 64)
	c := container("c1", "named", a)
	w.made(c)
	op, err := w.db.Begin("container.remove", claim(meta.Drop, "container", "", "c1"))
	if err != nil {
		t.Fatal(err)
	}
	if err := w.s.Release(t.Context(), op, c, true); err != nil {
		t.Fatal(err)
	}
	w.crash()
	if got := w.names(); !slices.Equal(got, []string{"named"}) {
		t.Errorf("left: %q", got)
	}
	if v, _ := w.s.Get("named"); len(v.GetContainerIds()) != 0 {
		t.Errorf("used by %q", v.GetContainerIds())
	}
}

func TestBackendIsDown(t *testing.T) {
	w := newWorld(t)
	w.create("data")
	down := fmt.Errorf("driver local: the plugin died: %w", errdefs.ErrUnavailable)
	w.backend.fail(down)
	if _, err := w.s.Create(t.Context(), &volumesv1.Volume{Meta: &typesv1.Meta{Name: "x"}}); !errdefs.IsUnavailable(err) {
		t.Errorf("create: %v", err)
	}
	if err := w.s.Remove(t.Context(), "data"); !errdefs.IsUnavailable(err) {
		t.Errorf("remove: %v", err)
	}
	if got := w.names(); !slices.Equal(got, []string{"data"}) {
		t.Errorf("there are: %q", got)
	}
	w.backend.fail(nil)
	if err := w.db.Recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := w.names(); len(got) != 0 {
		t.Errorf("the removal is not finished: %q", got)
	}
	w.clean()
}

func TestFilters(t *testing.T) {
	w := newWorld(t)
	w.create("alpha")
	if _, err := w.s.Create(t.Context(), &volumesv1.Volume{Meta: &typesv1.Meta{Name: "beta", Labels: map[string]string{"tier": "db", "x": ""}}}); err != nil {
		t.Fatal(err)
	}
	w.made(container("c1", "used"))
	for _, c := range []struct {
		filters []string // key=value
		want    []string
	}{
		{nil, []string{"alpha", "beta", "used"}},
		{[]string{"name=a"}, []string{"alpha", "beta"}},
		{[]string{"name=alp", "name=use"}, []string{"alpha", "used"}},
		{[]string{"label=tier=db"}, []string{"beta"}},
		{[]string{"label=x"}, []string{"beta"}},
		{[]string{"label=tier=web"}, nil},
		{[]string{"dangling=true"}, []string{"alpha", "beta"}},
		{[]string{"dangling=0"}, []string{"used"}},
		{[]string{"driver=local", "name=beta"}, []string{"beta"}},
		{[]string{"driver=nfs"}, nil},
		{[]string{"anonymous=true"}, nil},
	} {
		var fs []*typesv1.Filter
		for _, f := range c.filters {
			k, v, _ := strings.Cut(f, "=")
			fs = append(fs, &typesv1.Filter{Key: k, Value: v})
		}
		if got := w.names(fs...); !slices.Equal(got, c.want) {
			t.Errorf("%q: got %q, want %q", c.filters, got, c.want)
		}
	}
	for _, f := range []*typesv1.Filter{{Key: "colour", Value: "x"}, {Key: "dangling", Value: "maybe"}} {
		for _, err := range w.s.All([]*typesv1.Filter{f}) {
			if !errdefs.IsInvalidArgument(err) {
				t.Errorf("%v: got %v", f, err)
			}
		}
	}
}

func TestUsage(t *testing.T) {
	w := newWorld(t)
	v := w.create("idle")
	w.made(container("c1", "busy"))
	if err := os.WriteFile(filepath.Join(v.GetMountpoint(), "f"), make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := w.s.Usage(t.Context())
	if err != nil || len(got) != 1 {
		t.Fatal(got, err)
	}
	u := got[0]
	if u.GetKind() != "volumes" || u.GetTotal() != 2 || u.GetActive() != 1 || u.GetReclaimableBytes() < 1<<20 || u.GetBytes() < u.GetReclaimableBytes() {
		t.Errorf("got %v", u)
	}
}

func TestChecksFind(t *testing.T) {
	w := newWorld(t)
	lost := w.create("lost")
	w.made(container("c1", "used"))
	if _, err := w.backend.Driver.Create(t.Context(), volume.Volume{ID: "stranger", Name: "stranger"}); err != nil {
		t.Fatal(err)
	}
	if err := w.backend.Driver.Delete(t.Context(), volume.Volume{ID: lost.GetMeta().GetId()}); err != nil {
		t.Fatal(err)
	}
	used, _ := w.s.Get("used")
	if err := w.db.Update(func(tx *meta.Tx) error {
		return errors.Join(w.s.use(tx, used.GetMeta().GetId(), "c1", false), w.s.use(tx, lost.GetMeta().GetId(), "ghost", true))
	}); err != nil {
		t.Fatal(err)
	}
	found := map[string]int{}
	for _, c := range w.s.Checks() {
		if err := c.Run(t.Context(), func(subject, _ string, repair func(context.Context) error) {
			found[c.Name+": "+subject]++
			if repair != nil {
				if err := repair(t.Context()); err != nil {
					t.Error(err)
				}
			}
		}); err != nil {
			t.Fatal(err)
		}
	}
	for _, want := range []string{"volumes.held: volume stranger", "volumes.held: volume lost", "volumes.uses: volume used", "volumes.uses: volume lost"} {
		if found[want] != 1 {
			t.Errorf("%q was reported %d times in %v", want, found[want], found)
		}
	}
	used, _ = w.s.Get("used")
	lost, _ = w.s.Get("lost")
	if !slices.Equal(used.GetContainerIds(), []string{"c1"}) || len(lost.GetContainerIds()) != 0 {
		t.Errorf("after the repair: %v %v", used, lost)
	}
}

func TestServer(t *testing.T) {
	w := newWorld(t)
	cc := wiretest.Wires[1].Connect(t, func(r grpc.ServiceRegistrar) { w.s.Register(r) })
	c := volumesv1.NewVolumesServiceClient(cc)
	made, err := c.Create(t.Context(), &volumesv1.CreateRequest{Volume: &volumesv1.Volume{Meta: &typesv1.Meta{Name: "data"}}})
	if err != nil {
		t.Fatal(err)
	}
	w.made(container("c1", "data"))
	got, err := c.Get(t.Context(), &volumesv1.GetRequest{Ref: made.GetVolume().GetMeta().GetId()})
	if err != nil || !slices.Equal(got.GetContainerIds(), []string{"c1"}) {
		t.Errorf("get: %v %v", got, err)
	}
	stream, err := c.List(t.Context(), &volumesv1.ListRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if r, err := stream.Recv(); err != nil || r.GetVolume().GetMeta().GetName() != "data" {
		t.Errorf("list: %v %v", r, err)
	}
	if _, err := c.Remove(t.Context(), &volumesv1.RemoveRequest{Ref: "data"}); err == nil {
		t.Error("a volume in use was removed")
	}
	if _, err := c.Remove(t.Context(), &volumesv1.RemoveRequest{Ref: "nothing"}); err != nil {
		t.Errorf("remove of nothing: %v", err)
	}
}
