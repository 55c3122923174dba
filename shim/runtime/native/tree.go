package native

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/internal/insecure"
)

// tree is the container's filesystem before there is one: mounts that are still detached, each with the
// place where it will be. Walking it component by component, without following a link in the kernel,
// gives what a path will mean inside, and makes what is missing.
type tree struct {
	layers []layer // in the order of mounting; of two at one place the later is seen
}

type layer struct {
	at string // canonical: absolute, clean, no symbolic link on the way
	fd int    // its root; unborn if the child mounts it
}

// unborn is the descriptor of a filesystem that only the child can mount (proc, sysfs, mqueue).
const unborn = -1

const maxLinks = 40 // as the kernel

// place is a path in a tree.
type place struct {
	path   string // canonical
	fd     int    // O_PATH, to be closed; -1 if it is missing or in what is not mounted yet
	mode   uint32 // type and permissions, if fd is there
	device uint64
	unborn bool
}

// nowhere goes with an error.
var nowhere = place{fd: -1}

func (p *place) close() {
	if p.fd >= 0 {
		_ = unix.Close(p.fd)
		p.fd = -1
	}
}

func (t *tree) mounted(at string) (layer, bool) {
	for i := len(t.layers) - 1; i >= 0; i-- {
		if t.layers[i].at == at {
			return t.layers[i], true
		}
	}
	return layer{}, false
}

// under is the layer that canonical path lies in, if the way from that layer's root crosses no other.
func (t *tree) under(p string) layer {
	for {
		if l, ok := t.mounted(p); ok || p == "/" {
			return l
		}
		p = path.Dir(p)
	}
}

// find walks to name. Where something is missing it is ErrNotExist.
func (t *tree) find(name string) (place, error) { return t.walk(name, 0) }

// make walks to name and makes what is missing: directories on the way, and at its end a directory or
// an empty file.
func (t *tree) make(name string, dir bool) (place, error) {
	if dir {
		return t.walk(name, unix.S_IFDIR)
	}
	return t.walk(name, unix.S_IFREG)
}

func relative(base, p string) string {
	if r := strings.TrimPrefix(strings.TrimPrefix(p, base), "/"); r != "" {
		return r
	}
	return "."
}

// walk makes what is missing, with kind at the end, unless kind is 0.
func (t *tree) walk(name string, kind uint32) (place, error) {
	clean := path.Clean("/" + name)
	if strings.Contains(name, "..") { // what it means depends on links
		w := walker{t: t, name: name, todo: strings.Split(name, "/"), kind: kind}
		return w.run()
	}
	l := t.under(clean)
	if l.fd == unborn {
		return place{path: clean, fd: -1, unborn: true}, nil
	}
	if fd, err := openIn(l.fd, relative(l.at, clean), unix.O_PATH, unix.RESOLVE_NO_SYMLINKS); err == nil {
		return look(clean, fd)
	} else if !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ELOOP) && !errors.Is(err, unix.ENOTDIR) {
		return nowhere, &os.PathError{Op: "open", Path: clean, Err: err}
	}
	w := walker{t: t, name: name, todo: strings.Split(name, "/"), kind: kind}
	return w.run()
}

func look(at string, fd int) (place, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		_ = unix.Close(fd)
		return nowhere, &os.PathError{Op: "stat", Path: at, Err: err}
	}
	return place{path: at, fd: fd, mode: st.Mode, device: st.Rdev}, nil
}

// walker walks the slow way.
type walker struct {
	t     *tree
	name  string
	todo  []string
	kind  uint32
	at    string // canonical, "" is the root
	links int
}

func (w *walker) fail(err error) (place, error) {
	return nowhere, &os.PathError{Op: "walk", Path: w.name, Err: err}
}

func (w *walker) run() (place, error) {
	for len(w.todo) > 0 {
		name := w.todo[0]
		w.todo = w.todo[1:]
		switch name {
		case "", ".":
			continue
		case "..":
			w.at = strings.TrimSuffix(path.Dir("/"+w.at), "/")
			continue
		}
		next := w.at + "/" + name
		if l, ok := w.t.mounted(next); ok {
			if l.fd == unborn {
				return place{path: path.Join(next, path.Join(w.todo...)), fd: -1, unborn: true}, nil
			}
			w.at = next
			continue
		}
		done, err := w.step(name, next)
		if err != nil {
			return w.fail(err)
		}
		if done {
			w.at = next
		}
	}
	at := w.at
	if at == "" {
		at = "/"
	}
	l := w.t.under(at)
	fd, err := openIn(l.fd, relative(l.at, at), unix.O_PATH, unix.RESOLVE_NO_SYMLINKS)
	if err != nil {
		return w.fail(err)
	}
	return look(at, fd)
}

// step goes into name, which is next as a canonical path if it is no link.
func (w *walker) step(name, next string) (bool, error) {
	parent := w.at
	if parent == "" {
		parent = "/"
	}
	l := w.t.under(parent)
	dir, err := openIn(l.fd, relative(l.at, parent), unix.O_PATH|unix.O_DIRECTORY, unix.RESOLVE_NO_SYMLINKS)
	if err != nil {
		return false, err
	}
	defer unix.Close(dir) //nolint:errcheck // O_PATH
	for range 2 {
		fd, err := unix.Openat(dir, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if errors.Is(err, unix.ENOENT) && w.kind != 0 {
			if err := w.create(dir, name); err != nil && !errors.Is(err, unix.EEXIST) {
				return false, err
			}
			continue
		}
		if err != nil {
			return false, err
		}
		p, err := look(next, fd)
		if err != nil {
			return false, err
		}
		defer p.close()
		if p.mode&unix.S_IFMT != unix.S_IFLNK {
			return true, nil
		}
		return false, w.follow(fd)
	}
	return false, unix.ENOENT
}

func (w *walker) follow(link int) error {
	if w.links++; w.links > maxLinks {
		return unix.ELOOP
	}
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(link, "", buf)
	if err != nil {
		return err
	}
	to := string(buf[:n])
	if strings.HasPrefix(to, "/") {
		w.at = ""
	}
	w.todo = append(strings.Split(to, "/"), w.todo...)
	return nil
}

func (w *walker) create(dir int, name string) error {
	last := true
	for _, c := range w.todo {
		last = last && (c == "" || c == ".")
	}
	if !last || w.kind == unix.S_IFDIR {
		return unix.Mkdirat(dir, name, 0o755)
	}
	fd, err := unix.Openat(dir, name, unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_WRONLY|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return err
	}
	return unix.Close(fd)
}

// openIn opens name as if dir were the root of everything.
func openIn(dir int, name string, flags int, resolve uint64) (int, error) {
	if insecure.Without(insecure.Inside) {
		return unix.Openat(dir, strings.TrimPrefix(name, "/"), flags|unix.O_CLOEXEC, 0)
	}
	how := &unix.OpenHow{Flags: uint64(flags) | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS | resolve}
	for {
		fd, err := unix.Openat2(dir, name, how)
		if err != unix.EAGAIN && err != unix.EINTR { //nolint:errorlint // a plain errno; EAGAIN: a rename raced with ".."
			return fd, err
		}
	}
}

// maxRead is the most that is read of a container's file.
const maxRead = 4 << 20

// readRegular reads the file that an O_PATH descriptor stands for, if it is a regular one.
func readRegular(fd int, mode uint32, name string) ([]byte, error) {
	if mode&unix.S_IFMT != unix.S_IFREG {
		return nil, fmt.Errorf("read %s: not a regular file: %w", name, errdefs.ErrInvalidArgument)
	}
	f, err := os.OpenFile("/proc/self/fd/"+strconv.Itoa(fd), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // it was only read
	b, err := io.ReadAll(io.LimitReader(f, maxRead+1))
	if err != nil {
		return nil, err
	}
	if len(b) > maxRead {
		return nil, fmt.Errorf("read %s: longer than %d MiB: %w", name, maxRead>>20, errdefs.ErrInvalidArgument)
	}
	return b, nil
}

// read reads a regular file of the tree.
func (t *tree) read(name string) ([]byte, error) {
	p, err := t.find(name)
	if err != nil {
		return nil, err
	}
	defer p.close()
	if p.fd < 0 {
		return nil, &os.PathError{Op: "open", Path: name, Err: unix.ENOENT}
	}
	return readRegular(p.fd, p.mode, name)
}
