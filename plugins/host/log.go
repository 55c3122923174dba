package host

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// logPause is the least time between two looks at the logs: who floods one costs us fifty looks a second, not more.
const logPause = 20 * time.Millisecond

// logs bounds the files that plugins write to directly. A pipe through us would be bounded by itself, and would end with
// us: a plugin that outlives its daemon must be able to go on writing.
type logs struct {
	limit int64
	log   *slog.Logger
	ino   *os.File

	mu    sync.Mutex
	paths map[string]struct{}
}

func newLogs(limit int64, log *slog.Logger) (*logs, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("inotify: %w", err)
	}
	return &logs{limit: limit, log: log, ino: os.NewFile(uintptr(fd), "inotify"), paths: map[string]struct{}{}}, nil
}

// watch bounds path from now on.
func (l *logs) watch(path string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.paths[path] = struct{}{}
	raw, err := l.ino.SyscallConn()
	if err == nil {
		cerr := raw.Control(func(fd uintptr) { _, err = unix.InotifyAddWatch(int(fd), path, unix.IN_MODIFY) })
		err = errors.Join(err, cerr)
	}
	if err != nil {
		l.log.Warn("plugin's log is not bounded while it runs", "path", path, "err", err.Error())
	}
}

// run cuts logs that have grown too long, until close.
func (l *logs) run() {
	buf := make([]byte, 4<<10) // events are not looked at: there are few logs
	for {
		if _, err := l.ino.Read(buf); err != nil {
			return
		}
		l.mu.Lock()
		for path := range l.paths {
			if err := cut(path, l.limit); err != nil {
				l.log.Warn("plugin's log is not cut", "path", path, "err", err.Error())
			}
		}
		l.mu.Unlock()
		time.Sleep(logPause)
	}
}

func (l *logs) close() { _ = l.ino.Close() }

// cut empties a log longer than limit, and keeps the last quarter of the limit beside it. Lines written meanwhile may be lost.
func cut(path string, limit int64) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	st, err := f.Stat()
	if err != nil || st.Size() <= limit {
		return err
	}
	keep := limit / 4
	old, err := os.OpenFile(path+".1", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err == nil {
		_, err = io.Copy(old, io.NewSectionReader(f, st.Size()-keep, keep))
		err = errors.Join(err, old.Close())
	}
	return errors.Join(err, f.Truncate(0)) // the writer appends (O_APPEND): it goes on at the beginning
}
