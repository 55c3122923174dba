package cgroup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Kill ends every process of the group, and of what is below it, with SIGKILL, frozen ones too,
// and waits until there is none or ctx ends. Of a group that is gone it succeeds.
func (g *Group) Kill(ctx context.Context) error {
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		pids, err := g.Pids()
		if err != nil {
			return fmt.Errorf("kill cgroup: %w", err)
		}
		if len(pids) == 0 {
			return nil
		}
		if err := g.kill(pids); err != nil {
			return fmt.Errorf("kill cgroup: %w", err)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("kill cgroup %s: %d processes do not end: %w", g.Path, len(pids), context.Cause(ctx))
		case <-time.After(wait):
		}
	}
}

// kill signals each process once. The v2 tree can do so at one stroke; on v1 the group is frozen
// meanwhile, so that nothing forks away.
func (g *Group) kill(pids []int) error {
	if g.h.V2 != "" {
		err := write(filepath.Join(g.h.V2+g.Path, "cgroup.kill"), "1")
		if err == nil && g.h.Mode == V2 {
			return nil
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENODEV) {
			return err
		}
	}
	frozen := g.setFreezer("FROZEN") == nil
	for _, pid := range pids {
		// The list is of this moment; a pid that was reused since is not in the group any more.
		if g.has(pid) {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
	}
	if frozen || g.dir("freezer") != "" {
		if err := g.setFreezer("THAWED"); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENODEV) {
			return err
		}
	}
	return nil
}

// has reports whether a process is in the group, in any hierarchy.
func (g *Group) has(pid int) bool {
	raw, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cgroup")
	if err != nil {
		return false
	}
	for _, l := range strings.Split(string(raw), "\n") {
		if f := strings.SplitN(l, ":", 3); len(f) == 3 && (f[2] == g.Path || strings.HasPrefix(f[2], g.Path+"/")) {
			return true
		}
	}
	return false
}

// Pids are the processes of the group and of what is below it, in any hierarchy, each once.
func (g *Group) Pids() ([]int, error) {
	seen := map[int]bool{}
	var pids []int
	for _, dir := range g.Dirs() {
		if err := walk(dir, func(pid int) {
			if pid > 0 && !seen[pid] {
				seen[pid] = true
				pids = append(pids, pid)
			}
		}); err != nil {
			return nil, err
		}
	}
	return pids, nil
}

func walk(dir string, each func(pid int)) error {
	raw, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return nil
	}
	if err != nil && !errors.Is(err, unix.EOPNOTSUPP) { // a threaded v2 group lists its threads elsewhere
		return err
	}
	for _, f := range bytes.Fields(raw) {
		if pid, err := strconv.Atoi(string(f)); err == nil {
			each(pid)
		}
	}
	below, err := os.ReadDir(dir)
	if err != nil {
		return nil //nolint:nilerr // it went meanwhile
	}
	for _, d := range below {
		if d.IsDir() {
			if err := walk(filepath.Join(dir, d.Name()), each); err != nil {
				return err
			}
		}
	}
	return nil
}

// Freeze stops every process and returns once all stand still.
func (g *Group) Freeze(ctx context.Context) error { return g.freezer(ctx, "FROZEN") }

// Thaw lets them go on.
func (g *Group) Thaw(ctx context.Context) error { return g.freezer(ctx, "THAWED") }

func (g *Group) freezer(ctx context.Context, want string) error {
	for wait := time.Millisecond; ; wait = min(2*wait, 20*time.Millisecond) {
		// v1 may have to be told again: a process that forks meanwhile is not caught.
		if err := g.setFreezer(want); err != nil {
			return fmt.Errorf("freeze cgroup: %w", err)
		}
		is, err := g.isFrozen()
		if err != nil {
			return fmt.Errorf("freeze cgroup: %w", err)
		}
		if is == (want == "FROZEN") {
			return nil
		}
		select {
		case <-ctx.Done():
			if want == "FROZEN" {
				_ = g.setFreezer("THAWED")
			}
			return fmt.Errorf("freeze cgroup %s: it does not become %s: %w", g.Path, strings.ToLower(want), context.Cause(ctx))
		case <-time.After(wait):
		}
	}
}

func (g *Group) setFreezer(want string) error {
	if dir := g.dir("freezer"); dir != "" {
		return write(filepath.Join(dir, "freezer.state"), want)
	}
	if g.h.V2 == "" {
		return errors.New("this host has no freezer")
	}
	value := "0"
	if want == "FROZEN" {
		value = "1"
	}
	return write(filepath.Join(g.h.V2+g.Path, "cgroup.freeze"), value)
}

func (g *Group) isFrozen() (bool, error) {
	if dir := g.dir("freezer"); dir != "" {
		raw, err := os.ReadFile(filepath.Join(dir, "freezer.state"))
		return string(trim(raw)) == "FROZEN", err
	}
	n, err := field(filepath.Join(g.h.V2+g.Path, "cgroup.events"), "frozen")
	return n == 1, err
}

// Stats is one sample.
type Stats struct {
	CPU         time.Duration
	MemoryBytes uint64
	Pids        uint64
	OOMKills    uint64
}

// Stats samples the group. What a host does not count stays 0.
func (g *Group) Stats() (Stats, error) {
	var s Stats
	get := func(path string) uint64 {
		n, err := number(path)
		if err != nil || n < 0 {
			return 0
		}
		return uint64(n)
	}
	if g.h.Mode == V2 {
		dir := g.h.V2 + g.Path
		usec, err := field(filepath.Join(dir, "cpu.stat"), "usage_usec")
		if err != nil {
			return s, fmt.Errorf("sample cgroup: %w", err)
		}
		s.CPU = time.Duration(usec) * time.Microsecond
		s.MemoryBytes, s.Pids = get(dir+"/memory.current"), get(dir+"/pids.current")
	} else {
		if dir := g.dir("cpuacct"); dir != "" {
			s.CPU = time.Duration(get(dir + "/cpuacct.usage"))
		}
		if dir := g.dir("memory"); dir != "" {
			s.MemoryBytes = get(dir + "/memory.usage_in_bytes")
		}
		if dir := g.dir("pids"); dir != "" {
			s.Pids = get(dir + "/pids.current")
		}
	}
	s.OOMKills = g.OOMKills()
	return s, nil
}

// OOMKills counts the processes of the group that the kernel killed for want of memory.
func (g *Group) OOMKills() uint64 {
	if g.h.Mode == V2 {
		n, _ := field(filepath.Join(g.h.V2+g.Path, "memory.events"), "oom_kill")
		return n
	}
	if dir := g.dir("memory"); dir != "" {
		n, _ := field(filepath.Join(dir, "memory.oom_control"), "oom_kill")
		return n
	}
	return 0
}

// field reads one line "name number" of a file.
func field(path, name string) (uint64, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	for _, l := range strings.Split(string(raw), "\n") {
		if f := strings.Fields(l); len(f) == 2 && f[0] == name {
			return strconv.ParseUint(f[1], 10, 64)
		}
	}
	return 0, nil
}
