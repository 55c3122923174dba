package harness

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"

	"golang.org/x/sys/unix"
)

// Describe lists every file below root, one line each: type, mode, owner, links, size or device,
// time of last change in nanoseconds, digest of the content or target of the link, and extended
// attributes. Two trees that hold the same list the same.
func Describe(root string, skip func(path string) bool) (map[string]string, error) {
	found := map[string]string{}
	// With the slash a root that is a link (/proc/PID/root) is entered.
	err := filepath.WalkDir(root+"/", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		if skip != nil && skip(rel) {
			if d.IsDir() && rel != "." {
				return fs.SkipDir
			}
			return nil
		}
		line, err := describe(path)
		if err != nil {
			return err
		}
		found[rel] = line
		return nil
	})
	return found, err
}

func describe(path string) (string, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return "", err
	}
	what := ""
	links, size := uint64(st.Nlink), st.Size
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		links, size = 0, 0 // a matter of the filesystem
	case unix.S_IFLNK:
		target, err := os.Readlink(path)
		if err != nil {
			return "", err
		}
		what = "-> " + target
	case unix.S_IFREG:
		f, err := os.Open(path)
		if err != nil {
			return "", err
		}
		defer f.Close()
		h := sha256.New()
		if _, err := io.Copy(h, f); err != nil {
			return "", err
		}
		what = hex.EncodeToString(h.Sum(nil)[:8])
	case unix.S_IFCHR, unix.S_IFBLK:
		what = fmt.Sprintf("%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
	}
	xattrs, err := attributes(path)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%o %d:%d links %d size %d at %d.%09d %s%s", st.Mode, st.Uid, st.Gid, links, size, st.Mtim.Sec, st.Mtim.Nsec, what, xattrs), nil
}

func attributes(path string) (string, error) {
	buf := make([]byte, 64<<10)
	n, err := unix.Llistxattr(path, buf)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	var all []string
	for _, name := range strings.Split(strings.TrimRight(string(buf[:n]), "\x00"), "\x00") {
		if name == "" {
			continue
		}
		value := make([]byte, 64<<10)
		n, err := unix.Lgetxattr(path, name, value)
		if err != nil {
			return "", err
		}
		all = append(all, fmt.Sprintf(" %s=%x", name, value[:n]))
	}
	sort.Strings(all)
	return strings.Join(all, ""), nil
}

// Differences compares two descriptions.
func Differences(want, got map[string]string) []string {
	var out []string
	for path, w := range want {
		if g, ok := got[path]; !ok {
			out = append(out, path+": missing")
		} else if g != w {
			out = append(out, fmt.Sprintf("%s:\n    want %s\n    got  %s", path, w, g))
		}
	}
	for path := range got {
		if _, ok := want[path]; !ok {
			out = append(out, path+": too many")
		}
	}
	sort.Strings(out)
	return out
}
