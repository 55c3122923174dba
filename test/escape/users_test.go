package escape

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/internal/insecure"
	"github.com/gantryd/gantry/shim/runtime/runtimetest"
)

// TestPasswdLink (CVE-2018-15664, Docker, of whose "cp" this is the trust in a container's link): the
// image's /etc/passwd leads to a file of the host's, whose users would then be the container's, and whose
// content an error might show.
func TestPasswdLink(t *testing.T) {
	hosts := func(t *testing.T, b *runtimetest.Box) (passwd, group string) {
		dir := fresh(t, b, "etc")
		passwd, group = filepath.Join(dir, "passwd"), filepath.Join(dir, "group")
		must(t, os.WriteFile(passwd, []byte("hostuser:x:4242:4242::/:/bin/sh\n"), 0o600), os.WriteFile(group, []byte("hostgroup:x:4343:\n"), 0o600))
		return passwd, group
	}
	for name, user := range map[string]string{"passwd": "hostuser", "group": "0:hostgroup"} {
		t.Run(name, func(t *testing.T) {
			stands(t, func(t *testing.T) string {
				b := box(t)
				passwd, group := hosts(t, b)
				for name, to := range map[string]string{"etc/passwd": passwd, "etc/group": group} {
					must(t, os.Remove(filepath.Join(b.Lower, name)), os.Symlink(to, filepath.Join(b.Lower, name)))
				}
				c := b.Sh("id -u; id -g")
				c.User = user
				return strings.TrimSpace(run(t, b, c))
			}, insecure.Inside)
		})
		t.Run(name+" of exec", func(t *testing.T) {
			stands(t, func(t *testing.T) string {
				b := box(t)
				passwd, group := hosts(t, b)
				m := b.Start(b.Sh("ln -sf " + passwd + " /etc/passwd; ln -sf " + group + " /etc/group; echo done; sleep 1000"))
				m.Out.Until(t, "done")
				x := m.Process("/bin/sh", "-c", "id -u; id -g")
				x.User = user
				out, _, err := m.Exec(x)
				if err != nil {
					return ""
				}
				return strings.TrimSpace(out)
			}, insecure.Inside)
		})
	}
}

// TestNumberIsName (CVE-2016-3697, Docker and runc): a user is given as a number, and the image has one
// of that name who is root.
func TestNumberIsName(t *testing.T) {
	for _, user := range []string{"1000", "4711", "1000:1000", "4711:4712"} {
		t.Run(user, func(t *testing.T) {
			stands(t, func(t *testing.T) string {
				b := box(t)
				b.File("etc/passwd", "1000:x:0:0::/root:/bin/sh\n4711:x:0:0::/root:/bin/sh\nalice:x:1000:1000::/:/bin/sh\n", 0o644)
				b.File("etc/group", "1000:x:0:\n4712:x:0:\n", 0o644)
				c := b.Sh("exec 2>/dev/null; id -u; id -g")
				c.User = user
				ids := strings.Fields(output(b)(c))
				if ids[0] == "0" || strings.Contains(user, ":") && ids[1] == "0" {
					return "is " + strings.Join(ids, ":")
				}
				return ""
			}, insecure.Number)
		})
	}
}

// TestPasswdTraps: an /etc/passwd that never ends, or never begins, holds nobody up (CVE-2024-9676, Podman).
func TestPasswdTraps(t *testing.T) {
	for name, trap := range map[string]func(path string) error{
		"a pipe":       func(p string) error { return unix.Mkfifo(p, 0o644) },
		"a device":     func(p string) error { return unix.Mknod(p, unix.S_IFCHR|0o644, int(unix.Mkdev(1, 5))) },
		"a directory":  func(p string) error { return os.Mkdir(p, 0o755) },
		"endless":      func(p string) error { return os.WriteFile(p, make([]byte, 5<<20), 0o644) },
		"a loop":       func(p string) error { return os.Symlink("passwd", p) },
		"a descriptor": func(p string) error { return os.Symlink("/proc/self/fd/0", p) },
	} {
		t.Run(name, func(t *testing.T) {
			b := box(t)
			path := filepath.Join(b.Lower, "etc/passwd")
			must(t, os.Remove(path), trap(path))
			c := b.Sh("true")
			c.User = "alice"
			if _, err := b.Create(c); err == nil {
				t.Error("a user was found in it")
			}
			b = box(t)
			m := b.Start(b.Sh("rm -f /etc/passwd; ln -s /dev/zero /etc/passwd; echo done; sleep 1000"))
			m.Out.Until(t, "done")
			x := m.Process("true")
			x.User = "alice"
			if _, _, err := m.Exec(x); err == nil {
				t.Error("a user was found in /dev/zero")
			}
		})
	}
}

// capable is a copy of busybox that gives who has CAP_NET_RAW inheritable that capability in effect.
func capable(t *testing.T, b *runtimetest.Box) {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(b.Lower, "bin/busybox"))
	must(t, err)
	b.File("bin/capable/grep", string(raw), 0o755)
	must(t, unix.Setxattr(filepath.Join(b.Lower, "bin/capable/grep"), "security.capability", inheritable(), 0))
}

// inheritable is the attribute of such a file: struct vfs_cap_data (linux/capability.h).
func inheritable() []byte {
	le := binary.LittleEndian
	v := le.AppendUint32(nil, 0x02000001) // revision 2, effective
	v = le.AppendUint32(v, 0)
	v = le.AppendUint32(v, 1<<unix.CAP_NET_RAW)
	return le.AppendUint64(v, 0)
}

// gained says which capabilities a status has in effect.
func gained(status string) string {
	set, _, _ := strings.Cut(strings.TrimPrefix(strings.TrimSpace(status), "CapEff:\t"), "\n")
	if strings.Trim(set, "0") == "" {
		return ""
	}
	return "capabilities " + set
}

// TestInheritable (CVE-2022-24769, Docker, and CVE-2022-27650, crun): processes had inheritable
// capabilities, and a user without any gets them by a file that asks for them.
func TestInheritable(t *testing.T) {
	attack := func(inherit []string) attack {
		return func(t *testing.T) string {
			b := box(t)
			capable(t, b)
			c := b.Config("/bin/capable/grep", "CapEff", "/proc/self/status")
			c.User, c.Spec.Process.Capabilities.Inheritable = "alice", inherit
			return gained(output(b)(c))
		}
	}
	differs(t, attack(nil), attack(runtimetest.Caps))
}

// TestInheritableExec (CVE-2022-29162, runc) is the same for a process that is added.
func TestInheritableExec(t *testing.T) {
	attack := func(inherit []string) attack {
		return func(t *testing.T) string {
			b := box(t)
			capable(t, b)
			m := b.Start(b.Config("sleep", "1000"))
			x := m.Process("/bin/capable/grep", "CapEff", "/proc/self/status")
			x.User = "alice"
			caps := specs.LinuxCapabilities{Bounding: runtimetest.Caps, Permitted: runtimetest.Caps, Effective: runtimetest.Caps, Inheritable: inherit}
			x.Spec.Capabilities = &caps
			out, _, err := m.Exec(x)
			must(t, err)
			return gained(out)
		}
	}
	differs(t, attack(nil), attack(runtimetest.Caps))
}

// TestPrimaryGroup (CVE-2022-36109, Docker; CVE-2022-2989, Podman; CVE-2023-25173, containerd): a file
// refuses a group what it lets everybody read. A user of that group executes a program with another
// group's setgid bit, is then of the user's group no more, and reads it.
func TestPrimaryGroup(t *testing.T) {
	prepare := func(t *testing.T) *runtimetest.Box {
		b := box(t)
		bring(t, b, "bin/other", 0o755)
		b.File("etc/not-for-alice", "secret", 0o604)
		for name, gid := range map[string]int{"bin/other": 2000, "etc/not-for-alice": 1000} {
			must(t, os.Chown(filepath.Join(b.Lower, name), 0, gid))
		}
		must(t, os.Chmod(filepath.Join(b.Lower, "bin/other"), 0o755|os.ModeSetgid))
		return b
	}
	stands(t, func(t *testing.T) string {
		b := prepare(t)
		c := b.Config("other", "read", "/etc/not-for-alice")
		c.User = "alice"
		return output(b)(c)
	}, insecure.Primary)
	stands(t, func(t *testing.T) string {
		b := prepare(t)
		m := b.Start(b.Config("sleep", "1000"))
		x := m.Process("other", "read", "/etc/not-for-alice")
		x.User = "alice"
		out, _, err := m.Exec(x)
		must(t, err)
		return out
	}, insecure.Primary)
}
