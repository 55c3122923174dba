package meta

import (
	"context"
	"errors"
	"fmt"
	"iter"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	storev1 "github.com/gantryd/gantry/proto/gantry/store/v1"
)

// The ways to hold a ref.
const (
	Use  = storev1.Claim_MODE_USE
	Make = storev1.Claim_MODE_MAKE
	Drop = storev1.Claim_MODE_DROP
)

// Op is an operation under way. It is three things in one: the intent to touch
// resources outside the store, the lease that keeps them, and the lock on them.
type Op struct {
	db   *DB
	p    *storev1.Op
	then []func(*Tx) error
}

// Then adds a write to the transaction of Commit: whoever acts under an operation records
// what came of it this way.
func (op *Op) Then(fn func(*Tx) error) { op.then = append(op.then, fn) }

// Undo takes one claim back: of Make, remove; of Drop, finish removing.
// It is idempotent, since a crash may come between it and our memory of it.
type Undo func(context.Context, *storev1.Claim) error

// OnUndo says how claims on refs of a kind are taken back. Services call it when they are made,
// before Recover.
func (db *DB) OnUndo(kind string, fn Undo) { db.undo[kind] = fn }

// Begin starts an operation holding claims. It fails with errdefs.ErrAborted, and
// names the other operation, if one of them is held in a way that does not allow it.
func (db *DB) Begin(verb string, claims ...*storev1.Claim) (*Op, error) {
	op := &Op{db: db, p: &storev1.Op{Verb: verb, BeganAt: timestamppb.Now()}}
	err := db.Update(func(tx *Tx) error {
		n, err := tx.t.Bucket(root).Bucket(ops).NextSequence()
		if err != nil {
			return err
		}
		op.p.Id = fmt.Sprintf("op-%016x", n)
		return op.claim(tx, claims)
	})
	return op, err
}

// Claim adds claims. Call it before the side effect, never after.
func (op *Op) Claim(claims ...*storev1.Claim) error {
	return op.db.Update(func(tx *Tx) error { return op.claim(tx, claims) })
}

func (op *Op) claim(tx *Tx, claims []*storev1.Claim) error {
	for other := range tx.Ops() {
		if other.Id == op.p.Id {
			continue
		}
		for _, a := range other.Claims {
			for _, b := range claims {
				if proto.Equal(a.Ref, b.Ref) && !(a.Mode == Use && b.Mode == Use) {
					return fmt.Errorf("%s %s: %s is under way (%s): %w", b.Ref.Kind, b.Ref.Key, other.Verb, other.Id, errdefs.ErrAborted)
				}
			}
		}
	}
	next := proto.CloneOf(op.p)
	next.Claims = append(next.Claims, claims...)
	raw, err := proto.Marshal(next)
	if err != nil {
		return err
	}
	if err := tx.t.Bucket(root).Bucket(ops).Put([]byte(next.Id), raw); err != nil {
		return err
	}
	op.p = next
	return nil
}

// Commit writes the records and ends the operation, in one transaction.
func (op *Op) Commit(fn func(*Tx) error) error {
	return op.db.Update(func(tx *Tx) error {
		for _, f := range append(op.then, fn) {
			if err := f(tx); err != nil {
				return err
			}
		}
		return tx.t.Bucket(root).Bucket(ops).Delete([]byte(op.p.Id))
	})
}

// Abort undoes the claims, last first, and ends the operation. If an undo fails the
// operation stays in the journal, and recovery tries again.
func (op *Op) Abort(ctx context.Context) error {
	for i := len(op.p.Claims) - 1; i >= 0; i-- {
		if c := op.p.Claims[i]; c.Mode != Use {
			undo, ok := op.db.undo[c.Ref.Kind]
			if !ok {
				return fmt.Errorf("undo %s: no undo for kind %q", op.p.Verb, c.Ref.Kind)
			}
			if err := undo(ctx, c); err != nil {
				return fmt.Errorf("undo %s: %s %s: %w", op.p.Verb, c.Ref.Kind, c.Ref.Key, err)
			}
		}
	}
	op.then = nil
	return op.Commit(func(*Tx) error { return nil })
}

// Ops ranges over the operations under way.
func (tx *Tx) Ops() iter.Seq[*storev1.Op] {
	return func(yield func(*storev1.Op) bool) {
		c := tx.t.Bucket(root).Bucket(ops).Cursor()
		for k, raw := c.First(); k != nil; k, raw = c.Next() {
			op := &storev1.Op{}
			if proto.Unmarshal(raw, op) != nil || !yield(op) {
				return
			}
		}
	}
}

// Recover aborts every operation the last daemon left under way.
func (db *DB) Recover(ctx context.Context) error {
	var left []*storev1.Op
	if err := db.View(func(tx *Tx) error {
		for op := range tx.Ops() {
			left = append(left, op)
		}
		return nil
	}); err != nil {
		return err
	}
	var errs []error
	for _, p := range left {
		errs = append(errs, (&Op{db: db, p: p}).Abort(ctx))
	}
	return errors.Join(errs...)
}
