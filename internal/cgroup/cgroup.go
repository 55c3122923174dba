// Package cgroup makes, limits, watches and ends control groups, on cgroup v1, hybrid and v2.
//
// A Group is one path, "/gantry/<id>", below the root of every hierarchy that is mounted. Daemon and
// shim both use it: it keeps nothing in memory, so that whoever comes later finds the same.
//
//	cgroup.go     hierarchies, paths, making and removing
//	resources.go  limits: memory.go cpu.go io.go pages.go
//	kill.go       ending, freezing, counting
//	devices.go    which devices may be used: v1's files, v2's BPF program
package cgroup

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Mode is how the host mounts cgroups.
type Mode string

// The modes.
const (
	V1     Mode = "v1"
	Hybrid Mode = "hybrid" // v1 controllers, and a v2 tree beside them
	V2     Mode = "v2"
)

// Hierarchies is what is mounted.
type Hierarchies struct {
	Mode Mode
	V1   []Hierarchy // by mount point
	V2   string      // where the v2 tree is mounted; "" if it is not
}

// Hierarchy is one v1 hierarchy.
type Hierarchy struct {
	Dir         string
	Controllers []string // "cpu", "cpuacct"; "name=systemd" for one without
}

// Has reports whether a controller is in the hierarchy.
func (h Hierarchy) Has(controller string) bool { return slices.Contains(h.Controllers, controller) }

// Detect reads what is mounted, once in a process.
var Detect = sync.OnceValues(func() (Hierarchies, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return Hierarchies{}, fmt.Errorf("find cgroups: %w", err)
	}
	defer f.Close() //nolint:errcheck // it was only read
	return parse(f)
})

// v1Controllers are the words of a v1 mount's options that name controllers (cgroups(7)).
var v1Controllers = []string{
	"cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "net_cls", "blkio", "perf_event", "net_prio", "hugetlb", "pids", "rdma", "misc",
}

// parse reads mountinfo (proc_pid_mountinfo(5)).
func parse(r io.Reader) (Hierarchies, error) {
	var h Hierarchies
	s := bufio.NewScanner(r)
	s.Buffer(nil, 1<<20)
	for s.Scan() {
		before, after, ok := strings.Cut(s.Text(), " - ")
		f, g := strings.Fields(before), strings.Fields(after)
		if !ok || len(f) < 5 || len(g) < 3 || f[3] != "/" {
			continue
		}
		switch g[0] {
		case "cgroup2":
			if h.V2 == "" {
				h.V2 = f[4]
			}
		case "cgroup":
			one := Hierarchy{Dir: f[4]}
			for _, o := range strings.Split(g[2], ",") {
				if slices.Contains(v1Controllers, o) || strings.HasPrefix(o, "name=") {
					one.Controllers = append(one.Controllers, o)
				}
			}
			if len(one.Controllers) > 0 && !slices.ContainsFunc(h.V1, func(x Hierarchy) bool { return slices.Equal(x.Controllers, one.Controllers) }) {
				h.V1 = append(h.V1, one)
			}
		}
	}
	if err := s.Err(); err != nil {
		return h, fmt.Errorf("find cgroups: %w", err)
	}
	sort.Slice(h.V1, func(i, j int) bool { return h.V1[i].Dir < h.V1[j].Dir })
	switch {
	case len(h.V1) == 0 && h.V2 == "":
		return h, fmt.Errorf("find cgroups: none is mounted; mount cgroup2 on /sys/fs/cgroup")
	case len(h.V1) == 0:
		h.Mode = V2
	case h.V2 == "":
		h.Mode = V1
	default:
		h.Mode = Hybrid
	}
	return h, nil
}

// Group is one cgroup, in every hierarchy.
type Group struct {
	Path string // "/gantry/<id>", below each hierarchy's root
	h    Hierarchies
}

// Open names a group; it need not be there.
func Open(path string) (*Group, error) {
	if !strings.HasPrefix(path, "/") || filepath.Clean(path) != path || path == "/" {
		return nil, fmt.Errorf("cgroup %q: not a clean absolute path", path)
	}
	h, err := Detect()
	if err != nil {
		return nil, err
	}
	return &Group{path, h}, nil
}

// Dirs are the group's directories.
func (g *Group) Dirs() []string {
	var dirs []string
	for _, h := range g.h.V1 {
		dirs = append(dirs, h.Dir+g.Path)
	}
	if g.h.V2 != "" {
		dirs = append(dirs, g.h.V2+g.Path)
	}
	return dirs
}

// dir is the group's directory in a controller's v1 hierarchy, "" if there is none.
func (g *Group) dir(controller string) string {
	for _, h := range g.h.V1 {
		if h.Has(controller) {
			return h.Dir + g.Path
		}
	}
	return ""
}

// Create makes the group, and what is above it, everywhere. What is there stays.
func (g *Group) Create() error {
	for _, h := range g.h.V1 {
		if err := mkdir(h.Dir, g.Path, h.Has("cpuset")); err != nil {
			return fmt.Errorf("make cgroup: %w", err)
		}
	}
	if g.h.V2 != "" {
		if err := g.createV2(); err != nil {
			return fmt.Errorf("make cgroup: %w", err)
		}
	}
	return nil
}

// mkdir makes path below top. A new v1 cpuset is empty, and no process can be in an empty one.
func mkdir(top, path string, cpuset bool) error {
	err := os.Mkdir(top+path, 0o755)
	if errors.Is(err, fs.ErrNotExist) {
		if err = mkdir(top, filepath.Dir(path), cpuset); err != nil {
			return err
		}
		err = os.Mkdir(top+path, 0o755)
	}
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if !cpuset {
		return nil
	}
	for _, name := range []string{"cpuset.cpus", "cpuset.mems"} {
		if _, err := inherit(top, path, name); err != nil {
			return err
		}
	}
	return nil
}

// inherit gives an empty cpuset what the one above it has, which somebody may have made a moment ago
// and not filled yet; and answers what it has.
func inherit(top, path, name string) (string, error) {
	raw, err := os.ReadFile(filepath.Join(top+path, name))
	if err != nil {
		return "", err
	}
	mine := strings.TrimSpace(string(raw))
	if mine != "" || path == "/" {
		return mine, nil
	}
	above, err := inherit(top, filepath.Dir(path), name)
	if err != nil {
		return "", err
	}
	return above, write(filepath.Join(top+path, name), above)
}

// createV2 makes the group in the v2 tree and hands the controllers down to it.
func (g *Group) createV2() error {
	dir := g.h.V2
	names := strings.Split(strings.TrimPrefix(g.Path, "/"), "/")
	for _, name := range names {
		if g.h.Mode == V2 {
			if err := delegate(dir); err != nil {
				return err
			}
		}
		dir = filepath.Join(dir, name)
		if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	return nil
}

// delegate lets the children of dir have every controller that dir has.
func delegate(dir string) error {
	raw, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	if err != nil {
		return err
	}
	have, err := os.ReadFile(filepath.Join(dir, "cgroup.subtree_control"))
	if err != nil {
		return err
	}
	for _, c := range strings.Fields(string(raw)) {
		if slices.Contains(strings.Fields(string(have)), c) {
			continue
		}
		// One by one: a controller that cannot be handed down (cpu, with realtime processes
		// about) must not take the others with it. A limit that needs it will say so.
		_ = write(filepath.Join(dir, "cgroup.subtree_control"), "+"+c)
	}
	return nil
}

// Entrance is how a new process gets into a group without the detour through cgroup.procs, which
// waits for every thread of the host (8 ms and more).
type Entrance struct {
	Tasks []*os.File // v1: the process writes "0" to each while it has one thread
	Dir   *os.File   // v2: for CLONE_INTO_CGROUP; nil if there is no v2 tree
}

// Enter opens the entrance.
func (g *Group) Enter() (_ *Entrance, err error) {
	e := &Entrance{}
	defer func() {
		if err != nil {
			e.Close()
		}
	}()
	for _, h := range g.h.V1 {
		f, err := os.OpenFile(h.Dir+g.Path+"/tasks", os.O_WRONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, fmt.Errorf("enter cgroup: %w", err)
		}
		e.Tasks = append(e.Tasks, f)
	}
	if g.h.V2 != "" {
		if e.Dir, err = os.OpenFile(g.h.V2+g.Path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err != nil {
			return nil, fmt.Errorf("enter cgroup: %w", err)
		}
	}
	return e, nil
}

// Close closes the files.
func (e *Entrance) Close() {
	for _, f := range e.Tasks {
		_ = f.Close()
	}
	if e.Dir != nil {
		_ = e.Dir.Close()
	}
}

// Remove removes the group and what is below it, everywhere. It waits for a dying process's last
// moments until ctx ends. Removing what is gone succeeds.
func (g *Group) Remove(ctx context.Context) error {
	var errs []error
	for _, dir := range g.Dirs() {
		if err := remove(ctx, dir); err != nil {
			errs = append(errs, fmt.Errorf("remove cgroup: %w", err))
		}
	}
	return errors.Join(errs...)
}

func remove(ctx context.Context, dir string) error {
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		err := unix.Rmdir(dir)
		switch {
		case err == nil || errors.Is(err, unix.ENOENT):
			return nil
		case !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.ENOTEMPTY):
			return &fs.PathError{Op: "rmdir", Path: dir, Err: err}
		}
		if below, _ := os.ReadDir(dir); len(below) > 0 { // a container's own cgroups
			for _, d := range below {
				if d.IsDir() {
					if err := remove(ctx, filepath.Join(dir, d.Name())); err != nil {
						return err
					}
				}
			}
			if unix.Rmdir(dir) == nil {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return &fs.PathError{Op: "rmdir", Path: dir, Err: err}
		case <-time.After(wait):
		}
	}
}

// RemoveIfEmpty removes the group where neither a process nor another group is in it.
func (g *Group) RemoveIfEmpty() error {
	var errs []error
	for _, dir := range g.Dirs() {
		if err := unix.Rmdir(dir); err != nil && !errors.Is(err, unix.ENOENT) {
			errs = append(errs, &fs.PathError{Op: "rmdir", Path: dir, Err: err})
		}
	}
	return errors.Join(errs...)
}

// Exists reports whether the group is there in any hierarchy.
func (g *Group) Exists() bool {
	for _, dir := range g.Dirs() {
		if _, err := os.Lstat(dir); err == nil {
			return true
		}
	}
	return false
}

// Children are the names of the groups directly below path, in any hierarchy: what an instance has.
func Children(path string) ([]string, error) {
	g, err := Open(path)
	if err != nil {
		return nil, err
	}
	seen := map[string]bool{}
	for _, dir := range g.Dirs() {
		ds, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("list cgroups: %w", err)
		}
		for _, d := range ds {
			if d.IsDir() {
				seen[d.Name()] = true
			}
		}
	}
	var names []string
	for n := range seen {
		names = append(names, n)
	}
	sort.Strings(names)
	return names, nil
}

// Mounts are how a container sees its own group at /sys/fs/cgroup: the directory to bind for each
// name there ("" is the whole), and links from the names of controllers that share a hierarchy.
func (g *Group) Mounts() (binds map[string]string, links map[string]string) {
	binds, links = map[string]string{}, map[string]string{}
	if g.h.Mode == V2 {
		binds[""] = g.h.V2 + g.Path
		return binds, links
	}
	for _, h := range g.h.V1 {
		name := filepath.Base(h.Dir)
		binds[name] = h.Dir + g.Path
		for _, c := range h.Controllers {
			if c != name && !strings.HasPrefix(c, "name=") {
				links[c] = name
			}
		}
	}
	if g.h.V2 != "" {
		binds[filepath.Base(g.h.V2)] = g.h.V2 + g.Path
	}
	return binds, links
}

// write writes one value to a cgroup's file, whole, in one write.
func write(path, value string) error {
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &fs.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd) //nolint:errcheck // the write has told
	if _, err := unix.Write(fd, []byte(value)); err != nil {
		return &fs.PathError{Op: "write " + value + " to", Path: path, Err: err}
	}
	return nil
}
