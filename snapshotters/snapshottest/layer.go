package snapshottest

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/snapshotters"
)

// then is the time that layers give to what they describe.
var then = time.Unix(1_234_567_890, 123_456_789)

// step is one entry of a layer.
type step struct {
	path string
	make func(path string) error // nil for what removes
	how  how
}

type how int

const (
	puts    how = iota
	dirs        // makes a directory, or changes the looks of one
	removes     // a whiteout
	empties     // an opaque directory
)

func file(path, content string) step {
	return step{path: path, make: func(p string) error {
		if err := os.WriteFile(p, []byte(content), 0o644); err != nil {
			return err
		}
		return os.Chtimes(p, then, then)
	}}
}

func dir(path string, mode uint32, uid int) step {
	return step{path: path, how: dirs, make: func(p string) error {
		return errors.Join(unix.Chown(p, uid, uid), unix.Chmod(p, mode), os.Chtimes(p, then, then))
	}}
}

func symlink(path, target string) step {
	return step{path: path, make: func(p string) error { return os.Symlink(target, p) }}
}

func hardlink(path, to string) step {
	return step{path: path, make: func(p string) error {
		return os.Link(filepath.Join(strings.TrimSuffix(p, path), to), p)
	}}
}

func node(path string, mode uint32, dev int) step {
	return step{path: path, make: func(p string) error { return unix.Mknod(p, mode, dev) }}
}

// rich is a file with everything a file can have.
func rich(path string) step {
	return step{path: path, make: func(p string) error {
		if err := os.WriteFile(p, []byte("rich"), 0o600); err != nil {
			return err
		}
		// a capability set of version 2: cap_net_raw, permitted and effective (capability.h)
		caps := []byte{1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
		return errors.Join(
			unix.Lchown(p, 1234, 4321),
			unix.Setxattr(p, "user.gantry", []byte("v\x00w"), 0),
			unix.Setxattr(p, "security.capability", caps, 0),
			unix.Chmod(p, 0o6751),
			os.Chtimes(p, then, then))
	}}
}

func sparse(path string, size int64) step {
	return step{path: path, make: func(p string) error {
		f, err := os.Create(p)
		if err != nil {
			return err
		}
		_, err = f.WriteAt([]byte("end"), size-3)
		return errors.Join(err, f.Close(), os.Chtimes(p, then, then))
	}}
}

func remove(path string) step { return step{path: path, how: removes} }
func empty(path string) step  { return step{path: path, how: empties} }

// apply unpacks steps into a directory: in overlay form, onto nothing, or as what they mean, onto
// what is there. It is what services/images does, in small.
func apply(root string, overlayForm bool, steps []step) error {
	touched := map[string]bool{".": false} // directories of the layer; false: it did not describe it
	if overlayForm {
		if err := unix.Setxattr(root, snapshotters.Inherit, []byte("y"), 0); err != nil {
			return fmt.Errorf("mark the top: %w", err)
		}
	}
	for _, s := range steps {
		if err := s.apply(root, overlayForm, touched); err != nil {
			return fmt.Errorf("%s: %w", s.path, err)
		}
	}
	return nil
}

func (s step) apply(root string, overlayForm bool, touched map[string]bool) error {
	p := root + "/" + s.path // not cleaned: root may be a descriptor's link
	if err := parents(root, filepath.Dir(s.path), overlayForm, touched); err != nil {
		return err
	}
	switch {
	case s.how == dirs:
		if err := describe(p, overlayForm, touched[s.path]); err != nil {
			return err
		}
		touched[s.path] = true
		return s.make(p)
	case s.how == puts:
		if err := os.RemoveAll(p); err != nil {
			return err
		}
		return s.make(p)
	case s.how == removes && overlayForm:
		return errors.Join(os.RemoveAll(p), unix.Mknod(p, unix.S_IFCHR, 0))
	case s.how == removes:
		return os.RemoveAll(p)
	}
	if err := parents(root, s.path, overlayForm, touched); err != nil {
		return err
	}
	if overlayForm {
		return unix.Setxattr(p, "trusted.overlay.opaque", []byte("y"), 0)
	}
	ents, err := os.ReadDir(p)
	for _, e := range ents {
		err = errors.Join(err, os.RemoveAll(filepath.Join(p, e.Name())))
	}
	return err
}

// describe makes a directory that the layer describes, in the place of whatever else is there.
func describe(p string, overlayForm, before bool) error {
	if st, err := os.Lstat(p); err == nil && !st.IsDir() {
		if err := os.Remove(p); err != nil {
			return err
		}
	}
	if err := os.Mkdir(p, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if overlayForm && !before {
		if err := unix.Removexattr(p, snapshotters.Inherit); err != nil && !errors.Is(err, unix.ENODATA) {
			return err
		}
	}
	return nil
}

// parents makes the directories that lead to something, as far as the layer has not.
func parents(root, rel string, overlayForm bool, touched map[string]bool) error {
	if rel == "." {
		return nil
	}
	if err := parents(root, filepath.Dir(rel), overlayForm, touched); err != nil {
		return err
	}
	p := filepath.Join(root, rel)
	if st, err := os.Lstat(p); err == nil && st.IsDir() {
		return nil
	} else if err == nil {
		if err := os.Remove(p); err != nil {
			return err
		}
	}
	if err := os.Mkdir(p, 0o755); err != nil {
		return err
	}
	touched[rel] = false
	if !overlayForm {
		return nil
	}
	return unix.Setxattr(p, snapshotters.Inherit, []byte("y"), 0)
}

// tree is what can be seen of a directory, by path.
type tree map[string]string

// look describes everything under dir. Times are of what is not a directory; "dir times" are in the test of looks.
func look(dir string) (tree, error) {
	out := tree{}
	names := map[string][]string{} // of files with several, by inode
	err := walk(dir, ".", func(rel string) error {
		p := dir + "/" + rel // not cleaned: dir itself may be a descriptor's link
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			return fmt.Errorf("lstat %s: %w", rel, err)
		}
		d := fmt.Sprintf("mode %o owner %d:%d", st.Mode, st.Uid, st.Gid)
		attrs, err := attributes(p)
		if err != nil {
			return err
		}
		d += attrs
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			raw, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			d += fmt.Sprintf(" size %d sum %x at %d.%d", len(raw), sha256.Sum256(raw), st.Mtim.Sec, st.Mtim.Nsec)
		case unix.S_IFLNK:
			to, err := os.Readlink(p)
			if err != nil {
				return err
			}
			d += " to " + to
		case unix.S_IFCHR, unix.S_IFBLK:
			d += fmt.Sprintf(" device %d", st.Rdev)
		}
		if st.Mode&unix.S_IFMT != unix.S_IFDIR && st.Nlink > 1 {
			id := fmt.Sprint(st.Ino)
			names[id] = append(names[id], rel)
		}
		out[rel] = d
		return nil
	})
	for _, same := range names {
		if len(same) == 1 {
			continue // the other name was removed, by a layer that could not tell the file
		}
		slices.Sort(same)
		for _, n := range same {
			out[n] += " also " + strings.Join(same, ",")
		}
	}
	return out, err
}

func walk(root, rel string, fn func(rel string) error) error {
	if err := fn(rel); err != nil {
		return err
	}
	ents, err := os.ReadDir(filepath.Join(root, rel) + "/.") // through the descriptor's link
	if err != nil {
		return err
	}
	for _, e := range ents {
		sub := filepath.Join(rel, e.Name())
		if e.IsDir() {
			err = walk(root, sub, fn)
		} else {
			err = fn(sub)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// attributes lists extended attributes but those that belong to overlayfs.
func attributes(p string) (string, error) {
	buf := make([]byte, 64<<10)
	n, err := unix.Llistxattr(p, buf)
	if err != nil || n == 0 {
		return "", err
	}
	names := strings.Split(strings.TrimRight(string(buf[:n]), "\x00"), "\x00")
	slices.Sort(names)
	var out strings.Builder
	for _, name := range names {
		if strings.HasPrefix(name, "trusted.overlay.") {
			continue
		}
		n, err := unix.Lgetxattr(p, name, buf)
		if err != nil {
			return "", fmt.Errorf("attribute %s of %s: %w", name, p, err)
		}
		fmt.Fprintf(&out, " %s=%q", name, buf[:n])
	}
	return out.String(), nil
}

// differences compares two trees.
func differences(got, want tree) (out []string) {
	for p, w := range want {
		if g, ok := got[p]; !ok {
			out = append(out, fmt.Sprintf("%s is missing", p))
		} else if g != w {
			out = append(out, fmt.Sprintf("%s\n  is    %s\n  not   %s", p, g, w))
		}
	}
	for p, g := range got {
		if _, ok := want[p]; !ok {
			out = append(out, fmt.Sprintf("%s is there: %s", p, g))
		}
	}
	slices.Sort(out)
	return out
}
