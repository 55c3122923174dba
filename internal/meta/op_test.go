package meta

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	storev1 "github.com/gantryd/gantry/proto/gantry/store/v1"
)

func claim(mode storev1.Claim_Mode, kind, key string) *storev1.Claim {
	return &storev1.Claim{Ref: &storev1.Ref{Kind: kind, Scope: "s", Key: key}, Mode: mode}
}

// journalOf is the journal as text: verb, then the claims.
func journalOf(t *testing.T, db *DB) (all []string) {
	t.Helper()
	read(t, db, func(tx *Tx) {
		for op := range tx.Ops() {
			line := op.Verb
			for _, c := range op.Claims {
				line += fmt.Sprintf(" %s:%s", strings.TrimPrefix(c.Mode.String(), "MODE_"), c.Ref.Key)
			}
			all = append(all, line)
		}
	})
	return all
}

// indexed compares the index in memory with the journal on disk.
func indexed(t *testing.T, db *DB) {
	t.Helper()
	held, ops := db.journal.held, db.journal.ops
	defer func() { db.journal.held, db.journal.ops = held, ops }()
	read(t, db, func(tx *Tx) { _ = db.load(tx) })
	if fmt.Sprint(held) != fmt.Sprint(db.journal.held) || len(ops) != len(db.journal.ops) {
		t.Errorf("in memory %v, %d; on disk %v, %d", held, len(ops), db.journal.held, len(db.journal.ops))
	}
}

// TestConflict tries every way to hold beside every other.
func TestConflict(t *testing.T) {
	db := fresh(t)
	for _, a := range []storev1.Claim_Mode{Use, Make, Drop} {
		for _, b := range []storev1.Claim_Mode{Use, Make, Drop} {
			first := must(db.Begin("volume.remove", claim(a, "volume", "data")))(t)
			second, err := db.Begin("container.create", claim(Use, "image", "i"), claim(b, "volume", "data"))
			if ok := a == Use && b == Use; ok != (err == nil) {
				t.Errorf("%v beside %v: %v", b, a, err)
			}
			if err != nil {
				want := fmt.Sprintf("volume s/data: volume.remove is under way (%s): aborted", first.ID())
				if !errdefs.IsAborted(err) || err.Error() != want || second != nil {
					t.Errorf("%v, want %s", err, want)
				}
			} else if err := second.Commit(nil); err != nil {
				t.Error(err)
			}
			if err := first.Commit(nil); err != nil {
				t.Error(err)
			}
			indexed(t, db)
		}
	}
	// other refs are other refs
	op := must(db.Begin("x", claim(Make, "volume", "data")))(t)
	for _, c := range []*storev1.Claim{claim(Make, "volume", "data2"), claim(Make, "network", "data"), {Ref: &storev1.Ref{Kind: "volume", Key: "data"}, Mode: Make}} {
		if err := must(db.Begin("y", c))(t).Commit(nil); err != nil {
			t.Error(err)
		}
	}
	for _, bad := range []*storev1.Claim{nil, {}, {Ref: &storev1.Ref{Kind: "k"}}, {Ref: &storev1.Ref{Key: "k"}, Mode: Use}, claim(9, "k", "k")} {
		if err := op.Claim(bad); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%v: %v", bad, err)
		}
	}
	if got := journalOf(t, db); !slices.Equal(got, []string{"x MAKE:data"}) {
		t.Errorf("journal %v", got)
	}
}

// TestSameOp: what an operation holds already is not in its own way, and stronger claims add up.
func TestSameOp(t *testing.T) {
	db := fresh(t)
	op := must(db.Begin("x", claim(Use, "k", "a")))(t)
	for _, m := range []storev1.Claim_Mode{Use, Make, Use, Make, Drop, Drop} {
		if err := op.Claim(claim(m, "k", "a")); err != nil {
			t.Fatal(err)
		}
	}
	if got := journalOf(t, db); !slices.Equal(got, []string{"x USE:a MAKE:a DROP:a"}) {
		t.Errorf("journal %v", got)
	}
	other := must(db.Begin("y", claim(Use, "k", "b")))(t)
	if err := op.Claim(claim(Use, "k", "b")); err != nil {
		t.Error(err)
	}
	if err := op.Claim(claim(Make, "k", "c"), claim(Drop, "k", "b")); !errdefs.IsAborted(err) {
		t.Errorf("while another uses it: %v", err)
	}
	if err := other.Commit(nil); err != nil {
		t.Fatal(err)
	}
	if err := op.Claim(claim(Drop, "k", "b")); err != nil {
		t.Errorf("when it does not: %v", err)
	}
	if got := journalOf(t, db); !slices.Equal(got, []string{"x USE:a MAKE:a DROP:a USE:b DROP:b"}) {
		t.Errorf("a refused claim left a part of itself: %v", got)
	}
	indexed(t, db)
}

func TestBounds(t *testing.T) {
	db := fresh(t)
	op := must(db.Begin("image.pull"))(t)
	var all []*storev1.Claim
	for i := range maxClaims {
		all = append(all, claim(Use, "blob", fmt.Sprint(i)))
	}
	if err := op.Claim(append(all, claim(Use, "blob", "one more"))...); !errdefs.IsResourceExhausted(err) {
		t.Errorf("%d claims: %v", maxClaims+1, err)
	}
	if err := op.Claim(all...); err != nil {
		t.Errorf("%d claims: %v", maxClaims, err)
	}
	for range maxOps - 1 {
		if _, err := db.Begin("y"); err != nil {
			t.Fatal(err)
		}
	}
	_, err := db.Begin("z")
	var temporary interface{ Temporary() bool }
	if !errdefs.IsResourceExhausted(err) || !errors.As(err, &temporary) || !temporary.Temporary() {
		t.Errorf("%d operations: %v", maxOps+1, err)
	}
	if err := op.Commit(nil); err != nil {
		t.Fatal(err)
	}
	if _, err := db.Begin("z"); err != nil {
		t.Errorf("with room again: %v", err)
	}
}

// TestEnd goes through the ways an operation ends.
func TestEnd(t *testing.T) {
	db := fresh(t)
	var undone []string
	fail := map[string]bool{}
	db.OnUndo("k", func(_ context.Context, c *storev1.Claim) error {
		if c.Ref.Key == "panic" {
			panic("oh")
		}
		if fail[c.Ref.Key] {
			return fmt.Errorf("driver d: %w", errdefs.ErrUnavailable)
		}
		undone = append(undone, c.Ref.Key)
		return nil
	})
	check := func(what string, err error, sentence string, wantUndone, wantJournal []string) {
		t.Helper()
		if fmt.Sprint(err) != sentence || !slices.Equal(undone, wantUndone) {
			t.Errorf("%s: %v, undone %v; want %s, %v", what, err, undone, sentence, wantUndone)
		}
		if got := journalOf(t, db); !slices.Equal(got, wantJournal) {
			t.Errorf("%s: journal %v, want %v", what, got, wantJournal)
		}
		indexed(t, db)
		undone = nil
	}

	op := must(db.Begin("a", claim(Make, "k", "1"), claim(Use, "k", "2"), claim(Drop, "k", "3")))(t)
	check("begun", nil, "<nil>", nil, []string{"a MAKE:1 USE:2 DROP:3"})
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	check("abort, and nobody waits for it", op.Abort(gone), "<nil>", []string{"3", "1"}, nil)
	check("abort again", op.Abort(gone), "<nil>", nil, nil)
	for what, err := range map[string]error{"claim": op.Claim(claim(Use, "k", "4")), "commit": op.Commit(nil), "save": op.Save(nil)} {
		if !errdefs.IsFailedPrecondition(err) {
			t.Errorf("%s after the end: %v", what, err)
		}
	}

	op = must(db.Begin("a", claim(Make, "k", "1")))(t)
	op.Then(func(tx *Tx) error { return containers.Put(tx, "x", container("x", "")) })
	failing := op.Commit(func(*Tx) error { return errBad })
	check("a commit that fails", failing, "bad", nil, []string{"a MAKE:1"})
	check("and again", op.Commit(func(*Tx) error { return errBad }), "bad", nil, []string{"a MAKE:1"})
	read(t, db, func(tx *Tx) {
		if containers.Has(tx, "x") {
			t.Error("half of it was written")
		}
	})
	check("a commit that works", op.Commit(nil), "<nil>", nil, nil)
	read(t, db, func(tx *Tx) {
		if !containers.Has(tx, "x") {
			t.Error("what Then said was forgotten")
		}
	})
	check("abort after it", op.Abort(t.Context()), "<nil>", nil, nil)

	op = must(db.Begin("a", claim(Make, "k", "1"), claim(Make, "k", "2"), claim(Use, "k", "u"), claim(Make, "k", "3"), claim(Make, "nobody", "n"), claim(Make, "k", "panic")))(t)
	fail["2"] = true
	check("abort goes on past what fails", op.Abort(t.Context()),
		"undo a: k s/panic: panic: oh: internal\nundo a: nobody s/n: nobody undoes kind \"nobody\": not implemented\nundo a: k s/2: driver d: unavailable",
		[]string{"3", "1"}, []string{"a MAKE:2 USE:u MAKE:n MAKE:panic"})
	if !db.Left(op.ID()) {
		t.Error("it is not left to recovery")
	}
	if _, err := db.Begin("rival", claim(Use, "k", "2")); !errdefs.IsAborted(err) {
		t.Errorf("what could not be undone: %v", err)
	}
	if err := must(db.Begin("rival", claim(Make, "k", "3")))(t).Commit(nil); err != nil {
		t.Errorf("what was undone: %v", err)
	}
	db.OnUndo("nobody", func(context.Context, *storev1.Claim) error { return nil })
	check("recover", db.Recover(t.Context()), "undo a: k s/panic: panic: oh: internal\nundo a: k s/2: driver d: unavailable", nil, []string{"a MAKE:2 USE:u MAKE:panic"})
	fail = nil
	db.OnUndo("k", func(context.Context, *storev1.Claim) error { undone = append(undone, "k"); return nil })
	check("recover when it can", db.Recover(t.Context()), "<nil>", []string{"k", "k"}, nil)
	check("recover of nothing", db.Recover(t.Context()), "<nil>", nil, nil)
}

// TestSave strikes some claims and goes on.
func TestSave(t *testing.T) {
	db := fresh(t)
	var undone []string
	db.OnUndo("k", func(_ context.Context, c *storev1.Claim) error { undone = append(undone, c.Ref.Key); return nil })
	op := must(db.Begin("a", claim(Make, "k", "1"), claim(Make, "k", "2"), claim(Use, "k", "3")))(t)
	op.Then(func(tx *Tx) error { return containers.Put(tx, "x", container("x", "")) })
	if err := op.Save(func(*Tx) error { return errBad }, claim(Make, "k", "1")); !errors.Is(err, errBad) {
		t.Fatal(err)
	}
	if err := op.Save(func(tx *Tx) error { return op.ClaimIn(tx, claim(Make, "k", "4")) }, claim(Make, "k", "1"), claim(Use, "k", "2")); err != nil {
		t.Fatal(err)
	}
	read(t, db, func(tx *Tx) {
		if !containers.Has(tx, "x") {
			t.Error("records were not saved")
		}
	})
	if got := journalOf(t, db); !slices.Equal(got, []string{"a MAKE:2 USE:3 MAKE:4"}) {
		t.Errorf("journal %v", got)
	}
	indexed(t, db)
	if err := op.Abort(t.Context()); err != nil || !slices.Equal(undone, []string{"4", "2"}) {
		t.Errorf("undone %v, %v", undone, err)
	}
	if err := db.Update(func(tx *Tx) error { return containers.Delete(tx, "x") }); err != nil {
		t.Fatal(err)
	}
}

// TestDeferEnd is the use of End.
func TestDeferEnd(t *testing.T) {
	db := fresh(t)
	undone := 0
	var stuck error
	db.OnUndo("k", func(context.Context, *storev1.Claim) error { undone++; return stuck })
	act := func(commit bool, fail error, panics bool) (err error) {
		op, err := db.Begin("a", claim(Make, "k", "1"))
		if err != nil {
			return err
		}
		defer op.End(t.Context(), &err)
		if panics {
			panic("oh")
		}
		if commit {
			return op.Commit(nil)
		}
		return fail
	}
	if err := act(true, nil, false); err != nil || undone != 0 {
		t.Errorf("committed: %v, %d", err, undone)
	}
	if err := act(false, errBad, false); !errors.Is(err, errBad) || undone != 1 {
		t.Errorf("failed: %v, %d", err, undone)
	}
	if err := act(false, nil, false); err != nil || undone != 2 {
		t.Errorf("forgotten: %v, %d", err, undone)
	}
	func() {
		defer func() {
			if recover() == nil || undone != 3 {
				t.Errorf("panicked: undone %d", undone)
			}
		}()
		_ = act(false, nil, true)
	}()
	stuck = errdefs.ErrUnavailable
	err := act(false, errdefs.ErrNotFound, false)
	if !errdefs.IsNotFound(err) || errdefs.IsUnavailable(err) || err.Error() != "not found (and undo a: k s/1: unavailable)" {
		t.Errorf("failed twice: %v", err)
	}
}

// TestBeginInTx begins in a transaction that fails: there is no operation, and it cannot be used.
func TestBeginInTx(t *testing.T) {
	db := fresh(t)
	var op *Op
	if err := db.Update(func(tx *Tx) (err error) {
		if op, err = tx.Begin("a", claim(Make, "k", "1")); err != nil {
			return err
		}
		return errBad
	}); !errors.Is(err, errBad) {
		t.Fatal(err)
	}
	if err := op.Claim(claim(Make, "k", "2")); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("claim: %v", err)
	}
	if err := op.Abort(t.Context()); err != nil {
		t.Errorf("abort: %v", err)
	}
	write(t, db, func(tx *Tx) (err error) {
		op, err = tx.Begin("b", claim(Make, "k", "1"))
		return errors.Join(err, containers.Put(tx, "c", container("c", "")))
	})
	if got := journalOf(t, db); !slices.Equal(got, []string{"b MAKE:1"}) || op.ID() != "op-0000000000000001" {
		t.Errorf("journal %v, %s", got, op.ID())
	}
	if err := op.Commit(nil); err != nil {
		t.Error(err)
	}
	indexed(t, db)
}

// TestManyGoroutines claims under one operation from many, while others begin and recover.
func TestManyGoroutines(t *testing.T) {
	db := fresh(t)
	var mu sync.Mutex
	undone := map[string]int{}
	db.OnUndo("k", func(_ context.Context, c *storev1.Claim) error {
		mu.Lock()
		defer mu.Unlock()
		undone[c.Ref.Key]++
		return nil
	})
	op := must(db.Begin("pull"))(t)
	var wg sync.WaitGroup
	for g := range 16 {
		wg.Go(func() {
			for n := range 8 {
				if err := op.Claim(claim(Make, "k", fmt.Sprint("one ", g*8+n)), claim(Use, "k", "shared")); err != nil {
					t.Error(err)
				}
				op.Then(func(tx *Tx) error { return containers.Put(tx, fmt.Sprint(g, n), container("", "")) })
			}
		})
		wg.Go(func() {
			other, err := db.Begin("short", claim(Make, "k", fmt.Sprint("other ", g)))
			if err != nil {
				t.Error(err)
				return
			}
			if err := db.Recover(t.Context()); err != nil { // finds nothing: all are being worked on
				t.Error(err)
			}
			if err := other.Commit(nil); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := len(op.Claims()); n != 16*8+1 || len(undone) > 0 {
		t.Errorf("%d claims, undone %v", n, undone)
	}
	indexed(t, db)
	if err := op.Commit(nil); err != nil {
		t.Fatal(err)
	}
	read(t, db, func(tx *Tx) {
		if n := containers.Count(tx); n != 16*8 {
			t.Errorf("%d records", n)
		}
	})
}

// TestRecoverOnce: two recoveries at once, and one whose time is up.
func TestRecoverOnce(t *testing.T) {
	db := fresh(t)
	for i := range 20 {
		must(db.Begin("left", claim(Make, "k", fmt.Sprint(i))))(t)
	}
	path := db.Path()
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	db = must(Open(path))(t)
	defer db.Close()
	var mu sync.Mutex
	undone := map[string]int{}
	db.OnUndo("k", func(_ context.Context, c *storev1.Claim) error {
		mu.Lock()
		defer mu.Unlock()
		undone[c.Ref.Key]++
		return nil
	})
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if err := db.Recover(gone); !errors.Is(err, context.Canceled) || len(undone) > 0 {
		t.Errorf("cancelled: %v, undone %v", err, undone)
	}
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			if err := db.Recover(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if len(undone) != 20 || slices.Max(slices.Collect(func(yield func(int) bool) {
		for _, n := range undone {
			if !yield(n) {
				return
			}
		}
	})) != 1 {
		t.Errorf("undone %v", undone)
	}
	if got := journalOf(t, db); len(got) > 0 {
		t.Errorf("journal %v", got)
	}
}

// TestUndoSeesDeadline: an undo has a limit of its own, whatever the caller's.
func TestUndoSeesDeadline(t *testing.T) {
	db := fresh(t)
	db.OnUndo("k", func(ctx context.Context, _ *storev1.Claim) error {
		if d, ok := ctx.Deadline(); !ok || time.Until(d) > undoTime {
			t.Errorf("deadline %v, %v", d, ok)
		}
		return ctx.Err()
	})
	if err := must(db.Begin("a", claim(Make, "k", "1")))(t).Abort(t.Context()); err != nil {
		t.Error(err)
	}
}
