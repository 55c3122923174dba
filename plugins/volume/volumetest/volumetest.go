// Package volumetest is the suite that every volume backend passes, over every wire.
package volumetest

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

	"github.com/gantryd/gantry/plugins"
	"github.com/gantryd/gantry/plugins/volume"
	"github.com/gantryd/gantry/plugins/wiretest"
)

// Factory makes a backend that is configured with root. It is called again with the same root, after what it
// returned was closed (if it is an io.Closer), to see what survives.
type Factory func(t *testing.T, root string) volume.Backend

// Run runs every case over every wire.
func Run(t *testing.T, factory Factory) {
	for _, w := range wiretest.Wires {
		t.Run(w.Name, func(t *testing.T) {
			for _, c := range cases {
				t.Run(c.name, func(t *testing.T) {
					e := &env{T: t, wire: w, factory: factory, root: t.TempDir()}
					e.open()
					c.run(e)
				})
			}
		})
	}
}

var cases = []struct {
	name string
	run  func(*env)
}{
	{"CreateAgainKeepsContent", createAgain},
	{"CreateAtOnceIsOneVolume", createAtOnce},
	{"CreateWithUnknownOption", createUnknownOption},
	{"DeleteOfNothing", deleteOfNothing},
	{"DeleteDestroysContent", deleteDestroys},
	{"DeleteWithoutHandle", deleteWithoutHandle},
	{"MountOfNothing", mountOfNothing},
	{"MountAgainIsTheSame", mountAgain},
	{"UnmountOfNothing", unmountOfNothing},
	{"UsersDoNotDisturbEachOther", users},
	{"All", all},
	{"AllEndsEarly", allEndsEarly},
	{"BadIDs", badIDs},
	{"ContentSurvivesAnotherProcess", survives},
	{"EndsByItsDeadline", deadline},
	{"Usage", usage},
}

// env is one backend behind one wire.
type env struct {
	*testing.T
	wire    wiretest.Wire
	factory Factory
	root    string
	near    volume.Backend // the backend itself
	b       volume.Backend // as it looks from the other end of the wire
}

func (e *env) open() {
	e.Helper()
	e.near = e.factory(e.T, e.root)
	e.b = wiretest.Over(e.T, e.wire, e.near, volume.Register, volume.NewClient)
}

func (e *env) create(id string) volume.Volume {
	e.Helper()
	v := volume.Volume{ID: id, Name: "name-of-" + id}
	c, err := e.b.Create(e.Context(), v)
	if err != nil {
		e.Fatalf("create %s: %v", id, err)
	}
	v.Handle = c.Handle
	return v
}

func (e *env) mount(v volume.Volume, user string) plugins.Mount {
	e.Helper()
	m, err := e.b.Mount(e.Context(), v, user)
	if err != nil {
		e.Fatalf("mount %s: %v", v.ID, err)
	}
	if m.Target != "" || m.Type == "" {
		e.Fatalf("mount %s: got %+v, want a type and no target", v.ID, m)
	}
	return m
}

// content is a directory where the volume can be looked at; backends that do not bind are not looked into.
func (e *env) content(v volume.Volume) string {
	e.Helper()
	m := e.mount(v, "looker")
	if m.Type != "bind" {
		e.Skipf("the backend mounts %q: this case looks into volumes that are bound", m.Type)
	}
	return m.Source
}

func (e *env) write(v volume.Volume, text string) {
	e.Helper()
	if err := os.WriteFile(filepath.Join(e.content(v), "file"), []byte(text), 0o600); err != nil {
		e.Fatal(err)
	}
}

func (e *env) holds(v volume.Volume, want string) {
	e.Helper()
	got, err := os.ReadFile(filepath.Join(e.content(v), "file"))
	if want == "" && errors.Is(err, os.ErrNotExist) {
		return
	}
	if err != nil || string(got) != want {
		e.Fatalf("volume %s holds %q (%v), want %q", v.ID, got, err, want)
	}
}

func (e *env) delete(v volume.Volume) {
	e.Helper()
	if err := e.b.Delete(e.Context(), v); err != nil {
		e.Fatalf("delete %s: %v", v.ID, err)
	}
}

func (e *env) ids() (out []string) {
	e.Helper()
	for id, err := range e.b.All(e.Context()) {
		if err != nil {
			e.Fatalf("all: %v", err)
		}
		out = append(out, id)
	}
	slices.Sort(out)
	return out
}

func createAgain(e *env) {
	v := e.create("a")
	e.write(v, "kept")
	again := e.create("a")
	if string(again.Handle) != string(v.Handle) {
		e.Errorf("the handle changed from %q to %q", v.Handle, again.Handle)
	}
	e.holds(again, "kept")
}

func createAtOnce(e *env) {
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if _, err := e.b.Create(e.Context(), volume.Volume{ID: "same", Name: "same"}); err != nil {
				e.Errorf("create: %v", err)
			}
		})
	}
	wg.Wait()
	if got := e.ids(); !slices.Equal(got, []string{"same"}) {
		e.Errorf("all: got %q", got)
	}
}

func createUnknownOption(e *env) {
	_, err := e.b.Create(e.Context(), volume.Volume{ID: "a", Name: "a", Options: map[string]string{"no-such-option-anywhere": "1"}})
	if !errdefs.IsInvalidArgument(err) {
		e.Errorf("got %v, want InvalidArgument", err)
	} else if !strings.Contains(err.Error(), "no-such-option-anywhere") {
		e.Errorf("%q does not name the option", err)
	}
	if got := e.ids(); len(got) != 0 {
		e.Errorf("it left %q behind", got)
	}
}

func deleteOfNothing(e *env) { e.delete(volume.Volume{ID: "never", Name: "never"}) }

func deleteDestroys(e *env) {
	v := e.create("a")
	e.write(v, "old")
	e.delete(v)
	e.delete(v)
	if got := e.ids(); len(got) != 0 {
		e.Errorf("all: got %q after delete", got)
	}
	v = e.create("a")
	e.holds(v, "")
}

func deleteWithoutHandle(e *env) {
	v := e.create("a")
	v.Handle = nil
	e.delete(v)
	if _, err := e.b.Mount(e.Context(), v, "u"); !errdefs.IsNotFound(err) {
		e.Errorf("mount after delete: got %v, want NotFound", err)
	}
}

func mountOfNothing(e *env) {
	if _, err := e.b.Mount(e.Context(), volume.Volume{ID: "never", Name: "never"}, "u"); !errdefs.IsNotFound(err) {
		e.Errorf("got %v, want NotFound", err)
	}
}

func mountAgain(e *env) {
	v := e.create("a")
	a, b := e.mount(v, "u"), e.mount(v, "u")
	if fmt.Sprint(a) != fmt.Sprint(b) {
		e.Errorf("got %v, then %v", a, b)
	}
}

func unmountOfNothing(e *env) {
	v := e.create("a")
	for _, v := range []volume.Volume{v, {ID: "never", Name: "never"}} {
		if err := e.b.Unmount(e.Context(), v, "nobody"); err != nil {
			e.Errorf("unmount %s: %v", v.ID, err)
		}
	}
}

func users(e *env) {
	v := e.create("a")
	e.mount(v, "one")
	e.mount(v, "two")
	if err := e.b.Unmount(e.Context(), v, "one"); err != nil {
		e.Fatal(err)
	}
	e.mount(v, "two")
	e.write(v, "still")
	e.holds(v, "still")
}

func all(e *env) {
	var want []string
	for i := range 20 {
		id := fmt.Sprintf("v%02d", i)
		want = append(want, id)
		e.create(id)
	}
	if got := e.ids(); !slices.Equal(got, want) {
		e.Errorf("got %q, want %q", got, want)
	}
}

func allEndsEarly(e *env) {
	e.create("a")
	e.create("b")
	for range 20 { // enough for a stream that is left behind to be noticed
		for _, err := range e.b.All(e.Context()) {
			if err != nil {
				e.Fatal(err)
			}
			break
		}
	}
	if got := e.ids(); len(got) != 2 {
		e.Errorf("got %q", got)
	}
}

func badIDs(e *env) {
	for _, id := range []string{"", ".", "..", "../x", "a/b", "-a", "_a", ".a", "a\x00b", "ä", strings.Repeat("x", volume.MaxID+1)} {
		v := volume.Volume{ID: id, Name: "x"}
		_, cerr := e.b.Create(e.Context(), v)
		_, merr := e.b.Mount(e.Context(), v, "u")
		for _, err := range []error{cerr, merr, e.b.Delete(e.Context(), v), e.b.Unmount(e.Context(), v, "u")} {
			if !errdefs.IsInvalidArgument(err) {
				e.Errorf("id %q: got %v, want InvalidArgument", id, err)
			}
		}
	}
	if got := e.ids(); len(got) != 0 {
		e.Errorf("they left %q behind", got)
	}
}

func survives(e *env) {
	v := e.create("a")
	e.write(v, "kept")
	if c, ok := e.near.(interface{ Close() error }); ok {
		if err := c.Close(); err != nil {
			e.Fatal(err)
		}
	}
	e.open()
	if got := e.ids(); !slices.Equal(got, []string{"a"}) {
		e.Errorf("all: got %q", got)
	}
	e.holds(v, "kept")
	e.delete(v)
}

func deadline(e *env) {
	ctx, cancel := context.WithCancelCause(e.Context())
	cancel(errors.New("given up"))
	done := make(chan struct{})
	go func() {
		defer close(done)
		v := volume.Volume{ID: "a", Name: "a"}
		_, _ = e.b.Create(ctx, v)
		_, _ = e.b.Mount(ctx, v, "u")
		_ = e.b.Unmount(ctx, v, "u")
		_ = e.b.Delete(ctx, v)
		for range e.b.All(ctx) {
			break
		}
	}()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		e.Fatal("calls go on after their context has ended")
	}
}

func usage(e *env) {
	c, ok := e.b.(volume.Counter)
	if _, near := e.near.(volume.Counter); !ok || !near {
		e.Skip("the backend does not have the capability usage")
	}
	v := e.create("a")
	before, err := c.Usage(e.Context(), v)
	if err != nil {
		e.Fatal(err)
	}
	dir := e.content(v)
	e.write(v, strings.Repeat("x", 1<<20))
	if err := os.Link(filepath.Join(dir, "file"), filepath.Join(dir, "link")); err != nil {
		e.Fatal(err)
	}
	after, err := c.Usage(e.Context(), v)
	if err != nil {
		e.Fatal(err)
	}
	if d := after.Inodes - before.Inodes; d != 1 {
		e.Errorf("one file with two names counts %d inodes", d)
	}
	if d := after.Bytes - before.Bytes; d < 1<<20 || d >= 2<<20 {
		e.Errorf("1 MiB counts %d bytes", d)
	}
	if _, err := c.Usage(e.Context(), volume.Volume{ID: "never", Name: "never"}); !errdefs.IsNotFound(err) {
		e.Errorf("usage of nothing: got %v, want NotFound", err)
	}
}
