package escape

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/gantryd/gantry/internal/insecure"
	"github.com/gantryd/gantry/shim/runtime/runtimetest"
)

func bind(source, dest string, options ...string) specs.Mount {
	return specs.Mount{Destination: dest, Type: "bind", Source: source, Options: append([]string{"rbind"}, options...)}
}

// fresh makes a directory of the host's anew.
func fresh(t *testing.T, b *runtimetest.Box, name string) string {
	t.Helper()
	dir := filepath.Join(b.Dir, "host", name)
	must(t, os.RemoveAll(dir), os.MkdirAll(dir, 0o755))
	return dir
}

// TestMountPointSwapped (CVE-2021-30465, runc): two containers share a volume; while one is made, the
// other swaps a mount point inside the volume for a link, and the mount goes where it leads.
func TestMountPointSwapped(t *testing.T) {
	stands(t, func(t *testing.T) string {
		b := box(t)
		shared, data, victim := fresh(t, b, "shared"), fresh(t, b, "data"), fresh(t, b, "victim")
		must(t, os.Mkdir(filepath.Join(shared, "sub"), 0o755), os.Symlink(victim, filepath.Join(shared, "link")))
		return race(t, shared, "sub", "link", func() string {
			c := b.Sh("true")
			c.Spec.Mounts = append(c.Spec.Mounts, bind(shared, "/shared"), bind(data, "/shared/sub"))
			return created(t, b, c, func(pid int) string {
				if strings.Contains(mountinfo(t, pid), "/host/data ") {
					return "" // wherever inside
				}
				return "it was mounted outside"
			})
		})
	}, insecure.Links)
}

// TestMountPointLink (CVE-2019-18837, crun): the image has a link in the way to a mount point, which is
// one inside.
func TestMountPointLink(t *testing.T) {
	stands(t, func(t *testing.T) string {
		b := box(t)
		data, victim := fresh(t, b, "data"), fresh(t, b, "victim")
		must(t, os.Mkdir(filepath.Join(victim, "there"), 0o755), os.Symlink(victim, filepath.Join(b.Lower, "link")))
		var got []string
		for _, sub := range []string{"there", "missing"} {
			c := b.Sh("true")
			c.Spec.Mounts = append(c.Spec.Mounts, bind(data, "/link/"+sub))
			got = append(got, created(t, b, c, func(pid int) string {
				if strings.Contains(mountinfo(t, pid), "/host/data ") {
					return ""
				}
				return "it was mounted outside"
			}))
		}
		if ds, err := os.ReadDir(victim); err != nil || len(ds) != 1 {
			got = append(got, "made on the host")
		}
		return strings.Join(got, "")
	}, insecure.Inside, insecure.Links)
}

// TestConsoleSwapped (CVE-2025-52565, runc): the same with /dev/console, over which the terminal is
// mounted before anything is masked.
func TestConsoleSwapped(t *testing.T) {
	stands(t, func(t *testing.T) string {
		b := box(t)
		dev, victim := fresh(t, b, "dev"), filepath.Join(fresh(t, b, "victim"), "file")
		must(t, os.Mkdir(filepath.Join(dev, "pts"), 0o755), os.WriteFile(filepath.Join(dev, "console"), nil, 0o644), os.WriteFile(victim, []byte("host"), 0o644))
		must(t, os.Symlink(victim, filepath.Join(dev, "link")))
		got := race(t, dev, "console", "link", func() string {
			c := b.Sh("true")
			c.Spec.Process.Terminal = true
			c.Spec.Mounts = slices.DeleteFunc(c.Spec.Mounts, func(m specs.Mount) bool {
				return strings.HasPrefix(m.Destination, "/dev/") && m.Destination != "/dev/pts"
			})
			for i, m := range c.Spec.Mounts {
				if m.Destination == "/dev" {
					c.Spec.Mounts[i] = bind(dev, "/dev")
				}
			}
			return created(t, b, c, func(pid int) string {
				for l := range strings.Lines(mountinfo(t, pid)) {
					if f := strings.Fields(l); len(f) > 4 && f[3] == "/0" { // the terminal's root in its devpts
						return ""
					}
				}
				return "the terminal was mounted outside"
			})
		})
		if raw, err := os.ReadFile(victim); err != nil || string(raw) != "host" {
			return "the host's file was changed"
		}
		return got
	}, insecure.Links)
}

// TestConsoleLink (CVE-2025-52565, runc): a /dev/console that is a link is one inside.
func TestConsoleLink(t *testing.T) {
	b := box(t)
	dev, victim := fresh(t, b, "dev"), filepath.Join(fresh(t, b, "victim"), "file")
	must(t, os.Mkdir(filepath.Join(dev, "pts"), 0o755), os.WriteFile(victim, []byte("host"), 0o644), os.Symlink(victim, filepath.Join(dev, "console")))
	c := b.Sh("stat -c %F " + victim + "; echo written >/dev/console")
	c.Spec.Process.Terminal = true
	c.Spec.Mounts = slices.DeleteFunc(c.Spec.Mounts, func(m specs.Mount) bool {
		return strings.HasPrefix(m.Destination, "/dev/") && m.Destination != "/dev/pts"
	})
	for i, m := range c.Spec.Mounts {
		if m.Destination == "/dev" {
			c.Spec.Mounts[i] = bind(dev, "/dev")
		}
	}
	m := b.Start(c)
	out := runtimetest.Read(m.Init().Terminal())
	m.Wait()
	if text := out.Wait(t); !strings.Contains(text, "character special file") || !strings.Contains(text, "written") {
		t.Errorf("the terminal is not where the link leads inside: %q", text)
	}
	if raw, err := os.ReadFile(victim); err != nil || string(raw) != "host" {
		t.Errorf("the host's file: %q %v", raw, err)
	}
}

// TestMadeOutside (CVE-2024-45310, runc): the mount point is missing, and while it is made a directory
// on the way becomes a link: what is made is made on the host.
func TestMadeOutside(t *testing.T) {
	stands(t, func(t *testing.T) string {
		b := box(t)
		shared, data, victim := fresh(t, b, "shared"), fresh(t, b, "data"), fresh(t, b, "victim")
		must(t, os.Mkdir(filepath.Join(shared, "a"), 0o755), os.Symlink(victim, filepath.Join(shared, "link")))
		n := 0
		return race(t, shared, "a", "link", func() string {
			c := b.Sh("true")
			n++
			made := "made" + strconv.Itoa(n) // each time a missing one
			c.Spec.Mounts = append(c.Spec.Mounts, bind(shared, "/shared"), bind(data, "/shared/a/"+made+"/deep"))
			created(t, b, c, func(int) string { return "" })
			if ds, err := os.ReadDir(victim); err != nil || len(ds) > 0 {
				return fmt.Sprintf("made on the host: %v", ds)
			}
			return ""
		})
	}, insecure.Inside)
}

// TestNodeSwapped: a device node goes into a volume that somebody else writes to, and he puts a link
// in its place before its mode is set (CVE-2021-41089, Docker, is a mode that was set through a link).
func TestNodeSwapped(t *testing.T) {
	stands(t, func(t *testing.T) string {
		b := box(t)
		shared, victim := fresh(t, b, "shared"), filepath.Join(fresh(t, b, "victim"), "file")
		must(t, os.WriteFile(victim, nil, 0o600), os.Symlink(victim, filepath.Join(shared, "link")))
		got := race(t, shared, "node", "link", func() string {
			uid := uint32(1)
			c := b.Sh("true")
			c.Spec.Mounts = append(c.Spec.Mounts, bind(shared, "/shared"))
			c.Spec.Linux.Devices = []specs.LinuxDevice{{Path: "/shared/node", Type: "c", Major: 1, Minor: 5, UID: &uid}}
			created(t, b, c, func(int) string { return "" })
			for _, name := range []string{"node", "link"} { // whichever of them is the node now
				must(t, os.RemoveAll(filepath.Join(shared, name)))
			}
			must(t, os.Symlink(victim, filepath.Join(shared, "link")))
			if st, err := os.Stat(victim); err != nil || st.Mode().Perm() != 0o600 {
				return "the host's file has the mode " + st.Mode().String()
			}
			return ""
		})
		return got
	}, insecure.Node)
}

// TestProcSwapped (CVE-2019-19921 and again CVE-2023-27561, runc): /proc of the image leads through a
// link in a volume, which another container turns round between the mount of procfs and the masks: they
// cover something else, and procfs is there, writable.
func TestProcSwapped(t *testing.T) {
	stands(t, func(t *testing.T) string {
		b := box(t)
		shared := fresh(t, b, "shared")
		must(t, os.Remove(filepath.Join(b.Lower, "proc")), os.Symlink("shared/now", filepath.Join(b.Lower, "proc")))
		for _, d := range []string{"real", "decoy/sys", "decoy/self"} {
			must(t, os.MkdirAll(filepath.Join(shared, d), 0o755))
		}
		must(t, os.Symlink("real", filepath.Join(shared, "now")), os.Symlink("decoy", filepath.Join(shared, "then")))
		return race(t, shared, "now", "then", func() string {
			c := b.Config("attack", "write", "/shared/real/sys/kernel/core_pattern", "/shared/real/sysrq-trigger")
			c.Spec.Linux.Sysctl = nil
			c.Spec.Mounts = append([]specs.Mount{bind(shared, "/shared")}, c.Spec.Mounts...)
			return strings.TrimSpace(run(t, b, c))
		})
	}, insecure.ProcLink, insecure.Links)
}

// TestProcIsLink (CVE-2023-28642, runc): an image whose /proc or /sys is a link has the kernel's words
// somewhere else, and in their place what it likes: there labels of AppArmor were written.
func TestProcIsLink(t *testing.T) {
	for _, name := range []string{"proc", "sys"} {
		t.Run(name, func(t *testing.T) {
			stands(t, func(t *testing.T) string {
				b := box(t)
				at := filepath.Join(b.Lower, name)
				must(t, os.Remove(at), os.Symlink("/tmp/elsewhere", at))
				c := b.Sh("true")
				c.Spec.Linux.MaskedPaths, c.Spec.Linux.ReadonlyPaths = nil, nil
				return created(t, b, c, func(pid int) string {
					for l := range strings.Lines(mountinfo(t, pid)) {
						if strings.Contains(l, " /tmp/elsewhere ") {
							return strings.TrimSpace(l)
						}
					}
					return ""
				})
			}, insecure.ProcLink)
		})
	}
	// With masks, that they are put through no link stops it as well.
	b := box(t)
	must(t, os.Remove(filepath.Join(b.Lower, "proc")), os.Symlink("/tmp/elsewhere", filepath.Join(b.Lower, "proc")))
	if got := created(t, b, b.Sh("true"), func(int) string { return "made" }); got != "" {
		t.Error(got)
	}
}

// TestOverProc (CVE-2019-16884, runc): an image that declares a volume at /proc, or a bundle that
// mounts something there, has a /proc of its own making.
func TestOverProc(t *testing.T) {
	for name, m := range map[string]specs.Mount{
		"volume": {Type: "bind", Options: []string{"rbind"}},
		"tmpfs":  {Type: "tmpfs", Source: "tmpfs"},
		"sysfs":  {Type: "sysfs", Source: "sysfs"},
		"cgroup": {Type: "cgroup", Source: "cgroup"},
		"mqueue": {Type: "mqueue", Source: "mqueue"},
	} {
		t.Run(name, func(t *testing.T) {
			stands(t, func(t *testing.T) string {
				b := box(t)
				c := b.Sh("true")
				c.Spec.Linux.MaskedPaths, c.Spec.Linux.ReadonlyPaths = nil, nil
				m.Destination = "/proc"
				if m.Type == "bind" {
					m.Source = fresh(t, b, "volume")
				}
				c.Spec.Mounts[0] = m
				return created(t, b, c, func(pid int) string {
					for l := range strings.Lines(mountinfo(t, pid)) {
						if strings.Contains(l, " /proc ") && !strings.Contains(l, " - proc ") {
							return strings.TrimSpace(l)
						}
					}
					return ""
				})
			}, insecure.OverProc)
		})
	}
	// A procfs may be bound there, for a container that shares the host's processes.
	b := box(t)
	c := b.Sh("cat /proc/self/comm")
	c.Spec.Mounts[0] = bind("/proc", "/proc", "nosuid", "noexec", "nodev")
	c.Spec.Linux.Namespaces = slices.DeleteFunc(c.Spec.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == "pid" })
	if out := output(b)(c); out != "cat" {
		t.Errorf("the host's /proc: %q", out)
	}
	// Inside of it nothing may be mounted but what tools like LXCFS show.
	for _, at := range []string{"/proc/self", "/proc/sys", "/proc/sysrq-trigger", "/proc/self/attr"} {
		c := b.Sh("true")
		c.Spec.Mounts = append(c.Spec.Mounts, bind(fresh(t, b, "volume"), at))
		if got := created(t, b, c, func(int) string { return "made" }); got != "" {
			t.Errorf("mounted at %s", at)
		}
	}
}

// TestReadOnlyBelow (CVE-2023-25809, runc): the host's /sys is bound read-only, as it was for containers
// without privileges, and /sys/fs/cgroup, a mount below it, stayed writable: with it the host's cgroups.
func TestReadOnlyBelow(t *testing.T) {
	stands(t, func(t *testing.T) string {
		b := box(t)
		name := "gantry-escape-" + strconv.Itoa(os.Getpid())
		c := b.Sh("for d in /sys/fs/cgroup /sys/fs/cgroup/pids /sys/fs/cgroup/unified; do mkdir $d/" + name + " 2>/dev/null && rmdir $d/" + name + " && echo made $d/" + name + "; done; true")
		c.Spec.Mounts = slices.DeleteFunc(c.Spec.Mounts, func(m specs.Mount) bool { return strings.HasPrefix(m.Destination, "/sys") })
		c.Spec.Mounts = append(c.Spec.Mounts, bind("/sys", "/sys", "nosuid", "noexec", "nodev", "ro"))
		c.Spec.Linux.Namespaces = slices.DeleteFunc(c.Spec.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == "cgroup" })
		return output(b)(c)
	}, insecure.Below)
}

// TestCgroupsReadOnly (CVE-2023-25809 again): a container sees its own cgroup, whether it has a
// namespace for them or not, and can neither make one in it nor change it.
func TestCgroupsReadOnly(t *testing.T) {
	for name, kinds := range map[string][]specs.LinuxNamespaceType{"with a namespace": nil, "with the host's": {specs.CgroupNamespace}} {
		t.Run(name, func(t *testing.T) {
			attack := func(writable bool) attack {
				return func(t *testing.T) string {
					b := box(t)
					c := b.Sh("for d in /sys/fs/cgroup /sys/fs/cgroup/*; do mkdir $d/made 2>/dev/null && rmdir $d/made && echo made $d; attack write $d/cgroup.procs $d/notify_on_release $d/release_agent $d/devices.allow; done; true")
					c.Spec.Linux.Namespaces = slices.DeleteFunc(c.Spec.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return slices.Contains(kinds, n.Type) })
					last := &c.Spec.Mounts[len(c.Spec.Mounts)-1]
					if writable {
						last.Options = slices.DeleteFunc(slices.Clone(last.Options), func(o string) bool { return o == "ro" })
					}
					return strings.ReplaceAll(output(b)(c), "\n", ", ")
				}
			}
			differs(t, attack(false), attack(true))
			b := box(t)
			c := b.Sh("find /sys/fs/cgroup -mindepth 1 -type d -name 'gantry*'")
			if out := output(b)(c); out != "" {
				t.Errorf("cgroups of others are to be seen: %s", out)
			}
		})
	}
}

// TestHostIsGone: no mount of the host's is left in a container, and no way up to its root.
func TestHostIsGone(t *testing.T) {
	stands(t, func(t *testing.T) string {
		b := box(t)
		file := secret(t, b)
		var mine []string
		c := b.Sh("cat /.." + file + "; cd /; cat ../.." + file)
		for _, m := range c.Spec.Mounts {
			mine = append(mine, m.Destination)
		}
		mine = append(mine, c.Spec.Linux.MaskedPaths...)
		mine = append(mine, c.Spec.Linux.ReadonlyPaths...)
		m, err := b.Create(c)
		must(t, err)
		var strange []string
		for l := range strings.Lines(mountinfo(t, m.Init().PID())) {
			f := strings.Fields(l)
			if at := f[4]; at != "/" && !slices.Contains(mine, at) && !strings.HasPrefix(at, "/sys/fs/cgroup/") {
				strange = append(strange, at)
			}
		}
		must(t, m.Init().Start(runtimetest.Context(t)))
		m.Wait()
		if out := m.Out.Wait(t); strings.Contains(out, "the host's secret") {
			return "read through the root"
		}
		if len(strange) > 0 {
			return "mounts of the host: " + strings.Join(strange, " ")
		}
		return ""
	}, insecure.OldRoot)
}
