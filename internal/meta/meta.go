// Package meta is the daemon's memory: one bbolt file, typed tables, names, a journal of
// operations under way, and a history of what changed.
//
//	v1/
//	├── schema                                      minor version; migrations are a list, each with a fixture
//	├── names/      <kind>␀<name>                   → id
//	├── images/     <reference>                     → images.v1.Image
//	├── containers/ <id>                            → containers.v1.Container
//	├── exits/      <id>                            → types.v1.Exit        kept an hour after removal
//	├── snapshots/  <snapshotter>␀<key>             → snapshots.v1.Snapshot
//	├── networks/   <id>                            → networks.v1.Network
//	├── endpoints/  <network>␀<container>           → networks.v1.Endpoint
//	├── addresses/  <network>␀<address>             → store.v1.Ref         of the endpoint: IPAM is a table
//	├── volumes/    <id>                            → volumes.v1.Volume
//	├── blobs/      <digest>                        → store.v1.Blob        with the digests it points at
//	├── handles/    <kind>␀<scope>␀<key>            → store.v1.Handle
//	├── plugins/    <family>␀<name>                 → store.v1.PluginProcess
//	├── ops/        <op id>                         → store.v1.Op          what is under way
//	└── events/     <revision, big-endian>          → events.v1.Event      the last 10,000
//
// (A test compares this drawing with the tables that NewTable allows.)
//
// A transaction function is given no context, because nothing inside may wait. What waits — a
// driver, a shim, the disk — is claimed in one transaction, done outside, and recorded in another:
// see Op.
//
// Files: meta.go opens, table.go reads and writes, commit.go groups transactions, op.go is the
// journal, history.go the events, names.go names and references, schema.go what the file holds.
package meta

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	bolt "go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
)

const (
	// lockWait is how long Open waits for another daemon to let go: a daemon that is being
	// replaced needs a moment to end.
	lockWait = time.Second
	// mapped is the address space reserved for the file at first. A write that outgrows the map
	// waits for every reader, so there should be no need to for a long time; it takes no memory.
	mapped = 256 << 20
	// slow is when a transaction is told on: all writers wait for each other here.
	slow = 50 * time.Millisecond
	// slowDisk is when a commit is told on.
	slowDisk = time.Second
)

// DB is the daemon's memory.
type DB struct {
	path string
	b    *bolt.DB
	log  *slog.Logger
	// strict makes a transaction function that takes longer panic; 0 never. For tests.
	strict time.Duration
	// keep is how many events are kept.
	keep uint64

	writers writers
	journal journal
	history history
}

// Option changes how Open opens.
type Option func(*DB)

// WithLogger says where warnings go; the default is slog.Default.
func WithLogger(l *slog.Logger) Option { return func(db *DB) { db.log = l } }

// Strict makes a transaction function that takes longer than limit panic. It is for tests.
func Strict(limit time.Duration) Option { return func(db *DB) { db.strict = limit } }

// keepEvents changes how many events are kept, for tests.
func keepEvents(n uint64) Option { return func(db *DB) { db.keep = n } }

// Open opens, or makes, the database at path, and brings it to the present schema. Errors:
// FailedPrecondition if another daemon holds it or a newer one wrote it, DataLoss if it is
// damaged; both say what to do.
func Open(path string, options ...Option) (*DB, error) {
	return open(path, migrations, options...)
}

func open(path string, steps []migration, options ...Option) (*DB, error) {
	db := &DB{path: path, log: slog.Default(), keep: maxEvents}
	db.journal.undo = map[string]Undo{}
	db.history.wake = make(chan struct{})
	db.history.closed = make(chan struct{})
	for _, o := range options {
		o(db)
	}
	_, err := os.Stat(path) //nolint:gosec // the path is the operator's own
	fresh := errors.Is(err, fs.ErrNotExist)
	if err := db.openFile(); err != nil {
		return nil, fmt.Errorf("open store %s: %w", path, err)
	}
	if err := db.prepare(fresh, steps); err != nil {
		return nil, errors.Join(fmt.Errorf("open store %s: %w", path, err), db.b.Close())
	}
	return db, nil
}

// openFile opens the file. The list of free pages is written with each commit although bbolt
// could do without: a write that is rolled back (a claim refused, say) would otherwise read the
// whole file again to find them.
func (db *DB) openFile() (err error) {
	defer damage(&err)()
	db.b, err = bolt.Open(db.path, 0o600, &bolt.Options{
		Timeout:         lockWait,
		FreelistType:    bolt.FreelistMapType,
		InitialMmapSize: mapped,
		NoStatistics:    true,
	})
	switch {
	case errors.Is(err, berrors.ErrTimeout):
		return fmt.Errorf("another gantryd uses it: stop that one, or give this one a --root of its own: %w", errdefs.ErrFailedPrecondition)
	case errors.Is(err, berrors.ErrInvalid), errors.Is(err, berrors.ErrVersionMismatch), errors.Is(err, berrors.ErrChecksum):
		return fmt.Errorf("%w: %w", err, errDamaged)
	}
	return explain(err)
}

// prepare brings the schema up to date and reads the journal.
func (db *DB) prepare(fresh bool, steps []migration) (err error) {
	defer damage(&err)()
	if err := db.migrate(steps); err != nil {
		return err
	}
	if fresh {
		// the file is synced by its commits; its name needs the directory to be
		if err := syncDir(filepath.Dir(db.path)); err != nil {
			return err
		}
	}
	return db.View(db.load)
}

// Close closes the database. It waits for transactions under way; whoever watches is told.
func (db *DB) Close() error {
	db.history.close()
	if err := db.b.Close(); err != nil {
		return fmt.Errorf("close store %s: %w", db.path, explain(err))
	}
	return nil
}

// Path is the file.
func (db *DB) Path() string { return db.path }

// Tx is a transaction. It must not be used by more than one goroutine, nor after its function
// has returned.
type Tx struct {
	t  *bolt.Tx
	db *DB
	// w is what is being written, nil in a View.
	w *writing
	// lost is what could not be read.
	lost []error
}

func (tx *Tx) bucket(name string) *bolt.Bucket { return tx.t.Bucket(root).Bucket([]byte(name)) }

// View reads a consistent moment. It waits for nobody, and nobody waits for it.
func (db *DB) View(fn func(*Tx) error) error {
	began := time.Now()
	t, err := db.b.Begin(false)
	if err != nil {
		return fmt.Errorf("read store %s: %w", db.path, explain(err))
	}
	defer func() { _ = t.Rollback() }() // of a reader: cannot fail while it is open
	err = fn(&Tx{t: t, db: db})
	db.tell(time.Since(began), "view")
	return err
}

// Update changes the store, all or nothing; when it returns nil, the change is on disk.
// Functions of concurrent callers are committed together, each sees what those before it wrote,
// and one that fails or panics undoes its own writes only. fn runs exactly once, perhaps in
// another caller's goroutine; it must not call Update.
func (db *DB) Update(fn func(*Tx) error) error {
	took, err := db.writers.do(db, fn)
	db.tell(took, "update")
	return err
}

// tell warns of a transaction function that took long. It is called by View and Update only, so
// that their caller is two frames up.
func (db *DB) tell(took time.Duration, kind string) {
	if took < slow {
		return
	}
	_, file, line, _ := runtime.Caller(2)
	db.log.Warn("transaction was slow", "kind", kind, "took", took, "caller", fmt.Sprintf("%s:%d", filepath.Base(file), line))
	if db.strict > 0 && took > db.strict {
		panic(fmt.Sprintf("transaction at %s:%d took %v", file, line, took))
	}
}

// Damaged joins an error for each record that this transaction has passed over because it could
// not be read; nil if there was none. Whoever decides from what is *not* in a table, as the
// collector does, must ask.
func (tx *Tx) Damaged() error { return errors.Join(tx.lost...) }

var errDamaged = fmt.Errorf("the file is damaged: put back a copy of it, or move it away to begin with an empty store (images, containers and volumes are then unknown to gantry, and their data stays on disk): %w", errdefs.ErrDataLoss)

// damage turns a panic of bbolt's, which is how it answers a damaged page, into an error, until
// the function that it returns is called.
func damage(err *error) func() {
	old := debug.SetPanicOnFault(true) // reading a hole in a map is a fault, not a panic
	return func() {
		debug.SetPanicOnFault(old)
		if r := recover(); r != nil {
			*err = fmt.Errorf("%v: %w", r, errDamaged)
		}
	}
}

// explain gives bbolt's errors a class and a way out.
func explain(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, berrors.ErrDatabaseNotOpen):
		return fmt.Errorf("it is closed: %w", errdefs.ErrUnavailable)
	// bbolt keeps only the text of some
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT), strings.Contains(err.Error(), syscall.ENOSPC.Error()):
		return fmt.Errorf("%w: free some space on its filesystem and try again: %w", err, errdefs.ErrResourceExhausted)
	case errors.Is(err, syscall.EIO), errors.Is(err, syscall.EROFS), strings.Contains(err.Error(), syscall.EIO.Error()):
		return fmt.Errorf("%w: look at its disk (dmesg tells more): %w", err, errdefs.ErrInternal)
	}
	return err
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
