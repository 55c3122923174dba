package meta

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	storev1 "github.com/gantryd/gantry/proto/gantry/store/v1"
)

// together runs functions as one group: it leads with a function of its own until all of them wait.
func together(t *testing.T, db *DB, fns ...func(*Tx) error) []error {
	t.Helper()
	errs := make([]error, len(fns))
	var wg, leads sync.WaitGroup
	holding, release := make(chan struct{}), make(chan struct{})
	leads.Go(func() {
		_ = db.Update(func(*Tx) error { close(holding); <-release; return nil })
	})
	<-holding
	for i, fn := range fns {
		wg.Go(func() {
			defer func() {
				if r := recover(); r != nil {
					errs[i] = fmt.Errorf("panic: %v", r)
				}
			}()
			errs[i] = errors.New("its goroutine ended")
			errs[i] = db.Update(fn)
		})
		waitFor(t, func() bool {
			db.writers.mu.Lock()
			defer db.writers.mu.Unlock()
			return len(db.writers.waiting) == i+1
		})
	}
	close(release)
	wg.Wait()
	leads.Wait()
	return errs
}

func waitFor(t *testing.T, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !cond(); runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatal("it did not come to be")
		}
	}
}

// TestGroup: many functions, one commit; each sees those before it, and of those that fail or
// panic nothing is left, in the file or in memory.
func TestGroup(t *testing.T) {
	db := fresh(t)
	no := errors.New("no")
	put := func(id string) func(*Tx) error {
		return func(tx *Tx) error { return containers.Put(tx, id, container(id, "n"+id)) }
	}
	before := txid(t, db)
	errs := together(t, db,
		put("a"),
		func(tx *Tx) error { // reads what its neighbour wrote, changes all there is, and fails
			if !containers.Has(tx, "a") {
				t.Error("a is not seen")
			}
			if _, err := tx.Begin("lost", &storev1.Claim{Ref: &storev1.Ref{Kind: "k", Key: "x"}, Mode: Make}); err != nil {
				t.Error(err)
			}
			return errors.Join(containers.Put(tx, "a", container("a", "other")), containers.Put(tx, "b", container("b", "")), containers.Delete(tx, "a"),
				containers.Put(tx, "a", container("a", "third")), Names("container").Reserve(tx, "web", "b"), no)
		},
		put("c"),
		func(tx *Tx) error { _ = containers.Put(tx, "c", container("c", "spoilt")); panic("oh") },
		func(tx *Tx) error { return Names("container").Reserve(tx, "web", "c") },
		func(tx *Tx) error {
			_, err := tx.Begin("kept", &storev1.Claim{Ref: &storev1.Ref{Kind: "k", Key: "x"}, Mode: Make})
			return err
		},
	)
	for i, want := range []string{"", "no", "", "panic: in a transaction: oh", "", ""} {
		if got := fmt.Sprint(errs[i]); want == "" && errs[i] != nil || !strings.HasPrefix(got, want) {
			t.Errorf("function %d: %v, want %q", i, errs[i], want)
		}
	}
	if n := txid(t, db) - before; n != 1 {
		t.Errorf("%d commits", n)
	}
	read(t, db, func(tx *Tx) {
		var got []string
		for id, c := range containers.All(tx) {
			got = append(got, fmt.Sprint(id, c.Meta.Name, c.Meta.Revision))
		}
		if !slices.Equal(got, []string{"ana1", "cnc2"}) || tx.Revision() != 2 {
			t.Errorf("%v, revision %d", got, tx.Revision())
		}
		if id, err := Names("container").Resolve(tx, "web"); id != "c" {
			t.Errorf("web is %q, %v", id, err)
		}
		for op := range tx.Ops() {
			if op.Verb != "kept" || op.Id != "op-0000000000000001" {
				t.Errorf("operation %v", op)
			}
		}
	})
	if len(db.journal.ops) != 1 || len(db.journal.held) != 1 || db.Revision() != 2 {
		t.Errorf("in memory: %v, %v, %d", db.journal.ops, db.journal.held, db.Revision())
	}
}

func txid(t *testing.T, db *DB) (n int) {
	t.Helper()
	read(t, db, func(tx *Tx) { n = tx.t.ID() })
	return n
}

// TestNothingIsFree: a function that writes nothing costs no commit.
func TestNothingIsFree(t *testing.T) {
	db := fresh(t)
	before := txid(t, db)
	op := must(db.Begin("x", &storev1.Claim{Ref: &storev1.Ref{Kind: "k", Key: "x"}, Mode: Make}))(t)
	for range 5 {
		write(t, db, func(*Tx) error { return nil })
		if err := op.Claim(op.Claims()...); err != nil {
			t.Fatal(err)
		}
		if err := op.Claim(&storev1.Claim{Ref: &storev1.Ref{Kind: "k", Key: "x"}, Mode: Use}); err != nil { // it holds more
			t.Fatal(err)
		}
		if _, err := db.Begin("rival", op.Claims()...); !errdefs.IsAborted(err) {
			t.Fatal(err)
		}
	}
	if n := txid(t, db) - before; n != 1 || len(op.Claims()) != 1 {
		t.Errorf("%d commits, claims %v", n, op.Claims())
	}
}

// TestGoexit: a function that ends its goroutine fails its group, and the store goes on.
func TestGoexit(t *testing.T) {
	db := fresh(t)
	var wg sync.WaitGroup
	wg.Go(func() {
		_ = db.Update(func(tx *Tx) error {
			_ = containers.Put(tx, "a", container("a", ""))
			runtime.Goexit()
			return nil
		})
	})
	wg.Wait()
	puts(t, db, 0, 1)
	errs := together(t, db,
		func(tx *Tx) error { return containers.Put(tx, "b", container("b", "")) },
		func(*Tx) error { runtime.Goexit(); return nil },
		func(tx *Tx) error { return containers.Put(tx, "c", container("c", "")) })
	if errs[0] == nil || errs[1] == nil || errs[2] != nil {
		t.Errorf("%v", errs)
	}
	read(t, db, func(tx *Tx) {
		if got := slices.Collect(containers.keys(tx, "")); !slices.Equal(got, []string{"0", "c"}) || tx.Revision() != 2 {
			t.Errorf("%v, revision %d", got, tx.Revision())
		}
	})
}

// TestModel runs random transactions from many goroutines, some of which fail half way, and
// compares with a map that is changed when they succeed.
func TestModel(t *testing.T) {
	db := fresh(t)
	var mu sync.Mutex
	model := map[string]string{}
	var wg sync.WaitGroup
	for g := range 8 {
		r := rand.New(rand.NewPCG(uint64(g), 1))
		wg.Go(func() {
			for n := range 60 {
				seed := r.Uint64()
				err := db.Update(func(tx *Tx) error {
					r := rand.New(rand.NewPCG(seed, 2))
					mu.Lock()
					defer mu.Unlock()
					next := maps.Clone(model)
					for range r.IntN(8) {
						id := fmt.Sprint(r.IntN(30))
						if c, err := containers.Get(tx, id); next[id] != "" != (err == nil) || err == nil && c.Meta.Name != next[id] {
							t.Errorf("%s is %v, %v, and should be %q", id, c, err, next[id])
						}
						if r.IntN(3) == 0 {
							delete(next, id)
							if err := containers.Delete(tx, id); err != nil {
								return err
							}
							continue
						}
						next[id] = fmt.Sprint(g, "-", n)
						if err := containers.Put(tx, id, container(id, next[id])); err != nil {
							return err
						}
					}
					if r.IntN(3) == 0 {
						return errBad
					}
					model = next
					return nil
				})
				if err != nil && !errors.Is(err, errBad) {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	read(t, db, func(tx *Tx) {
		got := map[string]string{}
		for id, c := range containers.All(tx) {
			got[id] = c.Meta.Name
		}
		if !maps.Equal(got, model) {
			t.Errorf("got %v, want %v", got, model)
		}
		// the history tells the same
		last, told := tx.Revision(), map[string]string{}
		batch, err := db.Events(0, 1<<20)
		if err != nil || len(batch) != int(last) {
			t.Fatalf("%d events up to %d, %v", len(batch), last, err)
		}
		for _, e := range batch {
			if told[e.Id] = e.Facts["name"]; e.Verb == "remove" {
				delete(told, e.Id)
			}
		}
		if !maps.Equal(told, model) {
			t.Errorf("history tells %v, want %v", told, model)
		}
	})
	if err := db.Verify(func(s, d string) { t.Error(s, d) }); err != nil {
		t.Error(err)
	}
}

var errBad = errors.New("bad")

// TestReadersWaitForNobody reads while a writer is stuck in its function.
func TestReadersWaitForNobody(t *testing.T) {
	db := fresh(t)
	puts(t, db, 0, 1)
	holding, release := make(chan struct{}), make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		_ = db.Update(func(tx *Tx) error {
			_ = containers.Delete(tx, "0")
			close(holding)
			<-release
			return nil
		})
	})
	<-holding
	read(t, db, func(tx *Tx) {
		if !containers.Has(tx, "0") {
			t.Error("a change is seen before it is committed")
		}
	})
	close(release)
	wg.Wait()
}

func TestSlow(t *testing.T) {
	var log bytes.Buffer
	db := fresh(t, WithLogger(slog.New(slog.NewTextHandler(&log, nil))))
	write(t, db, func(*Tx) error { time.Sleep(slow); return nil })
	read(t, db, func(*Tx) { time.Sleep(slow) })
	if s := log.String(); strings.Count(s, "transaction was slow") != 2 || !strings.Contains(s, "kind=update") || !strings.Contains(s, "table_test.go:") {
		t.Errorf("log %s", s)
	}
	db = fresh(t, WithLogger(quiet), Strict(slow))
	defer func() {
		if recover() == nil {
			t.Error("strict is not")
		}
	}()
	_ = db.Update(func(*Tx) error { time.Sleep(slow + time.Millisecond); return nil })
}

// BenchmarkUpdate shows what grouping is worth: 8 and 64 callers against one.
func BenchmarkUpdate(b *testing.B) {
	for _, callers := range []int{1, 8, 64} {
		b.Run(fmt.Sprint(callers, "-callers"), func(b *testing.B) {
			db := fresh(b)
			b.SetParallelism(max(1, callers/runtime.GOMAXPROCS(0)))
			if callers == 1 {
				for i := 0; b.Loop(); i++ {
					puts(b, db, i, i+1)
				}
				return
			}
			b.RunParallel(func(pb *testing.PB) {
				id := fmt.Sprint(rand.Uint32())
				for pb.Next() {
					if err := db.Update(func(tx *Tx) error { return containers.Put(tx, id, container(id, "")) }); err != nil {
						b.Error(err)
					}
				}
			})
		})
	}
}

// BenchmarkJournal claims in a full journal.
func BenchmarkJournal(b *testing.B) {
	db := fresh(b)
	for i := range maxOps - 1 {
		var claims []*storev1.Claim
		for j := range 20 {
			claims = append(claims, &storev1.Claim{Ref: &storev1.Ref{Kind: "k", Key: fmt.Sprint(i, j)}, Mode: Make})
		}
		if _, err := db.Begin("x", claims...); err != nil {
			b.Fatal(err)
		}
	}
	c := &storev1.Claim{Ref: &storev1.Ref{Kind: "k", Key: "new"}, Mode: Make}
	for b.Loop() {
		op, err := db.Begin("y", c)
		if err != nil {
			b.Fatal(err)
		}
		if err := op.Commit(nil); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkOpen opens a store of 1,000 containers with a full history.
func BenchmarkOpen(b *testing.B) {
	db := fresh(b)
	for range 11 {
		write(b, db, func(tx *Tx) error {
			for j := range 1000 {
				c := container(fmt.Sprint(j), strings.Repeat("n", 20))
				c.Meta.Labels = map[string]string{"a": strings.Repeat("x", 1500)}
				if err := containers.Put(tx, fmt.Sprint(j), c); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := db.Close(); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		db, err := Open(db.Path())
		if err != nil {
			b.Fatal(err)
		}
		n := 0
		read(b, db, func(tx *Tx) { n = containers.Count(tx) })
		if err := db.Close(); err != nil || n != 1000 {
			b.Fatal(err, n)
		}
	}
}
