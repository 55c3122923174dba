package native

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/shim/runtime"
	"github.com/gantryd/gantry/shim/runtime/runtimetest"
)

func TestOptions(t *testing.T) {
	t.Parallel()
	const (
		ro, nosuid, nodev, noexec = unix.MOUNT_ATTR_RDONLY, unix.MOUNT_ATTR_NOSUID, unix.MOUNT_ATTR_NODEV, unix.MOUNT_ATTR_NOEXEC
	)
	for words, want := range map[string]options{
		"":                          {},
		"ro,nosuid,nodev,noexec":    {set: ro | nosuid | nodev | noexec},
		"ro,rw":                     {clear: ro},
		"rw,ro":                     {set: ro},
		"rbind,rprivate":            {bind: true, rbind: true, propagation: unix.MS_PRIVATE, propagationAll: true},
		"bind,slave":                {bind: true, propagation: unix.MS_SLAVE},
		"rro,rnosuid":               {setAll: ro | nosuid},
		"noatime":                   {set: unix.MOUNT_ATTR_NOATIME, clear: unix.MOUNT_ATTR__ATIME &^ unix.MOUNT_ATTR_NOATIME},
		"strictatime,size=1m,mode=": {set: unix.MOUNT_ATTR_STRICTATIME, clear: unix.MOUNT_ATTR__ATIME &^ unix.MOUNT_ATTR_STRICTATIME, data: []string{"size=1m", "mode="}},
		"sync,async,lazytime":       {data: []string{"sync", "lazytime"}},
	} {
		got, err := parseOptions(strings.Split(words, ","))
		got.clear &^= got.set
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %+v, want %+v, %v", words, got, want, err)
		}
	}
	// Every attribute is taken by the kernel, alone and over another.
	dir := t.TempDir()
	for word := range attributes {
		for _, before := range []string{"", "noatime", "strictatime", "ro"} {
			o, err := parseOptions([]string{"bind", before, word})
			if err != nil {
				t.Fatal(err)
			}
			fd, _, err := bindFrom(dir, o)
			if err != nil {
				t.Errorf("%s after %s: %v", word, before, err)
				continue
			}
			_ = unix.Close(fd)
		}
	}
}

func TestCapabilityNames(t *testing.T) {
	t.Parallel()
	id, err := whoami()
	if err != nil {
		t.Fatal(err)
	}
	if int(id.lastCap)+1 > len(capNames) {
		t.Errorf("this kernel has %d capabilities, %d are known", id.lastCap+1, len(capNames))
	}
	for n, name := range map[int]string{unix.CAP_SYS_ADMIN: "SYS_ADMIN", unix.CAP_CHECKPOINT_RESTORE: "CHECKPOINT_RESTORE", unix.CAP_SYS_RESOURCE: "SYS_RESOURCE", unix.CAP_AUDIT_READ: "AUDIT_READ"} {
		if capNames[n] != name {
			t.Errorf("%d is %s", n, capNames[n])
		}
	}
	warned := 0
	s, err := identity{caps: 1<<unix.CAP_KILL | 1<<unix.CAP_CHOWN, bound: 1 << unix.CAP_KILL}.capabilities(&specs.LinuxCapabilities{
		Bounding: []string{"CAP_KILL", "CAP_CHOWN"}, Permitted: []string{"kill", "CAP_CHOWN", "CAP_SYS_ADMIN"}, Effective: []string{"CAP_CHOWN", "CAP_SYS_ADMIN"}, Ambient: []string{"CAP_KILL"},
	}, func(string, ...any) { warned++ })
	want := capSets{bounding: 1 << unix.CAP_KILL, permitted: 1<<unix.CAP_KILL | 1<<unix.CAP_CHOWN, effective: 1 << unix.CAP_CHOWN}
	if err != nil || s != want || warned != 1 {
		t.Errorf("%+v, %d warnings, %v", s, warned, err)
	}
}

func TestRlimits(t *testing.T) {
	t.Parallel()
	for i, name := range limitNames {
		want := map[int]string{unix.RLIMIT_NOFILE: "NOFILE", unix.RLIMIT_NPROC: "NPROC", unix.RLIMIT_CORE: "CORE", unix.RLIMIT_MEMLOCK: "MEMLOCK", unix.RLIMIT_RTTIME: "RTTIME", unix.RLIMIT_STACK: "STACK", unix.RLIMIT_AS: "AS"}[i]
		if want != "" && want != name {
			t.Errorf("%d is %s", i, name)
		}
	}
	poor := identity{}
	for i := range poor.limits {
		poor.limits[i] = unix.Rlimit{Cur: 100, Max: 200}
	}
	rich := poor
	rich.caps = 1 << capSysResource
	for _, c := range []struct {
		id         identity
		soft, hard uint64
		want       unix.Rlimit
		warned     int
	}{
		{poor, 150, 180, unix.Rlimit{Cur: 150, Max: 180}, 0},
		{poor, 150, 1000, unix.Rlimit{Cur: 150, Max: 200}, 1},
		{poor, 900, 1000, unix.Rlimit{Cur: 200, Max: 200}, 1},
		{rich, 900, 1000, unix.Rlimit{Cur: 900, Max: 1000}, 0},
	} {
		warned := 0
		got, err := c.id.rlimits([]specs.POSIXRlimit{{Type: "RLIMIT_NPROC", Soft: c.soft, Hard: c.hard}}, func(string, ...any) { warned++ })
		if err != nil || len(got) != 2 || got[0].value != c.want || warned != c.warned || got[1].name != "RLIMIT_NOFILE" {
			t.Errorf("%d:%d: %+v, %d warnings, %v", c.soft, c.hard, got, warned, err)
		}
	}
}

// files for lookup.
func reader(files map[string]string) func(string) ([]byte, error) {
	return func(name string) ([]byte, error) {
		s, ok := files[name]
		if !ok {
			return nil, fs.ErrNotExist
		}
		return []byte(s), nil
	}
}

func FuzzLookup(f *testing.F) {
	f.Add("root:x:0:0:root:/root:/bin/sh\nalice:x:1000:1000::/home/alice:/bin/sh\n", "wheel:x:10:root,alice\n", "alice")
	f.Add("a:b\n:::::::\n#x\na:x:99999999999:1\n", "x:y:-1:a,,b\n", "1:2")
	f.Fuzz(func(t *testing.T, passwd, group, who string) {
		u, err := lookup(who, specs.User{UID: 5, GID: 6}, reader(map[string]string{"/etc/passwd": passwd, "/etc/group": group}))
		if err != nil {
			if !errdefs.IsInvalidArgument(err) {
				t.Errorf("%v", err)
			}
			return
		}
		if u.uid > maxID || u.gid > maxID || u.home == "" || strings.ContainsRune(u.home, 0) || len(u.groups) > 65536 {
			t.Errorf("%+v", u)
		}
	})
}

func FuzzInterpreter(f *testing.F) {
	if raw, err := os.ReadFile("/bin/ls"); err == nil {
		f.Add(raw[:4096])
	}
	f.Add([]byte("#! /bin/sh -e\n"))
	f.Add([]byte("#!"))
	f.Fuzz(func(_ *testing.T, b []byte) {
		interpreterOf(b[:min(256, len(b))], bytes.NewReader(b))
	})
}

func FuzzOptions(f *testing.F) {
	f.Add("ro,rbind,rslave,size=1,x")
	f.Fuzz(func(_ *testing.T, s string) {
		if o, err := parseOptions(strings.Split(s, ",")); err == nil {
			attr(o.set, o.clear)
			splitLower(o)
			commonDir(o.data)
		}
	})
}

// testTree is a tree of two directories, one at /vol.
func testTree(t testing.TB) (*tree, string, string) {
	t.Helper()
	root, vol := t.TempDir(), t.TempDir()
	open := func(dir string) int {
		fd, err := unix.Open(dir, unix.O_PATH|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Close(fd) })
		return fd
	}
	if err := os.Mkdir(filepath.Join(root, "vol"), 0o755); err != nil {
		t.Fatal(err)
	}
	return &tree{layers: []layer{{"/", open(root)}, {"/vol", open(vol)}, {"/proc", unborn}}}, root, vol
}

func TestTree(t *testing.T) {
	t.Parallel()
	tr, root, vol := testTree(t)
	for at, to := range map[string]string{
		root + "/abs": "/vol/inside", root + "/rel": "vol/../a", root + "/up": "../../../..", vol + "/out": "/b", vol + "/up": "../c",
		root + "/loop": "loop", root + "/dangling": "/new/file", root + "/toproc": "/proc/self",
	} {
		if err := os.Symlink(to, at); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		path, want, made string
		err              error
	}{
		{"/x/y", "/x/y", root + "/x/y", nil},
		{"/vol/x", "/vol/x", vol + "/x", nil},
		{"/abs/z", "/vol/inside/z", vol + "/inside/z", nil},
		{"/rel/q", "/a/q", root + "/a/q", nil},
		{"/up/w", "/w", root + "/w", nil},
		{"/../../etc", "/etc", root + "/etc", nil},
		{"/vol/out/f", "/b/f", root + "/b/f", nil},
		{"/vol/up/f", "/c/f", root + "/c/f", nil},
		{"/dangling", "/new/file", root + "/new/file", nil},
		{"/rel/../k", "/k", root + "/k", nil},
		{"/vol/../m", "/m", root + "/m", nil},
		{"/loop/x", "", "", unix.ELOOP},
		{"/proc/self/x", "/proc/self/x", "", nil},
		{"/toproc/x", "/proc/self/x", "", nil},
		{"/", "/", root, nil},
	} {
		p, err := tr.make(c.path, true)
		p.close()
		if !errors.Is(err, c.err) || err == nil && p.path != c.want {
			t.Errorf("%s: %q, %v", c.path, p.path, err)
			continue
		}
		if c.made != "" {
			if st, err := os.Stat(c.made); err != nil || !st.IsDir() {
				t.Errorf("%s: %s is not there: %v", c.path, c.made, err)
			}
		}
		if again, err := tr.find(c.path); c.err == nil && (err != nil || again.path != c.want) {
			t.Errorf("%s: found %q, %v", c.path, again.path, err)
		} else {
			again.close()
		}
	}
	if _, err := tr.find("/not/there"); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	if p, err := tr.make("/f/ile", false); err != nil || p.mode&unix.S_IFMT != unix.S_IFREG {
		t.Errorf("%+v %v", p, err)
	} else {
		p.close()
	}
}

// FuzzTree: whatever links there are, nothing is made or found outside.
func FuzzTree(f *testing.F) {
	f.Add("/a/b", "../../x", "/vol/l")
	f.Add("/vol/l/../..", "/vol/l", "/a")
	f.Fuzz(func(t *testing.T, p, link, at string) {
		if strings.ContainsRune(p+link+at, 0) || len(p)+len(link)+len(at) > 500 || link == "" {
			return
		}
		tr, root, vol := testTree(t)
		base := map[bool]string{true: vol, false: root}[len(at)%2 == 0]
		_ = os.Symlink(link, filepath.Join(base, filepath.Base(filepath.Clean("/"+at)+"x")))
		got, err := tr.make(p, true)
		if err != nil {
			return
		}
		defer got.close()
		if got.fd < 0 {
			return
		}
		real, err := os.Readlink("/proc/self/fd/" + itoa(got.fd))
		if err != nil || real != root && real != vol && !strings.HasPrefix(real, root+"/") && !strings.HasPrefix(real, vol+"/") {
			t.Errorf("%q, link %q: at %s, %v", p, link, real, err)
		}
	})
}

func itoa(n int) string {
	var b []byte
	for ; n > 0 || len(b) == 0; n /= 10 {
		b = append([]byte{byte('0' + n%10)}, b...)
	}
	return string(b)
}

// TestOverlay mounts many layers, as a kernel wants them that takes them one by one, and as older ones do.
func TestOverlay(t *testing.T) {
	b := runtimetest.New(t, newRuntime(t))
	for _, n := range []int{1, 3, 60} {
		var lower []string
		for i := range n {
			d := filepath.Join(b.Dir, "layers", strings.Repeat("long", 10), itoa(i))
			if err := os.MkdirAll(d, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(d, "l"+itoa(i)), nil, 0o644); err != nil {
				t.Fatal(err)
			}
			lower = append(lower, d)
		}
		upper, work := filepath.Join(b.Dir, "layers", "upper"), filepath.Join(b.Dir, "layers", "work")
		for _, d := range []string{upper, work} {
			if err := os.MkdirAll(d, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		m := runtime.Mount{Type: "overlay", Source: "overlay", Options: []string{"nodev", "lowerdir=" + strings.Join(lower, ":"), "upperdir=" + upper, "workdir=" + work}}
		for _, old := range []bool{false, true} {
			oldOverlay.Store(old)
			fd, err := (&builder{}).detached(m)
			oldOverlay.Store(false)
			if err != nil {
				t.Errorf("%d layers, old %t: %v", n, old, err)
				continue
			}
			dir := os.NewFile(uintptr(fd), "root")
			names, err := dir.Readdirnames(-1)
			if old, rerr := reopen(fd, unix.O_RDONLY|unix.O_DIRECTORY); err != nil && rerr == nil { // a descriptor of open_tree is O_PATH
				d := os.NewFile(uintptr(old), "root")
				names, err = d.Readdirnames(-1)
				_ = d.Close()
			}
			if err != nil || len(names) != n || !slices.Contains(names, "l"+itoa(n-1)) {
				t.Errorf("%d layers, old %t: %v %v", n, old, names, err)
			}
			var st unix.Statfs_t
			if err := unix.Fstatfs(fd, &st); err != nil || st.Flags&unix.ST_NODEV == 0 {
				t.Errorf("old %t: flags %#x %v", old, st.Flags, err)
			}
			_ = dir.Close()
		}
	}
	_, err := (&builder{}).detached(runtime.Mount{Type: "overlay", Source: "overlay", Options: []string{"lowerdir=" + b.Lower, "upperdir=/not/there", "workdir=/neither"}})
	if err == nil {
		t.Error("mounted what is not there")
	}
	t.Log(err)
	if oldOverlay.Load() {
		t.Error("a mistake was taken for an old kernel")
	}
	// A start over the old way.
	oldOverlay.Store(true)
	defer oldOverlay.Store(false)
	if out, code := b.Run(b.Sh("echo old way >/x; cat /x")); code != 0 || out != "old way\n" {
		t.Errorf("%d %s", code, out)
	}
}

// TestOnThread: the process's own mount namespace stays the process's.
func TestOnThread(t *testing.T) {
	t.Parallel()
	before, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		t.Fatal(err)
	}
	for range 200 {
		onThread(func() {
			if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_FS); err != nil {
				t.Error(err)
			}
		})
	}
	if after, err := os.Readlink("/proc/self/ns/mnt"); err != nil || after != before {
		t.Errorf("%s became %s, %v", before, after, err)
	}
}

// TestFailedStep: an error in the child becomes a sentence, and nothing is left.
func TestFailedStep(t *testing.T) {
	b := runtimetest.New(t, newRuntime(t))
	c := b.Sh("true")
	c.Spec.Mounts[0].Options = append(c.Spec.Mounts[0].Options, "hidepid=nonsense")
	_, err := b.Create(c)
	if err == nil || err.Error() != "create container: mount proc at /proc: invalid argument" {
		t.Errorf("%v", err)
	}
	c = b.Sh("true")
	c.Spec.Linux.Seccomp, c.Seccomp = &specs.LinuxSeccomp{DefaultAction: specs.ActKillProcess}, nil
	if _, err = b.Create(c); err == nil || !strings.Contains(err.Error(), "seccomp profile") {
		t.Errorf("%v", err)
	}
	c = b.Sh("true")
	c.Seccomp = []byte("short")
	if _, err = b.Create(c); !errdefs.IsInvalidArgument(err) {
		t.Errorf("%v", err)
	}
}

func TestInitFile(t *testing.T) {
	t.Parallel()
	fd, err := initFile()
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd) //nolint:errcheck // a test
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Size != initHeader+initSize {
		t.Errorf("%d bytes, %v", st.Size, err)
	}
	if _, err := unix.Open("/proc/self/fd/"+itoa(fd), unix.O_WRONLY, 0); err == nil {
		f, _ := unix.Open("/proc/self/fd/"+itoa(fd), unix.O_WRONLY, 0)
		if _, err := unix.Write(f, []byte("x")); err == nil {
			t.Error("the init can be written")
		}
	}
}
