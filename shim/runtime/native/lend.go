package native

import (
	"errors"
	"os"
	"strconv"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/shim/runtime"
)

// What this package knows of mounts, users and programs, for a runtime that has another program make
// the container (runtime/oci): so that both mean the same by the same words.

// Detached is a mount of m that is in no namespace; whoever gets it closes it.
func Detached(m runtime.Mount) (int, error) { return new(builder).detached(m) }

// OnThread runs fn on a thread that ends with it, and with everything that fn unshared.
func OnThread(fn func()) { onThread(fn) }

// OpenIn opens name as if dir were the root of everything.
func OpenIn(dir int, name string, flags int, resolve uint64) (int, error) {
	return openIn(dir, name, flags, resolve)
}

// Account is who is meant by words (see runtime.Config.User), and the home that is theirs, in the
// container whose root filesystem root is.
func Account(root int, words string, u specs.User) (specs.User, string, error) {
	found, err := lookup(words, u, func(name string) ([]byte, error) { return readInside(root, name) })
	if err != nil {
		return u, "", err
	}
	u.UID, u.GID, u.AdditionalGids, u.Username = found.uid, found.gid, found.groups, ""
	return u, found.home, nil
}

// Limits are the resource limits that this process may give, and how a process of it is chosen when
// memory is short. What it may not do it comes as near to as it may, and tells warn.
func Limits(list []specs.POSIXRlimit, oomScoreAdj *int, warn func(string, ...any)) ([]specs.POSIXRlimit, *int, error) {
	id, err := whoami()
	if err != nil {
		return nil, nil, err
	}
	limits, err := id.rlimits(list, warn)
	if err != nil {
		return nil, nil, err
	}
	out := make([]specs.POSIXRlimit, 0, len(limits))
	for _, l := range limits {
		out = append(out, specs.POSIXRlimit{Type: "RLIMIT_" + limitNames[l.resource], Soft: l.value.Cur, Hard: l.value.Max})
	}
	adj := oomScoreAdj
	if adj == nil && id.oomScore < 0 {
		adj = new(int) // the daemon is spared for its own sake, not for its containers'
	}
	if adj != nil && (*adj < -1000 || *adj > 1000) {
		return nil, nil, invalid("process.oomScoreAdj %d: it must be between -1000 and 1000", *adj)
	}
	if adj != nil && *adj < id.oomScore && id.caps>>capSysResource&1 == 0 {
		warn("this host does not let a process be spared when memory is short", "oom_score_adj", *adj, "stays", id.oomScore)
		adj = &id.oomScore
	}
	return out, adj, nil
}

// Capabilities refuses names that are none; what this process does not have it tells warn.
func Capabilities(c *specs.LinuxCapabilities, warn func(string, ...any)) error {
	id, err := whoami()
	if err == nil {
		_, err = id.capabilities(c, warn)
	}
	return err
}

// Blame says why p's command could not be executed below root: a runtime.CommandError, or nil if there
// is nothing to be seen that is against it.
func Blame(root int, spec *specs.Process) error {
	p := &process{spec: spec}
	if err := p.environment(); err != nil {
		return err
	}
	why := &proc{c: &container{root: root}, command: spec.Args[0], paths: p.paths, cwd: spec.Cwd}
	rec := record{errno: int64(unix.ENOENT)}
	for i, name := range p.paths {
		errno := why.refuses(root, name)
		switch {
		case errno == 0:
			return nil
		case errno == unix.ENOENT || errno == unix.ENOTDIR && len(p.paths) > 1:
			continue
		}
		rec.errno, rec.more = int64(errno), int64(i)
		break
	}
	return why.explain(rec)
}

// refuses is what execve(2) would answer, as far as the file shows it.
func (p *proc) refuses(root int, name string) unix.Errno {
	fd, err := openIn(root, p.absolute(name), unix.O_PATH, 0)
	var errno unix.Errno
	if err != nil {
		if errors.As(err, &errno) {
			return errno
		}
		return unix.ENOENT
	}
	at, err := look(name, fd)
	if err != nil {
		return unix.ENOENT
	}
	defer at.close()
	if at.mode&unix.S_IFMT != unix.S_IFREG || at.mode&0o111 == 0 {
		return unix.EACCES
	}
	if p.interpreter(root, name) != "" {
		return unix.ENOENT
	}
	f, err := os.Open("/proc/self/fd/" + strconv.Itoa(at.fd))
	if err != nil {
		return 0
	}
	defer f.Close() //nolint:errcheck // it was only read
	head := make([]byte, 4)
	n, _ := f.ReadAt(head, 0)
	if s := string(head[:n]); s != "\x7fELF" && (n < 2 || s[:2] != "#!") && !otherFormats() {
		return unix.ENOEXEC
	}
	return 0
}

// otherFormats reports whether this host has been taught to execute more than ELF files and scripts
// (binfmt_misc): then only the kernel knows what it executes.
func otherFormats() bool {
	ds, err := os.ReadDir("/proc/sys/fs/binfmt_misc")
	return err == nil && len(ds) > 2 // register and status are always there
}
