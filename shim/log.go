package main

import (
	"log/slog"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/internal/bundle"
)

// wordsMax bounds shim.log; as much again is kept of what was before it. The state directory may be
// memory.
const wordsMax = 128 << 10

// words writes shim.log, which is also what the shim's stderr is: what Go says when it panics ends
// up there too.
type words struct {
	mu   sync.Mutex
	size int64
}

func newLog() *slog.Logger {
	return slog.New(slog.NewTextHandler(&words{}, nil))
}

// Write appends to shim.log. It is an io.Writer for slog.
func (w *words) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.size+int64(len(p)) > wordsMax {
		w.turn()
	}
	n, err := os.Stderr.Write(p)
	w.size += int64(n)
	return n, err
}

// turn begins shim.log anew. If that does not work the old one is cut short.
func (w *words) turn() {
	w.size = 0
	err := os.Rename(bundle.LogFile, bundle.LogFile+".1")
	if err == nil {
		var f *os.File
		if f, err = os.OpenFile(bundle.LogFile, os.O_WRONLY|os.O_CREATE|os.O_APPEND|os.O_TRUNC, 0o600); err == nil {
			err = unix.Dup3(int(f.Fd()), 2, 0) //nolint:gosec // a descriptor
			_ = f.Close()
		}
	}
	if err != nil {
		_ = os.Stderr.Truncate(0)
	}
}
