package overlay

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/plugins"
	"github.com/gantryd/gantry/snapshotters"
)

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: overlay mounts need root")
	}
}

// detached mounts a file system attached nowhere and returns a path into it.
func detached(t *testing.T, kind string, options map[string]string) string {
	t.Helper()
	fs, err := unix.Fsopen(kind, unix.FSOPEN_CLOEXEC)
	if err != nil {
		t.Skipf("SKIPPED: no file system %s here: %v", kind, err)
	}
	defer unix.Close(fs)
	for k, v := range options {
		if err := unix.FsconfigSetString(fs, k, v); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	return fmt.Sprintf("/proc/self/fd/%d/root", fd)
}

// TestRoots gives the driver roots on file systems of several kinds.
func TestRoots(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	for _, d := range []string{"l", "u", "w"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for name, c := range map[string]struct {
		kind    string
		options map[string]string
		refused bool
	}{
		"tmpfs":                        {kind: "tmpfs"},
		"ramfs has no attributes":      {kind: "ramfs", refused: true},
		"overlay cannot carry another": {kind: "overlay", refused: true, options: map[string]string{"lowerdir": dir + "/l", "upperdir": dir + "/u", "workdir": dir + "/w"}},
	} {
		t.Run(name, func(t *testing.T) {
			root := detached(t, c.kind, c.options)
			d := New()
			err := d.Configure(t.Context(), plugins.Config{Root: root})
			if c.refused {
				if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), root) || !strings.Contains(err.Error(), "native") {
					t.Errorf("got %v, want a refusal that names the directory and a way out", err)
				}
			} else if err != nil {
				t.Error(err)
			}
			if left, _ := filepath.Glob(root + "/probe-*"); len(left) != 0 {
				t.Errorf("left: %v", left)
			}
			if err := d.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestRootsThatSeparateOptions(t *testing.T) {
	for _, bad := range []string{"a:b", "a,b", `a\b`} {
		if err := New().Configure(t.Context(), plugins.Config{Root: filepath.Join(t.TempDir(), bad)}); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v", bad, err)
		}
	}
}

func configured(t *testing.T, options string) *Driver {
	t.Helper()
	needRoot(t)
	d := New()
	if err := d.Configure(t.Context(), plugins.Config{Root: t.TempDir() + "/root", Options: []byte(options)}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	return d
}

// layer commits a layer that fn writes.
func layer(t *testing.T, d *Driver, name, parent string, fn func(dir string) error) string {
	t.Helper()
	m, err := d.Prepare(t.Context(), "unpack "+name, "", snapshotters.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := fn(m[0].Source); err != nil {
		t.Fatal(err)
	}
	if err := d.Commit(t.Context(), "unpack "+name, name, parent); err != nil {
		t.Fatal(err)
	}
	return m[0].Source
}

func TestVolatile(t *testing.T) {
	for options, want := range map[string]bool{`{}`: true, `{"volatile": true}`: true, `{"volatile": false}`: false, "": true} {
		d := configured(t, options)
		layer(t, d, "base", "", func(string) error { return nil })
		for _, volatile := range []bool{true, false} {
			m, err := d.Prepare(t.Context(), fmt.Sprint(volatile), "base", snapshotters.Options{Volatile: volatile})
			if err != nil {
				t.Fatal(err)
			}
			if got := slices.Contains(m[0].Options, "volatile"); got != (want && volatile) {
				t.Errorf("options %s, asked for %v: mount options %v", options, volatile, m[0].Options)
			}
		}
	}
}

// stack mounts a snapshot and returns a path into it.
func stack(t *testing.T, m plugins.Mount) string {
	t.Helper()
	fs, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fs)
	for _, o := range m.Options {
		k, v, ok := strings.Cut(o, "=")
		switch {
		case o == "rw" || o == "ro":
		case k == "lowerdir":
			for l := range strings.SplitSeq(v, ":") {
				if err := unix.FsconfigSetString(fs, "lowerdir+", l); err != nil {
					t.Skipf("SKIPPED: a kernel without lowerdir+: %v", err)
				}
			}
		case ok:
			err = unix.FsconfigSetString(fs, k, v)
		default:
			err = unix.FsconfigSetFlag(fs, k)
		}
		if err != nil {
			t.Fatalf("%s: %v", o, err)
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		t.Fatalf("%v: %v%s", m.Options, err, kernelSays(fs))
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	return fmt.Sprintf("/proc/self/fd/%d", fd)
}

// TestAttributesOfAStranger puts attributes into a layer that would, were they believed, show files of another layer under
// other names. Without redirect_dir=nofollow and metacopy=off this fails where the kernel follows by default.
func TestAttributesOfAStranger(t *testing.T) {
	d := configured(t, "")
	layer(t, d, "base", "", func(dir string) error {
		return errors.Join(os.MkdirAll(dir+"/secret", 0o700), os.WriteFile(dir+"/secret/key", []byte("secret"), 0o600),
			os.WriteFile(dir+"/shadow", []byte("secret"), 0o600))
	})
	layer(t, d, "evil", "base", func(dir string) error {
		return errors.Join(os.Mkdir(dir+"/public", 0o755), unix.Setxattr(dir+"/public", "trusted.overlay.redirect", []byte("/secret"), 0),
			os.WriteFile(dir+"/file", nil, 0o644), unix.Setxattr(dir+"/file", "trusted.overlay.metacopy", nil, 0),
			unix.Setxattr(dir+"/file", "trusted.overlay.redirect", []byte("/shadow"), 0))
	})
	m, err := d.Prepare(t.Context(), "c", "evil", snapshotters.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range []string{"redirect_dir=nofollow", "metacopy=off", "index=off"} {
		if !slices.Contains(m[0].Options, o) {
			t.Errorf("no %s in %v", o, m[0].Options)
		}
	}
	top := stack(t, m[0])
	if raw, err := os.ReadFile(top + "/public/key"); err == nil {
		t.Errorf("a redirect was followed: %q", raw)
	}
	if raw, _ := os.ReadFile(top + "/file"); string(raw) == "secret" {
		t.Error("metadata of one file showed the content of another")
	}
}

// TestDirectRedirects shows that what the test above plants is what the kernel would follow.
func TestDirectRedirects(t *testing.T) {
	d := configured(t, "")
	layer(t, d, "base", "", func(dir string) error {
		return errors.Join(os.Mkdir(dir+"/secret", 0o700), os.WriteFile(dir+"/secret/key", nil, 0o600))
	})
	layer(t, d, "evil", "base", func(dir string) error {
		return errors.Join(os.Mkdir(dir+"/public", 0o755), unix.Setxattr(dir+"/public", "trusted.overlay.redirect", []byte("/secret"), 0))
	})
	m, err := d.View(t.Context(), "v", "evil", snapshotters.Options{})
	if err != nil {
		t.Fatal(err)
	}
	m[0].Options = slices.DeleteFunc(m[0].Options, func(o string) bool { return strings.HasPrefix(o, "redirect_dir") })
	m[0].Options = append(m[0].Options, "redirect_dir=follow")
	if _, err := os.Stat(stack(t, m[0]) + "/public/key"); err != nil {
		t.Errorf("this kernel does not follow redirects at all, the guard is not tested: %v", err)
	}
}

// TestAdaptAgain kills nothing, but does what a process does whose predecessor was killed: the same again.
func TestAdaptAgain(t *testing.T) {
	needRoot(t)
	below, top := t.TempDir(), t.TempDir()
	mark := func(p string) error { return unix.Setxattr(p, snapshotters.Inherit, []byte("y"), 0) }
	if err := errors.Join(os.Mkdir(below+"/d", 0o700), os.WriteFile(below+"/d/f", nil, 0o600), unix.Chown(below+"/d", 7, 8), unix.Chmod(below+"/d", 0o2750),
		os.Mkdir(top+"/d", 0o755), mark(top+"/d"), mark(top), os.Mkdir(top+"/new", 0o755), mark(top+"/new"),
		unix.Mknod(top+"/d/f", unix.S_IFCHR, 0), unix.Mknod(top+"/d/g", unix.S_IFCHR, 0), unix.Mknod(top+"/new/h", unix.S_IFCHR, 0),
		unix.Mknod(top+"/d/null", unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3)))); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := adapt(t.Context(), top, []string{below}); err != nil {
			t.Fatal(err)
		}
		var st unix.Stat_t
		if err := unix.Lstat(top+"/d", &st); err != nil || st.Mode&0o7777 != 0o2750 || st.Uid != 7 || st.Gid != 8 {
			t.Errorf("d: mode %o, owner %d:%d, %v", st.Mode, st.Uid, st.Gid, err)
		}
		for p, want := range map[string]bool{"d/f": true, "d/null": true, "d/g": false, "new/h": false} {
			if err := unix.Lstat(top+"/"+p, &st); (err == nil) != want {
				t.Errorf("%s: %v, wanted there: %v", p, err, want)
			}
		}
		for _, p := range []string{top, top + "/d", top + "/new"} {
			if _, err := unix.Lgetxattr(p, snapshotters.Inherit, nil); !errors.Is(err, unix.ENODATA) {
				t.Errorf("%s still bears the mark: %v", p, err)
			}
		}
	}
}

// TestAdaptHidden: a whiteout hides what the nearest layer below shows, and only that.
func TestAdaptHidden(t *testing.T) {
	needRoot(t)
	far, near := t.TempDir(), t.TempDir()
	white := func(p string) error { return unix.Mknod(p, unix.S_IFCHR, 0) }
	hide := func(p string) error { return unix.Setxattr(p, opaque, []byte("y"), 0) }
	dirs := func(root string, names ...string) (err error) {
		for _, n := range names {
			err = errors.Join(err, os.MkdirAll(filepath.Join(root, n), 0o755))
		}
		return err
	}
	files := func(root string, names ...string) (err error) {
		for _, n := range names {
			err = errors.Join(err, os.WriteFile(filepath.Join(root, n), nil, 0o600))
		}
		return err
	}
	if err := errors.Join(
		dirs(far, "shown", "white", "opaque", "file", "both"), files(far, "shown/f", "white/f", "opaque/f", "file/f", "both/f"),
		dirs(near, "opaque", "both"), white(near+"/white"), hide(near+"/opaque"), files(near, "file", "both/g")); err != nil {
		t.Fatal(err)
	}
	want := map[string]bool{"shown/f": true, "white/f": false, "opaque/f": false, "file/f": false, "both/f": true, "both/g": true, "both/h": false, "none/f": false}
	top := t.TempDir()
	if err := dirs(top, "shown", "white", "opaque", "file", "both", "none"); err != nil {
		t.Fatal(err)
	}
	for p := range want {
		if err := white(filepath.Join(top, p)); err != nil {
			t.Fatal(err)
		}
	}
	if err := adapt(t.Context(), top, []string{near, far}); err != nil {
		t.Fatal(err)
	}
	for p, want := range want {
		if _, err := os.Lstat(filepath.Join(top, p)); (err == nil) != want {
			t.Errorf("whiteout %s: %v, wanted to stay: %v", p, err, want)
		}
	}
}

// TestUserNamespace serves the driver where it may not write trusted attributes.
func TestUserNamespace(t *testing.T) {
	const env = "OVERLAY_TEST_ROOT"
	if root := os.Getenv(env); root != "" {
		inUserNamespace(t, root)
		return
	}
	needRoot(t)
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run=^TestUserNamespace$")
	cmd.Env = append(os.Environ(), env+"="+t.TempDir())
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{HostID: 0, Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{HostID: 0, Size: 1}},
	}
	out, err := cmd.CombinedOutput()
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOSPC) {
		t.Skipf("SKIPPED: no user namespaces here: %v", err)
	}
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

func inUserNamespace(t *testing.T, root string) {
	d := New()
	i, err := d.Info(t.Context())
	if err != nil || slices.Contains(i.Capabilities, snapshotters.Rebase) {
		t.Errorf("info: %+v, %v: who unpacks here cannot write whiteouts", i, err)
	}
	if err := d.Configure(t.Context(), plugins.Config{Root: root + "/root"}); err != nil {
		t.Fatal(err)
	}
	layer(t, d, "base", "", func(dir string) error { return os.WriteFile(dir+"/f", nil, 0o600) })
	m, err := d.Prepare(t.Context(), "c", "base", snapshotters.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(m[0].Options, "userxattr") {
		t.Errorf("mount options %v", m[0].Options)
	}
	dir := stack(t, m[0])
	if err := os.Remove(dir + "/f"); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(dir + "/f"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("f: %v", err)
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
}
