package meta

import (
	"context"
	"encoding/binary"
	"fmt"
	"iter"
	"maps"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	eventsv1 "github.com/gantryd/gantry/proto/gantry/events/v1"
)

const (
	// maxEvents is how many events are kept at least.
	maxEvents = 10_000
	// trimEvery is how many more there may be: old events go many at a time, because each time
	// costs two pages.
	trimEvery = 64
	// watchBatch is how many events are read in one transaction.
	watchBatch = 256
)

// history tells those who follow the store that there is more to read. It carries no event: who
// wakes up reads from where it was, so that nothing can be lost on the way.
type history struct {
	newest atomic.Uint64
	closed chan struct{}

	mu   sync.Mutex
	wake chan struct{} // closed, and replaced, when there is more
	over bool
}

// more is closed when there are events that the caller has not seen, if it asks before it reads.
func (h *history) more() <-chan struct{} {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.wake
}

func (h *history) reached(rev uint64) {
	h.newest.Store(rev)
	h.mu.Lock()
	defer h.mu.Unlock()
	close(h.wake)
	h.wake = make(chan struct{})
}

func (h *history) close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.over {
		h.over = true
		close(h.closed)
	}
}

func revisionKey(rev uint64) []byte { return binary.BigEndian.AppendUint64(nil, rev) }

// record writes an event in the transaction it tells of, and returns its revision.
func (tx *Tx) record(kind, id, verb string, facts map[string]string) (uint64, error) {
	b := tx.bucket(eventsBucket)
	b.FillPercent = 0.95 // they only ever come at the end
	n, err := tx.next(b)
	if err != nil {
		return 0, err
	}
	raw, err := proto.Marshal(&eventsv1.Event{
		Revision: n, At: timestamppb.Now(), Kind: kind, Id: readable([]byte(id)), Verb: verb, Facts: maps.Clone(facts),
	})
	if err != nil {
		return 0, fmt.Errorf("event of %s %q: %w", kind, readable([]byte(id)), err)
	}
	if err := tx.put(b, revisionKey(n), raw); err != nil {
		return 0, err
	}
	tx.then(func() { tx.db.history.reached(n) })
	if n%trimEvery == 0 && n > tx.db.keep {
		return n, tx.trim(n - tx.db.keep)
	}
	return n, nil
}

// trim deletes the events up to rev.
func (tx *Tx) trim(rev uint64) error {
	b := tx.bucket(eventsBucket)
	var old [][]byte
	c := b.Cursor()
	for k, _ := c.First(); k != nil && binary.BigEndian.Uint64(k) <= rev; k, _ = c.Next() {
		old = append(old, slices.Clone(k))
	}
	for _, k := range old {
		if err := tx.del(b, k); err != nil {
			return err
		}
	}
	return nil
}

// Revision is the revision of the last change that this transaction sees. A list that was read
// in a transaction is followed without a gap by Watch after its revision.
func (tx *Tx) Revision() uint64 { return tx.bucket(eventsBucket).Sequence() }

// Revision is the revision of the last change on disk.
func (db *DB) Revision() uint64 { return db.history.newest.Load() }

// Kept is the oldest revision that Watch can begin after.
func (tx *Tx) Kept() uint64 {
	k, _ := tx.bucket(eventsBucket).Cursor().First()
	if k == nil {
		return tx.Revision()
	}
	return binary.BigEndian.Uint64(k) - 1
}

// Kept is the oldest revision on disk that Watch can begin after.
func (db *DB) Kept() (rev uint64, err error) {
	err = db.View(func(tx *Tx) error {
		rev = tx.Kept()
		return nil
	})
	return rev, err
}

// Watch ranges over the events after a revision: first those that were, then those that come,
// until ctx ends (whose cause is then the last error) or the caller breaks off. It fails with
// OutOfRange if events after that revision are no longer kept, also when the caller is so slow
// that this happens on the way, or if the store has not been there: list, and watch from what was
// listed.
func (db *DB) Watch(ctx context.Context, after uint64) iter.Seq2[*eventsv1.Event, error] {
	return func(yield func(*eventsv1.Event, error) bool) {
		for {
			more := db.history.more()
			batch, err := db.Events(after, watchBatch)
			if err != nil {
				yield(nil, err)
				return
			}
			for _, e := range batch {
				if ctx.Err() != nil {
					break
				}
				after = e.Revision
				if !yield(e, nil) {
					return
				}
			}
			if len(batch) > 0 && ctx.Err() == nil {
				continue
			}
			select {
			case <-more:
			case <-db.history.closed:
				yield(nil, fmt.Errorf("watch the store: it is closed: %w", errdefs.ErrUnavailable))
				return
			case <-ctx.Done():
				yield(nil, context.Cause(ctx))
				return
			}
		}
	}
}

// Events reads up to limit events after a revision. It fails as Watch does.
func (db *DB) Events(after uint64, limit int) ([]*eventsv1.Event, error) {
	var batch []*eventsv1.Event
	err := db.View(func(tx *Tx) error {
		if now := tx.Revision(); after > now {
			return fmt.Errorf("watch after revision %d: the store is at %d: list, then watch from there: %w", after, now, errdefs.ErrOutOfRange)
		}
		if kept := tx.Kept(); after < kept {
			return fmt.Errorf("watch after revision %d: events are kept since %d: list, then watch from there: %w", after, kept, errdefs.ErrOutOfRange)
		}
		c := tx.bucket(eventsBucket).Cursor()
		for k, raw := c.Seek(revisionKey(after + 1)); k != nil && len(batch) < limit; k, raw = c.Next() {
			e := &eventsv1.Event{}
			if err := proto.Unmarshal(raw, e); err != nil {
				// the change itself is known, what it was is not: the reader lists again
				return fmt.Errorf("event %s: %w: list, then watch from there: %w", readable(k), err, errdefs.ErrOutOfRange)
			}
			batch = append(batch, e)
		}
		return nil
	})
	return batch, err
}
