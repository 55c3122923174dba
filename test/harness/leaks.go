package harness

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sort"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// observation is what a machine's namespace holds.
type observation struct{ links, routes, rules, tables, switches string }

// observe looks, and fails where it cannot: two looks that see nothing are no comparison.
func (m *Machine) observe() (observation, error) {
	var errs []error
	run := func(name string, args ...string) string {
		var out []byte
		var err error
		m.NS.Do(func() { out, err = exec.Command(name, args...).Output() })
		if err != nil {
			errs = append(errs, fmt.Errorf("%s %s: %w", name, strings.Join(args, " "), err))
		}
		return string(out)
	}
	var links []string
	for _, l := range strings.Split(run("ip", "-o", "link"), "\n") {
		if f := strings.Fields(l); len(f) > 1 {
			links = append(links, strings.TrimSuffix(f[1], ":"))
		}
	}
	sort.Strings(links)
	// Whether a link has its carrier yet is the kernel's to say, a moment after it was made.
	routes := strings.ReplaceAll(run("ip", "-4", "route", "show", "table", "all"), " linkdown", "")
	o := observation{
		links: strings.Join(links, " "), routes: routes, rules: run("ip", "rule"), tables: run("nft", "list", "ruleset"),
	}
	m.NS.Do(func() { o.switches = switches() })
	return o, errors.Join(errs...)
}

// switches are the sysctls of a network namespace that are not a link's own: what is changed there
// stays when the links have gone.
func switches() string {
	var all strings.Builder
	for _, pattern := range []string{"ipv4/ip_*", "ipv4/conf/all/*", "ipv4/conf/default/*", "ipv4/conf/up0/*", "ipv6/conf/all/*", "ipv6/conf/default/*"} {
		files, _ := filepath.Glob("/proc/sys/net/" + pattern)
		for _, f := range files {
			if raw, err := os.ReadFile(f); err == nil { // some are for writing only
				fmt.Fprintf(&all, "%s = %s\n", strings.TrimPrefix(f, "/proc/sys/net/"), bytes.TrimSpace(raw))
			}
		}
	}
	return all.String()
}

// changed names the lines that only one of two looks has.
func changed(before, now string) string {
	was, is := strings.Split(before, "\n"), strings.Split(now, "\n")
	var all []string
	for _, l := range is {
		if !slices.Contains(was, l) {
			all = append(all, "+ "+l)
		}
	}
	for _, l := range was {
		if !slices.Contains(is, l) {
			all = append(all, "- "+l)
		}
	}
	return strings.Join(all, "\n    ")
}

// leaks lists what is left of the machine. It asks for a while: the kernel takes a namespace
// and its links down in the background.
func (m *Machine) leaks(before observation) []string {
	var left []string
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		left = m.look(before)
		if len(left) == 0 || time.Now().After(end) {
			return left
		}
	}
}

func (m *Machine) look(before observation) (left []string) {
	for pid, cmdline := range m.processes() {
		left = append(left, "process "+strconv.Itoa(pid)+": "+cmdline)
	}
	for _, mnt := range m.mounts() {
		left = append(left, "mount "+mnt)
	}
	for _, cg := range m.Cgroups() {
		left = append(left, "cgroup "+cg)
	}
	now, err := m.observe()
	if err != nil {
		left = append(left, err.Error())
	}
	for _, x := range []struct{ what, before, now string }{
		{"links", before.links, now.links},
		{"routes", before.routes, now.routes},
		{"rules of routing", before.rules, now.rules},
		{"nftables", before.tables, now.tables},
		{"sysctls", before.switches, now.switches},
	} {
		if x.now != x.before {
			left = append(left, x.what+":\n    "+changed(x.before, x.now))
		}
	}
	return left
}

// processes are those that name the machine's directory on their command line, as their
// working directory or with their standard error, or whose cgroup is of its instance.
func (m *Machine) processes() map[int]string {
	found := map[int]string{}
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, d := range dirs {
		pid, _ := strconv.Atoi(filepath.Base(d))
		if pid == os.Getpid() {
			continue
		}
		cmdline, _ := os.ReadFile(d + "/cmdline")
		cgroup, _ := os.ReadFile(d + "/cgroup")
		cwd, _ := os.Readlink(d + "/cwd")
		says, _ := os.Readlink(d + "/fd/2")
		if strings.Contains(string(cmdline), m.Dir) || strings.Contains(string(cgroup), "/"+m.Instance+"/") || strings.HasPrefix(cwd, m.Dir+"/") || strings.HasPrefix(says, m.Dir+"/") {
			found[pid] = strings.TrimSpace(strings.ReplaceAll(string(cmdline), "\x00", " "))
		}
	}
	return found
}

func (m *Machine) mounts() []string {
	var found []string
	raw, _ := os.ReadFile("/proc/self/mountinfo")
	for _, l := range strings.Split(string(raw), "\n") {
		if strings.Contains(l, m.Dir+"/") {
			found = append(found, l)
		}
	}
	return found
}

// Cgroups are the directories of the instance's cgroup: one, or one in each hierarchy.
func (m *Machine) Cgroups() []string {
	var found []string
	raw, _ := os.ReadFile("/proc/self/mountinfo")
	for _, l := range strings.Split(string(raw), "\n") {
		f := strings.Fields(l)
		if len(f) < 5 || !strings.Contains(l, " - cgroup") {
			continue
		}
		if _, err := os.Stat(filepath.Join(f[4], m.Instance)); err == nil {
			found = append(found, filepath.Join(f[4], m.Instance))
		}
	}
	return found
}

// sweepUp removes by force what a failed test left, so that the next one starts clean.
func (m *Machine) sweepUp() {
	if m.daemon != nil {
		_ = m.daemon.Process.Kill()
		<-m.ended
		m.daemon = nil
	}
	for range 5 {
		left := m.processes()
		for pid := range left {
			_ = syscall.Kill(pid, syscall.SIGCONT)
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		if len(left) == 0 {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	mounts := m.mounts()
	for i := len(mounts) - 1; i >= 0; i-- {
		if f := strings.Fields(mounts[i]); len(f) > 4 {
			_ = syscall.Unmount(f[4], syscall.MNT_DETACH)
		}
	}
	for _, cg := range m.Cgroups() {
		var dirs []string
		_ = filepath.WalkDir(cg, func(p string, d os.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				dirs = append(dirs, p)
			}
			return nil
		})
		for i := len(dirs) - 1; i >= 0; i-- {
			_ = os.Remove(dirs[i])
		}
	}
	_ = os.RemoveAll(m.Dir)
}
