// Package meta is the daemon's memory: one bbolt file, typed tables, a journal of
// operations under way, and a history of what changed.
//
// A transaction function is given no context, because nothing inside may wait.
package meta

import (
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"time"

	"github.com/containerd/errdefs"
	bolt "go.etcd.io/bbolt"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	eventsv1 "github.com/gantryd/gantry/proto/gantry/events/v1"
)

var root, ops, events = []byte("v1"), []byte("ops"), []byte("events")

// DB is the daemon's memory.
type DB struct {
	b    *bolt.DB
	undo map[string]Undo
}

// Open opens, or makes, the database at path.
func Open(path string) (*DB, error) {
	b, err := bolt.Open(path, 0o600, &bolt.Options{Timeout: time.Second})
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	err = b.Update(func(tx *bolt.Tx) error {
		r, err := tx.CreateBucketIfNotExists(root)
		if err != nil {
			return err
		}
		for _, n := range [][]byte{ops, events} {
			if _, err := r.CreateBucketIfNotExists(n); err != nil {
				return err
			}
		}
		return nil
	})
	return &DB{b, map[string]Undo{}}, errors.Join(err)
}

// Close closes the database.
func (db *DB) Close() error { return db.b.Close() }

// Tx is a transaction.
type Tx struct{ t *bolt.Tx }

func (tx *Tx) table(name string) *bolt.Bucket { return tx.t.Bucket(root).Bucket([]byte(name)) }

// View reads a consistent moment.
func (db *DB) View(fn func(*Tx) error) error {
	return db.b.View(func(t *bolt.Tx) error { return fn(&Tx{t}) })
}

// Update changes the store, all or nothing.
func (db *DB) Update(fn func(*Tx) error) error {
	return db.b.Update(func(t *bolt.Tx) error { return fn(&Tx{t}) })
}

// Table is a set of records of one type. Writing one records an event.
type Table[T proto.Message] struct {
	name string
	make func() T
}

// NewTable declares a table.
func NewTable[T proto.Message](name string, mk func() T) Table[T] { return Table[T]{name, mk} }

// Get reads one record.
func (t Table[T]) Get(tx *Tx, id string) (T, error) {
	v := t.make()
	b := tx.table(t.name)
	if b == nil {
		return v, fmt.Errorf("%s %q: %w", t.name, id, errdefs.ErrNotFound)
	}
	raw := b.Get([]byte(id))
	if raw == nil {
		return v, fmt.Errorf("%s %q: %w", t.name, id, errdefs.ErrNotFound)
	}
	return v, proto.Unmarshal(raw, v)
}

// Put writes one record.
func (t Table[T]) Put(tx *Tx, id string, v T) error {
	b, err := tx.t.Bucket(root).CreateBucketIfNotExists([]byte(t.name))
	if err != nil {
		return err
	}
	verb := "update"
	if b.Get([]byte(id)) == nil {
		verb = "create"
	}
	raw, err := proto.Marshal(v)
	if err != nil {
		return err
	}
	if err := b.Put([]byte(id), raw); err != nil {
		return err
	}
	return tx.record(t.name, id, verb)
}

// Delete removes one record.
func (t Table[T]) Delete(tx *Tx, id string) error {
	b := tx.table(t.name)
	if b == nil || b.Get([]byte(id)) == nil {
		return nil
	}
	if err := b.Delete([]byte(id)); err != nil {
		return err
	}
	return tx.record(t.name, id, "remove")
}

// All ranges over the records, in key order.
func (t Table[T]) All(tx *Tx) iter.Seq2[string, T] {
	return func(yield func(string, T) bool) {
		b := tx.table(t.name)
		if b == nil {
			return
		}
		c := b.Cursor()
		for k, raw := c.First(); k != nil; k, raw = c.Next() {
			v := t.make()
			if proto.Unmarshal(raw, v) != nil || !yield(string(k), v) {
				return
			}
		}
	}
}

// record writes an event in the transaction it tells of.
func (tx *Tx) record(kind, id, verb string) error {
	b := tx.t.Bucket(root).Bucket(events)
	n, err := b.NextSequence()
	if err != nil {
		return err
	}
	raw, err := proto.Marshal(&eventsv1.Event{Revision: n, At: timestamppb.Now(), Kind: kind, Id: id, Verb: verb})
	if err != nil {
		return err
	}
	return b.Put(binary.BigEndian.AppendUint64(nil, n), raw)
}
