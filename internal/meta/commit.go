package meta

import (
	"bytes"
	"errors"
	"fmt"
	"runtime/debug"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	bolt "go.etcd.io/bbolt"

	"github.com/gantryd/gantry/internal/fault"
)

const (
	// maxGroup is how many functions are committed together at most.
	maxGroup = 128
	// groupTime is how long they may take together, before whoever has not run yet is left to the
	// next group.
	groupTime = 5 * time.Millisecond
)

// writers groups the transactions of concurrent callers. A commit is one fsync, so when many
// containers start at once, the disk decides how fast; functions that come while a commit is under
// way are therefore committed together by the next. Unlike bbolt's Batch nobody is delayed, and no
// function is run twice: each is isolated by remembering what its writes replaced.
//
// There is no goroutine for it: the first caller leads, and when its group is done it hands over
// to the first of those that came meanwhile.
type writers struct {
	mu      sync.Mutex
	waiting []*call
	leading bool
}

// call is one function on its way to the disk.
type call struct {
	fn    func(*Tx) error
	wake  chan bool // true: lead; false: it is done
	took  time.Duration
	err   error
	panic any
	after []func()
}

func (w *writers) do(db *DB, fn func(*Tx) error) (time.Duration, error) {
	c := &call{fn: fn, wake: make(chan bool, 1)}
	w.mu.Lock()
	w.waiting = append(w.waiting, c)
	lead := !w.leading
	w.leading = true
	w.mu.Unlock()
	if lead || <-c.wake {
		w.lead(db)
		<-c.wake // its own: it is the first of its group
	}
	if c.panic != nil {
		panic(c.panic)
	}
	return c.took, c.err
}

// lead runs one group, of which the caller's function is the first, and hands over.
func (w *writers) lead(db *DB) {
	group := w.take()
	ran, finished := 0, false
	defer func() {
		if !finished { // a function has ended its goroutine, and with it this one
			fail(group[:ran], errors.New("a transaction function has ended its goroutine"))
		}
		w.handOver(group[:ran], group[ran:])
	}()
	db.commit(group, &ran)
	finished = true
}

func (w *writers) take() []*call {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := min(len(w.waiting), maxGroup)
	group := w.waiting[:n:n]
	w.waiting = w.waiting[n:]
	return group
}

// putBack puts calls in front of those that wait, and returns who is to lead now, if anybody.
func (w *writers) putBack(left []*call) *call {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.waiting = append(left, w.waiting...)
	if w.leading = len(w.waiting) > 0; !w.leading {
		return nil
	}
	return w.waiting[0]
}

// handOver releases who is done, and lets the first of the others lead.
func (w *writers) handOver(done, left []*call) {
	if next := w.putBack(left); next != nil {
		next.wake <- true
	}
	for _, c := range done {
		c.wake <- false
	}
}

func fail(group []*call, err error) {
	for _, c := range group {
		if c.err == nil && c.panic == nil {
			c.err = err
		}
	}
}

// writing is what a write transaction remembers, to take parts of it back.
type writing struct {
	changed bool
	// undo takes back the writes of the function that runs now.
	undo []func() error
	// memory takes back what was changed outside the file, by all functions of the group.
	memory []func()
	after  []func()
}

// commit runs functions of group until time is up, and commits them. It keeps in ran how many it
// has run.
func (db *DB) commit(group []*call, ran *int) {
	t, err := db.b.Begin(true)
	if err != nil {
		fail(group, fmt.Errorf("write store %s: %w", db.path, explain(err)))
		*ran = len(group)
		return
	}
	tx, over := &Tx{t: t, db: db, w: &writing{}}, false
	defer func() {
		if !over { // by a panic of bbolt's, or runtime.Goexit
			tx.rollback()
		}
	}()
	began, changed := time.Now(), false
	for *ran < len(group) && (*ran == 0 || time.Since(began) < groupTime) {
		c := group[*ran]
		*ran++
		if err := tx.run(c); err != nil { // what it wrote could not be taken back: nothing may stay
			tx.rollback()
			over = true
			fail(group[:*ran], err)
			return
		}
		changed = changed || c.err == nil && tx.w.changed
	}
	over = true
	if !changed { // nothing to take back, in memory either
		tx.abandon()
	} else if err := tx.commit(); err != nil {
		tx.forget()
		fail(group[:*ran], fmt.Errorf("write store %s: %w", db.path, err))
		return
	}
	for _, c := range group[:*ran] {
		for _, f := range c.after {
			f()
		}
	}
}

// run runs one function. If that fails, what it wrote is taken back; the error returned says that
// this was not possible.
func (tx *Tx) run(c *call) (err error) {
	w := tx.w
	w.changed, w.undo, w.after, tx.lost = false, nil, nil, nil
	mark := len(w.memory)
	began := time.Now()
	func() {
		defer func() {
			if r := recover(); r != nil {
				c.panic = fmt.Sprintf("in a transaction: %v\n\n%s", r, debug.Stack())
			}
		}()
		c.err = c.fn(tx)
	}()
	c.took = time.Since(began)
	if c.err == nil && c.panic == nil {
		c.after = w.after
		return nil
	}
	w.changed = false
	defer damage(&err)()
	for i := len(w.undo) - 1; i >= 0; i-- {
		if err := w.undo[i](); err != nil {
			return fmt.Errorf("take a transaction back: %w", err)
		}
	}
	for i := len(w.memory) - 1; i >= mark; i-- {
		w.memory[i]()
	}
	w.memory = w.memory[:mark]
	return nil
}

func (tx *Tx) commit() (err error) {
	defer func() {
		if err != nil && tx.t.DB() != nil {
			_ = tx.t.Rollback() // after a panic it is still open
		}
	}()
	defer damage(&err)()
	fault.Point("meta.commit")
	began := time.Now()
	if err := tx.t.Commit(); err != nil {
		return explain(err)
	}
	fault.Point("meta.committed")
	if took := time.Since(began); took > slowDisk {
		tx.db.log.Warn("disk was slow", "took", took, "path", tx.db.path)
	}
	return nil
}

func (tx *Tx) rollback() {
	tx.abandon()
	tx.forget()
}

func (tx *Tx) abandon() {
	defer func() { _ = recover() }() // a damaged file; whoever writes next hears of it
	_ = tx.t.Rollback()
}

// forget takes back what was changed outside the file.
func (tx *Tx) forget() {
	for i := len(tx.w.memory) - 1; i >= 0; i-- {
		tx.w.memory[i]()
	}
	tx.w.memory = nil
}

var errReading = fmt.Errorf("a View cannot write: %w", errdefs.ErrFailedPrecondition)

func (tx *Tx) put(b *bolt.Bucket, key, value []byte) error {
	if tx.w == nil {
		return errReading
	}
	key, old := bytes.Clone(key), bytes.Clone(b.Get(key))
	if err := b.Put(key, value); err != nil {
		return err
	}
	tx.w.changed = true
	tx.w.undo = append(tx.w.undo, func() error {
		if old == nil {
			return b.Delete(key)
		}
		return b.Put(key, old)
	})
	return nil
}

func (tx *Tx) del(b *bolt.Bucket, key []byte) error {
	if tx.w == nil {
		return errReading
	}
	key, old := bytes.Clone(key), bytes.Clone(b.Get(key))
	if old == nil {
		return nil
	}
	if err := b.Delete(key); err != nil {
		return err
	}
	tx.w.changed = true
	tx.w.undo = append(tx.w.undo, func() error { return b.Put(key, old) })
	return nil
}

func (tx *Tx) next(b *bolt.Bucket) (uint64, error) {
	if tx.w == nil {
		return 0, errReading
	}
	old := b.Sequence()
	n, err := b.NextSequence()
	if err != nil {
		return 0, err
	}
	tx.w.changed = true
	tx.w.undo = append(tx.w.undo, func() error { return b.SetSequence(old) })
	return n, nil
}

// also changes something outside the file with the transaction: undo takes it back.
func (tx *Tx) also(undo func()) { tx.w.memory = append(tx.w.memory, undo) }

// then is called when the transaction is on disk.
func (tx *Tx) then(f func()) { tx.w.after = append(tx.w.after, f) }
