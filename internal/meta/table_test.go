package meta

import (
	"errors"
	"io"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"

	containersv1 "github.com/gantryd/gantry/proto/gantry/containers/v1"
	networksv1 "github.com/gantryd/gantry/proto/gantry/networks/v1"
	storev1 "github.com/gantryd/gantry/proto/gantry/store/v1"
	typesv1 "github.com/gantryd/gantry/proto/gantry/types/v1"
)

var (
	quiet     = slog.New(slog.NewTextHandler(io.Discard, nil))
	endpoints = NewTable("endpoints", func() *networksv1.Endpoint { return &networksv1.Endpoint{} })
	blobs     = NewTable("blobs", func() *storev1.Blob { return &storev1.Blob{} })
	phased    = NewTable("containers", func() *containersv1.Container { return &containersv1.Container{} },
		func(c *containersv1.Container) map[string]string {
			return map[string]string{"phase": c.GetStatus().GetPhase().String()}
		})
)

// fresh is a store of a test's own. GANTRY_META_STRICT makes transactions that take longer panic.
func fresh(t testing.TB, options ...Option) *DB {
	t.Helper()
	if d, err := time.ParseDuration(os.Getenv("GANTRY_META_STRICT")); err == nil {
		options = append(options, Strict(d))
	}
	db, err := Open(filepath.Join(t.TempDir(), "gantry.db"), options...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	return db
}

func write(t testing.TB, db *DB, fn func(*Tx) error) {
	t.Helper()
	if err := db.Update(fn); err != nil {
		t.Fatal(err)
	}
}

func read(t testing.TB, db *DB, fn func(*Tx)) {
	t.Helper()
	if err := db.View(func(tx *Tx) error { fn(tx); return nil }); err != nil {
		t.Fatal(err)
	}
}

func container(id, name string) *containersv1.Container {
	return &containersv1.Container{Meta: &typesv1.Meta{Id: id, Name: name}}
}

func TestTable(t *testing.T) {
	db := fresh(t)
	c := container("c1", "web")
	c.Status = &containersv1.Status{Phase: containersv1.Phase_PHASE_RUNNING}
	write(t, db, func(tx *Tx) error {
		if _, err := phased.Get(tx, "c1"); !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), `containers "c1"`) {
			t.Errorf("get of nothing: %v", err)
		}
		return phased.Put(tx, "c1", c)
	})
	if c.Meta.Revision != 1 {
		t.Errorf("revision %d", c.Meta.Revision)
	}
	write(t, db, func(tx *Tx) error {
		return errors.Join(
			phased.Put(tx, "c1", c),
			phased.Put(tx, "c2", &containersv1.Container{}), // without a Meta: no revision, no name
			endpoints.Put(tx, Key("n1", "c1"), &networksv1.Endpoint{NetworkId: "n1"}),
			endpoints.Put(tx, Key("n1", "c2"), &networksv1.Endpoint{NetworkId: "n1"}),
			endpoints.Put(tx, Key("n10", "c1"), &networksv1.Endpoint{NetworkId: "n10"}),
			blobs.Put(tx, "sha256:x", &storev1.Blob{}),
			phased.Delete(tx, "c1"), phased.Delete(tx, "c1"), phased.Delete(tx, "never"))
	})
	read(t, db, func(tx *Tx) {
		if tx.Revision() != 7 || db.Revision() != 7 {
			t.Errorf("revision %d, %d", tx.Revision(), db.Revision())
		}
		var keys []string
		for k, e := range endpoints.Under(tx, Key("n1", "")) {
			keys = append(keys, strings.Join(Parts(k), " of ")+" "+e.NetworkId)
		}
		if !slices.Equal(keys, []string{"n1 of c1 n1", "n1 of c2 n1"}) || endpoints.Count(tx) != 3 || !blobs.Has(tx, "sha256:x") || phased.Has(tx, "c1") {
			t.Errorf("%v", keys)
		}
		for range endpoints.All(tx) {
			break // a range may end early
		}
		for what, err := range map[string]error{
			"put": phased.Put(tx, "x", c), "delete": phased.Delete(tx, "c2"), "reserve": Names("k").Reserve(tx, "a", "b"),
		} {
			if !errdefs.IsFailedPrecondition(err) {
				t.Errorf("%s in a view: %v", what, err)
			}
		}
		if _, err := tx.Begin("x"); !errdefs.IsFailedPrecondition(err) {
			t.Errorf("begin in a view: %v", err)
		}
	})
	batch, err := db.Events(0, 100)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range batch {
		line := e.Verb + " " + e.Kind + " " + e.Id
		for _, k := range slices.Sorted(maps.Keys(e.Facts)) {
			line += " " + k + "=" + e.Facts[k]
		}
		got = append(got, line)
		if e.At.AsTime().IsZero() {
			t.Errorf("%v has no time", e)
		}
	}
	want := []string{
		"create containers c1 name=web phase=PHASE_RUNNING", "update containers c1 name=web phase=PHASE_RUNNING", "create containers c2 phase=PHASE_UNSPECIFIED",
		"create endpoints n1/c1", "create endpoints n1/c2", "create endpoints n10/c1", "remove containers c1 name=web phase=PHASE_RUNNING",
	}
	if !slices.Equal(got, want) {
		t.Errorf("events\n  %s\nwant\n  %s", strings.Join(got, "\n  "), strings.Join(want, "\n  "))
	}
	for _, key := range []string{"", strings.Repeat("x", 1<<16)} {
		if err := db.Update(func(tx *Tx) error { return blobs.Put(tx, key, &storev1.Blob{}) }); !errdefs.IsInvalidArgument(err) {
			t.Errorf("a key of %d bytes: %v", len(key), err)
		}
	}
}

// TestOwn: what a read returns is the reader's, and what a write was given may be changed after.
func TestOwn(t *testing.T) {
	db := fresh(t)
	c := container("c", "one")
	write(t, db, func(tx *Tx) error { return containers.Put(tx, "c", c) })
	c.Meta.Name = "two"
	read(t, db, func(tx *Tx) {
		a, _ := containers.Get(tx, "c")
		a.Meta.Name = "three"
		if b, _ := containers.Get(tx, "c"); b.Meta.Name != "one" {
			t.Errorf("it is named %s", b.Meta.Name)
		}
	})
}

// TestDamagedRecord: the others are read, and whoever asks is told.
func TestDamagedRecord(t *testing.T) {
	db := fresh(t, WithLogger(quiet))
	write(t, db, func(tx *Tx) error {
		return errors.Join(containers.Put(tx, "a", container("a", "")), containers.Put(tx, "c", container("c", "")),
			tx.put(tx.bucket("containers"), []byte("b"), []byte{0x07}), tx.put(tx.bucket("ops"), []byte("op-x"), []byte{0x07}))
	})
	read(t, db, func(tx *Tx) {
		if tx.Damaged() != nil {
			t.Error("damaged before it was read")
		}
		if _, err := containers.Get(tx, "b"); !errdefs.IsDataLoss(err) {
			t.Errorf("get: %v", err)
		}
		var ids string
		for id := range containers.All(tx) {
			ids += id
		}
		if ids != "ac" || !errdefs.IsDataLoss(tx.Damaged()) {
			t.Errorf("read %q, %v", ids, tx.Damaged())
		}
	})
	if err := db.Recover(t.Context()); !errdefs.IsDataLoss(err) {
		t.Errorf("recover: %v", err)
	}
	var bad []string
	if err := db.Verify(func(subject, _ string) { bad = append(bad, subject) }); err != nil || !slices.Equal(bad, []string{"containers b", "ops op-x"}) {
		t.Errorf("verify: %v, %v", bad, err)
	}
	write(t, db, func(tx *Tx) error { return containers.Delete(tx, "b") }) // it can be got rid of
}

func TestNames(t *testing.T) {
	db := fresh(t)
	n, other := Names("container"), Names("volume")
	id := strings.Repeat("ab", 32)
	write(t, db, func(tx *Tx) error {
		return errors.Join(n.Reserve(tx, "web", id), n.Reserve(tx, "web", id), other.Reserve(tx, "web", "v1"))
	})
	write(t, db, func(tx *Tx) error {
		err := n.Reserve(tx, "web", "c2")
		if !errdefs.IsAlreadyExists(err) || !strings.Contains(err.Error(), `container name "web" is taken by abababababab:`) {
			t.Errorf("taken: %v", err)
		}
		for _, bad := range [][2]string{{"", "x"}, {"x", ""}, {"a\x00b", "x"}} {
			if err := n.Reserve(tx, bad[0], bad[1]); !errdefs.IsInvalidArgument(err) {
				t.Errorf("%q: %v", bad, err)
			}
		}
		if err := n.Rename(tx, "web", "www", "c2"); !errdefs.IsFailedPrecondition(err) {
			t.Errorf("rename of another's: %v", err)
		}
		if err := n.Rename(tx, "none", "www", id); !errdefs.IsNotFound(err) {
			t.Errorf("rename of nothing: %v", err)
		}
		if err := n.Reserve(tx, "db", "c2"); err != nil {
			return err
		}
		if err := n.Rename(tx, "web", "db", id); !errdefs.IsAlreadyExists(err) {
			t.Errorf("rename to what is taken: %v", err)
		}
		return errors.Join(n.Rename(tx, "web", "web", id), n.Rename(tx, "web", "www", id), n.Release(tx, "db", "not its holder"), n.Release(tx, "none", id))
	})
	read(t, db, func(tx *Tx) {
		all := maps.Collect(n.All(tx))
		if !maps.Equal(all, map[string]string{"www": id, "db": "c2"}) {
			t.Errorf("%v", all)
		}
		if v, err := other.Resolve(tx, "web"); v != "v1" || err != nil {
			t.Errorf("of another kind: %v, %v", v, err)
		}
	})
}

func TestResolve(t *testing.T) {
	db := fresh(t)
	write(t, db, func(tx *Tx) error {
		var errs []error
		for _, c := range []*containersv1.Container{container("abc1", "web"), container("abc2", "abc"), container("def1", "abc1"), container("abd1", ""), container("abd2", "")} {
			errs = append(errs, containers.Put(tx, c.Meta.Id, c))
			if c.Meta.Name != "" {
				errs = append(errs, Names("container").Reserve(tx, c.Meta.Name, c.Meta.Id))
			}
		}
		return errors.Join(errs...)
	})
	read(t, db, func(tx *Tx) {
		for ref, want := range map[string]string{
			"abc1": "abc1", // an id wins over a name
			"web":  "abc1",
			"abc":  "abc2", // a name wins over a prefix
			"de":   "def1",
		} {
			if c, err := Resolve(tx, containers, "container", ref); err != nil || c.Meta.Id != want {
				t.Errorf("%s: %v, %v", ref, c, err)
			}
		}
		for ref, is := range map[string]func(error) bool{"": errdefs.IsInvalidArgument, "ab": errdefs.IsInvalidArgument, "abd": errdefs.IsInvalidArgument, "x": errdefs.IsNotFound, "web2": errdefs.IsNotFound} {
			if _, err := Resolve(tx, containers, "container", ref); !is(err) {
				t.Errorf("%q: %v", ref, err)
			} else {
				t.Log(err)
			}
		}
	})
}

// TestRevisionIsStored: the revision is in what others read.
func TestRevisionIsStored(t *testing.T) {
	db := fresh(t)
	c := container("c", "")
	write(t, db, func(tx *Tx) error {
		return errors.Join(containers.Put(tx, "x", container("x", "")), containers.Put(tx, "c", c))
	})
	read(t, db, func(tx *Tx) {
		if got, err := containers.Get(tx, "c"); err != nil || got.Meta.Revision != 2 || !proto.Equal(got, c) {
			t.Errorf("%v, %v", got, err)
		}
	})
}

// TestVerifyWhileWritten: pages that writers free and take meanwhile are no faults.
func TestVerifyWhileWritten(t *testing.T) {
	db := fresh(t)
	puts(t, db, 0, 100)
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for i := 0; ; i = (i + 10) % 100 {
			select {
			case <-stop:
				return
			default:
				puts(t, db, i, i+10)
			}
		}
	}()
	for range 50 {
		if err := db.Verify(func(s, d string) { t.Error(s, d) }); err != nil {
			t.Error(err)
		}
	}
	close(stop)
	<-done
}
