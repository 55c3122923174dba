package host

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/plugins"
)

// find says what to execute for id: what the configuration names, else what is in the drop-in directory, else what
// is built in.
func (h *Host) find(id ID) (Program, error) {
	if c := h.o.Config[id]; c.Path != "" {
		return Program{Path: c.Path}, nil
	}
	path := filepath.Join(h.o.DropIn, string(id.Family), id.Name)
	if st, err := os.Stat(path); err == nil && st.Mode().IsRegular() {
		return Program{Path: path}, nil
	}
	if b, ok := h.o.Builtin[id]; ok {
		return b, nil
	}
	return Program{}, fmt.Errorf("no such %s plugin: install it as %s or name its path in the configuration: %w", id.Family, path, errdefs.ErrNotFound)
}

// findable are the plugins that find would find.
func (h *Host) findable() (out []ID) {
	for id := range h.o.Builtin {
		out = append(out, id)
	}
	for id, c := range h.o.Config {
		if c.Path != "" {
			out = append(out, id)
		}
	}
	for _, f := range plugins.Families {
		entries, err := os.ReadDir(filepath.Join(h.o.DropIn, string(f)))
		if err != nil {
			continue // most machines have none
		}
		for _, e := range entries {
			if id := (ID{f, e.Name()}); e.Type().IsRegular() && id.check() == nil {
				out = append(out, id)
			}
		}
	}
	return out
}

// firstExecFD keeps the descriptor to execute out of the way of those a child is given, which are numbered from 0.
const firstExecFD = 64

// executable is an open program. What is checked is what is executed, whatever happens to the path meanwhile.
type executable struct {
	*os.File
	script bool // an interpreter will open it again, by the number of its descriptor
}

// openExecutable opens path and checks its digest, if one is wanted. Its errors are permanent: trying again does
// not mend them.
func openExecutable(path, want string) (*executable, error) {
	digest, err := digestOf(want)
	if err != nil {
		return nil, err
	}
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	high, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, firstExecFD)
	_ = unix.Close(fd)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	x := &executable{File: os.NewFile(uintptr(high), path)}
	if err := x.check(digest); err != nil {
		_ = x.Close()
		return nil, fmt.Errorf("%s %w", path, err)
	}
	return x, nil
}

func (x *executable) check(digest []byte) error {
	st, err := x.Stat()
	switch {
	case err != nil:
		return fmt.Errorf("cannot be read: %w", err)
	case !st.Mode().IsRegular() || st.Mode()&0o111 == 0:
		return fmt.Errorf("is no executable file (%s)", st.Mode())
	case st.Mode()&0o002 != 0:
		return fmt.Errorf("may be written by anybody (%s) and is not executed", st.Mode())
	}
	magic := make([]byte, 2)
	if _, err := x.ReadAt(magic, 0); err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("cannot be read: %w", err)
	}
	x.script = string(magic) == "#!"
	if digest == nil {
		return nil
	}
	got, err := x.digest()
	if err != nil {
		return fmt.Errorf("cannot be read: %w", err)
	}
	if !bytes.Equal(got, digest) {
		return fmt.Errorf("has sha256 %x, the configuration wants %x", got, digest)
	}
	return nil
}

// digest is the sha256 of what would be executed.
func (x *executable) digest() ([]byte, error) {
	st, err := x.Stat()
	if err != nil {
		return nil, err
	}
	return digestFrom(io.NewSectionReader(x, 0, st.Size()))
}

func digestFrom(r io.Reader) ([]byte, error) {
	sum := sha256.New()
	if _, err := io.Copy(sum, r); err != nil {
		return nil, err
	}
	return sum.Sum(nil), nil
}

// digestOf reads a digest; none is nil.
func digestOf(s string) ([]byte, error) {
	if s == "" {
		return nil, nil
	}
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != sha256.Size {
		return nil, fmt.Errorf("sha256 %q: want %d hexadecimal digits: %w", s, 2*sha256.Size, errdefs.ErrInvalidArgument)
	}
	return b, nil
}
