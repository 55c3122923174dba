package meta

import (
	"bytes"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	bolt "go.etcd.io/bbolt"
	"google.golang.org/protobuf/proto"

	typesv1 "github.com/gantryd/gantry/proto/gantry/types/v1"
)

// Table is a set of records of one type. Writing one records an event, if the table is one that
// clients may follow.
type Table[T proto.Message] struct {
	name    string
	make    func() T
	facts   func(T) map[string]string
	history bool
}

// NewTable declares a table of the drawing in the package comment; one that is not drawn, or is
// drawn with another type, panics. facts, if given, says what of a record its events should tell;
// its name and labels (Meta) are always told.
func NewTable[T proto.Message](name string, mk func() T, facts ...func(T) map[string]string) Table[T] {
	s, ok := table(name)
	if !ok {
		panic(fmt.Sprintf("table %q is not in the drawing of internal/meta", name))
	}
	if got, want := mk().ProtoReflect().Descriptor().FullName(), s.record.ProtoReflect().Descriptor().FullName(); got != want {
		panic(fmt.Sprintf("table %q holds %s, and is drawn with %s", name, got, want))
	}
	t := Table[T]{name: name, make: mk, history: s.history}
	if len(facts) > 0 {
		t.facts = facts[0]
	}
	return t
}

// Key makes the key of a table whose key has several parts.
func Key(parts ...string) string { return strings.Join(parts, "\x00") }

// Parts takes a key apart again.
func Parts(key string) []string { return strings.Split(key, "\x00") }

// Get reads one record. It fails with NotFound, or with DataLoss if what is there cannot be read.
// The record is the caller's own.
func (t Table[T]) Get(tx *Tx, id string) (T, error) {
	v := t.make()
	raw := tx.bucket(t.name).Get([]byte(id))
	if raw == nil {
		return v, fmt.Errorf("%s %q: there is no such record: %w", t.name, readable([]byte(id)), errdefs.ErrNotFound)
	}
	return v, t.decode(id, raw, v)
}

// Has reports whether there is a record.
func (t Table[T]) Has(tx *Tx, id string) bool { return tx.bucket(t.name).Get([]byte(id)) != nil }

func (t Table[T]) decode(id string, raw []byte, v T) error {
	if err := proto.Unmarshal(raw, v); err != nil {
		return fmt.Errorf("%s %q: %w: %w", t.name, readable([]byte(id)), err, errdefs.ErrDataLoss)
	}
	return nil
}

// Put writes one record. Where v has a Meta and the table a history, it sets the Meta's revision,
// in v itself.
func (t Table[T]) Put(tx *Tx, id string, v T) error {
	if id == "" || len(id) > bolt.MaxKeySize {
		return fmt.Errorf("%s: a key of %d bytes: %w", t.name, len(id), errdefs.ErrInvalidArgument)
	}
	b := tx.bucket(t.name)
	if t.history {
		verb := "update"
		if b.Get([]byte(id)) == nil {
			verb = "create"
		}
		rev, err := tx.record(t.name, id, verb, t.tell(v))
		if err != nil {
			return err
		}
		if m, ok := any(v).(interface{ GetMeta() *typesv1.Meta }); ok && m.GetMeta() != nil {
			m.GetMeta().Revision = rev
		}
	}
	raw, err := proto.Marshal(v)
	if err != nil {
		return fmt.Errorf("%s %q: %w", t.name, readable([]byte(id)), err)
	}
	return tx.put(b, []byte(id), raw)
}

// Delete removes one record; of nothing, it succeeds.
func (t Table[T]) Delete(tx *Tx, id string) error {
	b := tx.bucket(t.name)
	raw := b.Get([]byte(id))
	if raw == nil {
		return nil
	}
	if t.history {
		v := t.make()
		var facts map[string]string
		if t.decode(id, raw, v) == nil { // what cannot be read must still be removable
			facts = t.tell(v)
		}
		if _, err := tx.record(t.name, id, "remove", facts); err != nil {
			return err
		}
	}
	return tx.del(b, []byte(id))
}

// tell is the facts of an event about v: those of its table, its name, and label.KEY for each label.
func (t Table[T]) tell(v T) map[string]string {
	facts := map[string]string{}
	if m, ok := any(v).(interface{ GetMeta() *typesv1.Meta }); ok {
		if name := m.GetMeta().GetName(); name != "" {
			facts["name"] = name
		}
		for k, v := range m.GetMeta().GetLabels() {
			facts["label."+k] = v
		}
	}
	if t.facts != nil {
		maps.Copy(facts, t.facts(v))
	}
	return facts
}

// All ranges over the records, in key order. One that cannot be read is passed over, logged, and
// told by Tx.Damaged. The loop must not write to the table.
func (t Table[T]) All(tx *Tx) iter.Seq2[string, T] { return t.Under(tx, "") }

// Under ranges over the records whose key begins with prefix, as All does.
func (t Table[T]) Under(tx *Tx, prefix string) iter.Seq2[string, T] {
	return func(yield func(string, T) bool) {
		c, p := tx.bucket(t.name).Cursor(), []byte(prefix)
		for k, raw := c.Seek(p); k != nil && bytes.HasPrefix(k, p); k, raw = c.Next() {
			v := t.make()
			if err := t.decode(string(k), raw, v); err != nil {
				tx.miss(err)
				continue
			}
			if !yield(string(k), v) {
				return
			}
		}
	}
}

// Named is a record that has a name.
type Named interface {
	proto.Message
	GetMeta() *typesv1.Meta
}

// ByName ranges over the records of t that are wanted, by name, as they were at one moment. One that
// cannot be read makes an error in place of them all.
func ByName[T Named](db *DB, t Table[T], want func(T) bool) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		var all []T
		err := db.View(func(tx *Tx) error {
			for _, v := range t.All(tx) {
				if want(v) {
					all = append(all, v)
				}
			}
			return tx.Damaged()
		})
		if err != nil {
			var none T
			yield(none, fmt.Errorf("list %s: %w", t.name, err))
			return
		}
		slices.SortFunc(all, func(a, b T) int { return strings.Compare(a.GetMeta().GetName(), b.GetMeta().GetName()) })
		for _, v := range all {
			if !yield(v, nil) {
				return
			}
		}
	}
}

// keys ranges over the keys that begin with prefix.
func (t Table[T]) keys(tx *Tx, prefix string) iter.Seq[string] {
	return func(yield func(string) bool) {
		c, p := tx.bucket(t.name).Cursor(), []byte(prefix)
		for k, _ := c.Seek(p); k != nil && bytes.HasPrefix(k, p); k, _ = c.Next() {
			if !yield(string(k)) {
				return
			}
		}
	}
}

// Count is how many records there are. It reads their keys.
func (t Table[T]) Count(tx *Tx) (n int) {
	for range t.keys(tx, "") {
		n++
	}
	return n
}

func (tx *Tx) miss(err error) {
	tx.lost = append(tx.lost, err)
	tx.db.log.Error("record cannot be read", "err", err)
}
