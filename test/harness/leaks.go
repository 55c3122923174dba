package harness

import (
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// observation is what a machine's namespace holds.
type observation struct{ links, rules, tables string }

func (m *Machine) observe() observation {
	run := func(name string, args ...string) string {
		var out []byte
		m.NS.Do(func() { out, _ = exec.Command(name, args...).Output() })
		return string(out)
	}
	var links []string
	for _, l := range strings.Split(run("ip", "-o", "link"), "\n") {
		if f := strings.Fields(l); len(f) > 1 {
			links = append(links, strings.TrimSuffix(f[1], ":"))
		}
	}
	sort.Strings(links)
	return observation{links: strings.Join(links, " "), rules: run("ip", "route"), tables: run("nft", "list", "ruleset")}
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
	for _, cg := range m.cgroups() {
		left = append(left, "cgroup "+cg)
	}
	now := m.observe()
	if now.links != before.links {
		left = append(left, "links: "+now.links+" (before: "+before.links+")")
	}
	if now.rules != before.rules {
		left = append(left, "routes:\n"+now.rules)
	}
	if now.tables != before.tables {
		left = append(left, "nftables:\n"+now.tables)
	}
	return left
}

// processes are those that name the machine's directory on their command line, as their
// working directory, or whose cgroup is of its instance.
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
		if strings.Contains(string(cmdline), m.Dir) || strings.Contains(string(cgroup), "/"+m.Instance+"/") || strings.HasPrefix(cwd, m.Dir+"/") {
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

func (m *Machine) cgroups() []string {
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
	for _, cg := range m.cgroups() {
		_ = filepath.WalkDir(cg, func(string, os.DirEntry, error) error { return nil })
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
