package bundle

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// Exit is how a run ended.
type Exit struct {
	Code      uint32    `json:"code"` // the process's own, or 128 + signal
	At        time.Time `json:"at"`
	StartedAt time.Time `json:"started_at,omitzero"`
	Reason    string    `json:"reason,omitempty"` // "", "oom", "shim-lost", "start-failed"
	Run       uint64    `json:"run"`
	Signal    uint32    `json:"signal,omitempty"`
}

// KeepExits is how many exits are kept at least; twice as many at most.
const KeepExits = 100

// maxExit bounds one record, in bytes.
const maxExit = 4 << 10

// castagnoli makes its table when it is first used, once: a shim should not spend its start on it.
func castagnoli() *crc32.Table { return crc32.MakeTable(crc32.Castagnoli) }

// A record is one line: the checksum of what follows it in eight hexadecimal digits, a space, JSON.
// A line that was cut short, or that something else got into, is told by its checksum and skipped.
func appendExit(b []byte, x Exit) ([]byte, error) {
	raw, err := json.Marshal(x)
	if err != nil {
		return b, fmt.Errorf("exit: %w", err)
	}
	return append(fmt.Appendf(b, "%08x %s", crc32.Checksum(raw, castagnoli()), raw), '\n'), nil
}

func parseExit(line []byte) (x Exit, ok bool) {
	if len(line) < 10 || len(line) > maxExit || line[8] != ' ' {
		return Exit{}, false
	}
	sum, err := strconv.ParseUint(string(line[:8]), 16, 32)
	if err != nil || crc32.Checksum(line[9:], castagnoli()) != uint32(sum) {
		return Exit{}, false
	}
	return x, json.Unmarshal(line[9:], &x) == nil
}

// parseExits returns every whole record, oldest first, and how long the file is up to the end of
// its last whole line.
func parseExits(raw []byte) (xs []Exit, whole int) {
	for {
		line, rest, ok := bytes.Cut(raw[whole:], []byte{'\n'})
		if !ok {
			return xs, whole
		}
		if x, ok := parseExit(line); ok {
			xs = append(xs, x)
		}
		whole = len(raw) - len(rest)
	}
}

// ReadExits returns the exits that are recorded, oldest first. None is no error.
func (d Dir) ReadExits() ([]Exit, error) {
	raw, err := readBounded(d.Exits())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("exits: %w", err)
	}
	xs, _ := parseExits(raw)
	return xs, nil
}

// LastExit returns the exit that was recorded last; false if there is none.
func (d Dir) LastExit() (Exit, bool, error) {
	xs, err := d.ReadExits()
	if err != nil || len(xs) == 0 {
		return Exit{}, false, err
	}
	return xs[len(xs)-1], true, nil
}

// readBounded reads the end of a file: of one that somebody let grow, what was written last counts.
func readBounded(path string) ([]byte, error) {
	f, err := os.Open(path) //nolint:gosec // a path of ours
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // it was only read
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	const most = 2 * KeepExits * maxExit
	from := max(0, st.Size()-most)
	raw, err := io.ReadAll(io.NewSectionReader(f, from, most))
	if _, rest, ok := bytes.Cut(raw, []byte{'\n'}); from > 0 && ok {
		raw = rest
	}
	return raw, err
}

// Exits appends to the record of exits. It is for one writer at a time.
type Exits struct {
	path  string
	f     *os.File
	end   int64
	count int
}

// OpenExits opens the record of exits for appending, and makes it last if it is new. What was cut
// short by a crash is cut off.
func (d Dir) OpenExits() (*Exits, error) {
	e := &Exits{path: d.Exits()}
	return e, e.open()
}

func (e *Exits) open() error {
	f, err := os.OpenFile(e.path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("exits: %w", err)
	}
	raw, err := io.ReadAll(f)
	if err == nil {
		xs, whole := parseExits(raw)
		e.count, e.end = len(xs), int64(whole)
		if whole != len(raw) {
			err = f.Truncate(e.end)
		}
	}
	if err == nil && len(raw) == 0 {
		// Room for a few records, so that the last words find it on a disk that is full by then.
		// Where it cannot be had nothing is lost but that.
		_ = unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, maxExit) //nolint:gosec // a descriptor
		err = syncDir(filepath.Dir(e.path))
	}
	if err != nil {
		return errors.Join(fmt.Errorf("exits: %w", err), f.Close())
	}
	e.f = f
	return nil
}

// Append records an exit. When it returns, a power cut does not undo it.
func (e *Exits) Append(x Exit) error {
	if e.count >= 2*KeepExits {
		if err := e.compact(); err != nil {
			return err
		}
	}
	b, err := appendExit(nil, x)
	if err != nil {
		return err
	}
	if _, err := e.f.WriteAt(b, e.end); err != nil {
		return fmt.Errorf("exits: %w", errors.Join(err, e.f.Truncate(e.end)))
	}
	if err := unix.Fdatasync(int(e.f.Fd())); err != nil { //nolint:gosec // a descriptor
		return fmt.Errorf("exits: sync: %w", err)
	}
	e.end += int64(len(b))
	e.count++
	return nil
}

// compact keeps the last KeepExits: a new file, synced, takes the place of the old one.
func (e *Exits) compact() error {
	raw, err := os.ReadFile(e.path)
	if err != nil {
		return fmt.Errorf("exits: %w", err)
	}
	xs, _ := parseExits(raw)
	var b []byte
	for _, x := range xs[max(0, len(xs)-KeepExits):] {
		if b, err = appendExit(b, x); err != nil {
			return err
		}
	}
	tmp := e.path + ".new"
	if err := writeSynced(tmp, b); err != nil {
		return fmt.Errorf("exits: %w", errors.Join(err, os.Remove(tmp)))
	}
	if err := os.Rename(tmp, e.path); err != nil {
		return fmt.Errorf("exits: %w", err)
	}
	if err := syncDir(filepath.Dir(e.path)); err != nil {
		return fmt.Errorf("exits: %w", err)
	}
	if err := e.f.Close(); err != nil {
		return fmt.Errorf("exits: %w", err)
	}
	return e.open()
}

// Close closes the file.
func (e *Exits) Close() error { return e.f.Close() }

func writeSynced(path string, b []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600) //nolint:gosec // a path of ours
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

func syncDir(path string) error {
	d, err := os.Open(path) //nolint:gosec // a path of ours
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
