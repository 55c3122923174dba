package meta

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/containerd/errdefs"
	bolt "go.etcd.io/bbolt"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	containersv1 "github.com/gantryd/gantry/proto/gantry/containers/v1"
	eventsv1 "github.com/gantryd/gantry/proto/gantry/events/v1"
	imagesv1 "github.com/gantryd/gantry/proto/gantry/images/v1"
	networksv1 "github.com/gantryd/gantry/proto/gantry/networks/v1"
	snapshotsv1 "github.com/gantryd/gantry/proto/gantry/snapshots/v1"
	storev1 "github.com/gantryd/gantry/proto/gantry/store/v1"
	typesv1 "github.com/gantryd/gantry/proto/gantry/types/v1"
	volumesv1 "github.com/gantryd/gantry/proto/gantry/volumes/v1"
)

// The buckets that are not tables.
const (
	namesBucket  = "names"
	opsBucket    = "ops"
	eventsBucket = "events"
)

var (
	root      = []byte("v1") // the major version: what cannot be migrated gets another
	schemaKey = []byte("schema")
)

// bucket is one line of the drawing.
type bucket struct {
	name string
	// record is what its values are, nil for names, whose values are ids.
	record proto.Message
	// history says that clients may follow its changes.
	history bool
	// internal says that it is no table: this package alone writes it.
	internal bool
}

// schema is every bucket, in the order of the drawing.
var schema = []bucket{
	{name: namesBucket, internal: true},
	{name: "images", record: (*imagesv1.Image)(nil), history: true},
	{name: "containers", record: (*containersv1.Container)(nil), history: true},
	{name: "exits", record: (*typesv1.Exit)(nil)},
	{name: "snapshots", record: (*snapshotsv1.Snapshot)(nil), history: true},
	{name: "networks", record: (*networksv1.Network)(nil), history: true},
	{name: "endpoints", record: (*networksv1.Endpoint)(nil), history: true},
	{name: "addresses", record: (*storev1.Ref)(nil)},
	{name: "volumes", record: (*volumesv1.Volume)(nil), history: true},
	{name: "blobs", record: (*storev1.Blob)(nil)},
	{name: "handles", record: (*storev1.Handle)(nil)},
	{name: "plugins", record: (*storev1.PluginProcess)(nil)},
	{name: opsBucket, record: (*storev1.Op)(nil), internal: true},
	{name: eventsBucket, record: (*eventsv1.Event)(nil), internal: true},
}

const (
	// firstSchema is the minor version of the first release.
	firstSchema = 1
	// SchemaVersion is the minor version this program writes. It counts changes of what records
	// mean; new tables and new fields do not need one.
	SchemaVersion = firstSchema
)

// migration takes a store from the version before it to version.
type migration struct {
	version uint32
	what    string
	do      func(*bolt.Tx) error
}

// migrations are in order, one for each version after the first. testdata has a store of every
// version, which TestFixtures opens.
var migrations []migration

// migrate brings the file to the newest version of steps and makes what buckets it lacks. Before
// it changes records it copies the file to "<path>.schema-<version>", which an older daemon reads.
func (db *DB) migrate(steps []migration) error {
	newest := uint32(firstSchema)
	if len(steps) > 0 {
		newest = steps[len(steps)-1].version
	}
	have, missing, err := db.inspect()
	if err != nil {
		return err
	}
	if have > newest {
		return fmt.Errorf("it has schema %d, written by a newer gantryd, and this one reads up to %d: run the newer one, or put back the copy %s.schema-%d that it made: %w", have, newest, db.path, newest, errdefs.ErrFailedPrecondition)
	}
	if have == newest && !missing {
		return nil
	}
	if have != 0 && have < newest {
		if err := db.keepCopy(have); err != nil {
			return err
		}
	}
	return explain(db.b.Update(func(t *bolt.Tx) error {
		r, err := t.CreateBucketIfNotExists(root)
		if err != nil {
			return err
		}
		for _, s := range schema {
			if _, err := r.CreateBucketIfNotExists([]byte(s.name)); err != nil {
				return fmt.Errorf("make table %s: %w", s.name, err)
			}
		}
		for _, m := range steps {
			if have == 0 || m.version <= have { // a new store is made as it should be
				continue
			}
			if err := m.do(t); err != nil {
				return fmt.Errorf("migrate to schema %d (%s): %w", m.version, m.what, err)
			}
		}
		return r.Put(schemaKey, binary.BigEndian.AppendUint32(nil, newest))
	}))
}

// inspect finds the version of the file, 0 if it is new, and whether it lacks a bucket.
func (db *DB) inspect() (have uint32, missing bool, err error) {
	err = db.b.View(func(t *bolt.Tx) error {
		first, _ := t.Cursor().First()
		if first == nil {
			return nil
		}
		r := t.Bucket(root)
		if r == nil || len(r.Get(schemaKey)) != 4 {
			return fmt.Errorf("it holds %q and no version of %q: it is not gantry's, or of a gantryd that this one cannot read: %w", first, root, errdefs.ErrFailedPrecondition)
		}
		have = binary.BigEndian.Uint32(r.Get(schemaKey))
		for _, s := range schema {
			missing = missing || r.Bucket([]byte(s.name)) == nil
		}
		return nil
	})
	return have, missing, err
}

// keepCopy writes a copy of the file for going back to the daemon that wrote it.
func (db *DB) keepCopy(version uint32) error {
	to := fmt.Sprintf("%s.schema-%d", db.path, version)
	f, err := os.OpenFile(to+".new", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("copy it before migration: %w", err)
	}
	err = db.b.View(func(t *bolt.Tx) error {
		_, err := t.WriteTo(f)
		return err
	})
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("copy it before migration: %w", explain(errors.Join(err, os.Remove(to+".new"))))
	}
	return os.Rename(to+".new", to)
}

// table finds a table in the drawing.
func table(name string) (bucket, bool) {
	for _, s := range schema {
		if s.name == name && !s.internal {
			return s, true
		}
	}
	return bucket{}, false
}

// Verify reads everything: the pages of the file, and every record of every table. It calls report
// for each fault. It is slow, and waits for nobody.
func (db *DB) Verify(report func(subject, detail string)) (err error) {
	defer damage(&err)()
	t, err := db.b.Begin(false)
	if err != nil {
		return fmt.Errorf("read store %s: %w", db.path, explain(err))
	}
	defer func() { _ = t.Rollback() }()
	if err := checkPages(t, func(fault error) { report(db.path, fault.Error()) }); err != nil {
		return fmt.Errorf("read store %s: %w", db.path, explain(err))
	}
	for _, s := range schema {
		b := t.Bucket(root).Bucket([]byte(s.name))
		if s.record == nil {
			continue
		}
		c := b.Cursor()
		for k, raw := c.First(); k != nil; k, raw = c.Next() {
			if err := proto.Unmarshal(raw, s.record.ProtoReflect().New().Interface()); err != nil {
				report(s.name+" "+readable(k), err.Error())
			}
		}
	}
	return nil
}

// checkPages looks for faults in a transaction's pages. It looks at a copy: bbolt compares them with the list of free pages
// that writers are changing meanwhile, and would find faults where there are none (tx.Check). The copy is in memory: a disk
// that is full is no reason not to look.
func checkPages(t *bolt.Tx, report func(error)) (err error) {
	fd, err := unix.MemfdCreate("store", unix.MFD_CLOEXEC)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), "store") //nolint:gosec // a descriptor
	if _, err := t.WriteTo(f); err != nil {
		return errors.Join(err, f.Close())
	}
	still, err := bolt.Open("store", 0, &bolt.Options{ReadOnly: true, OpenFile: func(string, int, os.FileMode) (*os.File, error) { return f, nil }})
	if err != nil {
		return err // and has closed the copy
	}
	defer func() { err = errors.Join(err, still.Close()) }()
	return still.View(func(t *bolt.Tx) error {
		for fault := range t.Check() {
			report(fault)
		}
		return nil
	})
}

// readable is a key as people can read it.
func readable(key []byte) string {
	if len(key) == 8 && key[0] == 0 { // a revision
		return fmt.Sprint(binary.BigEndian.Uint64(key))
	}
	return strings.ReplaceAll(string(key), "\x00", "/")
}
