// Package snapshottest is the suite that every storage driver must pass.
//
//	func TestSuite(t *testing.T) {
//		snapshottest.Run(t, func() snapshottest.Driver { return overlay.New() })
//	}
//
// It runs the driver over three wires (plugins/wiretest), restarts it, kills processes that serve it in the middle of
// their work, and cuts the power of a file system under it. Most of it needs root. A driver that implements io.Closer
// is closed before its root is opened again.
//
// Run must be called by a test function of its own: the suite starts the test binary again, for that test
// alone, where it needs a process to kill.
package snapshottest

import (
	"context"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/gantryd/gantry/plugins"
	"github.com/gantryd/gantry/plugins/wiretest"
	"github.com/gantryd/gantry/snapshotters"
)

// Driver is what is tested.
type Driver interface {
	// Snapshotter is the contract that the suite is about.
	snapshotters.Snapshotter
	// Plugin is how the driver is given its root.
	plugins.Plugin
}

// Factory returns a driver that has still to be configured.
type Factory func() Driver

// callTime is how long any call of the suite may take.
const callTime = 30 * time.Second

// Run holds the drivers that factory makes to the contract.
func Run(t *testing.T, factory Factory) {
	if os.Getenv(childEnv) != "" {
		child(t, factory)
		return
	}
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: storage drivers make device nodes, owners and mounts: the suite needs root")
	}
	for _, w := range wiretest.Wires {
		t.Run(w.Name, func(t *testing.T) {
			for _, c := range cases {
				t.Run(c.name, func(t *testing.T) { c.run(newEnv(t, w, factory)) })
			}
		})
	}
	t.Run("configure", func(t *testing.T) { testConfigure(t, factory) })
	t.Run("kill", func(t *testing.T) { testKill(t, factory) })
	t.Run("power", func(t *testing.T) { testPower(t, factory) })
}

var cases = []struct {
	name string
	run  func(*env)
}{
	{"keys", testKeys},
	{"bad keys", testBadKeys},
	{"prepare", testPrepare},
	{"view", testView},
	{"parents", testParents},
	{"commit", testCommit},
	{"commit elsewhere", testCommitElsewhere},
	{"remove", testRemove},
	{"remove by many", testRemoveMany},
	{"stat", testStat},
	{"all", testAll},
	{"isolation", testIsolation},
	{"layers", testLayers},
	{"looks", testLooks},
	{"random layers", testRandomLayers},
	{"many layers", testManyLayers},
	{"concurrency", testConcurrency},
	{"one key at once", testOneKey},
	{"restart", testRestart},
	{"remount", testRemount},
	{"nest", testNest},
}

// env is one driver on a root of its own, seen through a wire.
type env struct {
	*testing.T
	wire    wiretest.Wire
	factory Factory
	root    string
	rebase  bool

	near Driver                   // the driver
	d    snapshotters.Snapshotter // the far end of the wire to it
}

func newEnv(t *testing.T, w wiretest.Wire, factory Factory) *env {
	e := &env{T: t, wire: w, factory: factory, root: filepath.Join(t.TempDir(), "root")}
	e.open()
	t.Cleanup(e.close)
	return e
}

// open makes a driver serve the root.
func (e *env) open() {
	e.Helper()
	e.near = e.factory()
	i, err := e.near.Info(e.Context())
	if err != nil {
		e.Fatal(err)
	}
	if i.Family != plugins.Snapshotter || i.Name == "" || i.Version == "" {
		e.Fatalf("info: %+v", i)
	}
	e.rebase = slices.Contains(i.Capabilities, snapshotters.Rebase)
	if err := configure(e.Context(), e.near, e.root); err != nil {
		e.Fatal(err)
	}
	e.d = wiretest.Over[snapshotters.Snapshotter](e.T, e.wire, e.near, snapshotters.Register, snapshotters.NewClient)
}

func configure(ctx context.Context, d Driver, root string) error {
	return d.Configure(ctx, plugins.Config{Root: root, State: root + ".state", Options: json.RawMessage(`{}`)})
}

func (e *env) close() {
	e.Helper()
	if c, ok := e.near.(io.Closer); ok && e.near != nil {
		if err := c.Close(); err != nil {
			e.Error(err)
		}
	}
	e.near = nil
}

// restart replaces the driver by another on the same root.
func (e *env) restart() {
	e.Helper()
	e.close()
	e.open()
}

// ctx is for one call.
func (e *env) ctx() context.Context {
	ctx, cancel := context.WithTimeoutCause(e.Context(), callTime, context.DeadlineExceeded)
	e.Cleanup(cancel)
	return ctx
}

func (e *env) prepare(key, parent string) []plugins.Mount {
	e.Helper()
	m, err := e.d.Prepare(e.ctx(), key, parent, snapshotters.Options{})
	if err != nil {
		e.Fatal(err)
	}
	e.wellFormed(m)
	return m
}

func (e *env) view(key, parent string) []plugins.Mount {
	e.Helper()
	m, err := e.d.View(e.ctx(), key, parent, snapshotters.Options{})
	if err != nil {
		e.Fatal(err)
	}
	e.wellFormed(m)
	return m
}

func (e *env) commit(key, name, parent string) {
	e.Helper()
	if err := e.d.Commit(e.ctx(), key, name, parent); err != nil {
		e.Fatal(err)
	}
}

func (e *env) remove(key string) {
	e.Helper()
	if err := e.d.Remove(e.ctx(), key); err != nil {
		e.Fatal(err)
	}
}

// wellFormed looks at an answer of Prepare, View or Mounts.
func (e *env) wellFormed(m []plugins.Mount) {
	e.Helper()
	if len(m) == 0 || m[0].Target != "" || m[0].Type != "bind" && m[0].Type != "overlay" {
		e.Fatalf("mounts %+v: want a bind or an overlay on \"\" first", m)
	}
}

// want fails unless err is of a class.
func (e *env) want(is func(error) bool, err error, what string) {
	e.Helper()
	if err == nil || !is(err) {
		e.Errorf("%s: got error %v", what, err)
	}
}

// all lists the driver, by key.
func (e *env) all() map[string]snapshotters.Info {
	e.Helper()
	out := map[string]snapshotters.Info{}
	for i, err := range e.d.All(e.ctx()) {
		if err != nil {
			e.Fatal(err)
		}
		if _, twice := out[i.Key]; twice {
			e.Errorf("all: %q comes twice", i.Key)
		}
		if !i.Committed && (i.Bytes != -1 || i.Inodes != -1) {
			e.Errorf("all: %q has %d bytes and %d inodes, and is written to", i.Key, i.Bytes, i.Inodes)
		}
		i.Bytes, i.Inodes = -1, -1 // tested by stat
		out[i.Key] = i
	}
	return out
}

// layer makes the committed snapshot name on parent, with what steps make of the parent, as an unpacker would.
func (e *env) layer(name, parent string, steps ...step) {
	e.Helper()
	e.layerKeyed("unpack "+name, name, parent, steps...)
}

func (e *env) layerKeyed(key, name, parent string, steps ...step) {
	e.Helper()
	on := parent
	if e.rebase {
		on = ""
	}
	m := e.prepare(key, on)
	e.inside(m, func(dir string) {
		if err := apply(dir, e.rebase, steps); err != nil {
			e.Fatal(err)
		}
	})
	e.commit(key, name, parent)
}

// inside mounts m where nobody sees it, for the time of fn.
func (e *env) inside(m []plugins.Mount, fn func(dir string)) {
	e.Helper()
	dir, done, err := mount(m)
	if err != nil {
		e.Fatalf("mount %+v: %v", m, err)
	}
	defer func() {
		if err := done(); err != nil {
			e.Error(err)
		}
	}()
	fn(dir)
}
