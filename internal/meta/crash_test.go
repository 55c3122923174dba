package meta

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	containersv1 "github.com/gantryd/gantry/proto/gantry/containers/v1"
	storev1 "github.com/gantryd/gantry/proto/gantry/store/v1"
	typesv1 "github.com/gantryd/gantry/proto/gantry/types/v1"
)

var containers = NewTable("containers", func() *containersv1.Container { return &containersv1.Container{} })

// driver is a storage driver with a durable set of keys and no other memory.
type driver struct{ held map[string]bool }

var errCrash = errors.New("crash")

// create is container.create in small: two side effects, each claimed first.
// point(i) is called between any two steps.
func create(ctx context.Context, db *DB, snap, vol *driver, id string, point func() error) error {
	op, err := db.Begin("container.create", &storev1.Claim{Ref: &storev1.Ref{Kind: "container", Key: id}, Mode: Make})
	if err != nil {
		return err
	}
	for _, s := range []struct {
		kind string
		d    *driver
	}{{"snapshot", snap}, {"volume", vol}} {
		if err := point(); err != nil {
			return err
		}
		if err := op.Claim(&storev1.Claim{Ref: &storev1.Ref{Kind: s.kind, Key: id}, Mode: Make}); err != nil {
			return err
		}
		if err := point(); err != nil {
			return err
		}
		s.d.held[id] = true // the plugin call, outside any transaction
	}
	if err := point(); err != nil {
		return err
	}
	if err := op.Commit(func(tx *Tx) error {
		return containers.Put(tx, id, &containersv1.Container{Meta: &typesv1.Meta{Id: id}})
	}); err != nil {
		return err
	}
	return point()
}

// remove is container.remove in small: claim, drop outside, commit.
func remove(ctx context.Context, db *DB, snap, vol *driver, id string, point func() error) error {
	ref := func(k string) *storev1.Claim {
		return &storev1.Claim{Ref: &storev1.Ref{Kind: k, Key: id}, Mode: Drop}
	}
	op, err := db.Begin("container.remove", ref("container"), ref("snapshot"), ref("volume"))
	if err != nil {
		return err
	}
	if err := point(); err != nil {
		return err
	}
	delete(vol.held, id)
	if err := point(); err != nil {
		return err
	}
	delete(snap.held, id)
	if err := point(); err != nil {
		return err
	}
	return op.Commit(func(tx *Tx) error { return containers.Delete(tx, id) })
}

func undo(db *DB, snap, vol *driver) Undo {
	return func(ctx context.Context, c *storev1.Claim) error {
		switch c.Ref.Kind {
		case "snapshot":
			delete(snap.held, c.Ref.Key)
		case "volume":
			delete(vol.held, c.Ref.Key)
		case "container":
			return db.Update(func(tx *Tx) error { return containers.Delete(tx, c.Ref.Key) })
		}
		return nil
	}
}

// TestCrash dies at every point of create and remove, reopens, recovers, and checks
// that store and drivers agree: all of a container or none of it.
func TestCrash(t *testing.T) {
	for _, verb := range []struct {
		name string
		do   func(context.Context, *DB, *driver, *driver, string, func() error) error
	}{{"create", create}, {"remove", remove}} {
		for die := 0; ; die++ {
			path := filepath.Join(t.TempDir(), "db")
			db, err := Open(path)
			if err != nil {
				t.Fatal(err)
			}
			snap, vol := &driver{map[string]bool{}}, &driver{map[string]bool{}}
			if err := create(t.Context(), db, snap, vol, "base", func() error { return nil }); err != nil {
				t.Fatal(err)
			}
			id := "c"
			if verb.name == "remove" {
				id = "base"
			}
			n := 0
			err = verb.do(t.Context(), db, snap, vol, id, func() error {
				n++
				if n-1 == die {
					return errCrash
				}
				return nil
			})
			crashed := errors.Is(err, errCrash)
			if err != nil && !crashed {
				t.Fatal(err)
			}
			if err := db.Close(); err != nil { // the process is gone; only disk and drivers remain
				t.Fatal(err)
			}
			if db, err = Open(path); err != nil {
				t.Fatal(err)
			}
			// a rival must be refused while the journal holds the claim
			if crashed {
				err := db.Update(func(tx *Tx) error {
					for op := range tx.Ops() {
						_, _ = op, tx
					}
					return nil
				})
				if err != nil {
					t.Fatal(err)
				}
				rival, err := db.Begin("rival", &storev1.Claim{Ref: &storev1.Ref{Kind: "container", Key: id}, Mode: Use})
				if verb.name == "create" && n <= 4 && !errdefs.IsAborted(err) {
					t.Errorf("%s die=%d: rival got %v, want aborted", verb.name, die, err)
				}
				if err == nil {
					if err := rival.Abort(t.Context()); err != nil {
						t.Fatal(err)
					}
				}
			}
			for _, k := range []string{"snapshot", "volume", "container"} {
				db.OnUndo(k, undo(db, snap, vol))
			}
			if err := db.Recover(t.Context()); err != nil {
				t.Fatal(err)
			}
			db.View(func(tx *Tx) error {
				for _, id := range []string{"base", "c"} {
					_, err := containers.Get(tx, id)
					has := err == nil
					if snap.held[id] != has || vol.held[id] != has {
						t.Errorf("%s die=%d: %s: record %v, snapshot %v, volume %v", verb.name, die, id, has, snap.held[id], vol.held[id])
					}
				}
				for op := range tx.Ops() {
					t.Errorf("%s die=%d: left in journal: %v", verb.name, die, op)
				}
				return nil
			})
			db.Close()
			if !crashed {
				t.Logf("%s: %d crash points, all recovered", verb.name, die)
				break
			}
		}
	}
}

func BenchmarkCreate(b *testing.B) {
	db, err := Open(filepath.Join(b.TempDir(), "db"))
	if err != nil {
		b.Fatal(err)
	}
	snap, vol := &driver{map[string]bool{}}, &driver{map[string]bool{}}
	for i := 0; b.Loop(); i++ {
		if err := create(b.Context(), db, snap, vol, fmt.Sprint(i), func() error { return nil }); err != nil {
			b.Fatal(err)
		}
	}
}
