package meta

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/gantryd/gantry/internal/fault"
	storev1 "github.com/gantryd/gantry/proto/gantry/store/v1"
)

// The ways to hold a ref.
const (
	Use  = storev1.Claim_MODE_USE
	Make = storev1.Claim_MODE_MAKE
	Drop = storev1.Claim_MODE_DROP
)

const (
	// maxClaims bounds one operation: pulling an image of 127 layers, the most that Docker makes,
	// takes three for each layer.
	maxClaims = 512
	// maxOps bounds the journal.
	maxOps = 256
	// undoTime is how long one claim's undo may take.
	undoTime = 30 * time.Second
	// undoers is how many operations Recover undoes at a time.
	undoers = 8
)

// Op is an operation under way. It is three things in one: the intent to touch resources outside
// the store, the lease that keeps them, and the lock on them. It may be used by several goroutines;
// whoever calls Commit or Abort has waited for them.
type Op struct {
	db *DB
	id string

	mu    sync.Mutex
	p     *storev1.Op // replaced, never changed
	then  []func(*Tx) error
	ended bool // committed, or being undone
}

// Undo takes one claim back: of Make, remove; of Drop, finish removing. It is idempotent, since
// a crash may come between it and our memory of it, and works without a handle.
type Undo func(context.Context, *storev1.Claim) error

// OnUndo says how claims on refs of a kind are taken back. Services call it when they are made,
// before Recover.
func (db *DB) OnUndo(kind string, fn Undo) {
	db.journal.mu.Lock()
	defer db.journal.mu.Unlock()
	db.journal.undo[kind] = fn
}

// Begin starts an operation holding claims. It fails with errdefs.ErrAborted, and names the other
// operation, if one of them is held in a way that does not allow it; with ResourceExhausted, if
// there are too many operations.
func (db *DB) Begin(verb string, claims ...*storev1.Claim) (op *Op, err error) {
	if err := db.Update(func(tx *Tx) error {
		op, err = tx.Begin(verb, claims...)
		return err
	}); err != nil {
		return nil, err
	}
	fault.Point("meta.begun")
	return op, nil
}

// Begin starts an operation in a transaction that also writes records. It has not begun before
// the transaction is on disk, and never if that fails.
func (tx *Tx) Begin(verb string, claims ...*storev1.Claim) (*Op, error) {
	n, err := tx.next(tx.bucket(opsBucket))
	if err != nil {
		return nil, err
	}
	id := fmt.Sprintf("op-%016x", n)
	op := &Op{db: tx.db, id: id, p: &storev1.Op{Id: id, Verb: verb, BeganAt: timestamppb.Now()}}
	if err := tx.db.journal.add(tx, op.p); err != nil {
		return nil, err
	}
	tx.also(func() { op.close() })
	if err := op.write(tx, op.p); err != nil {
		return nil, err
	}
	if err := op.ClaimIn(tx, claims...); err != nil {
		return nil, err
	}
	return op, nil
}

// ID names the operation. Ids sort by when it began.
func (op *Op) ID() string { return op.id }

// Claims is what the operation holds, in the order claimed.
func (op *Op) Claims() []*storev1.Claim { return slices.Clone(op.now().Claims) }

func (op *Op) now() *storev1.Op {
	op.mu.Lock()
	defer op.mu.Unlock()
	return op.p
}

// Claim adds claims. Call it before the side effect, never after. A claim that the operation
// already holds is not added again, and costs no commit. It fails as Begin does.
func (op *Op) Claim(claims ...*storev1.Claim) error {
	if err := op.db.Update(func(tx *Tx) error { return op.ClaimIn(tx, claims...) }); err != nil {
		return err
	}
	fault.Point("meta.claimed")
	return nil
}

// ClaimIn adds claims in a transaction that also writes what decided them: an address out of a
// pool, say. They hold once the transaction is on disk.
func (op *Op) ClaimIn(tx *Tx, claims ...*storev1.Claim) error {
	p, err := op.open()
	if err != nil {
		return err
	}
	next := &storev1.Op{Id: p.Id, Verb: p.Verb, BeganAt: p.BeganAt, Claims: slices.Clip(p.Claims)}
	for _, c := range claims {
		if c.GetRef().GetKind() == "" || c.GetMode() < Use || c.GetMode() > Drop {
			return fmt.Errorf("%s: claim %v names no kind or mode: %w", p.Verb, c, errdefs.ErrInvalidArgument)
		}
		if slices.ContainsFunc(next.Claims, func(have *storev1.Claim) bool { return covers(have, c) }) {
			continue
		}
		if err := op.db.journal.hold(tx, p, c); err != nil {
			return err
		}
		next.Claims = append(next.Claims, proto.CloneOf(c))
	}
	if len(next.Claims) > maxClaims {
		return fmt.Errorf("%s: more than %d claims: %w", p.Verb, maxClaims, errdefs.ErrResourceExhausted)
	}
	if len(next.Claims) == len(p.Claims) {
		return nil
	}
	return op.write(tx, next)
}

// covers reports whether an operation that holds have need not hold want as well.
func covers(have, want *storev1.Claim) bool {
	return refOf(have) == refOf(want) && (have.Mode == want.Mode || want.Mode == Use)
}

func (op *Op) open() (*storev1.Op, error) {
	op.mu.Lock()
	defer op.mu.Unlock()
	if op.ended {
		return nil, fmt.Errorf("%s: the operation has ended (%s): %w", op.p.Verb, op.id, errdefs.ErrFailedPrecondition)
	}
	return op.p, nil
}

// write puts next in the place of the operation's record.
func (op *Op) write(tx *Tx, next *storev1.Op) error {
	raw, err := proto.Marshal(next)
	if err != nil {
		return fmt.Errorf("%s: %w", next.Verb, err)
	}
	if err := tx.put(tx.bucket(opsBucket), []byte(op.id), raw); err != nil {
		return err
	}
	op.replace(tx, next)
	return nil
}

func (op *Op) replace(tx *Tx, next *storev1.Op) {
	old := op.swap(next)
	tx.also(func() { op.swap(old) })
}

func (op *Op) swap(next *storev1.Op) *storev1.Op {
	op.mu.Lock()
	defer op.mu.Unlock()
	old := op.p
	op.p = next
	return old
}

// Then adds a write to the transaction of Commit, or of Save if that is sooner: whoever acts under
// an operation records what came of it this way.
func (op *Op) Then(fn func(*Tx) error) {
	op.mu.Lock()
	defer op.mu.Unlock()
	op.then = append(op.then, fn)
}

// records runs what Then added, once, and fn.
func (op *Op) records(tx *Tx, fn func(*Tx) error) error {
	then := op.takeThen()
	tx.also(func() { op.giveThen(then) })
	for _, f := range then {
		if err := f(tx); err != nil {
			return err
		}
	}
	if fn == nil {
		return nil
	}
	return fn(tx)
}

func (op *Op) takeThen() []func(*Tx) error {
	op.mu.Lock()
	defer op.mu.Unlock()
	then := op.then
	op.then = nil
	return then
}

func (op *Op) giveThen(then []func(*Tx) error) {
	op.mu.Lock()
	defer op.mu.Unlock()
	op.then = append(then, op.then...)
}

// Commit writes the records and ends the operation, in one transaction. If it fails nothing is
// written and the operation goes on: abort it.
func (op *Op) Commit(fn func(*Tx) error) error {
	fault.Point("meta.recording")
	return op.db.Update(func(tx *Tx) error {
		p, err := op.open()
		if err != nil {
			return err
		}
		if err := op.records(tx, fn); err != nil {
			return err
		}
		return op.strike(tx, p, nil)
	})
}

// Save writes records (fn's, and those of Then) and strikes claims, in one transaction, and the
// operation goes on. What is struck will not be undone.
func (op *Op) Save(fn func(*Tx) error, strike ...*storev1.Claim) error {
	return op.db.Update(func(tx *Tx) error {
		p, err := op.open()
		if err != nil {
			return err
		}
		if err := op.records(tx, fn); err != nil {
			return err
		}
		// not p's: fn may have claimed
		left := slices.DeleteFunc(slices.Clone(op.now().Claims), func(c *storev1.Claim) bool {
			return slices.ContainsFunc(strike, func(s *storev1.Claim) bool { return refOf(s) == refOf(c) && s.Mode == c.Mode })
		})
		op.db.journal.release(tx, p.Id, op.now().Claims, left)
		return op.write(tx, &storev1.Op{Id: p.Id, Verb: p.Verb, BeganAt: p.BeganAt, Claims: left})
	})
}

// strike ends the operation, or leaves it in the journal with what is left of its claims.
func (op *Op) strike(tx *Tx, p *storev1.Op, left []*storev1.Claim) error {
	op.db.journal.release(tx, p.Id, op.now().Claims, left)
	if len(left) > 0 {
		return op.write(tx, &storev1.Op{Id: p.Id, Verb: p.Verb, BeganAt: p.BeganAt, Claims: left})
	}
	if err := tx.del(tx.bucket(opsBucket), []byte(p.Id)); err != nil {
		return err
	}
	op.db.journal.remove(tx, p.Id)
	if op.close() {
		tx.also(op.reopen)
	}
	return nil
}

func (op *Op) reopen() {
	op.mu.Lock()
	defer op.mu.Unlock()
	op.ended = false
}

// End aborts the operation unless it was committed; it is for defer:
//
//	defer op.End(ctx, &err)
//
// If undoing fails too, err says so after its own sentence, and keeps its class.
func (op *Op) End(ctx context.Context, err *error) {
	if r := recover(); r != nil {
		_ = op.Abort(ctx) // what is left is Recover's
		panic(r)
	}
	switch undone := op.Abort(ctx); {
	case undone == nil:
	case *err == nil:
		*err = undone
	default:
		*err = fmt.Errorf("%w (and %s)", *err, undone.Error())
	}
}

// Abort undoes the claims, last first, and ends the operation. It goes on past what cannot be
// undone, which stays claimed, in the journal, until Recover manages it; the error then says what
// it is. After Commit, or a second time, it does nothing. It does not stop when ctx is cancelled:
// what was begun must be taken back whether or not anybody still waits for it.
func (op *Op) Abort(ctx context.Context) error {
	if !op.close() {
		return nil
	}
	return op.undo(context.WithoutCancel(ctx))
}

// close ends the operation for everybody but the caller, and reports whether it was open.
func (op *Op) close() bool {
	op.mu.Lock()
	defer op.mu.Unlock()
	was := op.ended
	op.ended = true
	return !was
}

func (op *Op) undo(ctx context.Context) error {
	p := op.now()
	var errs []error
	var left []*storev1.Claim
	for _, c := range slices.Backward(p.Claims) {
		if c.Mode == Use {
			left = append(left, c)
			continue
		}
		if err := op.undoOne(ctx, c); err != nil {
			errs = append(errs, fmt.Errorf("undo %s: %s: %w", p.Verb, describe(c.Ref), err))
			left = append(left, c)
		}
		fault.Point("meta.undone")
	}
	slices.Reverse(left)
	if len(errs) == 0 {
		left = nil
	} // else what it uses stays too: undoing may need it
	if err := op.db.Update(func(tx *Tx) error { return op.strike(tx, p, left) }); err != nil {
		errs = append(errs, fmt.Errorf("undo %s: %w", p.Verb, err))
	}
	op.db.journal.leave(op.id)
	return errors.Join(errs...)
}

var errUndoTime = fmt.Errorf("undoing took more than %v: %w", undoTime, context.DeadlineExceeded)

func (op *Op) undoOne(ctx context.Context, c *storev1.Claim) (err error) {
	fn := op.db.journal.undoes(c.Ref.Kind)
	if fn == nil {
		return fmt.Errorf("nobody undoes kind %q: %w", c.Ref.Kind, errdefs.ErrNotImplemented)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, undoTime, errUndoTime)
	defer cancel()
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("panic: %v: %w", r, errdefs.ErrInternal)
		}
	}()
	return fn(ctx, proto.CloneOf(c))
}

// Recover undoes every operation that nobody works on: those that the last daemon left, and those
// whose Abort has failed. What still cannot be undone stays claimed; the error tells it, and
// Recover may be called again at any time.
func (db *DB) Recover(ctx context.Context) error {
	var left []string
	if err := db.View(func(tx *Tx) error {
		for p := range tx.Ops() {
			left = append(left, p.Id)
		}
		return tx.Damaged()
	}); err != nil {
		return err
	}
	errs := make([]error, len(left))
	var wg sync.WaitGroup
	slots := make(chan struct{}, undoers)
	for i, id := range left {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			errs[i] = db.recoverOne(ctx, id)
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

func (db *DB) recoverOne(ctx context.Context, id string) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	op := &Op{db: db, id: id, ended: true}
	if err := db.Update(func(tx *Tx) error { // where it cannot be committed meanwhile
		raw := tx.bucket(opsBucket).Get([]byte(id))
		if raw == nil || !db.journal.adopt(id) {
			return nil
		}
		p := &storev1.Op{}
		if err := proto.Unmarshal(raw, p); err != nil {
			db.journal.leave(id)
			return fmt.Errorf("operation %s: %w: %w", id, err, errdefs.ErrDataLoss)
		}
		op.p = p
		return nil
	}); err != nil || op.p == nil {
		return err
	}
	return op.undo(ctx)
}

// Ops ranges over the operations under way, oldest first.
func (tx *Tx) Ops() iter.Seq[*storev1.Op] {
	return func(yield func(*storev1.Op) bool) {
		c := tx.bucket(opsBucket).Cursor()
		for k, raw := c.First(); k != nil; k, raw = c.Next() {
			op := &storev1.Op{}
			if err := proto.Unmarshal(raw, op); err != nil {
				tx.miss(fmt.Errorf("operation %s: %w: %w", k, err, errdefs.ErrDataLoss))
				continue
			}
			if !yield(op) {
				return
			}
		}
	}
}

// Claims ranges over all claims of all operations.
func (tx *Tx) Claims() iter.Seq2[*storev1.Op, *storev1.Claim] {
	return func(yield func(*storev1.Op, *storev1.Claim) bool) {
		for op := range tx.Ops() {
			for _, c := range op.Claims {
				if !yield(op, c) {
					return
				}
			}
		}
	}
}
