package meta

import (
	"fmt"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
	storev1 "github.com/gantryd/gantry/proto/gantry/store/v1"
)

// ref is a Ref that can be compared.
type ref struct{ kind, scope, key string }

func refOf(c *storev1.Claim) ref {
	return ref{c.GetRef().GetKind(), c.GetRef().GetScope(), c.GetRef().GetKey()}
}

// describe names a ref for people.
func describe(r *storev1.Ref) string {
	return strings.TrimSpace(r.GetKind() + " " + strings.TrimPrefix(readable([]byte(r.GetScope()+"/"+r.GetKey())), "/"))
}

// journal is an index of the claims in the ops bucket, and who works on which operation. It is
// changed within write transactions only, of which there is one at a time, and each change is
// taken back with its transaction; mu is for those who read it from outside.
type journal struct {
	mu   sync.Mutex
	undo map[string]Undo
	ops  map[string]*entry          // by id
	held map[ref]map[string]holding // who holds what, by id of the operation
}

type entry struct {
	verb string
	live bool // somebody in this process works on it
}

// holding counts an operation's claims on one ref.
type holding struct{ uses, others int }

// load reads the journal and the history's end when the store is opened.
func (db *DB) load(tx *Tx) error {
	j := &db.journal
	j.ops, j.held = map[string]*entry{}, map[ref]map[string]holding{}
	for op := range tx.Ops() {
		j.ops[op.Id] = &entry{verb: op.Verb}
		for _, c := range op.Claims {
			j.count(op.Id, c, 1)
		}
	}
	db.history.newest.Store(tx.Revision())
	return nil
}

// full says that the journal has no room. It is a passing state, which callers may wait out.
type full struct{}

func (full) Error() string {
	return fmt.Sprintf("%d operations are under way: try again when some have ended", maxOps)
}
func (full) Temporary() bool { return true }
func (full) Unwrap() error   { return errdefs.ErrResourceExhausted }

// add notes a new operation, on which its beginner works.
func (j *journal) add(tx *Tx, op *storev1.Op) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if len(j.ops) >= maxOps {
		return fmt.Errorf("%s: %w", op.Verb, full{})
	}
	j.ops[op.Id] = &entry{verb: op.Verb, live: true}
	tx.also(func() { j.drop(op.Id) })
	return nil
}

func (j *journal) drop(id string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	delete(j.ops, id)
}

// remove forgets an operation.
func (j *journal) remove(tx *Tx, id string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	e := j.ops[id]
	delete(j.ops, id)
	tx.also(func() {
		j.mu.Lock()
		defer j.mu.Unlock()
		j.ops[id] = e
	})
}

// hold notes a claim, if nobody else's forbids it: anything but use beside use does.
func (j *journal) hold(tx *Tx, op *storev1.Op, c *storev1.Claim) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	for id, h := range j.held[refOf(c)] {
		if id != op.Id && (h.others > 0 || c.Mode != Use) {
			return fmt.Errorf("%s: %s is under way (%s): %w", describe(c.Ref), j.ops[id].verb, id, errdefs.ErrAborted)
		}
	}
	j.count(op.Id, c, 1)
	tx.also(func() { j.counted(op.Id, c, -1) })
	return nil
}

// release notes that of an operation's claims some only are left.
func (j *journal) release(tx *Tx, id string, had, left []*storev1.Claim) {
	for _, c := range left {
		j.counted(id, c, 1)
	}
	for _, c := range had {
		j.counted(id, c, -1)
	}
	tx.also(func() {
		for _, c := range had {
			j.counted(id, c, 1)
		}
		for _, c := range left {
			j.counted(id, c, -1)
		}
	})
}

func (j *journal) counted(id string, c *storev1.Claim, n int) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.count(id, c, n)
}

func (j *journal) count(id string, c *storev1.Claim, n int) {
	r := refOf(c)
	if j.held[r] == nil {
		j.held[r] = map[string]holding{}
	}
	h := j.held[r][id]
	if c.Mode == Use {
		h.uses += n
	} else {
		h.others += n
	}
	if h != (holding{}) {
		j.held[r][id] = h
		return
	}
	if delete(j.held[r], id); len(j.held[r]) == 0 {
		delete(j.held, r)
	}
}

func (j *journal) undoes(kind string) Undo {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.undo[kind]
}

// adopt takes an operation that nobody works on.
func (j *journal) adopt(id string) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	e := j.ops[id]
	if e == nil || e.live {
		return false
	}
	e.live = true
	return true
}

// leave gives it up.
func (j *journal) leave(id string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if e := j.ops[id]; e != nil {
		e.live = false
	}
}

// Left reports whether an operation is one that nobody works on: Recover will undo it.
func (db *DB) Left(id string) bool {
	db.journal.mu.Lock()
	defer db.journal.mu.Unlock()
	e := db.journal.ops[id]
	return e != nil && !e.live
}
