package containers

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/gantryd/gantry/internal/bundle"
	containersv1 "github.com/gantryd/gantry/proto/gantry/containers/v1"
	shimv1 "github.com/gantryd/gantry/proto/gantry/shim/v1"
)

// picture is a world as it was at one moment: the disk, and everything that outlives a daemon.
type picture struct {
	root  string
	snaps map[string]string
	nets  map[string]bool
	vols  map[string]bool
	ns    map[string]bool
	shims map[string]shimv1.Phase // by id
	runs  map[string]uint64
	exits map[string]bundle.Exit
}

// take takes a picture. Nobody writes meanwhile but the caller's own operation, which waits in it.
func (w *world) take(t *testing.T) *picture {
	p := &picture{
		root: t.TempDir(), snaps: w.snaps.all(), nets: w.nets.all(), vols: w.vols.all(), ns: w.ns.all(),
		shims: map[string]shimv1.Phase{}, runs: map[string]uint64{}, exits: map[string]bundle.Exit{},
	}
	if err := os.CopyFS(p.root, os.DirFS(w.root)); err != nil {
		t.Error(err)
	}
	w.shims.mu.Lock()
	defer w.shims.mu.Unlock()
	for d, s := range w.shims.by {
		s.mu.Lock()
		if !s.dead {
			p.shims[filepath.Base(d.State)], p.runs[filepath.Base(d.State)] = s.phase, s.run
		}
		s.mu.Unlock()
	}
	for d, e := range w.shims.exits {
		p.exits[filepath.Base(d.State)] = e
	}
	return p
}

// wake is a new daemon in the world of a picture.
func (p *picture) wake(t *testing.T) *world {
	w := &world{
		t: t, root: p.root, boot: "boot-1", snaps: &fakeSnapshots{held: maps.Clone(p.snaps)}, nets: &fakeNetworks{newMind()},
		vols: &fakeVolumes{mind: newMind()}, ns: &fakeNetNS{newMind()},
	}
	w.nets.held, w.vols.held, w.ns.held = p.nets, p.vols, p.ns
	w.shims = &fakeShims{t: t, by: map[bundle.Dir]*fakeShim{}, exits: map[bundle.Dir]bundle.Exit{}}
	dir := func(id string) bundle.Dir {
		return bundle.Dir{State: filepath.Join(p.root, "state", "c", id), Root: filepath.Join(p.root, "root", "containers", id)}
	}
	for id, phase := range p.shims {
		s, err := w.shims.Spawn(t.Context(), dir(id), &shimv1.Boot{ContainerId: id, Run: p.runs[id]})
		if err != nil {
			t.Fatal(err)
		}
		s.(*fakeShim).phase = phase
		if phase == shimv1.Phase_PHASE_EXITED {
			s.(*fakeShim).exit = written(p.exits[id])
		}
	}
	for id, e := range p.exits {
		w.shims.exits[dir(id)] = e
	}
	w.open()
	t.Cleanup(w.close)
	return w
}

// TestCrash plays a container's whole life, takes a picture of the world at every call to a driver or
// shim, and lets a new daemon wake in each: whatever was under way, it ends with records, drivers and shims agreeing.
func TestCrash(t *testing.T) {
	lives := map[string]func(w *world){
		"create, start, stop, start, remove": func(w *world) {
			c := w.create("web", &containersv1.Spec{Volumes: []*containersv1.VolumeMount{{Source: "vol", Target: "/vol"}}})
			id := c.GetMeta().GetId()
			for _, verb := range []func() error{
				func() error { _, err := w.Start(t.Context(), id); return err },
				func() error { _, err := w.Stop(t.Context(), id, "", nil); return err },
				func() error { _, err := w.Start(t.Context(), id); return err },
				func() error { return w.Service.Remove(t.Context(), id, true, true) },
			} {
				if err := verb(); err != nil {
					w.t.Error(err)
				}
			}
		},
		"run --rm": func(w *world) {
			c, shim := w.run("brief", &containersv1.Spec{RemoveOnExit: true})
			shim.ends(3)
			w.eventually(c.GetMeta().GetId(), gone)
		},
		"an update": func(w *world) {
			c, _ := w.run("web", &containersv1.Spec{Resources: &containersv1.Resources{Pids: 5}})
			if _, err := w.Update(t.Context(), c.GetMeta().GetId(), &containersv1.Spec{Resources: &containersv1.Resources{Pids: 9}}, []string{"resources.pids"}, 0); err != nil {
				w.t.Error(err)
			}
		},
		"a start that fails": func(w *world) {
			w.shims.onSpawn = func(s *fakeShim) { s.fail["start"] = fmt.Errorf("exec: no") }
			c := w.create("bad", nil)
			if _, err := w.Start(t.Context(), c.GetMeta().GetId()); err == nil {
				w.t.Error("it started")
			}
		},
	}
	for name, life := range lives {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			var mu sync.Mutex
			var points []string
			var pictures []*picture
			hook := func(point string) {
				mu.Lock()
				defer mu.Unlock()
				points, pictures = append(points, point), append(pictures, w.take(t))
			}
			for _, m := range []*mind{&w.snaps.mind, &w.nets.mind, &w.vols.mind, &w.ns.mind, &w.shims.mind} {
				m.hook = hook
			}
			life(w)
			w.clean()
			mu.Lock()
			defer mu.Unlock()
			for i, p := range pictures {
				t.Run(fmt.Sprintf("%d at %s", i, strings.ReplaceAll(points[i], " ", "-")), func(t *testing.T) { awake(t, p) })
			}
			if len(pictures) < 8 {
				t.Errorf("only %d points", len(pictures))
			}
		})
	}
}

// awake lets a daemon find the world of a picture, and checks that it puts it in order.
func awake(t *testing.T, p *picture) {
	w := p.wake(t)
	for c, err := range w.All(nil, true) {
		if err != nil {
			t.Fatal(err)
		}
		id := c.GetMeta().GetId()
		w.eventually(id, func(c *containersv1.Container) bool {
			switch {
			case c == nil:
				return true
			case c.GetWanted() == containersv1.Wanted_WANTED_REMOVED:
				return false // it must go
			case c.GetWanted() == containersv1.Wanted_WANTED_RUNNING:
				return c.GetStatus().GetPhase() == containersv1.Phase_PHASE_RUNNING ||
					!alive(c) && c.GetStatus().GetRun() == c.GetWantedRun() && !c.GetSpec().GetRemoveOnExit()
			}
			return !alive(c)
		})
	}
	w.clean()
	// and the next command works
	c := w.create("next", nil)
	if _, err := w.Start(t.Context(), "next"); err != nil {
		t.Error(err)
	}
	if err := w.Service.Remove(t.Context(), c.GetMeta().GetId(), true, false); err != nil {
		t.Error(err)
	}
	w.clean()
}
