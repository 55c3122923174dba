package plain

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// identity is whom a process runs as.
type identity struct {
	uid, gid uint32
	groups   []uint32
	home     string
}

// maxUserFile bounds /etc/passwd and /etc/group of an image, in bytes.
const maxUserFile = 4 << 20

// lookup finds name|uid[:group|gid] in the container's own files; "" means what config.json says.
func lookup(t *tree, user string, u specs.User) (identity, error) {
	who := identity{uid: u.UID, gid: u.GID, groups: u.AdditionalGids, home: "/"}
	passwd, err := readFile(t, "/etc/passwd")
	if err != nil {
		return who, err
	}
	if user == "" {
		who.home = home(passwd, who.uid)
		return who, nil
	}
	name, group, hasGroup := strings.Cut(user, ":")
	login, found := "", false
	for _, f := range records(passwd, 7) {
		if f[0] == name || f[2] == name && !isName(passwd, name) {
			uid, err1 := strconv.ParseUint(f[2], 10, 32)
			gid, err2 := strconv.ParseUint(f[3], 10, 32)
			if err1 == nil && err2 == nil {
				who.uid, who.gid, who.home, login, found = uint32(uid), uint32(gid), f[5], f[0], true
				break
			}
		}
	}
	if !found {
		n, err := strconv.ParseUint(name, 10, 31)
		if err != nil {
			return who, fmt.Errorf("user %q: not in the image's /etc/passwd; use a name that is there, or a number: %w", name, errdefs.ErrInvalidArgument)
		}
		who.uid, who.gid = uint32(n), 0
	}
	groups, err := readFile(t, "/etc/group")
	if err != nil {
		return who, err
	}
	if !hasGroup {
		for _, f := range records(groups, 4) {
			gid, err := strconv.ParseUint(f[2], 10, 32)
			if err != nil {
				continue
			}
			for _, member := range strings.Split(f[3], ",") {
				if member == login && login != "" && uint32(gid) != who.gid {
					who.groups = append(who.groups, uint32(gid))
				}
			}
		}
		return who, nil
	}
	for _, f := range records(groups, 4) {
		if f[0] == group {
			if gid, err := strconv.ParseUint(f[2], 10, 32); err == nil {
				who.gid = uint32(gid)
				return who, nil
			}
		}
	}
	n, err := strconv.ParseUint(group, 10, 31)
	if err != nil {
		return who, fmt.Errorf("group %q: not in the image's /etc/group; use a name that is there, or a number: %w", group, errdefs.ErrInvalidArgument)
	}
	who.gid = uint32(n)
	return who, nil
}

func isName(passwd, name string) bool {
	for _, f := range records(passwd, 7) {
		if f[0] == name {
			return true
		}
	}
	return false
}

func home(passwd string, uid uint32) string {
	for _, f := range records(passwd, 7) {
		if f[2] == strconv.FormatUint(uint64(uid), 10) {
			return f[5]
		}
	}
	return "/"
}

// records are the well-formed lines of a file of passwd(5) or group(5).
func records(text string, fields int) (all [][]string) {
	for _, l := range strings.Split(text, "\n") {
		if f := strings.Split(l, ":"); len(f) >= fields {
			all = append(all, f)
		}
	}
	return all
}

// readFile reads a small regular file of the container's; one that is not there is empty.
func readFile(t *tree, p string) (string, error) {
	fd, err := t.open(p, unix.O_RDONLY|unix.O_NONBLOCK)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	f := os.NewFile(uintptr(fd), p)
	defer f.Close() //nolint:errcheck // it was only read
	st, err := f.Stat()
	if err != nil {
		return "", err
	}
	if !st.Mode().IsRegular() || st.Size() > maxUserFile {
		return "", fmt.Errorf("%s: not a regular file of at most %d bytes: %w", p, maxUserFile, errdefs.ErrInvalidArgument)
	}
	raw, err := io.ReadAll(io.LimitReader(f, maxUserFile))
	return string(raw), err
}
