package snapshottest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/snapshotters"
)

// childEnv tells the test binary to be a process that serves the driver and is killed. Its value is what to do and where.
const childEnv = "GANTRY_SNAPSHOTTEST_CHILD"

// child is the other process.
func child(t *testing.T, factory Factory) {
	verb, root, _ := strings.Cut(os.Getenv(childEnv), " ")
	switch verb {
	case "work":
		work(t, factory, root)
	case "write":
		writeThenCut(t, factory, root)
	case "read":
		readAfterCut(t, factory, root)
	default:
		t.Fatalf("%s: %q", childEnv, verb)
	}
}

// again starts the test binary for the test that called Run.
func again(t *testing.T, verb, root string) *exec.Cmd {
	var names []string
	for n := range strings.SplitSeq(runner(t), "/") {
		names = append(names, "^"+regexp.QuoteMeta(n)+"$")
	}
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run="+strings.Join(names, "/"), "-test.v") //nolint:gosec // ourselves
	cmd.Env = append(os.Environ(), childEnv+"="+verb+" "+root)
	cmd.Stderr = os.Stderr
	return cmd
}

// runner is the name of the test that called Run: this one is called "kill" or "power" below it.
func runner(t *testing.T) string { return filepath.Dir(t.Name()) }

// said is one line of a child: it begins, or has done, something to a key.
var said = regexp.MustCompile(`^(begin|done) (prepare|commit|remove) (.+)$`)

// work makes, writes, commits and removes without end, and says so.
func work(t *testing.T, factory Factory, root string) {
	d := factory()
	if err := configure(t.Context(), d, root); err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	say := func(format string, args ...any) {
		mu.Lock()
		defer mu.Unlock()
		fmt.Fprintf(os.Stdout, format+"\n", args...)
	}
	parent := ""
	for i := range d.All(t.Context()) {
		if i.Committed { // stand on what the one before us made
			parent = i.Key
		}
	}
	var wg sync.WaitGroup
	for w := range 3 {
		wg.Go(func() {
			for n := 0; ; n++ {
				if err := workOnce(t.Context(), d, fmt.Sprintf("%d.%d.%d", os.Getpid(), w, n), parent, n%2 == 0, n%3 != 2, say); err != nil {
					say("error %v", err)
					return
				}
			}
		})
	}
	wg.Wait()
}

func workOnce(ctx context.Context, d Driver, k, parent string, volatile, keep bool, say func(string, ...any)) error {
	say("begin prepare %s", k)
	m, err := d.Prepare(ctx, k, parent, snapshotters.Options{Volatile: volatile, Labels: map[string]string{"for": k}})
	if err != nil {
		return err
	}
	say("done prepare %s", k)
	dir, done, err := mount(m)
	if err != nil {
		return err
	}
	if err := errors.Join(os.WriteFile(filepath.Join(dir, "mine"), []byte(k), 0o600), done()); err != nil {
		return err
	}
	say("begin commit %s", k)
	if err := d.Commit(ctx, k, k+"'", parent); err != nil {
		return err
	}
	say("done commit %s", k)
	if keep {
		return nil
	}
	say("begin remove %s", k)
	if err := d.Remove(ctx, k+"'"); err != nil {
		return err
	}
	say("done remove %s", k)
	return nil
}

// testKill kills a process that serves the driver, again and again on the same root, and looks at what is left after each time.
func testKill(t *testing.T, factory Factory) {
	root := t.TempDir() + "/root"
	dice := rand.New(rand.NewPCG(7, 11)) //nolint:gosec // when it dies differs anyway
	for round := range 12 {
		far := killed(t, root, time.Duration(dice.Int64N(int64(60*time.Millisecond))))
		d := factory()
		if err := configure(t.Context(), d, root); err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		survivors(t, d, far)
		closeDriver(t, d)
		if t.Failed() {
			t.Fatalf("round %d, of %d keys", round, len(far))
		}
	}
}

// killed runs a child, kills it after it has worked for a while, and returns how far it came with each key.
func killed(t *testing.T, root string, after time.Duration) map[string]string {
	t.Helper()
	cmd := again(t, "work", root)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	far := map[string]string{}
	var timer *time.Timer
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if m := said.FindStringSubmatch(lines.Text()); m != nil {
			far[m[3]] = m[1] + " " + m[2]
			if timer == nil {
				timer = time.AfterFunc(after, func() { _ = cmd.Process.Kill() })
			}
		} else if strings.HasPrefix(lines.Text(), "error ") || strings.HasPrefix(lines.Text(), "---") {
			t.Errorf("the child says: %s", lines.Text())
		}
	}
	_ = cmd.Wait() // killed
	if timer == nil {
		t.Fatal("the child did nothing")
	}
	timer.Stop()
	return far
}

// survivors holds what a driver has against how far its last process came: what was done is there, what was begun is
// there or is not, and nothing in between.
func survivors(t *testing.T, d Driver, far map[string]string) {
	t.Helper()
	held := map[string]snapshotters.Info{}
	for i, err := range d.All(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		held[i.Key] = i
		if err := usable(t.Context(), d, i); err != nil {
			t.Errorf("%q is there and cannot be used: %v", i.Key, err)
		}
	}
	for k, last := range far {
		key, active := held[k]
		name, committed := held[k+"'"]
		state := map[[2]bool]string{{false, false}: "none", {true, false}: "writable", {false, true}: "committed", {true, true}: "both"}[[2]bool{active, committed}]
		allowed := map[string][]string{
			"begin prepare": {"none", "writable"}, "done prepare": {"writable"},
			"begin commit": {"writable", "committed"}, "done commit": {"committed"},
			"begin remove": {"committed", "none"}, "done remove": {"none"},
		}[last]
		ok := false
		for _, a := range allowed {
			ok = ok || a == state
		}
		if !ok {
			t.Errorf("%s: last heard %q, and it is %s", k, last, state)
		}
		if active && (key.Committed || key.Labels["for"] != k) || committed && (!name.Committed || name.Labels["for"] != k) {
			t.Errorf("%s: %+v, %+v", k, key, name)
		}
		if committed {
			if err := holds(t.Context(), d, k+"'", k); err != nil {
				t.Errorf("%s: %v", k, err)
			}
		}
		if active { // it is done again, as the daemon does
			if err := d.Remove(t.Context(), k); err != nil {
				t.Errorf("remove %s: %v", k, err)
			}
		}
	}
}

func usable(ctx context.Context, d Driver, i snapshotters.Info) error {
	if i.Committed {
		return nil
	}
	m, err := d.Mounts(ctx, i.Key)
	if err != nil {
		return err
	}
	_, done, err := mount(m)
	if err != nil {
		return err
	}
	return done()
}

// holds looks at the file of a committed snapshot.
func holds(ctx context.Context, d Driver, name, want string) error {
	m, err := d.View(ctx, "look at "+name, name, snapshotters.Options{})
	if err != nil {
		return err
	}
	dir, done, err := mount(m)
	if err != nil {
		return err
	}
	raw, err := os.ReadFile(filepath.Join(dir, "mine"))
	if err == nil && string(raw) != want {
		err = fmt.Errorf("its file says %q, not %q", raw, want)
	}
	return errors.Join(err, done(), d.Remove(ctx, "look at "+name))
}

func closeDriver(t *testing.T, d Driver) {
	t.Helper()
	if c, ok := d.(io.Closer); ok {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
}

// testPower cuts the power of a file system: one of our own in a file, told by the kernel to forget everything that is not on its
// device (EXT4_IOC_SHUTDOWN without a flush of the log). What Commit answered for must be there afterwards.
func testPower(t *testing.T, factory Factory) {
	mkfs, err := exec.LookPath("mkfs.ext4")
	if err != nil {
		t.Skip("SKIPPED: no mkfs.ext4, so there is no file system whose power could be cut: the durability of Commit is not tested")
	}
	base := t.TempDir()
	img := base + "/disk"
	if err := errors.Join(os.WriteFile(img, nil, 0o600), os.Truncate(img, 128<<20), os.Mkdir(base+"/mnt", 0o700)); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), mkfs, "-q", "-F", img).CombinedOutput(); err != nil { //nolint:gosec // from PATH
		t.Fatalf("mkfs: %v: %s", err, out)
	}
	for _, verb := range []string{"write", "read"} {
		cmd := again(t, verb, base)
		cmd.SysProcAttr = &unix.SysProcAttr{Unshareflags: unix.CLONE_NEWNS}
		out, err := cmd.Output()
		if strings.Contains(string(out), "SKIPPED") {
			t.Skipf("%s", out)
		}
		if err != nil {
			t.Fatalf("%s: %v\n%s", verb, err, out)
		}
	}
}

// disk mounts the file system of testPower in the child's own mount namespace.
func disk(t *testing.T, base string) (root string) {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		t.Fatal(err)
	}
	// mount(8) finds a loop device and makes it go with the mount
	if out, err := exec.CommandContext(t.Context(), "mount", "-o", "loop", base+"/disk", base+"/mnt").CombinedOutput(); err != nil { //nolint:gosec // a test's directory
		t.Skipf("SKIPPED: no file system whose power could be cut: mount: %v: %s", err, out)
	}
	return base + "/mnt/root"
}

// powerLayers is what is committed before the power goes, each on the one before.
var powerLayers = []struct {
	name     string
	volatile bool
}{{"one", false}, {"two", true}, {"three", true}} // unmounting an overlay that is not volatile would sync it all

func writeThenCut(t *testing.T, factory Factory, base string) {
	root := disk(t, base)
	d := factory()
	if err := configure(t.Context(), d, root); err != nil {
		t.Fatal(err)
	}
	parent := ""
	for _, l := range powerLayers {
		m, err := d.Prepare(t.Context(), l.name, parent, snapshotters.Options{Volatile: l.volatile})
		if err != nil {
			t.Fatal(err)
		}
		dir, done, err := mount(m)
		if err != nil {
			t.Fatal(err)
		}
		for n := range 64 {
			if err := os.WriteFile(filepath.Join(dir, fmt.Sprint(l.name, n)), []byte(strings.Repeat(l.name, 5000)), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if err := errors.Join(os.WriteFile(filepath.Join(dir, "mine"), []byte(l.name), 0o600), done()); err != nil {
			t.Fatal(err)
		}
		if err := d.Commit(t.Context(), l.name, l.name+"'", parent); err != nil {
			t.Fatal(err)
		}
		parent = l.name + "'"
	}
	if _, err := d.Prepare(t.Context(), "durable", parent, snapshotters.Options{}); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Prepare(t.Context(), "volatile", parent, snapshotters.Options{Volatile: true}); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(base + "/mnt")
	if err != nil {
		t.Fatal(err)
	}
	const (
		shutdown   = 0x8004587d // EXT4_IOC_SHUTDOWN, _IOR('X', 125, __u32)
		noLogFlush = 2          // EXT4_GOING_FLAGS_NOLOGFLUSH
	)
	if err := unix.IoctlSetPointerInt(int(f.Fd()), shutdown, noLogFlush); err != nil {
		t.Fatalf("cut the power: %v", err)
	}
	os.Exit(0) //nolint:revive // as after a power cut: nothing of the driver's own runs any more
}

func readAfterCut(t *testing.T, factory Factory, base string) {
	root := disk(t, base)
	d := factory()
	if err := configure(t.Context(), d, root); err != nil {
		t.Fatal(err)
	}
	for _, l := range powerLayers {
		if err := holds(t.Context(), d, l.name+"'", l.name); err != nil {
			t.Errorf("%s: %v", l.name, err)
		}
	}
	m, err := d.View(t.Context(), "all", "three'", snapshotters.Options{})
	if err != nil {
		t.Fatal(err)
	}
	dir, done, err := mount(m)
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range powerLayers {
		for n := range 64 {
			raw, err := os.ReadFile(filepath.Join(dir, fmt.Sprint(l.name, n)))
			if err != nil || string(raw) != strings.Repeat(l.name, 5000) {
				t.Errorf("%s%d has %d bytes, %v", l.name, n, len(raw), err)
			}
		}
	}
	if err := done(); err != nil {
		t.Error(err)
	}
	if _, err := d.Mounts(t.Context(), "durable"); err != nil {
		t.Errorf("a snapshot that was answered for: %v", err)
	}
	if _, err := d.Mounts(t.Context(), "volatile"); err != nil && !errdefs.IsNotFound(err) {
		t.Errorf("a snapshot that may be lost is half there: %v", err)
	}
	closeDriver(t, d)
}
