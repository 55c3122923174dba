package unpack

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// write makes one file of whatever kind.
func (w *writer) write(h *tar.Header, r io.Reader, parent int, name, base string) error {
	switch h.Typeflag {
	case tar.TypeDir:
		return w.directory(h, parent, name, base)
	case tar.TypeReg, tar.TypeRegA, tar.TypeCont, tar.TypeGNUSparse: //nolint:staticcheck // archives in the wild have RegA
		return w.file(h, r, parent, name, base)
	case tar.TypeLink:
		return w.link(h, parent, name, base)
	case tar.TypeSymlink:
		if h.Linkname == "" {
			return layerError{fmt.Sprintf("link %q leads nowhere", name), errdefs.ErrInvalidArgument}
		}
		// The target is kept as it is: it is for whoever will live in this filesystem, and is never followed out of it here.
		return w.node(h, parent, name, base, func() error { return unix.Symlinkat(h.Linkname, parent, base) })
	case tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
		return w.device(h, parent, name, base)
	}
	return layerError{fmt.Sprintf("entry %q is of type %q, which is not known", name, h.Typeflag), errdefs.ErrNotImplemented}
}

// directory makes a directory, or gives one that is there what the entry says.
func (w *writer) directory(h *tar.Header, parent int, name, base string) error {
	err := unix.Mkdirat(parent, base, 0o700)
	hides := false
	if errors.Is(err, unix.EEXIST) {
		st, serr := stat(parent, base)
		if serr != nil {
			return failed("stat", name, serr)
		}
		if err = nil; !isDir(st) {
			// Whatever it was, whiteout or file, it had hidden a directory below.
			hides = true
			if parent, err = w.replace(parent, name, base); err != nil {
				return err
			}
			err = unix.Mkdirat(parent, base, 0o700)
		}
	}
	if err != nil {
		return failed("make directory", name, err)
	}
	fd, err := unix.Openat(parent, base, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return failed("open", name, err)
	}
	defer unix.Close(fd)
	if _, ok := w.made[name]; ok { // it was made for a child, and is described only now
		delete(w.made, name)
		if err := unix.Fremovexattr(fd, inheritAttr); err != nil {
			return failed("unmark", name, err)
		}
	}
	if hides {
		if err := w.hideBelow(fd, name); err != nil {
			return err
		}
	}
	return w.describe(h, fd, parent, name, base)
}

// hideBelow makes an open directory hide its namesakes below, where there are any.
func (w *writer) hideBelow(fd int, name string) error {
	if !w.overlay() || !w.job.Parented {
		return nil
	}
	return failed("make opaque", name, unix.Fsetxattr(fd, opaqueAttr, []byte("y"), 0))
}

// replace removes what is in the way and opens the parent again.
func (w *writer) replace(parent int, name, base string) (int, error) {
	if err := w.clear(parent, name, base); err != nil {
		return -1, err
	}
	dir, _ := split(name)
	return w.parent(dir)
}

func (w *writer) file(h *tar.Header, r io.Reader, parent int, name, base string) error {
	sparse := h.Typeflag == tar.TypeGNUSparse
	for k := range h.PAXRecords {
		sparse = sparse || strings.HasPrefix(k, paxSparse)
	}
	if w.bytes += h.Size; sparse && (w.bytes > w.job.Limits.Bytes || w.bytes < 0) {
		return layerError{fmt.Sprintf("its files claim more than the %d bytes allowed: raise the limit if you trust it", w.job.Limits.Bytes), errdefs.ErrResourceExhausted}
	}
	const flags = unix.O_WRONLY | unix.O_CREAT | unix.O_EXCL | unix.O_NOFOLLOW | unix.O_CLOEXEC
	fd, err := unix.Openat(parent, base, flags, 0o600)
	if errors.Is(err, unix.EEXIST) { // never written through: it may be a device, a link, or have another name
		if parent, err = w.replace(parent, name, base); err != nil {
			return err
		}
		fd, err = unix.Openat(parent, base, flags, 0o600)
	}
	if err != nil {
		return failed("create", name, err)
	}
	err = w.copyData(fd, name, r, sparse)
	if err == nil {
		err = w.describe(h, fd, parent, name, base)
	}
	if cerr := unix.Close(fd); err == nil {
		err = failed("close", name, cerr) // where a network filesystem says that it is full
	}
	return err
}

// link makes a hard link. Its target is a name in the layer; the links on the way to it are followed inside, the last one is not.
func (w *writer) link(h *tar.Header, parent int, name, base string) error {
	target, err := clean("the target of hard link "+fmt.Sprintf("%q", name)+",", h.Linkname)
	if err != nil {
		return err
	}
	if target == name {
		return layerError{fmt.Sprintf("%q is a hard link to itself", name), errdefs.ErrInvalidArgument}
	}
	tdir, tbase := split(target)
	missing := layerError{fmt.Sprintf("the target %q of hard link %q is not there", h.Linkname, name), errdefs.ErrInvalidArgument}
	from, err := w.t.open(tdir)
	if err == nil {
		var st *unix.Stat_t
		if st, err = stat(from, tbase); err == nil && (st == nil || w.overlay() && isWhiteout(st)) {
			err = unix.ENOENT
		}
		if err == nil && isDir(st) {
			return layerError{fmt.Sprintf("hard link %q is to the directory %q", name, target), errdefs.ErrInvalidArgument}
		}
	}
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
		if w.overlay() && w.job.Parented {
			return needsParent{missing}
		}
		return missing
	case err != nil:
		return failed("link", name, err)
	}
	err = unix.Linkat(from, tbase, parent, base, 0)
	if errors.Is(err, unix.EEXIST) {
		if parent, err = w.replace(parent, name, base); err != nil {
			return err
		}
		if from, err = w.t.open(tdir); err == nil {
			err = unix.Linkat(from, tbase, parent, base, 0)
		}
		if errors.Is(err, unix.ENOENT) {
			return missing // it was inside of what had to go
		}
	}
	return failed("link", name, err)
}

func dirOf(name string) string {
	dir, _ := split(name)
	return dir
}

// needsParent is a layer error that applying the layer to its parent may cure.
type needsParent struct{ layerError }

func (needsParent) Is(target error) bool { return target == ErrNeedsParent } //nolint:errorlint // this is how Is is told
func (e needsParent) Unwrap() error      { return e.layerError }

func (w *writer) device(h *tar.Header, parent int, name, base string) error {
	mode := uint32(unix.S_IFIFO)
	switch h.Typeflag {
	case tar.TypeChar:
		mode = unix.S_IFCHR
	case tar.TypeBlock:
		mode = unix.S_IFBLK
	}
	dev := uint64(0)
	if mode != unix.S_IFIFO {
		// The kernel keeps 12 bits of major and 20 of minor numbers (linux/kdev_t.h).
		if h.Devmajor < 0 || h.Devmajor >= 1<<12 || h.Devminor < 0 || h.Devminor >= 1<<20 {
			return layerError{fmt.Sprintf("device %q has the number %d:%d, which no device has", name, h.Devmajor, h.Devminor), errdefs.ErrInvalidArgument}
		}
		dev = unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor))
	}
	return w.node(h, parent, name, base, func() error { return unix.Mknodat(parent, base, mode|0o600, int(dev)) })
}

// node makes, by make, a file that is not opened to be described: opening a device or a pipe does something.
func (w *writer) node(h *tar.Header, parent int, name, base string, make func() error) error {
	err := make()
	if errors.Is(err, unix.EEXIST) {
		if _, err = w.replace(parent, name, base); err != nil {
			return err
		}
		return w.node2(h, name, base)
	}
	if err != nil {
		return failed("make", name, err)
	}
	if err := unix.Fchownat(parent, base, h.Uid, h.Gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return failed("give away", name, err)
	}
	if err := w.attributes(h, -1, parent, name, base); err != nil {
		return err
	}
	if h.Typeflag != tar.TypeSymlink {
		if err := unix.Fchmodat(parent, base, uint32(h.Mode)&0o7777, 0); err != nil {
			return failed("set mode of", name, err)
		}
	}
	return failed("set times of", name, unix.UtimesNanoAt(parent, base, w.now[:], unix.AT_SYMLINK_NOFOLLOW))
}

// node2 makes a node where something was in the way: the parent had to be opened again.
func (w *writer) node2(h *tar.Header, name, base string) error {
	parent, err := w.parent(dirOf(name))
	if err != nil {
		return err
	}
	return w.write(h, nil, parent, name, base)
}

// whiteout removes base of dir in the layers below.
func (w *writer) whiteout(dir, base, entry string) error {
	if base == "" || base == "." || base == ".." {
		return layerError{fmt.Sprintf("whiteout %q removes nothing that can be named", entry), errdefs.ErrInvalidArgument}
	}
	name := base
	if dir != "" {
		name = dir + "/" + base
	}
	if !w.overlay() {
		if _, err := w.t.open(dir); errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
			return nil // what is not there need not be removed
		}
		parent, err := w.parent(dir)
		if err != nil {
			return err
		}
		defer w.t.forget() // directories may be gone
		return failed("remove", name, w.purge(parent, base, name))
	}
	parent, ok, err := w.covering(dir)
	if !ok {
		return err
	}
	err = unix.Mknodat(parent, base, unix.S_IFCHR, 0)
	if !errors.Is(err, unix.EEXIST) {
		return failed("white out", name, err)
	}
	// The layer has something of that name itself, which stays; a directory must not show what is below.
	st, err := stat(parent, base)
	if err != nil || !isDir(st) {
		return failed("stat", name, err)
	}
	return w.opaque(name)
}

// opaque hides what the layers below have in a directory.
func (w *writer) opaque(dir string) error {
	if !w.overlay() {
		fd, err := w.t.open(dir)
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
			return nil
		}
		if err != nil {
			return failed("open", dir, err)
		}
		if _, err := w.parent(dir); err != nil {
			return err
		}
		defer w.t.forget()
		return failed("empty", dir, eachChild(fd, ".", func(d int, base string) error {
			name := base
			if dir != "" {
				name = dir + "/" + base
			}
			return w.purge(d, base, name)
		}))
	}
	fd, ok, err := w.covering(dir)
	if !ok {
		return err
	}
	return w.hideBelow(fd, dir)
}

// covering opens, in overlay form, a directory to put marks for the layers below in. There are none to make where nothing is below, or where this layer
// has a file in the directory's place, which hides all of it.
func (w *writer) covering(dir string) (fd int, ok bool, err error) {
	if !w.job.Parented {
		return -1, false, nil
	}
	if _, err := w.t.open(dir); errors.Is(err, unix.ENOTDIR) {
		return -1, false, nil
	}
	fd, err = w.parent(dir)
	return fd, err == nil, err
}

// purge removes what is not of this layer.
func (w *writer) purge(dir int, base, name string) error {
	if _, ok := w.kept[name]; !ok {
		return removeAll(dir, base)
	}
	st, err := stat(dir, base)
	if err != nil || !isDir(st) {
		return err
	}
	return eachChild(dir, base, func(d int, b string) error { return w.purge(d, b, name+"/"+b) })
}
