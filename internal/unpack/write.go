package unpack

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

const (
	whiteoutPrefix = ".wh."
	whiteoutMeta   = ".wh..wh."
	whiteoutOpaque = ".wh..wh..opq"
	opaqueAttr     = "trusted.overlay.opaque"
	// inheritAttr is snapshotters.Inherit; a test compares them, since internal packages import no contracts.
	inheritAttr = "trusted.gantry.inherit"
	paxXattr    = "SCHILY.xattr."
	paxSparse   = "GNU.sparse."
)

// writer writes the entries of one layer.
type writer struct {
	t       *tree
	job     Job
	entries int64
	bytes   int64 // that the files claim to hold
	buf     []byte

	// times are the directories' times, set at the end because writing into a directory changes them: as the archive says, or as
	// they were before.
	times map[string][2]unix.Timespec
	// made holds the directories that were made without an entry and are marked with inheritAttr.
	made map[string]struct{}
	// kept holds, in apply form, every name of this layer and the directories on the way: a whiteout is for the layers below.
	kept map[string]struct{}
	// now is the time of the entry being written: directories made on the way get it.
	now [2]unix.Timespec
	// described says that the layer has an entry for its top directory.
	described bool
}

func newWriter(root int, job Job) *writer {
	return &writer{
		t: newTree(root), job: job, buf: make([]byte, 512<<10),
		times: map[string][2]unix.Timespec{}, made: map[string]struct{}{}, kept: map[string]struct{}{},
	}
}

func (w *writer) close() { w.t.forget() }

func (w *writer) overlay() bool { return w.job.Form == Overlay }

// all writes every entry of the archive.
func (w *writer) all(r io.Reader) error {
	tr := tar.NewReader(r)
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil && (!errors.Is(err, tar.ErrInsecurePath) || h == nil) {
			return archiveError(w.entries, err)
		}
		if w.entries++; w.entries > w.job.Limits.Entries {
			return layerError{fmt.Sprintf("it has more than the %d entries allowed: raise the limit if you trust it", w.job.Limits.Entries), errdefs.ErrResourceExhausted}
		}
		if err := w.entry(h, tr); err != nil {
			return err
		}
	}
}

func archiveError(n int64, err error) error {
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return layerError{fmt.Sprintf("the archive is cut short after %d entries", n), errdefs.ErrDataLoss}
	}
	var l layerError
	if errors.As(err, &l) {
		return l
	}
	return formatError{layerError{fmt.Sprintf("the archive is not well formed after %d entries: %v", n, err), errdefs.ErrInvalidArgument}}
}

// formatError is what an archive looks like whose compressed stream was damaged, until the stream's checksum tells.
type formatError struct{ layerError }

func (e formatError) Unwrap() error { return e.layerError }

// entry writes one entry.
func (w *writer) entry(h *tar.Header, r io.Reader) error {
	w.t.trim()
	switch h.Typeflag {
	case tar.TypeXGlobalHeader, 'V': // comments of git and of GNU tar
		return nil
	}
	name, err := clean("the name", h.Name)
	if err != nil {
		return err
	}
	if h.Name == "" {
		return layerError{fmt.Sprintf("entry %d has no name", w.entries), errdefs.ErrInvalidArgument}
	}
	if w.now, err = timesOf(h); err != nil {
		return err
	}
	dir, base := split(name)
	for part := range strings.SplitSeq(dir, "/") {
		if strings.HasPrefix(part, whiteoutMeta) {
			return nil // what aufs kept for itself
		}
		if strings.HasPrefix(part, whiteoutPrefix) {
			return layerError{fmt.Sprintf("entry %q is inside of a whiteout", name), errdefs.ErrInvalidArgument}
		}
	}
	switch {
	case base == whiteoutOpaque:
		return w.opaque(dir)
	case strings.HasPrefix(base, whiteoutMeta):
		return nil
	case strings.HasPrefix(base, whiteoutPrefix):
		return w.whiteout(dir, base[len(whiteoutPrefix):], name)
	case h.Typeflag == tar.TypeChar && h.Devmajor == 0 && h.Devminor == 0 && name != "":
		return w.whiteout(dir, base, name) // a layer that was made from overlayfs's own files
	}
	if err := checkIDs(h, name); err != nil {
		return err
	}
	if name == "" {
		return w.top(h)
	}
	parent, err := w.parent(dir)
	if err != nil {
		return err
	}
	w.keep(name)
	return w.write(h, r, parent, name, base)
}

func checkIDs(h *tar.Header, name string) error {
	for _, id := range []int{h.Uid, h.Gid} {
		if id < 0 || int64(id) >= 1<<32-1 { // -1 would mean: leave it as it is
			return layerError{fmt.Sprintf("entry %q belongs to %d:%d, which is nobody's number", name, h.Uid, h.Gid), errdefs.ErrInvalidArgument}
		}
	}
	return nil
}

// timesOf is an entry's times of access and change.
func timesOf(h *tar.Header) ([2]unix.Timespec, error) {
	mod, acc := h.ModTime, h.AccessTime
	if mod.IsZero() {
		mod = time.Unix(0, 0)
	}
	if acc.IsZero() {
		acc = mod
	}
	m, err := unix.TimeToTimespec(mod)
	if err != nil {
		return [2]unix.Timespec{}, layerError{fmt.Sprintf("entry %q has a time that no filesystem holds", h.Name), errdefs.ErrInvalidArgument}
	}
	a, err := unix.TimeToTimespec(acc)
	if err != nil {
		a = m
	}
	return [2]unix.Timespec{a, m}, nil
}

// keep remembers, in apply form, that name is of this layer.
func (w *writer) keep(name string) {
	if w.overlay() {
		return
	}
	for name != "" {
		if _, ok := w.kept[name]; ok {
			return
		}
		w.kept[name] = struct{}{}
		name, _ = split(name)
	}
}

// parent opens the directory an entry goes into, making it if the layer forgot to.
func (w *writer) parent(dir string) (int, error) {
	if fd, ok := w.t.dirs[dir]; ok {
		return fd, nil
	}
	fd, err := w.t.open(dir)
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
		if err := w.makeParent(dir); err != nil {
			return -1, err
		}
		if fd, err = w.t.open(dir); err != nil {
			return -1, failed("open", dir, err)
		}
	case err != nil:
		return -1, failed("open", dir, err)
	}
	if _, ok := w.times[dir]; !ok { // it was there before this layer: writing into it shall not show
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			return -1, failed("stat", dir, err)
		}
		w.times[dir] = [2]unix.Timespec{st.Atim, st.Mtim}
	}
	return fd, nil
}

// makeParent makes a directory that has no entry of its own (yet), and those above it. What is in the way and cannot have children goes.
func (w *writer) makeParent(dir string) error {
	up, base := split(dir)
	if dir == "" {
		return failed("open", dir, unix.ENOENT)
	}
	parent, err := w.parent(up)
	if err != nil {
		return err
	}
	st, err := stat(parent, base)
	if err != nil {
		return failed("stat", dir, err)
	}
	hides := st != nil
	if hides {
		if st.Mode&unix.S_IFMT == unix.S_IFLNK {
			return layerError{fmt.Sprintf("entries below %q go through a link to nowhere", dir), errdefs.ErrInvalidArgument}
		}
		if parent, err = w.replace(parent, dir, base); err != nil {
			return err
		}
	}
	if err := unix.Mkdirat(parent, base, 0o755); err != nil {
		return failed("make directory", dir, err)
	}
	w.times[dir] = w.now
	if !w.overlay() || !w.job.Parented {
		return nil
	}
	fd, err := w.t.open(dir)
	if err != nil {
		return failed("open", dir, err)
	}
	if hides { // what was in the way had hidden the directory below, if there is one
		return w.hideBelow(fd, dir)
	}
	w.made[dir] = struct{}{}
	return failed("mark", dir, unix.Fsetxattr(fd, inheritAttr, []byte("y"), 0))
}

// clear removes what is in the way of a new entry.
func (w *writer) clear(parent int, name, base string) error {
	if err := removeAll(parent, base); err != nil {
		return failed("replace", name, err)
	}
	w.t.forget()
	for _, m := range []map[string]struct{}{w.made, w.kept} {
		for k := range m {
			if strings.HasPrefix(k, name) && len(k) > len(name) && k[len(name)] == '/' {
				delete(m, k)
			}
		}
	}
	for k := range w.times {
		if k == name || strings.HasPrefix(k, name+"/") {
			delete(w.times, k)
		}
	}
	delete(w.made, name)
	return nil
}

// top gives the layer's top directory what its entry says.
func (w *writer) top(h *tar.Header) error {
	if h.Typeflag != tar.TypeDir {
		return layerError{"its top directory is not a directory", errdefs.ErrInvalidArgument}
	}
	w.described = true
	return w.describe(h, w.t.root, -1, "", "")
}

// describe gives an open file or directory owner, attributes, mode and, unless it is a directory, times.
func (w *writer) describe(h *tar.Header, fd, parent int, name, base string) error {
	if err := unix.Fchown(fd, h.Uid, h.Gid); err != nil {
		return failed("give away", name, err)
	}
	if err := w.attributes(h, fd, parent, name, base); err != nil {
		return err
	}
	if err := unix.Fchmod(fd, uint32(h.Mode)&0o7777); err != nil { // after chown, which takes setuid away
		return failed("set mode of", name, err)
	}
	if h.Typeflag == tar.TypeDir {
		w.times[name] = w.now
		return nil
	}
	return failed("set times of", name, setTimes(fd, &w.now))
}

// attributes sets the extended attributes a layer may set: a user's, capabilities, access lists. Others are the host's business
// (labels) or would be taken for the driver's own (trusted.*), and are passed over.
func (w *writer) attributes(h *tar.Header, fd, parent int, name, base string) error {
	for k, v := range h.PAXRecords {
		attr, ok := strings.CutPrefix(k, paxXattr)
		if !ok || !allowedAttr(attr) {
			continue
		}
		var err error
		if fd >= 0 {
			err = unix.Fsetxattr(fd, attr, []byte(v), 0)
		} else if err = unix.Fchdir(parent); err == nil { // a link or a device cannot be opened, and no call takes a directory
			err = unix.Lsetxattr(base, attr, []byte(v), 0)
		}
		switch {
		case errors.Is(err, unix.EOPNOTSUPP) && attr != "security.capability", errors.Is(err, unix.EPERM) && fd < 0:
			// The filesystem has no such attributes, or this kind of file cannot have them (xattr(7)).
		case err != nil:
			return failed("set attribute "+attr+" of", name, err)
		}
	}
	return nil
}

func allowedAttr(attr string) bool {
	switch attr {
	case "security.capability", "system.posix_acl_access", "system.posix_acl_default":
		return true
	}
	return strings.HasPrefix(attr, "user.") && !strings.HasPrefix(attr, "user.overlay.")
}

// finish sets what could only be set at the end.
func (w *writer) finish() error {
	if w.overlay() && w.job.Parented && !w.described {
		if err := unix.Fsetxattr(w.t.root, inheritAttr, []byte("y"), 0); err != nil {
			return failed("mark", "", err)
		}
	}
	w.t.forget()
	for name, ts := range w.times {
		fd, err := w.t.resolve(name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW)
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
			continue // replaced since
		}
		if err != nil {
			return failed("set times of", name, err)
		}
		err = setTimes(fd, &ts)
		_ = unix.Close(fd)
		if err != nil {
			return failed("set times of", name, err)
		}
	}
	return nil
}

var zeros [64 << 10]byte

// copyData writes a file's content. In a sparse file, what is zero is left out.
func (w *writer) copyData(fd int, name string, r io.Reader, sparse bool) error {
	var size int64
	hole := false
	for {
		n, err := fill(r, w.buf)
		for p := w.buf[:n]; len(p) > 0; {
			q := p[:min(len(p), len(zeros))]
			if !sparse {
				q = p
			}
			p = p[len(q):]
			size += int64(len(q))
			if hole = sparse && bytes.Equal(q, zeros[:len(q)]); hole {
				continue
			}
			if werr := writeAt(fd, q, size-int64(len(q)), sparse); werr != nil {
				return failed("write", name, werr)
			}
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return archiveError(w.entries, err)
		}
	}
	if hole {
		return failed("write", name, unix.Ftruncate(fd, size))
	}
	return nil
}

// fill reads until the buffer is full or the reader ends.
func fill(r io.Reader, buf []byte) (n int, err error) {
	for n < len(buf) && err == nil {
		var m int
		m, err = r.Read(buf[n:])
		n += m
	}
	return n, err
}

// writeAt writes all of p where the file stands, or, in a sparse file, at off.
func writeAt(fd int, p []byte, off int64, sparse bool) error {
	if sparse {
		if _, err := unix.Seek(fd, off, unix.SEEK_SET); err != nil {
			return err
		}
	}
	for len(p) > 0 {
		n, err := unix.Write(fd, p)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		p = p[n:]
	}
	return nil
}
