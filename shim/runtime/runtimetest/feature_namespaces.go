package runtimetest

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/shim/runtime"
)

func hasNamespace(kind string) func() bool {
	return func() bool {
		_, err := os.Stat("/proc/self/ns/" + kind)
		return err == nil
	}
}

// nowhere is for what no runtime of ours does: it must be refused.
func nowhere() bool { return false }

var namespaceFeatures = []feature{
	{name: "linux.namespaces: to join a pid", ask: askPID, more: joinPID},
	{name: "linux.namespaces: to join a cgroup", ask: func(b *Box) *runtime.Config { return joining(b, "cgroup", specs.CgroupNamespace) }, more: joinCgroup},
	{name: "linux.namespaces: to join a mount namespace", here: nowhere, ask: func(b *Box) *runtime.Config { return joining(b, "mnt", specs.MountNamespace) }},
	{name: "linux.namespaces: a container without a mount namespace", here: nowhere, ask: func(b *Box) *runtime.Config {
		c := b.Sh("true")
		without(c, specs.MountNamespace)
		return c
	}},
	{name: "a time namespace", here: hasNamespace("time"), ask: askTime, want: "100\n200\n", more: moreTime},
	{name: "linux.namespaces: to join a time namespace", here: hasNamespace("time"), ask: func(b *Box) *runtime.Config { return joining(b, "time", specs.TimeNamespace) }, more: joinTime},
	{name: "linux.uidMappings", here: hasNamespace("user"), ask: askUser, more: moreUser},
	{name: "linux.uidMappings (sharing)", here: hasNamespace("user"), ask: askUser, more: shareUser},
	{name: "linux.namespaces: to join a user namespace", here: hasNamespace("user"), ask: func(b *Box) *runtime.Config { return joining(b, "user", specs.UserNamespace) }, more: joinUser},
	{name: "idmap (root filesystem)", here: hasNamespace("user"), ask: askMappedRoot, more: mappedRoot},
	{name: "mounts.uidMappings", here: hasNamespace("user"), ask: askMappedMount, more: mappedMounts},
}

// joining is a container that joins a namespace of this process's.
func joining(b *Box, proc string, kind specs.LinuxNamespaceType) *runtime.Config {
	c := b.Sh("true")
	namespace(c, kind, "/proc/self/ns/"+proc)
	return c
}

func (m *Made) ns(kind string) string { return fmt.Sprintf("/proc/%d/ns/%s", m.Init().PID(), kind) }

func askPID(b *Box) *runtime.Config { return joining(b, "pid", specs.PIDNamespace) }

func joinPID(b *Box) {
	first := b.Start(b.Config("sleep", "1000"))
	c := b.Sh("grep -c ' /proc .*rw,nosuid,nodev,noexec' /proc/self/mountinfo; cat /proc/sys/net/ipv4/ip_unprivileged_port_start; touch /proc/sys/vm/panic_on_oom 2>&1 | grep -c Read-only; tr '\\0' ' ' </proc/1/cmdline; echo; readlink /proc/self/ns/pid; [ $$ != 1 ] && echo other; sleep 1000; true")
	namespace(c, specs.PIDNamespace, first.ns("pid"))
	m := b.Start(c)
	m.Out.Until(b.T, "other")
	ns, err := os.Readlink(first.ns("pid"))
	b.check(err)
	if want := "1\n0\n1\nsleep 1000 \n" + ns + "\nother\n"; m.Out.String() != want {
		b.T.Errorf("%q, want %q", m.Out.String(), want)
	}
	// One sees the other, and who is added is there too.
	out, _, err := first.Exec(first.Process("ps", "-o", "args"))
	if err != nil || !strings.Contains(out, "/bin/sh -c grep") {
		b.T.Errorf("%s %v", out, err)
	}
	out, _, err = m.Exec(m.Process("/bin/sh", "-c", "readlink /proc/self/ns/pid; cat /proc/1/comm"))
	if err != nil || out != ns+"\nsleep\n" {
		b.T.Errorf("%s %v", out, err)
	}
	if s, err := first.Stats(Context(b.T)); err != nil || s.PIDs != 1 {
		b.T.Errorf("it is in the wrong cgroup: %+v %v", s, err)
	}
	b.check(m.Init().Signal(unix.SIGKILL))
	if code := m.Wait(); code != 137 {
		b.T.Errorf("exit %d", code)
	}
	if _, code := b.Run(func() *runtime.Config {
		c := b.Sh("exit 7")
		namespace(c, specs.PIDNamespace, first.ns("pid"))
		return c
	}()); code != 7 {
		b.T.Errorf("exit %d", code)
	}
	// A small init would be nobody's parent there.
	c = b.Sh("true")
	c.Init = true
	namespace(c, specs.PIDNamespace, first.ns("pid"))
	if _, err := b.Create(c); !errdefs.IsInvalidArgument(err) {
		b.T.Errorf("an init in another's namespace: %v", err)
	}
	// A command that is not there is explained as ever.
	c = b.Config("nosuch")
	namespace(c, specs.PIDNamespace, first.ns("pid"))
	m, err = b.Create(c)
	b.check(err)
	if err := m.Init().Start(Context(b.T)); runtime.ExitCode(err) != 127 {
		b.T.Errorf("%v", err)
	}
}

func joinCgroup(b *Box) {
	first := b.Start(b.Config("sleep", "1000"))
	c := b.Sh("readlink /proc/self/ns/cgroup")
	namespace(c, specs.CgroupNamespace, first.ns("cgroup"))
	ns, err := os.Readlink(first.ns("cgroup"))
	b.check(err)
	b.expect(c, ns)
}

// clocks prints how much later than here it is in the container, in hundreds of seconds.
const clocks = `read up rest </proc/uptime; echo $(( (${up%.*} - BOOT + 50) / 100 * 100 ))`

func (b *Box) clocks() string {
	var ts unix.Timespec
	b.check(unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts))
	return strings.Replace(clocks, "BOOT", fmt.Sprint(ts.Sec), 1)
}

func askTime(b *Box) *runtime.Config {
	c := b.Sh(`awk '/monotonic/ { print $2 } /boottime/ { print $2 }' /proc/self/timens_offsets`)
	namespace(c, specs.TimeNamespace, "")
	c.Spec.Linux.TimeOffsets = map[string]specs.LinuxTimeOffset{"monotonic": {Secs: 100, Nanosecs: 5}, "boottime": {Secs: 200}}
	return c
}

func moreTime(b *Box) {
	c := b.Sh(b.clocks() + "; sleep 1000; true")
	namespace(c, specs.TimeNamespace, "")
	c.Spec.Linux.TimeOffsets = map[string]specs.LinuxTimeOffset{"boottime": {Secs: 86400}}
	m := b.Start(c)
	m.Out.Until(b.T, "\n")
	if out := m.Out.String(); out != "86400\n" {
		b.T.Errorf("its clock is %s ahead", out)
	}
	if out, _, err := m.Exec(m.Process("/bin/sh", "-c", b.clocks())); err != nil || out != "86400\n" {
		b.T.Errorf("exec: its clock is %s ahead, %v", out, err)
	}
	c = b.Sh("true")
	c.Spec.Linux.TimeOffsets = map[string]specs.LinuxTimeOffset{"boottime": {Secs: 1}}
	b.refuses("linux.timeOffsets", c)
	namespace(c, specs.TimeNamespace, "")
	c.Spec.Linux.TimeOffsets = map[string]specs.LinuxTimeOffset{"realtime": {Secs: 1}}
	b.refuses("linux.timeOffsets", c)
	// The clocks would run before the kernel's own beginning.
	c.Spec.Linux.TimeOffsets = map[string]specs.LinuxTimeOffset{"boottime": {Secs: -1 << 40}}
	if _, err := b.Create(c); err == nil || !strings.Contains(err.Error(), "set time offsets") {
		b.T.Errorf("%v", err)
	}
}

func joinTime(b *Box) {
	c := b.Config("sleep", "1000")
	namespace(c, specs.TimeNamespace, "")
	c.Spec.Linux.TimeOffsets = map[string]specs.LinuxTimeOffset{"boottime": {Secs: 86400}}
	first := b.Start(c)
	c = b.Sh(b.clocks())
	namespace(c, specs.TimeNamespace, first.ns("time"))
	b.expect(c, "86400")
}

// mapping of the ids of a container to the host's from 200000 on.
var mapping = []specs.LinuxIDMapping{{HostID: 200000, Size: 60000}, {ContainerID: 60000, HostID: 300000, Size: 5536}}

// inUser puts a container into a new user namespace, with a root filesystem that is its own.
func (b *Box) inUser(c *runtime.Config) *runtime.Config {
	namespace(c, specs.UserNamespace, "")
	c.Spec.Linux.UIDMappings, c.Spec.Linux.GIDMappings = mapping, mapping
	c.Spec.Linux.Sysctl["net.ipv4.ping_group_range"] = "0 59999" // of groups that it has
	c.Rootfs = b.mappedRoot(c.ID)
	return c
}

// mappedRoot is the image with the ids of the container's user namespace.
func (b *Box) mappedRoot(id string) []runtime.Mount {
	dir := b.host("mapped-" + id)
	b.check(os.MkdirAll(filepath.Join(dir, "upper"), 0o755))
	b.check(os.MkdirAll(filepath.Join(dir, "work"), 0o755))
	return []runtime.Mount{{Type: "overlay", Source: "overlay", Options: []string{"idmap", "lowerdir=" + b.Lower, "upperdir=" + dir + "/upper", "workdir=" + dir + "/work"}}}
}

func askUser(b *Box) *runtime.Config { return b.inUser(b.Sh("true")) }

// seen by a container of its ids, files and powers.
const seenInUser = `id -u; id -g; tr -s ' ' </proc/self/uid_map | sed 's/^ //'; cat /proc/self/setgroups
for f in / /etc/passwd /dev /dev/null /dev/extra /dev/pts /dev/shm /proc/1 /made/here /tmp/volume/made; do stat -c '%n %u:%g' $f; done
grep CapEff /proc/self/status | tr -d '\t'; hostname; echo x >/made/here/x && stat -c %u:%g /made/here/x; echo x >/dev/null && echo null; ls -d /sys/class/net/lo; cat /proc/sys/net/ipv4/ip_unprivileged_port_start; cat /proc/sys/kernel/shm_rmid_forced`

func moreUser(b *Box) {
	c := b.inUser(b.Sh(seenInUser))
	c.Spec.Process.Cwd = "/made/here"
	c.Spec.Linux.Sysctl["kernel.shm_rmid_forced"] = "1"
	three := uint32(3)
	c.Spec.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/extra", Type: "c", Major: 1, Minor: 5, UID: &three}}
	c.Spec.Mounts = append(c.Spec.Mounts, specs.Mount{Destination: "/tmp/volume", Type: "tmpfs", Source: "tmpfs"}, bind(b.host("v"), "/tmp/volume/made"))
	want := "0\n0\n0 200000 60000\n60000 300000 5536\nallow\n"
	for _, f := range []string{"/", "/etc/passwd", "/dev", "/dev/null"} {
		want += f + " 0:0\n"
	}
	want += "/dev/extra 3:0\n/dev/pts 0:0\n/dev/shm 0:0\n/proc/1 0:0\n/made/here 0:0\n/tmp/volume/made 65534:65534\nCapEff:00000000a80425fb\nbox\n0:0\nnull\n/sys/class/net/lo\n0\n1"
	b.expect(c, want)
	if st, err := os.Stat(filepath.Join(b.Dir, "host/mapped-"+c.ID, "upper/made/here/x")); err != nil || st.Sys().(*syscall.Stat_t).Uid != 0 {
		b.T.Errorf("the upper layer does not hold what the container sees: %+v %v", st, err)
	}
	// Somebody else than root, also added, with streams of its own.
	c = b.inUser(b.Sh("id -u; id -G; echo again >/dev/stdout; touch /home/alice/x && stat -c %u:%g /home/alice/x; cat /proc/self/cgroup | grep -vc ':/$'; sleep 1000; true"))
	b.check(os.Chown(filepath.Join(b.Lower, "home/alice"), 1000, 1000))
	c.User = "alice"
	m := b.Start(c)
	m.Out.Until(b.T, "1000:1000\n0\n")
	if want := "1000\n1000 10 50\nagain\n1000:1000\n0\n"; m.Out.String() != want {
		b.T.Errorf("%q, want %q", m.Out.String(), want)
	}
	host, err := os.Stat(fmt.Sprintf("/proc/%d/task", m.Init().PID()))
	b.check(err)
	if uid := host.Sys().(*syscall.Stat_t).Uid; uid != 201000 {
		b.T.Errorf("on the host it is user %d", uid)
	}
	x := m.Process("/bin/sh", "-c", "id -u; id -G; echo again >/dev/stdout; grep -E '^(CapEff|CapBnd)' /proc/self/status | tr -d '\\t'; readlink /proc/self/ns/user")
	x.User = "root"
	ns, err := os.Readlink(m.ns("user"))
	b.check(err)
	if out, _, err := m.Exec(x); err != nil || out != "0\n0 10\nagain\nCapEff:00000000a80425fb\nCapBnd:00000000a80425fb\n"+ns+"\n" {
		b.T.Errorf("exec: %s %v", out, err)
	}
	x = m.Process("/bin/sh", "-c", "tty; stat -c %u $(tty); echo to tty >/dev/tty")
	x.Spec.Terminal = true
	x.User = "bob"
	made, err := m.Container.Exec(Context(b.T), x)
	b.check(err)
	out := Read(made.Terminal())
	b.check(made.Start(Context(b.T)))
	Reap(b.T, made)
	if text := strings.ReplaceAll(out.Wait(b.T), "\r", ""); text != "/dev/pts/0\n1001\nto tty\n" {
		b.T.Errorf("terminal: %q", text)
	}
	b.check(made.Close())
	moreUserErrors(b)
}

func moreUserErrors(b *Box) {
	c := b.inUser(b.Sh("true"))
	c.User = "70000"
	b.refuses("user 70000", c)
	c = b.inUser(b.Sh("true"))
	c.Spec.Linux.GIDMappings = nil
	b.refuses("linux.gidMappings", c)
	c = b.inUser(b.Sh("true"))
	c.Spec.Linux.UIDMappings = []specs.LinuxIDMapping{{ContainerID: 1, HostID: 200000, Size: 10}}
	b.refuses("user 0", c)
	c = b.Sh("true")
	c.Spec.Linux.UIDMappings, c.Spec.Linux.GIDMappings = mapping, mapping
	b.refuses("linux.uidMappings", c)
	// With a small init, a terminal, and the host's or another's network.
	c = b.inUser(b.Sh("tty; id -u; tr '\\0' ' ' </proc/1/cmdline; echo; stat -c %u /proc/1 /dev/console"))
	c.Init, c.Spec.Process.Terminal = true, true
	m := b.Start(c)
	out := Read(m.Init().Terminal())
	m.Wait()
	if text := strings.ReplaceAll(out.Wait(b.T), "\r", ""); text != "/dev/pts/0\n0\ngantry-init \n0\n0\n" {
		b.T.Errorf("%q", text)
	}
}

func shareUser(b *Box) {
	first := b.Start(b.Config("sleep", "1000"))
	for _, kind := range []string{"net", "ipc", "uts"} {
		c := b.inUser(b.Sh("readlink /proc/self/ns/" + kind + "; ls /sys/class/net"))
		full := map[string]specs.LinuxNamespaceType{"net": "network"}[kind]
		if full == "" {
			full = specs.LinuxNamespaceType(kind)
		}
		namespace(c, full, first.ns(kind))
		c.Spec.Linux.Sysctl = nil
		switch kind {
		case "uts":
			c.Spec.Hostname = ""
		case "ipc": // whose queues are not for this container's root to mount
			c.Spec.Mounts = append(c.Spec.Mounts[:4:4], c.Spec.Mounts[5:]...)
		}
		out, code := b.Run(c)
		ns, err := os.Readlink(first.ns(kind))
		b.check(err)
		if code != 0 || !strings.HasPrefix(out, ns) || kind == "net" && !strings.Contains(out, "lo\n") {
			b.T.Errorf("%s: exit %d, %s; want %s", kind, code, out, ns)
		}
	}
	for _, kind := range []specs.LinuxNamespaceType{"pid", "time"} { // which only their own root has power over
		c := b.inUser(b.Sh("true"))
		namespace(c, kind, first.ns(string(kind)))
		b.refuses("to join a "+string(kind)+" namespace", c)
	}
	c := b.inUser(b.Sh("readlink /proc/self/ns/net; ls /sys/class/net | grep -c lo"))
	without(c, specs.NetworkNamespace)
	c.Spec.Linux.Sysctl = nil
	ns, err := os.Readlink("/proc/self/ns/net")
	b.check(err)
	b.expect(c, ns+"\n1")
}

func joinUser(b *Box) {
	first := b.Start(b.inUser(b.Config("sleep", "1000")))
	same := func(kinds ...specs.LinuxNamespaceType) *runtime.Config {
		c := b.Sh("tr -s ' ' </proc/self/uid_map | sed 's/^ //'; for n in user pid net ipc uts; do readlink /proc/self/ns/$n; done; stat -c %u / /dev/null /proc/1; id -u; echo x >/x && stat -c %u /x")
		c.Rootfs = b.mappedRoot(c.ID)
		namespace(c, specs.UserNamespace, first.ns("user"))
		c.Spec.Linux.Sysctl["net.ipv4.ping_group_range"] = "0 59999"
		for _, k := range kinds {
			proc := string(k)
			if k == specs.NetworkNamespace {
				proc = "net"
				c.Spec.Linux.Sysctl = nil
			}
			if k == specs.UTSNamespace {
				c.Spec.Hostname = ""
			}
			namespace(c, k, first.ns(proc))
		}
		return c
	}
	for _, kinds := range [][]specs.LinuxNamespaceType{{}, {"network", "ipc", "uts"}, {"network", "ipc", "uts", "pid"}} {
		out, code := b.Run(same(kinds...))
		lines := strings.Split(out, "\n")
		if code != 0 || len(lines) < 12 || strings.Join(lines[:2], ";") != "0 200000 60000;60000 300000 5536" || strings.Join(lines[7:], ";") != "0;0;0;0;0;" {
			b.T.Errorf("%v: exit %d: %s", kinds, code, out)
			continue
		}
		for i, n := range []string{"user", "pid", "net", "ipc", "uts"} {
			theirs, err := os.Readlink(first.ns(n))
			b.check(err)
			want := n == "user"
			for _, k := range kinds {
				want = want || n == string(k) || n == "net" && k == "network"
			}
			if (lines[2+i] == theirs) != want {
				b.T.Errorf("%v: %s is %s, theirs %s", kinds, n, lines[2+i], theirs)
			}
		}
	}
}

func askMappedRoot(b *Box) *runtime.Config {
	c := b.Sh("true")
	c.Rootfs = b.mappedRoot(c.ID)
	return c
}

// mappedRoot: the root filesystem's ids are those of the user namespace, or it is used as it is.
func mappedRoot(b *Box) {
	b.refuses("idmap", askMappedRoot(b))
	c := b.inUser(b.Sh("stat -c %u:%g /bin /etc/passwd"))
	c.Rootfs = b.Overlay // not mapped: the host's root is nobody here
	b.expect(c, "65534:65534\n65534:65534")
	c = b.inUser(b.Sh("stat -c %u:%g /bin /etc/passwd; echo x >/bound && stat -c %u /bound"))
	c.Rootfs = []runtime.Mount{{Type: "bind", Source: b.Lower, Options: []string{"rbind", "idmap"}}}
	b.expect(c, "0:0\n0:0\n0")
	if st, err := os.Stat(filepath.Join(b.Lower, "bound")); err != nil || st.Sys().(*syscall.Stat_t).Uid != 0 {
		b.T.Errorf("%+v %v", st, err)
	}
	// A filesystem that takes no maps is named.
	c = b.inUser(b.Sh("true"))
	c.Rootfs = []runtime.Mount{{Type: "bind", Source: "/proc", Options: []string{"bind", "idmap"}}}
	b.refuses("cannot be mounted with mapped ids", c)
}

func askMappedMount(b *Box) *runtime.Config {
	c := b.Sh("true")
	m := bind(b.host("v"), "/v")
	m.UIDMappings, m.GIDMappings = mapping, mapping
	c.Spec.Mounts = append(c.Spec.Mounts, m)
	return c
}

func mappedMounts(b *Box) {
	v := b.host("v")
	b.check(os.WriteFile(filepath.Join(v, "file"), nil, 0o644))
	b.check(os.Chown(filepath.Join(v, "file"), 5, 6))
	b.check(os.MkdirAll(filepath.Join(v, "below"), 0o755))
	b.check(unix.Mount(b.host("elsewhere"), filepath.Join(v, "below"), "", unix.MS_BIND, "")) // of a kind that can be mapped, too
	b.T.Cleanup(func() { _ = unix.Unmount(filepath.Join(v, "below"), unix.MNT_DETACH) })
	with := func(user bool, options []string, own ...specs.LinuxIDMapping) *runtime.Config {
		c := b.Sh("stat -c %u:%g /v/file /v/below")
		if user {
			b.inUser(c)
		}
		m := specs.Mount{Destination: "/v", Type: "bind", Source: v, Options: append([]string{"rbind", "rprivate"}, options...)}
		m.UIDMappings, m.GIDMappings = own, own
		c.Spec.Mounts = append(c.Spec.Mounts, m)
		return c
	}
	own := specs.LinuxIDMapping{HostID: 1000, Size: 100}
	for _, x := range []struct {
		c    *runtime.Config
		want string
	}{
		{with(true, nil), "65534:65534\n65534:65534"},
		{with(true, []string{"idmap"}), "5:6\n65534:65534"},
		{with(true, []string{"ridmap"}), "5:6\n0:0"},
		{with(false, nil, own), "1005:1006\n0:0"},
		{with(false, []string{"ridmap"}, own), "1005:1006\n1000:1000"},
		{with(true, []string{"idmap"}, specs.LinuxIDMapping{HostID: 200100, Size: 100}), "105:106\n65534:65534"},
	} {
		b.expect(x.c, x.want)
	}
	b.refuses("idmap", with(false, []string{"idmap"}))
	c := b.Sh("true")
	c.Spec.Mounts[0].UIDMappings, c.Spec.Mounts[0].GIDMappings = mapping, mapping
	b.refuses("/proc", c)
	c = with(false, nil, own)
	c.Spec.Mounts[len(c.Spec.Mounts)-1].GIDMappings = nil
	b.refuses("gidMappings", c)
	// What is written has the ids of the volume, not of the container.
	c = b.inUser(b.Sh("touch /v/new; stat -c %u /v/new"))
	c.Spec.Mounts = append(c.Spec.Mounts, bind(v, "/v", "idmap"))
	b.expect(c, "0")
	if st, err := os.Stat(filepath.Join(v, "new")); err != nil || st.Sys().(*syscall.Stat_t).Uid != 0 {
		b.T.Errorf("%+v %v", st, err)
	}
}
