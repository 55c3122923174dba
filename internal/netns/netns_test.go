package netns

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"
	vns "github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

func dir(t *testing.T) *Dir {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("NEEDS ROOT: network namespaces are made")
	}
	d := New(filepath.Join(t.TempDir(), "netns"))
	t.Cleanup(func() {
		for id := range d.All() {
			if err := d.Remove(id); err != nil {
				t.Error(err)
			}
		}
		if err := d.Close(); err != nil {
			t.Error(err)
		}
		if raw, _ := os.ReadFile("/proc/self/mountinfo"); strings.Contains(string(raw), d.path) {
			t.Errorf("mounts are left:\n%s", raw)
		}
	})
	return d
}

func inode(t *testing.T, path string) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Ino
}

func TestPinFindRemove(t *testing.T) {
	d := dir(t)
	if _, err := d.Find("a"); !errdefs.IsNotFound(err) {
		t.Fatalf("find before pin: %v", err)
	}
	path, err := d.Pin("a")
	if err != nil {
		t.Fatal(err)
	}
	ino := inode(t, path)
	if ino == inode(t, "/proc/self/ns/net") {
		t.Fatal("the pin is the host's own namespace")
	}
	fd, err := vns.GetFromPath(path)
	if err != nil {
		t.Fatal(err)
	}
	defer fd.Close() //nolint:errcheck // a descriptor
	h, err := netlink.NewHandleAt(fd)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	if lo, err := h.LinkByName("lo"); err != nil || lo.Attrs().Flags&net.FlagUp == 0 {
		t.Fatalf("lo is not up: %v", err)
	}
	again, err := d.Pin("a")
	if err != nil || again != path || inode(t, again) != ino {
		t.Fatalf("pinned again: %s, %v", again, err)
	}
	if got, err := New(d.path).Find("a"); err != nil || got != path {
		t.Fatalf("found by another Dir: %s, %v", got, err)
	}
	for range 2 {
		if err := d.Remove("a"); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := d.Find("a"); !errdefs.IsNotFound(err) {
		t.Fatalf("find after remove: %v", err)
	}
}

// A crash between making the file and binding it leaves a file, which is mended or removed.
func TestHalfMade(t *testing.T) {
	d := dir(t)
	if _, err := d.Pin("first"); err != nil { // makes the directory
		t.Fatal(err)
	}
	for _, id := range []string{"mend", "drop"} {
		if err := os.WriteFile(d.Path(id), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var all []string
	for id, err := range d.All() {
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, id)
	}
	if want := []string{"drop", "first", "mend"}; !slices.Equal(all, want) {
		t.Fatalf("all: %v, want %v", all, want)
	}
	if path, err := d.Pin("mend"); err != nil || !pinned(path) {
		t.Fatalf("mend: %v", err)
	}
	if err := d.Remove("drop"); err != nil {
		t.Fatal(err)
	}
}

func TestNames(t *testing.T) {
	d := New("/nonexistent")
	for _, id := range []string{"", ".", "..", "a/b", "../../etc/passwd", "a\x00b", strings.Repeat("x", 129)} {
		if _, err := d.Pin(id); !errdefs.IsInvalidArgument(err) {
			t.Errorf("pin %q: %v", id, err)
		}
		if err := d.Remove(id); !errdefs.IsInvalidArgument(err) {
			t.Errorf("remove %q: %v", id, err)
		}
	}
}

// Every thread comes home: none of them may keep the namespace it made.
func TestManyAtOnce(t *testing.T) {
	d := dir(t)
	home := inode(t, "/proc/self/ns/net")
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			if _, err := d.Pin(fmt.Sprint(i)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	for _, task := range tasks {
		var st unix.Stat_t
		err := unix.Stat("/proc/self/task/"+task.Name()+"/ns/net", &st)
		if err == nil && st.Ino != home {
			t.Errorf("thread %s is in another network namespace", task.Name())
		}
	}
}

// A process with its own copy of the mounts, private even, must not keep the namespace.
func TestRemoveReachesOtherMountNamespaces(t *testing.T) {
	d := dir(t)
	path, err := d.Pin("held")
	if err != nil {
		t.Fatal(err)
	}
	la := netlink.NewLinkAttrs()
	la.Name = fmt.Sprintf("gvt%d", os.Getpid())
	fd, err := vns.GetFromPath(path)
	if err != nil {
		t.Fatal(err)
	}
	err = netlink.LinkAdd(&netlink.Veth{LinkAttrs: la, PeerName: "eth0", PeerNamespace: netlink.NsFd(fd)})
	_ = fd.Close()
	if err != nil {
		t.Fatal(err)
	}
	c := exec.Command("unshare", "-m", "--propagation", "private", "sh", "-c", "echo; exec sleep 60")
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Process.Kill(); _ = c.Wait() }()
	if _, err := out.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	mounts, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", c.Process.Pid))
	if err != nil || !strings.Contains(string(mounts), path) {
		t.Fatalf("the other mount namespace has no copy of the pin, so this proves nothing (%v)", err)
	}
	if err := d.Remove("held"); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	for time.Since(began) < 10*time.Second {
		_, err := netlink.LinkByName(la.Name)
		if errors.As(err, &netlink.LinkNotFoundError{}) {
			t.Logf("the link went with its namespace after %s", time.Since(began))
			return
		}
		time.Sleep(time.Millisecond)
	}
	l, _ := netlink.LinkByName(la.Name)
	_ = netlink.LinkDel(l)
	t.Fatal("the namespace lives on in a copy of its pin")
}

func BenchmarkPinRemove(b *testing.B) {
	if os.Geteuid() != 0 {
		b.Skip("NEEDS ROOT: network namespaces are made")
	}
	d := New(filepath.Join(b.TempDir(), "netns"))
	defer d.Close() //nolint:errcheck // a temporary directory
	for i := 0; b.Loop(); i++ {
		id := fmt.Sprint(i)
		if _, err := d.Pin(id); err != nil {
			b.Fatal(err)
		}
		if err := d.Remove(id); err != nil {
			b.Fatal(err)
		}
	}
}
