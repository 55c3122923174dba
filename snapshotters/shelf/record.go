package shelf

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"sync"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Kind is what may be done with a snapshot.
type Kind string

// The kinds.
const (
	Active    Kind = "active"    // written to, committed
	View      Kind = "view"      // read
	Committed Kind = "committed" // stood on
)

// Record is what a snapshot is; as JSON, what is on disk of it.
type Record struct {
	Key    string            `json:"key"`
	Parent string            `json:"parent,omitempty"`
	Kind   Kind              `json:"kind"`
	Labels map[string]string `json:"labels,omitempty"`
	// Boot is the boot a volatile snapshot was made in, after which it is worth nothing.
	Boot string `json:"boot,omitempty"`
	// Usage was counted when the snapshot was committed; nil: not yet.
	Usage *Usage `json:"usage,omitempty"`
}

// Volatile says whether no fsync is owed.
func (r Record) Volatile() bool { return r.Boot != "" }

// Snapshot is a record and the id of the directory it is of. Those who are given one do not change its labels.
type Snapshot struct {
	Record
	ID string
}

// The files of a snapshot's directory.
const (
	recordName = "record"
	fsName     = "fs"
	workName   = "work"
)

// maxRecord bounds a record's file. Labels are the driver's caller's, but the index is in memory.
const maxRecord = 1 << 20

// parseRecord reads a record, and is strict: what a power cut left of one must not pass.
func parseRecord(raw []byte) (Record, error) {
	var r Record
	if err := json.Unmarshal(raw, &r); err != nil {
		return Record{}, err
	}
	if err := checkKeys(r.Parent, r.Key); err != nil {
		return Record{}, err
	}
	if u := r.Usage; u != nil && (u.Bytes < 0 || u.Inodes < 0) {
		return Record{}, fmt.Errorf("usage %+v", *u)
	}
	switch r.Kind {
	case Active, View, Committed:
		return r, nil
	}
	return Record{}, fmt.Errorf("kind %q is not known", r.Kind)
}

// writeRecord writes the first record of a directory that has none. No name is swapped: a
// record that is torn does not parse, and then the snapshot was not finished.
func writeRecord(dir string, r Record, step func(string)) error {
	raw, err := json.Marshal(r)
	if err != nil {
		return err
	}
	if len(raw) > maxRecord {
		return fmt.Errorf("labels take %d bytes, at most %d are kept: %w", len(raw), maxRecord, errdefs.ErrInvalidArgument)
	}
	fd, err := unix.Open(dir+"/"+recordName, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return &fs.PathError{Op: "open", Path: dir + "/" + recordName, Err: err}
	}
	f := os.NewFile(uintptr(fd), recordName)
	step("record.open")
	_, err = f.Write(raw)
	step("record.written")
	if err == nil && !r.Volatile() {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil || r.Volatile() {
		return err
	}
	return syncDir(dir)
}

// replaceRecord writes another record over the one of dir, durably, all or nothing.
func replaceRecord(dir string, r Record, step func(string)) error {
	raw, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return writeDurable(dir, recordName, raw, step)
}

// writeDurable puts a file in the place of another: the old or the new one is there at any moment, also
// after a power cut.
func writeDurable(dir, name string, raw []byte, step func(string)) error {
	tmp := filepath.Join(dir, name+".new")
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	step("replace.open")
	_, err = f.Write(raw)
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	step("replace.written")
	if err := os.Rename(tmp, filepath.Join(dir, name)); err != nil {
		return err
	}
	step("replace.renamed")
	return syncDir(dir)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// idBlock is how many ids are promised to be used up by one write.
const idBlock = 1024

// ids hands out names that were never used before.
type ids struct {
	dir  string
	step func(string)

	mu    sync.Mutex
	next  uint64
	limit uint64
}

// open reads how far ids were used, or may have been; seen is the greatest in sight.
func (i *ids) open(dir string, seen uint64, step func(string)) error {
	i.dir, i.step = dir, step
	raw, err := os.ReadFile(filepath.Join(dir, "ids"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err == nil {
		if i.limit, err = strconv.ParseUint(string(raw), 10, 64); err != nil {
			return fmt.Errorf("ids: %w", err)
		}
	}
	i.next = max(i.limit, seen+1)
	i.limit = i.next
	return nil
}

// take returns a new id.
func (i *ids) take() (string, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.next == i.limit {
		if err := writeDurable(i.dir, "ids", strconv.AppendUint(nil, i.limit+idBlock, 10), i.step); err != nil {
			return "", fmt.Errorf("reserve ids: %w", err)
		}
		i.limit += idBlock
	}
	i.next++
	return strconv.FormatUint(i.next-1, 36), nil
}

// load reads every record, sweeps directories without one, and counts who stands on whom.
func (s *Shelf) load() error {
	dirs, err := os.ReadDir(s.path(shelfName))
	if err != nil {
		return err
	}
	gone, err := os.ReadDir(s.path(trashName))
	if err != nil {
		return err
	}
	var seen uint64
	for _, d := range append(dirs, gone...) {
		if n, err := strconv.ParseUint(d.Name(), 36, 64); err == nil {
			seen = max(seen, n)
		}
	}
	if err := s.ids.open(s.root, seen, s.step); err != nil {
		return err
	}
	for _, d := range dirs {
		if err := s.loadOne(d.Name()); err != nil {
			return err
		}
	}
	for e := range maps.Values(s.entries) {
		s.lean(e.Parent, 1)
	}
	return nil
}

func (s *Shelf) loadOne(id string) error {
	dir := s.path(shelfName, id)
	r, torn, err := readRecord(dir)
	if err != nil { // the disk, not the record: nothing is thrown away for that
		return err
	}
	if twin, ok := s.entries[r.Key]; ok && torn == nil {
		torn = fmt.Errorf("%s is snapshot %q already", twin.ID, r.Key)
	}
	if torn != nil { // never finished, or torn by a power cut before it was owed to anybody
		level := slog.LevelWarn
		if errors.Is(torn, fs.ErrNotExist) { // what a kill leaves: nothing to worry about
			level = slog.LevelDebug
		}
		s.log.Log(context.Background(), level, "sweep an unfinished snapshot", "id", id, "err", torn)
		return os.Rename(dir, s.path(trashName, id))
	}
	if r.Kind == Committed { // a commit that was killed after its record
		if err := s.dropWork(id); err != nil {
			return err
		}
	}
	s.entries[r.Key] = &entry{Snapshot: Snapshot{Record: r, ID: id}}
	return nil
}

// readRecord reads the record of dir. torn says that there is none, or half of one.
func readRecord(dir string) (_ Record, torn, err error) {
	f, err := os.Open(filepath.Join(dir, recordName))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return Record{}, err, nil
	}
	if err != nil {
		return Record{}, nil, err
	}
	raw, err := io.ReadAll(io.LimitReader(f, maxRecord+1))
	if err := errors.Join(err, f.Close()); err != nil {
		return Record{}, nil, err
	}
	r, torn := parseRecord(raw)
	return r, torn, nil
}

// dropWork throws a snapshot's work directory away, if it has one.
func (s *Shelf) dropWork(id string) error {
	err := os.Rename(s.path(shelfName, id, workName), s.path(trashName, id+"."+workName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
