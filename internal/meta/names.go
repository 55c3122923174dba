package meta

import (
	"bytes"
	"fmt"
	"iter"
	"strings"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"
)

// Names is the names of one kind of thing, "container" say. A name leads to one id; two things of
// one kind never share one, and the transaction that writes a record writes its name.
type Names string

func (n Names) key(name string) []byte { return []byte(Key(string(n), name)) }

// Reserve takes a name for id. It fails with AlreadyExists, and tells who holds it, if another
// does.
func (n Names) Reserve(tx *Tx, name, id string) error {
	if name == "" || id == "" || strings.ContainsRune(name, 0) {
		return fmt.Errorf("%s name %q for %q: both must be given, and the name without a NUL: %w", n, name, id, errdefs.ErrInvalidArgument)
	}
	switch holder := tx.bucket(namesBucket).Get(n.key(name)); {
	case holder == nil:
		return tx.put(tx.bucket(namesBucket), n.key(name), []byte(id))
	case string(holder) != id:
		return fmt.Errorf("%s name %q is taken by %s: %w", n, name, Short(string(holder)), errdefs.ErrAlreadyExists)
	}
	return nil
}

// Resolve finds who holds a name, or fails with NotFound.
func (n Names) Resolve(tx *Tx, name string) (string, error) {
	id := tx.bucket(namesBucket).Get(n.key(name))
	if id == nil {
		return "", fmt.Errorf("%s %q: there is none of that name: %w", n, name, errdefs.ErrNotFound)
	}
	return string(id), nil
}

// Rename takes the name to for id and gives up from, which id must hold.
func (n Names) Rename(tx *Tx, from, to, id string) error {
	holder, err := n.Resolve(tx, from)
	if err != nil {
		return err
	}
	if holder != id {
		return fmt.Errorf("rename %s %q: %s holds that name, not %s: %w", n, from, Short(holder), Short(id), errdefs.ErrFailedPrecondition)
	}
	if from == to {
		return nil
	}
	if err := n.Reserve(tx, to, id); err != nil {
		return err
	}
	return n.Release(tx, from, id)
}

// Release gives up a name. If id does not hold it, nothing happens.
func (n Names) Release(tx *Tx, name, id string) error {
	if holder := tx.bucket(namesBucket).Get(n.key(name)); holder == nil || string(holder) != id {
		return nil
	}
	return tx.del(tx.bucket(namesBucket), n.key(name))
}

// All ranges over names and ids, in the order of the names.
func (n Names) All(tx *Tx) iter.Seq2[string, string] {
	return func(yield func(string, string) bool) {
		p := n.key("")
		c := tx.bucket(namesBucket).Cursor()
		for k, id := c.Seek(p); k != nil && bytes.HasPrefix(k, p); k, id = c.Next() {
			if !yield(string(k[len(p):]), string(id)) {
				return
			}
		}
	}
}

// Resolve finds the record that ref means: an id, a name of that kind, or the beginning of one
// id only. It fails with NotFound, or with InvalidArgument if several ids begin so.
func Resolve[T proto.Message](tx *Tx, t Table[T], kind Names, ref string) (T, error) {
	var none T
	if ref == "" {
		return none, fmt.Errorf("%s: no name or id given: %w", kind, errdefs.ErrInvalidArgument)
	}
	if t.Has(tx, ref) {
		return t.Get(tx, ref)
	}
	if id, err := kind.Resolve(tx, ref); err == nil {
		return t.Get(tx, id)
	}
	var found []string
	for id := range t.keys(tx, ref) {
		if found = append(found, id); len(found) > 3 {
			break
		}
	}
	switch len(found) {
	case 0:
		return none, fmt.Errorf("%s %q: there is none of that name or id: %w", kind, ref, errdefs.ErrNotFound)
	case 1:
		return t.Get(tx, found[0])
	}
	for i, id := range found {
		found[i] = id[:min(len(id), max(12, len(ref)+4))]
	}
	if len(found) > 3 {
		found[3] = "…"
	}
	return none, fmt.Errorf("%s %q could be %s: give more of the id: %w", kind, ref, strings.Join(found, ", "), errdefs.ErrInvalidArgument)
}

// Short is as much of an id, or of a digest, as people are shown.
func Short(id string) string {
	if _, hex, ok := strings.Cut(id, ":"); ok {
		id = hex
	}
	return id[:min(len(id), 12)]
}
