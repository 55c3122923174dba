package system

import (
	"bufio"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// host reads what the kernel and the distribution say of the machine, below root. What cannot be
// read is empty: a description does not fail for want of one line.
type host struct{ root string }

// kernel is its release, as uname -r prints it.
func (h host) kernel() string {
	raw, err := os.ReadFile(filepath.Join(h.root, "proc/sys/kernel/osrelease"))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(raw))
}

// system is the distribution's name for people: os-release(5).
func (h host) system() string {
	for _, p := range []string{"etc/os-release", "usr/lib/os-release"} {
		f, err := os.Open(filepath.Join(h.root, p))
		if err != nil {
			continue
		}
		name := prettyName(f)
		_ = f.Close() // was only read
		if name != "" {
			return name
		}
	}
	return "Linux"
}

func prettyName(r io.Reader) string {
	found := map[string]string{}
	for s := bufio.NewScanner(r); s.Scan(); {
		k, v, ok := strings.Cut(strings.TrimSpace(s.Text()), "=")
		if !ok || strings.HasPrefix(k, "#") {
			continue
		}
		if u, err := strconv.Unquote(v); err == nil {
			v = u
		}
		found[k] = strings.Trim(v, "'")
	}
	if found["PRETTY_NAME"] != "" {
		return found["PRETTY_NAME"]
	}
	return found["NAME"]
}

// memory is all of it, in bytes: proc_meminfo(5).
func (h host) memory() int64 {
	f, err := os.Open(filepath.Join(h.root, "proc/meminfo"))
	if err != nil {
		return 0
	}
	defer func() { _ = f.Close() }() // was only read
	for s := bufio.NewScanner(f); s.Scan(); {
		if w := strings.Fields(s.Text()); len(w) >= 2 && w[0] == "MemTotal:" {
			kb, err := strconv.ParseInt(w[1], 10, 64)
			if err != nil {
				return 0
			}
			return kb << 10
		}
	}
	return 0
}

// cgroups says which hierarchy holds the controllers: "v2" if the mount point is cgroup2,
// "hybrid" if cgroup2 is mounted beside version 1, else "v1" (systemd's words, for its layouts).
func (h host) cgroups() string {
	dir := filepath.Join(h.root, "sys/fs/cgroup")
	switch {
	case isCgroup2(dir):
		return "v2"
	case isCgroup2(filepath.Join(dir, "unified")):
		return "hybrid"
	}
	return "v1"
}

func isCgroup2(dir string) bool {
	var st unix.Statfs_t
	return unix.Statfs(dir, &st) == nil && st.Type == unix.CGROUP2_SUPER_MAGIC
}
