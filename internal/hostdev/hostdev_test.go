package hostdev

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

func TestFind(t *testing.T) {
	dir := t.TempDir()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.Mkdir(filepath.Join(dir, "bus"), 0o755))
	must(unix.Mknod(filepath.Join(dir, "bus/one"), unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))))
	must(unix.Mknod(filepath.Join(dir, "disk"), unix.S_IFBLK|0o640, int(unix.Mkdev(7, 63))))
	must(unix.Mkfifo(filepath.Join(dir, "pipe"), 0o600))
	must(os.WriteFile(filepath.Join(dir, "file"), nil, 0o600))
	must(os.Symlink("bus/one", filepath.Join(dir, "link")))
	must(os.Chown(filepath.Join(dir, "disk"), 3, 6))

	one, err := Find(filepath.Join(dir, "link"), "/dev/mine")
	if err != nil || len(one) != 1 || one[0].Path != "/dev/mine" || one[0].Type != "c" || one[0].Major != 1 || one[0].Minor != 3 || *one[0].FileMode != 0o600 {
		t.Errorf("%+v, %v", one, err)
	}
	all, err := Find(dir, "/dev/all")
	if err != nil || len(all) != 2 || all[0].Path != "/dev/all/bus/one" || all[1].Path != "/dev/all/disk" || all[1].Type != "b" || *all[1].UID != 3 || *all[1].GID != 6 {
		t.Errorf("%+v, %v", all, err)
	}
	must(os.Mkdir(filepath.Join(dir, "empty"), 0o755))
	for _, name := range []string{"nothing", "file", "pipe", "empty"} {
		if _, err := Find(filepath.Join(dir, name), "/dev/x"); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if major, minor, err := Block(filepath.Join(dir, "disk")); err != nil || major != 7 || minor != 63 {
		t.Errorf("%d:%d, %v", major, minor, err)
	}
	for _, name := range []string{"link", "nothing"} {
		if _, _, err := Block(filepath.Join(dir, name)); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestAll(t *testing.T) {
	all, err := All()
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, d := range all {
		seen[d.Path] = true
	}
	if !seen["/dev/null"] {
		t.Error("/dev/null is missing")
	}
	for _, path := range []string{"/dev/console", "/dev/ptmx", "/dev/pts/0", "/dev/stdin"} {
		if seen[path] {
			t.Errorf("%s is the host's own", path)
		}
	}
}
