package native

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/internal/insecure"
)

// user is whom a process runs as.
type user struct {
	uid, gid uint32
	groups   []uint32
	home     string
}

// account is a line of /etc/passwd (passwd(5)).
type account struct {
	name, home string
	uid, gid   uint32
}

// group is a line of /etc/group (group(5)).
type group struct {
	name    string
	gid     uint32
	members []string
}

// maxID is the highest user or group id: -1 means "no change" to the kernel.
const maxID = math.MaxUint32 - 1

func parseID(s string) (uint32, bool) {
	n, err := strconv.ParseUint(s, 10, 32)
	return uint32(n), err == nil && n <= maxID
}

// lines calls fn with the fields of each line that has at least n; what is malformed is passed over.
func lines(b []byte, n int, fn func(f []string) bool) {
	for l := range bytes.Lines(b) {
		l = bytes.TrimSpace(l)
		if len(l) == 0 || l[0] == '#' || len(l) > 1<<20 {
			continue
		}
		if f := strings.Split(string(l), ":"); len(f) >= n && !fn(f) {
			return
		}
	}
}

func findAccount(passwd []byte, fits func(account) bool) (account, bool) {
	var found account
	ok := false
	lines(passwd, 4, func(f []string) bool {
		uid, ok1 := parseID(f[2])
		gid, ok2 := parseID(f[3])
		a := account{name: f[0], uid: uid, gid: gid}
		if len(f) > 5 {
			a.home = f[5]
		}
		if ok1 && ok2 && fits(a) {
			found, ok = a, true
		}
		return !ok
	})
	return found, ok
}

func groups(b []byte, fn func(group) bool) {
	lines(b, 3, func(f []string) bool {
		gid, ok := parseID(f[2])
		if !ok {
			return true
		}
		g := group{name: f[0], gid: gid}
		if len(f) > 3 && f[3] != "" {
			g.members = strings.Split(f[3], ",")
		}
		return fn(g)
	})
}

// lookup finds who is meant by words, "name|uid[:group|gid]"; "" is what config.json says. read reads a
// file of the container's. A number need not be in any file; a name must.
func lookup(words string, u specs.User, read func(string) ([]byte, error)) (user, error) {
	out := user{uid: u.UID, gid: u.GID, groups: slices.Clone(u.AdditionalGids)}
	passwd, err := readOptional(read, "/etc/passwd")
	if err != nil {
		return out, err
	}
	name, groupName, withGroup := strings.Cut(words, ":")
	var a account
	known := false
	switch {
	case words == "":
		a, known = findAccount(passwd, func(a account) bool { return a.uid == u.UID })
	case name == "":
		a, known = findAccount(passwd, func(a account) bool { return a.uid == 0 })
		out.uid = 0
	default:
		uid, ok := parseID(name)
		if number(name) {
			a, known = findAccount(passwd, func(a account) bool { return a.uid == uid && ok })
		} else {
			a, known = findAccount(passwd, func(a account) bool { return a.name == name })
		}
		if !known && !ok {
			return out, fmt.Errorf("user %q: no such name in the container's /etc/passwd, and no user id: %w", name, errdefs.ErrInvalidArgument)
		}
		out.uid = uid
	}
	if out.home = "/"; known && a.home != "" && !strings.ContainsRune(a.home, 0) {
		out.home = a.home
	}
	if words == "" {
		return out, nil
	}
	if known {
		out.uid, out.gid = a.uid, a.gid
	} else {
		out.gid = 0
	}
	file, err := readOptional(read, "/etc/group")
	if err != nil {
		return out, err
	}
	if withGroup && groupName != "" {
		out.gid, err = findGroup(file, groupName)
		return out.complete(), err
	}
	if known {
		groups(file, func(g group) bool {
			if slices.Contains(g.members, a.name) && !slices.Contains(out.groups, g.gid) {
				out.groups = append(out.groups, g.gid)
			}
			return len(out.groups) < maxGroups
		})
	}
	return out.complete(), nil
}

// maxGroups leaves room for the primary one: NGROUPS_MAX is 65536.
const maxGroups = 65535

// complete has the primary group among the others. Who executes a program with another group's setgid
// bit would lose it else, and with it every refusal that a file has for that group (CVE-2022-36109).
func (u user) complete() user {
	if !slices.Contains(u.groups, u.gid) && !insecure.Without(insecure.Primary) {
		u.groups = append([]uint32{u.gid}, u.groups...)
	}
	return u
}

// number reports whether words mean an id. An image that names a user or a group by a number does not
// choose who that is: it would be root (CVE-2016-3697).
func number(words string) bool {
	return strings.Trim(words, "0123456789") == "" && !insecure.Without(insecure.Number)
}

func findGroup(file []byte, name string) (uint32, error) {
	var gid uint32
	found := false
	groups(file, func(g group) bool {
		if number(name) {
			return false
		}
		if g.name == name {
			gid, found = g.gid, true
		}
		return !found
	})
	if found {
		return gid, nil
	}
	if gid, ok := parseID(name); ok {
		return gid, nil
	}
	return 0, fmt.Errorf("group %q: no such name in the container's /etc/group, and no group id: %w", name, errdefs.ErrInvalidArgument)
}

// readOptional reads a file that an image need not have.
func readOptional(read func(string) ([]byte, error), name string) ([]byte, error) {
	b, err := read(name)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look user up: %w", err)
	}
	return b, nil
}
