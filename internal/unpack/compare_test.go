package unpack

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func field(t *testing.T, status []byte, name string) uint64 {
	t.Helper()
	m := regexp.MustCompile(`(?m)^` + name + `:\s*([0-9a-f]+)$`).FindSubmatch(status)
	if m == nil {
		t.Fatalf("no %s in %s", name, status)
	}
	n, err := strconv.ParseUint(string(m[1]), 16, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// facts says all there is to say of a tree, one line a name.
func facts(t *testing.T, root string) []string {
	t.Helper()
	var lines []string
	first := map[uint64]string{}
	err := filepath.WalkDir(root, func(p string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, _ := filepath.Rel(root, p)
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			return fmt.Errorf("%s: %w", p, err)
		}
		line := fmt.Sprintf("%s mode=%o owner=%d:%d time=%d.%09d", name, st.Mode, st.Uid, st.Gid, st.Mtim.Sec, st.Mtim.Nsec)
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFLNK:
			to, _ := os.Readlink(p)
			line += " -> " + to
		case unix.S_IFCHR, unix.S_IFBLK:
			line += fmt.Sprintf(" dev=%x", st.Rdev)
		case unix.S_IFREG:
			b, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			line += fmt.Sprintf(" size=%d sum=%x links=%d", len(b), sum(b), st.Nlink)
			if other, ok := first[st.Ino]; ok {
				line += " same as " + other
			} else {
				first[st.Ino] = name
			}
		}
		names := make([]byte, 4096)
		n, _ := unix.Llistxattr(p, names)
		attrs := strings.Split(strings.TrimRight(string(names[:max(n, 0)]), "\x00"), "\x00")
		slices.Sort(attrs)
		for _, a := range attrs {
			if a == "" || strings.HasPrefix(a, "trusted.overlay.") {
				continue
			}
			v := make([]byte, 4096)
			n, err := unix.Lgetxattr(p, a, v)
			if err != nil {
				return err
			}
			line += fmt.Sprintf(" %s=%x", a, v[:n])
		}
		lines = append(lines, line)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return lines
}

func sum(b []byte) (h uint32) {
	for _, c := range b {
		h = h*16777619 ^ uint32(c)
	}
	return h
}

// TestAgainstUmoci makes an image of three layers with umoci and compares what umoci unpacks with what we do, in both forms.
func TestAgainstUmoci(t *testing.T) {
	root(t)
	for _, tool := range []string{"umoci", "setfattr", "tar"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Fatalf(`no %s: "make setup" installs umoci and attr`, tool)
		}
	}
	tmp := t.TempDir()
	img := filepath.Join(tmp, "img")
	output(t, "umoci", "init", "--layout", img)
	output(t, "umoci", "new", "--image", img+":x")
	for i, change := range []func(string) error{firstLayer, secondLayer, thirdLayer} {
		b := filepath.Join(tmp, fmt.Sprint("bundle", i))
		output(t, "umoci", "unpack", "--image", img+":x", b)
		if err := change(filepath.Join(b, "rootfs")); err != nil {
			t.Fatal(err)
		}
		output(t, "umoci", "repack", "--image", img+":x", b)
	}
	final := filepath.Join(tmp, "final")
	output(t, "umoci", "unpack", "--image", img+":x", final)
	want := facts(t, filepath.Join(final, "rootfs"))
	layers := layersOf(t, img)
	if len(layers) != 3 || len(want) < 25 {
		t.Fatalf("%d layers, %d names", len(layers), len(want))
	}

	applied := filepath.Join(tmp, "applied")
	if err := os.Mkdir(applied, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, l := range layers {
		runFile(t, Job{Mounts: bind(applied), Form: Apply}, l)
	}
	differ(t, "apply", facts(t, applied), want)

	over := filepath.Join(tmp, "over")
	if err := os.Mkdir(over, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("t", over, "tmpfs", 0, ""); err != nil { // a filesystem that can be an upper one
		t.Skip("tmpfs cannot be mounted: overlay form is NOT TESTED:", err)
	}
	defer unix.Unmount(over, unix.MNT_DETACH)
	var lowers []string
	for i, l := range layers {
		d := filepath.Join(over, fmt.Sprint(i))
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
		runFile(t, Job{Mounts: bind(d), Form: Overlay, Parented: i > 0}, l)
		inheritFrom(t, d, lowers)
		lowers = append([]string{d}, lowers...)
	}
	merged := filepath.Join(over, "merged")
	if err := os.Mkdir(merged, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("overlay", merged, "overlay", unix.MS_RDONLY, "lowerdir="+strings.Join(lowers, ":")); err != nil {
		t.Fatalf("mount %q: %v", lowers, err)
	}
	defer unix.Unmount(merged, unix.MNT_DETACH)
	differ(t, "overlay", facts(t, merged), want)
}

// inheritFrom does what a driver's Commit does with directories that a layer does not describe.
func inheritFrom(t *testing.T, layer string, lowers []string) {
	t.Helper()
	err := filepath.WalkDir(layer, func(p string, _ fs.DirEntry, err error) error {
		if err != nil || unix.Lremovexattr(p, inheritAttr) != nil {
			return err
		}
		name, _ := filepath.Rel(layer, p)
		for _, l := range lowers {
			var st unix.Stat_t
			if unix.Lstat(filepath.Join(l, name), &st) == nil {
				return steps(
					func() error { return os.Chown(p, int(st.Uid), int(st.Gid)) },
					func() error { return unix.Chmod(p, st.Mode&0o7777) },
					at(p, st.Mtim.Sec, st.Mtim.Nsec),
				)
			}
		}
		return fmt.Errorf("%s: no layer below has it", name)
	})
	if err != nil {
		t.Fatal(err)
	}
}

func differ(t *testing.T, what string, got, want []string) {
	t.Helper()
	for _, g := range got {
		if !slices.Contains(want, g) {
			t.Errorf("%s: we have   %s", what, g)
		}
	}
	for _, w := range want {
		if !slices.Contains(got, w) {
			t.Errorf("%s: umoci has %s", what, w)
		}
	}
}

func runFile(t *testing.T, job Job, path string) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Run(t.Context(), job, f); err != nil {
		t.Fatal(err)
	}
}

func layersOf(t *testing.T, img string) (paths []string) {
	t.Helper()
	read := func(digest string, v any) {
		raw, err := os.ReadFile(filepath.Join(img, "blobs", strings.Replace(digest, ":", "/", 1)))
		if err == nil {
			err = json.Unmarshal(raw, v)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	var index, manifest struct {
		Manifests, Layers []struct{ Digest string }
	}
	raw, err := os.ReadFile(filepath.Join(img, "index.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.NewDecoder(bytes.NewReader(raw)).Decode(&index); err != nil {
		t.Fatal(err)
	}
	read(index.Manifests[0].Digest, &manifest)
	for _, l := range manifest.Layers {
		paths = append(paths, filepath.Join(img, "blobs", strings.Replace(l.Digest, ":", "/", 1)))
	}
	return paths
}

// steps runs them until one fails.
func steps(all ...func() error) error {
	for i, s := range all {
		if err := s(); err != nil {
			return fmt.Errorf("step %d: %w", i, err)
		}
	}
	return nil
}

func at(p string, sec, nsec int64) func() error {
	return func() error {
		ts := unix.NsecToTimespec(time.Unix(sec, nsec).UnixNano())
		return unix.UtimesNanoAt(unix.AT_FDCWD, p, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW)
	}
}

func firstLayer(r string) error {
	p := func(s string) string { return filepath.Join(r, s) }
	put := func(name, body string, mode os.FileMode, uid, gid int) func() error {
		return func() error {
			return steps(
				func() error { return os.MkdirAll(filepath.Dir(p(name)), 0o755) },
				func() error { return os.WriteFile(p(name), []byte(body), 0o600) },
				func() error { return os.Chown(p(name), uid, gid) },
				func() error { return os.Chmod(p(name), mode) },
				at(p(name), 1234567890, 987654321),
			)
		}
	}
	return steps(
		put("usr/bin/sudo", "suid", 0o755|os.ModeSetuid, 0, 0),
		put("usr/bin/wall", "sgid", 0o755|os.ModeSetgid, 0, 5),
		put("usr/bin/ping", "caps", 0o755, 0, 0),
		put("usr/lib/x.so", "library", 0o644, 0, 0),
		put("home/user/.profile", "x", 0o640, 1000, 1000),
		put("var/cache/one", "1", 0o644, 0, 0), put("var/cache/two", "2", 0o644, 0, 0), put("var/old/deep/file", "x", 0o600, 9, 9),
		put("etc/changes", "before", 0o644, 0, 0), put("becomes/file", "x", 0o644, 0, 0), put("dir", "becomes a directory", 0o644, 0, 0),
		put("empty", "", 0o000, 0, 0), put("with space\nand newline", "x", 0o644, 0, 0), put("ünïcode", "x", 0o644, 0, 0),
		func() error { return os.Link(p("usr/lib/x.so"), p("usr/lib/y.so")) },
		func() error { return os.Symlink("usr/lib", p("lib")) },
		func() error { return os.Symlink("/etc/shadow", p("etc/abs")) },
		at(p("lib"), 1111111111, 5),
		func() error { return unix.Mkfifo(p("pipe"), 0o622) },
		func() error { return unix.Mkdir(p("dev"), 0o755) },
		func() error { return unix.Mknod(p("dev/null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))) },
		func() error { return unix.Mknod(p("dev/loop7"), unix.S_IFBLK|0o660, int(unix.Mkdev(7, 7))) },
		func() error { return unix.Mkdir(p("tmp"), 0o777) },
		func() error { return os.Chmod(p("tmp"), 0o777|os.ModeSticky) },
		func() error { return os.Chmod(p("home/user"), 0o700|os.ModeSetgid) },
		func() error { return os.Chown(p("home/user"), 1000, 1000) },
		func() error { return unix.Lsetxattr(p("usr/lib/x.so"), "user.note", []byte("a note"), 0) },
		func() error { return unix.Lsetxattr(p("usr/lib"), "user.dir", []byte{0, 1, 2}, 0) },
		func() error {
			return unix.Lsetxattr(p("usr/bin/ping"), "security.capability", []byte("\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"), 0)
		},
		at(p("usr/lib"), 1222222222, 7), at(p("tmp"), 1, 0), at(p("home/user"), 1333333333, 1),
	)
}

func secondLayer(r string) error {
	p := func(s string) string { return filepath.Join(r, s) }
	return steps(
		func() error { return os.RemoveAll(p("var/cache")) },
		func() error { return os.RemoveAll(p("var/old/deep")) },
		func() error { return os.RemoveAll(p("becomes")) },
		func() error { return os.WriteFile(p("becomes"), []byte("a file"), 0o644) },
		func() error { return os.Remove(p("dir")) },
		func() error { return os.MkdirAll(p("dir/inside"), 0o710) },
		func() error { return os.WriteFile(p("etc/changes"), []byte("after"), 0o604) },
		func() error { return os.Chmod(p("usr/bin/wall"), 0o700) },
		func() error { return os.Chtimes(p("home/user"), time.Unix(1444444444, 4), time.Unix(1444444444, 4)) },
	)
}

func thirdLayer(r string) error {
	p := func(s string) string { return filepath.Join(r, s) }
	return steps(
		func() error { return os.MkdirAll(p("var/cache/again"), 0o755) },
		func() error { return os.WriteFile(p("var/cache/three"), []byte("3"), 0o644) },
		func() error { return os.Remove(p("pipe")) },
		func() error { return os.Remove(p("lib")) },
		func() error { return os.Mkdir(p("lib"), 0o755) },
		func() error { return os.WriteFile(p("lib/new"), []byte("x"), 0o644) },
		at(p("var"), 1555555555, 55),
	)
}
